"""bench/broker.py measures what it says, on a scale that takes a second."""

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

from support.broker import BrokerProcess

BENCH = Path(__file__).parents[2] / "bench" / "broker.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_every_load_is_measured_on_both_servers_in_turns(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as other:
        result = bench(
            *("--against", other.address, "--against-pid", str(other.pid)),
            *("--repeats", "2", "--requests", "200", "--json"),
        )
        assert result.returncode == 0, result.stderr
        # What was measured there went through it: every item in and out, twice a repeat.
        assert other.raw(b"stats\r\n").count(b"STAT cmd_set 500\r\n") == 1
        assert other.raw(b"stats\r\n").count(b"STAT get_hits 500\r\n") == 1
    answer = json.loads(result.stdout)
    assert [(load["load"], load["connections"]) for load in answer["loads"]] == [
        *(("set", 1), ("get q/close/open", 1)),
        *(("set", 50), ("get q/close/open", 50)),
    ]
    for load in answer["loads"]:
        assert {name: len(rates) for name, rates in load["per_second"].items()} == {
            "embedded": 2,
            "against": 2,
        }
    assert all(len(numbers) == 2 for numbers in answer["memory_mb"].values())
    turns = [line.split()[4] for line in result.stderr.splitlines() if line.startswith("repeat")]
    assert turns == ["embedded"] * 4 + ["against"] * 4 + ["embedded"] * 4 + ["against"] * 4


def test_the_table_has_a_ratio_for_each_load(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as other:
        result = bench("--against", other.address, "--repeats", "1", "--requests", "100")
    lines = result.stdout.splitlines()
    assert "ratio" in next(line for line in lines if "embedded" in line)
    assert sum("/s (" in line for line in lines) == 4


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
        (("--against", "nowhere"), "--against must be HOST:PORT"),
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--against", "127.0.0.1:1"), "Connection refused"),
    ):
        result = bench(*arguments)
        assert result.returncode in (1, 2)
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
