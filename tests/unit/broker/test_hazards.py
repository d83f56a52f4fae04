"""The known hazards of Kestrel's way to keep journals small, on ours; see docs/decisions/010.

Others are elsewhere: the recorded losses in tests/contract/test_journal_hazards.py, a crash or a refusal at
every step in test_storage_faults.py, the clock and wrong files in test_journal.py.
"""

import errno
import os

import pytest

from kestrel_stack.broker import compaction as compaction_module
from kestrel_stack.broker.queue import Queue
from support import kestrel_reader


def taken(queue: Queue) -> list[bytes]:
    return [item.data for item in iter(queue.remove, None)]


@pytest.mark.parametrize("backlog", [1, pytest.param(5, marks=pytest.mark.long), 200])
@pytest.mark.parametrize("memory", [1 << 20, 500])
@pytest.mark.parametrize("way", ["get", "open", "expire", "push out"])
def test_a_queue_that_never_empties_does_not_keep_its_archives(make, clock, tmp_path, backlog, memory, way):
    """Kestrel removes an archive only as it packs, and stops packing for good in many ways."""
    limits = {"max_items": backlog, "discard_old_when_full": True} if way == "push out" else {}
    settings = {"max_memory_size": memory, "default_journal_size": 2000, **limits}
    queue = make(**settings)
    live = []
    most = 0
    for number in range(6000):
        data = b"%020d" % number
        queue.add(data, expires_in_ms=backlog * 1000 if way == "expire" else None)
        live.append(data)
        clock.now += 1000
        if len(live) > backlog:
            if way == "get":
                queue.remove()
            elif way == "open":
                queue.confirm(queue.open()[0])
            live.pop(0)
        if number % 10 == 0:
            queue.peek()
            most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    if way == "expire":
        queue.drop_expired()
        live = live[-queue.items :] if queue.items else []
    assert most < 5 * 2000 + 4 * 41 * backlog
    assert kestrel_reader.owed(tmp_path) == live
    queue.close()
    assert taken(make(**settings)) == live


def test_a_backlog_that_is_drained_gives_its_disk_back_as_it_goes(make, tmp_path):
    queue = make(max_memory_size=2000, default_journal_size=5000)
    for number in range(5000):
        queue.add(b"%0100d" % number)
    full = queue.journal.total_size()
    assert full > 600_000
    for _ in range(4000):
        queue.remove()
    assert queue.journal.total_size() < full * 0.45
    for _ in range(1000):
        queue.remove()
    assert queue.journal.total_size() < 10_000


def test_reads_opened_and_put_back_for_ever_do_not_fill_the_disk(make, tmp_path):
    queue = make(max_memory_size=2000, default_journal_size=2000, max_journal_size=30_000)
    expected = [b"%06d" % number for number in range(300)]
    for data in expected:
        queue.add(data)
    most = 0
    for number in range(30_000):
        queue.put_back_one(queue.open()[0])
        if number % 100 == 0:
            most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert most < 60_000
    assert taken(queue) == expected


@pytest.mark.parametrize("late", ["before the new items", "after the new items"])
def test_files_that_are_replaced_while_the_queue_empties_bring_nothing_back(make, tmp_path, deferred, late):
    """Kestrel's pack then puts what was taken meanwhile back as an archive."""
    settings = {"max_memory_size": 300, "default_journal_size": 300}
    queue = make(**settings)
    for number in range(100):
        queue.add(b"%06d" % number)
    while not queue.journal.is_compacting:
        assert queue.remove()
    for _ in iter(queue.remove, None):
        pass
    if late == "before the new items":
        deferred.finish()
    for number in range(30):
        queue.add(b"new%d" % number)
    deferred.finish()
    expected = [b"new%d" % number for number in range(30)]
    assert kestrel_reader.owed(tmp_path) == expected
    queue.close()
    assert taken(make(**settings)) == expected


@pytest.mark.parametrize("end", ["close", "delete"])
def test_an_error_while_files_are_replaced_is_told_tried_again_and_never_waited_for(
    make, clock, tmp_path, monkeypatch, caplog, end
):
    """In Kestrel delete and shutdown then wait for ever."""
    settings = {"max_memory_size": 300, "default_journal_size": 300}
    queue = make(**settings)
    number = 0

    def churn():
        nonlocal number
        for _ in range(300):
            number += 1
            queue.add(b"%06d" % number)
            if queue.items > 20:
                queue.remove()

    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(compaction_module, "write_all", broken)
        churn()
        churn()
        assert caplog.text.count("cannot replace old archives, they stay: [Errno 5]") == 1
        clock.now += 10_000
        churn()
        assert caplog.text.count("cannot replace old archives, they stay") == 2
        size = queue.journal.total_size()
        if end == "delete":
            queue.delete()
            assert list(tmp_path.iterdir()) == []
            return
    clock.now += 20_000
    churn()
    assert queue.journal.total_size() < size / 5
    expected = [b"%06d" % number for number in range(number - 19, number + 1)]
    queue.close()
    assert kestrel_reader.owed(tmp_path) == expected
    assert taken(make(**settings)) == expected


def test_a_full_disk_while_files_are_replaced_leaves_the_old_ones(make, clock, tmp_path, monkeypatch):
    queue = make(max_memory_size=300, default_journal_size=300)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compaction_module, "write_all", full)
    for number in range(500):
        queue.add(b"%06d" % number)
        if queue.items > 20:
            queue.remove()
    assert kestrel_reader.owed(tmp_path) == [b"%06d" % number for number in range(480, 500)]
    assert not [path for path in tmp_path.iterdir() if "~~" in path.name or path.suffix == ".pack"]


def test_before_old_files_go_all_later_ones_are_synced(make, monkeypatch, deferred):
    """Else a power cut could leave the items without data, but not the records that take them away."""
    queue = make(max_memory_size=300, default_journal_size=300)
    for number in range(100):
        queue.add(b"%0100d" % number)
    while not queue.journal.is_compacting:
        queue.remove()
    work, done = deferred.pop()  # the syncs of rotated files have not come to their turn
    later = [*queue.journal._compaction._later, queue.journal.current]
    inodes = {segment.path.stat().st_ino for segment in later}
    steps = []
    real = os.rename
    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(os, "rename", lambda *names: (steps.append("rename"), real(*names)))
    work()
    done()
    assert len(later) > 3
    assert set(steps[: steps.index("rename")]) == inodes
