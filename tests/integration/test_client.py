"""The client on a real broker, and on servers that misbehave in every way."""

import contextlib
import socket
import threading

import pytest

from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.errors import (
    InvalidQueueName,
    ProtocolError,
    QueueFull,
    ReservationLost,
    ServerUnavailable,
)
from kestrel_stack.queue.servers import Server
from support.broker import BrokerProcess
from support.ports import reserve


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    limits = {"queues": {"tiny": {"max_items": 1}}}
    with BrokerProcess(tmp_path_factory.mktemp("broker"), **limits) as started:
        yield started


@pytest.fixture
def client(broker):
    with KestrelClient(Server(broker.host, broker.port)) as made:
        yield made
        made.delete("q")


@pytest.fixture
def other(broker):
    with KestrelClient(Server(broker.host, broker.port)) as made:
        yield made


@contextlib.contextmanager
def server(*answers, requests=None):
    """A server that gives each connection the next answer (bytes, or a function of the socket)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    received = connection.recv(65536)
                    if requests is not None:
                        requests.append(received)
                    if callable(answer):
                        answer(connection)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Server(*listening.getsockname())


@pytest.mark.parametrize("data", [b"", b"x", b"\r\nEND\r\n", bytes(range(256)), b"x" * 3_000_000])
def test_any_bytes_come_back_as_they_were_sent(client, data):
    client.set("q", data)
    assert client.get("q") == data
    assert client.get("q") is None


def test_a_reserved_item_is_confirmed_by_close(client, other):
    client.set("q", b"x")
    assert client.get("q", open=True) == b"x"
    client.close_read("q")
    client.disconnect()
    assert other.get("q", 0.05) is None


def test_a_reserved_item_is_put_back_by_abort(client):
    client.set("q", b"x")
    client.get("q", open=True)
    client.abort_read("q")
    assert client.get("q") == b"x"


def test_a_reserved_item_comes_back_when_the_connection_ends(client, other):
    client.set("q", b"x")
    assert client.get("q", open=True) == b"x"
    client.disconnect()
    assert other.get("q", 5) == b"x"


def test_close_and_open_in_one_go_confirm_the_last_and_reserve_the_next(client, other):
    client.set("q", b"1")
    client.set("q", b"2")
    assert client.get("q", open=True) == b"1"
    assert client.get("q", close=True, open=True) == b"2"
    client.disconnect()
    assert other.get("q", 5) == b"2"
    assert other.get("q") is None


def test_peek_takes_nothing(client):
    client.set("q", b"x")
    assert client.get("q", peek=True) == b"x"
    assert client.items("q") == 1


def test_flush_and_delete_empty_a_queue(client):
    for command in (client.flush, client.delete):
        client.set("q", b"x")
        command("q")
        assert client.get("q") is None


def test_seconds_become_milliseconds_on_the_wire():
    requests = []
    with server(b"END\r\n", requests=requests) as address:
        KestrelClient(address).get("q", 0.25, open=True, close=True)
    assert requests == [b"get q/t=250/close/open\r\n"]


def test_an_expired_item_is_gone_and_no_expiry_is_taken_for_a_date(client):
    with pytest.raises(ValueError, match="999,999"):
        client.set("q", b"x", expires=1_000_000)
    client.set("q", b"x", expires=999_999)
    assert client.get("q") == b"x"


def test_version_status_and_stats(client):
    assert client.version()
    assert client.status() == "UP"
    client.set("q", b"x")
    assert client.stats()["queue_q_items"] == "1"
    assert client.items("never_seen") == 0


def test_a_full_queue_is_named_and_the_connection_stays_good(client):
    client.flush("tiny")
    client.set("tiny", b"1")
    with pytest.raises(QueueFull, match="refused the item for tiny"):
        client.set("tiny", b"2")
    assert client.connection == 1
    assert client.get("tiny") == b"1"


@pytest.mark.parametrize("name", ["", "a b", "a/open", "a+b", "a\r\nflush_all", "ä", "x" * 201])
def test_an_illegal_name_never_reaches_the_server(name):
    nowhere = KestrelClient(Server("127.0.0.1", 1))
    for call in (
        nowhere.get,
        nowhere.flush,
        nowhere.delete,
        nowhere.close_read,
        lambda n: nowhere.set(n, b""),
    ):
        with pytest.raises((InvalidQueueName, ReservationLost)):
            call(name)


def test_close_on_another_connection_is_never_sent(broker, client, other):
    client.set("q", b"x")
    client.get("q", open=True)
    client.disconnect()
    with pytest.raises(ReservationLost):
        client.close_read("q")
    with pytest.raises(ReservationLost):
        client.get("q", open=True, close=True, same_connection=True)
    assert client.connection == 1
    assert other.get("q", 5) == b"x"


def test_a_restarted_broker_is_noticed_before_anything_is_sent(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        client = KestrelClient(Server(broker.host, broker.port))
        client.set("q", b"x")
        client.get("q", open=True)
        broker.kill()
        broker.start()
        with pytest.raises(ReservationLost):
            client.close_read("q")
        assert client.get("q") == b"x"
        assert client.connection == 2


def test_nobody_listening_is_named():
    address = Server("127.0.0.1", reserve())
    with pytest.raises(ServerUnavailable, match=f"{address} is not reachable: Connection refused"):
        KestrelClient(address).get("q")


def test_a_host_that_has_no_address_is_named():
    with pytest.raises(ServerUnavailable, match="is not reachable"):
        KestrelClient(Server("no-such-host.invalid")).get("q")


def hang(connection):
    connection.recv(1)


def drip(connection):
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"x")
            threading.Event().wait(0.02)


def half_a_value(connection):
    connection.sendall(b"VALUE q 0 1000\r\nabc")
    connection.recv(1)


@pytest.mark.parametrize("answer", [hang, drip, half_a_value])
def test_a_server_that_never_finishes_its_answer_is_given_up(answer):
    with server(answer) as address:
        client = KestrelClient(address, read_timeout=0.2)
        with pytest.raises(ServerUnavailable, match="gave no answer: timed out"):
            client.get("q")
        assert client.fileno() is None


@pytest.mark.parametrize("answer", [b"", b"VALUE q 0 5\r\nab", b"EN"])
def test_a_connection_that_ends_early_is_named(answer):
    with server(answer) as address, pytest.raises(ServerUnavailable, match="gave no answer"):
        KestrelClient(address).get("q")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"STORED\r\n",
        b"ERROR\r\n",
        b"CLIENT_ERROR\r\n",
        b"VALUE q 0 x\r\n",
        b"VALUE q 0 -1\r\n",
        b"VALUE q 0 99999999999\r\n",
        b"VALUE q 0 1\r\nxyEND\r\n",
        b"VALUE q 0 1\r\nx\r\nMORE\r\n",
        b"x" * 70_000,
        b"\x00\xff\r\n",
    ],
)
def test_nonsense_is_an_error_and_ends_the_connection(answer):
    with server(answer) as address:
        client = KestrelClient(address)
        with pytest.raises(ProtocolError, match="which was not expected"):
            client.get("q")
        assert client.fileno() is None


def test_a_server_that_is_not_up_counts_as_unavailable():
    with server(b"SERVER_ERROR\r\n") as address, pytest.raises(ServerUnavailable, match="status is not UP"):
        KestrelClient(address).set("q", b"x")


def test_the_late_half_of_an_answer_is_never_taken_for_the_next_one():
    with server(b"END\r\nVALUE q 0 4\r\nlate\r\nEND\r\n", b"END\r\n") as address:
        client = KestrelClient(address)
        assert client.get("q") is None
        assert client.get("q") is None
        assert client.connection == 2
