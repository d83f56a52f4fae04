"""One interface, three queues: every test runs on a real broker, on a real beanstalkd, and in memory."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from kestrel_stack import queue
from kestrel_stack.queue import Producer, QueueFull, ServerUnavailable
from kestrel_stack.queue.envelope import Envelope, again, now_ms
from kestrel_stack.queue.errors import InvalidJob, InvalidQueueName, InvalidServer, ReservationLost
from kestrel_stack.queue.interface import Counts, Queue
from support.beanstalkd import BeanstalkdProcess
from support.broker import BrokerProcess, wait_until

QUEUES = [{"name": "mail", "retry_delays": [1, 600]}, "hello_world", {"name": "tiny", "max_items": 1}]
NOTHING = Counts(0, 0, {1: 0, 600: 0}, 0)


@dataclass
class Place:
    """Where the queues are; `server` is its process, if it has one."""

    scheme: str
    where: str
    server: BrokerProcess | BeanstalkdProcess | None = None

    def url(self, namespace):
        return f"{self.scheme}://{self.where}/{namespace}"


@pytest.fixture(scope="module", params=["kestrel", "beanstalkd", "memory"])
def place(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            yield Place("memory", "tests")
            return
        made = BrokerProcess(folder) if request.param == "kestrel" else BeanstalkdProcess(folder)
        server = stack.enter_context(made)
        yield Place(request.param, server.address, server)


@pytest.fixture
def store(place):
    """A namespace that no other test has used."""
    with Queue.open(place.url("n" + uuid.uuid4().hex[:12]), queues=QUEUES) as opened:
        yield opened


@pytest.fixture
def worker(store):
    made = store.worker("mail")
    yield made
    made.drop()


@pytest.fixture
def kestrel(place, store):
    """Skip what concerns only Kestrel."""
    if place.scheme != "kestrel":
        pytest.skip("for Kestrel only")
    return place.server


def take(queue, done=None):
    """Reserve until there is an item; it may still be on its way back from a dropped connection."""
    deadline = time.monotonic() + 60
    while (found := queue.reserve(1, done)) is None:
        done = None
        assert time.monotonic() < deadline, "no item came"
    return found


def counts(store, queue="mail"):
    return store.count(queue)


def test_an_empty_queue_has_nothing_and_gives_nothing(store, worker):
    assert counts(store) == NOTHING
    assert store.peek("mail") is None
    assert worker.reserve(0) is None
    assert worker.server_count == 1
    assert worker.pause() == 0


def test_items_come_in_order_and_byte_for_byte(store, worker):
    bodies = [b"\r\n END\r\n", bytes(range(256)), "Zoë".encode(), b"x" * 60_000]
    for body in bodies:
        store.put("mail", body)
    assert store.peek("mail") == bodies[0]
    got, last = [], None
    for _ in bodies:
        last = take(worker, last)
        got.append(last.body)
        assert last.queue == worker.name == f"{store.namespace}_mail"
    worker.done(last)
    assert got == bodies
    assert counts(store) == NOTHING


def test_an_item_in_hand_is_seen_by_nobody_else(store, worker):
    store.put("mail", b"one")
    reservation = take(worker)
    other = store.worker("mail")
    assert other.reserve(0) is None
    assert counts(store) == Counts(0, 1, {1: 0, 600: 0}, 0)
    assert not worker.lost(reservation)
    worker.done(reservation)
    assert counts(store) == NOTHING
    other.drop()


def test_what_a_worker_drops_comes_again_first(store, worker):
    for body in (b"one", b"two"):
        store.put("mail", body)
    reservation = take(worker)
    assert reservation.body == b"one"
    worker.drop()
    assert worker.lost(reservation)
    wait_until(lambda: counts(store).ready == 2, "the item to come back")
    other = store.worker("mail")
    assert take(other).body == b"one"
    other.drop()


def test_nothing_is_confirmed_or_written_for_an_item_that_was_dropped(store, worker):
    store.put("mail", b"one")
    reservation = take(worker)
    worker.drop()
    with pytest.raises(ReservationLost):
        worker.done(reservation)
    with pytest.raises(ReservationLost):
        worker.park(reservation, b"record")
    with pytest.raises(ReservationLost):
        worker.later(reservation, b"one", 1)
    with pytest.raises(ReservationLost):
        worker.reserve(0, reservation)
    wait_until(lambda: counts(store) == Counts(1, 0, {1: 0, 600: 0}, 0), "the item to come back")


def test_an_item_that_is_taken_again_does_not_answer_to_its_old_reservation(store, worker):
    store.put("mail", b"one")
    first = take(worker)
    worker.drop()
    second = take(worker)
    with pytest.raises(ReservationLost):
        worker.done(first)
    worker.drop()
    wait_until(lambda: counts(store).ready == 1, "the item to come back")
    assert second.body == b"one"


def test_a_parked_item_is_in_the_error_queue_and_no_more_in_its_own(store, worker):
    store.put("mail", b"one")
    reservation = take(worker)
    worker.park(reservation, b"the record")
    assert not worker.lost(reservation)
    worker.done(reservation)
    assert counts(store) == Counts(0, 0, {1: 0, 600: 0}, 1)
    parked = store.parked("mail")
    assert take(parked).body == b"the record"
    assert counts(store).parked == 1  # also while somebody looks at it
    parked.drop()


def test_a_parked_record_can_go_to_the_end_of_its_queue(store, worker):
    for body in (b"one", b"two"):
        store.put("mail", body)
        reservation = take(worker)
        worker.park(reservation, b"record of " + body)
        worker.done(reservation)
    parked = store.parked("mail")
    first = take(parked)
    parked.park(first, first.body)
    second = take(parked, first)
    assert second.body == b"record of two"
    third = take(parked, second)
    assert third.body == b"record of one"
    parked.done(third)
    assert counts(store) == NOTHING


def test_an_item_for_later_is_kept_back(store, worker):
    envelope = Envelope(job="SendMail", tenant="acme")
    store.put("mail", envelope.encode())
    reservation = take(worker)
    worker.later(reservation, again(reservation.body, now_ms() + 600_000), 600)
    assert worker.reserve(0, reservation) is None
    assert counts(store) == Counts(0, 0, {1: 0, 600: 1}, 0)


def test_delayed_items_of_memory_and_beanstalkd_come_by_themselves(place, store, worker):
    if place.scheme == "kestrel":
        pytest.skip("Kestrel needs the mover")
    store.put("mail", b"late", delay=1)
    assert counts(store) == Counts(0, 0, {1: 1, 600: 0}, 0)
    assert worker.reserve(0) is None
    reservation = take(worker)
    assert reservation.body == b"late"
    worker.done(reservation)
    assert counts(store) == NOTHING


def test_a_waiting_worker_is_given_an_item_that_comes(store, worker):
    worker.reserve(0)
    putting = threading.Thread(target=lambda: store.put("mail", b"one"))
    putting.start()
    assert worker.reserve(20).body == b"one"
    putting.join()


def test_queues_and_namespaces_do_not_mix(place, store):
    store.put("mail", b"mail")
    assert store.count("hello_world") == Counts()
    with Queue.open(place.url("other" + uuid.uuid4().hex[:8]), queues=QUEUES) as other:
        assert other.count("mail") == NOTHING
    with Queue.open(place.url(store.namespace), queues=QUEUES) as same:
        assert same.count("mail").ready == 1


def test_a_producer_puts_its_envelopes_on_any_queue(store, worker):
    producer = Producer.on(store, "acme")
    job = producer.enqueue("SendMail", {"to": "Zoë"}, queue="mail")
    envelope = Envelope.decode(take(worker).body)
    assert (envelope.id, envelope.tenant, envelope.data) == (job, "acme", {"to": "Zoë"})
    assert envelope.due_at is None
    assert producer.namespace == store.namespace


def test_a_delayed_job_says_when_it_is_due_and_waits_until_then(store):
    Producer.on(store, "acme").enqueue("SendMail", queue="mail", delay=600)
    assert counts(store) == Counts(0, 0, {1: 0, 600: 1}, 0)
    with pytest.raises(InvalidJob, match="mail, in seconds: 1, 600"):
        Producer.on(store, "acme").enqueue("SendMail", queue="mail", delay=60)
    assert counts(store).delayed == {1: 0, 600: 1}


def test_kestrel_keeps_a_delayed_job_in_the_queue_of_its_delay(store, kestrel):
    before = now_ms()
    Producer.on(store, "acme").enqueue("SendMail", queue="mail", delay=600)
    (body,) = kestrel.drain(f"{store.namespace}_mail_retry_600")
    envelope = json.loads(body)
    assert envelope["due_at"] == envelope["enqueued_at"] + 600_000
    assert envelope["enqueued_at"] >= before
    assert envelope["attempt"] == 1


def test_jobs_are_enqueued_after_the_commit(store):
    producer = Producer.on(store, "acme")
    with producer.after_commit() as jobs:
        ids = [jobs.enqueue("SendMail", {"n": n}, queue="mail") for n in range(3)]
        assert counts(store).ready == 0
        assert jobs.left == 3
    assert counts(store).ready == 3
    assert jobs.left == 0
    assert len(set(ids)) == 3


def test_jobs_of_a_transaction_that_failed_are_dropped(store):
    producer = Producer.on(store, "acme")
    with pytest.raises(ZeroDivisionError), producer.after_commit() as jobs:
        jobs.enqueue("SendMail", queue="mail")
        raise ZeroDivisionError
    assert counts(store) == NOTHING


def test_a_wrong_job_is_refused_inside_the_transaction(store):
    producer = Producer.on(store, "acme")
    with pytest.raises(InvalidJob, match=r"data\.a is a set"), producer.after_commit() as jobs:
        jobs.enqueue("SendMail", queue="mail")
        jobs.enqueue("SendMail", {"a": {1}}, queue="mail")
    assert counts(store) == NOTHING


def test_jobs_that_were_not_taken_after_the_commit_can_be_tried_again(place, store, tmp_path):
    if place.scheme == "beanstalkd":
        pytest.skip("beanstalkd has no limit of items")
    with contextlib.ExitStack() as stack:
        if place.scheme == "kestrel":
            limits = {"queues": {f"{store.namespace}_tiny": {"max_items": 1}}}
            broker = stack.enter_context(BrokerProcess(tmp_path, **limits))
            store = Queue.open(f"kestrel://{broker.address}/{store.namespace}", queues=QUEUES)
        producer = Producer.on(store, "acme")
        with pytest.raises(QueueFull, match="1 of 3 jobs are not enqueued"), producer.after_commit() as jobs:
            jobs.enqueue("Tiny", {"n": 1})
            jobs.enqueue("Tiny", {"n": 2})
            jobs.enqueue("HelloWorld")
        assert jobs.left == 1
        assert store.count("hello_world").ready == 1
        worker = store.worker("tiny")
        worker.done(take(worker))
        jobs.flush()
        assert jobs.left == 0
        assert json.loads(store.peek("tiny"))["data"] == {"n": 2}
        worker.drop()


def test_an_item_larger_than_the_server_takes_is_refused(place, store):
    if place.scheme != "beanstalkd":
        pytest.skip("its limit is set by its command line")
    with pytest.raises(QueueFull, match="larger than the server allows"):
        store.put("mail", b"x" * 70_000)
    store.put("mail", b"small")
    assert counts(store).ready == 1


def test_a_fork_gets_a_connection_of_its_own(place, store):
    if place.scheme == "memory":
        pytest.skip("memory lives in one process")
    store.put("mail", b"before")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for _ in range(50):
                store.put("mail", b"x" * 50_000)
            status = 0
        finally:
            os._exit(status)
    for _ in range(50):
        store.put("mail", b"y" * 50_000)
    assert os.waitpid(pid, 0)[1] == 0
    assert counts(store).ready == 101


@pytest.mark.parametrize("scheme", ["kestrel", "beanstalkd"])
def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have(scheme, listening, silent_server):
    store = Queue.open(f"{scheme}://{silent_server}/shop")
    thread = threading.Thread(target=put_in_vain, args=[store])
    thread.start()
    wait_until(lambda: connections_to(silent_server), "the thread to be waiting for an answer")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            store.put("mail", b"x", timeout=0.3)
        except ServerUnavailable as exc:
            os.write(writing, str(exc).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    listening.close()
    thread.join()
    assert "timed out" in said
    assert "Other threads" not in said


def put_in_vain(store):
    with pytest.raises(ServerUnavailable):
        store.put("mail", b"x", timeout=120)


def connections_to(server):
    """Say whether this process has a connection to `server`, from what Linux lists."""
    port = f"{int(server.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port}") and row[3] == "01" for row in rows)


def test_a_thread_that_waits_too_long_for_the_others_is_told(listening, silent_server):
    store = Queue.open(f"kestrel://{silent_server}/shop")
    thread = threading.Thread(target=put_in_vain, args=[store])
    thread.start()
    wait_until(lambda: connections_to(silent_server), "the thread to be waiting for an answer")
    with pytest.raises(ServerUnavailable, match=r"^Not enqueued: Other threads are using the connection"):
        store.put("mail", b"x", timeout=0.1)
    listening.close()
    thread.join()


def test_threads_share_a_queue(store):
    def put():
        for _ in range(50):
            store.put("mail", b"x")

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(store).ready == 200


WORKER = """
import sys
from kestrel_stack.consumer.log import Log, Writer
from kestrel_stack.consumer.runner import Runner
from kestrel_stack.consumer.signals import Signals
from kestrel_stack.consumer.worker import Limits, Rules, Worker
from kestrel_stack.queue import Producer, Queue

url, jobs, delay = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = Queue.open(url, queues=[{"name": "mail", "retry_delays": [delay]}])
producer = Producer.on(store, "acme")
for number in range(20):
    producer.enqueue("Note", {"text": number}, queue="mail")
producer.enqueue("Attempt", {"until": 2}, queue="mail")
producer.enqueue("AskPark", {"reason": "by request"}, queue="mail")
producer.enqueue("Unknown", queue="mail")
store.put("mail", b"not a job")
signals, writer, queue = Signals(), Writer(), store.worker("mail")
signals.install()
runner = Runner("jobs_app:registry", Log(writer), signals)
rules, limits = {queue.name: Rules(30, (delay,))}, Limits(jobs=jobs, min_uptime=0)
Worker(queue, rules, runner, signals, writer, limits).run()
print(repr(store.count("mail")), [store.parked("mail").reserve(0).body for _ in range(3)])
"""


def run_worker(place, tmp_path, jobs, delay):
    """Run a worker, and what enqueues for it, in a process of its own: memory is seen only there."""
    url = place.url("w" + uuid.uuid4().hex[:8])
    paths = [Path(__file__).parents[1] / "support", Path(queue.__file__).parents[2]]
    run = subprocess.run(
        [sys.executable, "-c", WORKER, url, str(jobs), str(delay)],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("KESTREL_STACK_")},
            "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
            "TEST_FOLDER": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run


def test_the_same_worker_works_on_every_queue(place, tmp_path):
    run = run_worker(place, tmp_path, 24, 600)
    assert (tmp_path / "done").read_text().split() == [str(number) for number in range(20)]
    assert run.stdout.startswith("Counts(ready=0, reserved=0, delayed={600: 1}, parked=3)")
    assert "by request" in run.stdout
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    outcomes = [line["outcome"] for line in lines if line["event"] == "job"]
    assert outcomes == ["done"] * 20 + ["retry"] + ["parked"] * 3


def test_where_delayed_jobs_come_by_themselves_the_same_worker_does_them(place, tmp_path):
    if place.scheme == "kestrel":
        pytest.skip("Kestrel needs the mover")
    run_worker(place, tmp_path, 25, 1)
    assert (tmp_path / "done").read_text().splitlines()[-1].endswith(" 2")


@pytest.mark.parametrize("scheme", ["kestrel", "beanstalkd"])
def test_a_server_that_is_away_is_said_and_used_again_when_it_is_back(scheme, tmp_path):
    server = BrokerProcess(tmp_path) if scheme == "kestrel" else BeanstalkdProcess(tmp_path)
    with server:
        store = Queue.open(f"{scheme}://{server.address}/shop", queues=QUEUES)
        with contextlib.closing(store):
            store.put("mail", b"one")
            worker = store.worker("mail")
            reservation = take(worker)
            server.kill()
            wait_until(lambda: worker.lost(reservation), "the loss to be seen")
            with pytest.raises(ReservationLost):
                worker.done(reservation)
            with pytest.raises(ServerUnavailable, match=r"is not reachable|gave no answer"):
                worker.reserve(0)
            assert worker.pause() > 0
            with pytest.raises(ServerUnavailable, match=r"^Not enqueued: "):
                store.put("mail", b"two")
            with pytest.raises(ServerUnavailable):
                store.count("mail")
            server.start()
            store.put("mail", b"two")
            assert take(worker).body == b"one"
            assert counts(store).ready == 1
            worker.drop()


def test_a_server_that_says_nothing_costs_only_the_time_limit(silent_server):
    for scheme in ("kestrel", "beanstalkd"):
        store = Queue.open(f"{scheme}://{silent_server}/shop")
        with pytest.raises(ServerUnavailable, match="timed out"):
            store.put("mail", b"one", timeout=0.3)
        store.close()


def test_parts_are_the_servers(tmp_path):
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        store = Queue.open(f"kestrel://{a.address},{b.address}/shop", queues=QUEUES)
        with contextlib.closing(store):
            for part, body in zip(store.parts(), (b"on a", b"on b"), strict=True):
                part.put("mail", body)
            assert a.drain("shop_mail") == [b"on a"]
            assert counts(store).ready == 1
            assert store.peek("mail") == b"on b"


def test_the_same_memory_is_the_same_store_and_another_is_not():
    name = uuid.uuid4().hex
    Queue.open(f"memory://{name}/shop").put("mail", b"one")
    assert Queue.open(f"memory://{name}/shop").count("mail").ready == 1
    assert Queue.open(f"memory://{name}x/shop").count("mail").ready == 0


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("redis://127.0.0.1/shop", InvalidServer, "unknown scheme; known: kestrel://, beanstalkd://"),
        ("kestrel://127.0.0.1", InvalidServer, "write kestrel://host:port"),
        ("kestrel:///shop", InvalidServer, "write kestrel://host:port"),
        ("127.0.0.1:22133/shop", InvalidServer, "write kestrel://host:port"),
        ("", InvalidServer, "is not the address of a queue"),
        (None, InvalidServer, "is not the address of a queue"),
        ("kestrel://a b/shop", InvalidServer, "'a b' is not a server"),
        ("kestrel://h:99999/shop", InvalidServer, "no such port"),
        ("kestrel://h,h/shop", InvalidServer, "listed twice"),
        ("kestrel://h/", InvalidQueueName, "namespace is empty"),
        ("kestrel://h/a/b", InvalidQueueName, "'a/b' may hold only"),
        ("memory://tests/a.b", InvalidQueueName, "'a.b' may hold only"),
        ("beanstalkd://a,b/shop", InvalidServer, "Only one beanstalkd server"),
    ],
)
def test_a_wrong_address_is_refused_with_an_example(url, error, said):
    with pytest.raises(error, match=said) as refused:
        Queue.open(url)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "address"),
    [("h", "h:11300"), ("h:1", "h:1"), ("[::1]", "[::1]:11300"), ("[::1]:7", "[::1]:7")],
)
def test_beanstalkd_has_a_port_of_its_own(where, address):
    assert str(Queue.open(f"beanstalkd://{where}/shop").worker("mail").server) == address


def test_a_queue_that_is_not_described_is_refused(store):
    for call in (lambda: store.put("nope", b"x"), lambda: store.count("nope"), lambda: store.worker("nope")):
        with pytest.raises(InvalidQueueName, match="'nope' is not configured; configured: hello_world, mail"):
            call()


def test_without_descriptions_any_queue_is_taken_and_no_delay(place):
    with Queue.open(place.url("free" + uuid.uuid4().hex[:8])) as store:
        store.put("anything", b"x")
        assert store.count("anything") == Counts(1)
        with pytest.raises(InvalidJob, match="in seconds: none"):
            store.put("anything", b"x", delay=10)
        with pytest.raises(InvalidQueueName, match="like those that the stack makes"):
            store.put("anything_errors", b"x")


def test_without_greenstalk_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenstalk", None)
    with pytest.raises(Exception, match="needs the package greenstalk"):
        Queue.open("beanstalkd://127.0.0.1/shop")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def silent_server(listening):
    return "{}:{}".format(*listening.getsockname())
