"""A queue of its own, with a clock that the test turns."""

import pytest

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal
from kestrel_stack.broker.queue import Queue
from support.open_files import open_in


class Clock:
    now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    """Make a queue from the files in the folder; the name of a setting, or ``find`` or ``name``, with it."""
    made = []

    def make_queue(*, name="q", find=lambda name: None, **settings) -> Queue:
        queue = Queue(name, QueueSettings(**settings), Journal(tmp_path / name), clock, find)
        siblings = [path for path in tmp_path.iterdir() if path.name.startswith((f"{name}.", f"{name}~~"))]
        queue.recover(siblings)
        made.append(queue)
        return queue

    yield make_queue
    for queue in made:
        queue.close()


class Deferred(list):
    """Pairs of what another thread would do, and what the queue's own does after it."""

    def finish(self) -> None:
        while self:
            work, done = self.pop(0)
            work()
            done()


@pytest.fixture
def deferred(monkeypatch):
    """What another thread would do, to be done by the test; what is left is done at its end."""
    jobs = Deferred()
    monkeypatch.setattr(journal_module, "in_background", lambda *job: jobs.append(job))
    yield jobs
    jobs.finish()


@pytest.fixture(autouse=True)
def no_file_is_left_open(tmp_path):
    """A broker that forgets to close runs into its limit of open files one day."""
    yield
    assert open_in(tmp_path) == {}
