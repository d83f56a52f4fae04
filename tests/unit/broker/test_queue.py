"""One queue, with a clock that the test turns."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.queue import Queue


class Clock:
    now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    made = []

    def make_queue(**limits) -> Queue:
        queue = Queue("q", QueueSettings(**limits), Journal(tmp_path / "q"), clock)
        queue.recover()
        made.append(queue)
        return queue

    yield make_queue
    for queue in made:
        queue.close()


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
    assert [item.expiry_ms - clock.now for item in queue._items] == [2000, 2000, 1000]


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


def test_a_queue_that_empties_has_a_small_journal_again(make):
    queue = make(default_journal_size=10_000)
    for number in range(1000):
        queue.add(b"%d" % number * 20)
        queue.remove()
    assert queue.journal.size < 11_000


def test_a_queue_that_never_empties_has_a_bounded_journal_too(make):
    queue = make(default_journal_size=10_000)
    queue.add(b"first")
    for number in range(5000):
        queue.add(b"%d" % number)
        assert queue.remove() is not None
        assert queue.journal.size < 11_000
    assert queue.items == 1
    queue.close()
    assert taken(make()) == [b"4999"]


def test_a_big_backlog_is_not_rewritten_for_nothing(make):
    queue = make(default_journal_size=1000)
    for number in range(500):
        queue.add(b"%d" % number)
    inode = queue.journal.path.stat().st_ino
    for _ in range(200):
        queue.remove()
    assert queue.journal.path.stat().st_ino == inode


class FullDiskJournal(Journal):
    """A journal whose next write takes a few bytes and fails, if told so."""

    room: int | None = None

    def _write_all(self, fd, records):
        if self.room is not None:
            os.write(fd, records[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Journal._write_all(fd, records)


class QueueAgainstModel(RuleBasedStateMachine):
    """Whatever happens, on a disk that may be full: memory is as the model says, and so is a restart."""

    @initialize(journal_size=st.sampled_from([30, 200, 1 << 20]), max_items=st.sampled_from([None, 4]))
    def start(self, journal_size, max_items):
        self.folder = tempfile.TemporaryDirectory()
        self.settings = QueueSettings(
            default_journal_size=journal_size, max_items=max_items, discard_old_when_full=bool(max_items)
        )
        self.max_items = max_items
        self.items, self.open, self.number = [], {}, 0
        self.load()

    def load(self):
        self.journal = FullDiskJournal(Path(self.folder.name) / "q")
        self.queue = Queue("q", self.settings, self.journal, Clock())
        self.queue.recover()

    def teardown(self):
        if hasattr(self, "folder"):
            self.queue.close()
            self.folder.cleanup()

    @rule(room=st.integers(0, 30))
    def disk_is_full(self, room):
        self.journal.room = room

    @rule()
    def disk_has_room(self):
        self.journal.room = None

    def attempt(self, change):
        """Return whether the change happened; it must if the disk has room."""
        try:
            change()
        except JournalError:
            assert self.journal.room is not None
            return False
        return True

    @rule(size=st.integers(0, 8))
    def add(self, size):
        self.number += 1
        data = b"%d" % self.number + b"x" * size
        if self.attempt(lambda: self.queue.add(data)):
            self.items = [*self.items, data][-self.max_items if self.max_items else 0 :]

    @rule()
    def remove(self):
        result = []
        if self.attempt(lambda: result.append(self.queue.remove())):
            assert (result[0] and result[0].data) == (self.items.pop(0) if self.items else None)

    @rule()
    def open_one(self):
        result = []
        if self.attempt(lambda: result.append(self.queue.open())) and result[0]:
            xid, item = result[0]
            assert item.data == self.items.pop(0)
            assert xid not in self.open
            self.open[xid] = item.data

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def confirm(self, data):
        xid = data.draw(st.sampled_from(sorted(self.open)))
        if self.attempt(lambda: self.queue.confirm(xid)):
            del self.open[xid]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def put_back(self, data):
        xids = data.draw(st.lists(st.sampled_from(sorted(self.open)), min_size=1, unique=True))
        self.queue.put_back(xids)
        for xid in xids:
            self.items.insert(0, self.open.pop(xid))

    @rule()
    def flush(self):
        if self.attempt(self.queue.flush):
            self.items = []

    @rule()
    def crash(self):
        """Nothing is synced or closed; what was only owed to the file comes back in another order."""
        owed = bool(self.journal._owed)
        os.close(self.journal._fd)
        self.load()
        expected = [self.open[xid] for xid in sorted(self.open)] + self.items
        found = [item.data for item in self.queue._items]
        if owed:
            assert sorted(found) == sorted(expected)
        else:
            assert found == expected
        self.items, self.open = found, {}

    @invariant()
    def memory_is_as_the_model(self):
        if hasattr(self, "queue"):
            assert [item.data for item in self.queue._items] == self.items
            assert {xid: item.data for xid, item in self.queue._open.items()} == self.open
            assert self.queue.bytes == sum(map(len, self.items))
            assert self.queue._open_bytes == sum(map(len, self.open.values()))
            assert self.journal.size <= self.journal.path.stat().st_size


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
