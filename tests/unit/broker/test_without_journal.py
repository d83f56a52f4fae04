"""keep_journal off: nothing is written, except what ends the items of a journal that was there."""

import pytest

from kestrel_stack.broker.queue import Queue
from support import kestrel_reader


def taken(queue: Queue, count: int | None = None) -> list[bytes]:
    found = []
    while (count is None or len(found) < count) and (item := queue.remove()):
        found.append(item.data)
    return found


@pytest.fixture
def files(tmp_path):
    return lambda: sorted(path.name for path in tmp_path.iterdir())


def test_nothing_is_written_whatever_is_done(make, clock, files):
    queue = make(keep_journal=False, max_memory_size=20, default_journal_size=20, max_items=50)
    for number in range(50):
        assert queue.add(b"%04d" % number, 1000 if number < 3 else None)
    assert not queue.add(b"full")
    xids = [queue.open()[0] for _ in range(5)]
    queue.confirm(xids[0])
    queue.put_back(xids[1:])
    clock.now += 1000
    assert len(taken(queue, 20)) == 20
    queue.flush()
    assert files() == []
    assert (queue.journal.size, queue.journal.total_size(), queue.in_read_behind) == (0, 0, False)
    queue.add(b"lost")
    queue.close()
    assert files() == []
    assert make(keep_journal=False).items == 0


def test_the_items_of_a_journal_that_is_there_are_served_and_then_its_files_go(make, files, tmp_path):
    """Kestrel would neither read nor remove them: they would be back when keep_journal is."""
    before = make(max_memory_size=20)
    for data in (b"old1", b"old2", b"old3", b"old4"):
        before.add(data)
    before.close()
    queue = make(keep_journal=False)
    queue.add(b"new1")
    first, item = queue.open()
    assert item.data == b"old1"
    assert taken(queue, 2) == [b"old2", b"old3"]
    assert kestrel_reader.owed(tmp_path) == [b"old1", b"old4"]
    queue.put_back_one(first)
    assert taken(queue, 2) == [b"old1", b"old4"]
    assert files() == []
    assert taken(queue) == [b"new1"]


def test_after_a_crash_the_old_items_that_are_still_owed_return_and_no_others(make, tmp_path):
    for data in (b"old1", b"old2", b"old3"):
        (before := make()).add(data)
        before.close()
    queue = make(keep_journal=False)
    queue.add(b"new1")
    queue.add(b"new2")
    assert taken(queue, 1) == [b"old1"]
    old, new = queue.open(), None
    assert taken(queue, 1) == [b"old3"]
    new = queue.open()
    assert (old[1].data, new[1].data) == (b"old2", b"new1")
    queue.put_back_one(new[0])
    again = make()  # as after a kill
    assert taken(again) == [b"old2"]


def test_a_confirmed_open_read_of_the_last_old_item_removes_the_files(make, files):
    before = make()
    before.add(b"old")
    before.close()
    queue = make(keep_journal=False)
    xid, _ = queue.open()
    assert files() == ["q"]
    queue.confirm(xid)
    assert files() == []
    assert queue.add(b"new")
    assert taken(queue) == [b"new"]


@pytest.mark.parametrize("way", ["flush", "expire"])
def test_old_and_new_items_can_go_together(make, clock, files, way):
    before = make()
    before.add(b"old", 1000)
    before.close()
    queue = make(keep_journal=False)
    queue.add(b"new", 1000)
    if way == "flush":
        queue.flush()
    else:
        clock.now += 1000
        assert queue.drop_expired() == 2
    assert (files(), queue.items) == ([], 0)


def test_a_new_item_that_pushes_old_ones_out_ends_their_records(make, tmp_path):
    before = make()
    for data in (b"old1", b"old2"):
        before.add(data)
    before.close()
    queue = make(keep_journal=False, max_items=2, discard_old_when_full=True)
    queue.add(b"new1")
    assert kestrel_reader.owed(tmp_path) == [b"old2"]
    queue.add(b"new2")
    assert taken(queue) == [b"new1", b"new2"]


def test_an_old_journal_larger_than_memory_is_journalled_until_memory_holds_the_rest(make, files):
    settings = {"max_memory_size": 100, "default_journal_size": 1 << 20}
    before = make(**settings)
    old = [b"old%03d" % number for number in range(200)]
    for data in old:
        before.add(data)
    before.close()
    queue = make(keep_journal=False, **settings)
    assert queue.in_read_behind
    new = [b"new%03d" % number for number in range(200)]
    found = []
    for data in new:
        queue.add(data)
        found += taken(queue, 1)
    found += taken(queue)
    assert found == old + new
    queue.add(b"end")
    assert taken(queue) == [b"end"]
    assert files() == []


def test_with_keep_journal_on_again_what_was_not_journalled_is_gone_and_nothing_else_is_back(make):
    off = make(keep_journal=False)
    off.add(b"lost")
    off.close()
    on = make()
    assert on.items == 0
    on.add(b"kept")
    on.close()
    assert taken(make()) == [b"kept"]
