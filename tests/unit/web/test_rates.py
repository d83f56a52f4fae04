"""Rates and ages, from counters that restart, are deleted, flushed, or come from another clock."""

import pytest

from kestrel_stack.web.polling.ages import NEVER_MS, Ages
from kestrel_stack.web.polling.rates import Rate, Rates


def queue(total=0, items=0, open=0, expired=0, discarded=0, flushes=0, taken=0, created=1000):
    return {
        "total_items": total,
        "items": items,
        "open_transactions": open,
        "expired_items": expired,
        "discarded": discarded,
        "total_flushes": flushes,
        "transactions": taken,
        "create_time": created,
    }


def after(*moments, window=10.0):
    """The rate of queue `a` after so many looks, each of a moment and the queue (None: not there)."""
    rates = Rates(window)
    found = None
    for at, numbers in moments:
        found = rates.update(at, {} if numbers is None else {"a": numbers}).get("a")
    return found


def test_one_look_gives_no_rate():
    assert after((0, queue(total=500))) is None


def test_a_rate_is_what_came_and_went_per_second():
    assert after((0, queue(100, 100)), (2, queue(150, 110))) == Rate(25, 20)


def test_a_reserved_item_has_not_left():
    assert after((0, queue(10, 10)), (2, queue(10, 6, open=4))) == Rate(0, 0)


def test_an_item_that_was_given_back_and_taken_again_counts_once():
    assert after((0, queue(10, 10)), (1, queue(10, 10, taken=50)), (2, queue(10, 9, taken=51))).out == 0.5


def test_what_expired_or_was_discarded_did_not_go_out():
    assert after((0, queue(10, 10)), (2, queue(10, 0, expired=6, discarded=4))).out == 0


def test_a_rate_is_a_mean_over_the_window_and_no_longer():
    slow = [(float(at), queue(at)) for at in range(20)]
    assert after(*slow, (20.0, queue(19))).in_ == pytest.approx(0.9)
    fast = [(float(at), queue(1000 if at else 0)) for at in range(13)]
    assert after(*fast).in_ == 0, "the burst is longer ago than the window"


def test_looks_in_quick_succession_do_not_shorten_the_window():
    looks = [(at / 100, queue(at)) for at in range(2000)]
    assert after(*looks) == Rate(pytest.approx(100), pytest.approx(100))
    rates = Rates()
    for at, numbers in looks:
        rates.update(at, {"a": numbers})
    assert len(rates._seen) < 30


def test_a_queue_that_is_new_on_a_known_server_came_from_nothing():
    assert after((0, None), (2, queue(50, 40))) == Rate(25, 5)


def test_a_queue_that_was_deleted_and_made_anew_makes_no_spike():
    found = after((0, queue(10**9)), (2, queue(20, 20, created=2000)), (4, queue(40, 40, created=2000)))
    assert found == Rate(10, 0)


def test_by_the_memcache_port_a_new_queue_shows_by_its_smaller_counter():
    moments = [(0, queue(10**9, created=0)), (2, queue(20, 20, created=0))]
    assert after(*moments) == Rate(10, 0)


def test_a_flush_is_no_outflow():
    assert after((0, queue(1000, 1000)), (2, queue(1000, 0, flushes=1))) is None
    found = after((0, queue(1000, 1000)), (2, queue(1000, 0, flushes=1)), (4, queue(1008, 0, flushes=1)))
    assert found == Rate(4, 4)


def test_after_a_restart_of_the_server_nothing_is_compared():
    rates = Rates()
    rates.update(0, {"a": queue(10**9, 5)})
    rates.forget()
    assert rates.update(2, {"a": queue(10**9 + 1000, 5)}) == {}


def test_numbers_that_were_not_read_at_one_moment_make_no_negative_rate():
    assert after((0, queue(10, 5)), (2, queue(10, 7))) == Rate(0, 0)


def age(*moments):
    ages = Ages()
    found = None
    for at, items, said in moments:
        found = ages.update(at, {"a": {"items": items, "age_ms": said}})["a"]
    return found


def test_the_servers_age_is_taken_while_consumers_work():
    assert age((0, 5, 800), (2, 5, 900)) == 900


def test_an_item_that_came_after_a_pause_is_not_as_old_as_the_pause():
    assert age((0, 0, 0), (3600, 0, 0), (3602, 1, 3_600_000)) == 2000


def test_before_the_first_read_an_item_is_as_old_as_we_have_seen_it():
    assert age((0, 5, NEVER_MS * 3)) == 0
    assert age((0, 5, NEVER_MS * 3), (30, 5, NEVER_MS * 3)) == 30_000


def test_a_queue_seen_empty_bounds_the_age_while_nobody_reads():
    assert age((0, 0, 0), (10, 3, NEVER_MS * 3), (70, 3, NEVER_MS * 3)) == 70_000


def test_an_empty_queue_has_no_age():
    assert age((0, 0, 5000)) == 0


def test_an_item_that_is_reserved_may_come_back_as_old_as_it_was():
    ages = Ages()
    assert ages.update(0, {"a": {"items": 1, "age_ms": 5000}}) == {"a": 5000}
    ages.update(2, {"a": {"items": 0, "open_transactions": 1, "age_ms": 0}})
    assert ages.update(4, {"a": {"items": 1, "age_ms": 9000}}) == {"a": 9000}


def test_a_queue_that_went_away_is_forgotten():
    ages = Ages()
    ages.update(0, {"a": {"items": 0, "age_ms": 0}})
    ages.update(1, {})
    assert ages.update(50, {"a": {"items": 1, "age_ms": 20_000}}) == {"a": 20_000}
