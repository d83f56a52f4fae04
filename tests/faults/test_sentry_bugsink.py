"""Storms and outages with a real Bugsink: what arrives, what does not, and that all is accounted for."""

import signal

import pytest

from kestrel_stack.consumer import sentry
from kestrel_stack.queue import Producer
from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.bugsink import Bugsink
from support.worker import LANGUAGES, App, WorkerProcess, settings

ERRORS = "shop_work_errors"

PYTHON = """
import sys
sys.modules["sentry_sdk"] = None
from kestrel_stack.consumer import Registry

registry = Registry()


@registry.job("Fail")
def fail(data, context):
    if data.get("fine"):
        return
    raise ValueError(f"broken {data['name']}")
"""
PHP = """<?php

use KestrelStack\\Consumer\\{Context, Registry};

return (new Registry())->job('Fail', function (array $data, Context $context): void {
    if ($data['fine'] ?? false) {
        return;
    }
    throw new RuntimeException("broken {$data['name']}");
});
"""


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def shared_bugsink(tmp_path_factory):
    """One for the tests that only add to it; to start it takes longer than they do."""
    with Bugsink(tmp_path_factory.mktemp("bugsink")) as started:
        yield started


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as started:
        yield started


@pytest.fixture
def start(tmp_path, broker, language):
    app = App(tmp_path / "app")
    (app.folder / "failing.py").write_text(PYTHON)
    (app.folder / "failing.php").write_text(PHP)

    def started(dsn, name="worker"):
        # By default a worker ends after 1,000 jobs.
        queue = {"name": "work", "language": language, "job_timeout": 20, "max_jobs": 1_000_000}
        config = settings(broker.address, queue)
        return WorkerProcess(
            *(app, broker.address),
            name=name,
            language=language,
            app_name="failing.php" if language == "php" else "failing:registry",
            settings=config | {"sentry_dsn": dsn, "host": name},
            debug=False,
        )

    return started


def enqueue(broker, *all_data):
    with Producer("shop", "acme", servers=[broker.address], queues=["work"]) as send:
        for data in all_data:
            send.enqueue("Fail", data, queue="work")


def parked(broker, count):
    return wait_until(lambda: broker.stats(ERRORS).get("items", 0) >= count, f"{count} parked jobs", 120)


def counts(worker):
    (told,) = worker.events("errors")
    return {key: told[key] for key in ("reported", "repeated", "not_reported")}


def value(event):
    return event["data"]["exception"]["values"][-1]["value"]


def test_jobs_go_on_while_bugsink_is_stopped_and_what_it_missed_is_counted(
    start, broker, shared_bugsink, language
):
    bugsink, there = shared_bugsink, shared_bugsink.count()
    with start(bugsink.dsn) as worker:
        enqueue(broker, {"name": "before"})
        bugsink.wait_for_events(there + 1)
        bugsink.stop()
        mixed = [{"name": "x" * number} for number in range(1, 21)] + [{"fine": True}] * 20
        enqueue(broker, *mixed)
        # All of them while there is no Bugsink: those that failed are parked, the others are done.
        parked(broker, 21)
        worker.jobs(41)
        worker.wait_for("sentry is away")
        bugsink.start()
        enqueue(broker, {"name": "after"})
        worker.wait_for("sentry is back")
        assert worker.end(signal.SIGTERM) == 0
    outcomes = [line["outcome"] for line in worker.events("job")]
    assert (outcomes.count("parked"), outcomes.count("done")) == (22, 20)
    (back,) = worker.events("sentry is back")
    assert back["not_reported"] == 20
    assert counts(worker) == {"reported": 2, "repeated": 0, "not_reported": 20}
    issues = bugsink.wait_for_events(there + 2)
    events = [event for issue in issues for event in bugsink.events(issue["id"])]
    ours = [value(event) for event in events if event["data"]["platform"] == language]
    assert ours == ["broken before", "broken after"]


# What a worker makes of such an answer is shown for both languages in tests/faults/test_sentry.py.
@pytest.mark.parametrize(
    "language",
    [LANGUAGES[0], *(pytest.param(one, marks=pytest.mark.long) for one in LANGUAGES[1:])],
    indirect=True,
)
def test_over_the_quota_the_rest_is_counted_and_the_worker_stops_asking(start, broker, tmp_path):
    bugsink = Bugsink(tmp_path / "bugsink")
    bugsink.quota(per_5_minutes=5)
    with bugsink, start(bugsink.dsn) as worker:
        # One at a time, so that Bugsink has counted each before the next.
        for number in range(1, 6):
            enqueue(broker, {"name": "x" * number})
            bugsink.wait_for_events(number)
        enqueue(broker, *({"name": "y" * number} for number in range(1, 31)))
        parked(broker, 35)
        worker.wait_for("answered with status 429")
        assert worker.end(signal.SIGTERM) == 0
        assert counts(worker) == {"reported": 5, "repeated": 0, "not_reported": 30}
        assert bugsink.count() == 5


@pytest.mark.long
def test_ten_thousand_failures_of_one_error_are_one_issue_and_leave_room_for_others(start, broker, tmp_path):
    jobs, workers = 10_000, 3
    with Bugsink(tmp_path / "bugsink") as bugsink:
        running = [start(bugsink.dsn, f"worker{number}") for number in range(workers)]
        enqueue(broker, *({"name": f"order {number}"} for number in range(jobs)))
        parked(broker, jobs)
        enqueue(broker, {"name": "otherwise"})
        parked(broker, jobs + 1)
        for worker in running:
            worker.send(signal.SIGTERM)
        assert [worker.end() for worker in running] == [0] * workers
        told = [counts(worker) for worker in running]
        totals = {key: sum(one[key] for one in told) for key in told[0]}
        assert sum(totals.values()) == jobs + 1
        # On a busy machine even Bugsink may answer too late, and then has the event or has not.
        away = [line["error"] for worker in running for line in worker.events("sentry is away")]
        assert all("gave no answer in" in error for error in away)
        late = totals["not_reported"]
        assert bool(late) == bool(away) and late <= 2 * workers
        issues = bugsink.wait_for_events(totals["reported"])
        count = bugsink.count()
        assert totals["reported"] <= count <= totals["reported"] + late
        found = {
            value(bugsink.events(issue["id"])[-1]).split()[1]: issue["digested_event_count"]
            for issue in issues
        }
        # The same error, whatever its order; and the other one beside it.
        assert found == {"order": count - 1, "otherwise": 1}
        assert totals["reported"] <= workers * (sentry.BURST + 20) + 1
        sent = {
            event["event_id"].replace("-", "") for issue in issues for event in bugsink.events(issue["id"])
        }
        records = [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]
        # Each parked job leads to an event that is there.
        assert len({record.sentry_event for record in records} - sent) <= late


@pytest.mark.long
def test_ten_thousand_different_failures_keep_to_the_quota_and_all_are_accounted_for(start, broker, tmp_path):
    jobs, quota = 10_000, 200
    letters = str.maketrans("0123456789", "ghijklmnop")
    bugsink = Bugsink(tmp_path / "bugsink")
    bugsink.quota(per_5_minutes=quota)
    with bugsink, start(bugsink.dsn) as worker:
        enqueue(broker, *({"name": str(number).translate(letters)} for number in range(jobs)))
        parked(broker, jobs)
        assert worker.end(signal.SIGTERM) == 0
        told = counts(worker)
        assert sum(told.values()) == jobs
        # Bugsink answers 200 until it has digested as many as its quota, and then drops what it took beyond.
        bugsink.wait_for_events(quota)
        assert quota <= bugsink.count() <= told["reported"] < jobs
