"""Keys of queues: reversible for every name that a server can have, and nothing else is one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web import keys

LEGAL = bytes(sorted(set(range(256)) - set(b"./~ \n\0")))
names = st.lists(st.sampled_from(LEGAL), min_size=1, max_size=keys.MAX_NAME_BYTES).map(bytes)


def test_a_plain_name_is_its_own_key():
    assert keys.make(b"shop_hello-World9") == "shop_hello-World9"


def test_a_fanout_has_its_plus_in_hexadecimal():
    assert keys.make(b"shop_mail+audit") == "shop_mail~2Baudit"


def test_every_legal_byte_has_its_place_in_a_key():
    assert keys.parse(keys.make(LEGAL)) == LEGAL


@given(names)
def test_a_key_leads_back_to_its_name_and_is_safe_in_an_address(name):
    key = keys.make(name)
    assert re.fullmatch(r"[A-Za-z0-9_~-]+", key)
    assert keys.parse(key) == name


@given(names)
def test_what_is_shown_of_a_name_stays_on_one_line(name):
    shown = keys.show(keys.make(name))
    assert shown and shown.isprintable()


@given(st.text(max_size=30))
def test_any_text_is_refused_or_is_the_one_key_of_a_name(text):
    try:
        name = keys.parse(text)
    except ValueError:
        return
    assert keys.make(name) == text


NO_KEYS = [
    "",
    "a.b",
    "a b",
    "a/b",
    "~",
    "~2",
    "~2b",
    "~41",
    "~2E",
    "~2F",
    "~7E",
    "a~20b",
    "a~0Ab",
    "~00",
    "%2B",
]


@pytest.mark.parametrize("key", [*NO_KEYS, "é", "a" * 256])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="not the key of a queue"):
        keys.parse(key)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bücher".encode(), "bücher"),
        (b"b\xfccher", "b\\xfccher"),
        (b"a\tb", "a\\tb"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b".encode(), "a\\u202eb"),
        (b"<b>x</b>".replace(b"/", b""), "<b>x<b>"),
    ],
)
def test_a_name_is_shown_as_text_where_it_is_one(name, shown):
    assert keys.show(keys.make(name)) == shown
