"""The process dies, or the system refuses, at every single step of keeping files small.

A step is one call that changes a file or the folder. What the files say is read by the independent reader.
"""

import contextlib
import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.queue import Queue
from support import kestrel_reader
from support.open_files import close_in

STEPS = ("open", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "ftruncate")
REAL = {name: getattr(os, name) for name in STEPS}


def siblings(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "q" and path.is_file()]


class Steps:
    """Calls ``before`` with the number of each step, and after the last of a change once more."""

    def __init__(self, monkeypatch, before):
        self.count = 0
        self.before = before
        for name in STEPS:
            monkeypatch.setattr(os, name, self._wrapped(name))

    def _wrapped(self, name):
        def call(*arguments, **options):
            if name == "open" and not arguments[1] & os.O_CREAT:
                return REAL[name](*arguments, **options)
            self.before(self.count)
            self.count += 1
            return REAL[name](*arguments, **options)

        return call


class Change:
    """A queue in a folder and what it must hold, changed by a script that a seed gives."""

    def __init__(self, folder: Path, seed: int, **settings):
        self.folder, self.random = folder, random.Random(seed)
        self.settings = QueueSettings(**settings)
        self.queue = self.load(folder)
        self.items: list[bytes] = []
        self.held: dict[int, bytes] = {}
        self.number = 0

    def load(self, folder: Path) -> Queue:
        queue = Queue("q", self.settings, Journal(folder / "q"), lambda: 1_800_000_000_000)
        queue.recover(siblings(folder))
        return queue

    def expected(self) -> list[bytes]:
        return [self.held[xid] for xid in sorted(self.held)] + self.items

    def next(self):
        """Make one change; whether it happens or not, the model follows."""
        kind = self.random.choice(("add", "add", "remove", "open", "confirm", "both", "put back", "churn"))
        if kind == "add":
            self.number += 1
            data = b"%04d" % self.number
            assert self.queue.add(data)
            self.items.append(data)
        elif kind == "remove":
            item = self.queue.remove()
            assert (item and item.data) == (self.items.pop(0) if self.items else None)
        elif kind == "open" and len(self.held) < 3:
            opened = self.queue.open()
            if opened:
                self.held[opened[0]] = self.items.pop(0)
                assert opened[1].data == self.held[opened[0]]
        elif kind == "confirm" and self.held:
            xid = self.random.choice(sorted(self.held))
            self.queue.confirm(xid)
            del self.held[xid]
        elif kind == "both" and self.held:
            xid = self.random.choice(sorted(self.held))
            opened = self.queue.confirm_and_open(xid)
            del self.held[xid]
            assert (opened and opened[1].data) == (self.items[0] if self.items else None)
            if opened:
                self.held[opened[0]] = self.items.pop(0)
        elif kind == "put back" and self.held:
            xid = self.random.choice(sorted(self.held))
            self.queue.put_back_one(xid)
            self.items.insert(0, self.held.pop(xid))
        elif kind == "churn" and self.items:
            for _ in range(30):  # much history, and nothing changes
                opened = self.queue.open()
                if opened is None:
                    break
                self.queue.put_back_one(opened[0])


SETTINGS = [
    {"default_journal_size": 60, "max_memory_size": 1 << 20},
    {"default_journal_size": 120, "max_memory_size": 20},
    {"default_journal_size": 400, "max_memory_size": 8, "max_journal_size": 500},
    {"default_journal_size": 90, "max_memory_size": 1 << 20, "sync": True},
]


def new_change(folder, seed, settings) -> Change:
    settings = dict(settings)
    sync = settings.pop("sync", False)
    change = Change(folder, seed, **settings)
    change.queue.journal.sync_each_write = sync
    return change


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_before_any_step_leaves_files_that_say_what_was_owed(tmp_path, monkeypatch, settings, seed):
    spool = tmp_path / "spool"
    spool.mkdir()
    change = new_change(spool, seed, settings)
    seen = []  # what the files said before each step of the change in hand
    loaded = 0

    def look(step):
        seen.append(kestrel_reader.owed(spool))

    with monkeypatch.context() as patch:
        steps = Steps(patch, look)
        for number in range(120):
            before = change.expected()
            seen.clear()
            change.next()
            seen.append(kestrel_reader.owed(spool))
            assert seen[-1] == change.expected()
            if number % 10 == 0:  # ours reads the same as the independent reader
                loaded += 1
                copy = tmp_path / f"copy{loaded}"
                shutil.copytree(spool, copy)
                again = change.load(copy)
                assert [item.data for item in iter(again.remove, None)] == seen[-1]
                again.close()
            if before == change.expected():
                assert all(state == before for state in seen)
            else:
                switch = seen.index(change.expected())
                assert seen[:switch] == [before] * switch
                assert seen[switch:] == [change.expected()] * (len(seen) - switch)
    assert steps.count > 200
    change.queue.close()


@pytest.mark.parametrize(
    "settings",
    [pytest.param(one, marks=pytest.mark.long if at == 1 else ()) for at, one in enumerate(SETTINGS)],
)
@pytest.mark.parametrize("error", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.long)])
def test_a_refusal_at_any_step_costs_at_most_the_change_in_hand(tmp_path, monkeypatch, settings, error):
    """A disk that is full, or fails, at each step in turn; then all goes on, and after a restart, too."""
    spool = tmp_path / "spool"
    refused = 0
    for failing in range(0, 260, 3):
        spool.mkdir()

        def refuse(step, failing=failing):
            if step in (failing, failing + 1 + failing % 3):
                raise OSError(error, os.strerror(error))

        change = new_change(spool, 5, settings)
        with monkeypatch.context() as patch:
            Steps(patch, refuse)
            for _ in range(60):
                try:
                    change.next()
                except JournalError:
                    refused += 1
        assert [item.data for item in iter(change.queue.remove, None)] == change.items
        change.queue.add(b"last")
        change.queue.close()
        expected = [change.held[xid] for xid in sorted(change.held)] + [b"last"]
        assert kestrel_reader.owed(spool) == expected
        again = change.load(spool)
        assert [item.data for item in iter(again.remove, None)] == expected
        again.close()
        assert not [path for path in spool.iterdir() if "~~" in path.name]
        shutil.rmtree(spool)
    assert refused > 10


def test_a_crash_of_the_crash_costs_nothing(tmp_path, monkeypatch):
    """A start that is killed at any of its own steps, again and again."""
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "q.100").write_bytes(b"\x02\x13\x00\x00\x00" + bytes(16) + b"old")
    (spool / "q.200").write_bytes(b"\x02\x13\x00\x00\x00" + bytes(16) + b"old")
    (spool / "q.200.pack").write_bytes(b"\x02\x12\x00\x00\x00" + bytes(16) + b"ok" + b"\x09\x01\x00\x00\x00")
    (spool / "q~~300").write_bytes(b"half")
    (spool / "q").write_bytes(b"\x02\x12\x00\x00\x00" + bytes(16) + b"on" + b"\x02\x30")
    expected = [b"ok", b"on"]
    assert kestrel_reader.owed(spool) == expected

    class KilledError(BaseException):
        pass

    for failing in range(20):
        copy = tmp_path / f"copy{failing}"
        shutil.copytree(spool, copy)

        def die(step, failing=failing):
            if step == failing:
                raise KilledError

        queue = Queue("q", QueueSettings(), Journal(copy / "q"), lambda: 0)
        with monkeypatch.context() as patch:
            Steps(patch, die)
            with contextlib.suppress(KilledError):
                queue.recover(siblings(copy))
        close_in(copy)
        assert kestrel_reader.owed(copy) == expected
        again = Queue("q", QueueSettings(), Journal(copy / "q"), lambda: 0)
        again.recover(siblings(copy))
        assert [item.data for item in iter(again.remove, None)] == expected
        again.close()
