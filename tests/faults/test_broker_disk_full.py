"""A full disk: nothing is acknowledged that is not stored, and nothing stored is damaged.

``no_room`` limits the size of the files that the running broker may write, which needs no root: the write
that crosses the limit is cut short and the next one fails, as on a full disk. One test uses a real full disk.
"""

import contextlib
import resource

import pytest

from support.broker import BrokerProcess, wait_until
from support.small_disk import small_disk
from support.traffic import Ledger, running

BIG = b"x" * 300_000  # larger than the broker's log, which the limit holds for as well


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as process:
        with process.connect() as client:
            client.set("jobs", BIG)
        yield process


@contextlib.contextmanager
def no_room(broker, free: int):
    """Let the journal of jobs grow by ``free`` bytes and no further."""
    unlimited = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
    size = (broker.spool / "jobs").stat().st_size
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (size + free, unlimited[1]))
    yield
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize("free", [0, 1, 5, 24])
def test_a_set_that_does_not_fit_is_refused_and_leaves_no_trace(broker, free):
    journal = broker.spool / "jobs"
    before = journal.read_bytes()
    with no_room(broker, free):
        with broker.connect() as client:
            client.ask(b"set jobs 0 0 4\r\nlost\r\n", b"SERVER_ERROR\r\n")
            assert client.read_all() == b""
        assert journal.read_bytes() == before
        assert broker.stats("jobs")["items"] == 1
    assert f"{journal}: cannot write 25 bytes" in broker.log
    with broker.connect() as client:
        client.set("jobs", b"next")
    broker.kill()
    broker.start()
    assert broker.drain("jobs") == [BIG, b"next"]


def test_a_get_that_cannot_be_journalled_takes_nothing(broker):
    with no_room(broker, 0):
        for request in (b"get jobs\r\n", b"get jobs/open\r\n", b"flush jobs\r\n"):
            with broker.connect() as client:
                client.ask(request, b"SERVER_ERROR\r\n")
                assert client.read_all() == b""
    assert broker.drain("jobs") == [BIG]


def test_an_open_read_that_cannot_be_confirmed_comes_back_and_the_journal_stays_true(broker):
    """The read returns in memory while no record of it can be written; later records must not shift."""
    with broker.connect() as client:
        client.set("jobs", b"second")
        client.set("jobs", b"third")
        assert client.get("jobs/open") == BIG
        with no_room(broker, 2):
            client.ask(b"get jobs/close\r\n", b"SERVER_ERROR\r\n")
            assert client.read_all() == b""
            assert broker.stats("jobs")["open_transactions"] == 0
    with broker.connect() as client:
        assert client.get("jobs/open") == BIG
        assert client.get("jobs/close/open") == b"second"
        broker.kill()
    broker.start()
    assert broker.drain("jobs") == [b"second", b"third"]


def test_with_a_sync_before_every_reply_it_is_the_same(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None, sync_journal_ms=0) as broker:
        with broker.connect() as client:
            client.set("jobs", BIG)
        with no_room(broker, 7), broker.connect() as client:
            client.ask(b"set jobs 0 0 4\r\nlost\r\n", b"SERVER_ERROR\r\n")
        broker.kill()
        broker.start()
        assert broker.drain("jobs") == [BIG]


@pytest.fixture(name="small_disk")
def a_small_disk(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_a_really_full_disk_refuses_clearly_and_recovers_when_there_is_room(small_disk, tmp_path):
    filler = small_disk.parent / "disk" / "sub"
    filler.mkdir()  # the spool ignores folders
    with BrokerProcess(tmp_path, queue_path=small_disk, admin_port=None) as broker:
        stored = []
        (filler / "ballast").write_bytes(b"x" * 100_000)
        with broker.connect() as client:
            for number in range(1000):
                item = b"%04d" % number + b"x" * 1000
                client.send(b"set jobs 0 0 %d\r\n%b\r\n" % (len(item), item))
                if client.line() != b"STORED\r\n":
                    break
                stored.append(item)
        assert 50 < len(stored) < 300
        assert "No space left on device" in broker.log
        (filler / "ballast").unlink()
        with broker.connect() as client:
            client.set("jobs", b"after")
        broker.kill()
        broker.start()
        assert broker.drain("jobs") == [*stored, b"after"]
        broker.terminate()


READ_BEHIND = {"default_journal_size": 10_000, "max_memory_size": 10_000, "max_journal_size": 40_000}


def put_until_full(client, start: int = 0) -> list[bytes]:
    """Store items until one is refused; those that were acknowledged."""
    stored = []
    for number in range(start, start + 5000):
        item = b"%05d" % number + b"x" * 500
        client.send(b"set jobs 0 0 %d\r\n%b\r\n" % (len(item), item))
        answer = client.line()
        if answer != b"STORED\r\n":
            assert answer == b"SERVER_ERROR\r\n"
            assert client.read_all() == b""
            return stored
        stored.append(item)
    raise AssertionError("the disk is never full")


def take_what_comes(broker, most: int) -> list[bytes]:
    """Take up to so many items, as far as the disk lets us."""
    taken = []
    with broker.connect() as client, contextlib.suppress(AssertionError, ConnectionError):
        while len(taken) < most and (item := client.get("jobs")) is not None:
            taken.append(item)
    return taken


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_full_disk_in_read_behind_loses_nothing_and_doubles_nothing(small_disk, tmp_path, end):
    """Most of the queue is in archives only; rotation, packing and reading back all meet the full disk."""
    ballast = small_disk / "sub" / "ballast"
    ballast.parent.mkdir()
    ballast.write_bytes(b"x" * 100_000)
    with BrokerProcess(tmp_path, queue_path=small_disk, admin_port=None, default=READ_BEHIND) as broker:
        with broker.connect() as client:
            stored = put_until_full(client)
        assert len(stored) > 100
        assert broker.stats("jobs")["mem_items"] < broker.stats("jobs")["items"] == len(stored)
        taken = take_what_comes(broker, 50)
        with broker.connect() as client:
            stored += put_until_full(client, start=5000)
        # Ended and started again while it is full: what it has said still holds.
        getattr(broker, end)()
        broker.start()
        taken += take_what_comes(broker, 20)
        ballast.unlink()
        with broker.connect() as client:
            client.set("jobs", b"room again")
            taken += [client.get("jobs") for _ in range(40)]
        broker.kill()
        broker.start()
        assert taken + broker.drain("jobs") == [*stored, b"room again"]
        assert "Traceback" not in broker.log
        assert broker.terminate() == 0


def test_a_disk_that_is_full_again_and_again_under_traffic_loses_nothing(small_disk, tmp_path):
    ballast = small_disk / "sub" / "ballast"
    ballast.parent.mkdir()
    ledger = Ledger()
    settings = {**READ_BEHIND, "max_size": 100_000}
    with BrokerProcess(tmp_path, queue_path=small_disk, admin_port=None, default=settings) as broker:
        for _ in range(4):
            enough = len(ledger.stored) + 100
            with running(ledger, broker, producers=2, consumers=1):
                wait_until(
                    lambda enough=enough: len(ledger.stored) >= enough or all_cut_off(ledger, broker),
                    "traffic",
                )
                errors = broker.log.count("No space left on device")
                with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
                wait_until(
                    lambda errors=errors: broker.log.count("No space left on device") > errors,
                    "the broker to meet the full disk",
                )
            ballast.unlink()
        broker.kill()
        broker.start()
        ledger.check(broker.drain("jobs"), order=False)
        assert "Traceback" not in broker.log
        assert broker.terminate() == 0


def all_cut_off(ledger, broker) -> bool:
    return b"STAT curr_connections 1\r\n" in broker.raw(b"stats\r\n")


def test_a_start_on_a_full_disk_serves_what_is_there(small_disk, tmp_path):
    with BrokerProcess(tmp_path, queue_path=small_disk, admin_port=None, default=READ_BEHIND) as broker:
        with broker.connect() as client:
            stored = put_until_full(client)
            broker.kill()
        broker.start()
        assert broker.stats("jobs")["items"] == len(stored)
        assert broker.raw(b"get jobs/peek\r\n").startswith(b"VALUE jobs 0 505\r\n00000")
        assert broker.raw(b"delete jobs\r\n") == b"DELETED\r\n"
        with broker.connect() as client:
            client.set("jobs", b"room again")
        broker.restart()
        assert broker.drain("jobs") == [b"room again"]
        broker.terminate()
