"""Whatever is asked of a queue, on a disk that may be full: memory, files and a model say the same.

The files are read by ours and by an independent reader that follows Kestrel's rules.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker import records
from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.queue import Queue
from support import kestrel_reader
from support.open_files import close_in

REAL_WRITE = os.write


class Clock:
    now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


class QueueAgainstModel(RuleBasedStateMachine):
    """Items are (data, expiry); the model is two lists."""

    @initialize(
        memory=st.sampled_from([1, 20, 60, 1 << 20]),
        journal=st.sampled_from([1, 40, 200, 1 << 20]),
        total=st.sampled_from([100, 1000, 1 << 30]),
        max_items=st.sampled_from([None, None, 4]),
        max_size=st.sampled_from([None, None, 30]),
        max_age=st.sampled_from([None, None, 5]),
        threads=st.booleans(),
    )
    def start(self, memory, journal, total, max_items, max_size, max_age, threads):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.settings = QueueSettings(
            default_journal_size=journal,
            max_memory_size=memory,
            max_journal_size=total,
            max_items=max_items,
            max_size=max_size,
            max_age=max_age,
            discard_old_when_full=True,
        )
        self.clock = Clock()
        self.items, self.open, self.number = [], {}, 0
        self.room = None
        self.patches = [mock.patch.object(os, "write", self.write)]
        self.background = []
        if threads:  # what another thread would do is done when a rule says so
            later = mock.patch.object(
                journal_module, "in_background", lambda *job: self.background.append(job)
            )
            self.patches.append(later)
        for patch in self.patches:
            patch.start()
        self.load()

    def load(self):
        self.journal = Journal(self.path / "q")
        self.queue = Queue("q", self.settings, self.journal, self.clock)
        self.queue.recover([path for path in self.path.iterdir() if path.name != "q"])

    def write(self, fd, data):
        if self.room is None:
            return REAL_WRITE(fd, data)
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = REAL_WRITE(fd, bytes(data[: self.room]))
        self.room -= written
        return written

    def teardown(self):
        if hasattr(self, "folder"):
            self.room = None
            self.finish_background()
            self.queue.close()
            for patch in self.patches:
                patch.stop()
            self.folder.cleanup()

    def finish_background(self):
        while self.background:
            self.another_thread_works()

    @precondition(lambda self: self.background)
    @rule()
    def another_thread_works(self):
        work, done = self.background.pop(0)
        work()
        done()

    @precondition(lambda self: self.items)
    @rule(times=st.sampled_from([5, 50]))
    def reads_are_opened_and_put_back(self, times):
        """Much history, while nothing changes."""
        for _ in range(times):
            result = []
            if not self.attempt(lambda: result.append(self.queue.open())):  # noqa: B023
                self.sync_expired()
                return
            self.items = self.live()
            if result[0] is None:
                return
            self.queue.put_back_one(result[0][0])

    @rule(room=st.integers(0, 60))
    def disk_is_full(self, room):
        self.room = room

    @rule()
    def disk_has_room(self):
        self.room = None

    @rule(ms=st.sampled_from([1, 1000, 3000, -2000]))
    def time_passes(self, ms):
        self.clock.now += ms

    @rule(memory=st.sampled_from([1, 50, 1000]), journal=st.sampled_from([1, 100, 1000]))
    def other_settings(self, memory, journal):
        self.queue.settings = QueueSettings(
            default_journal_size=journal,
            max_memory_size=memory,
            max_journal_size=500,
            max_items=self.settings.max_items,
            max_size=self.settings.max_size,
            max_age=self.settings.max_age,
            discard_old_when_full=True,
        )

    def attempt(self, change):
        """Return whether the change happened; it must if the disk has room."""
        try:
            change()
        except JournalError:
            assert self.room is not None
            return False
        return True

    def live(self):
        """The model's items once those expired at the head are dropped, as the next look does."""
        items = list(self.items)
        while items and items[0][1] and items[0][1] <= self.clock.now:
            items.pop(0)
        return items

    @rule(size=st.integers(0, 12), seconds=st.sampled_from([None, None, 1, 10]))
    def add(self, size, seconds):
        self.number += 1
        data = b"%d" % self.number + b"x" * size
        expiry = self.clock.now + seconds * 1000 if seconds else 0
        if self.settings.max_age:
            expiry = min(expiry or 1 << 62, self.clock.now + 5000)
        if self.attempt(lambda: self.queue.add(data, expiry_ms=(seconds and expiry) or 0)):
            items = self.live()
            limit, size_limit = self.settings.max_items, self.settings.max_size
            while items and (
                (limit and len(items) >= limit)
                or (size_limit and sum(len(item) for item, _ in items) >= size_limit)
            ):
                items.pop(0)
            self.items = [*items, (data, expiry)]
        else:
            self.sync_expired()

    def sync_expired(self):
        """After a refused change, expired heads may be gone or not."""
        if self.queue.items == len(self.live()):
            self.items = self.live()
        # More than the expired may have left only on the way of a change of limits, which is not done here.
        assert self.queue.items in (len(self.items), len(self.live())) or self.room is not None
        while len(self.items) > self.queue.items:
            self.items.pop(0)

    @rule()
    def remove(self):
        result = []
        if self.attempt(lambda: result.append(self.queue.remove())):
            self.items = self.live()
            assert (result[0] and result[0].data) == (self.items.pop(0)[0] if self.items else None)
        else:
            self.sync_expired()

    @rule()
    def open_one(self):
        result = []
        if not self.attempt(lambda: result.append(self.queue.open())):
            self.sync_expired()
            return
        self.items = self.live()
        if result[0] is None:
            assert not self.items
            return
        xid, item = result[0]
        expected = self.items.pop(0)
        assert (item.data, item.expiry_ms) == expected
        assert xid not in self.open
        self.open[xid] = expected

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

    @rule(most=st.sampled_from([None, 1, 3]))
    def sweep(self, most):
        before = len(self.items)
        if self.attempt(lambda: self.queue.drop_expired(most)):
            live = self.live()
            gone = min(before - len(live), before if most is None else most)
            self.items = self.items[gone:]
        else:
            self.sync_expired()

    @rule()
    def peek(self):
        result = []
        if self.attempt(lambda: result.append(self.queue.peek())):
            self.items = self.live()
            assert (result[0] and result[0].data) == (self.items[0][0] if self.items else None)
        else:
            self.sync_expired()

    @rule()
    def crash(self):
        """Nothing is synced or closed; what was only owed to the file comes back in another order."""
        owed = bool(self.journal._owed)
        expected = [self.open[xid][0] for xid in sorted(self.open)] + [data for data, _ in self.items]
        times = dict([*self.open.values(), *self.items])
        close_in(self.path)
        self.room = None
        self.background = []
        self.load()
        found = [record[records.ADDX_OVERHEAD :] for record in all_records(self.queue)]
        assert (sorted(found), owed) == (sorted(expected), owed)
        if not owed:
            assert found == expected
        self.items, self.open = [(data, times[data]) for data in found], {}

    @invariant()
    def memory_is_as_the_model(self):
        if hasattr(self, "queue"):
            backlog = self.queue._backlog
            assert self.queue.items == len(self.items)
            assert self.queue.bytes == sum(len(data) for data, _ in self.items)
            in_memory = [record[records.ADDX_OVERHEAD :] for record in backlog.in_memory()]
            assert in_memory == [data for data, _ in self.items][: len(in_memory)]
            assert self.queue.mem_bytes == sum(map(len, in_memory))
            assert self.queue.in_read_behind or len(in_memory) == len(self.items)
            assert not self.items or in_memory
            assert set(self.queue._open) == set(self.open)
            assert self.queue._open_bytes == sum(len(data) for data, _ in self.open.values())

    @invariant()
    def kestrel_would_read_the_same(self):
        if hasattr(self, "queue") and not self.journal._owed and not self.journal._torn:
            expected = [self.open[xid][0] for xid in sorted(self.open)] + [data for data, _ in self.items]
            assert kestrel_reader.owed(self.path) == expected

    @invariant()
    def sizes_are_those_of_the_files(self):
        if hasattr(self, "queue") and not self.journal._torn and not self.background:
            files = [path for path in self.path.iterdir() if "~~" not in path.name]
            assert self.journal.total_size() == sum(path.stat().st_size for path in files)


def all_records(queue: Queue) -> list[bytes]:
    """Every queued record in order, read from a copy of the files where they are not in memory."""
    found = list(queue._backlog.in_memory())
    if queue._backlog.reader is not None:
        with tempfile.TemporaryDirectory() as folder:
            for path in queue.journal.path.parent.iterdir():
                shutil.copy(path, folder)
            whole = QueueSettings()
            copy = Queue("q", whole, Journal(Path(folder) / "q"), queue._clock)
            copy.recover([path for path in Path(folder).iterdir() if path.name != "q"])
            found = list(copy._backlog.in_memory())
            copy.close()
    return found


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
