"""What was acknowledged survives, exactly once, whatever happens to the broker or its clients."""

import collections
import contextlib
import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from support.broker import BrokerProcess, RawClient, wait_until


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as process:
        yield process


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_thousand_acknowledged_items_of_eight_connections_survive_kill_9_exactly_once(broker):
    def produce(number):
        with broker.connect() as client:
            for index in range(125):
                client.set("jobs", b"%d-%d" % (number, index))

    in_threads(8, produce)
    broker.kill()
    broker.start()
    items = broker.drain("jobs")
    assert collections.Counter(items) == {b"%d-%d" % (n, i): 1 for n in range(8) for i in range(125)}
    for number in range(8):
        assert [item for item in items if item.startswith(b"%d-" % number)] == [
            b"%d-%d" % (number, index) for index in range(125)
        ]


def test_a_kill_9_in_the_middle_of_traffic_loses_nothing_acknowledged_and_doubles_nothing(broker):
    """Producers and consumers run into the kill; each knows what it was told."""
    stored, unsure, confirmed, in_hand = [], [], [], []
    enough = threading.Event()

    def produce(number):
        with broker.connect() as client:
            for index in range(1_000_000):
                item = b"%d-%d" % (number, index)
                try:
                    client.set("jobs", item)
                except (AssertionError, OSError):
                    unsure.append(item)
                    return
                stored.append(item)
                if len(stored) >= 1000:
                    enough.set()

    def consume(number):
        held = None
        with broker.connect() as client:
            try:
                while True:
                    item = client.get("jobs/t=1000/close/open")
                    if held is not None:
                        confirmed.append(held)
                    held = item
            except (AssertionError, OSError):
                in_hand.append(held)

    def kill(_):
        enough.wait(60)
        broker.kill()

    in_threads(7, lambda number: (produce if number < 4 else consume if number < 6 else kill)(number))
    broker.start()
    left = collections.Counter(broker.drain("jobs"))
    assert len(stored) >= 1000
    assert max(left.values(), default=1) == 1
    # An item in a consumer's hand at the kill may have been confirmed without its knowing.
    lost = set(stored) - set(left) - set(confirmed) - set(in_hand)
    assert not lost
    assert not set(left) & set(confirmed)
    assert set(left) <= set(stored) | set(unsure)


def test_open_reads_come_back_in_order_after_kill_9(broker):
    with broker.connect() as client, broker.connect() as other:
        for item in (b"1", b"2", b"3", b"4"):
            client.set("jobs", item)
        assert [client.get("jobs/open"), other.get("jobs/open"), client.get("jobs/open")] == [
            b"1",
            b"2",
            b"3",
        ]
        other.ask(b"get jobs/close\r\n", b"END\r\n")
        broker.kill()
    broker.start()
    assert "2 open reads returned" in broker.log
    assert broker.stats("jobs")["open_transactions"] == 0
    assert broker.drain("jobs") == [b"1", b"3", b"4"]


def test_deleted_and_flushed_items_stay_gone_after_kill_9(broker):
    with broker.connect() as client:
        client.set("deleted", b"1")
        client.set("flushed", b"1")
        client.ask(b"delete deleted\r\n", b"DELETED\r\n")
        client.ask(b"flush flushed\r\n", b"END\r\n")
    broker.kill()
    broker.start()
    assert broker.drain("deleted") == broker.drain("flushed") == []


def test_a_torn_tail_is_cut_back_and_the_log_says_which_file_and_how_much(broker):
    with broker.connect() as client:
        client.set("jobs", b"kept")
    broker.kill()
    journal = broker.spool / "jobs"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:11])
    broker.start()
    assert journal.read_bytes() == whole
    assert f"{journal}: the record is cut short" in broker.log
    assert "(11 bytes dropped)" in broker.log
    assert broker.drain("jobs") == [b"kept"]


def test_a_half_sent_item_is_not_stored(broker):
    for part in (
        b"set jobs 0 0 5\r\n",
        b"set jobs 0 0 5\r\nhal",
        b"set jobs 0 0 5\r\nwhole",
        b"set jobs 0 0",
    ):
        with broker.connect() as client:
            client.send(part)
    with broker.connect() as client:
        client.set("jobs", b"next")
    broker.kill()
    broker.start()
    assert broker.drain("jobs") == [b"next"]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(bytes(range(256)) * 40, id="every byte"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\n", id="TLS hello"),
        pytest.param(b"GET /stats.json HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
        pytest.param(b"set q 0 0 99999999999999999999\r\n", id="huge size"),
        pytest.param(b"a" * (3 << 20), id="no end of line"),
        pytest.param(b"\n" * 10_000, id="empty lines"),
        pytest.param(b"get a\0b\r\n", id="NUL in a name"),
    ],
)
def test_garbage_closes_its_own_connection_and_no_other(broker, garbage):
    with broker.connect() as bystander:
        bystander.set("jobs", b"1")
        with broker.connect() as client:
            try:
                client.send(garbage)
                client.read_all()
            except OSError:
                pass  # closed while we were sending
        assert bystander.get("jobs") == b"1"
    assert "Traceback" not in broker.log


def test_a_client_that_never_reads_does_not_stop_the_others(broker):
    item = b"x" * 100_000
    with broker.connect() as filler, broker.connect() as deaf:
        filler.set("big", item)
        deaf.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                deaf.send(b"get big/peek\r\n" * 1000)
        assert filler.get("big") == item
        assert resident_bytes(broker.pid) < 200 << 20


def test_a_client_that_sends_ahead_while_it_waits_is_not_read_without_bound(broker):
    with broker.connect() as flood, broker.connect() as other:
        flood.send(b"get jobs/t=600000\r\n")
        flood.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(3000):
                flood.send(b"version\r\n" * 10_000)
        other.set("jobs", b"1")
        flood.sock.settimeout(20)
        flood.expect(b"VALUE jobs 0 1\r\n1\r\nEND\r\n" + b"VERSION 2.4.1\r\n" * 1000)
        assert resident_bytes(broker.pid) < 200 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_waiting_read_whose_client_has_just_gone_never_swallows_the_item(broker):
    """The broker finds the item before it finds the hang-up: it is stopped while both arrive."""
    with broker.connect() as producer:
        for number in range(20):
            waiting = broker.connect()
            waiting.send(b"get jobs/t=600000\r\n")
            wait_until(lambda: broker.stats("jobs")["waiters"] == 1, "the read to wait")
            with stopped(broker):
                producer.send(b"set jobs 0 0 2\r\n%02d\r\n" % number)
                waiting.close()
            producer.expect(b"STORED\r\n")
            assert producer.get("jobs") == b"%02d" % number
            wait_until(lambda: broker.stats("jobs")["waiters"] == 0, "the waiting read to be forgotten")


@contextlib.contextmanager
def stopped(broker):
    """Hold the broker as a busy machine might."""
    state = Path(f"/proc/{broker.pid}/stat")
    os.kill(broker.pid, signal.SIGSTOP)
    wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "T", "the broker to hold")
    yield
    os.kill(broker.pid, signal.SIGCONT)


def test_a_reset_connection_returns_its_open_read(broker):
    with broker.connect() as other:
        client = broker.connect()
        client.set("jobs", b"1")
        assert client.get("jobs/open") == b"1"
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert other.get("jobs/t=20000") == b"1"


def test_a_client_that_hangs_up_without_reading_its_replies_returns_its_open_read(broker):
    with broker.connect() as other, broker.connect() as deaf:
        other.set("big", b"x" * 1_000_000)
        other.set("jobs", b"1")
        assert deaf.get("jobs/open") == b"1"
        deaf.send(b"get big/peek\r\n" * 100)
        deaf.sock.shutdown(socket.SHUT_WR)
        assert other.get("jobs/t=20000") == b"1"


def test_a_second_broker_on_the_same_folder_is_refused_and_the_first_goes_on(broker, tmp_path):
    second = BrokerProcess(tmp_path / "second", queue_path=broker.spool, admin_port=None)
    with pytest.raises(RuntimeError, match="ended with 1") as refusal:
        second.start()
    assert second.log.count("\n") == 1
    assert f"{broker.spool}: another broker uses this queue folder" in second.log, refusal
    with broker.connect() as client:
        client.set("jobs", b"1")
    broker.kill()
    assert second.start().drain("jobs") == [b"1"]
    second.terminate()


def test_an_orderly_stop_answers_waiting_reads_and_keeps_open_ones(broker):
    with broker.connect() as client, broker.connect() as waiting:
        client.set("jobs", b"1")
        assert client.get("jobs/open") == b"1"
        waiting.send(b"get other/t=600000\r\n")
        wait_until(lambda: broker.stats("other").get("waiters") == 1, "the read to wait")
        assert broker.terminate() == 0
        assert waiting.read_all() in (b"END\r\n", b"")
        assert client.read_all() == b""
    broker.start()
    assert broker.drain("jobs") == [b"1"]


def test_the_peer_sees_the_same_port_after_a_restart(broker):
    port = broker.port
    broker.restart()
    with RawClient(broker.host, port) as client:
        client.ask(b"version\r\n", b"VERSION 2.4.1\r\n")
