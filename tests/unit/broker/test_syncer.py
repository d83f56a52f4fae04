"""Syncing some time after the first unsynced record, in a thread."""

import asyncio
import errno
import os

import pytest

from kestrel_stack.broker import server as server_module
from kestrel_stack.broker.backlog import Backlog
from kestrel_stack.broker.journal import Journal
from kestrel_stack.broker.replay import Replayed
from kestrel_stack.broker.server import Syncer


@pytest.fixture
def synced(monkeypatch):
    """The inodes that were synced by the syncer, in order."""
    inodes = []
    monkeypatch.setattr(server_module.os, "fdatasync", lambda fd: inodes.append(os.fstat(fd).st_ino))
    return inodes


def opened(path, syncer) -> Journal:
    journal = Journal(path, on_unsynced=syncer.note)
    journal.recover(Replayed(Backlog(1000)))
    return journal


async def finished(syncer: Syncer) -> None:
    while syncer._task is not None:
        await asyncio.sleep(0.001)


def test_every_journal_with_new_records_is_synced_once_and_again_after_the_next(tmp_path, synced):
    async def scenario():
        syncer = Syncer(1)
        journals = [opened(tmp_path / name, syncer) for name in ("a", "b", "idle")]
        inodes = [journal.path.stat().st_ino for journal in journals]
        for journal in journals[:2]:
            journal.append(b"\x01")
            journal.append(b"\x01")
        await finished(syncer)
        assert sorted(synced) == sorted(inodes[:2])
        journals[1].append(b"\x01")
        await finished(syncer)
        assert synced[2:] == [inodes[1]]
        for journal in journals:
            journal.close()

    asyncio.run(scenario())


def test_a_sync_that_fails_is_logged_and_the_next_one_is_tried(tmp_path, monkeypatch, caplog):
    tried = []

    def fail(fd):
        tried.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(server_module.os, "fdatasync", fail)

    async def scenario():
        syncer = Syncer(1)
        journal = opened(tmp_path / "a", syncer)
        for count in (1, 2):
            journal.append(b"\x01")
            await finished(syncer)
            assert len(tried) == count
        assert f"{journal.path}: cannot sync: Input/output error" in caplog.text
        journal.close()

    asyncio.run(scenario())


def test_a_journal_closed_before_its_sync_is_left_alone(tmp_path, synced):
    async def scenario():
        syncer = Syncer(1)
        journal = opened(tmp_path / "a", syncer)
        journal.append(b"\x01")
        journal.close()
        synced.clear()  # close syncs by itself
        await finished(syncer)
        assert synced == []

    asyncio.run(scenario())


def test_without_a_free_descriptor_it_is_tried_again(tmp_path, synced, monkeypatch, caplog):
    full = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    duplicate = Journal.duplicate_for_sync

    def once(journal):
        if full:
            raise full.pop()
        return duplicate(journal)

    monkeypatch.setattr(Journal, "duplicate_for_sync", once)

    async def scenario():
        syncer = Syncer(1)
        journal = opened(tmp_path / "a", syncer)
        journal.append(b"\x01")
        await asyncio.wait_for(finished(syncer), 60)
        assert synced == [journal.path.stat().st_ino]
        assert f"{journal.path}: cannot sync: Too many open files" in caplog.text
        journal.close()

    asyncio.run(scenario())
