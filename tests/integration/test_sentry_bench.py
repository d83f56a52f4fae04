"""bench/sentry.py measures what it says, on a scale that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "sentry.py"


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.long
def test_every_case_is_measured_and_every_error_is_accounted_for():
    result = bench("--jobs", "40", "--runs", "1", "--json")
    assert result.returncode == 0, result.stderr
    cases = json.loads(result.stdout)["cases"]
    assert len(cases) == 16
    for name, numbers in cases.items():
        _, kind, errors = name.split()
        (rate,), reported, repeated, lost = (numbers[key] for key in list(numbers)[:4])
        assert rate > 0
        assert reported[0] + repeated[0] + lost[0] == (0 if kind == "none" else 40), name
        assert (repeated[0] > 0) == (kind != "none" and errors == "one"), name
        assert (reported[0] > 0) == (kind == "healthy"), name


def test_what_cannot_be_measured_is_said_in_one_line():
    for arguments, reason in (
        (("--only", "nobody"), "--only: nobody: there are python, php"),
        (("--runs", "0"), "--runs: must be at least 1"),
        (("--jobs", "1"), "--jobs: must be at least 20"),
    ):
        result = bench(*arguments)
        assert result.returncode == 2
        assert reason in result.stderr.splitlines()[-1]
