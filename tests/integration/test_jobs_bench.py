"""bench/jobs.py measures what it says, on a scale that takes seconds."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "jobs.py"
SMALL = ("--runs", "1", "--jobs", "50", "--trickle", "20", "--seconds", "0.5")


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=500, check=False
    )


def check(result, names):
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["contenders"]
    assert list(found) == names
    for name, numbers in found.items():
        assert numbers["rates"] == [numbers["jobs_per_second"]["median"]], name
        assert numbers["jobs_per_second"]["least"] > 0
        (waits,) = numbers["waits_ms"]
        assert len(waits) == 10
        assert 0 < numbers["p50_ms"]["median"] <= numbers["p99_ms"]["median"] == max(waits)
        assert numbers["memory_mb"]["median"] > 1


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
        (("--only", "nobody"), "--only: nobody: there are python, php, rq"),
        (("--runs", "0"), "--runs: must be at least 1"),
        (("--jobs", "1"), "--jobs: must be at least 10"),
        (("--trickle", "0"), "--trickle and --seconds must be above 0"),
        (("--broker", "nowhere"), "--broker: must be HOST:PORT"),
        (("--only", "python", "--broker", "127.0.0.1:1"), "Connection refused"),
    ):
        result = bench(*arguments)
        assert result.returncode in (1, 2)
        assert reason in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_the_wait_of_the_others_begins_where_they_enqueue(tmp_path):
    """Not where the bench tells their producer to, which is another process."""
    (tmp_path / "redis.py").write_text("class Redis:\n    from_url = staticmethod(str)\n")
    (tmp_path / "rq.py").write_text(
        "import sys\n\n\nclass Queue:\n    def __init__(self, name, connection): ...\n\n"
        "    def enqueue(self, function, data, result_ttl):\n        print(data, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[2] / "bench" / "noop" / "enqueue.py", "rq"],
        env={"PYTHONPATH": str(tmp_path), "BENCH_REDIS": "redis://nowhere"},
        input='[{"mark": "wait", "sent": 5.0}, {"mark": "warm"}]\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    waited, warm = map(ast.literal_eval, done.stderr.splitlines())
    assert waited["sent"] > 1_000_000_000
    assert warm == {"mark": "warm"}
