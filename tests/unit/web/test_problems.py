"""Errors for programs: one shape for all of them, and the headers that belong to them."""

import json

import pytest
from flask import Flask
from werkzeug.exceptions import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)

from kestrel_stack.web import problems
from kestrel_stack.web.problems import CODES, Problem


def answer(exc):
    found = problems.response(exc)
    document = json.loads(found.get_data())
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message"}
    assert found.mimetype == "application/json"
    return found, document["error"]


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (BadRequest(), 400),
        (Unauthorized(), 401),
        (NotFound(), 404),
        (MethodNotAllowed(["GET"]), 405),
        (RequestEntityTooLarge(), 413),
        (UnsupportedMediaType(), 415),
        (TooManyRequests(retry_after=7), 429),
        (ServiceUnavailable(), 503),
    ],
)
def test_what_nobody_said_more_about_has_our_words(exc, status):
    found, error = answer(exc)
    assert found.status_code == status
    assert (error["code"], error["message"]) == CODES[status]


def test_headers_that_belong_to_an_error():
    assert answer(MethodNotAllowed(["GET", "HEAD"]))[0].headers["Allow"] == "GET, HEAD"
    assert answer(TooManyRequests(retry_after=7))[0].headers["Retry-After"] == "7"
    assert answer(Unauthorized())[0].headers["WWW-Authenticate"].startswith("Bearer ")


def test_what_was_said_stays_on_one_line():
    assert answer(NotFound("no\nsuch\r\n thing"))[1]["message"] == "no such thing"


def test_an_error_may_have_a_code_of_its_own():
    found, error = answer(Problem(404, "no_queue", "There is no queue x."))
    assert found.status_code == 404
    assert error == {"code": "no_queue", "message": "There is no queue x."}


def test_a_defect_tells_nothing_of_itself():
    found, error = answer(RuntimeError("secret"))
    assert (found.status_code, error["code"]) == (500, "internal")
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        *((path, True) for path in ("/api/v1/queues", "/api/", "/metrics", "/healthz", "/queues.csv")),
        *((path, False) for path in ("/", "/queues", "/queues/api", "/apis", "/metrics/x", "/login")),
    ],
)
def test_programs_are_known_by_the_address(path, wanted):
    with Flask(__name__).test_request_context(path):
        assert problems.wanted() is wanted
