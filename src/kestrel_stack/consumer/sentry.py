"""Reporting failed jobs to Sentry, without a library: one event is one envelope, sent by HTTP.

Source of the format: develop.sentry.dev, "Envelopes" and "Event Payloads"; accepted by Sentry and Bugsink.
The DSN holds a key: no message of this module names it.
"""

from __future__ import annotations

import http.client
import json
import linecache
import queue
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote

from kestrel_stack import __version__
from kestrel_stack.consumer.log import Log

TIMEOUT = 2.0
"""Seconds for connecting, and for each step of an exchange with Sentry."""
MAX_WAITING = 100
"""So many events wait to be sent; further ones are dropped, so that a dead Sentry costs no memory."""
MAX_CRUMBS = 100
MAX_CRUMB_TEXT = 1024
"""The newest lines of a job that go with its event, and the longest text of one, in characters."""
MAX_FRAMES = 50
CLIENT = f"kestrel-stack/{__version__}"

_DSN = re.compile(
    r"(?P<scheme>https?)://(?P<key>[A-Za-z0-9]+)(?::[A-Za-z0-9]+)?@"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<prefix>(?:/[A-Za-z0-9._~-]+)*)/(?P<project>[A-Za-z0-9_-]+)/?"
)


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
        return f"{self.scheme}://{self.host}:{self.port}"


class Refused(OSError):  # noqa: N818 - it names what was answered
    """Sentry answered that it does not take the event; `wait` is for how many seconds it wants no other."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def send(dsn: str | Dsn, event: Mapping[str, Any], timeout: float = TIMEOUT) -> str:
    """Send one event and return its id; `timeout` in seconds, for each step.

    Raises `ValueError` for a wrong DSN and `OSError` when the event was not taken, each with one line.
    """
    target = Dsn.parse(dsn) if isinstance(dsn, str) else dsn
    event_id = str(event.get("event_id") or uuid.uuid4().hex)
    data = json.dumps({**event, "event_id": event_id}, default=str).encode("ascii")
    head = {"event_id": event_id, "sent_at": _time(time.time())}
    body = b"\n".join(
        [
            json.dumps(head).encode("ascii"),
            json.dumps({"type": "event", "length": len(data)}).encode("ascii"),
            data,
        ]
    )
    headers = {
        "Content-Type": "application/x-sentry-envelope",
        "User-Agent": CLIENT,
        "X-Sentry-Auth": f"Sentry sentry_version=7, sentry_client={CLIENT}, sentry_key={target.key}",
    }
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=timeout)
    try:
        connection.request("POST", target.path, body + b"\n", headers)
        answer = connection.getresponse()
        status, after = answer.status, answer.getheader("Retry-After", "")
    except TimeoutError:
        raise OSError(f"{target} gave no answer in {timeout:g} s.") from None
    except (OSError, http.client.HTTPException) as exc:
        said = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise OSError(f"{target} is not reachable: {said}.") from None
    finally:
        connection.close()
    if status != 200:
        wait = float(after) if re.fullmatch(r"[0-9]{1,5}", after or "") else 0.0
        raise Refused(f"{target} answered with status {status}.", max(wait, 60.0) if status == 429 else 0.0)
    return event_id


def make_event(
    kind: str,
    message: str,
    *,
    level: str,
    tags: Mapping[str, object],
    frames: list[dict[str, Any]] | None = None,
    crumbs: Iterable[tuple[float, str, str, Mapping[str, object]]] = (),
    extra: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return an event for an error of class `kind`.

    `crumbs` are the job's lines: Unix seconds, level, event, fields.
    """
    exception: dict[str, Any] = {"type": kind, "value": message}
    if frames:
        exception["stacktrace"] = {"frames": frames}
    job = str(tags["job"]) if tags.get("job") else None
    return {
        "event_id": uuid.uuid4().hex,
        "timestamp": _time(time.time()),
        "platform": "python",
        "level": level,
        "logger": "kestrel_stack.consumer",
        "transaction": job,
        # Without a stack all jobs that take too long would be one error.
        "fingerprint": ["{{ default }}"] if job is None else ["{{ default }}", job],
        "exception": {"values": [exception]},
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
        "breadcrumbs": {"values": [crumb(*line) for line in list(crumbs)[-MAX_CRUMBS:]]},
        "extra": dict(extra or {}),
    }


def crumb(at: float, level: str, event: str, fields: Mapping[str, object]) -> dict[str, Any]:
    """Return a line of a job's as a breadcrumb; `at` in Unix seconds."""
    return {
        "timestamp": _time(at),
        "category": "job",
        "level": level,
        "message": event[:MAX_CRUMB_TEXT],
        "data": {key: str(value)[:MAX_CRUMB_TEXT] for key, value in fields.items()},
    }


def frames_of(trace: TracebackType | None) -> list[dict[str, Any]]:
    """Return a traceback as Sentry has it, the innermost frame last."""
    found = []
    while trace is not None:
        code = trace.tb_frame.f_code
        line = linecache.getline(code.co_filename, trace.tb_lineno).rstrip("\n")
        found.append(
            {
                "filename": code.co_filename,
                "abs_path": code.co_filename,
                "module": str(trace.tb_frame.f_globals.get("__name__", "")),
                "function": code.co_name,
                "lineno": trace.tb_lineno,
                "context_line": line[:500],
                "in_app": "site-packages" not in code.co_filename and "dist-packages" not in code.co_filename,
            }
        )
        trace = trace.tb_next
    return found[-MAX_FRAMES:]


class Reporter:
    """Sends events from a thread of its own: nobody waits for Sentry. It starts with the first event.

    `about` goes into every event: release, environment, server_name.
    """

    def __init__(
        self,
        dsn: Dsn,
        log: Log,
        about: Mapping[str, str | None],
        timeout: float = TIMEOUT,
        waiting: int = MAX_WAITING,
    ):
        self._dsn = dsn
        self._log = log
        self._about = {key: value for key, value in about.items() if value}
        self._timeout = timeout
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None
        self._away = False
        self._dropped = 0
        self._not_before = 0.0

    def report(self, event: Mapping[str, Any]) -> str:
        """Have an event sent some time; return its id."""
        full = {**self._about, **event}
        if "release" in self._about:
            full["tags"] = {**full.get("tags", {}), "release": self._about["release"]}
        try:
            self._waiting.put_nowait(full)
        except queue.Full:
            self._dropped += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sentry", daemon=True)
            self._thread.start()
        return str(full["event_id"])

    def close(self, seconds: float = TIMEOUT) -> None:
        """Give the events that wait so many seconds to be sent."""
        deadline = time.monotonic() + seconds
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(left)
            left_over = self._waiting.unfinished_tasks
        if left_over or self._dropped:
            self._log.warning("errors were not reported", count=left_over + self._dropped)

    def _run(self) -> None:
        while True:
            event = self._waiting.get()
            try:
                self._send(event)
            except Exception as exc:  # of one event; the next may be sent
                self._log.warning("an error was not reported", error=type(exc).__name__)
            finally:
                self._waiting.task_done()

    def _send(self, event: Mapping[str, Any]) -> None:
        if time.monotonic() < self._not_before:
            self._dropped += 1
            return
        try:
            send(self._dsn, event, self._timeout)
        except OSError as exc:
            self._dropped += 1
            if isinstance(exc, Refused):
                self._not_before = time.monotonic() + exc.wait
            (self._log.debug if self._away else self._log.warning)("sentry is away", error=exc)
            self._away = True
        else:
            if self._away:
                self._log.info("sentry is back", not_reported=self._dropped)
            self._away = False
            self._dropped = 0


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
