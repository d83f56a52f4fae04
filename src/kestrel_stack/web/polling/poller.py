"""What the servers say, asked once for everybody who looks.

Each server has a thread of its own, so that one that hangs costs nobody else. Another thread makes the views
out of what they found, a few a second at most; looking at the latest one never waits.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from kestrel_stack.queue.servers import Backoff, Server
from kestrel_stack.web.alerting.judge import judge
from kestrel_stack.web.config import Config
from kestrel_stack.web.model import QueueNumbers, ServerState, View
from kestrel_stack.web.polling.ages import Ages
from kestrel_stack.web.polling.aggregate import Aggregate
from kestrel_stack.web.polling.poll import PollError, Probe, Reading
from kestrel_stack.web.polling.rates import Rate, Rates
from kestrel_stack.web.polling.stats import Raw

log = logging.getLogger("kestrel-web")

VIEW_GAP_S = 0.2
"""Seconds between two views at least."""
VIEW_SHARE = 40
"""After a view none is made for so many times as long as it took, one interval at most."""
SHARE = 10
"""A server is left alone for so many times as long as its poll took."""
BACKOFF_LIMIT_S = 15.0
"""Longest wait before a server that does not answer is asked again."""
STUCK_AFTER = 3.0
"""A poll that takes so many times its time-out is stuck, for example in a name server."""
STOP_S = 1.0
"""Seconds that the threads are given to end; those that wait for a server are left behind."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class PollCount:
    """How a server was polled since the start; `seconds` is the time that it took."""

    polls: int = 0
    failures: int = 0
    seconds: float = 0.0


class WallClock:
    """Moments of the monotonic clock as Unix seconds, which stay as they are while nobody sets the clock."""

    def __init__(self, clock: Clock, monotonic: Clock):
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = clock() - monotonic()

    def at(self, moment: float) -> float:
        """Return a moment as Unix seconds."""
        ahead = self._clock() - self._monotonic()
        if abs(ahead - self._ahead) > 1.0:
            self._ahead = ahead
        return moment + self._ahead


class Watch:
    """One server's thread: polls it, and keeps what is known of it."""

    def __init__(
        self, server: Server, config: Config, monotonic: Clock, wall: WallClock, heed: Callable[[], None]
    ):
        self.address = str(server)
        self.thread = threading.Thread(target=self._run, name=f"poll {server}", daemon=True)
        self._config = config
        self._monotonic = monotonic
        self._wall = wall
        self._heed = heed
        self._probe = Probe(server, config.admin(server), config.timeout_s, monotonic)
        self._rates = Rates()
        self._ages = Ages()
        self._backoff = Backoff(first=min(config.interval_s, BACKOFF_LIMIT_S), limit=BACKOFF_LIMIT_S)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._state = ServerState(self.address)
        self._since = monotonic()
        self._polled: float | None = None
        self._attempted: float | None = None
        self._began: float | None = None
        """When the poll began that is under way."""
        self._kept: dict[str, tuple[Raw, Rate | None, QueueNumbers]] = {}
        self.count = PollCount()

    def poke(self) -> None:
        """Poll now; when a poll is under way, once more after it."""
        self._wake.set()

    def stop(self) -> None:
        """End as soon as possible."""
        self._stopped = True
        self._wake.set()

    def state(self) -> ServerState:
        """Return what is known now."""
        with self._lock:
            state, since, polled, attempted = self._state, self._since, self._polled, self._attempted
        now = self._monotonic()
        stale = polled is None or now - polled > self._config.stale_after_s
        if not state.reachable or stale:
            state = replace(state, rate_in=None, rate_out=None)
        return replace(
            state,
            since=self._wall.at(since),
            polled_at=None if polled is None else self._wall.at(polled),
            attempted_at=None if attempted is None else self._wall.at(attempted),
            stale=stale,
        )

    def fresh_for(self) -> float | None:
        """Return for how long the numbers are fresh; None when they are not any more."""
        polled = self._polled
        if polled is None:
            return None
        left = polled + self._config.stale_after_s - self._monotonic()
        return left if left >= 0 else None

    def trouble(self) -> str | None:
        """Return what is wrong with the thread, which is not what is wrong with the server."""
        if self.thread.ident is not None and not self.thread.is_alive():
            return f"{self.address} is not polled any more: its thread has ended."
        began = self._began
        if began is not None and self._monotonic() - began > STUCK_AFTER * self._config.timeout_s + 1:
            return f"A poll of {self.address} has not ended for {self._monotonic() - began:.0f} s."
        return None

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            wait = self._poll()
            # Not all servers at one moment.
            self._wake.wait(wait * (1 - random.random() / 10))  # noqa: S311
        self._probe.close()

    def _poll(self) -> float:
        """Poll once; return how long to wait."""
        began = self._began = self._monotonic()
        error: str | None = None
        reading: Reading | None = None
        try:
            reading = self._probe.poll()
        except PollError as exc:
            error = str(exc)
        except Exception as exc:
            log.exception("a poll of %s failed", self.address)
            error = f"it cannot be read: {type(exc).__name__}"
            with contextlib.suppress(Exception):
                self._probe.close()
        took = self._monotonic() - began
        self._began = None
        self.count = PollCount(
            self.count.polls + 1, self.count.failures + (error is not None), self.count.seconds + took
        )
        if reading is None:
            self._failed(error or "", began, took)
            wait = self._backoff.next()
        else:
            self._answered(reading, began, took)
            self._backoff.reset()
            wait = max(self._config.interval_s - took, min(SHARE * took, self._config.stale_after_s / 3), 0.0)
        self._heed()
        return wait

    def _failed(self, error: str, began: float, took: float) -> None:
        self._rates.forget()
        with self._lock:
            if self._state.reachable or self._attempted is None:
                log.warning("%s does not answer: %s", self.address, error)
                self._since = began if self._attempted is None else self._monotonic()
            self._attempted = began
            self._state = replace(self._state, reachable=False, error=error, took_s=took)

    def _answered(self, reading: Reading, began: float, took: float) -> None:
        if reading.again:
            self._rates.forget()
        rates = self._rates.update(reading.at, reading.queues)
        ages = self._ages.update(reading.at, reading.queues)
        kept = self._kept
        self._kept = {
            key: self._numbers(kept.get(key), {**raw, "age_ms": ages[key]}, rates.get(key))
            for key, raw in reading.queues.items()
        }
        with self._lock:
            if not self._state.reachable:
                log.info("%s answers (%s)", self.address, reading.source)
                self._since = began
            if reading.note and reading.note != self._state.error:
                log.warning("%s: %s Its numbers come from the memcache port.", self.address, reading.note)
            self._attempted = began
            self._polled = reading.at
            self._state = ServerState(
                self.address,
                reachable=True,
                error=reading.note,
                took_s=took,
                source=reading.source,
                status=reading.status,
                numbers=reading.numbers,
                queues={key: numbers for key, (_, _, numbers) in self._kept.items()},
                rate_in=sum(rate.in_ for rate in rates.values()) if rates else None,
                rate_out=sum(rate.out for rate in rates.values()) if rates else None,
            )

    @staticmethod
    def _numbers(
        kept: tuple[Raw, Rate | None, QueueNumbers] | None, raw: Raw, rate: Rate | None
    ) -> tuple[Raw, Rate | None, QueueNumbers]:
        if kept is not None and kept[0] == raw and kept[1] == rate:
            return kept
        made = QueueNumbers(**raw, rate_in=rate.in_ if rate else None, rate_out=rate.out if rate else None)
        return raw, rate, made


class Poller:
    """One thread per server; the latest `View` for everybody."""

    def __init__(
        self,
        config: Config,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
        earlier: View | None = None,
    ):
        """`earlier` is what is remembered from before a restart."""
        self._config = config
        self._monotonic = monotonic
        self._wall = WallClock(clock, monotonic)
        self._aggregate = Aggregate(config.settings)
        self._changed = threading.Event()
        self._condition = threading.Condition()
        self._stopping = threading.Event()
        self._watches = [
            Watch(server, config, monotonic, self._wall, self._changed.set) for server in config.servers
        ]
        self._builder = threading.Thread(target=self._build_always, name="views", daemon=True)
        self._heeders: list[threading.Thread] = []
        self._building_fails = False
        self._poked = threading.Event()
        self._hurry_until = float("-inf")
        self._view = self._build(earlier or View())

    def start(self) -> None:
        """Begin to poll."""
        for thread in self._threads():
            thread.start()

    def stop(self) -> None:
        """End all threads; returns soon even when a server hangs."""
        self._stopping.set()
        for watch in self._watches:
            watch.stop()
        self._changed.set()
        self._poked.set()
        with self._condition:
            self._condition.notify_all()
        until = self._monotonic() + STOP_S
        for thread in self._threads():
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, until - self._monotonic()))

    def view(self) -> View:
        """Return the latest view at once."""
        return self._view

    def wait(self, serial: int, timeout: float) -> View:
        """Return a view newer than `serial`, or the latest after `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._view.serial > serial or self._stopping.is_set(), timeout)
        return self._view

    def poke(self, address: str | None = None) -> None:
        """Poll one server now, or all of them; no poll that has begun already counts."""
        self._hurry_until = self._monotonic() + self._config.timeout_s
        self._poked.set()
        for watch in self._watches:
            if address is None or watch.address == address:
                watch.poke()

    def on_view(self, heed: Callable[[View], object]) -> None:
        """Have `heed` called with new views, at most one per interval, in a thread of its own."""
        thread = threading.Thread(
            target=self._heed_always, args=(heed,), name=f"views to {heed!r}", daemon=True
        )
        self._heeders.append(thread)
        if self._builder.ident is not None:
            thread.start()

    def counters(self) -> Mapping[str, PollCount]:
        """Return how often each server was polled."""
        return {watch.address: watch.count for watch in self._watches}

    def trouble(self) -> str | None:
        """Return in one line why what is shown is not what is, if so; a server that is down is no trouble."""
        if self._builder.ident is not None and not self._builder.is_alive() and not self._stopping.is_set():
            return "The thread that puts the servers' answers together has ended."
        if self._building_fails:
            return "The servers' answers cannot be put together; the log says why."
        return next((found for watch in self._watches if (found := watch.trouble())), None)

    def _threads(self) -> list[threading.Thread]:
        return [*(watch.thread for watch in self._watches), self._builder, *self._heeders]

    def _build_always(self) -> None:
        while not self._stopping.is_set():
            left = [fresh for watch in self._watches if (fresh := watch.fresh_for()) is not None]
            # When nobody has anything to say, at least that their numbers have become stale.
            self._changed.wait(min(left) + 0.05 if left else None)
            self._changed.clear()
            if self._stopping.is_set():
                return
            began = self._monotonic()
            try:
                view = self._build(self._view)
            except Exception:
                log.exception("the servers' answers could not be put together")
                self._building_fails = True
            else:
                self._building_fails = False
                with self._condition:
                    self._view = view
                    self._condition.notify_all()
            self._rest(self._monotonic() - began)

    def _rest(self, took: float) -> None:
        """Let some answers come together; somebody who has acted sees what came of it sooner."""
        self._stopping.wait(VIEW_GAP_S)
        self._poked.clear()
        left = min(VIEW_SHARE * took, self._config.interval_s) - VIEW_GAP_S
        if left > 0 and self._monotonic() >= self._hurry_until and not self._stopping.is_set():
            self._poked.wait(left)

    def _build(self, earlier: View) -> View:
        states = [watch.state() for watch in self._watches]
        now = self._wall.at(self._monotonic())
        view = self._aggregate.view(earlier.serial + 1, now, states)
        return judge(view, self._config, earlier)

    def _heed_always(self, heed: Callable[[View], object]) -> None:
        serial = self._view.serial
        while not self._stopping.is_set():
            view = self.wait(serial, 3600.0)
            if view.serial == serial or self._stopping.is_set():
                continue
            serial = view.serial
            try:
                heed(view)
            except Exception:
                log.exception("a view could not be heeded")
            self._stopping.wait(self._config.interval_s)
