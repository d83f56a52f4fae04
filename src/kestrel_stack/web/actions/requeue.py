"""Parked jobs: put back, dropped or looked at by the one walk of `kestrel_stack.queue.jobs.parked`.

The walk takes each item in turn and gives back what is not meant; a cut at any moment, even by kill -9,
loses nothing and doubles at most the one item that was under way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kestrel_stack.queue import names
from kestrel_stack.queue.errors import InvalidQueueName, QueueError
from kestrel_stack.queue.interface import Queue
from kestrel_stack.queue.jobs.parked import Filter, Found, walk
from kestrel_stack.queue.jobs.requeue import put_back
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.settings import QueueSettings, Settings
from kestrel_stack.web import keys
from kestrel_stack.web.actions.tasks import DONE, FAILED, PART, STOPPED, Outcome, Result, Work

SUFFIX = "_errors"
LOOK_ITEMS = 200
"""So many parked jobs are shown; each is held for a moment on a connection of its own."""
LOOK_S = 10.0
"""So long others may not see them."""
LOOK_BYTES = 32 * 1024 * 1024
BODY_BYTES = 16 * 1024
"""So much of each body is kept to be shown."""
TEXT_CHARS = 16 * 1024
"""So much of a stack is kept to be shown."""


class CannotPark(Exception):  # noqa: N818 - it names what is the matter
    """A queue whose name our tools cannot use; the message is one line."""


class BareStore(KestrelStore):
    """Queues that no settings describe, called as their servers call them, without a namespace."""

    def __init__(self, servers: Iterable[str | Server]):
        super().__init__("bare", servers)

    def described(self, queue: str) -> QueueSettings:
        """Return a description that says nothing."""
        return QueueSettings(self.name(queue))

    def name(self, queue: str) -> str:
        """Return the name, which must leave room for that of its error queue."""
        names.errors(queue)
        return names.check(queue)

    def parts(self) -> list[Queue]:
        """Return one object for each server."""
        return [BareStore([server]) for server in self.servers]


@dataclass(frozen=True)
class Described:
    """A queue that an application's settings describe."""

    app: Settings
    queue: QueueSettings
    name: str
    """The server's name."""

    def servers(self, configured: Iterable[Server]) -> tuple[Server, ...]:
        """Return those of the configured servers that the application uses.

        It may call them otherwise than this site does; then all of them are meant.
        """
        configured = tuple(configured)
        return tuple(server for server in configured if server in self.app.servers) or configured


def described(settings: Iterable[Settings], key: str) -> Described | None:
    """Return the description of a queue."""
    for app in settings:
        for queue in app.queues.values():
            name = names.make(app.namespace, queue.name)
            if keys.make(name.encode()) == key:
                return Described(app, queue, name)
    return None


def parent_of(key: str) -> str:
    """Return the key of the queue whose parked jobs `key` means: itself, or the parent of an error queue."""
    return key.removesuffix(SUFFIX) if key.endswith(SUFFIX) and key != SUFFIX else key


def errors_of(key: str) -> str:
    """Return the key of the error queue of `key`; raise `CannotPark` when there can be none of ours."""
    if "~" in key:
        raise CannotPark(
            f"{keys.show(key)}: only a queue whose name is of A-Z, a-z, 0-9, _ and - can have parked jobs."
        )
    try:
        return names.errors(key)
    except InvalidQueueName as exc:
        raise CannotPark(str(exc)) from None


@dataclass(frozen=True)
class Parking:
    """Where the parked jobs of one queue lie, and where they go back to."""

    queue: str
    """As the stores call it."""
    source: KestrelStore
    target: KestrelStore

    def close(self) -> None:
        """Close the connections."""
        self.source.close()
        self.target.close()


def parking(found: Described | None, key: str, holding: Iterable[Server], using: Iterable[Server]) -> Parking:
    """Return the parking of the queue `key`: parked jobs on the servers `holding`, to go to those `using`."""
    holding = tuple(holding)
    using = tuple(using) or holding
    if found is None:
        return Parking(key, BareStore(holding), BareStore(using))
    described_queues = found.app.queues.values()
    space = found.app.namespace
    return Parking(
        found.queue.name,
        KestrelStore(space, holding, described_queues),
        KestrelStore(space, using, described_queues),
    )


def act(
    place: Parking, meant: Filter, limit: int | None, work: Work, drop: bool = False, before: int = 0
) -> Outcome:
    """Put the parked jobs that are meant back on their queue, or drop them, server by server.

    `before` is how much of the task was done already when this is a part of it.
    """
    what = "dropped" if drop else "put back"
    some = bool(meant)
    results: list[Result] = []
    total = 0

    def back(found: Found) -> bool:
        if drop:
            found.remove()
            return True
        return put_back(found, lambda body: place.target.put(place.queue, body))

    try:
        for part in _parts(place.source):
            server = str(part.servers[0])
            done = left = seen = 0
            if work.stop.is_set():
                results.append(Result(server, "stopped", "Stopped before this server was asked.", 0))
                continue
            if limit is not None and total >= limit:
                results.append(Result(server, "done", "Not needed any more.", 0))
                continue
            problem: str | None = None
            items = walk(part, place.queue)
            try:
                while (limit is None or total < limit) and not work.stop.is_set():
                    if (found := next(items, None)) is None:
                        break
                    seen += 1
                    if meant.matches(found):
                        if back(found):
                            done += 1
                            total += 1
                        else:
                            left += 1
                    looked = f"{seen:,} looked at, " if some else ""
                    work.says(done=before + total, text=f"{server}: {looked}{done:,} {what}")
            except QueueError as exc:
                problem = str(exc)
            finally:
                # Gives back what is held, also after an error.
                items.close()
            results.append(_result(server, what, done, left, problem, work))
    finally:
        place.close()
    return _outcome(results, what, total)


def _result(server: str, what: str, done: int, left: int, problem: str | None, work: Work) -> Result:
    stay = f" {left} in the error queue are no parked records; they stay." if left else ""
    if problem is not None:
        outcome = "not reached" if not done and "not reachable" in problem and server in problem else "failed"
        said = f"{done:,} {what}, then: {problem} The others are still parked.{stay}"
        return Result(server, outcome, said, done)
    if work.stop.is_set():
        return Result(
            server, "stopped", f"{done:,} {what}, then stopped. The others are still parked.{stay}", done
        )
    return Result(server, "failed" if left else "done", f"{done:,} {what}.{stay}", done)


def _outcome(results: list[Result], what: str, total: int) -> Outcome:
    kinds = {result.outcome for result in results}
    if "stopped" in kinds:
        state = STOPPED
    elif kinds <= {"done"}:
        state = DONE
    else:
        state = PART if total or "done" in kinds else FAILED
    said = f"{total:,} parked {'job' if total == 1 else 'jobs'} {what}."
    return Outcome(tuple(results), said, state, {"count": total})


def _parts(store: KestrelStore) -> list[KestrelStore]:
    return [part for part in store.parts() if isinstance(part, KestrelStore)]


@dataclass(frozen=True)
class ParkedItem:
    """One parked job as it is shown; `body` may be cut, `size` is all of it. Times are Unix milliseconds."""

    server: str
    reason: str
    body: bytes
    size: int
    parked_at: int | None = None
    attempts: int | None = None
    job: str | None = None
    tenant: str | None = None
    id: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    stack: str | None = None
    sentry_event: str | None = None
    is_record: bool = True
    """It is a parked record; otherwise `body` is what lies there."""


@dataclass(frozen=True)
class Look:
    """What a look at an error queue has found, and when (Unix seconds)."""

    key: str
    at: float
    who: str
    items: tuple[ParkedItem, ...] = ()
    counts: Mapping[str, int] = ()  # type: ignore[assignment]
    """Parked jobs by server when it began."""
    problems: tuple[str, ...] = ()


def look(place: Parking, key: str, who: str, counts: Mapping[str, int], limit: int = LOOK_ITEMS) -> Look:
    """Look at the first parked jobs of every server, and give all back.

    Meanwhile others do not see them. It ends after `limit` items, `LOOK_S` seconds or `LOOK_BYTES`.
    """
    at = time.time()
    deadline = time.monotonic() + LOOK_S
    found: list[ParkedItem] = []
    problems: list[str] = []
    holding = [part for part in _parts(place.source) if counts.get(str(part.servers[0]), 1)]
    size = 0
    try:
        for number, part in enumerate(holding):
            server = str(part.servers[0])
            # What one server does not use up is left for the others.
            share = math.ceil((limit - len(found)) / (len(holding) - number))
            items = walk(part, place.queue, max(share + 1, 2))
            try:
                for _ in range(share):
                    if time.monotonic() > deadline or size > LOOK_BYTES:
                        problems.append(
                            f"{server}: the look ended early, after "
                            + (f"{LOOK_S:g} s." if size <= LOOK_BYTES else f"{LOOK_BYTES >> 20} MB.")
                        )
                        break
                    if (one := next(items, None)) is None:
                        break
                    size += len(one.raw)
                    found.append(_item(server, one))
            except QueueError as exc:
                problems.append(str(exc))
            finally:
                items.close()
    finally:
        place.close()
    return Look(key, at, who, tuple(found), dict(counts), tuple(problems))


def _item(server: str, found: Found) -> ParkedItem:
    record, envelope = found.record, found.envelope
    body = found.raw if record is None else record.body
    error = (record and record.error) or {}

    def short(text: str | None) -> str | None:
        return text if text is None or len(text) <= TEXT_CHARS else text[:TEXT_CHARS] + "…"

    return ParkedItem(
        server=server,
        reason=short(found.reason) or "",
        body=body[:BODY_BYTES],
        size=len(body),
        parked_at=record.parked_at if record else None,
        attempts=record.attempts if record else None,
        job=envelope.job if envelope else None,
        tenant=envelope.tenant if envelope else None,
        id=envelope.id if envelope else None,
        error_class=short(error.get("class")),
        error_message=short(error.get("message")),
        stack=short(error.get("stack")),
        sentry_event=short(record.sentry_event) if record else None,
        is_record=record is not None,
    )
