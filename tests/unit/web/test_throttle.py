"""Waits after failed attempts, by a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from kestrel_stack.web.access.throttle import FORGET_S, Limit, Throttle, network


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_some_attempts_are_free_then_waits_double_up_to_a_limit(clock):
    throttle = Throttle(Limit(free=3, longest_s=10), 10, clock)
    assert [throttle.begin("a") for _ in range(3)] == [0, 0, 0]
    waits = []
    for _ in range(6):
        waits.append(throttle.begin("a"))
        clock.now += waits[-1]
        assert throttle.begin("a") == 0
    assert waits == [1, 2, 4, 8, 10, 10]


def test_asking_while_waiting_makes_nothing_longer(clock):
    throttle = Throttle(Limit(free=1, longest_s=60), 10, clock)
    throttle.begin("a")
    assert [throttle.begin("a") for _ in range(100)] == [1] * 100
    clock.now += 1
    assert throttle.begin("a") == 0


def test_keys_are_apart(clock):
    throttle = Throttle(Limit(free=1, longest_s=60), 10, clock)
    throttle.begin("a")
    assert throttle.begin("a") > 0
    assert throttle.begin("b") == 0


def test_success_is_no_attempt(clock):
    throttle = Throttle(Limit(free=2, longest_s=60), 10, clock)
    for _ in range(50):
        assert throttle.begin("a") == 0
        throttle.take_back("a")
    throttle.take_back("never seen")


def test_quiet_forgives(clock):
    throttle = Throttle(Limit(free=2, longest_s=60), 10, clock)
    for _ in range(10):
        clock.now += throttle.begin("a")
    clock.now += FORGET_S + 1
    assert [throttle.begin("a"), throttle.begin("a")] == [0, 0]


def test_attempts_at_once_are_counted_before_any_of_them_ends(clock):
    throttle = Throttle(Limit(free=5, longest_s=60), 10, clock)
    together, results = threading.Barrier(20), []

    def attempt():
        together.wait()
        results.append(throttle.begin("a"))

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(0) == 5


def test_memory_is_bounded_and_the_oldest_goes(clock):
    throttle = Throttle(Limit(free=1, longest_s=60), 100, clock)
    for number in range(1000):
        throttle.begin(str(number))
    assert len(throttle) == 100
    assert throttle.begin("999") > 0
    assert throttle.begin("0") == 0


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_one_address_is_as_much_as_one_customer_gets(address, counts_as):
    assert network(address) == counts_as
