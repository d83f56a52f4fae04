"""Real workers on a real broker, when nothing goes wrong outside of the jobs."""

import json
import os
import re
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


def test_jobs_are_done_and_acknowledged(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        for number in range(5):
            send.enqueue("Note", {"text": str(number)}, queue="work")
        app.wait_for("done", 5)
        wait_until(lambda: settled(broker), "the last acknowledgement")
        assert worker.end(signal.SIGTERM) == 0
    assert app.noted("done") == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_stop_finishes_the_job_in_hand_and_leaves_the_next(app, broker, number):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        job = send.enqueue("Wait", queue="work")
        send.enqueue("Note", {"text": "the next"}, queue="work")
        app.wait_for("begun")
        worker.send(number)
        wait_until(lambda: worker.process.poll() is None and is_running(worker.child), "both to go on")
        app.go()
        assert worker.end() == 0
    assert app.noted("done") == [job]
    assert broker.stats(QUEUE)["items"] == 1
    assert broker.stats(QUEUE)["open_transactions"] == 0


def test_signals_to_the_whole_group_do_not_reach_the_job(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        job = send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        os.killpg(worker.process.pid, signal.SIGTERM)
        os.kill(worker.child, signal.SIGTERM)
        os.kill(worker.child, signal.SIGINT)
        app.go()
        assert worker.end() == 0
    assert app.noted("done") == [job]
    assert worker.log.count("outcome=done") == 1


def test_a_job_that_arrives_together_with_term_is_left_for_the_next_worker(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        wait_until(lambda: broker.stats(QUEUE).get("waiters") == 1, "the worker to wait for an item")
        # Held still, so that it sees both when it goes on.
        worker.send(signal.SIGSTOP)
        send.enqueue("Note", queue="work")
        worker.send(signal.SIGTERM)
        worker.send(signal.SIGCONT)
        assert worker.end() == 0
    assert app.noted("done") == []
    wait_until(lambda: broker.stats(QUEUE)["items"] == 1, "the job to be back")


def test_an_idle_worker_ends_at_once_when_told(app, broker):
    with WorkerProcess(app, broker.address) as worker:
        worker.wait_for("child started")
        child = worker.child
        assert worker.end(signal.SIGTERM) == 0
    assert not is_running(child)


def test_two_workers_share_the_jobs_and_do_each_once(app, broker):
    with producer(broker) as send:
        ids = [send.enqueue("Note", queue="work") for _ in range(200)]
    with (
        WorkerProcess(app, broker.address, name="first") as first,
        WorkerProcess(app, broker.address, name="second") as second,
    ):
        app.wait_for("done", 200)
        wait_until(lambda: settled(broker), "the last acknowledgements")
        assert (first.end(signal.SIGTERM), second.end(signal.SIGTERM)) == (0, 0)
    assert sorted(app.noted("done")) == sorted(ids)


def test_after_max_jobs_the_worker_ends_and_the_rest_stays(app, broker):
    with producer(broker) as send:
        for number in range(5):
            send.enqueue("Note", {"text": str(number)}, queue="work")
    with WorkerProcess(app, broker.address, "--max-jobs", "3") as worker:
        assert worker.end() == 0
    assert app.noted("done") == ["0", "1", "2"]
    assert broker.stats(QUEUE)["items"] == 2
    assert broker.stats(QUEUE)["open_transactions"] == 0


def test_a_failed_job_counts_for_max_jobs(app, broker):
    with producer(broker) as send:
        send.enqueue("Raise", {"message": "no"}, queue="work")
        send.enqueue("Note", queue="work")
    with WorkerProcess(app, broker.address, "--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert len(parked(broker)) == 1
    assert broker.stats(QUEUE)["items"] == 1


def test_an_unasked_end_waits_for_the_minimal_uptime_and_takes_no_more_jobs(app, broker):
    with producer(broker) as send:
        send.enqueue("Note", queue="work")
        send.enqueue("Note", queue="work")
    with WorkerProcess(app, broker.address, "--max-jobs", "1", "--min-uptime", "600") as worker:
        worker.wait_for("worker ends reason=max-jobs")
        wait_until(lambda: broker.stats(QUEUE)["open_transactions"] == 0, "the acknowledgement")
        assert worker.process.poll() is None
        assert worker.end(signal.SIGTERM) == 0
    assert len(app.noted("done")) == 1
    assert broker.stats(QUEUE)["items"] == 1


def test_max_time_ends_an_idle_worker(app, broker):
    with WorkerProcess(app, broker.address, "--max-time", "0.2") as worker:
        assert worker.end() == 0
    assert "reason=max-time" in worker.log


def test_once_does_one_job(app, broker):
    with producer(broker) as send:
        send.enqueue("Note", queue="work")
        send.enqueue("Note", queue="work")
    with WorkerProcess(app, broker.address, "--once", "--min-uptime", "600") as worker:
        assert worker.end() == 0
    assert len(app.noted("done")) == 1
    assert broker.stats(QUEUE)["items"] == 1


def test_once_ends_when_there_is_nothing_to_do(app, broker):
    with WorkerProcess(app, broker.address, "--once") as worker:
        assert worker.end() == 0


def test_rate_acknowledges_before_it_pauses(app, broker):
    with producer(broker) as send:
        send.enqueue("Note", queue="work")
        send.enqueue("Note", queue="work")
    with WorkerProcess(app, broker.address, "--rate", "0.001/s") as worker:
        app.wait_for("done")
        wait_until(lambda: broker.stats(QUEUE)["open_transactions"] == 0, "the acknowledgement")
        assert broker.stats(QUEUE)["items"] == 1
        assert worker.end(signal.SIGTERM) == 0
    assert len(app.noted("done")) == 1


def test_hup_replaces_the_child_after_the_job_in_hand(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("Wait", queue="work")
        app.wait_for("begun")
        first = worker.child
        worker.send(signal.SIGHUP)
        app.go()
        worker.wait_for("child started", 2)
        assert worker.child != first
        assert not is_running(first)
        send.enqueue("Pid", queue="work")
        app.wait_for("done", 2)
        assert app.noted("done")[1] == f"{worker.child} {worker.process.pid}"
        assert worker.end(signal.SIGTERM) == 0


def test_usr1_changes_nothing_and_says_so(app, broker):
    with WorkerProcess(app, broker.address) as worker:
        worker.wait_for("child started")
        worker.send(signal.SIGUSR1)
        worker.wait_for("USR1: there is no log file")
        assert worker.end(signal.SIGTERM) == 0


def test_a_child_above_max_memory_is_replaced_between_jobs(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--max-memory", "100") as worker:
        send.enqueue("Memory", {"megabytes": 1}, queue="work")
        send.enqueue("Memory", {"megabytes": 150}, queue="work")
        send.enqueue("Memory", {"megabytes": 1}, queue="work")
        first, second, third = app.wait_for("done", 3)
        assert first == second != third
        assert worker.end(signal.SIGTERM) == 0
    assert worker.log.count("reason=max-memory") == 1


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


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_its_process_is_parked_and_a_new_child_goes_on(app, broker, status):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--max-jobs", "2") as worker:
        send.enqueue("Vanish", {"status": status}, queue="work")
        send.enqueue("Note", queue="work")
        assert worker.end() == 0
    (record,) = parked(broker)
    assert record.reason == f"The process that ran the job died: it exited with status {status}."
    assert record.error["class"] == "ChildDied"
    assert record.error["stack"] == "last words\n"
    assert len(app.noted("done")) == 1


def test_a_job_that_takes_too_long_is_killed_with_what_it_started_and_parked_with_its_stack(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--job-timeout", "0.5") as worker:
        send.enqueue("Program", queue="work")
        (program,) = app.wait_for("program")
        (record,) = parked(broker)
        assert record.reason == "The job took longer than 0.5 s and was killed."
        assert record.error["class"] == "JobTimeout"
        assert "in program" in record.error["stack"]
        wait_until(lambda: not is_running(int(program)), "the program to be killed")
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        assert worker.end(signal.SIGTERM) == 0


GARBAGE = [
    (b"not JSON", "The item is not JSON"),
    (b"\x80\x04\x95binary\xff\x00", "The item is not UTF-8"),
    (b'a:1:{s:8:"instance";s:4:"acme";}', "The item is not JSON"),
    (b"{}", "The field 'id' is missing."),
    (b'{"v":2}', "The field 'v' is 2; this worker knows version 1."),
    (b"", "The item is empty."),
    (b"[" * 100_000, "nested more than 128 levels deep"),
]


def test_what_is_not_an_envelope_is_parked_with_its_reason_and_its_bytes(app, broker):
    with broker.connect() as raw:
        for body, _ in GARBAGE:
            raw.set(QUEUE, body)
    with WorkerProcess(app, broker.address, "--max-jobs", str(len(GARBAGE))) as worker:
        assert worker.end() == 0
    records = parked(broker, len(GARBAGE))
    assert [record.body for record in records] == [body for body, _ in GARBAGE]
    for record, (_, reason) in zip(records, GARBAGE, strict=True):
        assert reason in record.reason
        assert (record.error, record.attempts) == (None, 0)
    assert settled(broker)


def test_a_job_may_print_any_bytes(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        jobs = [send.enqueue("Garbage", queue="work") for _ in range(3)]
        app.wait_for("done", 3)
        assert worker.end(signal.SIGTERM) == 0
    assert app.noted("done") == jobs
    assert worker.log.count("outcome=done") == 3
    stamped = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) ")
    assert all(stamped.match(line) for line in worker.log_file.read_bytes().decode("utf-8").split("\n")[:-1])


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


@pytest.mark.parametrize("job", ["AllDescriptors", "CloseDescriptors"])
def test_a_job_that_breaks_the_pipe_to_its_worker_is_parked_and_a_new_child_goes_on(app, broker, job):
    with producer(broker) as send, WorkerProcess(app, broker.address, "--max-jobs", "2") as worker:
        send.enqueue(job, queue="work")
        send.enqueue("Note", queue="work")
        assert worker.end() == 0
    (record,) = parked(broker)
    assert record.error["class"] in ("BrokenChild", "ChildDied")
    assert len(app.noted("done")) == 1


def test_a_job_that_forks_is_done_once_and_its_copy_ends(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("Fork", queue="work")
        send.enqueue("Note", queue="work")
        app.wait_for("done")
        copies = [int(pid) for pid in app.wait_for("forked", 2)]
        assert worker.child in copies
        wait_until(lambda: [pid for pid in copies if is_running(pid)] == [worker.child], "the copy to end")
        assert worker.end(signal.SIGTERM) == 0
    assert worker.log.count("outcome=done") == 2
    assert "Traceback" not in worker.log
    assert len(app.noted("done")) == 1


def test_a_daemon_that_a_job_left_holds_up_neither_the_job_nor_the_worker(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("Daemonise", queue="work")
        app.wait_for("done")
        wait_until(lambda: settled(broker), "the acknowledgement")
        worker.send(signal.SIGHUP)
        worker.wait_for("child started", 2)
        app.go()
        app.wait_for("daemon")
        worker.wait_for('text="from the daemon"')
        assert worker.end(signal.SIGTERM) == 0


def test_programs_that_a_job_starts_can_be_terminated(app, broker):
    with producer(broker) as send, WorkerProcess(app, broker.address) as worker:
        send.enqueue("TermProgram", queue="work")
        assert app.wait_for("done") == [str(-signal.SIGTERM)]
        assert worker.end(signal.SIGTERM) == 0


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


def test_under_supervisor_a_hopeless_worker_stays_until_its_end_counts(app, broker):
    environ = {"SUPERVISOR_ENABLED": "1"}
    with WorkerProcess(app, broker.address, app_name="nowhere:registry", environ=environ) as worker:
        worker.wait_for("application cannot be used")
        assert worker.process.poll() is None
        assert worker.end(signal.SIGTERM) == 78


def test_a_worker_visits_every_server(app, tmp_path):
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        with producer(b) as send:
            send.enqueue("Note", {"text": "on b"}, queue="work")
        with WorkerProcess(app, f"{a.address},{b.address}") as worker:
            app.wait_for("done", 1)
            with producer(a) as send:
                send.enqueue("Note", {"text": "on a"}, queue="work")
            app.wait_for("done", 2)
            assert worker.end(signal.SIGTERM) == 0
        assert app.noted("done") == ["on b", "on a"]
        assert settled(a)
        assert settled(b)


def test_a_worker_begins_at_the_server_of_its_number(app, tmp_path):
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        for broker in (a, b):
            with producer(broker) as send:
                send.enqueue("Note", {"text": "a" if broker is a else "b"}, queue="work")
        environ = {"SUPERVISOR_PROCESS_NAME": "shop_work_01"}
        with WorkerProcess(app, f"{a.address},{b.address}", "--once", environ=environ) as worker:
            assert worker.end() == 0
        assert app.noted("done") == ["b"]
