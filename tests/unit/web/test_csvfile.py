"""Tables as CSV: what any reader gets back, and what no spreadsheet computes."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web.tables import csvfile


def read(pieces):
    return list(csv.reader(io.StringIO(b"".join(pieces).decode("utf-8"), newline="")))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", '=HYPERLINK("x")']
)
def test_a_text_that_would_be_computed_is_none_any_more(text):
    assert csvfile.cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["mail", "a-b", "a=b", "1.5", "", "'quoted'", "größe"])
def test_other_texts_stay_as_they_are(text):
    assert csvfile.cell(text) == text


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (float("nan"), ""),
        (float("inf"), ""),
        (-3, "-3"),
        (2**70, str(2**70)),
        (0.5, "0.5"),
        (1e-9, "0"),
        (1e22, "10000000000000000000000"),
        (True, "yes"),
        (False, "no"),
        ("a\0b", "a\\0b"),
    ],
)
def test_values(value, cell):
    assert csvfile.cell(value) == cell


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=2, max_size=4)))
def test_every_text_comes_back(rows):
    back = read(csvfile.lines(["a", "b"], rows))
    defused = [[csvfile.defuse(cell) for cell in row] for row in rows]
    readable = [[cell.encode("utf-8", "backslashreplace").decode() for cell in row] for row in defused]
    assert back == [["a", "b"], *readable]


def test_lines_end_as_the_standard_says():
    assert b"".join(csvfile.lines(["a", "b"], [["x,y", 'say "hi"']])) == b'a,b\r\n"x,y","say ""hi"""\r\n'


def test_rows_are_read_as_they_are_sent():
    taken = []

    def rows():
        for number in range(10_000):
            taken.append(number)
            yield [number, "x" * 100]

    pieces = csvfile.lines(["n", "x"], rows())
    assert len(next(pieces)) < 100_000
    assert len(taken) < 1000


@pytest.mark.parametrize(
    ("at", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1700000000.9, "2023-11-14T22:13:20Z"), (None, None), (1e300, None)],
)
def test_moments(at, text):
    assert csvfile.moment(at) == text
