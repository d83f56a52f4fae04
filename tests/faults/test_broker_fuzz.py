"""Cut connections and random bytes on every port: the broker goes on, and only whole requests count."""

import contextlib
import json
import random
import socket
import urllib.request

import pytest

from support.broker import BrokerProcess, wait_until


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as process:
        yield process
        assert "Traceback" not in process.log
        assert "unexpected error" not in process.log
        assert process.terminate() == 0


def test_a_stream_cut_at_any_byte_stores_what_was_whole_and_nothing_else(broker):
    requests = [b"set %b 0 0 5\r\n%05d\r\n" % (b"QUEUE", number) for number in range(3)]
    stream = b"".join(requests)
    for cut in range(len(stream) + 1):
        queue = b"q%04d" % cut
        with broker.connect() as client:
            client.send(stream[:cut].replace(b"QUEUE", queue))
            client.sock.shutdown(socket.SHUT_WR)
            # A request is whole with the two bytes after its data; a cut name belongs to no request.
            whole = sum(cut >= len(b"".join(requests[: number + 1])) for number in range(3))
            assert client.read_all() == b"STORED\r\n" * whole
        assert broker.drain(queue.decode()) == [b"%05d" % number for number in range(whole)]


def test_a_get_cut_at_any_byte_takes_nothing(broker):
    request = b"get jobs/t=600000/open\r\n"
    with broker.connect() as client:
        client.set("jobs", b"1")
    for cut in range(len(request)):
        with broker.connect() as client:
            client.send(request[:cut])
            client.sock.shutdown(socket.SHUT_WR)
            assert client.read_all() == b""
    assert broker.stats("jobs")["transactions"] == 0
    assert broker.drain("jobs") == [b"1"]


# What a client could send; "shutdown" is not among it, for it would be obeyed.
WORDS = [
    *(b"set", b"get", b"gets", b"add", b"cas", b"delete", b"flush", b"flush_expired", b"monitor", b"confirm"),
    *(b"stats", b"dump_stats", b"version", b"reload", b"flush_all_expired", b"incr", b"", b"\0", b"\xff\xfe"),
    *(b"q", b"q+x", b"+", b"..", b"a/b", b"q/open", b"q/close", b"q/close/open", b"q/abort", b"q/t=1"),
    *(b"q/peek", b"/", b"0", b"1", b"-1", b"5", b"70000", b"2147483647", b"2147483648", b"1e3", b"x" * 300),
]


def nonsense(dice: random.Random) -> bytes:
    """A few lines of words in any order, with data here and there, and some bytes changed."""
    parts = []
    for _ in range(dice.randint(1, 12)):
        line = b" ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 6)))
        parts.append(line + dice.choice([b"\r\n", b"\n", b"\r", b""]))
        if dice.random() < 0.4:
            parts.append(dice.randbytes(dice.randint(0, 40)) + dice.choice([b"\r\n", b""]))
    data = bytearray(b"".join(parts))
    for _ in range(dice.randint(0, 3)):
        if data:
            data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def send_and_forget(port: int, data: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def harmless(data: bytes) -> bool:
    return b"shutdown" not in data.lower() and b"status" not in data.lower()


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_harm_neither_the_broker_nor_a_bystander(broker, seed):
    dice = random.Random(seed)
    with broker.connect() as bystander:
        for number in range(150):
            data = nonsense(dice)
            if harmless(data):
                send_and_forget(broker.port, data)
            if number % 10 == 0:
                bystander.set("bystander", b"%d" % number)
                assert bystander.get("bystander") == b"%d" % number
    # What the nonsense stored is as good as anything: it is all there after a crash, or has expired.
    items = broker.stats("q").get("items", 0)
    broker.kill()
    broker.start()
    assert len(broker.drain("q")) + broker.stats("q")["expired_items"] == items


@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_on_every_port_harm_nothing(broker, seed):
    dice = random.Random(seed)
    with broker.connect() as bystander:
        bystander.set("jobs", b"1")
        for _ in range(60):
            data = dice.randbytes(dice.choice([1, 10, 100, 5000]))
            for port in (broker.port, broker.admin_port):
                send_and_forget(port, data)
        assert bystander.get("jobs") == b"1"
    assert answers(broker)


HTTP = [
    b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET %s\r\n\r\n",
    b"GET http://other/%s HTTP/1.0\r\n\r\n",
    b"POST /ping HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n%s",
    b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n%s",
    b"GET /stats.json?period=%s HTTP/1.1\r\n\r\n",
    b"GET /logging?name=%s&level=%s HTTP/1.1\r\n\r\n",
    b"GET /ping HTTP/1.1\r\n%s: x\r\n\r\n",
    b"\r\nGET /%s HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("form", HTTP)
def test_strange_requests_to_the_admin_port_harm_nothing(broker, form):
    for filler in (
        b"",
        b"%00",
        b"%ff%fe",
        b"..%2f..%2fetc/passwd",
        b"x" * 20_000,
        b"\xff\x00",
        b"-1",
        b"1e999",
    ):
        send_and_forget(broker.admin_port, form.replace(b"%s", filler))
    assert answers(broker)


@pytest.mark.parametrize("many", [60, 300], ids=["some", "more than are allowed at once"])
def test_half_sent_requests_to_the_admin_port_hold_nobody_up(broker, many):
    with contextlib.ExitStack() as stack, broker.connect() as client:
        for number in range(many):
            sock = socket.create_connection((broker.host, broker.admin_port), 20)
            stack.callback(sock.close)
            with contextlib.suppress(OSError):  # one too many is sent away
                sock.sendall([b"", b"GET", b"GET /ping HTTP/1.1\r\n"][number % 3])
        client.set("jobs", b"1")
        assert client.get("jobs") == b"1"
        if many == 60:
            assert answers(broker)
    wait_until(lambda: answers(broker), "the admin to answer when they have gone")


def answers(broker) -> bool:
    try:
        with urllib.request.urlopen(f"http://{broker.host}:{broker.admin_port}/ping", timeout=60) as answer:
            return json.load(answer) == {"response": "pong"}
    except OSError:
        return False
