"""bench/jobs.py measures what it says, on a scale that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "jobs.py"
SMALL = ("--repeats", "1", "--jobs", "50", "--trickle", "20", "--seconds", "0.5")


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=500, check=False
    )


def check(result, names):
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["contenders"]
    assert list(found) == names
    for name, numbers in found.items():
        assert numbers["rates"] == [numbers["jobs_per_second"]], name
        assert numbers["jobs_per_second"] > 0
        assert len(numbers["waits_ms"]) == 10
        assert 0 < numbers["p50_ms"] <= numbers["p99_ms"] == max(numbers["waits_ms"])
        assert numbers["memory_mb"] > 1


def test_workers_of_both_languages_are_measured():
    check(bench("--only", "python,php", *SMALL, "--json"), ["python", "php"])


@pytest.mark.long
def test_the_others_are_measured_in_the_same_run_and_compared():
    names = ["python", "php", "rq", "rq simple", "celery", "celery prefetch 4"]
    check(bench(*SMALL, "--json"), names)
    result = bench(*SMALL)
    assert [line.split(":")[0] for line in result.stdout.splitlines()[-2:]] == ["python", "php"]
    for name in names[2:]:
        assert result.stdout.splitlines()[-1].count(f" times {name},") == 1


def test_what_cannot_be_measured_is_said_in_one_line():
    for arguments, reason in (
        (("--only", "nobody"), "--only nobody: there are python, php, rq"),
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--jobs", "1"), "--jobs must be at least 10"),
        (("--trickle", "0"), "--trickle and --seconds must be above 0"),
        (("--broker", "nowhere"), "--broker must be HOST:PORT"),
        (("--only", "python", "--broker", "127.0.0.1:1"), "Connection refused"),
    ):
        result = bench(*arguments)
        assert result.returncode in (1, 2)
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
