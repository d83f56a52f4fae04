"""What bin/dev makes of a line that a process wrote."""

import io
import json

import pytest

from kestrel_stack.dev.lines import Screen

JOB = {
    "time": "2026-11-21T02:15:00.123Z",
    "level": "info",
    "event": "job",
    "queue": "shop_mail",
    "job": "SendMail",
    "id": "6f9f9f9e-0000-4000-8000-000000000000",
    "tenant": "acme",
    "attempt": 2,
    "wait_ms": 3,
    "run_ms": 12,
}


def readable(entry):
    data = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return Screen(io.StringIO(), colour=False).readable(data)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"outcome": "done"}, "SendMail done in 12 ms  (acme 6f9f9f9e)"),
        (
            {"outcome": "retry", "delay": 5, "reason": "The job raised OSError.", "error": "no mail"},
            "SendMail failed at attempt 2, again in 5 s: The job raised OSError. no mail  (acme 6f9f9f9e)",
        ),
        (
            {"outcome": "parked", "reason": "It gave up."},
            "SendMail parked after attempt 2: It gave up.  (acme 6f9f9f9e)",
        ),
        ({"outcome": "lost", "reason": "Cut."}, "SendMail is delivered again: Cut.  (acme 6f9f9f9e)"),
        (
            {"event": "sent", "to": "ada@example.org", "bytes": 7},
            "sent to=ada@example.org bytes=7  (SendMail 6f9f9f9e)",
        ),
        ({"event": "output", "stream": "stdout", "text": "it is\u001b[2J said"}, "it is\\x1b[2J said"),
    ],
)
def test_a_line_of_a_job_says_what_a_reader_wants_to_know(more, text):
    line = {**JOB, **more}
    if line["event"] != "job":
        del line["wait_ms"], line["run_ms"]
    assert readable(line) == text


def test_an_item_that_is_no_job_is_parked_in_a_line_without_one():
    line = {
        "time": "",
        "level": "error",
        "event": "job",
        "outcome": "parked",
        "reason": "not JSON",
        "bytes": 3,
    }
    assert readable(line) == "item parked after attempt 1: not JSON"


@pytest.mark.parametrize("event", ["worker begins", "worker ends", "mover begins", "child is replaced"])
def test_what_nobody_asks_is_not_shown(event):
    assert readable({"time": "", "level": "info", "event": event, "pid": 1}) is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Traceback:\r", "Traceback:"),
        (b"{not json", "{not json"),
        (b'{"a": 1}', '{"a": 1}'),
        (b"[" * 100000, "[" * 100000),
        (b"{" * 100000, "{" * 100000),
        (b"\xff\x1b]0;title\x07", "\\xff\\x1b]0;title\\x07"),
        ("⮕ \u202e turned".encode(), "⮕ \\u202e turned"),
    ],
)
def test_any_other_line_is_shown_as_it_is_but_moves_no_cursor(data, text):
    assert readable(data) == text


def test_colours_and_width_on_a_terminal_only():
    for colour in (True, False):
        out = io.StringIO()
        screen = Screen(out, colour=colour)
        for name in ("mail", "kestrel-web"):
            screen.know(name)
        screen.line("mail", json.dumps({**JOB, "outcome": "done"}).encode())
        assert ("\033[32mSendMail done" in out.getvalue()) == colour
        assert (" mail        SendMail" in out.getvalue()) != colour


def test_a_reader_who_has_gone_is_noticed_and_breaks_nothing():
    out = io.StringIO()
    screen = Screen(out, colour=False)
    out.close()
    screen.say("anybody there?")
    assert screen.gone


def test_what_the_terminal_has_no_letters_for_is_written_as_it_can_be():
    raw = io.BytesIO()
    screen = Screen(io.TextIOWrapper(raw, "latin-1"))
    screen.plain("5 €, très bon")
    assert (screen.gone, raw.getvalue()) == (False, "5 \\u20ac, très bon\n".encode("latin-1"))
