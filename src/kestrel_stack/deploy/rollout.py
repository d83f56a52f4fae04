"""Layer three: switching hosts, one after the other, and knowing at every moment how each stands.

Per host: drain, switch, start, verify. A host that fails goes back; the lock is given back whatever happens.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

from . import build, hoststate, plan, scripts
from .description import Host
from .errors import CHANGED, FAILED, Cancelled, DeployError, HostError
from .hoststate import HostState
from .report import Report, count
from .session import Session, timestamp, uninterrupted, who

BEFORE = "as before"
AFTER = "switched, every worker verified"
BROKEN = "NOT as before: its workers do not all run"
UNKNOWN = "unknown: it does not answer"


class Rollout:
    """Switches hosts and knows how each stands. As a context manager it ends what it began, always."""

    def __init__(self, session: Session, out: Report, action: str) -> None:
        self.session = session
        self.out = out
        self.action = action
        self.name = ""
        self.stand = {host.name: BEFORE for host in session.hosts}
        self._tried: set[str] = set()
        self._source: build.Source | None = None
        self._wheels: dict[str, build.Wheels] = {}
        self._keep: int | None = None
        self._done = False

    def about(
        self, name: str, source: build.Source | None = None, wheels: dict[str, build.Wheels] | None = None
    ) -> None:
        """Name the release that is rolled out; ``source`` and ``wheels`` only when it is a new one."""
        self.name, self._source, self._wheels = name, source, wheels or {}

    def succeeded(self, keep: int | None) -> None:
        """Say that every host is on the release; with ``keep`` the older ones are pruned."""
        self._done, self._keep = True, keep

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        with uninterrupted(self.out):
            left = self.session.release(self._details)
        for line in left:
            self.out.bad(line)
        if error is None:
            if self._done:
                self._summary()
                past = "Deployed" if self.action == "deploy" else "Rolled back to"
                self.out.good(f"{past} {self.name} on {count(len(self.stand), 'host')}")
            if left:
                raise DeployError("; ".join(left), CHANGED)
            return False
        if isinstance(error, KeyboardInterrupt):
            error = Cancelled("stopped")
        if not isinstance(error, DeployError):
            if not self._tried:
                return False
            # A defect of ours: who mends it needs the trace, who deployed needs to know how the hosts stand.
            traceback.print_exception(error)
            error = DeployError(f"defect: {type(error).__name__}: {error}", FAILED)
        if self._tried or isinstance(error, Cancelled):
            self._summary()
        raise self._verdict(error) from None

    def _verdict(self, error: DeployError) -> DeployError:
        """Add to an error how the hosts stand, which also decides the exit code."""
        changed = [name for name, stand in self.stand.items() if stand != BEFORE]
        if changed:
            words = "; ".join(f"{name} is {self._said(name)}" for name in changed)
            as_before = [name for name in self.stand if name not in changed]
            rest = f"; as before: {', '.join(as_before)}" if as_before else ""
            return DeployError(f"{error}. {words}{rest}", CHANGED)
        if error.code == FAILED:
            return DeployError(f"{error}. Every host is as before", FAILED)
        return error

    def _said(self, name: str) -> str:
        return f"on {self.name}" if self.stand[name] == AFTER else self.stand[name]

    def _summary(self) -> None:
        rows = []
        for host in self.session.hosts:
            current = self.session.states[host.name].current
            stand = self.stand[host.name]
            shown = self.name if stand == AFTER else current or "none"
            rows.append([host.name, shown if stand in (BEFORE, AFTER) else "?", stand])
        self.out.table(("host", "release", "stands"), rows)

    def _details(self, host: Host) -> dict[str, Any]:
        """Say what the end of a deploy leaves and removes on one host."""
        stand = self.stand[host.name]
        state = self.session.states[host.name]
        details: dict[str, Any] = {}
        if host.name in self._tried:
            details["record"] = {
                "at": timestamp(),
                "action": self.action,
                "release": self.name,
                "previous": state.current or None,
                "rev": self._source.rev if self._source else getattr(state.release(self.name), "rev", None),
                "ref": self._source.ref if self._source else getattr(state.release(self.name), "ref", None),
                "by": who(),
                "id": self.session.lock_id,
                "result": "ok" if stand == AFTER else "failed",
            }
        if stand == AFTER:
            details["verified"] = self.name
            if self._done and self._keep is not None:
                venv = self._wheels[host.name].key
                releases, venvs = plan.to_remove(state, self.name, venv, state.current, self._keep)
                details["remove_releases"], details["remove_venvs"] = releases, venvs
        elif stand == BEFORE and self._source is not None and self.name:
            details["remove_releases"] = [self.name]
        return details

    # --- host by host ---------------------------------------------------------------------------------

    def roll(self, to: dict[Host, str]) -> None:
        """Switch host by host. Raises DeployError at the first that fails; that one goes back."""
        for batch in plan.batches(list(to)):
            self.session.everywhere(batch, lambda host: self._one(host, to[host]))

    def _one(self, host: Host, new: str) -> None:
        old = self.session.states[host.name].current
        self._tried.add(host.name)
        # Until the script has said how the host stands, nobody knows.
        self.stand[host.name] = UNKNOWN
        try:
            self._switch(host, old, new)
            if self.stand[host.name] != AFTER:
                raise HostError(host.name, "switch: it did not say how it ended")
            self.stand[host.name] = UNKNOWN
            self._verify(host, new)
        except Exception as error:  # a defect of ours, too, must not leave a host half-way
            if self.stand[host.name] == UNKNOWN:
                self._go_back(host, new, old, error)
            raise
        self.stand[host.name] = AFTER

    def _limits(self, host: Host) -> float:
        """Return the seconds within which a host drains and starts; the helper itself is bounded, too."""
        drain = max((queue.job_timeout + 10 for queue in host.queues), default=0)
        start = sum(10 * queue.processes for queue in host.queues)
        return 60 + drain + start

    def _switch(self, host: Host, old: str, new: str, *, going_back: bool = False) -> None:
        """Run the switch script and note where it left the host. Raises HostError or Cancelled."""
        groups = [queue.group for queue in host.queues]
        script = scripts.switch(
            self.session.root, groups, from_release=old, to_release=new, going_back=going_back
        )
        limit = self._limits(host)
        lines: list[str] = []

        def hear(line: str) -> None:
            lines.append(line)
            for words in hoststate.events([line]):
                text = _SWITCH_TEXTS.get(words[0])
                if text:
                    self.out.step(f"{text} {' '.join(words[1:])}", host.name)

        try:
            self.session.run(
                host,
                script,
                "switch",
                timeout=limit,
                on_line=hear,
                cancellable=not going_back,
                stop_patience=2 * limit,
            )
        finally:
            said = [words[1] for words in hoststate.events(lines) if words[0] == "stand"]
            if said:
                place = {"before": BEFORE, "after": AFTER, "broken": BROKEN}[said[-1]]
                if going_back and place == AFTER:
                    place = BEFORE
                self.stand[host.name] = place

    def _verify(self, host: Host, release: str) -> None:
        """Wait until every worker runs from the release and has outlived startsecs. Raises HostError."""
        groups = [queue.group for queue in host.queues]
        script = scripts.status(groups)
        began = time.monotonic()
        limit = 30 + 2 * sum(queue.processes for queue in host.queues)
        down_since: float | None = None
        while groups:
            found = hoststate.parse_groups(self.session.run(host, script, "verify", timeout=60).lines)
            verdict = plan.judge(found, release)
            if verdict.ok:
                break
            now = time.monotonic()
            # A worker that has done its share of jobs is EXITED for a moment before supervisor starts it
            # again.
            down_since = (down_since or now) if verdict.down else None
            if verdict.final or now - began > limit or (down_since and now - down_since > 5):
                log = f"/var/log/kestrel-stack/{self.session.environment.app}/"
                raise HostError(host.name, f"verify: {verdict.reason}; its log is under {log}")
            if self.session.cancel.wait(0.5):
                raise Cancelled("stopped")
        workers = sum(queue.processes for queue in host.queues)
        self.out.good(f"verified: {count(workers, 'worker')} from {release}", host.name)

    def _go_back(self, host: Host, new: str, old: str, why: Exception) -> None:
        """Put a host back on its old release, after a failed verification or a lost connection."""
        self.out.bad(
            f"goes back to {old or 'no release'}: {str(why).removeprefix(f'{host.name}: ')}", host.name
        )
        limit = int(self._limits(host)) * 2
        try:
            if getattr(why, "lost", False):
                state = self._look_again(host, limit)
                if state.current == old:
                    # The script noticed that we were gone, and went back by itself.
                    well = not old or plan.judge(state.groups, old, 0).ok
                    self.stand[host.name] = BEFORE if well else BROKEN
                    return
            self._switch(host, new, old, going_back=True)
        except DeployError as error:
            if self.stand[host.name] == UNKNOWN and not getattr(error, "lost", False):
                self.stand[host.name] = BROKEN
            self.out.bad(f"could not go back: {str(error).removeprefix(f'{host.name}: ')}", host.name)

    def _look_again(self, host: Host, settle: int) -> HostState:
        """Reconnect to a host that was lost, and wait until what ran there has ended."""
        deadline = time.monotonic() + 45
        while True:
            try:
                return self.session.look(host, settle=settle, cancellable=False)
            except DeployError as error:
                if time.monotonic() > deadline:
                    raise HostError(host.name, f"does not answer any more ({error})", lost=True) from None
                time.sleep(1)


_SWITCH_TEXTS = {"drained": "drained", "switched": "switched to", "started": "started", "back": "back on"}
