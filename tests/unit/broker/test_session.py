"""One connection, without a socket: what no client can see happen, or would wait for too long."""

import asyncio
import socket

import pytest

from kestrel_stack.broker import session as session_module
from kestrel_stack.broker.config import parse
from kestrel_stack.broker.server import Broker
from kestrel_stack.broker.session import Session


class FakeTransport:
    """Takes what is written; its client reads nothing."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.written = b""
        self.unread = 0
        self.closed = False
        self.aborted = asyncio.Event()
        self.reading = True

    def get_extra_info(self, name):
        return self.sock

    def write(self, data):
        self.written += data
        self.unread += len(data)

    def get_write_buffer_size(self):
        return self.unread

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = True
        self.aborted.set()

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True


@pytest.fixture
def connected(tmp_path):
    """Run a coroutine function with a broker, a session and its transport."""

    def run(scenario, **config):
        async def main():
            broker = Broker(parse({"queue_path": str(tmp_path), "sync_journal_ms": None, **config}))
            broker._most_files = 1024
            session, transport = Session(broker), FakeTransport()
            session.connection_made(transport)
            try:
                await scenario(broker, session, transport)
            finally:
                session.connection_lost(None)
                broker.spool.close()
                transport.sock.close()
                transport.peer.close()

        asyncio.run(main())

    return run


def receive(session: Session, data: bytes) -> None:
    session.get_buffer(-1)[: len(data)] = data
    session.buffer_updated(len(data))


def test_a_client_that_does_not_take_its_last_replies_is_cut_off(connected, monkeypatch):
    monkeypatch.setattr(session_module, "LINGER_S", 0.001)

    async def scenario(broker, session, transport):
        receive(session, b"nonsense\r\n")
        assert (transport.written, transport.closed) == (b"CLIENT_ERROR\r\n", True)
        await asyncio.wait_for(transport.aborted.wait(), 60)

    connected(scenario)


def test_while_replies_are_not_taken_nothing_is_answered_and_little_is_read(connected):
    async def scenario(broker, session, transport):
        session.pause_writing()
        for _ in range(20):
            receive(session, b"version\r\n" * 10_000)
        assert transport.written == b""
        assert not transport.reading
        session.resume_writing()
        await asyncio.sleep(0)
        assert transport.written == b"VERSION 2.4.1\r\n" * 200_000
        assert transport.reading

    connected(scenario)


def test_a_monitor_stops_sending_while_its_items_are_not_taken(connected):
    async def scenario(broker, session, transport):
        for number in range(3):
            broker.spool.add("q", b"%d" % number)
        session.pause_writing()
        receive(session, b"monitor q 60 2\r\nversion\r\n")
        assert transport.written == b""
        session.resume_writing()
        # The stream has its end before the next request has its answer.
        for _ in range(3):
            await asyncio.sleep(0)
        assert transport.written == (
            b"VALUE q 0 1\r\n0\r\nEND\r\nVALUE q 0 1\r\n1\r\nEND\r\nEND\r\nVERSION 2.4.1\r\n"
        )

    connected(scenario)


def test_a_monitor_ends_with_its_connection_and_takes_nothing_more(connected):
    async def scenario(broker, session, transport):
        receive(session, b"monitor q 60\r\n")
        assert broker.spool.queues["q"].waiters == 1
        broker.spool.add("q", b"1")
        assert transport.written == b"VALUE q 0 1\r\n1\r\nEND\r\n"
        await asyncio.sleep(0)
        session.connection_lost(None)
        broker.spool.add("q", b"2")
        queue = broker.spool.queues["q"]
        assert (queue.open_reads, queue.waiters) == (0, 0)
        assert [queue.remove().data, queue.remove().data] == [b"1", b"2"]

    connected(scenario)


def test_one_place_receives_for_all_connections(connected):
    async def scenario(broker, session, transport):
        assert session.get_buffer(-1) is Session(broker).get_buffer(-1)

    connected(scenario)


def test_a_client_whose_machine_vanished_is_given_up_with_and_without_a_reply_on_its_way(connected):
    """That the kernel then ends the connection is shown in tests/faults/lab; here, that it is told to."""

    async def scenario(broker, session, transport):
        tcp = {
            name: transport.sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
            for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
        }
        assert transport.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert tcp["KEEPIDLE"] + tcp["KEEPINTVL"] * tcp["KEEPCNT"] == session_module.VANISHED_S
        assert tcp["USER_TIMEOUT"] == session_module.VANISHED_S * 1000

    connected(scenario)
