"""bench/broker.py measures what it says, on a scale that takes a second."""

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from support.broker import BrokerProcess

BENCH = Path(__file__).parents[2] / "bench" / "broker.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_every_load_is_measured_on_both_servers_in_turns(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as other:
        result = bench(
            *("--only", "embedded", "--kestrel", other.address, "--kestrel-pid", str(other.pid)),
            *("--runs", "2", "--requests", "200", "--json"),
        )
        assert result.returncode == 0, result.stderr
        # What was measured there went through it, in and out: to be confirmed, and for good, in each run.
        assert other.raw(b"stats\r\n").count(b"STAT cmd_set 1000\r\n") == 1
        assert other.raw(b"stats\r\n").count(b"STAT get_hits 1000\r\n") == 1
    answer = json.loads(result.stdout)
    assert [(load["load"], load["connections"]) for load in answer["loads"]] == [
        *(("put", 1), ("take and confirm", 1), ("take, at most once", 1)),
        *(("put", 50), ("take and confirm", 50), ("take, at most once", 50)),
    ]
    for load in answer["loads"]:
        assert {name: len(rates) for name, rates in load["per_second"].items()} == {
            "embedded": 2,
            "kestrel": 2,
        }
    assert all(len(numbers) == 2 for numbers in answer["memory_mb"].values())
    turns = [line.split()[4] for line in result.stderr.splitlines() if line.startswith("run")]
    assert turns == ["embedded"] * 6 + ["kestrel"] * 6 + ["embedded"] * 6 + ["kestrel"] * 6


def test_the_table_has_a_ratio_for_each_load(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as other:
        result = bench("--only", "embedded", "--kestrel", other.address, "--runs", "1", "--requests", "100")
    rates = [line for line in result.stdout.splitlines() if "/s (" in line]
    assert len(rates) == 6
    assert all(line.endswith("x") for line in rates)


@pytest.mark.long
def test_the_peers_do_the_loads_that_they_have():
    result = bench("--runs", "1", "--requests", "400", "--json")
    assert result.returncode == 0, result.stderr
    loads = json.loads(result.stdout)["loads"]
    assert len(loads) == 6
    for load in loads:
        peers = {"redis"} if load["load"] == "take, at most once" else {"redis", "beanstalkd"}
        assert set(load["per_second"]) == {"embedded"} | peers


def test_the_memory_curve_is_drawn_with_its_figures(tmp_path):
    picture = tmp_path / "curve.svg"
    result = bench("--backlog", "3000", "--svg", str(picture), "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    root = xml.etree.ElementTree.parse(picture).getroot()
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(f"at most {figures['resident_mb_most']:.0f} MB of memory" in text for text in texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_what_cannot_be_measured_is_said_in_one_line():
    for arguments, reason in (
        (("--kestrel", "nowhere"), "--kestrel: must be HOST:PORT"),
        (("--runs", "0"), "--runs: must be at least 1"),
        (("--only", "embedded", "--kestrel", "127.0.0.1:1"), "Connection refused"),
    ):
        result = bench(*arguments)
        assert result.returncode in (1, 2)
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
