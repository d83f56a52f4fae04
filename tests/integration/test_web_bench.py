"""bench/web.py measures what it says, on a scale that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "web.py"
SMALL = (
    *("--servers", "2", "--queues", "20", "--viewers", "3"),
    *("--seconds", "0.5", "--requests", "2", "--runs", "2"),
)


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
def test_pages_costs_and_memory_are_measured():
    result = bench(*SMALL, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["conditions"]["servers"], found["conditions"]["queues"]) == (2, 20)
    assert [cost["viewers"] for cost in found["costs"]] == [0, 0, 1, 3]
    for page in found["pages"]:
        assert len(page["p50_ms"]) == len(page["p95_ms"]) == 2
        assert all(0 < p50 <= p95 for p50, p95 in zip(page["p50_ms"], page["p95_ms"], strict=True))
    assert {page["viewers"] for page in found["pages"]} == {0, 1, 3}
    assert all(min(mb) > 10 for mb in found["memory_mb"].values())


def test_a_wrong_number_is_refused():
    result = bench("--queues", "0")
    assert result.returncode == 2
    assert "--queues: must be at least 20" in result.stderr
