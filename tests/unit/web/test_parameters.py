"""What programs send: what is taken, and how what is wrong is called."""

import json

import pytest
from flask import Flask, request
from werkzeug.datastructures import MultiDict

from kestrel_stack.web import bodies, parameters
from kestrel_stack.web.problems import Problem

KNOWN = {
    "limit": parameters.whole(1, 1000, 100),
    "dir": parameters.choice("asc", "desc", default="asc"),
    "f": parameters.queue_filter,
    "sort": parameters.sort_column,
    "start": parameters.moment,
    "hours": parameters.hours,
    "text": parameters.text(most=5),
}
APP = Flask(__name__)


def refused(call, *arguments):
    with pytest.raises(Problem) as info:
        call(*arguments)
    assert "\n" not in info.value.description
    return info.value


def test_what_is_left_out_has_a_default():
    found = parameters.read(MultiDict(), KNOWN)
    assert found == {
        "limit": 100,
        "dir": "asc",
        "f": None,
        "sort": "name",
        "start": None,
        "hours": None,
        "text": "",
    }


def test_what_is_given_is_taken():
    given = MultiDict(
        {
            "limit": "7",
            "dir": "desc",
            "f": "items>1k",
            "sort": "LOGSIZE",
            "start": "1.5",
            "hours": "0.25",
            "text": "a",
        }
    )
    found = parameters.read(given, KNOWN)
    assert str(found.pop("f")) == "items>1k"
    assert found == {"limit": 7, "dir": "desc", "sort": "log", "start": 1.5, "hours": 0.25, "text": "a"}


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ([("colour", "red")], "unknown_parameter", "'colour'"),
        ([("limit", "1"), ("limit", "1")], "bad_parameter", "limit"),
        *[
            ([("limit", text)], "bad_parameter", "limit")
            for text in ("0", "1001", "-1", "1e3", "", "٣", "1_0", "9" * 5000)
        ],
        ([("dir", "up")], "bad_parameter", "dir"),
        ([("f", "colour=red")], "bad_filter", "colour"),
        ([("sort", "colour")], "bad_parameter", "sort"),
        *[
            ([("start", text)], "bad_parameter", "start")
            for text in ("nan", "inf", "-1", "1e400", "now", "", "1_0", "٣", "9" * 13, "9" * 5000)
        ],
        *[([("hours", text)], "bad_parameter", "hours") for text in ("0", "-1", "nan", "1e9", "", "one")],
        ([("text", "abcdef")], "bad_parameter", "text"),
    ],
)
def test_what_is_wrong_is_called_by_its_name(given, code, named):
    problem = refused(parameters.read, MultiDict(given), KNOWN)
    assert (problem.code, problem.problem) == (400, code)
    assert named in problem.description


def body_of(data, content_type="application/json"):
    with APP.test_request_context(method="POST", data=data, content_type=content_type):
        return parameters.body(request)


def test_a_body_is_an_object():
    assert body_of(b'{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_any_other_body_is_refused(data):
    assert (refused(body_of, data).code, refused(body_of, data).problem) == (400, "bad_json")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"]
)
def test_a_body_of_another_kind_is_refused(kind):
    assert refused(body_of, b"{}", kind).code == 415


@pytest.mark.parametrize(
    ("action", "body", "named"),
    [
        ("flush", {}, "confirm"),
        ("flush", {"confirm": 3}, "confirm"),
        ("flush", {"confirm": "\ud800"}, "confirm"),
        ("flush", {"confirm": "q", "force": True}, "'force'"),
        ("flush", {"confirm": "q", "seen": -1}, "seen"),
        ("flush", {"confirm": "q", "seen": True}, "seen"),
        ("flush", {"confirm": "q", "servers": "a:1"}, "servers"),
        ("flush", {"confirm": "q", "servers": []}, "servers"),
        ("enqueue", {"data": []}, "data"),
        ("enqueue", {"as": "xml"}, "as"),
        ("enqueue", {"job": " "}, "job"),
        ("requeue", {"count": 0}, "count"),
        ("requeue", {"count": 1.5}, "count"),
        ("requeue", {"all": 1}, "all"),
    ],
)
def test_a_key_that_is_wrong_is_called_by_its_name(action, body, named):
    problem = refused(bodies.read, action, body, bodies.OF_QUEUES[action])
    assert problem.code == 400
    assert named in problem.description


def test_an_integer_may_be_written_with_a_point():
    assert bodies.read("requeue", {"count": 3.0}, bodies.OF_QUEUES["requeue"]) == {"count": 3}


def test_what_is_answered_is_json_for_everybody():
    plain = parameters.plain(
        {"a": float("nan"), "b": float("-inf"), "c": 2**80, "d": (1, True, None, 0.1234567)}
    )
    assert plain == {"a": None, "b": None, "c": 2**53 - 1, "d": [1, True, None, 0.123457]}
    json.dumps(plain, allow_nan=False)
