"""bench/run measures parts, keeps what they found, and writes it into docs/performance.md."""

import ast
import copy
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
WHERE = {
    "date": "2026-01-02 03:04",
    "cores": 4,
    "cpu": "Some CPU",
    "memory_gb": 16,
    "system": "Debian",
    "kernel": "6.1",
    "python": "3.11.2",
}
BROKER = {
    "conditions": WHERE | {"item_bytes": 200, "client_processes": 3},
    "loads": [
        {
            "load": "put",
            "connections": 50,
            "per_second": {"embedded": [29_000, 30_000, 31_000], "redis": [59_000, 60_000, 61_000]},
        }
    ],
    "memory_mb": {"embedded": [24, 30], "redis": [10, None]},
}
SITE = {
    "conditions": WHERE | {"first_runs": 1},
    "seconds": [
        [hosts, case, name, [factor * taken, factor * taken + 1, factor * taken + 2]]
        for case in ("first", "no change")
        for name, factor in (("plain Ansible settings", 3), ("kestrel-stack", 1))
        for hosts, taken in ((1, 10), (4, 12), (10, 20))
    ],
    "per task": [["kestrel-stack, no change", 4, 0.02]],
}


def bench(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "bench" / "lib" / "run.py", *arguments]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, check=False
    )


def keep(folder: Path, name: str, result: dict) -> None:
    head = {"part": name, "command": f"bench/run {name}", "runs": 3, "quick": False, "commit": "abc1234"}
    more = {"seconds": 100.0, "load_before": 0.1, "busy_before": 0.01, "result": result}
    (folder / f"{name}.json").write_text(json.dumps(head | more))


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    shutil.copy(PAGE, folder)
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def block(docs: Path, name: str) -> str:
    text = (docs / "performance.md").read_text()
    return text.split(f"<!-- bench/run: {name} -->\n")[1].split("<!-- /bench/run -->")[0]


def test_a_part_that_fails_is_told_of_and_the_next_is_measured_and_written(out, docs):
    result = bench(
        "broker", "web", "--quick", "--kestrel", "127.0.0.1:1", "--out", out, "--docs", docs, "--render"
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("bench/run: broker: not measured: ")
    assert "Connection refused" in last
    assert "Traceback" not in result.stderr
    assert [file.name for file in out.iterdir()] == ["web.json"]
    found = json.loads((out / "web.json").read_text())
    assert (found["runs"], found["quick"], found["command"]) == (1, True, "bench/run web --runs 1 --quick")
    assert "A quick run" in block(docs, "web")
    assert block(docs, "broker") == block(PAGE.parent, "broker")
    # A second time there is nothing to do.
    again = bench("web", "--quick", "--out", out, "--resume")
    assert (again.returncode, again.stderr) == (0, "measured already: web\n")
    # What the part itself called a failure is not done.
    (out / "web.json").write_text(json.dumps(found | {"status": 1}))
    again = bench("web", "--quick", "--out", out, "--resume")
    assert again.returncode == 0
    assert "measured already" not in again.stderr
    assert json.loads((out / "web.json").read_text())["status"] == 0


def test_a_quick_run_meets_no_aim(out, docs):
    keep(out, "site", SITE)
    kept = json.loads((out / "site.json").read_text())
    (out / "site.json").write_text(json.dumps(kept | {"quick": True}))
    before = block(docs, "aims").splitlines()
    assert bench("--render", "--out", out, "--docs", docs).returncode == 0
    assert "A quick run" in block(docs, "site")
    assert not [line for line in block(docs, "aims").splitlines() if line not in before and "site" in line]


def test_a_part_that_crashes_does_not_leave_its_servers_or_hold_up_the_next():
    part = (
        "import os, subprocess, sys; left = subprocess.Popen(['sleep', '600']); "
        "print(left.pid, flush=True); print('crashed', file=sys.stderr, flush=True); os._exit(3)"
    )
    program = f"from lib import run; print(run.watch([{sys.executable!r}, '-c', {part!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "bench",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    status, pid, last = ast.literal_eval(done.stdout)
    assert (status, last) == (3, "crashed")
    # Ended; whether it has been reaped is init's business.
    assert (
        not Path(f"/proc/{int(pid)}/cmdline").exists() or not Path(f"/proc/{int(pid)}/cmdline").read_bytes()
    )


def test_runs_and_more_arguments_reach_the_part(out):
    result = bench("broker", "--quick", "--runs", "2", "--out", out, "--", "--only", "embedded")
    assert result.returncode == 0, result.stderr
    found = json.loads((out / "broker.json").read_text())
    assert found["command"] == "bench/run broker --runs 2 --quick -- --only embedded"
    for load in found["result"]["loads"]:
        assert {name: len(rates) for name, rates in load["per_second"].items()} == {"embedded": 2}


def test_numbers_ratios_aims_and_pictures_are_written_and_the_prose_is_kept(out, docs):
    keep(out, "broker", BROKER)
    keep(out, "site", SITE)
    page = docs / "performance.md"
    page.write_text(page.read_text().replace("## Broker\n", "## Broker\n\nWritten by hand.\n"))
    outside = page.read_text().split("<!-- /bench/run -->")[-1]
    result = bench("--render", "--out", out, "--docs", docs)
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert "## Broker\n\nWritten by hand.\n" in text
    assert text.split("<!-- /bench/run -->")[-1] == outside
    assert "| put, 50 connections | 30,000 (29,000-31,000) | 60,000 (59,000-61,000) ×0.50 |" in block(
        docs, "broker"
    )
    assert "`bench/run broker`: 2026-01-02 03:04 UTC, 4 cores (Some CPU)" in block(docs, "broker")
    assert "| plain Ansible settings | 31 s (30-32) ×2.82 |" in block(docs, "site")
    assert "| kestrel-stack: for each task and host |  | 20 ms |  |" in block(docs, "site")
    aims = block(docs, "aims")
    assert "| site.yml, no change, 4 hosts | 13.0 s | under 25 s | met |" in aims
    assert "| 10 hosts take 1.91 times as long as 1 | less than 10 times | met |" in aims
    pictures = sorted(file.name for file in docs.glob("*.svg"))
    assert pictures == [
        "performance-broker.svg",
        "performance-site-first.svg",
        "performance-site-no-change.svg",
    ]
    for name in pictures:
        assert f"({name})" in text
        xml.etree.ElementTree.parse(docs / name)
    # The same numbers once more change nothing; worse ones say so, and what is not there stays.
    assert bench("--render", "--out", out, "--docs", docs).returncode == 0
    assert page.read_text() == text
    (out / "broker.json").unlink()
    slow = copy.deepcopy(SITE)
    slow["seconds"] = [[*row[:3], [10 * taken for taken in row[3]]] for row in slow["seconds"]]
    keep(out, "site", slow)
    assert bench("--render", "--out", out, "--docs", docs).returncode == 0
    assert "| 130.0 s | under 25 s | **not met** |" in block(docs, "aims")
    assert "60,000 (59,000-61,000) ×0.50" in block(docs, "broker")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "broker.json is not JSON"),
        ("[]", "broker.json is not what bench/run writes"),
        (
            json.dumps({"part": "broker", "result": {"loads": 3}}),
            "broker.json is not what bench/broker.py writes",
        ),
    ],
    ids=["cut off", "a list", "other keys"],
)
def test_broken_json_is_one_line_and_changes_nothing(out, docs, content, reason):
    keep(out, "site", SITE)
    (out / "broker.json").write_text(content)
    result = bench("--render", "--out", out, "--docs", docs)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert reason in line
    assert line.endswith("measure it again: bench/run broker")
    assert [file.name for file in docs.iterdir()] == ["performance.md"]
    assert (docs / "performance.md").read_text() == PAGE.read_text()


def test_what_makes_no_sense_is_said_in_one_line(out, docs):
    for arguments, status, reason in (
        (("nothing",), 2, "nothing: there are broker, jobs,"),
        (("broker", "--runs", "0"), 2, "--runs: must be at least 1"),
        (("broker", "web", "--", "--only", "x"), 2, "what follows -- is for one part"),
        (("--render", "--out", out, "--docs", docs), 1, "nothing was measured in"),
        (("--render", "--out", out, "--docs", out), 1, "there is no"),
    ):
        result = bench(*arguments)
        assert result.returncode == status
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
