"""A queue whose items are more than its memory may hold."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import JournalError
from kestrel_stack.broker.queue import Queue
from support import kestrel_reader

GOLDEN = Path(__file__).parents[2] / "contract" / "golden_journals"


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%06d" % number for number in range(start, start + count)]


def fill(queue: Queue, count: int, start: int = 0) -> list[bytes]:
    items = numbered(count, start)
    for item in items:
        assert queue.add(item)
    return items


def taken(queue: Queue, count: int | None = None) -> list[bytes]:
    found = []
    while (count is None or len(found) < count) and (item := queue.remove()):
        found.append(item.data)
    return found


def test_as_much_is_in_memory_as_in_kestrel(make):
    """Golden case 15: 20 items of 18 bytes, 100 bytes of memory, two taken."""
    state = json.loads((GOLDEN / "15-read-behind.json").read_text())["restart"]["queues"]["rb"]
    queue = make(max_memory_size=100)
    for number in range(20):
        queue.add(b"item-%02d..........." % number)
    assert (queue.mem_items, queue.mem_bytes, queue.in_read_behind) == (6, 108, True)
    queue.remove()
    xid, _ = queue.open()
    queue.open()
    queue.confirm(xid)
    queue.close()
    queue = make(max_memory_size=100)
    assert {"mem_items": queue.mem_items, "mem_bytes": queue.mem_bytes, "items": queue.items} == {
        key: state[key] for key in ("mem_items", "mem_bytes", "items")
    }


def test_items_pass_through_in_order_while_more_come_and_memory_stays_small(make):
    queue = make(max_memory_size=600, default_journal_size=5000)
    expected = fill(queue, 2000)
    assert (queue.items, queue.in_read_behind) == (2000, True)
    found, most = [], 0
    for start in range(2000, 6000, 4):
        expected += fill(queue, 4, start)
        found += taken(queue, 5)
        most = max(most, queue.mem_bytes)
    found += taken(queue)
    assert found == expected
    assert most < 650
    assert (queue.items, queue.bytes, queue.mem_bytes, queue.in_read_behind) == (0, 0, 0, False)


def test_a_start_does_not_load_what_memory_may_not_hold(make, tmp_path):
    queue = make(max_memory_size=50_000, default_journal_size=1 << 20)
    for _ in range(5000):
        queue.add(b"x" * 1000)
    queue.close()
    tracemalloc.start()
    queue = make(max_memory_size=50_000, default_journal_size=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (queue.items, queue.bytes, queue.mem_items) == (5000, 5_000_000, 50)
    assert peak < 1_500_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 5_000_000


def test_a_start_during_read_behind_goes_on_where_it_was(make):
    settings = {"max_memory_size": 300, "default_journal_size": 2000}
    queue = make(**settings)
    expected = fill(queue, 500)
    for start in range(500, 1500, 100):
        expected += fill(queue, 100, start)
        assert taken(queue, 90) == expected[:90]
        del expected[:90]
        held = [queue.open() for _ in range(3)]
        assert held[2][1].data == expected[2]
        queue.journal.close()  # the process dies; nothing else is written
        queue = make(**settings)
        assert queue.in_read_behind
    assert taken(queue) == expected


def test_reads_put_back_come_first_and_in_kestrels_order(make):
    queue = make(max_memory_size=60)
    expected = fill(queue, 100)
    xids = [queue.open()[0] for _ in range(30)]
    queue.put_back(xids[:20])
    queue.confirm(xids[20])
    assert taken(queue) == [*reversed(expected[:20]), *expected[30:]]
    queue.put_back(xids[21:])
    assert taken(queue) == list(reversed(expected[21:30]))


def test_flush_drops_what_is_only_in_the_journal_too_and_open_reads_return(make):
    settings = {"max_memory_size": 60}
    queue = make(**settings)
    fill(queue, 100)
    xid, item = queue.open()
    queue.flush()
    assert (queue.items, queue.bytes, queue.mem_items, queue.in_read_behind) == (0, 0, 0, False)
    queue.add(b"after")
    queue.put_back_one(xid)
    queue.close()
    assert taken(make(**settings)) == [item.data, b"after"]


def test_expired_items_are_dropped_from_the_journal_too_up_to_a_live_one(make, clock):
    queue = make(max_memory_size=60)
    for number in range(100):
        queue.add(b"%06d" % number, 1000 if number != 70 else None)
    clock.now += 1000
    assert queue.drop_expired(30) == 30
    assert (queue.drop_expired(), queue.expired, queue.items) == (40, 70, 30)
    assert taken(queue, 1) == [b"000070"]
    assert queue.peek() is None
    assert queue.items == 0


def test_max_age_holds_for_items_in_the_journal(make, clock):
    fill(make(max_memory_size=60), 100)
    queue = make(max_memory_size=60, max_age=2)
    clock.now += 2000
    assert queue.remove() is None
    assert (queue.expired, queue.items, queue.in_read_behind) == (100, 0, False)


def test_old_items_are_pushed_out_for_new_ones(make):
    queue = make(max_memory_size=60, max_items=50, discard_old_when_full=True)
    expected = fill(queue, 200)
    assert (queue.items, queue.discarded) == (50, 150)
    assert taken(queue) == expected[150:]


def test_a_deleted_queue_leaves_no_file_and_its_waiting_reads_are_answered(make, tmp_path):
    queue = make(max_memory_size=60, default_journal_size=500)
    fill(queue, 200)
    assert len(list(tmp_path.iterdir())) > 3
    queue.delete()
    assert (list(tmp_path.iterdir()), queue.items, queue.peek()) == ([], 0, None)


def test_empty_items_do_not_fill_memory_without_end(make):
    queue = make(max_memory_size=6400)
    for _ in range(1000):
        queue.add(b"")
    assert queue.mem_items < 150
    assert taken(queue) == [b""] * 1000


def test_an_item_larger_than_memory_passes_through(make):
    queue = make(max_memory_size=1000, default_journal_size=10_000)
    items = [b"small", b"x" * 300_000, b"after", b"y" * 300_000, b"end"]
    for item in items:
        queue.add(item)
    assert queue.in_read_behind
    assert taken(queue) == items


def test_items_in_old_formats_are_read_from_the_journal(make, tmp_path):
    record = b"\x00\x07\x00\x00\x00" + bytes(4) + b"%03d"
    (tmp_path / "q").write_bytes(b"".join(record % number for number in range(50)))
    queue = make(max_memory_size=30)
    assert (queue.in_read_behind, queue.items) == (True, 50)
    assert taken(queue) == [b"%03d" % number for number in range(50)]


def test_a_larger_limit_brings_more_into_memory_a_smaller_one_less(make):
    queue = make(max_memory_size=500)
    expected = [b"%0100d" % number for number in range(100)]
    for item in expected:
        queue.add(item)
    queue.settings = QueueSettings(max_memory_size=3000)
    found = taken(queue, 10)
    assert queue.mem_bytes == 3000
    queue.settings = QueueSettings(max_memory_size=500)
    found += taken(queue, 40)
    assert queue.mem_bytes == 500
    assert found + taken(queue) == expected


def taken_until_refused(queue: Queue, why: str) -> list[bytes]:
    found = []
    with pytest.raises(JournalError, match=why):
        while item := queue.remove():
            found.append(item.data)
    return found


def test_what_cannot_be_read_stays_and_is_told_and_comes_when_it_can(make, caplog):
    queue = make(max_memory_size=60)
    expected = fill(queue, 100)
    victim = queue.journal.archives[10].path
    whole = victim.read_bytes()
    os.truncate(victim, len(whole) - 8)
    found = taken_until_refused(queue, "has become shorter")
    assert 20 < len(found) < 40
    size = queue.journal.total_size()
    for change in (queue.remove, queue.open, queue.peek):
        with pytest.raises(JournalError, match="has become shorter"):
            change()
    assert queue.journal.total_size() == size
    assert queue.items == 100 - len(found)
    assert caplog.text.count("the items that are not in memory wait") == 1
    victim.write_bytes(whole)
    assert found + taken(queue) == expected


def test_a_file_that_holds_fewer_items_than_it_did_is_told_and_none_is_made_up(make):
    queue = make(max_memory_size=60)
    fill(queue, 50)
    last = queue.journal.archives[-1].path
    last.write_bytes(b"\x01" * last.stat().st_size)
    found = taken_until_refused(queue, "ends before the last item")
    assert len(found) < 50


def test_files_are_replaced_while_the_reader_is_in_them(make, tmp_path, deferred):
    """Reads opened and put back again and again leave nothing but records; the new file has all items."""
    queue = make(max_memory_size=600, default_journal_size=3000, max_journal_size=30_000)
    expected = fill(queue, 1000)
    found = []
    while not queue.journal.is_compacting:
        deferred.finish()  # syncs
        queue.put_back_one(queue.open()[0])
    compaction = deferred.pop()
    found += taken(queue, 37)  # the reader goes on in the old files meanwhile
    before = queue.journal.total_size()
    compaction[0]()
    found += taken(queue, 41)
    compaction[1]()
    found += taken(queue, 43)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".pack"]
    clean = deferred.pop()
    clean[0]()
    found += taken(queue, 47)
    clean[1]()
    assert not queue.journal.is_compacting
    assert queue.journal.total_size() < before * 2 // 3
    assert kestrel_reader.owed(tmp_path) == expected[len(found) :]
    assert found + taken(queue) == expected


@pytest.mark.parametrize("state", ["not begun", "written", "installed", "cleaned"])
@pytest.mark.parametrize("end", ["close", "delete"])
def test_a_queue_that_ends_while_its_files_are_replaced_leaves_what_it_should(
    make, tmp_path, deferred, state, end
):
    settings = {"max_memory_size": 600, "default_journal_size": 3000}
    queue = make(**settings)
    expected = fill(queue, 1000)
    while not queue.journal.is_compacting:
        deferred.finish()
        queue.put_back_one(queue.open()[0])
    work, done = deferred.pop()
    job = queue.journal._compaction
    if state == "not begun":
        job.cancelled = True  # the other thread comes to it at last, as it would
        work()
    else:
        work()
    if state in ("installed", "cleaned"):
        done()
        clean, _ = deferred.pop()
        clean()
    getattr(queue, end)()
    done()  # too late: nothing may come of it
    if end == "delete":
        assert list(tmp_path.iterdir()) == []
    else:
        assert taken(make(**settings)) == expected
