"""What an item is shown as, whatever it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.web.actions import peek

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def examine(body, key="shop_mail", size=None, keep=65536):
    return peek.examine(key, "h:1", body, len(body) if size is None else size, keep)


class TestJson:
    @given(VALUES)
    def test_it_is_the_same_json_on_more_lines(self, value):
        shown = peek.indented(json.dumps(value).encode())
        assert json.loads(shown) == value
        assert shown == json.dumps(value, indent=2)

    @pytest.mark.parametrize(
        ("body", "shown"),
        [
            (b'{"a":1.10,"a":12345678901234567890}', '{\n  "a": 1.10,\n  "a": 12345678901234567890\n}'),
            (b" [ ] ", "[]"),
            (b'{"a":{},"b":[[]]}', '{\n  "a": {},\n  "b": [\n    []\n  ]\n}'),
            (b'"a,b:{[\\"]}"', '"a,b:{[\\"]}"'),
            (b"1e400", "1e400"),
            (b"9" * 5000, "9" * 5000),
            ('"\u202e\x7f"'.encode(), '"\\u202e\\x7f"'),
        ],
    )
    def test_numbers_and_keys_stay_as_they_are_written(self, body, shown):
        assert peek.indented(body) == shown

    @pytest.mark.parametrize(
        "body", [b"", b"NaN", b"[Infinity]", b"{", b"\xff", b"\x00", b"a:1", b"[" * 100_000 + b"]" * 100_000]
    )
    def test_what_is_no_json_is_none(self, body):
        assert peek.indented(body) is None

    def test_a_long_one_ends_early(self):
        shown = peek.indented(json.dumps(list(range(100_000))).encode(), 1000)
        assert len(shown) < 3000
        assert shown.endswith("…")


class TestBytes:
    @given(st.binary(max_size=300))
    def test_any_bytes_are_shown_as_text_that_moves_nothing(self, body):
        text = peek.as_text(body)
        assert all(char.isprintable() or char in "\n\t" for char in text)
        head = examine(body)
        assert json.dumps(head.as_json())
        assert head.shown("hex") == peek.hex_lines(body)
        assert head.best in peek.FORMS

    def test_a_hex_dump_has_offset_bytes_and_letters(self):
        assert peek.hex_lines(b"hello\x00world 123\xff!") == (
            "00000000  68 65 6c 6c 6f 00 77 6f  72 6c 64 20 31 32 33 ff  hello.world 123.\n"
            "00000010  21" + " " * 48 + "!"
        )

    def test_a_cut_item_says_its_size(self):
        head = examine(b"x" * 100, keep=10)
        assert (head.body, head.size, head.truncated) == (b"x" * 10, 100, True)
        head = examine(b"x" * 10, size=10**9, keep=10)
        assert head.truncated
        assert "only its beginning was read" in head.faults[0]
        assert head.as_json()["size"] == 10**9


class TestJobs:
    def test_a_job_is_one(self):
        made = Envelope("SendMail", "acme", {"to": "Ada"})
        head = examine(made.encode())
        assert (head.envelope, head.faults, head.best) == (made, (), "json")
        assert head.as_json()["job"]["id"] == made.id

    def test_a_job_with_a_fault_is_none_and_says_what_is_wrong(self):
        head = examine(Envelope("SendMail", "acme").encode().replace(b'"v":1', b'"v":2'))
        assert head.envelope is None
        assert head.faults == ("The field 'v' is 2; this worker knows version 1.",)

    def test_a_parked_job_has_a_job_in_it(self):
        made = Envelope("SendMail", "acme")
        error = {"class": "Boom", "message": "<b>", "stack": "s"}
        head = examine(ParkedRecord("Boom", made.encode(), 3, error, "e1").encode(), "shop_mail_errors")
        assert (head.record.reason, head.inner, head.faults) == ("Boom", made, ())
        assert head.as_json()["parked"]["error"] == error
        assert head.as_json()["kind"] == "parked"

    def test_a_parked_item_that_is_no_job_says_so(self):
        head = examine(ParkedRecord("not JSON", b"\x80pickle", 0).encode(), "shop_mail_errors")
        assert head.inner is None
        assert head.faults[0].startswith("The parked item is no job: The item is not UTF-8")

    def test_in_an_error_queue_the_faults_are_those_of_a_parked_record(self):
        assert "reason" in " ".join(examine(b'{"v":1}', "shop_mail_errors").faults)
        assert "job" in " ".join(examine(b'{"v":1}', "shop_mail").faults)
