"""The files of one queue."""

import errno
import logging
import os

import pytest

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.records import Item, addx, open_read, remove


def item(data: bytes) -> bytes:
    return addx(Item(1, 0, data))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "q")
    opened.recover(0)
    yield opened
    opened.close()


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


def test_a_sync_before_every_reply_syncs_in_append_and_a_failing_one_refuses(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module.os, "fdatasync", synced.append)
    journal = Journal(tmp_path / "q", sync_each_write=True)
    journal.recover(0)
    journal.append(item(b"1"))
    assert len(synced) == 1
    monkeypatch.setattr(journal_module.os, "fdatasync", failing)
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(item(b"2"))
    assert journal.path.read_bytes() == item(b"1")


def test_unsynced_is_told_once_until_the_sync(tmp_path):
    told = []
    journal = Journal(tmp_path / "q", on_unsynced=told.append)
    journal.recover(0)
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


def archived(tmp_path, *contents: bytes) -> list:
    paths = [tmp_path / f"q.{number}" for number in (99, 100, 1000)][: len(contents)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_archives_stay_while_there_is_something_to_keep_and_go_when_there_is_not(tmp_path):
    journal = Journal(tmp_path / "q")
    siblings = archived(tmp_path, item(b"1"), item(b"2"))
    assert [entry.data for entry in journal.recover(0, siblings).items] == [b"1", b"2"]
    journal.rewrite(item(b"1"))
    assert names(tmp_path) == ["q", "q.100", "q.99"]
    journal.append(remove(2))
    journal.rewrite(b"")
    assert names(tmp_path) == ["q"]
    assert journal.size == 0
    journal.close()


@pytest.mark.parametrize("deleted", [0, 1, 2, 3])
def test_a_crash_while_archives_go_brings_nothing_back(tmp_path, deleted):
    """The journal as a whole ends empty; so does what is left of it from any archive on."""
    siblings = archived(
        tmp_path, item(b"1") + item(b"2") + open_read(1), remove() + item(b"3"), item(b"4") + open_read(2)
    )
    (tmp_path / "q").write_bytes(remove() + b"\x06\x01\x00\x00\x00" + b"\x06\x02\x00\x00\x00" + remove())
    for path in siblings[:deleted]:
        path.unlink()
    state = Journal(tmp_path / "q").recover(0, siblings[deleted:])
    assert not state.items
    assert not state.open


def test_a_reused_xid_is_named_in_the_log(tmp_path, caplog):
    (tmp_path / "q").write_bytes(item(b"1") + open_read(4) + item(b"2") + open_read(4))
    with caplog.at_level(logging.WARNING):
        Journal(tmp_path / "q").recover(0)
    assert "xid 4 was opened twice" in caplog.text
