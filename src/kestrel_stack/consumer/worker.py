"""The parent of a worker: it takes items, has its child do them, and confirms or parks each one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kestrel_stack.consumer import park
from kestrel_stack.consumer.log import Log
from kestrel_stack.consumer.runner import ChildFailed, Outcome, Runner
from kestrel_stack.consumer.signals import Signals
from kestrel_stack.queue.envelope import Envelope
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


@dataclass(frozen=True)
class Limits:
    """When a worker ends or slows down. Times in seconds, `memory` in bytes, `rate` in jobs per second.

    After `memory` the child is replaced; after `jobs` or `time` the worker ends, but not before `min_uptime`:
    a supervisor takes an earlier end for a failed start.
    """

    job_timeout: float = 60
    jobs: int | None = None
    time: float | None = None
    memory: int | None = None
    rate: float | None = None
    min_uptime: float = 5.0
    once: bool = False


class Worker:
    """Works on one queue until it is told to stop or a limit is reached."""

    def __init__(
        self,
        queue: JobQueue,
        runner: Runner,
        signals: Signals,
        log: Log,
        limits: Limits,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._queue = queue
        self._runner = runner
        self._signals = signals
        self._log = log
        self._limits = limits
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
        if (pause := self._next_at - self._clock()) > 0:
            self._confirm()
            self._runner.wait(pause)
            return
        reservation = self._reserve()
        if reservation is None:
            return
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
            self._log.debug("USR1: there is no log file of the worker's own to reopen")
        if self._signals.replace:
            self._signals.replace = False
            self._confirm()
            self._log.info("child is replaced", reason="SIGHUP", child=self._runner.pid)
            self._runner.stop()

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
        """Do or park the item; say whether it may be confirmed."""
        try:
            envelope = Envelope.decode(reservation.body)
        except InvalidEnvelope as exc:
            self._log.error("not a job", error=exc, server=reservation.server, bytes=len(reservation.body))
            return self._parked(reservation, str(exc), None, None, self._log)
        log = self._log.bind(
            job=envelope.job, id=envelope.id, tenant=envelope.tenant, attempt=envelope.attempt
        )
        log.debug("job begins", server=reservation.server, child=self._runner.pid)
        began = self._clock()
        outcome = self._do(reservation, log)
        took = round((self._clock() - began) * 1000)
        if outcome.done:
            log.info("job done", ms=took)
        else:
            error = outcome.error or {}
            said = error.get("message")
            log.error(
                "job failed", reason=outcome.reason, error=said if said != outcome.reason else None, ms=took
            )
        self._check_memory(outcome)
        if outcome.done:
            return True
        return self._parked(reservation, outcome.reason, envelope, outcome.error, log)

    def _do(self, reservation: Reservation, log: Log) -> Outcome:
        told = False

        def look_at_connection() -> None:
            nonlocal told
            if not told and self._queue.lost(reservation):
                told = True
                log.warning("connection lost while the job runs: it will be delivered again")

        return self._runner.run(
            reservation.body, self._limits.job_timeout, log, self._queue.fileno, look_at_connection
        )

    def _check_memory(self, outcome: Outcome) -> None:
        limit = self._limits.memory
        if limit is not None and outcome.memory > limit:
            size = f"{outcome.memory / 1_000_000:.0f}MB"
            self._log.info("child is replaced", reason="max-memory", child=self._runner.pid, size=size)
            self._runner.stop()

    def _parked(
        self,
        reservation: Reservation,
        reason: str,
        envelope: Envelope | None,
        error: object,
        log: Log,
    ) -> bool:
        """Write the item to the error queue, however long it takes; False when it is delivered again."""
        record = park.record(reservation.body, reason, envelope, error)  # type: ignore[arg-type]
        backoff = Backoff()
        told = False
        while True:
            try:
                self._queue.park(reservation, record)
            except ReservationLost as exc:
                log.warning("not parked: the job will be delivered again", error=exc)
                return False
            except (QueueFull, ServerUnavailable, ProtocolError) as exc:
                (log.debug if told else log.error)("cannot park, trying until it works", error=exc)
                told = True
            else:
                log.info("parked", reason=reason)
                return True
            if self._signals.stop is None:
                self._runner.wait(backoff.next())
            if self._signals.stop is not None:
                self._queue.drop()
                log.warning("not parked: the job goes back to its queue", signal=self._signals.stop)
                return False

    def _too_early(self) -> float:
        return self._limits.min_uptime - self._uptime()

    def _uptime(self) -> float:
        return self._clock() - self._started
