"""Bytes to requests."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.broker import protocol
from kestrel_stack.broker.protocol import GetOptions, HangUp, RequestParser, integer


def parse(*chunks: bytes, limit: int | None = None):
    parser = RequestParser(lambda name: limit)
    found = []
    for chunk in chunks:
        parser.feed(chunk)
        while (request := parser.next()) is not None:
            found.append(request)
    return found


STREAM = (
    b"SET q 0 0 5\r\nab\r\nc\r\nget q/open\n\r\n  x \r\nset q 0 0 0\r\n\r\n"
    b"stats  \r\nset \xe9 0 0 3 noreply\r\nxyzABgets q\r\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_requests_do_not_depend_on_how_the_bytes_arrive(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:stop] for start, stop in pairwise(edges)]
    assert parse(*chunks) == parse(STREAM)
    assert [(request.words, request.data) for request in parse(STREAM)] == [
        (["set", "q", "0", "0", "5"], b"ab\r\nc"),
        (["get", "q/open"], None),
        ([""], None),
        (["", "", "x"], None),
        (["set", "q", "0", "0", "0"], b""),
        (["stats"], None),
        (["set", "\xe9", "0", "0", "3", "noreply"], b"xyz"),
        (["gets", "q"], None),
    ]


@given(st.binary(max_size=300))
def test_no_bytes_make_anything_but_requests_or_a_hang_up(data):
    try:
        parse(data)
    except HangUp as refusal:
        assert refusal.reply == b""


def test_data_beyond_the_queues_limit_is_skipped_and_not_collected():
    parser = RequestParser(lambda name: 10 if name == "q" else None)
    parser.feed(b"set q 0 0 1000000\r\n")
    for _ in range(10):
        assert parser.next() is None
        parser.feed(b"x" * 100_000)
        assert parser.next() is None
        assert parser.buffered == 0
    parser.feed(b"\r\nversion\r\n")
    request = parser.next()
    assert request.too_large
    assert request.data is None
    assert parser.next().words == ["version"]


def test_a_line_without_end_is_given_up():
    with pytest.raises(HangUp):
        parse(b"x" * (protocol.MAX_LINE + 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.0",
        "0x1",
        "1e3",
        " 1",
        "+",
        "2147483648",
        "-2147483649",
        "\xb2",
        pytest.param("9" * 5000, id="long"),
    ],
)
def test_what_is_not_a_32_bit_integer_hangs_up_silently(text):
    with pytest.raises(HangUp) as refusal:
        integer(text)
    assert refusal.value.reply == b""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("-5", -5),
        ("+5", 5),
        ("007", 7),
        ("2147483647", 2147483647),
        pytest.param("0" * 5000 + "7", 7, id="zeros"),
    ],
)
def test_integers_are_read_as_java_reads_them(text, number):
    assert integer(text) == number


OPTIONS = st.lists(st.sampled_from(["open", "close", "abort", "peek", "t=5", "nonsense", ""]), max_size=6)


@given(OPTIONS)
def test_get_options_in_any_order_are_taken_or_refused_by_what_they_contain(options):
    given_set = set(options)
    ends_or_shows = given_set & {"peek", "abort"}
    contradict = (ends_or_shows and given_set & {"open", "close"}) or len(ends_or_shows) == 2
    text = "/".join(["q", *options])
    if contradict:
        with pytest.raises(HangUp) as refusal:
            GetOptions.parse(text)
        assert refusal.value.reply == b"CLIENT_ERROR\r\n"
    else:
        parsed = GetOptions.parse(text)
        assert parsed.key == "q"
        assert parsed.wait_ms == (5 if "t=5" in options else 0)
        for option in ("open", "close", "abort", "peek"):
            assert getattr(parsed, option) == (option in options)
