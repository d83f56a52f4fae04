"""Records to state and back."""

from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.broker import records
from kestrel_stack.broker.records import Item, Replayed, replay

ITEMS = st.builds(
    Item,
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.binary(max_size=40),
)


@given(st.lists(ITEMS, max_size=20))
def test_what_is_written_is_read_back(items):
    state = Replayed()
    assert replay(b"".join(map(records.addx, items)), state, 0) is None
    assert [(item.added_ms, item.expiry_ms, item.data) for item in state.items] == [
        (item.added_ms, item.expiry_ms, item.data) for item in items
    ]


@given(st.binary(max_size=200))
def test_no_bytes_make_a_replay_fail(data):
    state = Replayed()
    broken = replay(data, state, 0)
    if broken:
        assert 0 <= broken.offset < len(data)
        again = Replayed()
        assert replay(data[: broken.offset], again, 0) is None
        assert len(again.items) == len(state.items)


@given(st.lists(ITEMS, min_size=1, max_size=5), st.data())
def test_a_cut_anywhere_keeps_every_whole_record_before_it(items, data):
    whole = [records.addx(item) for item in items]
    content = b"".join(whole)
    cut = data.draw(st.integers(0, len(content)))
    state = Replayed()
    broken = replay(content[:cut], state, 0)
    ends = [sum(map(len, whole[: count + 1])) for count in range(len(whole))]
    kept = sum(end <= cut for end in ends)
    assert len(state.items) == kept
    if cut in (0, *ends):
        assert broken is None
    else:
        assert broken.offset == ([0, *ends][kept])


def test_a_size_far_beyond_the_file_takes_no_memory_for_it():
    broken = replay(b"\x02\xff\xff\xff\x7f" + b"x" * 20, Replayed(), 0)
    assert broken.offset == 0
    assert "20 of 2147483647 bytes" in broken.reason
