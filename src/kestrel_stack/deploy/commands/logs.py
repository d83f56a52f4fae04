"""`fab logs`: what the workers of all hosts wrote, merged by time, and with ``--follow`` what they write."""

from __future__ import annotations

import contextlib
import os
import queue as queues
import sys
import threading
from dataclasses import dataclass, replace

from .. import description, scripts, workerlogs
from ..description import Environment, Host
from ..errors import DONE, Cancelled, DeployError, Refused
from ..report import Report
from ..session import Session, interruptible
from ..workerlogs import Entry, Stream
from .look import ask_everywhere, end_with
from .workers import only_queue

LINES = 50
"""How many lines are shown when nobody says."""
MOST_LINES = 100_000
FOREVER = 10 * 365 * 86400.0
"""Seconds that following may take."""
RETRY_PAUSES = (1, 2, 5, 10)
"""Seconds between two tries to reach a host that went away; the last one from then on."""
ORDER = 0.5
"""Seconds for which lines are collected and put in order, before they are shown."""
FIRST_LINES = 15.0
"""Seconds that a host gets for what its logs have already, before the others' lines are shown without it."""


@dataclass(frozen=True)
class AskLogs:
    """What a person asked `fab logs` for."""

    env: str = "lab"
    queue: str | None = None
    limit: str | None = None
    follow: bool = False
    lines: str | None = None
    """How many of the last lines, all hosts together; None: LINES."""
    as_json: bool = False


def logs(ask: AskLogs, out: Report) -> int:
    """Show the last lines of the workers' logs. Returns the exit code; raises DeployError."""
    try:
        return _logs(ask, out)
    except BrokenPipeError:
        # As with `| head`. What is left in the buffer must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _logs(ask: AskLogs, out: Report) -> int:
    lines = parse_lines(ask.lines)
    environment = _with_logs(only_queue(description.load_environment(ask.env, ask.limit), ask.queue))
    show = _Show(environment, ask.as_json, out)
    with Session(environment, out) as session:
        if ask.follow:
            return _Following(session, ask.queue is not None, lines, show, out).run()
        with interruptible():
            found, errors = ask_everywhere(
                session, lambda host: _last(session, host, ask.queue is not None, lines)
            )
            merged = workerlogs.in_order(entry for name in found for entry in found[name])
            show(merged[-lines:] if lines else [])
            return end_with(errors)


def parse_lines(text: str | None) -> int:
    """Read the flag ``--lines``. Raises Refused unless it is a whole number that makes sense."""
    if text is None:
        return LINES
    if not text.isdecimal() or int(text) > MOST_LINES:
        raise Refused(f"--lines is {text!r}; it must be a whole number from 0 to {MOST_LINES}")
    return int(text)


def _with_logs(environment: Environment) -> Environment:
    hosts = tuple(host for host in environment.hosts if host.queues)
    if not hosts:
        raise Refused(
            f"no host of {environment.name} that is meant runs workers, so there are no logs of them"
        )
    return replace(environment, hosts=hosts)


def _script(session: Session, host: Host, narrowed: bool, lines: int | None, stream: Stream | None) -> str:
    groups = [queue.group for queue in host.queues] if narrowed else []
    return scripts.logs(
        session.root, groups, lines=lines, follow=stream is not None, at=stream.at if stream else None
    )


def _last(session: Session, host: Host, narrowed: bool, lines: int) -> list[Entry]:
    stream = Stream(host.name)
    result = session.run(host, _script(session, host, narrowed, lines, None), "logs", timeout=120)
    return [entry for line in result.lines if (entry := stream.take(line)) is not None]


class _Show:
    """Prints entries, as text or as JSON."""

    def __init__(self, environment: Environment, as_json: bool, out: Report) -> None:
        self._json = as_json
        self._out = out
        self._host_width = max(len(host.name) for host in environment.hosts)
        self._worker_width = max(len(one.group) + 3 for host in environment.hosts for one in host.queues)

    def __call__(self, entries: list[Entry]) -> None:
        if self._json:
            self._out.lines([workerlogs.as_json(entry) for entry in entries])
        else:
            self._out.lines(
                [workerlogs.as_text(entry, self._host_width, self._worker_width) for entry in entries]
            )


class _Following:
    """Follows the logs of every host, each in a thread of its own, until a person has seen enough."""

    def __init__(self, session: Session, narrowed: bool, lines: int, show: _Show, out: Report) -> None:
        self._session = session
        self._narrowed = narrowed
        self._lines = lines
        self._show = show
        self._out = out
        self._first: queues.SimpleQueue[Entry] = queues.SimpleQueue()
        """What the logs had already, of which the last lines are shown."""
        self._new: queues.SimpleQueue[Entry] = queues.SimpleQueue()
        """What was written since, all of which is shown."""
        self._streams = {host.name: Stream(host.name) for host in session.hosts}
        self._gone: dict[str, BaseException] = {}
        """Hosts whose logs cannot be read, by name."""
        self._away: set[str] = set()
        """Hosts that do not answer at the moment."""

    def run(self) -> int:
        """Follow until Ctrl-C, which is a good end; raises DeployError when no host's logs can be read."""
        threads = [
            threading.Thread(target=self._follow, args=(host,), name=f"logs-{host.name}", daemon=True)
            for host in self._session.hosts
        ]
        try:
            with interruptible():
                for thread in threads:
                    thread.start()
                self._wait_for_first(threads)
                self._show_arrived()
                while any(thread.is_alive() for thread in threads):
                    self._session.cancel.wait(ORDER)
                    self._show_arrived()
        except KeyboardInterrupt:
            pass
        finally:
            self._session.cancel.set()
            for thread in threads:
                # A script whose lifeline ends is over at once; a host that is away is not waited for. Who is
                # interrupted at the beginning has some that never ran.
                if thread.is_alive():
                    thread.join(5)
        if len(self._gone) == len(threads):
            return end_with(self._gone)
        return DONE

    def _wait_for_first(self, threads: list[threading.Thread]) -> None:
        """Wait for what the logs of all hosts have already, so that it is shown in order."""
        waited = 0.0
        while waited < FIRST_LINES and any(
            thread.is_alive() and not self._streams[host.name].caught_up and host.name not in self._away
            for thread, host in zip(threads, self._session.hosts, strict=True)
        ):
            self._session.cancel.wait(0.05)
            waited += 0.05

    def _show_arrived(self) -> None:
        first = workerlogs.in_order(_all_of(self._first))
        last = first[-self._lines :] if self._lines else []
        self._show(workerlogs.in_order([*last, *_all_of(self._new)]))

    def _follow(self, host: Host) -> None:
        """Follow one host's logs; when it goes away, go on where it was when it is back."""
        stream = self._streams[host.name]
        failures = 0

        def hear(line: str) -> None:
            nonlocal failures
            if host.name in self._away:
                self._away.discard(host.name)
                self._out.good("is back", host.name)
            failures = 0
            entry = stream.take(line)
            if entry is not None:
                (self._new if stream.caught_up else self._first).put(entry)

        while not self._session.cancel.is_set():
            stream.resume()
            try:
                # Of a host that comes back, a log that was not there before is new from its first line on.
                lines = None if stream.caught_up else self._lines
                self._session.run(
                    host,
                    _script(self._session, host, self._narrowed, lines, stream),
                    "logs",
                    timeout=FOREVER,
                    on_line=hear,
                    keep_lines=False,
                )
            except Cancelled:
                return
            except DeployError as error:
                # Later on, whatever ended there, such as this machine's sleep, is no reason to stop.
                if not getattr(error, "lost", True) and not stream.caught_up:
                    self._gone[host.name] = error
                    self._out.bad(str(error).removeprefix(f"{host.name}: "), host.name)
                    return
                if host.name not in self._away:
                    self._away.add(host.name)
                    said = str(error).removeprefix(f"{host.name}: ").removeprefix("logs: ")
                    self._out.bad(f"{said}; tried again until it answers", host.name)
                self._session.cancel.wait(RETRY_PAUSES[min(failures, len(RETRY_PAUSES) - 1)])
                failures += 1


def _all_of(arrived: queues.SimpleQueue[Entry]) -> list[Entry]:
    found = []
    with contextlib.suppress(queues.Empty):
        while True:
            found.append(arrived.get_nowait())
    return found
