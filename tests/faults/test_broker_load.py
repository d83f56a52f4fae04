"""Much at once: idle connections, slow and deaf readers, big items, a big backlog. Memory stays bounded."""

import contextlib
import hashlib
import itertools
import resource
import socket
from pathlib import Path

import pytest

from support.broker import BrokerProcess, wait_until
from support.traffic import fill

MIB = 1 << 20


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as process:
        yield process
        assert "Traceback" not in process.log


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# Connections


@pytest.fixture
def many_files():
    """Let this process, and the broker that it starts, open 12,000 files and more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 12_000
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(needed, before[0]), max(needed, before[1])))
    except (ValueError, OSError):
        pytest.skip(f"needs {needed} open files; the limit is {before[1]} (ulimit -n)")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_ten_thousand_idle_connections_hold_nobody_up_and_cost_little(many_files, tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as broker, contextlib.ExitStack() as stack:
        before = resident_bytes(broker.pid)
        for number in range(10_000):
            client = stack.enter_context(broker.connect())
            if number % 100 == 0:  # some have spoken, some wait, some are in the middle of a word
                client.ask(b"version\r\n", b"VERSION 2.4.1\r\n")
                client.send([b"get idle/t=600000\r\n", b"set idle 0 0 10\r\nhalf"][number % 200 == 0])
        with broker.connect() as worker:
            for number in range(100):
                worker.set("jobs", b"%d" % number)
            assert [worker.get("jobs/close/open") for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert (resident_bytes(broker.pid) - before) / 10_000 < 20_000
        stack.close()
        wait_until(
            lambda: b"STAT curr_connections 1\r\n" in broker.raw(b"stats\r\n"), "all of them to be gone"
        )
        assert broker.terminate() == 0
        assert "Traceback" not in broker.log


def test_no_more_files_refuses_new_connections_and_recovers(broker):
    """Out of descriptors: those that are there go on, new ones come through when there is room."""
    open_now = len(list(Path(f"/proc/{broker.pid}/fd").iterdir()))
    with broker.connect() as client:
        client.set("jobs", b"1")
        soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (open_now + 6, hard))
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(broker.connect())
            client.set("jobs", b"2")
            assert client.get("jobs") == b"1"
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (soft, hard))
        with broker.connect() as other:
            assert other.get("jobs") == b"2"
    assert "Traceback" not in broker.log


# Readers that are slow, or deaf


def test_deaf_readers_of_big_items_grow_no_memory_and_stop_nobody(broker):
    item = b"x" * MIB
    with contextlib.ExitStack() as stack, broker.connect() as worker:
        worker.set("big", item)
        before = resident_bytes(broker.pid)
        for _ in range(20):
            deaf = stack.enter_context(broker.connect())
            deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.send(b"get big/peek\r\n" * 200)
        for number in range(50):
            worker.set("jobs", b"%d" % number)
            assert worker.get("jobs") == b"%d" % number
        assert resident_bytes(broker.pid) - before < 100 * MIB


def test_a_slow_reader_gets_every_byte_in_the_end(broker):
    item = bytes(range(256)) * 1024
    with broker.connect() as slow, broker.connect() as worker:
        worker.set("big", item)
        slow.send(b"get big/peek\r\n" * 30 + b"quit\r\n")
        got = hashlib.sha256()
        for number in itertools.count():
            chunk = slow.sock.recv(4096)
            if not chunk:
                break
            got.update(chunk)
            if number % 20 == 0:
                worker.set("jobs", b"1")
                assert worker.get("jobs") == b"1"
        whole = b"VALUE big 0 %d\r\n%b\r\nEND\r\n" % (len(item), item)
        assert got.hexdigest() == hashlib.sha256(whole * 30).hexdigest()


def test_a_monitor_that_is_not_read_holds_what_it_streamed_and_grows_no_memory(broker):
    """A monitor takes up to the limit of open reads; the bytes wait in the broker, no more than those."""
    with broker.connect() as deaf, broker.connect() as worker:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(150):
            worker.set("jobs", b"x" * 100_000)
        deaf.send(b"monitor jobs 600\r\n")
        wait_until(lambda: broker.stats("jobs")["open_transactions"] > 0, "the monitor to begin")
        worker.set("other", b"1")
        assert worker.get("other") == b"1"
    wait_until(lambda: broker.stats("jobs")["items"] == 150, "all of them to be back")


# Big items


def test_an_item_of_64_mb_goes_in_and_out_and_survives_a_kill(broker):
    item = hashlib.sha256(b"64").digest() * (2 * MIB)
    with broker.connect() as client:
        client.set("big", item)
        assert client.get("big/open") == item
        client.ask(b"get big/abort\r\n", b"END\r\n")
        client.set("small", b"1")
    assert peak_bytes(broker.pid) < 64 * MIB * 6
    broker.kill()
    broker.start()
    assert broker.drain("small") == [b"1"]
    assert broker.drain("big") == [item]


def test_an_item_beyond_its_queues_limit_is_refused_without_being_kept(tmp_path):
    limit = {"max_item_size": 1000}
    with BrokerProcess(tmp_path, admin_port=None, default=limit) as broker, broker.connect() as client:
        before = resident_bytes(broker.pid)
        chunk = b"x" * MIB
        client.send(b"set jobs 0 0 %d\r\n" % (256 * MIB))
        for _ in range(256):
            client.send(chunk)
        client.ask(b"\r\n", b"NOT_STORED\r\n")
        assert peak_bytes(broker.pid) - before < 32 * MIB
        client.set("jobs", b"1")


def test_the_announcement_of_a_huge_item_takes_no_memory(broker):
    before = resident_bytes(broker.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(broker.connect()).send(b"set jobs 0 0 2147483647\r\nx")
        with broker.connect() as client:
            client.ask(b"version\r\n", b"VERSION 2.4.1\r\n")
        assert resident_bytes(broker.pid) - before < 32 * MIB


# A backlog


def put_backlog(client, numbers: range, size: int = 200) -> None:
    for start in range(numbers.start, numbers.stop, 1000):
        numbered = range(start, min(start + 1000, numbers.stop))
        fill(client, "jobs", [b"%08d" % number + b"x" * (size - 8) for number in numbered])


def take_backlog(client, numbers: range, size: int = 200) -> None:
    """Take items by hundreds and see that each is the one whose turn it is."""
    for start in range(numbers.start, numbers.stop, 100):
        numbered = range(start, min(start + 100, numbers.stop))
        client.send(b"get jobs\r\n" * len(numbered))
        client.expect(
            b"".join(
                b"VALUE jobs 0 %d\r\n%08d%b\r\nEND\r\n" % (size, number, b"x" * (size - 8))
                for number in numbered
            )
        )


def backlog(tmp_path, count: int, settings: dict, memory: int, disk: int) -> None:
    """Pile up, crash, drain half, crash, drain the rest: nothing lost, memory and disk bounded."""
    with BrokerProcess(tmp_path, admin_port=None, default=settings) as broker:
        before = resident_bytes(broker.pid)
        with broker.connect() as client:
            put_backlog(client, range(count))
        assert broker.stats("jobs")["items"] == count
        assert broker.stats("jobs")["mem_bytes"] <= settings["max_memory_size"] + 200
        assert peak_bytes(broker.pid) - before < memory
        broker.kill()
        broker.start()
        with broker.connect() as client:
            take_backlog(client, range(count // 2))
        assert peak_bytes(broker.pid) - before < memory
        broker.kill()
        broker.start()
        with broker.connect() as client:
            take_backlog(client, range(count // 2, count))
            client.ask(b"get jobs\r\n", b"END\r\n")
            put_backlog(client, range(1))
        assert peak_bytes(broker.pid) - before < memory
        wait_until(lambda: disk_bytes(broker) < disk, f"the journal to shrink below {disk} bytes")
        broker.restart()
        with broker.connect() as client:
            take_backlog(client, range(1))
            client.ask(b"get jobs\r\n", b"END\r\n")


def disk_bytes(broker) -> int:
    total = 0
    for path in broker.spool.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


SMALL = {"max_memory_size": 1 * MIB, "default_journal_size": 1 * MIB, "max_journal_size": 4 * MIB}
LARGE = {"max_memory_size": 16 * MIB, "default_journal_size": 16 * MIB, "max_journal_size": 64 * MIB}


def test_a_backlog_beyond_its_memory_piles_up_and_drains_in_bounded_memory(tmp_path):
    backlog(tmp_path, 60_000, SMALL, memory=16 * MIB, disk=3 * MIB)


@pytest.mark.long
def test_a_million_items_pile_up_and_drain_in_bounded_memory(tmp_path):
    backlog(tmp_path, 1_000_000, LARGE, memory=100 * MIB, disk=20 * MIB)


def test_a_queue_that_never_empties_does_not_keep_its_history(tmp_path):
    """Always ten items behind: what has been taken leaves the disk although the queue is never empty."""
    with BrokerProcess(tmp_path, admin_port=None, default=SMALL) as broker, broker.connect() as client:
        put_backlog(client, range(10))
        for start in range(10, 40_010, 2000):
            put_backlog(client, range(start, start + 2000))
            take_backlog(client, range(start - 10, start + 1990))
        wait_until(lambda: disk_bytes(broker) <= 6 * MIB, "the history to go")
        broker.kill()
        broker.start()
        with broker.connect() as other:
            take_backlog(other, range(40_000, 40_010))
            other.ask(b"get jobs\r\n", b"END\r\n")
