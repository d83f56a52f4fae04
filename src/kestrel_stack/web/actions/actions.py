"""What operators may do: planned with the servers' numbers of this very moment, then done and accounted for.

Whoever calls it, `Actions` itself checks role, read-only mode and allow-list, writes the audit entry before
anything is done and its outcome afterwards, lets one operator at a time at a queue, and names every server
in what it reports: done, failed and why, or not reached.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kestrel_stack.web.actions import requeue
from kestrel_stack.web.actions.perform import perform
from kestrel_stack.web.actions.planner import Bulk, Planner
from kestrel_stack.web.actions.plans import DESTRUCTIVE, ActionRefused, Plan, choice, has_changed, show
from kestrel_stack.web.actions.requeue import Look
from kestrel_stack.web.actions.server_client import Present
from kestrel_stack.web.actions.tasks import (
    BROKE,
    DONE,
    FAILED,
    PART,
    STOPPED,
    Busy,
    Outcome,
    Result,
    Task,
    Tasks,
    Work,
)
from kestrel_stack.web.actions.turns import Forms, Hold, Holds

if TYPE_CHECKING:
    from kestrel_stack.web.access.auth import Identity
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.polling.poller import Poller
    from kestrel_stack.web.record.store import Store

log = logging.getLogger("kestrel-web")

PLAN_S = 60.0
"""An older plan is made again before it is run."""
LOOKS = 8
LOOK_AGE_S = 600.0
"""Looks at error queues that are remembered, and for how long: they hold other people's data."""


class Actions(Planner):
    """All actions of one site."""

    def __init__(self, config: Config, store: Store, poller: Poller, clock: Callable[[], float] = time.time):
        super().__init__(config, poller, clock)
        self.tasks = Tasks(clock)
        self._store = store
        self._lock = threading.Lock()
        self._holds = Holds(clock)
        self._forms = Forms()
        self._looks: OrderedDict[str, Look] = OrderedDict()

    def do(
        self,
        action: str,
        target: str,
        options: Mapping[str, Any],
        who: Identity | None,
        address: str = "",
        *,
        confirm: str | None = None,
        seen: int | None = None,
        once: str | None = None,
        always_typed: bool = False,
    ) -> Task:
        """Plan and run an action; a refusal is in the audit log, too. Raises `ActionRefused`.

        `confirm` is what was typed, `seen` the number of items that was shown, `once` the id of the form.
        With `always_typed` a destructive action needs the name even for few items.
        """
        with self._refusals(who, address, action, target):
            return self._forms.task(
                who.name if who else "",
                once,
                lambda: self.run(
                    self.plan(action, target, options),
                    who,
                    address,
                    confirm=confirm,
                    seen=seen,
                    always_typed=always_typed,
                ),
            )

    def run(
        self,
        plan: Plan,
        who: Identity | None,
        address: str = "",
        *,
        confirm: str | None = None,
        seen: int | None = None,
        always_typed: bool = False,
    ) -> Task:
        """Do what was planned; return the task, which is over unless parked jobs are moved."""
        who = self._check_who(plan.action, who)
        if self._clock() - plan.at > PLAN_S:
            plan = self._again(plan)
        if plan.problem is not None:
            raise ActionRefused(409, plan.problem)
        if plan.destructive:
            self._check_seen(seen, plan.count)
        if plan.needs_typed or (always_typed and plan.destructive):
            self._check_typed(confirm, plan.name, plan.target)
        release = self._hold(plan, who)
        goes_on = False
        began = self._clock()
        try:
            if plan.destructive and ":" not in plan.target:
                # Somebody else may have been at it until now: the numbers are asked once more.
                self._check_again(plan)
            entry = self._begin(plan, who, address)
            if plan.action not in ("requeue", "drop"):
                outcome = self._account(entry, plan, lambda: self._perform(plan, None))
                self._show(plan.addresses)
                return self.tasks.over(plan.action, plan.target, who.name, outcome, began)

            def work_on(work: Work) -> Outcome:
                try:
                    return self._account(entry, plan, lambda: _stopped(self._perform(plan, work), work))
                finally:
                    release()
                    self._show(plan.addresses)

            try:
                task = self.tasks.start(plan.action, plan.target, who.name, self.total(plan), work_on)
            except Busy as exc:
                self._end(entry, "refused", {"reason": str(exc)})
                raise ActionRefused(409, str(exc)) from None
            goes_on = True
            return task
        finally:
            if not goes_on:
                release()

    def do_bulk(
        self,
        action: str,
        targets: Iterable[str],
        who: Identity | None,
        address: str = "",
        *,
        confirm: str | None = None,
        seen: Mapping[str, int] | None = None,
        once: str | None = None,
    ) -> Task:
        """Do one action to several queues, one after the other, in a task; each is in the audit log."""
        with self._refusals(who, address, action, "several queues"):

            def begin() -> Task:
                operator = self._check_who(action, who)
                bulk = self.plan_bulk(action, targets, {})
                if not bulk.plans:
                    raise ActionRefused(
                        409, "There is nothing to do: " + " ".join(why for _, why in bulk.refused)
                    )
                if seen is not None and action in DESTRUCTIVE:
                    self._check_seen(sum(seen.values()), bulk.count)
                if bulk.needs_typed:
                    self._check_typed(confirm, bulk.name)
                try:
                    return self.tasks.start(
                        action,
                        bulk.name,
                        operator.name,
                        len(bulk.plans),
                        lambda work: self._bulk(bulk, operator, address, seen or {}, work),
                    )
                except Busy as exc:
                    raise ActionRefused(409, str(exc)) from None

            return self._forms.task(who.name if who else "", once, begin)

    def _bulk(self, bulk: Bulk, who: Identity, address: str, seen: Mapping[str, int], work: Work) -> Outcome:
        results = [Result("", "refused", why, target=key) for key, why in bulk.refused]
        for number, planned in enumerate(bulk.plans):
            if work.stop.is_set():
                results.append(Result("", "stopped", "Stopped before it was begun.", target=planned.target))
                continue
            results += self._one_of_bulk(planned, who, address, seen.get(planned.target), work)
            work.says(done=number + 1, results=tuple(results), text=planned.name)
        # Not after each queue: a poll of a server with thousands of them costs more than an action.
        self._show(address for plan in bulk.plans for address in plan.addresses)
        kinds = {result.outcome for result in results}
        if "stopped" in kinds:
            state = STOPPED
        else:
            state = DONE if kinds <= {"done"} else PART if "done" in kinds else FAILED
        done = len({result.target for result in results if result.outcome == "done"})
        said = f"{bulk.action.capitalize()}: {done:,} of {bulk.name}."
        return _stopped(Outcome(tuple(results), said, state), work)

    def _one_of_bulk(
        self, planned: Plan, who: Identity, address: str, seen: int | None, work: Work
    ) -> list[Result]:
        target = planned.target
        try:
            plan = self.plan(planned.action, target, {"all": True} if planned.action == "requeue" else {})
            if plan.problem is not None:
                raise ActionRefused(409, plan.problem)
            if plan.destructive:
                self._check_seen(planned.count if seen is None else seen, plan.count)
            release = self._hold(plan, who)
        except ActionRefused as exc:
            return [Result("", "refused", str(exc), target=target)]
        try:
            entry = self._begin(plan, who, address)
            # Progress of a bulk task is in queues, so what one queue says of itself stays within.
            quiet = _Quiet(work)
            outcome = self._account(entry, plan, lambda: _stopped(self._perform(plan, quiet), work))
        except ActionRefused as exc:
            return [Result("", "refused", str(exc), target=target)]
        finally:
            release()
        return [replace(result, target=target) for result in outcome.results]

    # Looking at parked jobs

    def last_look(self, target: str) -> Look | None:
        """Return the last look at the parked jobs of a queue, unless it is old."""
        key = requeue.parent_of(self.check_key(target))
        with self._lock:
            for other, found in list(self._looks.items()):
                if not 0 <= self._clock() - found.at < LOOK_AGE_S:
                    del self._looks[other]
            return self._looks.get(key)

    def look(self, target: str, who: Identity | None, address: str = "") -> Look:
        """Look at the parked jobs of a queue and remember what was found; raise `ActionRefused`.

        It takes each of them in hand for a moment, so it is not for a read-only site, nor for a viewer.
        """
        if (reason := self.why_no_look(who)) is not None:
            raise ActionRefused(403, reason)
        assert who is not None
        plan = self.plan_look(target)
        if plan.problem is not None:
            raise ActionRefused(409, plan.problem)
        plan = replace(plan, action="look")
        release = self._hold(plan, who)
        try:
            entry = self._begin(plan, who, address)
            ended, said = "failed", ""
            try:
                found = requeue.look(self.parking(plan), plan.target, who.name, self.parked(plan))
                ended, said = "done", f"{len(found.items)} parked jobs were shown."
            finally:
                self._end(entry, ended, {"text": said})
        finally:
            release()
        problems = tuple(place.error for place in plan.places if place.error)
        found = replace(found, problems=(*problems, *found.problems))
        with self._lock:
            self._looks[plan.target] = found
            self._looks.move_to_end(plan.target)
            while len(self._looks) > LOOKS:
                self._looks.popitem(last=False)
        return found

    def why_no_look(self, who: Identity | None) -> str | None:
        """Return in one line why somebody may not look at parked jobs; None: they may."""
        if self.config.read_only:
            return self.why_not("requeue")
        if who is None or not who.may("operator"):
            return "A look takes the parked jobs in hand for a moment: it needs the role operator."
        return None

    # The rest of the process

    def form_id(self) -> str:
        """Return a one-time id for a form; it is worth nothing after a restart."""
        return self._forms.new()

    def busy(self, target: str) -> Hold | None:
        """Return who is at a queue or server at this moment."""
        return self._holds.get(target)

    def stop(self) -> None:
        """Stop what is under way after the item in hand."""
        self.tasks.close()

    # Checking

    def _check_who(self, action: str, who: Identity | None) -> Identity:
        if who is None:
            raise ActionRefused(403, "Nobody is logged in.")
        if (reason := self.why_not(action, who)) is not None:
            raise ActionRefused(403, reason)
        return who

    def _check_again(self, plan: Plan) -> None:
        before = {place.address: place.present for place in plan.places if place.chosen and place.present}
        drops = plan.action == "drop"
        counted = requeue.errors_of(plan.target) if drops else plan.target
        # Not those that did not answer a moment ago: they are left out, and would be waited for.
        found, _ = self._ask([counted], map(self._server, before))

        def count(present: Present) -> int:
            return present.items + (present.open_transactions if drops else 0)

        if found and not any(here[counted].exists or here[counted].alias for here in found.values()):
            raise ActionRefused(409, f"Nothing was done: {show(counted)} is not there any more.")
        # A server that has just stopped answering is not one whose queue is empty.
        now = {
            address: found[address][counted] if address in found else before[address] for address in before
        }
        self._check_seen(sum(map(count, before.values())), sum(map(count, now.values())))

    def _again(self, plan: Plan) -> Plan:
        """Return the same plan with the numbers of now; its options were checked already."""
        return self.plan(plan.action, plan.target, plan.options, draft=True)

    def _check_typed(self, typed: str | None, *names: str) -> None:
        if typed is None or not {typed, typed.strip()} & set(names):
            raise ActionRefused(409, f"Nothing was done: type {names[0]} to confirm this.")

    def _check_seen(self, seen: int | None, now: int) -> None:
        if seen is not None and has_changed(seen, now):
            raise ActionRefused(
                409,
                f"Nothing was done: there were {seen:,} items when this was shown, now there are {now:,}.",
            )

    @contextlib.contextmanager
    def _refusals(self, who: Identity | None, address: str, action: str, target: str) -> Iterator[None]:
        """Note in the audit log what is refused, as far as it can be written."""
        try:
            yield
        except ActionRefused as exc:
            name, role = (who.name, who.role) if who else ("", "")
            if exc.status == 503:
                # It is the audit log that cannot be written: nobody waits for that twice.
                raise
            with contextlib.suppress(Exception):
                entry = self._store.audit_begin(
                    name, address, role, action[:40], target[:300], [], {"reason": str(exc)}
                )
                self._store.audit_end(entry, "refused", {"reason": str(exc)})
            raise

    def _hold(self, plan: Plan, who: Identity) -> Callable[[], None]:
        """Take the queue or server for this action; raise `ActionRefused` naming who has it."""
        if plan.action == "enqueue":
            return _nothing
        wanted = [plan.target]
        if plan.action in ("requeue", "drop", "look"):
            wanted.append(requeue.errors_of(plan.target))
        return self._holds.take(wanted, who.name, plan.action)

    # Accounting

    def _begin(self, plan: Plan, who: Identity, address: str) -> int:
        detail: dict[str, Any] = {"count": plan.count}
        detail |= {
            name: f"{len(value)} bytes" if isinstance(value, bytes) else value
            for name, value in plan.options.items()
            if name != "servers"
        }
        try:
            return self._store.audit_begin(
                who.name, address, who.role, plan.action, plan.target, plan.addresses, detail
            )
        except Exception as exc:
            log.error("the audit log cannot be written: %s", exc)
            raise ActionRefused(
                503, "Nothing was done, because the audit log cannot be written; see kestrel-web's log."
            ) from None

    def _account(self, entry: int, plan: Plan, perform: Callable[[], Outcome]) -> Outcome:
        """Perform, and note the outcome, whatever happens."""
        try:
            outcome = perform()
        except Exception:
            log.exception("the action %s failed", plan.action)
            outcome = Outcome(
                tuple(Result(server, "failed", BROKE) for server in plan.addresses), BROKE, FAILED
            )
        ends = {DONE: "done", STOPPED: "cut"}.get(outcome.state, "failed")
        detail = {
            "text": outcome.text,
            **outcome.detail,
            "servers": {result.server: f"{result.outcome}: {result.text}" for result in outcome.results},
        }
        if not self._end(entry, ends, detail):
            outcome = replace(
                outcome, text=f"{outcome.text} The audit log does not have this outcome.".strip()
            )
        return outcome

    def _show(self, servers: Iterable[str]) -> None:
        """Have the pages show soon what was done on these servers."""
        for server in sorted(set(servers)):
            self._poller.poke(server)

    def _end(self, entry: int, outcome: str, detail: Mapping[str, Any]) -> bool:
        try:
            self._store.audit_end(entry, outcome, dict(detail))
        except Exception as exc:
            log.error("the outcome of audit entry %s was not written: %s", entry, exc)
            return False
        return True

    # Performing

    def _perform(self, plan: Plan, work: Work | None) -> Outcome:
        if plan.action in ("requeue", "drop"):
            assert work is not None
            meant, limit = choice(plan.options), plan.options.get("count")
            found = requeue.act(self.parking(plan), meant, limit, work, plan.action == "drop")
            failed = [
                Result(place.address, "not reached", place.error) for place in plan.places if place.error
            ]
            if not failed:
                return found
            state = {DONE: PART}.get(found.state, found.state)
            return replace(found, results=(*found.results, *failed), state=state)
        return perform(plan, self.config.servers, self._read_s)


class _Quiet(Work):
    """A part of a bigger task: it hears the stop, and its progress is the bigger task's affair."""

    def __init__(self, whole: Work):
        self.id = whole.id
        self.stop = whole.stop

    def says(self, **changes: Any) -> None:
        """Say nothing."""


def _stopped(outcome: Outcome, work: Work) -> Outcome:
    """Say who stopped it, if somebody did."""
    if outcome.state != STOPPED or not work.stopped_by:
        return outcome
    return replace(outcome, text=f"{outcome.text} Stopped by {work.stopped_by}.")


def _nothing() -> None:
    """Release nothing."""
