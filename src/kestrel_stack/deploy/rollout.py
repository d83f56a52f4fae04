"""Layer three: switching hosts, canary first, and knowing at every moment how each stands.

Per host one script drains, switches, starts, verifies and pings, and puts the host back by itself when any of
that fails or the connection is lost. When a host fails, when the canary does worse than before, or when a
person presses Ctrl-C, every host that was switched before goes back as well. That way back is not
interrupted; what could not go back is named. The lock is given back whatever happens.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from . import build, hoststate, plan, scripts, soak
from .description import Host
from .errors import CHANGED, FAILED, Cancelled, DeployError, HostError, Locked, Refused
from .hoststate import HostState
from .onhost.judge import watch
from .plan import Batch, Pace
from .report import Report, count
from .scripts import Pings, Side
from .session import Session, hearing, timestamp, who
from .ssh import on_all

BEFORE = "as before"
AFTER = "switched and verified"
BROKEN = "NOT as before: its workers do not all run"
STUCK = "NOT as before: it stays on the new release"
FOREIGN = "NOT as before: somebody else has switched it meanwhile"
BUSY = "unknown: an earlier switch has not ended there"
UNKNOWN = "unknown: it does not answer"
_PLACES = {
    "before": BEFORE,
    "after": AFTER,
    "broken": BROKEN,
    "stuck": STUCK,
    "foreign": FOREIGN,
    "busy": BUSY,
}

MIGRATE_SECONDS = 3600
"""A migration may take so long."""
SAMPLE_PAUSE = 5.0
"""Seconds between two looks at a canary."""
EXTRA_SOAK = 30.0
"""Seconds by which a soak is longer at most while some worker is between two lives at each look."""
SAME_SECONDS = 15.0
"""Seconds within which all hosts have to be seen on one release at the end: a worker that has done its share
of jobs is down for a moment."""
WEB_SECONDS = 120
"""Seconds that what serves pages may take to change to another release, beside the requests that the old one
finishes and the one that the new one is asked."""
RECONNECT_SECONDS = 45.0
"""A host that was lost is asked again for so long."""
SHOWN_LINES = 16
"""Lines of workers' logs that are shown for one failure."""


@dataclass(frozen=True)
class Failure:
    """What went wrong on one host."""

    host: str
    step: str
    reason: str
    logs: tuple[tuple[str, str], ...] = ()
    """The last lines of workers' logs, each with its worker."""


class _Ear:
    """Listens to one switch script: tells of its steps, and remembers how it ended."""

    def __init__(self, host: str, out: Report) -> None:
        self._host = host
        self._out = out
        self.place = ""
        self.step = ""
        self.logs: list[tuple[str, str]] = []
        self.pings: list[Mapping[str, Any]] = []

    def hear(self, line: str) -> None:
        """Take in one line of standard output."""
        for words in hoststate.events([line]):
            word, rest = words[0] if words else "", words[1:]
            if word in _STEPS:
                self._out.step(f"{_STEPS[word]} {' '.join(rest)}", self._host)
            elif word == "stand" and rest:
                self.place = _PLACES.get(rest[0], "")
            elif word == "failed" and rest:
                self.step = rest[0]
            elif word == "log" and rest:
                self.logs.append((rest[0], " ".join(rest[1:])))
            elif word == "ping" and rest:
                self._answer(rest[0])
            elif word in ("trouble", "warning"):
                self._out.bad(" ".join(rest), self._host)

    def _answer(self, text: str) -> None:
        try:
            data = json.loads(text)
        except ValueError:
            return
        if isinstance(data, dict):
            self.pings.append(data)

    @property
    def unanswered(self) -> str:
        """Which pings were not answered, and why."""
        missing = [one for one in self.pings if not one.get("answered")]
        return "; ".join(f"queue {one.get('queue')}: {one.get('reason') or 'no answer'}" for one in missing)


class Rollout:
    """Switches hosts and knows how each stands. As a context manager it ends what it began, always.

    It hears the signals by which a command is stopped: before the first switch they interrupt, while hosts
    are switched they make it turn back in order, and after that they change nothing any more.
    """

    def __init__(self, session: Session, out: Report, action: str) -> None:
        self.session = session
        self.out = out
        self.action = action
        self.name = ""
        self.stand = {host.name: BEFORE for host in session.hosts}
        self.failures: list[Failure] = []
        self.migrated = ""
        """What is to be said of a migration; empty when none was begun."""
        self._tried: set[str] = set()
        self._source: build.Source | None = None
        self._wheels: dict[str, build.Wheels] = {}
        self._keep: int | None = None
        self._done = False
        self._reason = ""
        self._stopped = False
        self._began = time.monotonic()
        self._phase = "building"
        self._signals = hearing(self._stop)

    def about(
        self, name: str, source: build.Source | None = None, wheels: dict[str, build.Wheels] | None = None
    ) -> None:
        """Name the release that is rolled out; ``source`` and ``wheels`` only when it is a new one."""
        self.name, self._source, self._wheels = name, source, wheels or {}

    def succeeded(self, keep: int | None = None) -> None:
        """Say that every host is on the release; with ``keep`` the older ones are pruned."""
        self._done, self._keep = True, keep

    @property
    def tried(self) -> bool:
        """Whether any host was touched by a switch."""
        return bool(self._tried)

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._began

    # --- beginning and end ----------------------------------------------------------------------------

    def __enter__(self) -> Rollout:
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        self._phase = "ending"
        try:
            return self._end(error)
        finally:
            self._signals.__exit__(None, None, None)

    def _stop(self, *_: object) -> None:
        """Answer a signal. A thread prints, since the interrupted one may hold the lock of the report."""
        if self._phase == "building":
            # What runs in other threads has to end as well.
            self.session.cancel.set()
            raise KeyboardInterrupt
        text = "Putting the hosts in order, this ends by itself"
        if self._phase == "rolling" and not self.session.cancel.is_set():
            text = "Stopping: every host that was switched goes back"
            self.session.cancel.set()
        threading.Thread(target=self.out.step, args=(text,)).start()

    def _end(self, error: BaseException | None) -> bool:
        if self._done and isinstance(error, KeyboardInterrupt):
            # Too late: everything was done.
            error = None
        swallowed = error is None
        defect = None
        if isinstance(error, KeyboardInterrupt):
            error = Cancelled("stopped")
        if error is not None and not isinstance(error, DeployError):
            if not self._tried:
                self._give_back()
                return False
            defect = error
            error = DeployError(f"defect: {type(error).__name__}: {error}", FAILED)
        self._reason = str(error or "")
        self._stopped = isinstance(error, Cancelled)
        left = self._give_back()
        if error is None:
            if self._done:
                self._summary()
                self.out.good(self._success())
            if left:
                raise DeployError("; ".join(left), CHANGED)
            return swallowed
        if defect is not None:
            # Who mends it needs the trace, who deployed needs to know how the hosts stand.
            traceback.print_exception(defect)
        if self._tried or isinstance(error, Cancelled):
            self._summary()
        raise self._verdict(error) from None

    def _give_back(self) -> list[str]:
        left = self.session.release(self._details)
        for line in left:
            self.out.bad(line)
        return left

    def _success(self) -> str:
        hosts = count(len(self.stand), "host")
        if self.action == "restart":
            return f"Restarted the workers of {hosts}"
        past = "Deployed" if self.action == "deploy" else "Rolled back to"
        return f"{past} {self.name} on {hosts}"

    def _verdict(self, error: DeployError) -> DeployError:
        """Add to an error how the hosts stand, which also decides the exit code."""
        said = f"; {self.migrated}" if self.migrated else ""
        changed = [name for name, stand in self.stand.items() if stand != BEFORE]
        if changed and not self._only_restarted(changed):
            words = "; ".join(f"{name} is {self._said(name)}" for name in changed)
            as_before = [name for name in self.stand if name not in changed]
            rest = f"; as before: {', '.join(as_before)}" if as_before else ""
            return DeployError(f"{error}. {words}{rest}{said}", CHANGED)
        if error.code == FAILED or self._tried or self.migrated:
            return DeployError(f"{error}. Every host is as before{said}", FAILED)
        return error

    def _only_restarted(self, changed: Sequence[str]) -> bool:
        return self.action == "restart" and all(self.stand[name] == AFTER for name in changed)

    def _said(self, name: str) -> str:
        if self.stand[name] != AFTER:
            return self.stand[name]
        return "restarted" if self.action == "restart" else f"on {self.name}"

    def _summary(self) -> None:
        rows = []
        for host in self.session.hosts:
            current = self.session.states[host.name].current if host.name in self.session.states else ""
            stand = self.stand[host.name]
            shown = (self.name or current) if stand in (AFTER, STUCK) else current or "none"
            rows.append([host.name, shown if stand in (BEFORE, AFTER, STUCK) else "?", stand])
        self.out.table(("host", "release", "stands"), rows)
        for failure in self.failures:
            self.out.bad(f"failed in {failure.step}: {failure.reason}", failure.host)
            for worker, line in failure.logs[-SHOWN_LINES:]:
                self.out.step(f"{worker}: {line}", failure.host)

    def _details(self, host: Host) -> dict[str, Any]:
        """Say what the end of a deploy leaves and removes on one host."""
        stand = self.stand[host.name]
        state = self.session.states.get(host.name) or HostState(host.name)
        name = state.current if self.action == "restart" else self.name
        good = self._done and stand == AFTER
        details: dict[str, Any] = {}
        if host.name in self._tried:
            known = state.release(name)
            details["record"] = {
                "at": timestamp(),
                "action": self.action,
                "release": name,
                "previous": state.current or None,
                "rev": self._source.rev if self._source else getattr(known, "rev", None),
                "ref": self._source.ref if self._source else getattr(known, "ref", None),
                "by": who(),
                "id": self.session.lock_id,
                "result": "ok" if good else "failed",
                "seconds": round(self.seconds, 1),
                "reason": self._reason[:500] or None,
            }
        if self.action == "restart":
            return details
        if good:
            details["verified"] = name
            if self._keep is not None:
                venv = self._wheels[host.name].key
                releases, venvs = plan.to_remove(state, name, venv, state.current, self._keep)
                details["remove_releases"], details["remove_venvs"] = releases, venvs
        elif self._source is not None and name:
            # A release that a person stopped has not failed: there is nothing to be looked at.
            if host.name in self._tried and not (self._stopped and stand == BEFORE):
                details["failed"] = name
                details["failed_why"] = self._reason[:500]
                details["remove_releases"] = plan.failed_before(state, name)
            else:
                details["remove_releases"] = [name]
        return details

    # --- the migration --------------------------------------------------------------------------------

    def migrate(self, command: str) -> None:
        """Run the application's migration on the first host. Raises HostError; it is never undone."""
        host = self.session.hosts[0]
        self.out.step(f"migrating: {command}", host.name)
        script = self.migrate_script(command)

        def run(host: Host) -> None:
            self.session.require_lock(host)
            self.migrated = f"the migration was begun on {host.name}, and what it did stays"
            result = self.session.run(host, script, "migrate", timeout=MIGRATE_SECONDS + 30)
            for words in hoststate.events(result.lines):
                if words and words[0] == "said":
                    self.out.step(" ".join(words[1:]), host.name)

        self.session.everywhere([host], run)
        self.migrated = "the migration has run and stays"
        self.out.good("migrated", host.name)

    def migrate_script(self, command: str) -> str:
        """Return the script that migrates, for the first host."""
        host = self.session.hosts[0]
        previous = self.session.states[host.name].current
        return scripts.migrate(
            self.session.root, command, self._side(host, self.name), previous, seconds=MIGRATE_SECONDS
        )

    # --- forward --------------------------------------------------------------------------------------

    def roll(self, to: Mapping[Host, str], pace: Pace = Pace()) -> None:  # noqa: B008 - it is frozen
        """Switch the hosts, batch by batch. Raises DeployError at the first that fails; then all go back.

        A host whose release is the one that it is on already is restarted in place.
        """
        self._phase = "rolling"
        new = [host for host in to if not self.session.states[host.name].current]
        batches = plan.batches(list(to), pace, new)
        try:
            self._forward(batches, to, pace)
        except BaseException:
            self._revert(batches, to)
            raise
        finally:
            self._phase = "ending"

    def _forward(self, batches: Sequence[Batch], to: Mapping[Host, str], pace: Pace) -> None:
        for batch in batches:
            watched = self._watched(batch, pace)
            before = self._sample(watched, to, str(soak.WINDOW))
            since = time.monotonic()
            self.session.everywhere(batch.hosts, lambda host: self._one(host, to[host], pace))
            if watched:
                self._soak(watched, to, pace, before, since)
        # What was switched last has just been seen.
        early = [host for batch in batches[:-1] for host in batch.hosts]
        self.session.everywhere(early, lambda host: self._same(host, to[host]))

    def _one(self, host: Host, new: str, pace: Pace) -> None:
        self.session.require_lock(host)
        old = self.session.states[host.name].current
        self._tried.add(host.name)
        # Until the script has said how the host stands, nobody knows.
        self.stand[host.name] = UNKNOWN
        try:
            ear = self._switch(host, old, new, pace)
        except BaseException as error:  # a defect of ours, too, must not leave a host half-way
            if self.stand[host.name] == UNKNOWN:
                self._go_back(host, new, old, error)
            elif self.stand[host.name] == AFTER and _gone(error):
                # All was said before the connection broke.
                return
            self._look_closer(host, old)
            raise
        workers = sum(queue.processes for queue in host.queues)
        running = ([count(workers, "worker")] if workers else []) + ["pages"] * host.web
        text = (
            f"verified: {' and '.join(running)} from {new}" if running else f"is on {new}; nothing runs here"
        )
        if ear.pings:
            slowest = max((float(one.get("seconds") or 0) for one in ear.pings), default=0.0)
            text += f", {count(len(ear.pings), 'queue')} answered within {slowest:.1f} s"
        self.out.good(text, host.name)

    def _side(self, host: Host, release: str) -> Side:
        """One end of a switch, as the script has to know it."""
        if self._source is not None and release == self.name:
            hooks = self._source.spec.hooks
            return Side(
                release,
                self._source.rev,
                {"before_switch": hooks.before_switch, "after_switch": hooks.after_switch},
            )
        known = self.session.states[host.name].release(release)
        return Side(release, known.rev, known.hooks) if known else Side(release)

    def _pings(self, host: Host, release: str, pace: Pace) -> Pings | None:
        """Say what to ask the new workers; None when they cannot answer, or need not."""
        known = self.session.states[host.name].release(release)
        answers = (self._source is not None and release == self.name) or (known is not None and known.ping)
        if not pace.ping or not host.queues or not answers:
            return None
        seconds = max(queue.job_timeout for queue in host.queues) + 10
        return Pings(tuple(queue.name for queue in host.queues), seconds, self.session.lock_id)

    def _verify_seconds(self, host: Host) -> int:
        return 30 + 2 * sum(queue.processes for queue in host.queues)

    def _limit(self, host: Host, sides: Sequence[Side], pings: Pings | None) -> float:
        """Return the seconds within which a switch ends one way; every step of the script is bounded, too."""
        drain = max((queue.job_timeout + 10 for queue in host.queues), default=0)
        start = sum(10 * queue.processes for queue in host.queues)
        hooks = sum(scripts.HOOK_SECONDS + 10 for side in sides for command in side.hooks.values() if command)
        web = WEB_SECONDS + 2 * host.web_request_timeout if host.web else 0
        asked = pings.seconds + 15 if pings else 0
        return 60 + drain + start + web + self._verify_seconds(host) + asked + hooks

    def switch_script(self, host: Host, old: str, new: str, pace: Pace, *, going_back: bool = False) -> str:
        """Return the script that takes a host from one release to another."""
        return scripts.switch(
            self.session.root,
            [queue.group for queue in host.queues],
            self._side(host, old),
            self._side(host, new),
            web=self.session.environment.app if host.web else "",
            going_back=going_back,
            verify_seconds=self._verify_seconds(host),
            pings=None if going_back else self._pings(host, new, pace),
        )

    def _switch(self, host: Host, old: str, new: str, pace: Pace, *, going_back: bool = False) -> _Ear:
        """Run the switch script and note where it left the host. Raises HostError or Cancelled."""
        script = self.switch_script(host, old, new, pace, going_back=going_back)
        pings = None if going_back else self._pings(host, new, pace)
        limit = self._limit(host, [self._side(host, old), self._side(host, new)], pings)
        ear = _Ear(host.name, self.out)
        try:
            self.session.run(
                host,
                script,
                "switch",
                # There and, when it fails late, back.
                timeout=2 * limit,
                on_line=ear.hear,
                cancellable=not going_back,
                stop_patience=2 * limit,
            )
        except HostError as error:
            reason = str(error).removeprefix(f"{host.name}: ")
            if ear.step and not error.lost:
                reason = f"{ear.step}: {reason.removeprefix('switch: ')}"
                if ear.step == "ping" and ear.unanswered:
                    reason = f"ping: {ear.unanswered}"
            step, _, why = reason.partition(": ")
            self.failures.append(Failure(host.name, step, why, tuple(ear.logs)))
            raise HostError(host.name, reason, lost=error.lost) from None
        finally:
            if ear.place:
                back = going_back and ear.place == AFTER
                self.stand[host.name] = BEFORE if back else ear.place
        if not ear.place:
            raise HostError(host.name, "switch: it did not say how it ended")
        return ear

    def _same(self, host: Host, release: str) -> None:
        """See that a host is still on the release, with every worker. Raises HostError."""
        deadline = time.monotonic() + SAME_SECONDS
        memory: dict[str, dict[str, float]] = {}
        while True:
            try:
                state = self.session.look(host)
            except DeployError as error:
                if not _gone(error) or time.monotonic() > deadline or self.session.cancel.wait(1):
                    raise
                continue
            verdict = watch(state.groups, release, memory, time.monotonic(), 0)
            if state.current == release and verdict.ok:
                return
            if state.current != release or verdict.final or time.monotonic() > deadline:
                reason = verdict.reason or f"current is {state.current or 'nothing'}, not {release}"
                self.failures.append(Failure(host.name, "the last look", reason))
                raise HostError(host.name, f"the last look at all hosts: {reason}")
            if self.session.cancel.wait(0.5):
                raise Cancelled("stopped")

    # --- the canary -----------------------------------------------------------------------------------

    def _watched(self, batch: Batch, pace: Pace) -> list[Host]:
        """Which hosts of a batch are compared with before: canaries that had a release before."""
        if not batch.canary or pace.soak <= 0:
            return []
        return [host for host in batch.hosts if self.session.states[host.name].current]

    def _sample(
        self,
        hosts: Sequence[Host],
        to: Mapping[Host, str],
        since: str,
        logs: Callable[[Host, tuple[str, str]], None] = lambda *_: None,
    ) -> soak.Sample:
        """Ask the canaries how queues, workers and jobs stand."""

        def ask(host: Host) -> soak.Sample:
            groups = [queue.group for queue in host.queues]
            web = self.session.environment.app if host.web else ""
            script = scripts.sample(self.session.root, groups, to[host], since=since, web=web)
            try:
                lines = self.session.run(host, script, "soak", timeout=90).lines
            except HostError as error:
                if error.lost:
                    raise
                return soak.Sample(trouble=str(error))
            for words in hoststate.events(lines):
                if words and words[0] == "log" and len(words) > 2:
                    logs(host, (words[1], " ".join(words[2:])))
            return soak.parse(lines)

        found = self.session.everywhere(list(hosts), ask)
        if len(hosts) > 1:
            found = {host: soak.of_host(sample, host.name) for host, sample in found.items()}
        return soak.merge([found[host] for host in hosts])

    def _soak(
        self,
        hosts: Sequence[Host],
        to: Mapping[Host, str],
        pace: Pace,
        before: soak.Sample,
        began: float,
    ) -> None:
        """Watch the canaries for a while. Raises HostError when they do worse than before."""
        names = ", ".join(host.name for host in hosts)
        self.out.step(f"watching the canary for {pace.soak} s", names)
        switched = time.monotonic()
        timeouts = {queue.name: queue.job_timeout for host in hosts for queue in host.queues}
        troubled: set[str] = set()
        while True:
            left = pace.soak - (time.monotonic() - switched)
            # Whoever was in trouble at the last look gets the time to come out of it.
            pause = SAMPLE_PAUSE if troubled else max(0.0, min(SAMPLE_PAUSE, left))
            if self.session.cancel.wait(pause):
                raise Cancelled("stopped")
            logs: list[tuple[str, str]] = []
            after = self._sample(hosts, to, "current", lambda _, line, logs=logs: logs.append(line))
            now = time.monotonic()
            releases = {to[host] for host in hosts}
            verdict = soak.compare(before, after, min(releases), now - began, timeouts, soaked=now - switched)
            # A worker that has done its share of jobs is down for a moment; the same one not for two looks.
            faults = soak.faults(after.groups, min(releases))
            lasting = sorted(troubled & set(faults))
            troubled = set(faults)
            if verdict.ok and lasting:
                verdict = soak.Verdict(False, faults[lasting[0]])
            if not verdict.ok:
                self.failures.append(Failure(names, "soak", verdict.text, tuple(logs)))
                raise HostError(names, f"soak: {verdict.text}")
            if now - switched >= pace.soak and (not troubled or now - switched >= pace.soak + EXTRA_SOAK):
                self.out.good(f"soak: {verdict.text}", names)
                return

    # --- the way back ---------------------------------------------------------------------------------

    def _revert(self, batches: Sequence[Batch], to: Mapping[Host, str]) -> None:
        """Put back every host that was switched, the last batch first. Raises nothing; `stand` tells."""
        self._phase = "reverting"

        def due(batch: Batch) -> list[Host]:
            return [
                host
                for host in batch.hosts
                if self.stand[host.name] == AFTER and self.session.states[host.name].current != to[host]
            ]

        hosts = sum(len(due(batch)) for batch in batches)
        if hosts:
            self.out.bad(f"Reverting {count(hosts, 'host')} that were switched before")
        for batch in reversed(batches):
            back = due(batch)
            _, errors = on_all(back, lambda host: self._revert_one(host, to[host]), self.session.cancel)
            for host, error in errors.items():
                self.stand[host.name] = BROKEN if self.stand[host.name] == BEFORE else self.stand[host.name]
                self.out.bad(f"could not go back: {error}", host.name)

    def _revert_one(self, host: Host, new: str) -> None:
        old = self.session.states[host.name].current
        try:
            self.session.require_lock(host)
        except Locked as error:
            # Another deploy has begun from what is there now: it must not be pulled away under it.
            self.stand[host.name] = f"{STUCK} ({error})"
            return
        except DeployError as error:
            self.out.bad(str(error).removeprefix(f"{host.name}: "), host.name)
        self._go_back(host, new, old, HostError(host.name, "reverted because the deploy failed"))

    def _go_back(self, host: Host, new: str, old: str, why: BaseException) -> None:
        """Put a host back on its old release. Not interrupted by Ctrl-C; a lost connection is tried again."""
        reason = str(why).removeprefix(f"{host.name}: ")
        self.out.bad(f"goes back to {old or 'no release'}: {reason}", host.name)
        limit = self._limit(host, [self._side(host, old), self._side(host, new)], None)
        error: BaseException = why
        certain = self.stand[host.name] == AFTER
        for _ in range(3):
            self.stand[host.name] = UNKNOWN
            try:
                if not certain:
                    # The script notices that we are gone, and goes back by itself or ends its way back.
                    state = self._look_again(host, int(2 * limit))
                    if state is None:
                        return
                    if state.current == old and self._runs_again(host, old, state):
                        self.stand[host.name] = BEFORE
                        return
                    if state.current not in (old, new):
                        self.stand[host.name] = FOREIGN
                        return
                    # Back already, perhaps, but without its workers: the way back starts them.
                self._switch(host, new, old, Pace(), going_back=True)
                return
            except Exception as again:
                error, certain = again, False
                text = str(again).removeprefix(f"{host.name}: ")
                self.out.bad(f"could not go back: {text}", host.name)
                if not _gone(again):
                    break
        if self.stand[host.name] == UNKNOWN and not _gone(error):
            self.stand[host.name] = BROKEN
        self._look_closer(host, old)

    def _broken_before(self, host: Host) -> set[str]:
        """Which groups and workers were broken before the deploy, perhaps what it was meant to mend."""
        groups = self.session.states[host.name].groups
        return {group.name for group in groups if group.error is not None} | {
            process.name for group in groups for process in group.processes if process.state == "FATAL"
        }

    def _runs_again(self, host: Host, old: str, state: HostState) -> bool:
        """Whether a host that is back on its old release has the workers back that ran before."""
        if not old:
            return True
        excused = self._broken_before(host)
        memory: dict[str, dict[str, float]] = {}
        deadline = time.monotonic() + SAME_SECONDS
        while True:
            kept = []
            for group in state.groups:
                left = tuple(one for one in group.processes if one.name not in excused)
                if group.name not in excused and (left or not group.processes):
                    kept.append(replace(group, processes=left))
            verdict = watch(kept, old, memory, time.monotonic(), 0)
            if verdict.ok or verdict.final or time.monotonic() > deadline:
                return verdict.ok
            time.sleep(0.5)
            state = self.session.look(host, cancellable=False)

    def _look_closer(self, host: Host, old: str) -> None:
        """See whether a host whose workers do not all run is no worse than it was before."""
        if self.stand[host.name] != BROKEN or not self._broken_before(host):
            return
        with suppress(DeployError):
            state = self.session.look(host, cancellable=False)
            if state.current == old and self._runs_again(host, old, state):
                self.out.step("broken before, and as before", host.name)
                self.stand[host.name] = BEFORE

    def _look_again(self, host: Host, settle: int) -> HostState | None:
        """Reconnect to a host that was lost, and wait until what ran there has ended; None: in vain."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                return self.session.look(host, settle=settle, cancellable=False)
            except DeployError as error:
                if time.monotonic() > deadline:
                    self.out.bad(f"does not answer any more: {error}", host.name)
                    return None
                time.sleep(1)


def _gone(error: BaseException) -> bool:
    """Whether the host could not be reached: the connection broke, or none came up again."""
    return isinstance(error, Refused) or bool(getattr(error, "lost", False))


_STEPS = {
    "hook": "hook",
    "drained": "drained",
    "switched": "switched to",
    "reloaded": "reloaded",
    "started": "started",
    "back": "back on",
}
