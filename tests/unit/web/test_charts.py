"""Charts and sparklines: right, whole, and nothing in them but numbers and escaped text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web.tables import charts, text

VALUES = st.lists(st.none() | st.floats(0, 1e15) | st.integers(0, 10**15), max_size=40)


def paths(svg: str) -> list[str]:
    return [each.get("d", "") for each in ElementTree.fromstring(svg).iter("path")]


def test_a_gap_in_the_points_is_a_gap_in_the_line():
    line = charts.Series("items", [(0, 1), (10, 2), (20, None), (30, 3), (40, 1)])
    (drawn,) = paths(charts.chart("Backlog", [line], 0, 40))
    assert drawn.count("M") == 2
    assert drawn.count("L") == 2


def test_a_point_between_two_gaps_can_be_seen():
    line = charts.Series("items", [(0, None), (10, 2), (20, None)])
    (drawn,) = paths(charts.chart("Backlog", [line], 0, 20))
    assert "h0.01" in drawn


def test_a_chart_says_in_words_what_it_shows():
    line = charts.Series("items", [(0, 100), (10, 2500), (20, 1200)])
    label = ElementTree.fromstring(charts.chart("Backlog", [line], 0, 20)).get("aria-label")
    assert label == "Backlog: items now 1,200, from 100 to 2,500"


def test_a_chart_of_nothing_says_so():
    svg = charts.chart("Backlog", [charts.Series("items", [])], 0, 60)
    assert "nothing recorded in this time" in svg
    assert "items not known" in svg


def test_a_limit_within_reach_is_drawn_and_one_far_above_is_not():
    line = charts.Series("items", [(0, 50), (10, 60)])
    assert 'class="limit"' in charts.chart("Backlog", [line], 0, 10, limit=100)
    assert 'class="limit"' not in charts.chart("Backlog", [line], 0, 10, limit=100_000)


@given(VALUES, st.sampled_from(["count", "rate", "seconds", "bytes"]), st.none() | st.floats(0, 1e12))
def test_whatever_was_recorded_the_chart_is_sound(values, kind, limit):
    line = charts.Series('<"&', [(index * 10, value) for index, value in enumerate(values)])
    svg = charts.chart("<b>", [line], 0, 400, kind=kind, limit=limit)
    ElementTree.fromstring(svg)
    assert not re.search(r"nan|inf|style=|<b>", svg)
    for number in re.findall(r"[ML](-?[0-9.]+) (-?[0-9.]+)", svg):
        assert 0 <= float(number[0]) <= charts.WIDTH
        assert 0 <= float(number[1]) <= charts.HEIGHT


@given(VALUES)
def test_whatever_was_recorded_the_sparkline_is_sound(values):
    svg = charts.spark(values, "<i>")
    ElementTree.fromstring(svg)
    assert "<i>" not in svg


@given(st.floats(0, 1e15), st.sampled_from(["count", "rate", "seconds", "bytes"]))
def test_an_axis_reaches_the_top_in_few_even_steps(top, kind):
    values = charts.ticks(top, kind)
    assert values[0] == 0
    assert values[-1] >= top * 0.999
    assert 2 <= len(values) <= 8


@given(st.floats(0, 4e9), st.floats(60, 40 * 86400))
def test_times_on_the_axis_lie_within_it(start, span):
    found = charts.time_ticks(start, start + span)
    assert all(start - 1 <= at <= start + span + 1 for at in found)
    assert len(found) <= 8


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (text.count(None), "–"),
        (text.count(0), "0"),
        (text.count(9999), "9,999"),
        (text.count(12345), "12.3 k"),
        (text.count(999_499), "999 k"),
        (text.count(999_999), "1 M"),
        (text.size((1 << 20) - 1), "1 MB"),
        (text.count(34_000_000), "34 M"),
        (text.size(34 << 20), "34 MB"),
        (text.size(1023), "1,023 B"),
        (text.rate(0.256), "0.26"),
        (text.rate(0.001), "<0.01"),
        (text.rate(1234.5), "1,234"),
        (text.duration(130), "2 m 10 s"),
        (text.duration(120), "2 m"),
        (text.duration(0.35), "350 ms"),
        (text.duration(90061), "1 d 1 h"),
        (text.duration(59.7), "1 m"),
        (text.milliseconds(1500), "2 s"),
        (text.ago(100, 140), "40 s ago"),
        (text.ago(200, 140), "just now"),
        (text.clock(1e300), "–"),
        (text.exact(1234567, "bytes"), "1,234,567 bytes"),
        (text.exact(None, "count"), "not known"),
    ],
)
def test_numbers_are_short_and_have_units(said, expected):
    assert said == expected


def test_a_pointer_reads_every_point_that_is_known():
    one = charts.Series("in per second", [(0, 1), (10, None), (20, 3)])
    two = charts.Series("out per second", [(0, 2), (10, 2.5), (20, None)], 2)
    read = ElementTree.fromstring(charts.chart("Rates", [one, two], 0, 20, kind="rate")).get("data-points")
    assert [point.split("|")[2] for point in read.split(";")] == ["in 1, out 2", "out 2.5", "in 3"]
