"""What operators may do: planned with the servers' numbers of this very moment, then done and accounted for.

Whoever calls it, `Actions` itself checks role, read-only mode and allow-list, writes the audit entry before
anything is done and its outcome afterwards, lets one operator at a time at a queue, and names every server
in what it reports: done, failed and why, or not reached.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kestrel_stack.queue.envelope import Envelope
from kestrel_stack.queue.errors import InvalidEnvelope
from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys, requeue, text
from kestrel_stack.web.plans import (
    ALLOWED_BY,
    BULK_ACTIONS,
    DESTRUCTIVE,
    QUEUE_ACTIONS,
    SERVER_ACTIONS,
    VERBS,
    ActionRefused,
    Place,
    Plan,
    check_options,
    choice,
    has_changed,
    show,
)
from kestrel_stack.web.requeue import CannotPark, Look
from kestrel_stack.web.server_client import NotReached, Present, ServerClient, ServerError, Unknown
from kestrel_stack.web.tasks import DONE, FAILED, PART, STOPPED, Busy, Outcome, Result, Task, Tasks, Work

if TYPE_CHECKING:
    from kestrel_stack.web.auth import Identity
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.poller import Poller
    from kestrel_stack.web.store import Store

log = logging.getLogger("kestrel-web")

PLAN_S = 60.0
"""An older plan is made again before it is run."""
FORMS = 5000
"""One-time ids of forms that are remembered, to do nothing twice."""
TWICE_S = 60.0
"""So long the second click waits for the outcome of the first."""
LOOKS = 8
LOOK_AGE_S = 600.0
"""Looks at error queues that are remembered, and for how long: they hold other people's data."""
BULK_QUEUES = 500


@dataclass(frozen=True)
class Hold:
    """Somebody is at a queue or a server."""

    who: str
    action: str
    since: float


@dataclass(frozen=True)
class Bulk:
    """What one action on several queues would do."""

    action: str
    plans: tuple[Plan, ...]
    refused: tuple[tuple[str, str], ...]
    """Keys of queues that it cannot be done to, and why."""
    count: int
    needs_typed: bool
    name: str
    """What must be typed, such as ``12 queues``."""
    errors: Mapping[str, str]
    """Servers that did not answer, and why."""


class _Form:
    """One sending of a form; the second waits for the first."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.task: Task | None = None


class Actions:
    """All actions of one site."""

    def __init__(self, config: Config, store: Store, poller: Poller, clock: Callable[[], float] = time.time):
        self.config = config
        self.tasks = Tasks(clock)
        self._store = store
        self._poller = poller
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Hold] = {}
        self._forms: OrderedDict[tuple[str, str], _Form] = OrderedDict()
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._run = secrets.token_urlsafe(6)
        self._read_s = min(max(config.timeout_s, 1.0), 10.0)

    # What may be done

    def why_not(self, action: str, who: Identity | None = None) -> str | None:
        """Return in one line why an action is not possible on this site, or to this person; None if it is."""
        if self.config.read_only:
            return (
                "This kestrel-web is read-only (read_only in its configuration): nothing can be changed here."
            )
        if ALLOWED_BY.get(action, action) not in self.config.actions:
            return f"The action {action} is switched off here (actions in the configuration)."
        if who is not None and not who.may("operator"):
            return f"{who.name} is a {who.role}: this needs the role operator."
        return None

    def plan(self, action: str, target: str, options: Mapping[str, Any], *, draft: bool = False) -> Plan:
        """Return what an action would do, asking the servers now; raise `ActionRefused`.

        A `draft` is for a form that is still empty: its options are not checked.
        """
        on_server = ":" in target
        if action not in (SERVER_ACTIONS if on_server else QUEUE_ACTIONS):
            raise ActionRefused(
                404, f"There is no action {action[:40]!r} on a {'server' if on_server else 'queue'}."
            )
        if (reason := self.why_not(action)) is not None:
            raise ActionRefused(403, reason)
        if on_server:
            return self._plan_server(action, target, options, draft)
        key = self._check_key(target)
        if action in ("requeue", "drop"):
            key = requeue.parent_of(key)
        described = requeue.described(self.config.settings, key)
        checked = self._check(action, key, options, described, draft)
        return self._plan_queue(action, key, checked, described, *self._ask(self._asked_for(action, [key])))

    def plan_bulk(self, action: str, targets: Iterable[str], options: Mapping[str, Any]) -> Bulk:
        """Return what one action would do to several queues; raise `ActionRefused`."""
        if action not in BULK_ACTIONS:
            raise ActionRefused(
                404, f"There is no bulk action {action[:40]!r}; there are {', '.join(BULK_ACTIONS)}."
            )
        if (reason := self.why_not(action)) is not None:
            raise ActionRefused(403, reason)
        wanted = list(dict.fromkeys(self._check_key(target) for target in targets))
        if action == "requeue":
            wanted = list(dict.fromkeys(map(requeue.parent_of, wanted)))
        if not wanted:
            raise ActionRefused(400, "No queue was chosen: tick some, or filter.")
        if len(wanted) > BULK_QUEUES:
            raise ActionRefused(400, f"These are {len(wanted)} queues; at most {BULK_QUEUES} go at a time.")
        options = {"all": True} if action == "requeue" else options
        asked, errors = self._ask(self._asked_for(action, wanted))
        plans: list[Plan] = []
        refused: list[tuple[str, str]] = []
        for key in wanted:
            described = requeue.described(self.config.settings, key)
            try:
                checked = self._check(action, key, options, described, False)
                plan = self._plan_queue(action, key, checked, described, asked, errors)
            except ActionRefused as exc:
                refused.append((key, str(exc)))
                continue
            if plan.problem is None:
                plans.append(plan)
            else:
                refused.append((key, plan.problem))
        count = sum(plan.count for plan in plans)
        typed = action in DESTRUCTIVE and count >= self.config.confirm_typed_from
        return Bulk(action, tuple(plans), tuple(refused), count, typed, f"{len(plans)} queues", errors)

    # Doing it

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
            return self._once(
                who,
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
            plan = self.plan(plan.action, plan.target, plan.options)
        if plan.problem is not None:
            raise ActionRefused(409, plan.problem)
        if plan.needs_typed or (always_typed and plan.destructive):
            self._check_typed(confirm, plan.name, plan.target)
        if plan.destructive:
            self._check_seen(seen, plan.count)
        release = self._hold(plan, who)
        began = self._clock()
        try:
            entry = self._begin(plan, who, address)
            if plan.action not in ("requeue", "drop"):
                outcome = self._account(entry, plan, lambda: self._perform(plan, None))
                return self.tasks.over(plan.action, plan.target, who.name, outcome, began)

            def work_on(work: Work) -> Outcome:
                try:
                    return self._account(entry, plan, lambda: self._perform(plan, work))
                finally:
                    release()

            try:
                task = self.tasks.start(plan.action, plan.target, who.name, self._total(plan), work_on)
            except Busy as exc:
                self._end(entry, "refused", {"reason": str(exc)})
                raise ActionRefused(409, str(exc)) from None
            release = _nothing  # the task releases it when it is over
            return task
        finally:
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
                if bulk.needs_typed:
                    self._check_typed(confirm, bulk.name)
                if seen is not None and action in DESTRUCTIVE:
                    self._check_seen(sum(seen.values()), bulk.count)
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

            return self._once(who, once, begin)

    def _bulk(self, bulk: Bulk, who: Identity, address: str, seen: Mapping[str, int], work: Work) -> Outcome:
        results = [Result("", "refused", why, target=key) for key, why in bulk.refused]
        for number, planned in enumerate(bulk.plans):
            if work.stop.is_set():
                results.append(Result("", "stopped", "Stopped before it was begun.", target=planned.target))
                continue
            results += self._one_of_bulk(planned, who, address, seen.get(planned.target), work)
            work.says(done=number + 1, results=tuple(results), text=planned.name)
        kinds = {result.outcome for result in results}
        if "stopped" in kinds:
            state = STOPPED
        else:
            state = DONE if kinds <= {"done"} else PART if "done" in kinds else FAILED
        done = len({result.target for result in results if result.outcome == "done"})
        return Outcome(tuple(results), f"{bulk.action}: {done} of {len(bulk.plans)} queues.", state)

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
            outcome = self._account(entry, plan, lambda: self._perform(plan, _Quiet(work)))
        except ActionRefused as exc:
            return [Result("", "refused", str(exc), target=target)]
        finally:
            release()
        return [replace(result, target=target) for result in outcome.results]

    # Looking at parked jobs

    def plan_look(self, target: str) -> Plan:
        """Return what is parked for a queue at this moment."""
        key = requeue.parent_of(self._check_key(target))
        described = requeue.described(self.config.settings, key)
        return self._plan_queue("requeue", key, {}, described, *self._ask(self._asked_for("requeue", [key])))

    def last_look(self, target: str) -> Look | None:
        """Return the last look at the parked jobs of a queue, unless it is old."""
        key = requeue.parent_of(self._check_key(target))
        with self._lock:
            for other, found in list(self._looks.items()):
                if not 0 <= self._clock() - found.at < LOOK_AGE_S:
                    del self._looks[other]
            return self._looks.get(key)

    def look(self, target: str, who: Identity | None) -> Look:
        """Look at the parked jobs of a queue and remember what was found; raise `ActionRefused`.

        It takes each of them in hand for a moment, so it is no matter for a read-only site or a viewer.
        """
        if self.config.read_only:
            raise ActionRefused(403, self.why_not("requeue") or "")
        if who is None or not who.may("operator"):
            raise ActionRefused(
                403, "A look takes the parked jobs in hand for a moment: it needs the role operator."
            )
        plan = self.plan_look(target)
        if plan.problem is not None:
            raise ActionRefused(409, plan.problem)
        release = self._hold(replace(plan, action="look"), who)
        try:
            found = requeue.look(self._parking(plan), plan.target, who.name, self._parked(plan))
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

    # The rest of the process

    def form_id(self) -> str:
        """Return a one-time id for a form; it is worth nothing after a restart."""
        return f"{self._run}.{secrets.token_urlsafe(12)}"

    def busy(self, target: str) -> Hold | None:
        """Return who is at a queue or server at this moment."""
        with self._lock:
            return self._held.get(target)

    def stop(self) -> None:
        """Stop what is under way after the item in hand."""
        self.tasks.close()

    # Planning

    def _check_key(self, target: str) -> str:
        try:
            keys.parse(target)
        except ValueError:
            raise ActionRefused(404, f"{target[:100]!r} is not the key of a queue.") from None
        return target

    def _check(
        self,
        action: str,
        key: str,
        options: Mapping[str, Any],
        described: requeue.Described | None,
        draft: bool,
    ) -> Mapping[str, Any]:
        if draft:
            return dict(options)
        return check_options(action, options, list(map(str, self.config.servers)), described, key)

    def _asked_for(self, action: str, wanted: Iterable[str]) -> list[str]:
        """Return the queues whose numbers are needed."""
        if action not in ("requeue", "drop"):
            return list(wanted)
        asked: list[str] = []
        for key in wanted:
            asked.append(key)
            with contextlib.suppress(CannotPark):
                asked.append(requeue.errors_of(key))
        return asked

    def _ask(self, wanted: list[str]) -> tuple[dict[str, dict[str, Present]], dict[str, str]]:
        """Ask every server for the numbers of some queues; return them by server, and what went wrong."""

        def ask(server: Server) -> dict[str, Present] | ServerError:
            try:
                with ServerClient(server, self._read_s) as client:
                    return client.present(wanted)
            except ServerError as exc:
                return exc

        found: dict[str, dict[str, Present]] = {}
        errors: dict[str, str] = {}
        for server, said in zip(self.config.servers, _at_once(ask, self.config.servers), strict=True):
            if isinstance(said, ServerError):
                errors[str(server)] = (
                    str(said)
                    .removesuffix(" Nothing was sent to it.")
                    .removesuffix(" It may have been done all the same; look again.")
                )
            else:
                found[str(server)] = said
        return found, errors

    def _plan_server(self, action: str, target: str, options: Mapping[str, Any], draft: bool) -> Plan:
        configured = list(map(str, self.config.servers))
        if target not in configured:
            raise ActionRefused(404, f"{target[:100]!r} is not one of the servers: {', '.join(configured)}.")
        checked = dict(options) if draft else check_options(action, options, configured, None, target)
        state = self._poller.view().server(target)
        warnings: list[str] = []
        if state is not None and not state.reachable and state.error:
            warnings.append(f"When it was last asked: {state.error}")
        notes = {
            "reload": (
                "Only queues, aliases and log levels are read again. A Kestrel answers the same when its new "
                "configuration is wrong, and says so in its log only."
            ),
            "status": (
                "READONLY takes no new items; QUIESCENT gives none either. The server keeps its status over "
                "a restart."
            ),
            "shutdown": (
                "The server stops and cannot be started again from here. What consumers have in hand is "
                "delivered again after its start."
            ),
            "flush_expired": "Items whose time is over are removed from every queue of the server.",
        }[action]
        shut = action == "shutdown"
        count = state.numbers.curr_items if shut and state and state.numbers else 0
        return Plan(
            *(action, target, target, self._clock()),
            places=(Place(target, status=state.status if state else None),),
            count=count,
            destructive=shut,
            needs_typed=shut,
            warnings=tuple(warnings),
            notes=(notes,),
            options=checked,
        )

    def _plan_queue(
        self,
        action: str,
        key: str,
        options: Mapping[str, Any],
        described: requeue.Described | None,
        found: Mapping[str, Mapping[str, Present]],
        errors: Mapping[str, str],
    ) -> Plan:
        moves = action in ("requeue", "drop")
        counted = key
        if moves:
            try:
                counted = requeue.errors_of(key)
            except CannotPark as exc:
                raise ActionRefused(400, str(exc)) from None
        view = self._poller.view()
        chosen = set(options.get("servers") or ([options["server"]] if options.get("server") else []))
        places: list[Place] = []
        for server in map(str, self.config.servers):
            state = view.server(server)
            present = found[server].get(counted) if server in found else None
            here = not chosen or server in chosen
            wanted = action == "enqueue" or present is None or present.exists or present.alias
            places.append(
                Place(server, present, errors.get(server), state.status if state else None, here and wanted)
            )
        meant = [place.present for place in places if place.chosen and place.present]
        known = any(
            here.get(key, Present()).exists or here.get(key, Present()).alias for here in found.values()
        )
        exists = any(present.exists or present.alias for present in meant)
        row = view.row(counted)
        if not known and not exists and described is None and row is None and not errors:
            raise ActionRefused(404, f"No server has a queue {keys.show(counted)}.")
        count = sum(present.items + (present.open_transactions if moves else 0) for present in meant)
        problem: str | None = None
        if action != "enqueue" and not exists:
            problem = f"No server that answered has a queue {keys.show(counted)}" + (
                f": {' '.join(errors.values())}" if errors else "."
            )
        elif action == "enqueue" and len(errors) == len(places):
            problem = f"No server answers: {' '.join(errors.values())}"
        elif (
            action == "enqueue"
            and described is None
            and row is not None
            and row.parent
            and row.kind
            in (
                "errors",
                "delay",
            )
        ):
            problem = f"{keys.show(key)} belongs to {keys.show(row.parent)}: enqueue the job there."
        if moves and not problem and not count:
            problem = f"Nothing is parked in {keys.show(counted)}."
        destructive = action in DESTRUCTIVE
        return Plan(
            *(action, key, keys.show(key), self._clock(), tuple(places), count, destructive),
            needs_typed=destructive and count >= self.config.confirm_typed_from,
            warnings=tuple(self._warnings(action, key, places, described, found)),
            notes=_NOTES.get(action, ()),
            problem=problem,
            options=options,
            described=described,
        )

    def _warnings(
        self,
        action: str,
        key: str,
        places: Iterable[Place],
        described: requeue.Described | None,
        found: Mapping[str, Mapping[str, Present]],
    ) -> Iterator[str]:
        for place in places:
            if place.error and place.chosen:
                yield f"Nothing is done on this server: {place.error}"
            elif place.chosen and place.status in ("READONLY", "QUIESCENT") and action != "drop":
                yield f"{place.address} is {place.status}" + (
                    ": it takes nothing until its status is UP."
                    if action in ("requeue", "enqueue")
                    else " and will refuse this until its status is UP."
                )
        meant = [place.present for place in places if place.chosen and place.present]
        reserved = sum(present.open_transactions for present in meant)
        waiters = sum(present.waiters for present in meant)
        if action == "flush" and reserved:
            yield (
                f"{_number(reserved, 'item is', 'items are')} reserved by consumers at this moment: a flush "
                "keeps them, and what is not confirmed comes back."
            )
        if action in ("requeue", "drop") and reserved:
            yield (
                f"{_number(reserved, 'parked job is', 'parked jobs are')} in somebody else's hands at this "
                "moment and may be left out."
            )
        if action != "delete":
            return
        if reserved:
            yield (
                f"{_number(reserved, 'item is', 'items are')} reserved by consumers at this moment: after "
                "the delete the server no longer knows them, so what fails does not come back."
            )
        if waiters:
            yield (
                f"{_number(waiters, 'consumer waits', 'consumers wait')} for its items: their next request "
                "makes the queue again."
            )
        if described is not None:
            yield (
                f"The settings of {described.app.app} describe this queue: its producers and consumers make "
                "it again as soon as they use it."
            )
        fanouts = sorted({child for present in meant for child in present.children})
        if fanouts:
            yield f"Its fanouts stay, with what is in them: {', '.join(map(keys.show, fanouts))}."
        if key.endswith(requeue.SUFFIX):
            yield "These are parked jobs, which are nowhere else: they are gone for ever."

    # Checking

    def _check_who(self, action: str, who: Identity | None) -> Identity:
        if who is None:
            raise ActionRefused(403, "Nobody is logged in.")
        if (reason := self.why_not(action, who)) is not None:
            raise ActionRefused(403, reason)
        return who

    def _check_typed(self, typed: str | None, *names: str) -> None:
        if typed is None or typed.strip() not in names:
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
            with contextlib.suppress(Exception):
                entry = self._store.audit_begin(
                    name, address, role, action, target[:300], [], {"reason": str(exc)}
                )
                self._store.audit_end(entry, "refused", {"reason": str(exc)})
            raise

    def _once(self, who: Identity | None, once: str | None, begin: Callable[[], Task]) -> Task:
        """Do what `begin` does once for each form; the second sending gets the first one's task."""
        if once is None:
            return begin()
        if not once.startswith(f"{self._run}."):
            raise ActionRefused(
                409, "This page is from before kestrel-web was started again: look at it anew."
            )
        mark = (who.name if who else "", once)
        with self._lock:
            form = self._forms.get(mark)
            first = form is None
            if form is None:
                form = self._forms[mark] = _Form()
                while len(self._forms) > FORMS:
                    self._forms.popitem(last=False)
        if first:
            try:
                form.task = begin()
            except BaseException:
                # Nothing was begun: the same form may be sent again.
                with self._lock:
                    self._forms.pop(mark, None)
                raise
            finally:
                form.over.set()
            return form.task
        if not form.over.wait(TWICE_S) or form.task is None:
            raise ActionRefused(409, "The same form was sent twice; look at what became of the first.")
        return self.tasks.get(form.task.id) or form.task

    def _hold(self, plan: Plan, who: Identity) -> Callable[[], None]:
        """Take the queue or server for this action; raise `ActionRefused` naming who has it."""
        if plan.action == "enqueue":
            return _nothing
        wanted = [plan.target]
        if plan.action in ("requeue", "drop", "look"):
            wanted.append(requeue.errors_of(plan.target))
        mine = Hold(who.name, plan.action, self._clock())
        with self._lock:
            for target in wanted:
                other = self._held.get(target)
                if other is not None:
                    doing = "look at the parked jobs of" if other.action == "look" else VERBS[other.action]
                    raise ActionRefused(
                        409,
                        f"{other.who} has begun to {doing} {show(target)} at {text.clock(other.since)}; "
                        "wait until that is over.",
                    )
            for target in wanted:
                self._held[target] = mine

        def release() -> None:
            with self._lock:
                for target in wanted:
                    if self._held.get(target) is mine:
                        del self._held[target]

        return release

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
            said = "kestrel-web itself failed in the middle of this; its log says why. Look at the servers."
            outcome = Outcome(
                tuple(Result(server, "failed", said) for server in plan.addresses), said, FAILED
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
        for server in plan.addresses:
            with contextlib.suppress(Exception):
                self._poller.poke(server)
        return outcome

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
            found = requeue.act(self._parking(plan), meant, limit, work, plan.action == "drop")
            failed = [
                Result(place.address, "not reached", place.error) for place in plan.places if place.error
            ]
            if not failed:
                return found
            state = {DONE: PART}.get(found.state, found.state)
            return replace(found, results=(*found.results, *failed), state=state)
        if plan.action == "enqueue":
            return self._enqueue(plan)
        act = {
            "flush": _flush,
            "flush_expired": _flush_expired,
            "delete": _delete,
            "reload": _reload,
            "status": _status,
            "shutdown": _shutdown,
        }[plan.action]

        def one(place: Place) -> Result:
            if place.error:
                return Result(place.address, "not reached", place.error)
            try:
                with ServerClient(self._server(place.address), self._read_s) as client:
                    said, count = act(client, plan)
                    return Result(place.address, "done", said, count)
            except NotReached as exc:
                return Result(place.address, "not reached", str(exc))
            except ServerError as exc:
                return Result(place.address, "failed", str(exc))
            except Exception:
                log.exception("%s on %s failed", plan.action, place.address)
                return Result(place.address, "failed", "kestrel-web itself failed; its log says why.")

        results = _at_once(one, [place for place in plan.places if place.chosen])
        count = sum(result.count or 0 for result in results)
        good = sum(result.outcome == "done" for result in results)
        state = DONE if good == len(results) else PART if good else FAILED
        if len(results) == 1:
            said = results[0].text
        else:
            said = f"{plan.action}: done on {good} of {len(results)} servers."
        return Outcome(tuple(results), said, state, {"count": count})

    def _enqueue(self, plan: Plan) -> Outcome:
        """Put the item on one server: the one chosen, or any that has the queue and takes it."""
        places = [place for place in plan.places if place.chosen and not place.error]
        if not plan.options.get("server"):
            if plan.described is not None:
                ours = set(map(str, plan.described.servers(self.config.servers)))
                places = [place for place in places if place.address in ours]
            else:
                having = [p for p in places if p.present and (p.present.exists or p.present.alias)]
                places = having or places
            random.shuffle(places)
        body: bytes = plan.options["body"]
        job: str | None = None
        if plan.described is not None:
            with contextlib.suppress(InvalidEnvelope):
                job = Envelope.decode(body).id
        results: list[Result] = []
        for place in places:
            try:
                with ServerClient(self._server(place.address), self._read_s) as client:
                    client.put(plan.target, body)
            except ServerError as exc:
                kind = "not reached" if isinstance(exc, NotReached) else "failed"
                results.append(Result(place.address, kind, str(exc)))
                if isinstance(exc, Unknown):
                    # It may be there: on another server it would be a second one.
                    break
                continue
            what = f"Job {job}" if job else f"An item of {len(body):,} bytes"
            said = f"{what} is on {plan.name} at {place.address}."
            results.append(Result(place.address, "done", said, 1))
            return Outcome(tuple(results), said, DONE, {"id": job, "server": place.address})
        if not results:
            results = [Result(p.address, "not reached", p.error or "") for p in plan.places if p.chosen]
        return Outcome(tuple(results), "Not enqueued.", FAILED, {"id": job})

    def _server(self, address: str) -> Server:
        return next(server for server in self.config.servers if str(server) == address)

    def _parked(self, plan: Plan) -> dict[str, int]:
        return {
            place.address: place.present.items + place.present.open_transactions
            for place in plan.places
            if place.present and place.present.exists
        }

    def _total(self, plan: Plan) -> int:
        limit = plan.options.get("count")
        return plan.count if limit is None else min(limit, plan.count)

    def _parking(self, plan: Plan) -> requeue.Parking:
        holding = [self._server(address) for address, count in self._parked(plan).items() if count]
        if plan.described is not None:
            using: Iterable[Server] = plan.described.servers(self.config.servers)
        else:
            found, _ = self._ask([plan.target])
            using = [self._server(server) for server, present in found.items() if present[plan.target].exists]
        return requeue.parking(plan.described, plan.target, holding, using)


class _Quiet(Work):
    """A part of a bigger task: it hears the stop, and its progress is the bigger task's affair."""

    def __init__(self, whole: Work):
        self.id = whole.id
        self.stop = whole.stop

    def says(self, **changes: Any) -> None:
        """Say nothing."""


_NOTES: dict[str, tuple[str, ...]] = {
    "flush": (
        "All items of the queue are removed for ever. Kestrel cannot remove single items from the middle.",
    ),
    "flush_expired": ("Items whose time is over are removed; others stay.",),
    "delete": ("The queue and all its items are removed for ever, its numbers as well.",),
    "requeue": (
        "Each job is written to its queue before it is taken out of the error queue: a cut loses nothing and "
        "doubles at most the one under way. Jobs begin with a first attempt and all retries. Of more than "
        "200 jobs that are not meant, some go to the end of the error queue.",
    ),
    "drop": ("Parked jobs are nowhere else: what is dropped is gone for ever.",),
    "enqueue": ("Workers do this job like any other.",),
}


def _flush(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    before = client.present([plan.target])[plan.target]
    client.flush_queue(plan.target)
    after = client.present([plan.target])[plan.target]
    stay = f" {_number(after.open_transactions, 'reserved item stays', 'reserved items stay')}."
    return (
        f"Flushed {_number(before.items, 'item', 'items')}; {after.items:,} are there now."
        + (stay if after.open_transactions else ""),
        before.items,
    )


def _delete(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    before = client.present([plan.target])[plan.target]
    client.delete_queue(plan.target)
    after = client.present([plan.target])[plan.target]
    again = " It is there again: somebody uses it." if after.exists else ""
    return f"Deleted with {_number(before.items, 'item', 'items')}.{again}", before.items


def _flush_expired(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    count = client.flush_expired(None if ":" in plan.target else plan.target)
    return f"Removed {_number(count, 'expired item', 'expired items')}.", count


def _reload(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    client.reload()
    status = client.server_status()
    return f"Reloaded; the server is {status}. If the new configuration is wrong, only its log says so.", None


def _status(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    wanted: str = plan.options["status"]
    now = client.set_status(wanted)
    if now == wanted:
        return f"The server is {now}.", None
    return f"The server was told to be {wanted} and is still {now}: it lets its clients go first.", None


def _shutdown(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    if client.shutdown():
        return "The server has stopped: it is not reachable any more.", None
    raise Unknown(
        f"{client.server} took the command and still answers: it stops slowly, or was started again."
    )


def _nothing() -> None:
    """Release nothing."""


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _at_once(function: Callable[[Any], Any], things: Iterable[Any]) -> list[Any]:
    """Do something with several servers at a time; return the results in their order."""
    things = list(things)
    if len(things) < 2:
        return [function(thing) for thing in things]
    with ThreadPoolExecutor(max_workers=min(8, len(things))) as pool:
        return list(pool.map(function, things))
