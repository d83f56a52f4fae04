import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.consumer.frames import BrokenFrame, Decoder, encode

MESSAGES = st.lists(st.tuples(st.dictionaries(st.text(), st.integers() | st.text()), st.binary()), max_size=4)


@given(MESSAGES, st.integers(1, 50))
def test_messages_arrive_whole_however_they_are_cut(messages, size):
    data = b"".join(encode(head, body) for head, body in messages)
    decoder = Decoder()
    found = []
    for start in range(0, len(data), size):
        found += decoder.feed(data[start : start + size])
    assert found == messages


@pytest.mark.parametrize(
    "data",
    [
        b"Hello, I am a print statement.",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{]",
        struct.pack(">II", 2, 0) + b"\xff\xff",
        struct.pack(">II", 0, 0),
    ],
)
def test_nonsense_is_refused(data):
    with pytest.raises(BrokenFrame):
        Decoder().feed(data)
