"""The delay mover: it brings jobs back from the delay queues when they are due.

::

    python -m kestrel_stack.consumer.mover --config /etc/kestrel-stack/shop.json

One runs on every consumer host. For each queue, each of its retry delays and each server it reserves the head
of the delay queue, holds it until it is due, writes it to the main queue and only then confirms it. Whatever
happens in between, the item is still in the delay queue: it may come twice, it is never lost. Items of one
delay queue are due in the order in which they were put, so that holding the head is enough; several movers
hold one each.

Kestrel's own expire_to_queue is not used: it removes an item first, and ignores a target that refuses it
(source: QueueCollection and PersistentQueue of Kestrel 2.4.1).
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from kestrel_stack.consumer import cli, park
from kestrel_stack.consumer.log import Log, Writer
from kestrel_stack.queue import names, settings
from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.envelope import Envelope, now_ms
from kestrel_stack.queue.errors import (
    InvalidEnvelope,
    ProtocolError,
    QueueError,
    QueueFull,
    ReservationLost,
    ServerUnavailable,
)
from kestrel_stack.queue.flags import Parser, UsageError
from kestrel_stack.queue.servers import Backoff, Server, parse_servers

WAIT = 30.0
"""Seconds that a server is asked to wait for an item; then it is asked again."""
AWAY_LIMIT = 10.0
"""Longest wait in seconds between two tries to reach a server or to write an item."""
END_GRACE = 1.0
"""Seconds that items which are being written get when the mover is told to stop."""


@dataclass(frozen=True)
class Plan:
    """What to move: the delays in seconds of each queue, by the queue's name on the servers."""

    delays: Mapping[str, tuple[int, ...]]
    servers: tuple[Server, ...]
    debug: bool
    log_file: str | None


class Servers:
    """What is known of the servers, so that the many connections to one say only once that it is away."""

    def __init__(self, log: Log):
        self._log = log
        self._lock = threading.Lock()
        self._away: set[Server] = set()

    def away(self, server: Server, exc: Exception) -> None:
        """Note that `server` did not answer."""
        with self._lock:
            told = server in self._away
            self._away.add(server)
        if told:
            self._log.debug("server is still away", server=server, error=exc)
        else:
            self._log.error("server is away", server=server, error=exc)

    def answered(self, server: Server) -> None:
        """Note that `server` answered."""
        if server not in self._away:
            return
        with self._lock:
            told = server in self._away
            self._away.discard(server)
        if told:
            self._log.info("server is back", server=server)


class Lane:
    """One delay queue on one server: at most one of its items is held at a time."""

    def __init__(
        self, queue: str, delay: int, server: Server, servers: Sequence[Server], log: Log, known: Servers
    ):
        self._queue = queue
        self._delay = delay
        self._name = names.retry(queue, delay)
        self._server = server
        # Its own server first, so that jobs stay spread over the servers as they were.
        self._targets = sorted(servers, key=lambda target: target != server)
        self._log = log.bind(queue=self._name)
        self._known = known
        self._reader = KestrelClient(server)
        self._writer: KestrelClient | None = None
        self._backoff = Backoff(limit=AWAY_LIMIT)
        self.writing = threading.Lock()
        """Held while an item is written and confirmed; whoever takes it for good ends the lane."""

    def run(self) -> None:
        """Move items for ever."""
        while True:
            try:
                body = self._reader.get(self._name, WAIT, open=True)
                self._known.answered(self._server)
                self._backoff.reset()
                if body is None:
                    self._drop_writer()
                else:
                    self._bring(body)
            except ReservationLost as exc:
                self._log.warning("item was lost while it was held; it is delivered again", error=exc)
            except (ServerUnavailable, ProtocolError) as exc:
                self._known.away(self._server, exc)
                time.sleep(self._backoff.next())

    def _bring(self, body: bytes) -> None:
        """Hold an item until it is due and write it to its queue; what is no job goes to the error queue."""
        try:
            envelope = Envelope.decode(body)
        except InvalidEnvelope as exc:
            self._log.error("not a job", error=exc, server=self._server, bytes=len(body))
            self._move(names.errors(self._queue), park.record(body, str(exc), None, None))
            return
        # Never longer than the queue's delay: a clock that was wrong for a moment holds up nothing for years.
        seconds = min((envelope.due_at or 0) - now_ms(), self._delay * 1000) / 1000
        if seconds > 0:
            self._log.debug("held", id=envelope.id, server=self._server, seconds=round(seconds, 3))
            self._hold(seconds)
        self._move(self._queue, body)
        self._log.debug("moved", id=envelope.id, server=self._server, attempt=envelope.attempt)

    def _hold(self, seconds: float) -> None:
        """Sleep; raise `ReservationLost` as soon as the connection ends: then another gets the item."""
        descriptor = self._reader.fileno()
        if descriptor is not None:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(math.ceil(seconds * 1000))
        self._still_ours()

    def _move(self, target: str, data: bytes) -> None:
        """Write `data` to `target` however often it is refused, then confirm the item."""
        backoff = Backoff(limit=AWAY_LIMIT)
        told = False
        while True:
            with self.writing:
                self._still_ours()
                failure = self._written(target, data)
                if failure is None:
                    self._reader.close_read(self._name)
                    return
            (self._log.debug if told else self._log.error)(
                "cannot move, holding until it works", target=target, error=failure
            )
            told = True
            self._hold(backoff.next())

    def _written(self, target: str, data: bytes) -> Exception | None:
        """Write to the first server that takes it; return what they said when none did."""
        said = []
        for server in self._targets:
            if self._writer is None or self._writer.server != server:
                self._drop_writer()
                self._writer = KestrelClient(server)
            try:
                self._writer.set(target, data)
            except (QueueFull, ServerUnavailable, ProtocolError) as exc:
                said.append(str(exc))
            else:
                return None
        return ServerUnavailable(" ".join(said))

    def _still_ours(self) -> None:
        if not self._reader.connected():
            raise ReservationLost(f"The connection to {self._server} was lost.")

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.disconnect()
        self._writer = None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the mover's flags."""
    made = Parser(
        prog="python -m kestrel_stack.consumer.mover",
        description="Bring jobs back from the delay queues when they are due.",
        epilog="Signals: TERM gives back what is held and ends; USR1 opens the log file again. "
        "Exit status: 0 told to stop; 78 wrong flags or settings.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--config", metavar="FILE", help="settings file (default: the only one in /etc/kestrel-stack)")
    add("--servers", metavar="HOST:PORT,…", help="queue servers, instead of those in the settings file")
    add("--namespace", help="instead of that in the settings file")
    add("--debug", action="store_true", help="log every action, as text")
    add(
        "--log-file",
        metavar="FILE",
        help="log to the end of this file instead of stderr; USR1 opens it again",
    )
    return made


def plan(arguments: Sequence[str], environ: Mapping[str, str]) -> Plan:
    """Return what to do; raise `UsageError` or `QueueError` with one line on what is wrong."""
    given = parser().parse_args(arguments)
    found = settings.load(given.config, environ)
    namespace = given.namespace or found.namespace
    return Plan(
        delays={
            names.make(namespace, queue.name): tuple(sorted(set(queue.retry_delays)))
            for queue in found.queues.values()
            if queue.retry_delays
        },
        servers=parse_servers(given.servers or found.servers),
        debug=given.debug,
        log_file=given.log_file,
    )


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the mover; return the exit status."""
    started = time.monotonic()
    environ = os.environ if environ is None else environ
    try:
        planned = plan(sys.argv[1:] if arguments is None else arguments, environ)
        writer = Writer(planned.debug, file=planned.log_file)
    except (UsageError, QueueError) as exc:
        sys.stderr.write(f"mover: {exc}\n")
        return cli.unusable(started, environ)
    except OSError as exc:
        sys.stderr.write(f"mover: the log file {exc.filename}: {exc.strerror}\n")
        return cli.unusable(started, environ)
    log = Log(writer)
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    # Before the threads, which inherit it: only sigwait below takes these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    known = Servers(log)
    lanes = [
        Lane(queue, delay, server, planned.servers, log, known)
        for queue, delays in planned.delays.items()
        for delay in delays
        for server in planned.servers
    ]
    log.info(
        "mover begins",
        queues=",".join(planned.delays) or "none with retry_delays",
        servers=",".join(map(str, planned.servers)),
        pid=os.getpid(),
    )
    threading.excepthook = lambda failed: _give_up(log, failed)
    for lane in lanes:
        threading.Thread(target=lane.run, daemon=True).start()
    while (number := signal.sigwait(watched)) == signal.SIGUSR1:
        _reopen(writer, log)
    deadline = time.monotonic() + END_GRACE
    for lane in lanes:
        lane.writing.acquire(timeout=max(0.0, deadline - time.monotonic()))
    log.info("mover ends", reason=signal.Signals(number).name)
    # The threads wait for servers; their connections end with the process, and give back what they hold.
    os._exit(cli.EX_OK)


def _reopen(writer: Writer, log: Log) -> None:
    try:
        writer.reopen()
    except OSError as exc:
        log.error("log file cannot be reopened", file=writer.file, error=exc.strerror)


def _give_up(log: Log, failed: threading.ExceptHookArgs) -> NoReturn:
    log.error("the mover has a defect", error=repr(failed.exc_value))
    os._exit(cli.EX_DEFECT)


if __name__ == "__main__":
    sys.exit(main())
