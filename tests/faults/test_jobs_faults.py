"""Workers of both languages under load while children and broker are killed. No job may be lost."""

import collections
import contextlib
import json
import signal
import sys

import pytest

from kestrel_stack.queue import Producer
from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.errors import QueueError
from support.broker import BrokerProcess, wait_until
from support.jobs import Stage
from support.worker import LANGUAGES, App

pytestmark = pytest.mark.long
TERM = signal.SIGTERM
MINUTES = 60.0


@pytest.fixture
def stage(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        yield Stage("python", App(tmp_path / "app"), broker)


@contextlib.contextmanager
def crew(stage, each, *flags):
    """So many workers of each language; at the end all of them were still there and ended when told."""
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(each):
            for language in LANGUAGES:
                stage.language = language
                worker = stage.worker("--max-jobs", "1000000", *flags, name=f"{language}{number}")
                workers.append(stack.enter_context(worker))
        yield workers
        assert [worker.end(TERM) for worker in workers] == [0] * len(workers)
    stage.check_logs()


def put_all(stage, job, data, count):
    ids = []
    with stage.broker.connect() as raw:
        for _ in range(count):
            envelope = Envelope(job, "acme", data)
            raw.set("shop_work", envelope.encode())
            ids.append(envelope.id)
    return ids


def test_every_job_is_done_or_parked_while_one_child_in_five_is_killed(stage):
    ids = put_all(stage, "Deadly", {"percent": 20}, 1000)
    with crew(stage, 2) as workers:
        wait_until(lambda: (stage.count(), stage.held()) == (0, 0), "every job to be settled", 5 * MINUTES)
        lines = [line for worker in workers for line in worker.jobs(1)]
    done = collections.Counter(stage.app.noted("done"))
    parked = [ParkedRecord.decode(item) for item in stage.broker.drain("shop_work_errors")]
    dead = {json.loads(record.body)["id"] for record in parked}
    begun = collections.Counter(stage.app.noted("begun"))
    assert set(done) | dead == set(ids)
    assert not set(done) & dead
    assert set(done.values()) == {1}
    assert all(begun[job] == 2 for job in dead)
    assert all(begun[job] in (1, 2) for job in done)
    assert {record.reason for record in parked} == {
        "The process that ran the job died: it was killed by SIGKILL."
    }
    # One in 25 dies twice; fewer than one in a hundred or more than one in ten would be another rule.
    assert 10 <= len(dead) <= 100
    assert collections.Counter(line["outcome"] for line in lines) == {
        "done": len(done),
        "parked": len(dead),
    }


def test_every_job_is_done_while_the_broker_is_killed_under_load(stage):
    total, enqueued, doubtful = 6000, [], 0
    with (
        crew(stage, 2) as workers,
        Producer("shop", "acme", servers=stage.broker.address, queues=["work"], timeout=1.0) as producer,
    ):
        while len(enqueued) < total:
            if len(enqueued) % 1000 == 500:
                stage.broker.kill()
                stage.broker.start()
            try:
                enqueued.append(producer.enqueue("Note", queue="work"))
            except QueueError:
                doubtful += 1
        wait_until(lambda: set(enqueued) <= set(stage.app.noted("done")), "every job", 5 * MINUTES)
        wait_until(lambda: (stage.count(), stage.held()) == (0, 0), "the queue to be empty")
        away = sum(len(worker.events("server is away")) for worker in workers)
    done = collections.Counter(stage.app.noted("done"))
    doubled = sum(count - 1 for count in done.values())
    sys.stdout.write(
        f"{len(done)} jobs done, {doubled} of them doubled; {doubtful} enqueued without an answer\n"
    )
    assert away >= 4
    assert len(done) - len(enqueued) <= doubtful
    # Only what was in a worker's hands may come again: at most one job for each worker and kill.
    assert doubled <= 6 * len(workers)
    assert stage.count("work_errors") == 0


def test_a_hundred_thousand_jobs_are_each_done_once_by_eight_workers(stage):
    ids = put_all(stage, "Note", {}, 100_000)
    with crew(stage, 4) as workers:
        wait_until(lambda: (stage.count(), stage.held()) == (0, 0), "every job to be done", 10 * MINUTES)
        counts = {worker.log_file.stem: len(worker.events("job")) for worker in workers}
    done = collections.Counter(stage.app.noted("done"))
    sys.stdout.write(
        f"{len(done)} jobs done, {sum(done.values()) - len(done)} doubled; by worker: {counts}\n"
    )
    assert set(done) == set(ids)
    assert set(done.values()) == {1}
    assert all(counts.values())
    assert stage.count("work_errors") == 0
