"""Layer two: what `fab status` and `fab check` learn of a host beyond a plan's inspection, read. Pure.

Every host is asked for the queues' numbers, because this machine need not reach Kestrel. They all see the
same servers, so the numbers of the host that reached most of them count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import hoststate
from .hoststate import HostState


@dataclass(frozen=True)
class QueueNumbers:
    """How one queue stands, on all servers together."""

    name: str
    items: int = 0
    """Ready to be taken."""
    open: int = 0
    """In workers' hands."""
    errors: int = 0
    """Parked."""
    retries: int = 0
    """Waiting for a delay."""
    oldest_s: float | None = None
    """For how many seconds the next item has been ready; None when there is none or it cannot be told."""


@dataclass(frozen=True)
class Away:
    """A queue server that gave no answer to a host."""

    server: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What one host reported in one round trip."""

    state: HostState
    queues: tuple[QueueNumbers, ...] = ()
    servers: int = 0
    """How many queue servers answered."""
    away: tuple[Away, ...] = ()
    trouble: str = ""
    """Why there are no numbers at all."""
    deploys: tuple[Mapping[str, Any], ...] = ()
    """The last lines of deploys.jsonl, the newest last."""

    @property
    def errors_to(self) -> str | None:
        """The host, and port, that errors are reported to; empty: to none; None when that cannot be told."""
        said = self.state.facts.get("errors_to")
        return "" if said == "-" else said


@dataclass(frozen=True)
class LastDeploy:
    """The newest deploy, rollback or restart, as the hosts noted it."""

    record: Mapping[str, Any]
    results: Mapping[str, str] = field(default_factory=dict)
    """Its result on each host that noted it."""

    @property
    def result(self) -> str:
        """``ok`` when it is that on every host."""
        return "ok" if set(self.results.values()) == {"ok"} else "failed"


def parse_survey(host: str, lines: Sequence[str], now: float | None = None) -> Survey:
    """Turn the output of the look script into a Survey. What is garbled counts as absent.

    ``now`` is this machine's time when the answer came, in seconds since 1970.
    """
    state = hoststate.parse_inspection(host, lines, now)
    deploys = []
    found: dict[str, Any] = {"trouble": "kestrel-stack-jobs is missing"}
    for words in hoststate.events(lines):
        match words:
            case ["deploy", text]:
                record = _json_object(text)
                if record:
                    deploys.append(record)
            case ["count", _, *rest]:
                found = _numbers(" ".join(rest))
    return Survey(state, deploys=tuple(deploys), **found)


def _numbers(text: str) -> dict[str, Any]:
    data = _json_object(text)
    if not data:
        return {"trouble": text.strip().removeprefix("jobs: ") or "kestrel-stack-jobs said nothing"}
    queues, failed = data.get("queues"), data.get("failed_servers")
    if not isinstance(queues, dict) or not isinstance(failed, list):
        return {"trouble": "kestrel-stack-jobs is older than fab"}
    return {
        "queues": tuple(_queue(name, about) for name, about in queues.items() if isinstance(about, dict)),
        "servers": max((len(about.get("servers") or ()) for about in queues.values()), default=0),
        "away": tuple(
            Away(str(one.get("server")), str(one.get("reason"))) for one in failed if isinstance(one, dict)
        ),
    }


def _queue(name: str, about: Mapping[str, Any]) -> QueueNumbers:
    oldest = about.get("oldest_s")
    return QueueNumbers(
        name,
        *(int(about.get(key) or 0) for key in ("items", "open", "errors", "retries")),
        float(oldest) if isinstance(oldest, int | float) else None,
    )


def best(surveys: Sequence[Survey]) -> Survey | None:
    """Return the survey of the host that reached most queue servers; None when no host reached one."""
    reached = [survey for survey in surveys if survey.servers]
    return max(reached, key=lambda survey: (survey.servers, -len(survey.away)), default=None)


def unreported(surveys: Sequence[Survey]) -> dict[str, str]:
    """Return the hosts that report errors to none while others do, with where those report them to."""
    somewhere = next((survey.errors_to for survey in surveys if survey.errors_to), "")
    return {survey.state.host: somewhere for survey in surveys if somewhere and survey.errors_to == ""}


def last_deploy(surveys: Sequence[Survey]) -> LastDeploy | None:
    """Return the newest deploy that a host noted, with what all hosts noted of it."""
    noted = [
        (survey.state.host, record)
        for survey in surveys
        for record in survey.deploys
        if isinstance(record.get("at"), str)
    ]
    if not noted:
        return None
    # Later lines of one host win when two have the same second.
    newest = max(noted, key=lambda pair: pair[1]["at"])[1]
    same = {
        host: str(record.get("result"))
        for host, record in noted
        if (record.get("id"), record.get("release")) == (newest.get("id"), newest.get("release"))
    }
    return LastDeploy(newest, same)


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
