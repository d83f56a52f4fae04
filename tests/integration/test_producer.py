"""Producers on real brokers: where jobs go, and what happens when servers do not take them."""

import json
import os
import socket
import threading
import uuid

import pytest

from kestrel_stack.queue import InvalidJob, Producer, QueueFull, ServerUnavailable
from support.broker import BrokerProcess
from support.ports import nobody


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    limits = {"queues": {"shop_tiny": {"max_items": 1}}}
    with (
        BrokerProcess(tmp_path_factory.mktemp("a"), **limits) as a,
        BrokerProcess(tmp_path_factory.mktemp("b"), **limits) as b,
    ):
        yield a, b


@pytest.fixture(autouse=True)
def empty(brokers):
    yield
    for broker in brokers:
        broker.raw(b"flush_all\r\n")


def producer(*addresses, **options):
    return Producer("shop", "acme", servers=list(addresses), queues=["hello_world", "tiny"], **options)


@pytest.fixture
def silent():
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "{}:{}".format(*listening.getsockname())


@pytest.fixture
def closed():
    return nobody()


@pytest.fixture
def in_order(monkeypatch):
    """Servers are tried in the order given, not by chance."""
    monkeypatch.setattr("kestrel_stack.queue.kestrel.random.sample", lambda servers, _: list(servers))


def test_a_job_arrives_as_an_envelope(brokers):
    job = producer(brokers[0].address).enqueue("HelloWorld", {"name": "Zoë"}, trace={"baggage": "x"})
    (body,) = brokers[0].drain("shop_hello_world")
    envelope = json.loads(body)
    assert envelope.pop("enqueued_at") > 1_700_000_000_000
    assert envelope == {
        "v": 1,
        "id": job,
        "job": "HelloWorld",
        "tenant": "acme",
        "data": {"name": "Zoë"},
        "attempt": 1,
        "trace": {"baggage": "x"},
    }
    assert str(uuid.UUID(job)) == job


def test_a_job_keeps_the_id_it_is_given(brokers):
    given = uuid.uuid4()
    send = producer(brokers[0].address)
    assert send.enqueue("HelloWorld", id=given) == str(given)
    assert send.enqueue("HelloWorld", id=str(given).upper()) == str(given)


def test_jobs_spread_over_the_servers(brokers):
    send = producer(*(broker.address for broker in brokers))
    for _ in range(60):
        send.enqueue("HelloWorld")
    counts = [broker.stats("shop_hello_world")["items"] for broker in brokers]
    assert sum(counts) == 60
    assert min(counts) > 0  # by chance wrong once in 2 ** 59


def test_a_server_that_is_down_is_passed_over(brokers, closed, in_order):
    send = producer(closed, brokers[0].address)
    for _ in range(10):
        send.enqueue("HelloWorld")
    assert len(brokers[0].drain("shop_hello_world")) == 10


def test_a_server_that_is_silent_is_passed_over(brokers, silent, in_order):
    send = producer(silent, brokers[0].address, timeout=12)
    for _ in range(3):
        send.enqueue("HelloWorld")
    assert len(brokers[0].drain("shop_hello_world")) == 3


def test_when_no_server_answers_the_error_names_each(closed, silent):
    send = producer(closed, silent, timeout=0.5)
    with pytest.raises(ServerUnavailable, match="Not enqueued: ") as failed:
        send.enqueue("HelloWorld")
    assert closed in str(failed.value)
    assert silent in str(failed.value)


def test_a_full_queue_on_one_server_leads_to_the_other(brokers):
    send = producer(*(broker.address for broker in brokers))
    send.enqueue("HelloWorld", queue="tiny")
    send.enqueue("HelloWorld", queue="tiny")
    assert [broker.stats("shop_tiny")["items"] for broker in brokers] == [1, 1]
    with pytest.raises(QueueFull, match=r"Not enqueued: .*the queue is full"):
        send.enqueue("HelloWorld", queue="tiny")


def test_a_restarted_server_is_used_again_and_gets_each_job_once(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        send = producer(broker.address)
        send.enqueue("HelloWorld", {"n": 1})
        broker.kill()
        with pytest.raises(ServerUnavailable):
            send.enqueue("HelloWorld", {"n": 2})
        broker.start()
        send.enqueue("HelloWorld", {"n": 3})
        assert [json.loads(body)["data"]["n"] for body in broker.drain("shop_hello_world")] == [1, 3]


def test_threads_share_a_producer(brokers):
    send = producer(brokers[0].address)
    threads = [
        threading.Thread(target=lambda: [send.enqueue("HelloWorld") for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [json.loads(body)["id"] for body in brokers[0].drain("shop_hello_world")]
    assert len(set(ids)) == len(ids) == 200


def test_a_fork_gets_connections_of_its_own(brokers):
    send = producer(brokers[0].address, max_bytes=20_000_000)
    send.enqueue("HelloWorld")
    # Large enough that two processes on one connection would mix their halves.
    large = {"text": "x" * 8_000_000}
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for _ in range(3):
                send.enqueue("HelloWorld", large)
            status = 0
        finally:
            os._exit(status)
    for _ in range(3):
        send.enqueue("HelloWorld", large)
    assert os.waitpid(pid, 0)[1] == 0
    bodies = brokers[0].drain("shop_hello_world")
    assert len({json.loads(body)["id"] for body in bodies}) == len(bodies) == 7


def test_a_producer_from_the_settings_file_knows_servers_and_queues(brokers, tmp_path, monkeypatch):
    path = tmp_path / "shop.json"
    path.write_text(
        json.dumps(
            {
                "app": "shop",
                "namespace": "shop",
                "environment": "lab",
                "servers": [brokers[0].address],
                "queues": [{"name": "hello_world"}],
            }
        )
    )
    for variable in ("KESTREL_STACK_SERVERS", "KESTREL_STACK_NAMESPACE", "KESTREL_STACK_ENVIRONMENT"):
        monkeypatch.delenv(variable, raising=False)
    with Producer.from_settings("acme", path) as send:
        send.enqueue("HelloWorld")
        with pytest.raises(InvalidJob, match="configured: hello_world"):
            send.enqueue("HelloWorld", queue="mail")
    assert len(brokers[0].drain("shop_hello_world")) == 1
