"""One queue, with a clock that the test turns."""

import errno
import os

import pytest

from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import JournalError
from kestrel_stack.broker.queue import Queue
from kestrel_stack.broker.records import addx


def taken(queue: Queue) -> list[bytes]:
    return [item.data for item in iter(queue.remove, None)]


class Reader:
    """A waiting read that takes one item when woken."""

    def __init__(self, queue: Queue, *, alive: bool = True, peeks: bool = False):
        self.queue, self.is_alive, self.peeks = queue, alive, peeks
        self.got = []
        queue.wait(self)

    def alive(self) -> bool:
        return self.is_alive

    def wake(self) -> None:
        item = self.queue.peek() if self.peeks else self.queue.remove()
        self.got.append(item and item.data)


def test_an_expired_item_at_the_head_is_dropped_one_behind_a_live_item_stays(make, clock):
    queue = make()
    for data, seconds in ((b"a", 1), (b"b", 1), (b"live", None), (b"c", 1)):
        queue.add(data, seconds and seconds * 1000)
    clock.now += 1000
    assert queue.drop_expired() == 2
    assert (queue.items, queue.expired) == (2, 2)
    assert taken(queue) == [b"live"]
    assert queue.expired == 3


def test_an_item_does_not_expire_before_its_time(make, clock):
    queue = make()
    queue.add(b"a", 1000)
    clock.now += 999
    assert queue.peek().data == b"a"
    clock.now += 1
    assert queue.peek() is None


def test_max_age_caps_what_the_client_asks_for(make, clock):
    queue = make(max_age=2)
    queue.add(b"never", 0 or None)
    queue.add(b"long", 60_000)
    queue.add(b"short", 1000)
    assert [item.expiry_ms - clock.now for item in iter(queue.remove, None)] == [2000, 2000, 1000]


def test_a_shorter_max_age_holds_for_items_that_are_already_there(make, clock):
    make().add(b"old")
    queue = make(max_age=1.5)
    clock.now += 1500
    assert queue.remove() is None


def test_expired_items_are_gone_after_a_restart_too(make, clock):
    queue = make()
    queue.add(b"a", 1000)
    queue.add(b"b")
    clock.now += 1000
    queue.drop_expired()
    clock.now -= 1000
    queue.close()
    assert taken(make()) == [b"b"]


def test_discarding_several_old_items_for_a_new_one_is_the_same_after_a_restart(make):
    queue = make(max_size=6, discard_old_when_full=True)
    for data in (b"11", b"22", b"33", b"4444", b"5"):
        assert queue.add(data)
    assert queue.discarded == 3
    queue.close()
    assert taken(make()) == [b"4444", b"5"]


def test_waiting_reads_are_served_in_turn_and_one_item_wakes_one(make):
    queue = make()
    first, second = Reader(queue), Reader(queue)
    queue.add(b"1")
    assert (first.got, second.got, queue.waiters) == ([b"1"], [], 1)


def test_a_waiting_read_whose_client_is_gone_is_passed_over(make):
    queue = make()
    gone, here = Reader(queue, alive=False), Reader(queue)
    queue.add(b"1")
    assert (gone.got, here.got) == ([], [b"1"])


def test_a_waiting_peek_leaves_the_item_to_the_next(make):
    queue = make()
    looker, taker = Reader(queue, peeks=True), Reader(queue)
    queue.add(b"1")
    assert (looker.got, taker.got) == ([b"1"], [b"1"])
    assert queue.items == 0


def test_an_item_that_has_expired_before_it_came_wakes_nobody(make):
    queue = make()
    reader = Reader(queue)
    queue.add(b"late", -1000)
    assert (reader.got, queue.waiters) == ([], 1)


def test_deleting_answers_who_waits(make):
    queue = make()
    reader = Reader(queue)
    queue.delete()
    assert reader.got == [None]
    assert not queue.add(b"1")


def test_xids_go_round_and_skip_zero_and_those_still_open(make):
    queue = make()
    queue._last_xid = (1 << 31) - 2
    for number in range(3):
        queue.add(b"%d" % number)
    assert [queue.open()[0] for _ in range(3)] == [(1 << 31) - 1, -(1 << 31), -(1 << 31) + 1]
    queue._last_xid = -1
    queue._open[1] = queue._open[-(1 << 31)]
    queue.add(b"x")
    assert queue.open()[0] == 2
    queue._open.clear()


def test_a_deleted_queue_is_untouched_by_who_held_a_read_of_it_and_so_is_its_successor(make):
    """Both give out xid 1: Kestrel ends the new queue's read for a connection that held the old one's."""
    old = make()
    old.add(b"old")
    old_xid, _ = old.open()
    old.delete()
    new = make()
    new.add(b"new")
    new_xid, _ = new.open()
    assert old_xid == new_xid == 1
    old.confirm(old_xid)
    old.put_back([old_xid])
    assert not old.add(b"lost")
    assert (new.open_reads, new.items, new.journal.size) == (1, 0, len(addx(0, 0, b"new")) + 5)
    new.put_back_one(new_xid)
    new.close()
    assert taken(make()) == [b"new"]
    assert [path.name for path in new.journal.path.parent.iterdir()] == ["q"]


def test_settings_put_into_a_live_queue_hold_from_then_on(make, clock):
    queue = make()
    for number in range(6):
        queue.add(b"%d" % number)
    queue.settings = QueueSettings(max_items=2, max_item_size=3)
    assert not queue.add(b"full")
    assert not queue.add(b"no")
    queue.settings = QueueSettings(max_items=2, discard_old_when_full=True)
    assert queue.add(b"new")
    assert (queue.items, queue.discarded) == (2, 5)
    queue.settings = QueueSettings(max_age=1)
    clock.now += 1000
    assert queue.peek() is None


def test_lower_limits_push_out_more_than_memory_holds(make):
    queue = make(max_memory_size=30)
    for number in range(100):
        queue.add(b"%03d" % number)
    assert queue.mem_items < 20
    queue.settings = QueueSettings(max_memory_size=30, max_size=9, discard_old_when_full=True)
    assert queue.add(b"new")
    assert queue.discarded == 98
    assert taken(queue) == [b"098", b"099", b"new"]


def test_confirming_and_opening_at_once_is_what_both_are_one_after_the_other(make, tmp_path):
    journals = []
    for name, at_once in (("p", False), ("q", True)):
        queue = make(name=name)
        for data in (b"a", b"b", b"c"):
            queue.add(data)
        found, xid = [], queue.open()[0]
        while xid:
            if not at_once:
                queue.confirm(xid)
            opened = queue.confirm_and_open(xid) if at_once else queue.open()
            found.append((opened and opened[1].data, queue.items, queue.open_reads))
            xid = opened and opened[0]
        assert found == [(b"b", 1, 1), (b"c", 0, 1), (None, 0, 0)]
        journals.append((tmp_path / name).read_bytes())
    assert journals[0] == journals[1]


def test_what_cannot_be_written_is_neither_confirmed_nor_opened(make, monkeypatch):
    queue = make()
    queue.add(b"a")
    queue.add(b"b")
    xid, _ = queue.open()
    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        with pytest.raises(JournalError):
            queue.confirm_and_open(xid)
    assert (queue.items, queue.open_reads) == (1, 1)
    queue.close()
    # It was never confirmed, so it is back.
    assert taken(make()) == [b"a", b"b"]


def refuse(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
