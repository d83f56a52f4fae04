"""Sorting the table of queues, and its columns."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web import keys
from kestrel_stack.web.model import QueueNumbers, QueueRow, View
from kestrel_stack.web.tables import columns


def row(name: str, **numbers) -> QueueRow:
    return QueueRow(keys.make(name.encode()), numbers=QueueNumbers(**numbers))


def order(rows: list[QueueRow], name: str, direction: str = "asc") -> list[str]:
    return [each.key for each in columns.arrange(View(queues=tuple(rows)), None, name, direction)]


ROWS = [row("b", bytes=9, rate_in=None), row("A", bytes=100, rate_in=2.0), row("c", bytes=9, rate_in=10.0)]


def test_sizes_are_sorted_by_size_and_not_by_their_digits():
    assert order(ROWS, "bytes") == ["b", "c", "A"]
    assert order(ROWS, "bytes", "desc") == ["A", "b", "c"]


def test_what_is_not_known_is_last_in_either_direction():
    assert order(ROWS, "in") == ["A", "c", "b"]
    assert order(ROWS, "in", "desc") == ["c", "A", "b"]


def test_names_are_sorted_without_regard_to_case():
    assert order(ROWS, "name") == ["A", "b", "c"]
    assert order(ROWS, "queue", "desc") == ["c", "b", "A"]


@pytest.mark.parametrize("name", columns.COLUMNS)
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_every_column_sorts(name, direction):
    assert sorted(order(ROWS, name, direction)) == ["A", "b", "c"]


@pytest.mark.parametrize(("name", "direction"), [("nothing", "asc"), ("items", "up"), ("__class__", "asc")])
def test_a_wrong_order_is_refused_in_one_line(name, direction):
    with pytest.raises(columns.SortError, match=r"^[^\n]+$"):
        order(ROWS, name, direction)


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.floats(0, 9)), max_size=12))
def test_rows_are_only_moved_and_equal_ones_keep_the_order_of_their_names(values):
    rows = [row(f"q{index:02}", items=items, rate_in=rate) for index, (items, rate) in enumerate(values)]
    for name in ("items", "in"):
        for direction in ("asc", "desc"):
            found = order(rows[::-1], name, direction)
            assert sorted(found) == [each.key for each in rows]
            value = {each.key: columns.COLUMNS[name].value(each) for each in rows}
            for one, next_ in itertools.pairwise(found):
                assert value[one] != value[next_] or one < next_


def test_the_name_is_shown_whatever_groups_are():
    assert [each.name for each in columns.shown(())] == ["name"]
    assert [each.name for each in columns.shown(["journal"])] == ["name", "rewrites", "rotations", "created"]
    assert {each.group for each in columns.COLUMNS.values()} == set(columns.GROUPS)
