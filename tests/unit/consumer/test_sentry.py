"""What an event holds, how large it may be, and which of many are sent."""

import json
import sys
import traceback

import pytest

from kestrel_stack.consumer import frames, reporting, sentry, sentry_check
from kestrel_stack.consumer.log import Log

DSN = sentry.Dsn.parse("http://abc@127.0.0.1:1/1")
TAGS = {"job": "Fail"}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Kept(sentry.Reporter):
    """A reporter whose envelopes are looked at in place of being sent."""

    def __init__(self, clock, room=100):
        super().__init__(DSN, Log(lambda *_: None), {}, waiting=room, repeats=sentry.Repeats(2, 30, clock))

    def pass_on(self, data, of=None):
        self._waiting.put_nowait((data, of))
        return True

    def events(self):
        found = []
        while not self._waiting.empty():
            found.append(json.loads(self._waiting.get()[0].split(b"\n")[2]))
        return found


def event(message="broken"):
    return sentry.make_event("ValueError", message, level="error", tags=TAGS)


KEY = sentry.kind_of("ValueError", "broken", "error", "Fail")


def raised(function):
    try:
        function()
    except Exception as exc:
        return exc
    raise AssertionError("it did not fail")


def failed(own, exc):
    error = {"class": type(exc).__name__, "message": str(exc)}
    return own.failed(exc, error, exc.__traceback__, "error", TAGS)


def test_what_a_child_held_back_is_told_with_the_next_event_whichever_child_sends_that(clock):
    reporter = Kept(clock)
    assert [reporter.report(event()) for _ in range(2)] == [one["event_id"] for one in reporter.events()]
    for _ in range(5000):
        reporter.note_repeated(KEY)
    # One more that the child lets through a moment too early for its parent is no reason to begin anew.
    clock.now += 29.9
    assert reporter.report(event()) is not None
    clock.now += 30
    reporter.report(event())
    (told,) = reporter.events()
    assert told["extra"] == {sentry.REPEATED: 5001}
    assert reporter.counts["repeated"] == 5001


def test_what_was_held_back_is_told_later_when_the_event_that_would_tell_is_dropped(clock):
    reporter = Kept(clock, room=2)
    for _ in range(2):
        reporter.report(event())
    reporter.note_repeated(KEY)
    clock.now += 60
    assert reporter.report(event()) is None
    reporter.events()
    reporter.report(event())
    (told,) = reporter.events()
    assert told["extra"] == {sentry.REPEATED: 1}
    assert reporter.counts == {"reported": 0, "repeated": 1, "not_reported": 1}


def test_no_record_names_an_event_that_could_not_be_sent(clock):
    reporter = sentry.Reporter(DSN, Log(lambda *_: None), {}, repeats=sentry.Repeats(1, 30, clock))
    assert reporter.report(event()) is not None
    reporter.close(30)
    assert reporter.counts["not_reported"] == 1
    assert reporter.report(event()) is None
    assert reporter.note_repeated(KEY) is None


def test_the_table_of_errors_is_bounded_for_all_that_go_into_it(clock):
    repeats = sentry.Repeats(1, 30, clock)
    for number in range(2 * sentry.MAX_ERRORS):
        (repeats.count if number % 2 else repeats.hold)(f"{number}")
    assert len(repeats._seen) == sentry.MAX_ERRORS


@pytest.mark.parametrize("text", ["x", "é", "\N{FIRE}", "\ud83d", '"\\\0'])
def test_an_event_is_never_too_large_for_sentry_or_for_the_parent(text):
    own = reporting.Own()
    own.job(TAGS, dict)
    for _ in range(sentry.MAX_CRUMBS):
        own.crumb("info", text * 2000, {f"{text}{number}": text * 1500 for number in range(20)})

    def chain(left):
        try:
            if left:
                chain(left - 1)
        finally:
            raise ValueError(text * 4096)

    exc = raised(lambda: chain(20))
    answer = failed(own, exc)
    assert len(frames.encode(answer)) < frames.MAX_HEAD
    found = json.loads(sentry.envelope(answer["event"]).split(b"\n")[2])
    assert len(json.dumps(found)) <= sentry.MAX_EVENT
    assert found["exception"]["values"][-1]["type"] == "ValueError"
    assert len(found["breadcrumbs"]["values"]) >= 10


def test_of_a_deep_recursion_only_the_frames_that_are_sent_are_made(monkeypatch):
    def deeper(left):
        return 1 / 0 if left == 0 else deeper(left - 1)

    exc = raised(lambda: deeper(sys.getrecursionlimit() // 2))
    asked = []
    monkeypatch.setattr(sentry.linecache, "getlines", lambda name, *_: asked.append(name) or [])
    found = sentry.frames_of(exc.__traceback__)
    assert len(found) == len(asked) == sentry.MAX_FRAMES
    assert found[-1]["lineno"] == list(traceback.walk_tb(exc.__traceback__))[-1][1]


def test_what_is_not_utf_8_in_a_cause_is_sent_as_text_that_every_database_takes():
    def fail():
        try:
            raise FileNotFoundError("caf\udce9.txt")
        except FileNotFoundError as exc:
            raise ValueError("no menu") from exc

    own = reporting.Own()
    own.job(TAGS, dict)
    cause, _ = failed(own, raised(fail))["event"]["exception"]["values"]
    assert cause["value"] == "caf\\udce9.txt"


@pytest.mark.parametrize("host", ["errors..example", "x" * 64 + ".example"])
def test_a_host_that_is_no_name_is_unreachable_and_nothing_worse(host):
    with pytest.raises(sentry.Unreachable, match=r"http://\S+ is not reachable: ") as caught:
        sentry.send(f"http://abcdef@{host}/1", {})
    assert "abcdef" not in str(caught.value)
    with pytest.raises(sentry_check.Wrong, match="is not reachable"):
        sentry_check.check(f"http://abcdef@{host}/1", event())


def test_a_log_that_fails_does_not_end_the_sending_thread():
    told = []

    def sink(level, line, fields):
        told.append(line)
        if line == "sentry is away":
            raise OSError("the log is full")

    reporter = sentry.Reporter(DSN, Log(sink), {})
    for text in ("one", "two"):
        reporter.report(event(text))
    reporter.close(30)
    assert "sentry is still away" in told
