"""Looking a little longer before sleeping."""

import os

import pytest

from kestrel_stack.queue.spinning import SPIN, Spinner


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return Clock()


def counted(spinner, clock, ready_at=float("inf")):
    """Return how often the spinner looks, and what it finds; time passes with each look."""
    seen = []

    def look():
        seen.append(clock.now)
        clock.now += SPIN / 10
        return clock.now >= ready_at

    found = spinner.look(look)
    return len(seen), found


def test_at_first_it_looks_once(clock):
    assert counted(Spinner(clock), clock) == (1, False)


def test_after_a_quick_answer_it_looks_until_the_next_is_there(clock):
    spinner = Spinner(clock)
    counted(spinner, clock)
    spinner.note()
    count, found = counted(spinner, clock, ready_at=clock.now + SPIN / 2)
    assert found
    assert 3 < count < 8


def test_an_answer_that_does_not_come_is_not_waited_for_for_long(clock):
    spinner = Spinner(clock)
    spinner.note()
    began = clock.now
    count, found = counted(spinner, clock)
    assert not found
    assert count > 5
    assert clock.now - began < 1.5 * SPIN


def test_after_a_slow_answer_it_looks_once_again(clock):
    spinner = Spinner(clock)
    spinner.note()
    counted(spinner, clock)
    clock.now += 1
    spinner.note()
    assert counted(spinner, clock) == (1, False)


def test_with_one_processor_it_never_spins(clock, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    spinner = Spinner(clock)
    spinner.note()
    assert counted(spinner, clock) == (1, False)
