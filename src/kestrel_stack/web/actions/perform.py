"""Actions on servers as they are carried out: every server is named in the outcome, none stops the others."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kestrel_stack.queue.envelope import Envelope
from kestrel_stack.queue.errors import InvalidEnvelope
from kestrel_stack.queue.servers import Server
from kestrel_stack.web.actions.plans import Place, Plan
from kestrel_stack.web.actions.server_client import NotReached, ServerClient, ServerError, Unknown
from kestrel_stack.web.actions.tasks import DONE, FAILED, PART, Outcome, Result

log = logging.getLogger("kestrel-web")


def perform(plan: Plan, servers: Iterable[Server], read_s: float) -> Outcome:
    """Carry out a plan on its servers at the same time, each within its own time."""
    by_address = {str(server): server for server in servers}
    if plan.action == "enqueue":
        return _enqueue(plan, by_address, read_s)
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
            with ServerClient(by_address[place.address], read_s) as client:
                said, count = act(client, plan)
                return Result(place.address, "done", said, count)
        except NotReached as exc:
            return Result(place.address, "not reached", str(exc))
        except ServerError as exc:
            return Result(place.address, "failed", str(exc))
        except Exception:
            log.exception("%s on %s failed", plan.action, place.address)
            return Result(place.address, "failed", "kestrel-web itself failed; its log says why.")

    results = at_once(one, [place for place in plan.places if place.chosen])
    count = sum(result.count or 0 for result in results)
    good = sum(result.outcome == "done" for result in results)
    state = DONE if good == len(results) else PART if good else FAILED
    said = results[0].text if len(results) == 1 else f"Done on {good} of {len(results)} servers."
    return Outcome(tuple(results), said, state, {"count": count})


def _enqueue(plan: Plan, by_address: dict[str, Server], read_s: float) -> Outcome:
    """Put the item on one server: the one chosen, or any that has the queue and takes it."""
    places = [place for place in plan.places if place.chosen and not place.error]
    if not plan.options.get("server"):
        if plan.described is not None:
            ours = set(map(str, plan.described.servers(by_address.values())))
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
            with ServerClient(by_address[place.address], read_s) as client:
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


def _flush(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    before = client.present([plan.target])[plan.target]
    client.flush_queue(plan.target)
    after = client.present([plan.target])[plan.target]
    stay = f" {number(after.open_transactions, 'reserved item stays', 'reserved items stay')}."
    return (
        f"Flushed {number(before.items, 'item', 'items')}; {after.items:,} are there now."
        + (stay if after.open_transactions else ""),
        before.items,
    )


def _delete(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    before = client.present([plan.target])[plan.target]
    client.delete_queue(plan.target)
    after = client.present([plan.target])[plan.target]
    again = " It is there again: somebody uses it." if after.exists else ""
    return f"Deleted with {number(before.items, 'item', 'items')}.{again}", before.items


def _flush_expired(client: ServerClient, plan: Plan) -> tuple[str, int | None]:
    count = client.flush_expired(None if ":" in plan.target else plan.target)
    return f"Removed {number(count, 'expired item', 'expired items')}.", count


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


def number(count: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{count:,} {one if count == 1 else many}"


def at_once(function: Callable[[Any], Any], things: Iterable[Any]) -> list[Any]:
    """Do something with several servers at a time; return the results in their order."""
    things = list(things)
    if len(things) < 2:
        return [function(thing) for thing in things]
    with ThreadPoolExecutor(max_workers=min(8, len(things))) as pool:
        return list(pool.map(function, things))
