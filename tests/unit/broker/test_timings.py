"""Distributions of measured times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.broker.timings import PERCENTILES, Histogram, Timings

VALUES = st.lists(st.integers(0, 2**40), max_size=1500)


def histogram(values) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


def test_without_a_value_there_is_no_percentile():
    assert Histogram().summary() == {"average": 0, "count": 0, "sum": 0}


@given(VALUES.filter(bool))
def test_sums_and_ends_are_exact_and_percentiles_within_five_percent(values):
    summary = histogram(values).summary()
    assert list(summary) == [
        *("average", "count", "maximum", "minimum"),
        *("p25", "p50", "p75", "p90", "p95", "p99", "p999", "p9999", "sum"),
    ]
    assert (summary["count"], summary["sum"]) == (len(values), sum(values))
    assert (summary["minimum"], summary["maximum"]) == (min(values), max(values))
    assert summary["average"] == sum(values) // len(values)
    ordered = sorted(values)
    for name, share in PERCENTILES:
        exact = next(value for n, value in enumerate(ordered, 1) if n >= share * len(ordered))
        assert abs(summary[name] - exact) <= exact * 0.05 + 1, name


@given(VALUES, VALUES)
def test_two_together_are_one_of_all_values(one, other):
    together = histogram(one)
    together.include(histogram(other))
    assert together.summary() == histogram(one + other).summary()


@given(VALUES, VALUES)
def test_what_came_since_has_the_count_and_the_sum_of_the_newer_values(old, new):
    growing = histogram(old)
    before = growing.copy()
    for value in new:
        growing.add(value)
    since = growing.since(before).summary()
    assert (since["count"], since["sum"]) == (len(new), sum(new))
    if new:
        assert since["minimum"] <= min(new) * 1.05 + 1
        assert since["maximum"] >= max(new) * 0.95 - 1
        assert min(new) * 0.95 - 1 <= since["p50"] <= max(new) * 1.05 + 1
    assert before.summary() == histogram(old).summary()


def test_a_queue_has_kestrels_five_metrics():
    timings = Timings()
    timings.set.add(7)
    assert {name: metric.summary()["count"] for name, metric in timings.by_metric().items()} == {
        "set_latency_usec": 1,
        "get_hit_latency_usec": 0,
        "get_miss_latency_usec": 0,
        "get_timeout_msec": 0,
        "delivery_latency_msec": 0,
    }


@pytest.mark.parametrize("value", [0, 1, 2**62])
def test_the_smallest_and_the_greatest_values_have_a_place(value):
    assert histogram([value]).summary()["p50"] == value
