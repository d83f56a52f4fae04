"""The delay mover against real brokers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord, now_ms
from support.broker import BrokerProcess, wait_until
from support.mover import HOUR, MoverProcess
from support.worker import App, WorkerProcess, producer, settings

QUEUE, ERRORS = "shop_work", "shop_work_errors"


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as started:
        yield started


def put(broker, queue, *bodies):
    with broker.connect() as raw:
        for body in bodies:
            raw.set(queue, body)


def job(due_in=0.0, **fields):
    return Envelope(job="Note", tenant="acme", due_at=now_ms() + round(due_in * 1000), **fields).encode()


def count(broker, queue, key="items"):
    return broker.stats(queue).get(key, 0)


def arrived(broker, number=1, queue=QUEUE):
    wait_until(lambda: count(broker, queue) >= number, f"{number} items in {queue}")
    return broker.drain(queue)


def emptied(broker, queue):
    wait_until(
        lambda: (count(broker, queue), count(broker, queue, "open_transactions")) == (0, 0),
        "the confirmation",
    )


def test_a_job_comes_back_unchanged_when_it_is_due_and_not_before(broker, tmp_path):
    with MoverProcess(tmp_path, broker.address) as mover:
        # A mover that takes its time to begin would find it due.
        mover.wait_for("mover begins")
        body = job(due_in=5, data={"number": 10**30, "text": "Zo\u00eb"}).replace(b'"v":1', b'"v" : 1')
        due = Envelope.decode(body).due_at
        put(broker, "shop_work_retry_3600", body)
        mover.wait_for("debug held")
        assert count(broker, QUEUE) == 0
        assert count(broker, "shop_work_retry_3600", "open_transactions") == 1
        assert arrived(broker) == [body]
        assert now_ms() >= due
        emptied(broker, "shop_work_retry_3600")
        assert mover.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("due_at", [None, 0])
def test_a_job_without_a_due_time_or_past_it_comes_back_at_once(broker, tmp_path, due_at):
    body = Envelope(job="Note", tenant="acme", due_at=due_at).encode()
    put(broker, "shop_work_retry_3600", body)
    with MoverProcess(tmp_path, broker.address):
        assert arrived(broker) == [body]


def test_a_due_time_of_a_wrong_clock_holds_a_job_no_longer_than_its_delay(broker, tmp_path):
    put(broker, "shop_work_retry_1", job(due_in=10 * 365 * 24 * HOUR), job())
    with MoverProcess(tmp_path, broker.address) as mover:
        assert len(arrived(broker, 2)) == 2
        assert mover.log.count("debug held") == 1


def test_what_is_no_job_goes_to_the_error_queue_and_the_next_ones_are_moved(broker, tmp_path):
    good = job()
    put(broker, "shop_work_retry_1", b"not JSON", good)
    with MoverProcess(tmp_path, broker.address):
        assert arrived(broker) == [good]
        (record,) = map(ParkedRecord.decode, arrived(broker, queue=ERRORS))
        assert record.body == b"not JSON"
        assert "not JSON" in record.reason
        emptied(broker, "shop_work_retry_1")


def test_term_gives_back_what_is_held(broker, tmp_path):
    body = job(due_in=HOUR)
    put(broker, "shop_work_retry_3600", body)
    with MoverProcess(tmp_path, broker.address) as mover:
        mover.wait_for("debug held")
        assert mover.end(signal.SIGTERM) == 0
    wait_until(lambda: count(broker, "shop_work_retry_3600") == 1, "the item to be back")
    assert broker.drain("shop_work_retry_3600") == [body]
    assert count(broker, QUEUE) == 0


def test_a_killed_mover_loses_nothing_and_another_goes_on(broker, tmp_path):
    with MoverProcess(tmp_path / "first", broker.address) as first:
        first.wait_for("mover begins")
        body = job(due_in=5)
        put(broker, "shop_work_retry_1", body)
        first.wait_for("debug held")
        first.end(signal.SIGKILL)
    with MoverProcess(tmp_path / "second", broker.address):
        assert arrived(broker) == [body]
        emptied(broker, "shop_work_retry_1")


def test_a_full_queue_keeps_the_job_held_until_there_is_room(tmp_path):
    with BrokerProcess(tmp_path, queues={QUEUE: {"max_items": 1}}) as broker:
        body = job()
        put(broker, QUEUE, b"already here")
        put(broker, "shop_work_retry_1", body)
        with MoverProcess(tmp_path, broker.address) as mover:
            mover.wait_for("cannot move, holding until it works", 3)
            assert mover.log.count("error cannot move") == 1
            assert count(broker, "shop_work_retry_1", "open_transactions") == 1
            assert broker.drain(QUEUE) == [b"already here"]
            assert arrived(broker) == [body]
            emptied(broker, "shop_work_retry_1")


def test_a_server_that_refuses_is_passed_over_for_another(tmp_path):
    full = {QUEUE: {"max_items": 1}}
    with BrokerProcess(tmp_path / "a", queues=full) as a, BrokerProcess(tmp_path / "b") as b:
        body = job()
        put(a, QUEUE, b"already here")
        put(a, "shop_work_retry_1", body)
        with MoverProcess(tmp_path, f"{a.address},{b.address}"):
            assert arrived(b) == [body]
            emptied(a, "shop_work_retry_1")


def test_jobs_stay_on_their_server_while_it_takes_them(tmp_path):
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        of_a, of_b = job(), job()
        put(a, "shop_work_retry_1", of_a)
        put(b, "shop_work_retry_1", of_b)
        with MoverProcess(tmp_path, f"{a.address},{b.address}"):
            assert (arrived(a), arrived(b)) == ([of_a], [of_b])


def test_a_broker_that_dies_while_a_job_is_held_keeps_it_and_the_mover_says_so_once(broker, tmp_path):
    with MoverProcess(tmp_path, broker.address) as mover:
        mover.wait_for("mover begins")
        body = job(due_in=5)
        put(broker, "shop_work_retry_3600", body)
        mover.wait_for("debug held")
        broker.kill()
        mover.wait_for("server is still away")
        broker.start()
        assert arrived(broker) == [body]
        mover.wait_for("info server is back")
        assert mover.end(signal.SIGTERM) == 0
    assert mover.log.count("error server is away") == 1
    assert mover.log.count("info server is back") == 1


def test_an_idle_mover_sleeps(broker, tmp_path):
    with MoverProcess(tmp_path, broker.address, delays=(1, 2, 3, 4)) as mover:
        wait_until(
            lambda: all(count(broker, f"shop_work_retry_{n}", "waiters") == 1 for n in (1, 2, 3, 4)),
            "waiting",
        )
        put(broker, "shop_work_retry_1", job())
        arrived(broker)
        wait_until(lambda: count(broker, "shop_work_retry_1", "waiters") == 1, "waiting again")
        # Something that takes a while: the start and the end of another process. The first one is for the
        # thread that has asked the broker and has yet to fall asleep.
        something = [sys.executable, "-c", "import json, decimal, asyncio"]
        subprocess.run(something, check=True)
        before = switches(mover.process.pid)
        subprocess.run(something, check=True)
        assert switches(mover.process.pid) == before


def switches(pid):
    """How often the threads of a process were woken up."""
    statuses = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for status in statuses)


def test_without_retry_delays_the_mover_has_nothing_to_do_and_stays(broker, tmp_path):
    with MoverProcess(tmp_path, broker.address, delays=(), debug=False) as mover:
        mover.wait_for("mover begins")
        assert mover.process.poll() is None
        assert mover.end(signal.SIGTERM) == 0
    events = [json.loads(line)["event"] for line in mover.log.splitlines()]
    assert events == ["mover begins", "mover ends"]


def test_usr1_opens_the_log_file_again(broker, tmp_path):
    file = tmp_path / "moved.log"
    with MoverProcess(tmp_path, broker.address, "--log-file", str(file)) as mover:
        wait_until(lambda: file.exists() and "mover begins" in file.read_text(), "the log file")
        file.rename(tmp_path / "moved.log.1")
        mover.process.send_signal(signal.SIGUSR1)
        wait_until(file.exists, "the new log file")
        assert mover.end(signal.SIGTERM) == 0
    assert "mover ends" in file.read_text()
    assert mover.log == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--config", "/nonexistent.json"], "/nonexistent.json does not exist"),
        (["--servers", "x:y"], "'x:y' is not a server"),
        (["--log-file", "/nonexistent/log"], "the log file /nonexistent/log: No such file"),
    ],
)
def test_wrong_flags_end_with_one_line_and_status_78(tmp_path, flags, said):
    with MoverProcess(tmp_path, "127.0.0.1:1", *flags) as mover:
        assert mover.end() == 78
    assert mover.log.startswith("mover: ")
    assert mover.log.count("\n") == 1
    assert said in mover.log


def test_a_job_that_fails_goes_through_its_delays_and_is_parked_in_the_end(broker, tmp_path):
    app = App(tmp_path / "app")
    config = settings(broker.address, {"name": "work", "retry_delays": [1, 1]})
    with (
        producer(broker) as send,
        MoverProcess(tmp_path, broker.address, config=config),
        WorkerProcess(app, broker.address, debug=False, settings=config) as worker,
    ):
        failing = send.enqueue("Raise", {"message": "no"}, queue="work")
        first, second, third = worker.jobs(3)
        assert worker.end(signal.SIGTERM) == 0
    assert {record["id"] for record in (first, second, third)} == {failing}
    assert [
        (record["attempt"], record["outcome"], record.get("delay")) for record in (first, second, third)
    ] == [
        *((1, "retry", 1), (2, "retry", 1)),
        (3, "parked", None),
    ]
    (parked,) = map(ParkedRecord.decode, broker.drain(ERRORS))
    assert parked.attempts == 3
    assert Envelope.decode(parked.body).attempt == 3
