"""What workers do when processes are killed, brokers go away, and parking fails. No job may be lost.

Servers that are away are in tests/contract/consumer/test_servers.py.
"""

import functools
import json
import os
import signal

import pytest

from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.worker import LANGUAGES, App, WorkerProcess, producer

QUEUE, ERRORS = "shop_work", "shop_work_errors"


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def start(language):
    """Start a worker of the language."""
    return functools.partial(WorkerProcess, language=language)


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "app")


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as started:
        yield started


def application(app, language, python, php):
    """Write another application and return its name for the worker."""
    name, content = ("other.php", php) if language == "php" else ("other.py", python)
    (app.folder / name).write_text(content)
    return name if language == "php" else "other:registry"


def open_reads(broker):
    return broker.stats(QUEUE)["open_transactions"]


def settled(broker):
    stats = broker.stats(QUEUE)
    return (stats["items"], stats["open_transactions"]) == (0, 0)


def parked(broker):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) > 0, "a parked item")
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def test_a_job_whose_child_is_killed_is_run_once_more_at_once_in_a_new_child(start, app, broker):
    with producer(broker) as send, start(app, broker.address) as worker:
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


def test_a_job_whose_child_is_killed_twice_is_parked_and_a_new_child_goes_on(start, app, broker):
    with producer(broker) as send, start(app, broker.address) as worker:
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


def test_a_child_killed_while_idle_costs_no_job(start, app, broker):
    with producer(broker) as send, start(app, broker.address) as worker:
        os.kill(worker.child, signal.SIGKILL)
        worker.wait_for("child started", 2)
        assert "child died while idle" in worker.log
        job = send.enqueue("Note", queue="work")
        assert app.wait_for("done") == [job]
        assert worker.end(signal.SIGTERM) == 0
    assert broker.drain(ERRORS) == []


def test_a_stopped_child_counts_as_a_job_that_takes_too_long(start, app, broker):
    with producer(broker) as send, start(app, broker.address, "--job-timeout", "3") as worker:
        os.kill(worker.child, signal.SIGSTOP)
        # More than fits into the pipe, so that the worker cannot even hand the job over.
        send.enqueue("Note", {"text": "x" * 1_000_000}, queue="work")
        (record,) = parked(broker)
        assert record.error["class"] == "JobTimeout"
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0


def test_a_child_that_dies_while_it_starts_is_started_again_until_it_works(start, language, app, broker):
    name = application(
        app,
        language,
        "import os, jobs_app\n"
        "jobs_app.note('starts', os.getpid())\n"
        "if not (jobs_app.FOLDER / 'go').exists(): os.kill(os.getpid(), 9)\n"
        "registry = jobs_app.registry\n",
        "<?php\n"
        "$registry = require __DIR__ . '/jobs_app.php';\n"
        "TestApplication::note('starts', getmypid());\n"
        "if (!file_exists(TestApplication::path('go'))) { posix_kill(getmypid(), SIGKILL); }\n"
        "return $registry;\n",
    )
    with producer(broker) as send, start(app, broker.address, app_name=name) as worker:
        send.enqueue("Note", queue="work")
        app.wait_for("starts", 2)
        assert worker.process.poll() is None
        app.go()
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0
    assert "it was killed by SIGKILL" in worker.log


def test_term_ends_a_worker_whose_child_never_starts(start, language, app, broker):
    php = "<?php\nposix_kill(getmypid(), SIGKILL);\n"
    name = application(app, language, "import os\nos.kill(os.getpid(), 9)\n", php)
    with start(app, broker.address, app_name=name) as worker:
        worker.wait_for("child did not start")
        assert worker.end(signal.SIGTERM) == 0


def test_term_ends_a_worker_whose_application_hangs_while_it_is_loaded(start, language, app, broker):
    name = application(
        app,
        language,
        "import jobs_app\njobs_app.note('begun', 1)\njobs_app.wait_for('go')\n",
        "<?php\nrequire __DIR__ . '/jobs_app.php';\n"
        "TestApplication::note('begun', 1);\nTestApplication::waitFor('go');\n",
    )
    with start(app, broker.address, app_name=name) as worker:
        app.wait_for("begun")
        assert worker.end(signal.SIGTERM) == 0


def test_an_application_that_breaks_while_the_worker_runs_gives_its_job_back(start, app, broker):
    with producer(broker) as send, start(app, broker.address) as worker:
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        (app.folder / "jobs_app.py").write_text("raise RuntimeError('changed')\n")
        (app.folder / "jobs_app.php").write_text("<?php\nthrow new RuntimeException('changed');\n")
        worker.send(signal.SIGHUP)
        assert worker.end() == 78
        send.enqueue("Note", queue="work")
    assert (broker.stats(QUEUE)["items"], open_reads(broker)) == (1, 0)


def test_an_acknowledgement_that_got_lost_is_told_and_the_job_comes_again(start, app, broker):
    with producer(broker) as send, start(app, broker.address, "--job-timeout", "30") as worker:
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


def test_a_full_error_queue_keeps_the_job_open_until_there_is_room(start, app, tmp_path):
    with BrokerProcess(tmp_path, queues={ERRORS: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(ERRORS, b"already here")
        with producer(broker) as send, start(app, broker.address) as worker:
            job = send.enqueue("Raise", {"message": "no"}, queue="work")
            worker.wait_for("cannot park, trying until it works", 3)
            assert worker.log.count("error cannot park") == 1
            assert open_reads(broker) == 1
            assert broker.drain(ERRORS) == [b"already here"]
            (record,) = parked(broker)
            assert json.loads(record.body)["id"] == job
            wait_until(lambda: settled(broker), "the acknowledgement")
            assert worker.end(signal.SIGTERM) == 0


def test_garbage_is_kept_too_while_it_cannot_be_parked(start, app, tmp_path):
    with BrokerProcess(tmp_path, queues={ERRORS: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(ERRORS, b"already here")
            raw.set(QUEUE, b"garbage")
        with start(app, broker.address) as worker:
            worker.wait_for("cannot park")
            assert worker.end(signal.SIGTERM) == 0
        wait_until(lambda: broker.stats(QUEUE)["items"] == 1, "the item to come back")
        assert broker.drain(QUEUE) == [b"garbage"]


def test_a_job_is_parked_on_another_server_when_its_own_refuses(start, app, tmp_path):
    full = {ERRORS: {"max_items": 1}}
    with BrokerProcess(tmp_path / "a", queues=full) as a, BrokerProcess(tmp_path / "b") as b:
        with a.connect() as raw:
            raw.set(ERRORS, b"already here")
        with producer(a) as send, start(app, f"{a.address},{b.address}") as worker:
            job = send.enqueue("Raise", {"message": "no"}, queue="work")
            (record,) = parked(b)
            wait_until(lambda: settled(a), "the acknowledgement")
            assert worker.end(signal.SIGTERM) == 0
        assert json.loads(record.body)["id"] == job
        assert a.drain(ERRORS) == [b"already here"]


def test_every_job_is_done_while_workers_and_brokers_are_killed(start, app, tmp_path):
    """Fifty kills of one thing or another; each job is done at least once and none is parked twice."""
    with BrokerProcess(tmp_path) as broker:
        with producer(broker) as send:
            ids = [send.enqueue("Slow", queue="work") for _ in range(300)]
        workers = [start(app, broker.address, name=f"worker{number}") for number in range(2)]
        try:
            for turn in range(6):
                app.wait_for("done", min(300, 40 * (turn + 1)))
                if turn % 2:
                    broker.kill()
                    broker.start()
                else:
                    workers[0].end(signal.SIGKILL)
                    workers[0] = start(app, broker.address, name=f"again{turn}")
            wait_until(lambda: set(app.noted("done")) == set(ids), "every job to be done")
            wait_until(lambda: settled(broker), "the acknowledgements")
            assert [worker.end(signal.SIGTERM) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.__exit__()
        assert broker.drain(ERRORS) == []
