"""Errors for programs: one JSON shape for whatever goes wrong, ``{"error": {"code": …, "message": …}}``.

People get a page for an error instead; `wanted` says which of the two a request is for.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from flask import Response, request
from werkzeug.exceptions import HTTPException

CODES = {
    400: ("bad_request", "This request cannot be understood."),
    401: ("login_needed", "Log in, or send a token as Authorization: Bearer TOKEN."),
    403: ("forbidden", "This is not allowed to you."),
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method; see the header Allow."),
    409: ("conflict", "This does not fit the present state."),
    413: ("too_large", "The body is too large."),
    414: ("too_long", "The address is too long."),
    415: ("not_json", "Send a JSON object with Content-Type: application/json."),
    421: ("wrong_host", "This is not a name by which kestrel-web is called; see hosts in its configuration."),
    429: ("too_many", "Too many attempts; wait as long as the header Retry-After says."),
    500: ("internal", "Something went wrong in kestrel-web; its log says what."),
    501: ("not_implemented", "kestrel-web does not do this."),
    503: ("unavailable", "This cannot be done at the moment."),
}
"""What each status is called, and what is said about it unless there is more to say."""


class Problem(HTTPException):
    """An error with a code of its own, raised by a view for programs."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.code = status
        self.problem = code


def wanted() -> bool:
    """Say whether the present request comes from a program, which gets its errors as JSON."""
    return is_for_programs(request.path)


def is_for_programs(path: str) -> bool:
    """Say whether this path, below the prefix, is for programs."""
    return path.startswith("/api/") or path in ("/api", "/metrics", "/healthz") or path.endswith(".csv")


def response(exc: BaseException) -> Response:
    """Return the answer for an exception; anything but an HTTP error is an internal one without details."""
    if not isinstance(exc, HTTPException):
        return _answer(500, *CODES[500])
    if exc.response is not None:
        return exc.response  # type: ignore[return-value]
    status = exc.code or 500
    code, message = CODES.get(status, (_fallback(status), "This request was not answered."))
    if isinstance(exc, Problem):
        code = exc.problem
    # werkzeug's own sentences are for people who look at pages.
    if exc.description and exc.description != type(exc).description:
        message = exc.description
    answer = _answer(status, code, " ".join(message.split()))
    for name, value in exc.get_headers():
        if name.lower() != "content-type":
            answer.headers[name] = value
    if status == 401:
        answer.headers.setdefault("WWW-Authenticate", 'Bearer realm="kestrel-web"')
    return answer


def _fallback(status: int) -> str:
    try:
        return HTTPStatus(status).name.lower()
    except ValueError:
        return "error"


def _answer(status: int, code: str, message: str) -> Response:
    body = json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False) + "\n"
    answer = Response(body, status, mimetype="application/json")
    answer.headers["Cache-Control"] = "no-store"
    return answer
