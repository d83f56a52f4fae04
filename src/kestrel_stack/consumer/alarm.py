"""Reports workers that crash, stay down or do not start: supervisor's event listener.

``python -m kestrel_stack.consumer.alarm --config F --groups G,…``, started by supervisor as an eventlistener
for PROCESS_STATE_FATAL, PROCESS_STATE_EXITED and PROCESS_STATE_BACKOFF. Sentry is told when the settings
name one, and the address in ``KESTREL_STACK_ALARM_WEBHOOK`` when it is set; its own log on stderr has
everything in any case. Supervisor waits for an answer to each event, so that is given at once; reports go
out from a thread, with a bounded queue and short limits.

Protocol and events: https://supervisord.org/events.html. Supervisor's event does not carry the exit status,
its log does: a worker that reached its limits (exit status 0) is told from one that crashed by that.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import QueueError

WAITING = 100
"""Reports that may wait for the thread; what comes when so many wait is counted and logged, not sent."""
QUIET_SECONDS = 300.0
"""The same trouble of the same group is sent once in this time, with how often it was seen meanwhile."""
SEND_SECONDS = 5.0
LAST_WORDS_SECONDS = 2.0
"""How long reports that wait may still take when supervisor ends us."""
TRIES = (5, 50, 500)
"""Failed starts in a row that are reported; supervisor waits longer after each."""
EX_CONFIG = 78
LOG_TAIL = 65536
"""Bytes of supervisor's log that are looked through for an exit status."""
SUPERVISORD_LOG = Path("/var/log/supervisor/supervisord.log")


@dataclass(frozen=True)
class Trouble:
    """Something that a person should know of a worker process."""

    kind: str
    """crashed, down, fatal or not starting."""
    group: str
    process: str
    text: str
    """One sentence."""


def judge(event: str, payload: Mapping[str, str], exit_status: Callable[[str], str | None]) -> Trouble | None:
    """Say what trouble supervisor's event is; None when it is none.

    `exit_status` returns how a process ended, in supervisor's own words, like ``exit status 1``, or None when
    its log does not say.
    """
    group, process = payload.get("groupname", "?"), payload.get("processname", "?")
    if event == "PROCESS_STATE_FATAL":
        return Trouble("fatal", group, process, f"{process} is FATAL: supervisor has given it up")
    if event == "PROCESS_STATE_BACKOFF":
        tries = int(payload.get("tries", "0"))
        if tries not in TRIES:
            return None
        return Trouble(
            "not starting", group, process, f"{process} has failed to start {tries} times in a row"
        )
    if event != "PROCESS_STATE_EXITED":
        return None
    ended = exit_status(process)
    # Our programs have exitcodes=78: that one is expected, and stays down.
    if payload.get("expected") == "1":
        words = ended or f"exit status {EX_CONFIG}"
        return Trouble("down", group, process, f"{process} stays down: it cannot run as configured ({words})")
    if ended == "exit status 0":
        return None
    words = ended or "supervisor's log does not say how"
    return Trouble("crashed", group, process, f"{process} ended unasked ({words}) and is started again")


def read_exit_status(process: str, log: Path = SUPERVISORD_LOG) -> str | None:
    """Return supervisor's words for how a process last ended: ``exit status 1``, ``terminated by SIGKILL``.

    Source: supervisor 4.2.5's ``Subprocess.finish`` and ``decode_wait_status``. It writes the line before it
    hands out the event.
    """
    line = re.compile(rf" exited: {re.escape(process)} \((.+?)(?: \(core dumped\))?; (?:not )?expected\)$")
    for file in (log, log.with_name(f"{log.name}.1")):
        try:
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - LOG_TAIL))
                text = opened.read().decode(errors="replace")
        except OSError:
            continue
        for said in reversed(text.splitlines()):
            if found := line.search(said):
                return found[1]
    return None


class Reporter:
    """Sends troubles from a thread of its own: never in the way of whoever hands them in."""

    def __init__(self, send: Callable[[Trouble, int], None], log: Callable[..., None]) -> None:
        self._send = send
        self._log = log
        self._waiting: queue.Queue[Trouble] = queue.Queue(WAITING)
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self, trouble: Trouble) -> None:
        """Log a trouble and have it sent, unless the same was sent a moment ago or too many wait."""
        key = (trouble.kind, trouble.group)
        since, more = self._seen.get(key, (float("-inf"), 0))
        fields = {"kind": trouble.kind, "group": trouble.group, "process": trouble.process}
        if time.monotonic() - since < QUIET_SECONDS:
            self._seen[key] = (since, more + 1)
            self._log("warning", trouble.text, **fields, sent=False)
            return
        # Nobody else puts anything in, so that it does not fill up in between; logged first, since the thread
        # may have something to say of it at once.
        if self._waiting.full():
            self._log("warning", trouble.text, **fields, sent=False, waiting=WAITING)
            return
        self._log("warning", trouble.text, **fields, sent=True)
        self._waiting.put_nowait(trouble)

    def end(self, seconds: float) -> None:
        """Give what waits some time to go out."""
        deadline = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
            # The thread tells nobody when it is done; the end of the process may wait a moment.
            time.sleep(min(0.02, left))

    def _run(self) -> None:
        while True:
            trouble = self._waiting.get()
            key = (trouble.kind, trouble.group)
            since, more = self._seen.get(key, (float("-inf"), 0))
            # Several of one kind may have come in before the first of them was sent.
            if time.monotonic() - since < QUIET_SECONDS:
                self._seen[key] = (since, more + 1)
            else:
                self._seen[key] = (time.monotonic(), 0)
                try:
                    self._send(trouble, more)
                except Exception as error:
                    # Whatever it is, the next report must find this thread alive.
                    self._log("error", "report not sent", error=f"{type(error).__name__}: {error}")
            self._waiting.task_done()


class Senders:
    """Where reports go: Sentry, as the settings say now, and a webhook."""

    def __init__(self, config: str, webhook: str | None, log: Callable[..., None]) -> None:
        self._config = config
        self._webhook = webhook
        self._log = log

    def send(self, trouble: Trouble, more: int) -> None:
        """Send to each; what one of them says is logged and does not keep it from the others."""
        about = self._settings()
        text = trouble.text + (f"; seen {more} more times since the last report" if more else "")
        if about.get("sentry_dsn"):
            from kestrel_stack.consumer import sentry

            self._try("sentry", lambda: sentry.send(about["sentry_dsn"], _event(trouble, text, about)))
        if self._webhook:
            self._try("webhook", lambda: self._post(trouble, text, about))

    def _try(self, to: str, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as error:
            # The kind alone: urllib's sentences may repeat the address, which may hold a token.
            self._log("error", "report not sent", to=to, error=type(error).__name__)

    def _post(self, trouble: Trouble, text: str, about: Mapping[str, Any]) -> None:
        said = {
            "text": f"[{about['environment']}] {about['host']}: {text}",
            "kind": trouble.kind,
            "group": trouble.group,
            "process": trouble.process,
            "app": about["app"],
            "environment": about["environment"],
            "host": about["host"],
        }
        request = urllib.request.Request(  # noqa: S310 - the playbook lets http and https pass alone
            self._webhook or "",
            data=json.dumps(said).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "kestrel-stack-alarm"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=SEND_SECONDS) as answer:  # noqa: S310
            answer.read(1024)

    def _settings(self) -> dict[str, Any]:
        """Read them anew each time: a report is rare, and says what is true now."""
        try:
            found = settings.load(self._config)
        except QueueError as error:
            self._log("error", "settings cannot be used", error=error)
            return {"app": None, "environment": None, "host": socket.gethostname()}
        return {
            "app": found.app,
            "environment": found.environment,
            "host": found.host,
            "sentry_dsn": found.sentry_dsn,
        }


def _event(trouble: Trouble, text: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "timestamp": time.time(),
        "platform": "other",
        "level": "fatal" if trouble.kind in ("fatal", "down") else "error",
        "logger": "kestrel_stack.alarm",
        "logentry": {"message": text, "formatted": text},
        "server_name": about["host"],
        "environment": about["environment"],
        # One issue for each kind of trouble of a group, whichever of its processes it is.
        "fingerprint": ["kestrel-stack-alarm", trouble.kind, trouble.group],
        "tags": {"group": trouble.group, "process": trouble.process, "kind": trouble.kind},
    }


def listen(
    stdin: BinaryIO,
    stdout: BinaryIO,
    groups: Sequence[str],
    take: Callable[[Trouble], None],
    log: Callable[..., None],
    exit_status: Callable[[str], str | None] = read_exit_status,
) -> None:
    """Answer supervisor's events until its end of the pipe closes."""
    while True:
        stdout.write(b"READY\n")
        stdout.flush()
        line = stdin.readline()
        if not line:
            return
        header = _words(line)
        payload = stdin.read(int(header.get("len", "0"))).decode(errors="replace")
        # Before anything else: supervisor holds back the next event until it has this.
        stdout.write(b"RESULT 2\nOK")
        stdout.flush()
        try:
            said = _words(payload.partition("\n")[0].encode())
            if said.get("groupname") in groups:
                trouble = judge(header.get("eventname", ""), said, exit_status)
                if trouble:
                    take(trouble)
        except Exception as error:
            # An event that nobody foresaw must not end the alarm.
            log("error", "event not understood", error=f"{type(error).__name__}: {error}", line=line)


def _words(line: bytes) -> dict[str, str]:
    pairs = (word.partition(":") for word in line.decode(errors="replace").split())
    return {key: value for key, _, value in pairs}


def write_log(level: str, event: str, **fields: object) -> None:
    """Write one line of JSON to stderr."""
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    line = json.dumps({"time": stamp, "level": level, "event": event, **fields}, default=str)
    # In one write, since two threads log.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen until supervisor ends; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kestrel_stack.consumer.alarm",
        description="Report workers that crash, stay down or do not start. Supervisor starts it.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the application's settings file")
    parser.add_argument("--groups", required=True, metavar="G,…", help="supervisor's groups to report")
    parser.add_argument(
        "--supervisord-log", type=Path, default=SUPERVISORD_LOG, metavar="FILE", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--current",
        type=Path,
        metavar="LINK",
        help="the application's current release: before there is one, workers that stay down are no trouble",
    )
    given = parser.parse_args(arguments)
    senders = Senders(given.config, os.environ.get("KESTREL_STACK_ALARM_WEBHOOK"), write_log)
    reporter = Reporter(senders.send, write_log)

    def take(trouble: Trouble) -> None:
        if trouble.kind != "down" or given.current is None or given.current.exists():
            reporter.take(trouble)

    def end(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        listen(
            sys.stdin.buffer,
            sys.stdout.buffer,
            given.groups.split(","),
            take,
            write_log,
            lambda process: read_exit_status(process, given.supervisord_log),
        )
    except BrokenPipeError:
        # Supervisor is gone; nothing is left to hear.
        return 0
    finally:
        reporter.end(LAST_WORDS_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
