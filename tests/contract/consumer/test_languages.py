"""A job that one language enqueues or fails is done by the other."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kestrel_stack.queue import Producer
from support.broker import DEADLINE_S
from support.worker import LANGUAGES

TERM = signal.SIGTERM
ENQUEUE = Path(__file__).parents[2] / "support" / "enqueue.php"
QUEUES = [{"name": "work", "retry_delays": [10]}]
DATA = {
    "name": "Zoë żółć ✨ 🦊",
    "lines": 'one\ntwo\t"three" \\ / \u2028 \x00',
    "list": [1, 2.5, -0.125, 1e-7, 0.1, 1e300, True, False, None, "", [[]]],
    "whole": [0, -1, 2**53 - 1, -(2**53), 2**63 - 1],
    "floats": [1.0, 100.0, 0.30000000000000004],
    "nested": {"a": {"b": {"c": [{"d": 1}]}}},
    "keys": {"": 1, "0x": 2, "with space": 3, "Zoë": 4},
    "long": "x" * 10_000,
}


def enqueue(language, broker, *jobs):
    """Enqueue with a language's own producer and return the ids."""
    if language == "python":
        with Producer("shop", "acme", servers=broker.address, queues=QUEUES) as producer:
            return [producer.enqueue(job.pop("job"), job.pop("data"), **job) for job in jobs]
    wanted = {"servers": broker.address, "queues": QUEUES, "tenant": "acme", "jobs": jobs}
    result = subprocess.run(
        [shutil.which("php") or "php", str(ENQUEUE)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr + result.stdout
    return result.stdout.split()


@pytest.mark.parametrize("from_", LANGUAGES, ids=[f"from {language}" for language in LANGUAGES])
def test_a_job_arrives_as_it_was_sent_whoever_sent_it(stage, from_):
    (job,) = enqueue(from_, stage.broker, {"job": "Echo", "data": DATA, "queue": "work"})
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    (line,) = worker.events("job")
    assert (line["id"], line["tenant"], line["outcome"]) == (job, "acme", "done")
    (echoed,) = map(json.loads, stage.app.noted("echo"))
    assert echoed == DATA
    assert json.dumps(echoed["floats"]) == json.dumps(DATA["floats"])


@pytest.mark.parametrize("from_", LANGUAGES, ids=[f"from {language}" for language in LANGUAGES])
def test_a_delayed_job_waits_in_the_queue_of_its_delay(stage, from_):
    (job,) = enqueue(from_, stage.broker, {"job": "Note", "data": {}, "queue": "work", "delay": 10})
    (waiting,) = map(json.loads, stage.take("work_retry_10"))
    assert (waiting["id"], waiting["attempt"]) == (job, 1)
    assert waiting["due_at"] == pytest.approx(waiting["enqueued_at"] + 10_000, abs=1000)
    assert stage.count() == 0


def test_a_job_that_one_language_failed_is_done_by_the_other(stage):
    (other,) = {*LANGUAGES} - {stage.language}
    (job,) = enqueue(other, stage.broker, {"job": "Attempt", "data": {"until": 2}, "queue": "work"})
    with stage.worker("--max-jobs", "1", queues=[{**QUEUES[0], "language": stage.language}]) as worker:
        assert worker.end() == 0
    (again,) = stage.take("work_retry_10")
    stage.put(again)
    stage.language = other
    with stage.worker("--max-jobs", "1", name="other") as worker:
        assert worker.end() == 0
    assert stage.app.noted("begun") == [f"{job} 1", f"{job} 2"]
    assert stage.app.noted("done") == [f"{job} 2"]
