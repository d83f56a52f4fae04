"""Records to a file and back, a window at a time."""

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.broker import records
from kestrel_stack.broker.records import BrokenRecordError, Scanner, addx, item_of
from support import kestrel_reader

I64 = st.integers(-(1 << 63), (1 << 63) - 1)
ADDED = st.builds(addx, I64, I64, st.binary(max_size=40))
XID = st.integers(-(1 << 31), (1 << 31) - 1)
ENDED = st.one_of(
    st.builds(records.remove, st.integers(1, 5)),
    st.builds(records.open_read, XID),
    st.builds(records.unremove, XID),
    st.builds(records.confirm, XID),
    st.just(b"\x03"),
)
LEGACY = st.sampled_from(
    [
        b"\x00\x06\x00\x00\x00\x09\x00\x00\x00ab",
        b"\x07\x05\x00\x00\x00\x11\x00\x00\x00" + bytes(16) + b"c",
        b"\x08\x05\x00\x00\x00\x11\x00\x00\x00" + bytes(16) + b"d",
        b"\x04\x05\x00\x00\x00",
    ]
)


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    """So that every record comes to lie across two windows."""
    monkeypatch.setattr(records, "WINDOW", 30)


def scan(content: bytes, *, only_added: bool = False, start: int = 0):
    """The (opcode, xid, added record or None) of a file, and where and why it broke off."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        scanner = Scanner(file.fileno(), len(content), start, legacy_ms=7)
        found = []
        try:
            for opcode, xid in scanner.read(only_added=only_added):
                found.append((opcode, xid, scanner.record() if opcode in (0, 2, 7, 8) else None))
        except BrokenRecordError as broken:
            assert scanner.position <= broken.offset
            return found, broken
        assert scanner.position == len(content)
        return found, None


@given(st.lists(st.one_of(ADDED, ENDED, LEGACY), max_size=30))
def test_what_is_written_is_read_back_as_by_the_independent_reader(parts):
    found, broken = scan(b"".join(parts))
    assert broken is None
    assert [
        (opcode, xid, b"" if added is None else item_of(added).data) for opcode, xid, added in found
    ] == list(kestrel_reader.whole_records(b"".join(parts)))
    assert [added for opcode, _, added in found if opcode == records.ADDX] == [
        part for part in parts if part[0] == records.ADDX
    ]


@given(st.lists(st.one_of(ADDED, ENDED, LEGACY), max_size=30), st.data())
def test_reading_only_what_is_added_leaves_out_nothing_else_from_any_record_on(parts, data):
    skipped = data.draw(st.integers(0, len(parts)))
    start = sum(map(len, parts[:skipped]))
    found, broken = scan(b"".join(parts), only_added=True, start=start)
    assert broken is None
    everything, _ = scan(b"".join(parts), start=start)
    assert found == [entry for entry in everything if entry[2] is not None]


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_fail_otherwise_than_by_saying_where(data):
    found, broken = scan(data)
    if broken:
        assert 0 <= broken.offset < len(data)
        assert scan(data[: broken.offset]) == (found, None)


@given(st.lists(ADDED, min_size=1, max_size=5), st.data())
def test_a_cut_anywhere_keeps_every_whole_record_before_it(parts, data):
    content = b"".join(parts)
    cut = data.draw(st.integers(0, len(content)))
    found, broken = scan(content[:cut])
    ends = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
    kept = sum(end <= cut for end in ends)
    assert [added for _, _, added in found] == parts[:kept]
    if cut in (0, *ends):
        assert broken is None
    else:
        assert broken.offset == ([0, *ends][kept])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x02\xff\xff\xff\x7f" + b"x" * 20, "20 of 2147483647 bytes are there"),
        (b"\x02\xff\xff\xff\xff" + b"x" * 20, "its size as -1, less than the 16 bytes"),
        (b"\x02\x00\x00\x00\x80" + b"x" * 20, "its size as -2147483648, less than"),
        (b"\x08\x01\x00\x00\x00\x0f\x00\x00\x00" + b"x" * 20, "its size as 15, less than"),
        (bytes(64), "its size as 0, less than the 4 bytes"),
        (b"GET / HTTP/1.1\r\n", "no record starts with the byte 0x47"),
        (b"\x09\x01\x00", "cut short"),
        (b"\x02\x20\x00", "cut short"),
        (b"\x07\x01\x00\x00\x00\x20", "cut short"),
    ],
)
def test_damage_is_told_with_its_place_and_takes_no_memory_for_what_is_not_there(content, reason):
    good = addx(1, 0, b"good")
    found, broken = scan(good + content)
    assert [added for _, _, added in found] == [good]
    assert broken.offset == len(good)
    assert reason in broken.reason


def test_a_file_that_has_become_shorter_is_told():
    with tempfile.TemporaryFile() as file:
        file.write(addx(1, 0, b"x" * 50))
        file.flush()
        scanner = Scanner(file.fileno(), 71)
        os.ftruncate(file.fileno(), 40)
        with pytest.raises(BrokenRecordError, match="has become shorter"):
            next(scanner.read())


def test_a_million_removals_in_a_row_are_passed_over_in_one_step():
    parts = records.remove(1_000_000)
    assert records._NOTHING_ADDED.match(parts).end() == len(parts)
