"""The child: one long-lived process that imports the application and runs its jobs.

It holds no connection to any queue server. It is started by `kestrel_stack.consumer.runner` as
``python -m kestrel_stack.consumer.child DESCRIPTOR PARENT MODULE:REGISTRY`` and ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import inspect
import json
import math
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from kestrel_stack.consumer import frames, reporting, sentry
from kestrel_stack.consumer.log import Log, Sink
from kestrel_stack.consumer.registry import Context, Job, Registry
from kestrel_stack.consumer.retry import Park, Retry, next_delay
from kestrel_stack.queue.envelope import clean_text
from kestrel_stack.queue.spinning import Spinner

MAX_STACK = 16 * 1024
MAX_MESSAGE = 4 * 1024
"""Longest stack and message of an error that is reported, in characters."""
MAX_TEXT = 64 * 1024
"""Longest text that a job logs in one field, in characters; the rest is cut off."""

_PR_SET_PDEATHSIG = 1


class Pipe:
    """The child's end of the connection to its parent; jobs' threads may log through it, too."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._decoder = frames.Decoder()
        self._waiting: list[tuple[dict[str, Any], bytes]] = []
        self._spinner = Spinner()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        # A copy made by fork must neither answer in this process's name nor read its messages. The lock may
        # have been held by a thread that the copy does not have.
        self._lock = threading.Lock()
        self._socket.close()

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a message to the parent."""
        with self._lock:
            self._socket.sendall(frames.encode(head, body))

    def pass_on(self, envelope: bytes) -> None:
        """Have the parent send an envelope to Sentry."""
        with contextlib.suppress(OSError):
            self.send({"type": "envelope"}, envelope)

    def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the parent's next message, or None when it has gone."""
        while not self._waiting:
            data = self._spinner.look(self._received)
            if data is None:
                data = self._socket.recv(frames.CHUNK)
            self._spinner.note()
            if not data:
                return None
            self._waiting += self._decoder.feed(data)
        return self._waiting.pop(0)

    def _received(self) -> bytes | None:
        try:
            return self._socket.recv(frames.CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def log(self, job: Mapping[str, object], level: str, event: str, fields: dict[str, object]) -> None:
        """Pass a line of `job` to the parent; a forked copy, which has no pipe, prints it."""
        plain = {_cut(key): _plain(content) for key, content in fields.items() if content is not None}
        try:
            self.send({"type": "log", "of": job, "level": level, "event": _cut(event), "fields": plain})
        except OSError:
            print(level, event, plain, file=sys.stderr)  # noqa: T201


def main(arguments: list[str]) -> int:
    """Run jobs until the parent closes the connection or goes away."""
    descriptor, parent, app = int(arguments[0]), int(arguments[1]), arguments[2]
    _die_with(parent)
    _leave_signals_to_parent()
    pipe = Pipe(descriptor)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    registry, problem = load(app)
    if registry is None:
        pipe.send({"type": "unusable", **problem})
        return 0
    about = {
        "release": os.environ.get("KESTREL_STACK_RELEASE"),
        "environment": os.environ.get("KESTREL_STACK_ENVIRONMENT"),
        "server_name": os.environ.get("KESTREL_STACK_HOST"),
    }
    # After the application, which may have set it up itself.
    reports = reporting.find(about, os.environ.get("SENTRY_DSN"), pipe.pass_on)
    pipe.send({"type": "ready", "jobs": registry.names})
    process = os.getpid()
    while (message := pipe.receive()) is not None:
        head, body = message
        answer = run(registry, {**head, **about}, body, pipe, reports)
        if os.getpid() != process:
            # The job forked and its copy came back here: it must not go on as if it were the worker's child.
            _flush()
            os._exit(0)
        _flush()
        if head.get("memory"):
            answer["memory"] = memory()
        pipe.send({"type": "result", "number": head["number"], **answer})
    if reports is not None:
        reports.close()
    return 0


def load(app: str) -> tuple[Registry | None, dict[str, str]]:
    """Import ``MODULE:REGISTRY``; return the registry, or None and what is wrong."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attribute = app.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except BaseException as exc:  # SystemExit of an application's module is no reason to end quietly
        where = _last_line_outside_of_import(exc.__traceback__)
        message = f"{type(exc).__name__}: {_message(exc)}" + (f" ({where})" if where else "")
        return None, {"message": message, "stack": _stack(exc, exc.__traceback__)}
    if not isinstance(found, Registry):
        what = "has no such name" if found is None else f"has a {type(found).__name__} there, not a Registry"
        return None, {"message": f"{module_name} {what}: {attribute}", "stack": ""}
    if not found.names:
        return None, {"message": "the registry has no jobs", "stack": ""}
    return found, {}


def run(
    registry: Registry,
    head: Mapping[str, Any],
    body: bytes,
    pipe: Pipe,
    reports: reporting.Own | reporting.Sdk | None = None,
) -> dict[str, Any]:
    """Do the job in `body`, an envelope that the parent has checked; return what it must know of the end."""
    job = json.loads(body)
    function = registry.get(job["job"])
    if function is None:
        return {"outcome": "unknown", "known": registry.names}
    of = {
        "queue": head["queue"],
        "job": job["job"],
        "id": job["id"],
        "tenant": job["tenant"],
        "attempt": int(job["attempt"]),
    }
    context = Context(
        job=job["job"],
        id=job["id"],
        tenant=job["tenant"],
        attempt=int(job["attempt"]),
        enqueued_at=int(job["enqueued_at"]),
        trace=job.get("trace"),
        environment=head["environment"],
        release=head["release"],
        log=Log(partial(pipe.log, of) if reports is None else _telling(reports, pipe, of)),
        queue=head["queue"],
    )
    if reports is None:
        return attempt(registry, function, job["data"], context)[0]
    tags = {key: of[key] for key in ("job", "queue", "tenant", "attempt")}
    tags |= {"release": context.release, "job_id": job["id"]}
    with reports.job(tags, partial(_contexts, job, head["delays"])):
        answer, exc = attempt(registry, function, job["data"], context)
        if exc is not None:
            lasts = answer.get("asks") == "park" or next_delay(context.attempt, head["delays"]) is None
            level = "error" if lasts else "warning"
            # Whatever goes wrong in reporting, the job's own end is what counts.
            with contextlib.suppress(Exception):
                answer |= reports.failed(exc, answer["error"], _outside(exc), level, tags)
        return answer


def _contexts(job: Mapping[str, Any], delays: Sequence[int]) -> dict[str, Mapping[str, object]]:
    """Return what Sentry may know of a job; its data is nobody's business but the application's."""
    found: dict[str, Mapping[str, object]] = {
        "job": {
            "type": "job",
            "id": job["id"],
            "attempt": f"{int(job['attempt'])} of {len(delays) + 1}",
            "enqueued_at": sentry.time_text(int(job["enqueued_at"]) / 1000),
        }
    }
    if trace := sentry.trace_of(job.get("trace")):
        found["trace"] = {"type": "trace", **trace}
    return found


def attempt(
    registry: Registry, function: Job, data: dict[str, Any], context: Context
) -> tuple[dict[str, Any], BaseException | None]:
    """Run the job inside of what is set up around it; return the answer, and the error if it failed."""
    entered = False
    raised: BaseException | None = None
    try:
        with contextlib.ExitStack() as stack:
            for around in registry.arounds:
                stack.enter_context(around(context))
            entered = True
            try:
                returned = function(data, context)
                if inspect.isawaitable(returned) or inspect.isgenerator(returned):
                    raise TypeError(f"the job returned a {type(returned).__name__}, which nobody would run")
            except BaseException as exc:
                raised = exc
                raise
        if raised is not None:  # suppressed by what is around it, which must not make a failure a success
            raise raised
    except BaseException as exc:  # also sys.exit() in a job ends the job only
        answer = failure(exc)
        if entered and exc is not raised:
            # Clearing failed: what was set for this tenant must not be there for the next one.
            answer["replace"] = True
        return answer, exc
    return {"outcome": "done"}, None


def failure(exc: BaseException) -> dict[str, Any]:
    """Return what the parent must know of a job that ended with `exc`."""
    answer: dict[str, Any] = {
        "outcome": "failed",
        "error": {"class": _class(exc), "message": _message(exc), "stack": _stack(exc, _outside(exc))},
    }
    if isinstance(exc, Park):
        answer |= {"asks": "park", "reason": _text(exc.reason)[:MAX_MESSAGE]}
    elif isinstance(exc, Retry):
        answer |= {"asks": "retry", "delay": _plain(exc.delay)}
    return answer


def _outside(exc: BaseException) -> TracebackType | None:
    """Return where the application's part of the traceback begins."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _telling(reports: reporting.Own | reporting.Sdk, pipe: Pipe, of: Mapping[str, object]) -> Sink:
    def sink(level: str, event: str, fields: dict[str, object]) -> None:
        pipe.log(of, level, event, fields)
        with contextlib.suppress(Exception):
            reports.crumb(level, _cut(event), {_cut(key): _plain(content) for key, content in fields.items()})

    return sink


def memory() -> int:
    """Return the memory that this process occupies, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _leave_signals_to_parent() -> None:
    # A handler that does nothing, not SIG_IGN: programs that a job starts would inherit being deaf.
    parents = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    for number in parents:
        signal.signal(number, lambda *_: None)

    def as_usual() -> None:
        for number in parents:
            signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=as_usual)
    # SIGABRT is how the parent ends a job that takes too long: the stack is printed, without a core file.
    faulthandler.enable()
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - this runs after every job, and is the faster way
            stream.flush()
        except Exception:  # noqa: S110 - the job may have closed or replaced it
            pass


def _class(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(exc: BaseException) -> str:
    return _text(exc)[:MAX_MESSAGE]


def _stack(exc: BaseException, trace: TracebackType | None) -> str:
    try:
        text = "".join(traceback.format_exception(type(exc), exc, trace))
    except Exception:  # an exception whose __str__ raises
        text = "".join(traceback.format_tb(trace))
    # The end says where it happened.
    return clean_text(text[-MAX_STACK:])


def _text(content: object) -> str:
    try:
        return clean_text(str(content))
    except Exception:
        return f"<{type(content).__name__}>"


def _cut(content: object) -> str:
    text = _text(content)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _plain(content: object) -> object:
    """Return `content` as it is when JSON and every reader of it keep it, otherwise as text."""
    kind = type(content)
    if content is None or kind is bool or (kind is int and abs(content) < 2**63):  # type: ignore[arg-type]
        return content
    if kind is float and math.isfinite(content):  # type: ignore[arg-type]
        return content
    return _cut(content)


def _last_line_outside_of_import(trace: TracebackType | None) -> str:
    places = [
        f"{frame.filename} line {frame.lineno}"
        for frame in traceback.extract_tb(trace)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    return places[-1] if places else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
