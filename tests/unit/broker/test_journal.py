"""The files of one queue."""

import errno
import logging
import os

import pytest

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker.backlog import Backlog
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.records import addx, confirm, item_of, open_read, remove
from kestrel_stack.broker.replay import Replayed
from support import kestrel_reader


def item(data: bytes) -> bytes:
    return addx(1, 0, data)


def recovered(journal: Journal, siblings=(), memory: int = 1 << 20) -> Replayed:
    state = Replayed(Backlog(memory))
    journal.recover(state, siblings)
    return state


def data_of(state: Replayed) -> list[bytes]:
    return [item_of(record).data for record in state.backlog.in_memory()]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def journal_of(tmp_path):
    """Make the journal of the test's queue, which need not be recovered; each is closed at the end."""
    made = []

    def make(**options) -> Journal:
        made.append(Journal(tmp_path / "q", **options))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


@pytest.fixture
def journal(journal_of):
    opened = journal_of()
    recovered(opened)
    return opened


class FailingWrite:
    """os.write that takes some bytes and then fails, once."""

    def __init__(self, monkeypatch, taken: int, times: int = 1):
        self.left, self.taken, self.times = taken, taken, times
        self._write = os.write
        monkeypatch.setattr(journal_module.os, "write", self)

    def __call__(self, fd, data):
        if self.times == 0:
            return self._write(fd, data)
        if self.left:
            count = self._write(fd, bytes(data[: self.left]))
            self.left -= count
            return count
        self.times -= 1
        self.left = self.taken
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_a_record_that_is_not_written_whole_is_taken_out_again(journal, monkeypatch, taken):
    journal.append(item(b"before"))
    FailingWrite(monkeypatch, taken)
    with pytest.raises(JournalError, match="No space left on device"):
        journal.append(item(b"lost"))
    assert journal.path.read_bytes() == item(b"before")
    journal.append(item(b"after"))
    assert journal.path.read_bytes() == item(b"before") + item(b"after")
    assert journal.size == len(item(b"before") + item(b"after"))


def test_a_torn_record_that_cannot_be_cut_off_stops_all_writing_until_it_can(journal, monkeypatch):
    journal.append(item(b"before"))
    with monkeypatch.context() as broken:
        FailingWrite(broken, 5)
        broken.setattr(journal_module.os, "ftruncate", failing)
        with pytest.raises(JournalError):
            journal.append(item(b"lost"))
        with pytest.raises(JournalError, match="cannot cut"):
            journal.append(item(b"lost too"))
    assert journal.path.read_bytes() == item(b"before") + item(b"lost")[:5]
    journal.append(item(b"after"))
    assert journal.path.read_bytes() == item(b"before") + item(b"after")


def failing(*arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_owed_record_goes_before_the_next_one(journal, monkeypatch):
    FailingWrite(monkeypatch, 0)
    journal.append_or_owe(b"\x01")
    assert journal.path.read_bytes() == b""
    journal.append(item(b"next"))
    assert journal.path.read_bytes() == b"\x01" + item(b"next")


def test_an_owed_record_is_written_at_close_if_nothing_comes_before(journal, monkeypatch):
    FailingWrite(monkeypatch, 0)
    journal.append_or_owe(b"\x01")
    journal.close()
    assert journal.path.read_bytes() == b"\x01"


def test_a_sync_before_every_reply_syncs_in_append_and_a_failing_one_refuses(journal_of, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module.os, "fdatasync", synced.append)
    journal = journal_of(sync_each_write=True)
    recovered(journal)
    journal.append(item(b"1"))
    assert len(synced) == 1
    monkeypatch.setattr(journal_module.os, "fdatasync", failing)
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(item(b"2"))
    assert journal.path.read_bytes() == item(b"1")


def test_unsynced_is_told_once_until_the_sync(tmp_path):
    told = []
    journal = Journal(tmp_path / "q", on_unsynced=told.append)
    recovered(journal)
    journal.append(item(b"1"))
    journal.append(item(b"2"))
    assert told == [journal]
    os.close(journal.duplicate_for_sync())
    journal.append(item(b"3"))
    assert told == [journal, journal]
    journal.close()
    assert journal.duplicate_for_sync() is None


def test_a_rewrite_replaces_the_file_and_what_comes_next_goes_into_the_new_one(journal, tmp_path):
    journal.append(item(b"old") + remove())
    journal.rewrite(item(b"kept") + open_read(3))
    journal.append(item(b"next"))
    assert journal.path.read_bytes() == item(b"kept") + open_read(3) + item(b"next")
    assert journal.size == journal.path.stat().st_size
    assert names(tmp_path) == ["q"]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_rewrite_that_fails_changes_nothing(journal, tmp_path, monkeypatch, step):
    journal.append(item(b"old"))
    with monkeypatch.context() as broken:
        if step == "write":
            FailingWrite(broken, 3)
        elif step == "fsync":
            broken.setattr(journal_module.os, "fsync", failing)
        else:
            broken.setattr(journal_module.Path, "replace", failing)
        with pytest.raises(JournalError, match="cannot rewrite"):
            journal.rewrite(item(b"kept"))
    assert names(tmp_path) == ["q"]
    journal.append(item(b"next"))
    assert journal.path.read_bytes() == item(b"old") + item(b"next")


def test_an_archive_gets_a_number_above_all_others_whatever_the_clock_says(tmp_path, monkeypatch):
    """A clock set back would have Kestrel replay a later archive before an older one, or delete it."""
    far = tmp_path / "q.99999999999999"
    far.write_bytes(item(b"1"))
    journal = Journal(tmp_path / "q")
    recovered(journal, [far])
    monkeypatch.setattr(journal_module.time, "time", lambda: 1.0)
    for data in (b"2", b"3"):
        journal.append(item(data))
        journal.rotate(None)
    assert names(tmp_path) == ["q", "q.100000000000000", "q.100000000000001", "q.99999999999999"]
    assert kestrel_reader.owed(tmp_path) == [b"1", b"2", b"3"]
    journal.close()
    again = Journal(tmp_path / "q")
    siblings = [path for path in tmp_path.iterdir() if path.name != "q"]
    assert data_of(recovered(again, siblings)) == [b"1", b"2", b"3"]
    again.close()


def test_a_rotation_syncs_the_old_file_and_the_folder(journal, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(journal_module.os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    journal.append(item(b"1"))
    old, folder = journal.path.stat().st_ino, journal.path.parent.stat().st_ino
    journal.rotate(None)
    assert synced == [old, folder]
    assert journal.archives[0].synced


@pytest.mark.parametrize("step", ["open", "rename", "second rename"])
def test_a_rotation_that_fails_changes_nothing(journal, tmp_path, monkeypatch, step):
    journal.append(item(b"old"))
    left = {"open": 0, "rename": 0, "second rename": 1}[step]
    name = "open" if step == "open" else "rename"
    real = getattr(os, name)

    def fail_once(*arguments):
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(journal_module.os, name, fail_once)
        with pytest.raises(JournalError, match="cannot begin a new file: No space left"):
            journal.rotate(None)
    assert names(tmp_path) == ["q"]
    journal.append(item(b"next"))
    assert kestrel_reader.owed(tmp_path) == [b"old", b"next"]


def test_an_owed_record_is_in_the_archive_before_the_new_file_begins(journal, tmp_path, monkeypatch):
    journal.append(item(b"1"))
    FailingWrite(monkeypatch, 0)
    journal.append_or_owe(remove())
    journal.rotate(None)
    assert journal.archives[0].path.read_bytes() == item(b"1") + remove()
    assert journal.path.read_bytes() == b""


def archived(tmp_path, *contents: bytes) -> list:
    paths = [tmp_path / f"q.{number}" for number in (99, 100, 1000)][: len(contents)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("deleted", [0, 1, 2, 3])
def test_a_crash_while_archives_go_brings_nothing_back(journal_of, tmp_path, deleted):
    """The journal as a whole ends empty; so does what is left of it from any archive on."""
    siblings = archived(
        tmp_path, item(b"1") + item(b"2") + open_read(1), remove() + item(b"3"), item(b"4") + open_read(2)
    )
    (tmp_path / "q").write_bytes(remove() + confirm(1) + confirm(2) + remove())
    for path in siblings[:deleted]:
        path.unlink()
    state = recovered(journal_of(), siblings[deleted:])
    assert not state.backlog.items
    assert not state.open


def test_a_reused_xid_is_named_in_the_log(journal_of, tmp_path, caplog):
    (tmp_path / "q").write_bytes(item(b"1") + open_read(4) + item(b"2") + open_read(4))
    with caplog.at_level(logging.WARNING):
        recovered(journal_of())
    assert "xid 4 was opened twice" in caplog.text


@pytest.mark.parametrize("memory", [1 << 20, 10])
@pytest.mark.parametrize("content", [item(b"x")[:9], b"\x02\xff\xff\xff\xff", b"\x63", bytes(20)])
def test_damage_is_told_with_file_and_offset_and_costs_only_what_is_behind_it(
    journal_of, tmp_path, caplog, content, memory
):
    good = b"".join(item(b"%03d" % number) for number in range(50))
    (archive,) = archived(tmp_path, good + content)
    (tmp_path / "q").write_bytes(good + content)
    with caplog.at_level(logging.WARNING):
        state = recovered(journal_of(), [archive], memory)
    assert f"{archive}: " in caplog.text
    assert f"{tmp_path / 'q'}: " in caplog.text
    assert f"at byte {len(good)}" in caplog.text
    assert f"cut back from {len(good + content)} to {len(good)} bytes" in caplog.text
    found = []
    while state.backlog.items:
        state.backlog.head()
        found.append(item_of(state.backlog.take()[1]).data)
    assert found == [b"%03d" % number for number in range(50)] * 2
    assert archive.read_bytes() == good + content
    assert (tmp_path / "q").read_bytes() == good


def test_a_rewrite_of_kestrel_that_was_cut_short_is_finished(journal_of, tmp_path, caplog):
    held = item(b"A") + open_read(5) + item(b"B") + open_read(4)
    (archive,) = archived(tmp_path, held)
    (tmp_path / "q").write_bytes(item(b"C") + open_read(5) + remove())
    with caplog.at_level(logging.WARNING):
        state = recovered(journal_of(), [archive])
    assert {xid: item_of(record).data for xid, (_, record) in state.open.items()} == {5: b"A", 4: b"B"}
    assert not state.backlog.items
    assert names(tmp_path) == ["q"]
    assert "an interrupted rewrite of q" in caplog.text


@pytest.mark.parametrize(
    ("archive", "current"),
    [
        (item(b"A") + open_read(5), confirm(5) + item(b"C") + open_read(5)),
        (item(b"A") + open_read(5), item(b"C") + open_read(6)),
        (item(b"A") + item(b"B") + open_read(5), item(b"C") + open_read(5)),
        (item(b"A") + open_read(5) + remove(), item(b"C") + open_read(5)),
    ],
)
def test_other_histories_are_not_taken_for_a_rewrite_that_was_cut_short(
    journal_of, tmp_path, archive, current
):
    siblings = archived(tmp_path, archive)
    (tmp_path / "q").write_bytes(current)
    recovered(journal_of(), siblings)
    assert names(tmp_path) == ["q", "q.99"]
