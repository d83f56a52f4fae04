"""A full disk: nothing is acknowledged that is not stored, and nothing stored is damaged.

``no_room`` limits the size of the files that the running broker may write, which needs no root: the write
that crosses the limit is cut short and the next one fails, as on a full disk. One test uses a real full disk.
"""

import contextlib
import os
import resource
import subprocess

import pytest

from support.broker import BrokerProcess

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


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


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
