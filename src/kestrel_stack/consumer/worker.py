"""The parent of a worker: it takes items, has its child do them, and confirms or parks each one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kestrel_stack.consumer import park, sentry
from kestrel_stack.consumer.log import Log, Writer
from kestrel_stack.consumer.responder import Responder
from kestrel_stack.consumer.retry import next_delay
from kestrel_stack.consumer.runner import ChildFailed, Outcome, Runner
from kestrel_stack.consumer.signals import Signals
from kestrel_stack.queue.envelope import Envelope, again, now_ms
from kestrel_stack.queue.errors import (
    InvalidEnvelope,
    ProtocolError,
    QueueFull,
    ReservationLost,
    ServerUnavailable,
)
from kestrel_stack.queue.interface import JobQueue, Reservation
from kestrel_stack.queue.servers import Backoff, Server

WAIT = 0.25
"""Seconds that a server is asked to wait for an item. TERM is heeded after as long."""
LOOK_FOR_PINGS = 1.0
"""Seconds that a worker with a rate limit waits at a time, so that a ping is answered meanwhile."""


@dataclass(frozen=True)
class Limits:
    """When a worker ends or slows down. `time` in seconds, `memory` in bytes, `rate` in jobs per second.

    After `memory` the child is replaced; after `jobs` or `time` the worker ends, but not before `min_uptime`:
    a supervisor takes an earlier end for a failed start.
    """

    jobs: int | None = None
    time: float | None = None
    memory: int | None = None
    rate: float | None = None
    min_uptime: float = 5.0
    once: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds for the jobs of one queue; both in seconds."""

    job_timeout: float = 60
    retry_delays: tuple[int, ...] = ()


@dataclass(frozen=True)
class End:
    """What became of an item; a `lost` one is delivered again. `delay` in seconds."""

    outcome: str
    reason: str | None = None
    delay: int | None = None

    @property
    def level(self) -> str:
        """The level of the job's line."""
        return LEVELS[self.outcome]


DONE = End("done")
OF_JOB = ("queue", "job", "id", "tenant", "attempt")
"""The fields that every line about a job has; an event has them as tags."""
LEVELS = {"done": "info", "retry": "warning", "parked": "error", "lost": "warning"}
LOST = "The connection was lost while the job ran: it will be delivered again."


class Worker:
    """Works on one queue until it is told to stop or a limit is reached.

    `rules` are those of each queue that items come from, by its name on the server. `responder` answers pings
    between jobs and while there is none; without it nobody does.
    """

    def __init__(
        self,
        queue: JobQueue,
        rules: Mapping[str, Rules],
        runner: Runner,
        signals: Signals,
        writer: Writer,
        limits: Limits,
        reporter: sentry.Reporter | None = None,
        started: float | None = None,
        responder: Responder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._queue = queue
        self._rules = rules
        self._runner = runner
        self._signals = signals
        self._writer = writer
        self._log = Log(writer)
        self._limits = limits
        self._reporter = reporter
        self._responder = responder
        self._clock = clock
        self._started = clock() if started is None else started
        self._away: set[Server] = set()
        self._jobs = 0
        self._empty = 0
        self._next_at = 0.0
        self._unconfirmed: Reservation | None = None

    def run(self) -> None:
        """Work. Raises `UnusableApp` when a child cannot import the application; no item is lost then."""
        try:
            while (reason := self._reason_to_end()) is None:
                self._turn()
            self._confirm()
            self._log.info("worker ends", reason=reason, jobs=self._jobs)
        finally:
            # Whatever is still reserved goes back to its queue now, not when the application has ended.
            self._queue.drop()
            self._runner.stop()
        while self._signals.stop is None and not self._limits.once and (left := self._too_early()) > 0:
            self._runner.wait(left)

    def _turn(self) -> None:
        """Do one item, or wait for one."""
        self._heed_signals()
        if not self._child_ready():
            return
        if self._responder is not None and self._queue.pings_due():
            # Nothing is reserved meanwhile: a connection that ends here must not bring a done job back.
            self._confirm()
            self._queue.answer_pings(self._responder.host, self._responder.answer)
        if (pause := self._next_at - self._clock()) > 0:
            self._confirm()
            self._runner.wait(min(pause, LOOK_FOR_PINGS))
            return
        reservation = self._reserve()
        if reservation is None:
            return
        # HUP may have come while the server was asked: this job has not begun.
        self._heed_signals()
        if self._signals.stop is not None or not self._child_ready():
            # Not begun: it goes back to the head of its queue for the next worker.
            self._queue.drop()
            return
        if self._limits.rate:
            self._next_at = self._clock() + 1 / self._limits.rate
        self._jobs += 1
        if self._settled(reservation):
            self._unconfirmed = reservation

    def _reason_to_end(self) -> str | None:
        limits = self._limits
        if self._signals.stop is not None:
            return self._signals.stop
        if limits.once and (self._jobs or self._empty >= self._queue.server_count):
            return "once"
        if limits.jobs is not None and self._jobs >= limits.jobs:
            return "max-jobs"
        if limits.time is not None and self._uptime() >= limits.time:
            return "max-time"
        return None

    def _heed_signals(self) -> None:
        if self._signals.reopen:
            self._signals.reopen = False
            self._reopen()
        if self._signals.replace:
            self._signals.replace = False
            self._confirm()
            self._log.info("child is replaced", reason="SIGHUP", child=self._runner.pid)
            self._runner.stop()

    def _reopen(self) -> None:
        if self._writer.file is None:
            self._log.debug("USR1: there is no log file of the worker's own to reopen")
            return
        try:
            self._writer.reopen()
        except OSError as exc:
            self._log.error("log file cannot be reopened", file=self._writer.file, error=exc.strerror)
        else:
            self._log.debug("log file is reopened", file=self._writer.file)

    def _child_ready(self) -> bool:
        """Have a child stand by, starting one if need be; False when TERM came first."""
        backoff = Backoff()
        while not self._runner.alive():
            if self._signals.stop is not None:
                return False
            self._confirm()
            if self._runner.pid is not None:
                self._log.warning("child died while idle", child=self._runner.pid)
                self._runner.kill()
            try:
                self._runner.start()
            except ChildFailed as exc:
                pause = backoff.next()
                self._log.error("child did not start", error=exc, again_in=f"{pause:.1f}s")
                self._runner.wait(pause)
            else:
                self._log.debug("child started", child=self._runner.pid, jobs=",".join(self._runner.jobs))
        return True

    def _reserve(self) -> Reservation | None:
        """Confirm the last item and take the next; None when there is none or no server answers."""
        done, self._unconfirmed = self._unconfirmed, None
        try:
            reservation = self._queue.reserve(WAIT, done)
        except ReservationLost as exc:
            self._log.warning("job may be delivered again", error=exc)
            return None
        except (ServerUnavailable, ProtocolError) as exc:
            self._note_away(exc)
            self._runner.wait(self._queue.pause())
            return None
        if self._queue.server in self._away:
            self._away.discard(self._queue.server)
            self._log.info("server is back", server=self._queue.server)
        self._empty = 0 if reservation else self._empty + 1
        return reservation

    def _note_away(self, exc: Exception) -> None:
        if self._queue.server not in self._away:
            self._away.add(self._queue.server)
            self._log.error("server is away", server=self._queue.server, error=exc)
        else:
            self._log.debug("server is still away", server=self._queue.server, error=exc)

    def _confirm(self) -> None:
        """Confirm the last item now, when the next will not be taken at once."""
        done, self._unconfirmed = self._unconfirmed, None
        if done is None:
            return
        try:
            self._queue.done(done)
        except ReservationLost as exc:
            self._log.warning("job may be delivered again", error=exc)

    def _settled(self, reservation: Reservation) -> bool:
        """Do the item, or see to it that it is tried again or parked; say whether it may be confirmed."""
        try:
            envelope = Envelope.decode(reservation.body)
        except InvalidEnvelope as exc:
            log = self._log.bind(queue=reservation.queue)
            self._runner.kept.clear()
            end = End("parked", str(exc))
            tags: dict[str, object] = {"queue": reservation.queue}
            sentry_event = self._report("InvalidEnvelope", str(exc), "error", tags, "")
            record = park.record(reservation.body, str(exc), None, None, sentry_event)
            lost = self._written(lambda: self._queue.park(reservation, record), log)
            end = lost or end
            getattr(log, end.level)(
                "job",
                outcome=end.outcome,
                reason=end.reason,
                server=reservation.server,
                bytes=len(reservation.body),
            )
            return lost is None
        fields: dict[str, object] = {
            "queue": reservation.queue,
            "job": envelope.job,
            "id": envelope.id,
            "tenant": envelope.tenant,
            "attempt": envelope.attempt,
        }
        log = Log(self._writer, fields)
        due = envelope.enqueued_at if envelope.due_at is None else envelope.due_at
        waited = max(0, now_ms() - due)
        began = self._clock()
        outcome, lost = self._do(reservation, log)
        took = round((self._clock() - began) * 1000)
        if outcome is None:
            end = End(
                "lost",
                f"The worker was told to stop by {self._signals.stop}: the job goes back to its queue.",
            )
        elif outcome.done:
            end = End("lost", LOST) if lost else DONE
        else:
            end = self._failed(reservation, envelope, outcome, log)
        if end is not DONE and not self._writer.debug:
            self._runner.kept.write(self._writer, log)
        fields |= {
            "wait_ms": waited,
            "run_ms": took,
            "outcome": end.outcome,
            "reason": end.reason,
            "delay": end.delay,
        }
        if outcome is not None and outcome.error and outcome.error["message"] != end.reason:
            fields["error"] = outcome.error["message"]
        self._writer(end.level, "job", fields)
        if outcome is not None:
            self._check_child(outcome)
        return end.outcome != "lost"

    def _do(self, reservation: Reservation, log: Log) -> tuple[Outcome | None, bool]:
        """Have a child do the job; None when TERM came before it could. Also say whether the item was lost.

        A child that dies may have been the one that an operator or the kernel chose to kill, so that the job
        gets a second child before it is blamed. Kestrel counts no deliveries: only the worker that holds the
        item can count these.
        """
        rules = self._rules[reservation.queue]
        lost = False

        def look_at_connection() -> None:
            nonlocal lost
            if not lost and self._queue.lost(reservation):
                lost = True
                log.warning("connection lost while the job runs: it will be delivered again")

        self._runner.kept.clear()
        for last in (False, True):
            log.debug("job begins", server=reservation.server, child=self._runner.pid)
            outcome = self._runner.run(
                reservation.queue,
                reservation.body,
                rules.job_timeout,
                log,
                self._queue.fileno,
                look_at_connection,
                delays=rules.retry_delays,
                memory=self._limits.memory is not None,
            )
            if not outcome.died or last or lost:
                break
            log.warning("child died, the job is run once more", reason=outcome.reason)
            if not self._child_ready():
                return None, lost
        return outcome, lost

    def _failed(self, reservation: Reservation, envelope: Envelope, outcome: Outcome, log: Log) -> End:
        """Write the job to where it is tried again, or park it."""
        delays = self._rules[reservation.queue].retry_delays
        reason = outcome.reason
        delay = None
        if outcome.asks != "park" and not outcome.died:
            delay = next_delay(envelope.attempt, delays, outcome.delay)
        if outcome.asks == "retry":
            reason = _asked(outcome.delay, delays)
        tags: dict[str, object] = {
            "job": envelope.job,
            "queue": reservation.queue,
            "tenant": envelope.tenant,
            "attempt": envelope.attempt,
            "job_id": envelope.id,
        }
        sentry_event = self._reported(outcome, "error" if delay is None else "warning", tags)
        if delay is None:
            record = park.record(reservation.body, reason, envelope, outcome.error, sentry_event)
            lost = self._written(lambda: self._queue.park(reservation, record), log)
            return lost or End("parked", reason)
        body = again(reservation.body, now_ms() + delay * 1000)
        lost = self._written(lambda: self._queue.later(reservation, body, delay), log, "put off")
        return lost or End("retry", reason, delay)

    def _reported(self, outcome: Outcome, level: str, tags: dict[str, object]) -> str | None:
        """Report a failed job, unless the child has; return the event's id."""
        if outcome.repeated is not None and self._reporter is not None:
            last = self._reporter.note_repeated(outcome.repeated)
            return outcome.sentry_event or last
        if outcome.sentry_event is not None or self._reporter is None:
            return outcome.sentry_event
        if outcome.event is not None:
            return self._reporter.report(outcome.event)
        error = outcome.error or {}
        return self._report(error.get("class", "Error"), outcome.reason, level, tags, error.get("stack", ""))

    def _report(self, kind: str, reason: str, level: str, tags: dict[str, object], stack: str) -> str | None:
        """Report what no child can report: its death, a job that took too long, an item that is no job."""
        if self._reporter is None:
            return None
        lines = [
            (at, "debug", event, {key: content for key, content in fields.items() if key not in OF_JOB})
            for at, event, fields in self._runner.kept.lines()
        ]
        extra = {"stderr": stack} if stack else {}
        return self._reporter.report(
            sentry.make_event(kind, reason, level=level, tags=tags, crumbs=lines, extra=extra)
        )

    def _check_child(self, outcome: Outcome) -> None:
        limit = self._limits.memory
        if outcome.replace:
            self._log.warning("child is replaced", reason="around", child=self._runner.pid)
            self._runner.stop()
        elif limit is not None and outcome.memory > limit:
            size = f"{outcome.memory / 1_000_000:.0f}MB"
            self._log.info("child is replaced", reason="max-memory", child=self._runner.pid, size=size)
            self._runner.stop()

    def _written(self, write: Callable[[], None], log: Log, what: str = "park") -> End | None:
        """Write the item to another queue, however long it takes; how it ended when that was not possible."""
        backoff = Backoff()
        told = False
        while True:
            try:
                write()
            except ReservationLost as exc:
                return End("lost", f"{exc} The job will be delivered again.")
            except (QueueFull, ServerUnavailable, ProtocolError) as exc:
                (log.debug if told else log.error)(f"cannot {what}, trying until it works", error=exc)
                told = True
            else:
                return None
            if self._signals.stop is None:
                self._runner.wait(backoff.next())
            if self._signals.stop is not None:
                self._queue.drop()
                return End(
                    "lost",
                    f"The worker was told to stop by {self._signals.stop}: the job goes back to its queue.",
                )

    def _too_early(self) -> float:
        return self._limits.min_uptime - self._uptime()

    def _uptime(self) -> float:
        return self._clock() - self._started


def _asked(delay: object, delays: tuple[int, ...]) -> str:
    if delay is None or delay in delays:
        return "The job asked for another try."
    allowed = ", ".join(map(str, delays)) or "none"
    return (
        f"The job asked for another try after {delay} s, "
        f"which is not one of the queue's retry_delays: {allowed}."
    )
