"""Plans of actions, made with the servers' numbers of this very moment. Nothing is changed here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys
from kestrel_stack.web.actions import requeue
from kestrel_stack.web.actions.perform import at_once, number
from kestrel_stack.web.actions.plans import (
    ALLOWED_BY,
    BULK_ACTIONS,
    DESTRUCTIVE,
    QUEUE_ACTIONS,
    SERVER_ACTIONS,
    ActionRefused,
    Place,
    Plan,
    check_options,
    choice,
)
from kestrel_stack.web.actions.requeue import CannotPark
from kestrel_stack.web.actions.server_client import Present, ServerClient, ServerError

if TYPE_CHECKING:
    from kestrel_stack.web.access.auth import Identity
    from kestrel_stack.web.config import Config
    from kestrel_stack.web.polling.poller import Poller

BULK_QUEUES = 500
"""So many queues go at a time."""

NOTES: dict[str, tuple[str, ...]] = {
    "flush": ("A flush removes all items for ever. Kestrel cannot remove single items from the middle.",),
    "flush_expired": ("Items whose time is over are removed; others stay.",),
    "delete": ("A delete removes a queue with all its items for ever, and its numbers as well.",),
    "requeue": (
        "Each job is written to its queue before it is taken out of the error queue: a cut loses nothing and "
        "doubles at most the one under way. Jobs begin with a first attempt and all retries. Of more than "
        "200 jobs that are not meant, some go to the end of the error queue.",
    ),
    "drop": ("Parked jobs are nowhere else: what is dropped is gone for ever.",),
    "enqueue": ("Workers do this job like any other.",),
}


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

    @property
    def servers(self) -> Mapping[str, int]:
        """Return on how many servers it would be done, by queue."""
        return {
            plan.target: sum(place.chosen and not place.error for place in plan.places) for plan in self.plans
        }


class Planner:
    """Says what may be done on one site, and what it would do."""

    def __init__(self, config: Config, poller: Poller, clock: Callable[[], float]):
        self.config = config
        self._poller = poller
        self._clock = clock
        self._read_s = min(max(config.timeout_s, 1.0), 10.0)

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
        key = self.check_key(target)
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
        wanted = list(dict.fromkeys(self.check_key(target) for target in targets))
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
        return Bulk(
            action, tuple(plans), tuple(refused), count, typed, number(len(plans), "queue", "queues"), errors
        )

    def plan_look(self, target: str) -> Plan:
        """Return what is parked for a queue at this moment."""
        key = requeue.parent_of(self.check_key(target))
        described = requeue.described(self.config.settings, key)
        return self._plan_queue("requeue", key, {}, described, *self._ask(self._asked_for("requeue", [key])))

    def parking(self, plan: Plan) -> requeue.Parking:
        """Return where the parked jobs of a plan lie, and where they go back to."""
        holding = [self._server(address) for address, count in self.parked(plan).items() if count]
        if plan.described is not None:
            using: Iterable[Server] = plan.described.servers(self.config.servers)
        else:
            found, _ = self._ask([plan.target])
            using = [self._server(server) for server, present in found.items() if present[plan.target].exists]
        return requeue.parking(plan.described, plan.target, holding, using)

    def parked(self, plan: Plan) -> dict[str, int]:
        """Return how many jobs are parked on each server."""
        return {
            place.address: place.present.items + place.present.open_transactions
            for place in plan.places
            if place.present and place.present.exists
        }

    def total(self, plan: Plan) -> int | None:
        """Return how many parked jobs an action will have moved at its end; None: only then that is known."""
        if choice(plan.options):
            return None
        limit = plan.options.get("count")
        return plan.count if limit is None else min(limit, plan.count)

    def _server(self, address: str) -> Server:
        return next(server for server in self.config.servers if str(server) == address)

    def check_key(self, target: str) -> str:
        """Return the key of a queue; raise `ActionRefused` when it is none."""
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

    def _ask(
        self, wanted: list[str], servers: Iterable[Server] | None = None
    ) -> tuple[dict[str, dict[str, Present]], dict[str, str]]:
        """Ask servers, or all, for some queues' numbers; return these by server, and what went wrong."""
        asked = self.config.servers if servers is None else tuple(servers)

        def ask(server: Server) -> dict[str, Present] | ServerError:
            try:
                with ServerClient(server, self._read_s) as client:
                    return client.present(wanted)
            except ServerError as exc:
                return exc

        found: dict[str, dict[str, Present]] = {}
        errors: dict[str, str] = {}
        for server, said in zip(asked, at_once(ask, asked), strict=True):
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
            notes=NOTES.get(action, ()),
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
                f"{number(reserved, 'item is', 'items are')} reserved by consumers at this moment: a flush "
                "keeps what is reserved, and what is not confirmed comes back."
            )
        if action in ("requeue", "drop") and reserved:
            yield (
                f"{number(reserved, 'parked job is', 'parked jobs are')} in somebody else's hands at this "
                "moment and may be left out."
            )
        if action != "delete":
            return
        if reserved:
            yield (
                f"{number(reserved, 'item is', 'items are')} reserved by consumers at this moment: after "
                "the delete the server knows nothing of that, so what fails does not come back."
            )
        if waiters:
            yield (
                f"{number(waiters, 'consumer waits', 'consumers wait')} for its items: their next request "
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
