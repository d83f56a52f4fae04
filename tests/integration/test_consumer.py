"""Real workers in Python on a real broker: what the contract of every language leaves to this one."""

import json
import signal
from pathlib import Path

import pytest

from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.worker import App, WorkerProcess, is_running, producer

QUEUE, ERRORS = "shop_work", "shop_work_errors"


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "app")


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def broker(shared_broker):
    for queue in (QUEUE, ERRORS):
        shared_broker.raw(b"flush %b\r\n" % queue.encode())
    return shared_broker


def settled(broker):
    """No item waits, and none is in a worker's hands."""
    stats = broker.stats(QUEUE)
    return (stats["items"], stats["open_transactions"]) == (0, 0)


def parked(broker, count=1):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) >= count, f"{count} parked items")
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def test_usr1_changes_nothing_and_says_so(app, broker):
    with WorkerProcess(app, broker.address) as worker:
        worker.wait_for("child started")
        worker.send(signal.SIGUSR1)
        worker.wait_for("USR1: there is no log file")
        assert worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("job", "data", "kind", "message", "in_stack"),
    [
        ("Raise", {"message": "broken"}, "ValueError", "broken", "in raise_it"),
        ("Raise", {}, "KeyError", "'message'", "in raise_it"),
        ("RaiseOddly", {}, "jobs_app.raise_oddly.<locals>.Odd", "<Odd>", "in raise_oddly"),
        ("Exit", {"status": 0}, "SystemExit", "0", "in exit_it"),
        ("Coroutine", {}, "TypeError", "the job returned a coroutine, which nobody would run", ""),
    ],
)
def test_a_job_that_raises_is_parked_and_the_child_goes_on(app, broker, job, data, kind, message, in_stack):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--max-jobs", "2") as worker:
        failing = send.enqueue(job, data, queue="work")
        send.enqueue("Note", {"text": "the next"}, queue="work")
        assert worker.end() == 0
    (record,) = parked(broker)
    assert record.reason == f"The job raised {kind}."
    assert (record.error["class"], record.error["message"]) == (kind, message)
    assert in_stack in record.error["stack"]
    assert "kestrel_stack/consumer" not in record.error["stack"]
    assert json.loads(record.body)["id"] == failing
    assert record.attempts == 1
    assert app.noted("done") == ["the next"]
    assert worker.log.count("child started") == 1
    assert settled(broker)


def test_an_unknown_job_is_parked_naming_the_known_ones(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--max-jobs", "1") as worker:
        send.enqueue("Nobody", queue="work")
        assert worker.end() == 0
    (record,) = parked(broker)
    assert "jobs_app:registry has no job of this name; it has: AllDescriptors, " in record.reason


def test_a_job_that_takes_too_long_is_killed_with_what_it_started_and_parked_with_its_stack(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--job-timeout", "3") as worker:
        send.enqueue("Program", queue="work")
        (program,) = app.wait_for("program")
        (record,) = parked(broker)
        assert record.reason == "The job took longer than 3 s and was killed."
        assert record.error["class"] == "JobTimeout"
        assert "in program" in record.error["stack"]
        wait_until(lambda: not is_running(int(program)), "the program to be killed")
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0


def test_what_a_job_prints_and_logs_carries_its_id(app, broker):
    environ = {"KESTREL_STACK_RELEASE": "20261121T011500Z-1a2b3c4d"}
    with (
        producer(broker) as send,
        WorkerProcess(app, broker.address, "--env", "lab", "--max-jobs", "1", environ=environ) as worker,
    ):
        job = send.enqueue("Say", {"text": "two\nlines"}, queue="work")
        assert worker.end() == 0
    of_job = f"queue=shop_work job=Say id={job} tenant=acme attempt=1"
    said = 'text="two\\nlines" environment=lab release=20261121T011500Z-1a2b3c4d'
    assert f"info said {of_job} {said}" in worker.log
    assert f'info output {of_job} stream=stdout text="printed two"' in worker.log
    assert f"info output {of_job} stream=stdout text=lines" in worker.log


def test_the_child_has_no_connection_to_the_broker(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("Raise", {}, queue="work")
        parked(broker)
        send.enqueue("Wait", queue="work")
        app.wait_for("begun")

        def sockets(pid):
            links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
            return {link for link in links if link.startswith("socket:")}

        # The parent has its end of the pair and both connections; the child has nothing but its own end.
        assert len(sockets(worker.process.pid)) == 3
        assert len(sockets(worker.child)) == 1
        assert not sockets(worker.child) & sockets(worker.process.pid)
        app.go()
        assert worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("app_name", "said"),
    [
        ("nowhere:registry", "ModuleNotFoundError: No module named 'nowhere'"),
        ("jobs_app:nothing", "jobs_app has no such name: nothing"),
        ("jobs_app:note", "jobs_app has a function there, not a Registry: note"),
        ("broken:registry", "SyntaxError: "),
        ("exits:registry", "SystemExit: 3"),
        ("raises:registry", "RuntimeError: at import"),
        ("empty:registry", "the registry has no jobs"),
    ],
)
def test_an_application_that_cannot_be_used_ends_the_worker_with_78_and_no_job_is_touched(
    app, broker, app_name, said
):
    (app.folder / "broken.py").write_text("def (:\n")
    (app.folder / "exits.py").write_text("import sys; sys.exit(3)\n")
    (app.folder / "raises.py").write_text("\nraise RuntimeError('at import')\n")
    (app.folder / "empty.py").write_text(
        "from kestrel_stack.consumer import Registry\nregistry = Registry()\n"
    )
    with producer(broker) as send:
        send.enqueue("Note", queue="work")
    with WorkerProcess(app, broker.address, app_name=app_name) as worker:
        assert worker.end() == 78
    (line,) = [line for line in worker.log.splitlines() if " error " in line]
    assert f"application cannot be used app={app_name}" in line
    assert said in line
    assert broker.stats(QUEUE)["items"] == 1
