"""A queue of its own, with a clock that the test turns."""

import pytest

from kestrel_stack.broker.config import QueueSettings
from kestrel_stack.broker.journal import Journal
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
