"""What workers do when processes are killed, brokers go away, and parking fails. No job may be lost."""

import json
import os
import signal
import socket

import pytest

from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.worker import App, WorkerProcess, is_running, producer

QUEUE, ERRORS = "shop_work", "shop_work_errors"


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "app")


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as started:
        yield started


def open_reads(broker):
    return broker.stats(QUEUE)["open_transactions"]


def settled(broker):
    stats = broker.stats(QUEUE)
    return (stats["items"], stats["open_transactions"]) == (0, 0)


def parked(broker):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) > 0, "a parked item")
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def test_a_killed_worker_takes_its_child_along_and_its_job_goes_to_another(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, name="first") as first:
        job = send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        child = first.child
        first.end(signal.SIGKILL)
        wait_until(lambda: not is_running(child), "the child to end with its parent")
        assert app.noted("done") == []
        app.go()
        with WorkerProcess(app, broker.address, name="second") as second:
            app.wait_for("done")
            wait_until(lambda: settled(broker), "the acknowledgement")
            assert second.end(signal.SIGTERM) == 0
    assert app.noted("begun") == [job, job]
    assert app.noted("done") == [job]
    assert broker.drain(ERRORS) == []


def test_a_job_whose_child_is_killed_is_run_once_more_at_once_in_a_new_child(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        job = send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        first = worker.child
        os.kill(first, signal.SIGKILL)
        app.wait_for("begun", 2)
        assert worker.child != first
        assert open_reads(broker) == 1
        app.go()
        app.wait_for("done")
        wait_until(lambda: settled(broker), "the acknowledgement")
        assert worker.end(signal.SIGTERM) == 0
    assert app.noted("begun") == [job, job]
    assert app.noted("done") == [job]
    assert worker.log.count(f" id={job} tenant=acme attempt=1 wait_ms=") == 1
    assert broker.drain(ERRORS) == []


def test_a_job_whose_child_is_killed_twice_is_parked_and_a_new_child_goes_on(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        job = send.enqueue("Wait", queue="work")
        for times in (1, 2):
            app.wait_for("begun", times)
            os.kill(worker.child, signal.SIGKILL)
        (record,) = parked(broker)
        assert record.reason == "The process that ran the job died: it was killed by SIGKILL."
        assert json.loads(record.body)["id"] == job
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        wait_until(lambda: settled(broker), "the acknowledgement")
        assert worker.end(signal.SIGTERM) == 0


def test_a_child_killed_while_idle_costs_no_job(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        os.kill(worker.child, signal.SIGKILL)
        worker.wait_for("child started", 2)
        assert "child died while idle" in worker.log
        job = send.enqueue("Note", queue="work")
        assert app.wait_for("done") == [job]
        assert worker.end(signal.SIGTERM) == 0
    assert broker.drain(ERRORS) == []


def test_a_stopped_child_counts_as_a_job_that_takes_too_long(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--job-timeout", "0.3") as worker:
        os.kill(worker.child, signal.SIGSTOP)
        # More than fits into the pipe, so that the worker cannot even hand the job over.
        send.enqueue("Note", {"text": "x" * 1_000_000}, queue="work")
        (record,) = parked(broker)
        assert record.error["class"] == "JobTimeout"
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0


def test_a_child_that_dies_while_it_starts_is_started_again_until_it_works(app, broker):
    (app.folder / "dies.py").write_text(
        "import os, jobs_app\n"
        "jobs_app.note('starts', os.getpid())\n"
        "if not (jobs_app.FOLDER / 'go').exists(): os.kill(os.getpid(), 9)\n"
        "registry = jobs_app.registry\n"
    )
    with producer(broker) as send, WorkerProcess(app, broker.address, app_name="dies:registry") as worker:
        send.enqueue("Note", queue="work")
        app.wait_for("starts", 2)
        assert worker.process.poll() is None
        app.go()
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0
    assert "it was killed by SIGKILL" in worker.log


def test_term_ends_a_worker_whose_child_never_starts(app, broker):
    (app.folder / "dies.py").write_text("import os\nos._exit(1)\n")
    with WorkerProcess(app, broker.address, app_name="dies:registry") as worker:
        worker.wait_for("child did not start")
        assert worker.end(signal.SIGTERM) == 0


def test_term_ends_a_worker_whose_application_hangs_at_import(app, broker):
    (app.folder / "hangs.py").write_text(
        "import jobs_app\njobs_app.note('begun', 1)\njobs_app.wait_for('go')\n"
    )
    with WorkerProcess(app, broker.address, app_name="hangs:registry") as worker:
        app.wait_for("begun")
        assert worker.end(signal.SIGTERM) == 0


def test_an_application_that_breaks_while_the_worker_runs_gives_its_job_back(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        (app.folder / "jobs_app.py").write_text("raise RuntimeError('changed')\n")
        worker.send(signal.SIGHUP)
        assert worker.end() == 78
        send.enqueue("Note", queue="work")
    assert (broker.stats(QUEUE)["items"], open_reads(broker)) == (1, 0)


def test_a_broker_that_dies_while_a_job_runs_delivers_it_again_and_the_worker_knows(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        job = send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        broker.kill()
        worker.wait_for("connection lost while the job runs: it will be delivered again")
        broker.start()
        app.go()
        wait_until(lambda: settled(broker) and len(app.noted("done")) == 2, "the job to be done again")
        assert worker.end(signal.SIGTERM) == 0
    assert app.noted("done") == [job, job]
    assert broker.drain(ERRORS) == []


def test_a_job_that_fails_after_its_connection_was_lost_is_parked_once(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("WaitThenRaise", queue="work")
        app.wait_for("begun")
        broker.kill()
        worker.wait_for("connection lost while the job runs")
        broker.start()
        app.go()
        worker.wait_for("outcome=lost")
        worker.wait_for("outcome=parked")
        wait_until(lambda: settled(broker), "the acknowledgement")
        assert worker.end(signal.SIGTERM) == 0
    assert len(parked(broker)) == 1


def test_an_idle_worker_waits_for_its_broker_and_says_so_once(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        worker.wait_for("child started")
        broker.kill()
        worker.wait_for("server is still away", 3)
        assert worker.log.count("error server is away") == 1
        broker.start()
        worker.wait_for("info server is back")
        job = send.enqueue("Note", queue="work")
        assert app.wait_for("done") == [job]
        assert worker.end(signal.SIGTERM) == 0
    assert worker.log.count("error server is away") == 1
    assert worker.log.count("info server is back") == 1


def test_a_worker_started_before_its_broker_waits_and_ends_when_told(app):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = "{}:{}".format(*listening.getsockname())
    with WorkerProcess(app, address) as worker:
        worker.wait_for("server is still away", 3)
        assert worker.end(signal.SIGTERM) == 0


def test_a_server_that_is_down_does_not_keep_a_worker_from_the_others(app, broker):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        down = "{}:{}".format(*listening.getsockname())
    with producer(broker) as send, WorkerProcess(app, f"{down},{broker.address}") as worker:
        jobs = [send.enqueue("Note", queue="work") for _ in range(20)]
        assert app.wait_for("done", 20) == jobs
        assert worker.end(signal.SIGTERM) == 0
    assert worker.log.count("error server is away") == 1


def test_an_acknowledgement_that_got_lost_is_told_and_the_job_comes_again(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--job-timeout", "30") as worker:
        job = send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        # The worker is held still, so that it sees the end of the job and of the connection at the same time.
        worker.send(signal.SIGSTOP)
        app.go()
        app.wait_for("done")
        broker.kill()
        broker.start()
        worker.send(signal.SIGCONT)
        wait_until(lambda: app.noted("done") == [job, job] and settled(broker), "the job to be done again")
        assert worker.end(signal.SIGTERM) == 0
    assert "delivered again" in worker.log


def test_a_full_error_queue_keeps_the_job_open_until_there_is_room(app, tmp_path):
    with BrokerProcess(tmp_path, queues={ERRORS: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(ERRORS, b"already here")
        with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
            job = send.enqueue("Raise", {"message": "no"}, queue="work")
            worker.wait_for("cannot park, trying until it works", 3)
            assert worker.log.count("error cannot park") == 1
            assert open_reads(broker) == 1
            assert broker.drain(ERRORS) == [b"already here"]
            (record,) = parked(broker)
            assert json.loads(record.body)["id"] == job
            wait_until(lambda: settled(broker), "the acknowledgement")
            assert worker.end(signal.SIGTERM) == 0


def test_term_while_parking_fails_gives_the_job_back(app, tmp_path):
    with BrokerProcess(tmp_path, queues={ERRORS: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(ERRORS, b"already here")
        with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
            job = send.enqueue("Raise", {"message": "no"}, queue="work")
            worker.wait_for("cannot park")
            assert worker.end(signal.SIGTERM) == 0
        wait_until(lambda: broker.stats(QUEUE)["items"] == 1, "the job to come back")
        assert json.loads(broker.drain(QUEUE)[0])["id"] == job


def test_garbage_is_kept_too_while_it_cannot_be_parked(app, tmp_path):
    with BrokerProcess(tmp_path, queues={ERRORS: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(ERRORS, b"already here")
            raw.set(QUEUE, b"garbage")
        with WorkerProcess(app, broker.address) as worker:
            worker.wait_for("cannot park")
            assert worker.end(signal.SIGTERM) == 0
        wait_until(lambda: broker.stats(QUEUE)["items"] == 1, "the item to come back")
        assert broker.drain(QUEUE) == [b"garbage"]


def test_a_job_is_parked_on_another_server_when_its_own_refuses(app, tmp_path):
    full = {ERRORS: {"max_items": 1}}
    with BrokerProcess(tmp_path / "a", queues=full) as a, BrokerProcess(tmp_path / "b") as b:
        with a.connect() as raw:
            raw.set(ERRORS, b"already here")
        with producer(a) as send, WorkerProcess(app, f"{a.address},{b.address}") as worker:
            job = send.enqueue("Raise", {"message": "no"}, queue="work")
            (record,) = parked(b)
            wait_until(lambda: settled(a), "the acknowledgement")
            assert worker.end(signal.SIGTERM) == 0
        assert json.loads(record.body)["id"] == job
        assert a.drain(ERRORS) == [b"already here"]


def test_every_job_is_done_while_workers_and_brokers_are_killed(app, tmp_path):
    """Fifty kills of one thing or another; each job is done at least once and none is parked twice."""
    with BrokerProcess(tmp_path) as broker:
        with producer(broker) as send:
            ids = [send.enqueue("Slow", queue="work") for _ in range(300)]
        workers = [WorkerProcess(app, broker.address, name=f"worker{number}") for number in range(2)]
        try:
            for turn in range(6):
                app.wait_for("done", min(300, 40 * (turn + 1)))
                if turn % 2:
                    broker.kill()
                    broker.start()
                else:
                    workers[0].end(signal.SIGKILL)
                    workers[0] = WorkerProcess(app, broker.address, name=f"again{turn}")
            wait_until(lambda: set(app.noted("done")) == set(ids), "every job to be done")
            wait_until(lambda: settled(broker), "the acknowledgements")
            assert [worker.end(signal.SIGTERM) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.__exit__()
        assert broker.drain(ERRORS) == []
