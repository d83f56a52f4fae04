"""Reporting failed jobs to Sentry, without a library: one event is one envelope, sent by HTTP.

Source of the format: develop.sentry.dev, "Envelopes" and "Event Payloads"; accepted by Sentry and Bugsink.
The DSN holds a key: no message of this module names it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import linecache
import platform
import queue
import re
import socket
import sys
import sysconfig
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from kestrel_stack import __version__
from kestrel_stack.consumer.log import Log, value
from kestrel_stack.queue.envelope import clean_text

TIMEOUT = 2.0
"""Seconds for connecting, and for each step of an exchange with Sentry."""
MAX_WAITING = 100
"""So many events wait to be sent; further ones are dropped, so that a dead Sentry costs no memory."""
MAX_CRUMBS = 100
MAX_CRUMB_TEXT = 1024
"""The newest lines of a job that go with its event, and the longest text of one, in characters."""
MAX_FRAMES = 50
MAX_CAUSES = 10
MAX_CAUSE_TEXT = 4096
AROUND = 5
"""So many lines before and after the one that a frame is at go with it."""
MAX_SOURCE_TEXT = 500
STEPS = 5
"""An exchange takes at most so many times the limit of one step."""
MAX_EVENT = 900_000
"""Bytes of an event: Sentry and Bugsink refuse one of more than a megabyte."""
MAX_SHORT_CRUMBS = 10
MAX_ANSWER = 4096
MAX_QUIET = 3600.0
"""Seconds after which Sentry is asked again, however long a quiet it wished for."""
BURST = 10
EVERY = 30.0
"""Of one error a worker sends so many events at once, then one in so many seconds; see `Repeats`."""
MAX_ERRORS = 500
"""So many different errors are told apart; then the one that was not seen for longest is forgotten."""
REPEATED = "the same error since the last event"
"""The key of an event's extra that says how many were held back; see `Repeats`."""
SWITCH = 0.0005
"""Seconds for which one thread may keep the others of its process waiting."""
STILL_AWAY = 300.0
"""Seconds after which a Sentry that is still away is told again."""
CLIENT = f"kestrel-stack/{__version__}"

_DSN = re.compile(
    r"(?P<scheme>https?)://(?P<key>[A-Za-z0-9]+)(?::[A-Za-z0-9]+)?@"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<prefix>(?:/[A-Za-z0-9._~-]+)*)/(?P<project>[A-Za-z0-9_-]+)/?"
)
_SECONDS = re.compile(r"[0-9]{1,9}")
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})(?![0-9a-f])")
_NUMBERS = re.compile(r"\b(?=[0-9a-fA-F-]*[0-9])[0-9a-fA-F][0-9a-fA-F-]{5,}\b|[0-9]+")
_NOT_OF_THE_APPLICATION = (f"{sysconfig.get_path('stdlib')}/", f"{Path(__file__).parents[1]}/", "<frozen ")


@dataclass(frozen=True)
class Dsn:
    """Where events go. The key is in no text of it."""

    scheme: str
    host: str
    port: int
    path: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Dsn:
        """Return the parts of a DSN; raise `ValueError` without showing it."""
        match = _DSN.fullmatch(text.strip())
        port = int(match["port"]) if match and match["port"] else None
        if match is None or (port is not None and not 1 <= port <= 65535):
            raise ValueError(
                "The Sentry DSN is not like https://KEY@HOST/PROJECT; copy it from the project's settings."
            )
        return cls(
            scheme=match["scheme"],
            host=match["host"].strip("[]"),
            port=port or (443 if match["scheme"] == "https" else 80),
            path=f"{match['prefix']}/api/{quote(match['project'])}/envelope/",
            key=match["key"],
        )

    def __repr__(self) -> str:
        return f"<Dsn {self}>"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Unreachable(OSError):  # noqa: N818 - it names what is the matter
    """There was no answer: one line, and the error that it came from as `__cause__`."""


class Refused(OSError):  # noqa: N818 - it names what was answered
    """Sentry answered that it does not take the event; `wait` is for how many seconds it wants no other."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """What a server said to an envelope; `wait` is for how many seconds it wants no other error."""

    status: int
    kind: str
    location: str
    body: bytes
    wait: float

    @property
    def taken(self) -> bool:
        """Whether the event is with Sentry; a page for people is not Sentry's answer, whatever its status."""
        return 200 <= self.status < 300 and self.kind != "text/html"


def envelope(event: Mapping[str, Any]) -> bytes:
    """Return an event, which has an ``event_id``, as what is sent."""
    data = _fitted(event)[1].encode("ascii")
    head = {"event_id": event["event_id"], "sent_at": time_text(time.time())}
    item = {"type": "event", "length": len(data)}
    return b"\n".join([json.dumps(head).encode("ascii"), json.dumps(item).encode("ascii"), data, b""])


def fitting(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event without what it can do without, as far as it is too large."""
    return _fitted(event)[0]


def _fitted(event: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    text = json.dumps(event, default=str)
    for shorter in (_without_details, _without_source, _without_what_led_to_it):
        if len(text) <= MAX_EVENT:
            break
        event = shorter(event)
        text = json.dumps(event, default=str)
    return event, text


def _without_details(event: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the lines' data, which is in their text as well, and what is installed."""
    lines = [
        {key: content for key, content in line.items() if key != "data"}
        for line in event.get("breadcrumbs", {}).get("values", [])
    ]
    kept = {key: content for key, content in event.items() if key != "modules"}
    return {**kept, "breadcrumbs": {"values": lines}}


def _without_source(event: Mapping[str, Any]) -> dict[str, Any]:
    source_of = ("pre_context", "context_line", "post_context")
    values = []
    for error in event.get("exception", {}).get("values", []):
        found = dict(error)
        if "stacktrace" in error:
            found["stacktrace"] = {
                "frames": [
                    {key: content for key, content in frame.items() if key not in source_of}
                    for frame in error["stacktrace"]["frames"]
                ]
            }
        values.append(found)
    return {**event, "exception": {"values": values}}


def _without_what_led_to_it(event: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: content for key, content in event.get("extra", {}).items() if key == REPEATED}
    return {
        **event,
        "exception": {"values": event.get("exception", {}).get("values", [])[-1:]},
        "breadcrumbs": {"values": event.get("breadcrumbs", {}).get("values", [])[-MAX_SHORT_CRUMBS:]},
        "extra": extra,
    }


def exchange(target: Dsn, body: bytes, timeout: float = TIMEOUT) -> Answer:
    """Send an envelope and return the answer; raise `Unreachable` when there is none.

    `timeout` in seconds is for each step; the whole takes `STEPS` times that at most, but for the look-up of
    the name, which the system's own limits end.
    """
    headers = {
        "Content-Type": "application/x-sentry-envelope",
        "User-Agent": CLIENT,
        "X-Sentry-Auth": f"Sentry sentry_version=7, sentry_client={CLIENT}, sentry_key={target.key}",
        "Connection": "close",
    }
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=timeout)
    # A server that sends a byte now and then would never run into the limit of one step.
    late = threading.Event()
    cut = threading.Timer(STEPS * timeout, _cut_off, (connection, late))
    cut.daemon = True
    try:
        connection.connect()
        cut.start()
        connection.request("POST", target.path, body, headers)
        answer = connection.getresponse()
        said = answer.read(MAX_ANSWER)
        if late.is_set():
            raise TimeoutError
    except (OSError, http.client.HTTPException, UnicodeError) as exc:  # the last: no name at all
        if late.is_set():
            raise Unreachable(f"{target} gave no whole answer in {STEPS * timeout:g} s.") from TimeoutError()
        if isinstance(exc, TimeoutError):
            raise Unreachable(f"{target} gave no answer in {timeout:g} s.") from exc
        words = " ".join((getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).split())
        raise Unreachable(f"{target} is not reachable: {words}.") from exc
    finally:
        cut.cancel()
        connection.close()
    return Answer(
        status=answer.status,
        kind=(answer.getheader("Content-Type") or "").partition(";")[0].strip().lower(),
        location=answer.getheader("Location") or "",
        body=said,
        wait=quiet_seconds(
            answer.status, answer.getheader("X-Sentry-Rate-Limits"), answer.getheader("Retry-After")
        ),
    )


def quiet_seconds(status: int, limits: str | None, after: str | None) -> float:
    """Return for how long an answer asks for no more errors.

    Source: develop.sentry.dev, "Rate Limiting". ``X-Sentry-Rate-Limits`` comes with any status, and then the
    other header says nothing: groups of seconds, kinds of items (none: all of them), scope and reason.
    """
    wait = 0.0
    if limits is not None:
        for group in limits.split(","):
            seconds, kinds, *_ = [*group.strip().split(":"), ""]
            if _SECONDS.fullmatch(seconds) and (not kinds or "error" in kinds.split(";")):
                wait = max(wait, float(seconds))
    elif status == 429:
        wait = 60.0
        if after and _SECONDS.fullmatch(after):
            wait = float(after)
        elif after:
            with contextlib.suppress(ValueError, TypeError):
                wait = max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return min(wait, MAX_QUIET)


def deliver(target: Dsn, body: bytes, timeout: float = TIMEOUT) -> float:
    """Send an envelope; return for how many seconds Sentry wants no other.

    Raises `OSError` with one line when it was not taken.
    """
    answer = exchange(target, body, timeout)
    if answer.taken:
        return answer.wait
    if 200 <= answer.status < 300:
        raise Refused(f"{target} answered with a web page: that is not Sentry.", answer.wait)
    raise Refused(f"{target} answered with status {answer.status}.", answer.wait)


def send(dsn: str | Dsn, event: Mapping[str, Any], timeout: float = TIMEOUT) -> str:
    """Send one event and return its id; `timeout` in seconds, for each step.

    Raises `ValueError` for a wrong DSN and `OSError` when the event was not taken, each with one line.
    """
    target = Dsn.parse(dsn) if isinstance(dsn, str) else dsn
    event_id = str(event.get("event_id") or uuid.uuid4().hex)
    deliver(target, envelope({**event, "event_id": event_id}), timeout)
    return event_id


def _cut_off(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def make_event(
    kind: str,
    message: str,
    *,
    level: str,
    tags: Mapping[str, object],
    frames: list[dict[str, Any]] | None = None,
    causes: Iterable[Mapping[str, Any]] = (),
    crumbs: Iterable[tuple[float, str, str, Mapping[str, object]]] = (),
    extra: Mapping[str, object] | None = None,
    contexts: Mapping[str, Mapping[str, object]] | None = None,
    modules: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return an event for an error of class `kind`.

    `causes` are the errors that led to it, the first of them first; see `exception`. `crumbs` are the job's
    lines: Unix seconds, level, event, fields.
    """
    # Nobody has dealt with it: it ended the job.
    last = exception(kind, message, frames) | {"mechanism": {"type": "kestrel_stack", "handled": False}}
    job = str(tags["job"]) if tags.get("job") else None
    made: dict[str, Any] = {
        "event_id": uuid.uuid4().hex,
        "timestamp": time_text(time.time()),
        "platform": "python",
        "level": level,
        "logger": "kestrel_stack.consumer",
        # Sentry groups by the stack, or by the error's text where there is none; the same in two jobs is two.
        "fingerprint": fingerprint(job),
        "exception": {"values": [*causes, last]},
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
        "breadcrumbs": {"values": [crumb(*line) for line in list(crumbs)[-MAX_CRUMBS:]]},
        "contexts": {**_host(), **(contexts or {})},
        "extra": dict(extra or {}),
        "sdk": {"name": "kestrel_stack.python", "version": __version__},
    }
    if job is not None:
        made["transaction"] = job
    if modules:
        made["modules"] = dict(modules)
    return made


def fingerprint(job: str | None) -> list[str]:
    """Return what events of one issue have in common: what Sentry itself takes for that, and the job."""
    return ["{{ default }}"] if job is None else ["{{ default }}", job]


def exception(kind: str, message: str, frames: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return one error as it stands in an event."""
    module, _, name = kind.rpartition(".")
    made: dict[str, Any] = {"type": name, "value": message}
    if module:
        made["module"] = module
    if frames:
        made["stacktrace"] = {"frames": frames}
    return made


def crumb(at: float, level: str, event: str, fields: Mapping[str, object]) -> dict[str, Any]:
    """Return a line of a job's as a breadcrumb; `at` in Unix seconds."""
    return {
        "timestamp": time_text(at),
        "category": "job",
        "level": level,
        "message": crumb_text(event, fields),
        "data": {key: str(value)[:MAX_CRUMB_TEXT] for key, value in fields.items()},
    }


def crumb_text(event: str, fields: Mapping[str, object]) -> str:
    """Return a line with its fields, as in the log: Bugsink shows a breadcrumb's text and not its data."""
    text = event
    for key, content in fields.items():
        if len(text) >= MAX_CRUMB_TEXT:
            break
        if content is not None:
            # Cut first: to write out what is cut off after all takes longer than the rest.
            text += f" {key}={value(content[:MAX_CRUMB_TEXT] if isinstance(content, str) else content)}"
    return text[:MAX_CRUMB_TEXT]


def frames_of(trace: TracebackType | None) -> list[dict[str, Any]]:
    """Return a traceback as Sentry has it, the innermost frame last."""
    # Of a recursion the last ones only: with a thousand of them, this would take longer than the job.
    places: deque[TracebackType] = deque(maxlen=MAX_FRAMES)
    while trace is not None:
        places.append(trace)
        trace = trace.tb_next
    found: list[dict[str, Any]] = []
    for trace in places:
        code, number = trace.tb_frame.f_code, trace.tb_lineno
        path = clean_text(code.co_filename)
        frame = {
            "filename": _short(path),
            "abs_path": path,
            "module": str(trace.tb_frame.f_globals.get("__name__", "")),
            "function": code.co_name,
            "lineno": number,
            "in_app": not code.co_filename.startswith(_NOT_OF_THE_APPLICATION)
            and "site-packages" not in code.co_filename
            and "dist-packages" not in code.co_filename,
        }
        found.append(frame | source(linecache.getlines(code.co_filename), number))
    return found


def source(lines: list[str], number: int) -> dict[str, Any]:
    """Return line `number` of a file, and some before and after it, as a frame has them."""
    if not 1 <= number <= len(lines):
        return {}
    first = max(0, number - 1 - AROUND)
    plain = [line.rstrip("\r\n")[:MAX_SOURCE_TEXT] for line in lines[first : number + AROUND]]
    at = number - 1 - first
    return {"pre_context": plain[:at], "context_line": plain[at], "post_context": plain[at + 1 :]}


def trace_of(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the trace that a job belongs to, from the tracing headers that it was enqueued with."""
    for name, content in (headers or {}).items():
        if name.lower() in ("traceparent", "sentry-trace") and (match := _TRACE.match(content)):
            span = uuid.uuid4().hex[:16]
            return {"trace_id": match["trace"], "parent_span_id": match["span"], "span_id": span}
    return None


def _short(path: str) -> str:
    """Return a path without the folder that modules are found in: it names the release, the line does not."""
    folders = [folder for folder in sys.path if folder and path.startswith(folder.rstrip("/") + "/")]
    return path[len(max(folders, key=len).rstrip("/")) + 1 :] if folders else path


@functools.cache
def _host() -> dict[str, dict[str, str]]:
    return {
        "runtime": {"name": platform.python_implementation(), "version": platform.python_version()},
        "os": {"name": platform.system(), "version": platform.release()},
    }


class Repeats:
    """Which of many events of one error are sent: the first `burst`, then one each `every` seconds.

    The others would tell nothing new, and use up what the server takes for one project, which other errors
    need.
    """

    def __init__(self, burst: int = BURST, every: float = EVERY, clock: Callable[[], float] = time.monotonic):
        self._burst = burst
        self._every = every
        self._clock = clock
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()

    def count(self, key: Hashable) -> int | None:
        """Return how many were held back since the last that was sent; None when this one is, too."""
        now = self._clock()
        seen = self._of(key, now)
        seen.left = min(float(self._burst), seen.left + (now - seen.at) / self._every)
        seen.at = now
        if seen.left < 1:
            seen.held_back += 1
            return None
        seen.left -= 1
        held_back, seen.held_back = seen.held_back, 0
        return held_back

    def hold(self, key: Hashable, count: int = 1) -> None:
        """Note errors that somebody else has held back, or that were not sent after all."""
        self._of(key, self._clock()).held_back += count

    def _of(self, key: Hashable, now: float) -> _Seen:
        seen = self._seen.pop(key, None) or _Seen(float(self._burst), now)
        self._seen[key] = seen
        if len(self._seen) > MAX_ERRORS:
            self._seen.popitem(last=False)
        return seen


@dataclass
class _Seen:
    left: float
    at: float
    held_back: int = 0


def kind_of(kind: str, message: str, level: str, job: object) -> Hashable:
    """Return what makes an error the same as another one; numbers and ids in its text do not matter."""
    return kind.rpartition(".")[2], _NUMBERS.sub("#", message[:MAX_CRUMB_TEXT].partition("\n")[0]), level, job


class Reporter:
    """Sends events from a thread of its own: nobody waits for Sentry. It starts with the first event.

    `about` goes into every event: release, environment, server_name. Each event ends as one of three, which
    are counted: reported, repeated (held back, see `Repeats`) or not reported.
    """

    def __init__(
        self,
        dsn: Dsn,
        log: Log,
        about: Mapping[str, str | None],
        timeout: float = TIMEOUT,
        waiting: int = MAX_WAITING,
        repeats: Repeats | None = None,
    ):
        self._dsn = dsn
        self._log = log
        self._about = {key: value for key, value in about.items() if value}
        self._timeout = timeout
        self._waiting: queue.Queue[tuple[bytes, tuple[Hashable, str] | None]] = queue.Queue(waiting)
        self._repeats = Repeats() if repeats is None else repeats
        self._last: OrderedDict[Hashable, str] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._counts = {"reported": 0, "repeated": 0, "not_reported": 0}
        self._away_since: float | None = None
        self._told = 0.0
        self._not_before = 0.0
        self._before = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many events were reported, repeated and not reported so far; those that wait are in none."""
        with self._lock:
            return dict(self._counts)

    def report(self, event: Mapping[str, Any]) -> str | None:
        """Have an event sent some time; return its id, or that of the last one which says the same.

        None when it is dropped, so that nobody looks for it in vain.
        """
        last = event["exception"]["values"][-1]
        key = kind_of(str(last["type"]), str(last["value"]), str(event["level"]), event.get("transaction"))
        repeated = self._repeats.count(key)
        if repeated is None:
            return self._last_of(key)
        if self._waiting.full():  # nobody else puts anything in: to make the envelope would be in vain
            self._count("not_reported")
            self._repeats.hold(key, repeated)
            return None
        full = {**self._about, **event}
        if "release" in self._about:
            full["tags"] = {**full.get("tags", {}), "release": self._about["release"]}
        if repeated:
            full["extra"] = {**full.get("extra", {}), REPEATED: repeated}
        event_id = str(full["event_id"])
        with self._lock:  # before it is sent: it may be lost at once
            self._last[key] = event_id
            self._last.move_to_end(key)
            if len(self._last) > MAX_ERRORS:
                self._last.popitem(last=False)
        self.pass_on(envelope(full), (key, event_id))
        return event_id

    def pass_on(self, data: bytes, of: tuple[Hashable, str] | None = None) -> bool:
        """Have an envelope sent some time; say whether it is not dropped because too many wait.

        `of` is the error, and the event's id, that is not to be named again when it could not be sent.
        """
        try:
            self._waiting.put_nowait((data, of))
        except queue.Full:
            self._count("not_reported")
            return False
        if self._thread is None:
            # While the thread makes its request, a job's answer would wait for Python's 5 ms, each time.
            sys.setswitchinterval(SWITCH)
            self._thread = threading.Thread(target=self._run, name="sentry", daemon=True)
            self._thread.start()
        return True

    def note_repeated(self, key: Hashable = None) -> str | None:
        """Count an error that its child held back, since the same was sent; return the last one's id."""
        self._repeats.hold(key)
        return self._last_of(key)

    def _last_of(self, key: Hashable) -> str | None:
        with self._lock:
            self._counts["repeated"] += 1
            return self._last.get(key)

    def close(self, seconds: float = TIMEOUT) -> None:
        """Give the events that wait so many seconds to be sent, and say what became of all."""
        deadline = time.monotonic() + seconds
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(left)
            left_over = self._waiting.unfinished_tasks
        counts = self.counts
        counts["not_reported"] += left_over
        if counts["not_reported"]:
            self._log.warning("errors were not reported", count=counts["not_reported"])
        if any(counts.values()):
            self._log.info("errors", **counts)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _run(self) -> None:
        while True:
            data, of = self._waiting.get()
            sent = False
            try:
                sent = self._send(data)
            except Exception as exc:  # of one event; the next may be sent
                self._count("not_reported")
                self._log.warning("an error was not reported", error=type(exc).__name__)
            finally:
                if not sent and of is not None:
                    self._forget(*of)
                self._waiting.task_done()

    def _forget(self, key: Hashable, event_id: str) -> None:
        """See to it that no later record names an event that is not there."""
        with self._lock:
            if self._last.get(key) == event_id:
                del self._last[key]

    def _send(self, data: bytes) -> bool:
        if time.monotonic() < self._not_before:
            self._count("not_reported")
            return False
        try:
            wait = deliver(self._dsn, data, self._timeout)
        except OSError as exc:
            self._count("not_reported")
            if isinstance(exc, Refused):
                self._not_before = time.monotonic() + exc.wait
            self._note_away(exc)
            return False
        else:
            self._not_before = time.monotonic() + wait
            with self._lock:
                self._counts["reported"] += 1
                missed = self._counts["not_reported"] - self._before
            if self._away_since is not None:
                away = round(time.monotonic() - self._away_since)
                self._log.info("sentry is back", not_reported=missed, away=f"{away}s")
            self._away_since = None
            return True

    def _note_away(self, exc: OSError) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = self._told = now
            self._before = self.counts["not_reported"] - 1
            self._log.warning("sentry is away", error=exc)
        elif now - self._told >= STILL_AWAY:
            self._told = now
            self._log.warning(
                "sentry is still away", error=exc, not_reported=self.counts["not_reported"] - self._before
            )
        else:
            self._log.debug("sentry is still away", error=exc)


def time_text(at: float) -> str:
    """Return Unix seconds as Sentry has them."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
