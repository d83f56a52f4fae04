"""Queue servers that are away, are taken out of service, or take their items back."""

import json
import signal

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.jobs import Stage
from support.ports import nobody

TERM = signal.SIGTERM


@pytest.fixture
def two(own_stage, tmp_path):
    """Two servers: the stage's own, and a second one."""
    with BrokerProcess(tmp_path / "second") as second:
        yield own_stage, second


def put(broker, job, data=None):
    envelope = Envelope(job, "acme", data or {})
    with broker.connect() as raw:
        raw.set("shop_work", envelope.encode())
    return envelope.id


def set_status(broker, status):
    assert broker.raw(b"status %b\r\n" % status).startswith(b"END")


def settled(broker):
    stats = broker.stats("shop_work")
    return (stats.get("items", 0), stats.get("open_transactions", 0)) == (0, 0)


def test_an_idle_worker_waits_for_its_server_and_says_so_once(own_stage):
    stage = own_stage
    stage.send("Note")
    with stage.worker() as worker:
        worker.jobs(1)
        # Else the job would rightly be done once more.
        worker.wait_until(lambda: settled(stage.broker), "it to be told that the job is done")
        stage.broker.kill()
        worker.wait_until(lambda: worker.events("server is away"), "it to notice")
        stage.broker.start()
        worker.wait_until(lambda: worker.events("server is back"), "it to come back")
        job = stage.send("Note")
        assert worker.jobs(2)[1]["id"] == job
        assert worker.end(TERM) == 0
    assert len(worker.events("server is away")) == len(worker.events("server is back")) == 1
    assert worker.events("server is away")[0]["server"] == stage.broker.address


def test_a_worker_without_any_server_waits_and_does_not_spin_and_ends_when_told(stage):
    with stage.worker(servers=nobody(), debug=True) as worker:
        worker.wait_for("server is still away", 3)
        tries = worker.log.count("server is still away")
        assert worker.end(TERM) == 0
    assert worker.log.count("error server is away") == 1
    assert tries < 20


def test_a_server_that_is_down_does_not_keep_a_worker_from_the_others(stage):
    ids = [stage.send("Note") for _ in range(20)]
    with stage.worker(servers=f"{nobody()},{stage.broker.address}") as worker:
        assert [line["id"] for line in worker.jobs(20)] == ids
        assert worker.end(TERM) == 0
    assert len(worker.events("server is away")) == 1


def test_a_worker_visits_every_server_and_begins_at_the_one_of_its_number(two):
    stage, second = two
    servers = f"{stage.broker.address},{second.address}"
    on_first, on_second = put(stage.broker, "Note"), put(second, "Note")
    with stage.worker(servers=servers, environ={"SUPERVISOR_PROCESS_NAME": "shop_work_01"}) as worker:
        assert [line["id"] for line in worker.jobs(2)] == [on_second, on_first]
        wait_until(lambda: settled(stage.broker) and settled(second), "both to be empty")
        assert worker.end(TERM) == 0


def test_a_server_that_is_readonly_is_emptied_and_what_is_written_goes_to_the_other(two):
    stage, second = two
    failing = put(stage.broker, "Raise", {"message": "no"})
    parking = put(stage.broker, "AskPark", {"reason": "closed"})
    set_status(stage.broker, b"readonly")
    queues = [{"name": "work", "retry_delays": [10]}]
    with stage.worker(servers=f"{stage.broker.address},{second.address}", queues=queues) as worker:
        assert [line["outcome"] for line in worker.jobs(2)] == ["retry", "parked"]
        wait_until(lambda: settled(stage.broker), "it to be emptied")
        assert worker.end(TERM) == 0
    (again,) = map(json.loads, second.drain("shop_work_retry_10"))
    (record,) = map(ParkedRecord.decode, second.drain("shop_work_errors"))
    assert (again["id"], json.loads(record.body)["id"]) == (failing, parking)
    assert stage.count("work_retry_10") == stage.count("work_errors") == 0


def test_a_server_that_serves_nobody_is_passed_over_until_it_does(two):
    stage, second = two
    waiting, there = put(stage.broker, "Note"), put(second, "Note")
    set_status(stage.broker, b"quiescent")
    with stage.worker(servers=f"{stage.broker.address},{second.address}") as worker:
        assert [line["id"] for line in worker.jobs(1)] == [there]
        set_status(stage.broker, b"up")
        assert worker.jobs(2)[1]["id"] == waiting
        assert worker.end(TERM) == 0


def test_a_broker_that_dies_while_a_job_runs_delivers_it_again_and_the_worker_knows(own_stage):
    stage = own_stage
    job = stage.send("Wait")
    with stage.worker() as worker:
        stage.app.wait_for("begun")
        stage.broker.kill()
        lost = "connection lost while the job runs: it will be delivered again"
        worker.wait_until(lambda: worker.events(lost), "it to notice")
        stage.broker.start()
        stage.app.go()
        wait_until(lambda: len(stage.app.noted("done")) == 2, "the job to be done again")
        stage.wait_until_settled()
        lines = worker.jobs(2)
        assert worker.end(TERM) == 0
    assert stage.app.noted("done") == [job, job]
    assert [line["id"] for line in lines] == [job, job]
    assert lines[1]["outcome"] == "done"
    assert stage.count("work_errors") == 0


def test_a_job_that_fails_after_its_connection_was_lost_is_written_once(own_stage):
    stage = own_stage
    stage.send("WaitThenRaise")
    with stage.worker(queues=[{"name": "work", "retry_delays": [10]}]) as worker:
        stage.app.wait_for("begun")
        stage.broker.kill()
        lost = "connection lost while the job runs: it will be delivered again"
        worker.wait_until(lambda: worker.events(lost), "it to notice")
        stage.broker.start()
        stage.app.go()
        lines = worker.jobs(2)
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    assert [line["outcome"] for line in lines] == ["lost", "retry"]
    (again,) = map(json.loads, stage.take("work_retry_10"))
    assert again["attempt"] == 2


def test_two_workers_share_the_jobs_and_do_each_once(stage):
    ids = [stage.send("Note") for _ in range(100)]
    with stage.worker() as first, stage.worker() as second:
        stage.app.wait_for("done", 100)
        stage.wait_until_settled()
        assert (first.end(TERM), second.end(TERM)) == (0, 0)
    assert sorted(stage.app.noted("done")) == sorted(ids)


def test_the_stage_itself_sees_what_is_left(app, tmp_path):
    with BrokerProcess(tmp_path) as broker:
        made = Stage("python", app, broker)
        made.send("Note")
        made.send("Note", queue="work3")
        assert (made.count(), made.count("work3")) == (1, 1)
        made.clear()
        assert (made.count(), made.count("work3")) == (0, 0)
