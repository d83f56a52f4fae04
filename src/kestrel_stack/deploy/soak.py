"""Layer two: whether a canary's release does its jobs as well as the one before it. Pure.

A sample is what the queues and the canary's workers said at one moment; the verdict compares one from before
the switch with one from after it. What cannot be compared is said, and is no failure: a release must not go
back because a server that it does not run on was away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import hoststate
from .hoststate import Group
from .onhost.judge import judge

WINDOW = 600
"""Seconds of the old release's logs in which its failures are counted: enough for a share to tell."""
MIN_FAILURES = 3
"""So many failed jobs at least: one or two can be a tenant's bad data."""
WORSE_BY = 0.2
"""How much larger the share of failed jobs may be than with the old release. A job that depends on others
fails now and then; a release with a defect fails most jobs of a kind."""
BY_CHANCE = 0.001
"""Where jobs failed before, so improbable it must be that more fail by chance: there are many looks."""
STANDS_STILL = 0.9
"""A queue's head that has aged by this share of the time that went by was not taken by anybody meanwhile."""


@dataclass(frozen=True)
class Level:
    """How one queue stood."""

    items: int = 0
    parked: int = 0
    oldest: float | None = None
    """Age of its head in seconds; None when it is empty, or when that cannot be known."""


@dataclass(frozen=True)
class Sample:
    """How queues and workers stood at one moment."""

    levels: Mapping[str, Level] | None = None
    """By queue; None when no server could say."""
    outcomes: Mapping[str, int] | None = None
    """How many of the canary's jobs ended how: done, retry, parked. None when its logs could not be read."""
    groups: tuple[Group, ...] = ()
    trouble: str = ""
    """Why there are no levels."""
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The same as ``outcomes``, by kind of job."""

    @property
    def ended(self) -> int:
        """Jobs that ended."""
        return sum((self.outcomes or {}).get(outcome, 0) for outcome in ("done", "retry", "parked"))

    @property
    def failed(self) -> int:
        """Jobs that failed, whether they are tried again or not."""
        return sum((self.outcomes or {}).get(outcome, 0) for outcome in ("retry", "parked"))

    @property
    def parked(self) -> int:
        """Jobs that were given up."""
        return (self.outcomes or {}).get("parked", 0)

    @property
    def given_up_at_once(self) -> int:
        """Jobs that were given up at the first attempt; the others may have failed under another release."""
        return self.parked - (self.outcomes or {}).get("late", 0)

    @property
    def share(self) -> float:
        """Share of failed jobs, 0 when none ended."""
        return self.failed / self.ended if self.ended else 0.0

    def of_kind(self, kind: str) -> Sample:
        """Return what is known of one kind of job alone."""
        return Sample(outcomes=self.kinds.get(kind, {}))


@dataclass(frozen=True)
class Verdict:
    """Whether the canary does as well as before, and what was seen, in a line."""

    ok: bool
    text: str


def parse(lines: Sequence[str]) -> Sample:
    """Read what the sample script said."""
    levels: Mapping[str, Level] | None = None
    outcomes: Mapping[str, int] | None = None
    kinds: dict[str, Mapping[str, int]] = {}
    trouble = "the queues could not be counted"
    for words in hoststate.events(lines):
        if words[0] == "outcomes" and len(words) > 1:
            found = _object(words[1])
            outcomes = None if found is None else _numbers(found)
        elif words[0] == "kinds" and len(words) > 1:
            found = _object(words[1]) or {}
            kinds = {kind: _numbers(value) for kind, value in found.items() if isinstance(value, dict)}
        elif words[0] == "queues":
            data = _object(words[1]) if len(words) > 1 else None
            queues = (data or {}).get("queues")
            if isinstance(queues, dict):
                levels = {str(name): _level(about) for name, about in queues.items()}
            elif len(words) > 1:
                trouble = " ".join(words[1:])
    trouble = "" if levels is not None else trouble
    return Sample(levels, outcomes, hoststate.parse_groups(lines), trouble, kinds)


def of_host(sample: Sample, host: str) -> Sample:
    """Put a host's name before those of its workers, which have the same names on every host."""
    groups = [
        replace(
            group,
            name=f"{host} {group.name}",
            processes=tuple(replace(one, name=f"{host} {one.name}") for one in group.processes),
        )
        for group in sample.groups
    ]
    return replace(sample, groups=tuple(groups))


def merge(samples: Sequence[Sample]) -> Sample:
    """Make one sample of those of several canaries: they see the same queues, each its own jobs."""
    counted = [sample.outcomes for sample in samples if sample.outcomes is not None]
    names = dict.fromkeys(kind for sample in samples for kind in sample.kinds)
    kinds = {kind: _sum([sample.kinds.get(kind, {}) for sample in samples]) for kind in names}
    known = next((sample for sample in samples if sample.levels is not None), None)
    return Sample(
        known.levels if known else None,
        _sum(counted) if counted else None,
        tuple(group for sample in samples for group in sample.groups),
        known.trouble if known else (samples[0].trouble if samples else ""),
        kinds,
    )


def _sum(counted: Sequence[Mapping[str, int]]) -> dict[str, int]:
    keys = dict.fromkeys(key for numbers in counted for key in numbers)
    return {key: sum(numbers.get(key, 0) for numbers in counted) for key in keys}


def compare(
    before: Sample, after: Sample, release: str, elapsed: float, timeouts: Mapping[str, int], soaked: float
) -> Verdict:
    """Say whether the canary does as well as before.

    ``elapsed``: seconds between the samples; ``soaked``: since the switch; ``timeouts``: by queue, how long
    one of its jobs may take, in seconds.
    """
    workers = judge(after.groups, release, 0)
    if workers.final:
        return Verdict(False, workers.reason)
    growth = _growth(before, after)
    grown = {queue: number for queue, number in growth.items() if number > 0}
    said = f"{_seen(after)} in {soaked:.0f} s ({_seen(before)} in {WINDOW} s before)"
    if after.outcomes is None:
        # Nobody knows whose they are; without a growth before it they are blamed on what is new.
        if grown:
            return Verdict(False, f"error queues grew: {_listed(grown)}")
    elif after.given_up_at_once and before.outcomes is not None and not before.parked:
        where = f"; error queues: {_listed(grown)}" if grown else ""
        return Verdict(False, f"jobs were given up, and none before: {said}{where}")
    elif _worse(before, after):
        return Verdict(False, f"more jobs fail than before: {said}")
    for kind in sorted(after.kinds if before.outcomes is not None else ()):
        # A kind that is one job in twenty would not be seen among the others.
        one, other = before.of_kind(kind), after.of_kind(kind)
        if _worse(one, other):
            text = f"more jobs {kind} fail than before: {_seen(other)} ({_seen(one)} before); all: {said}"
            return Verdict(False, text)
    for queue, level in sorted((after.levels or {}).items()):
        earlier = (before.levels or {}).get(queue, Level())
        patience = timeouts.get(queue)
        if patience is None or level.oldest is None or level.oldest <= patience:
            continue
        if (earlier.oldest or 0) <= patience and level.oldest >= (
            earlier.oldest or 0
        ) + STANDS_STILL * elapsed:
            return Verdict(
                False, f"nobody takes from queue {queue}: its head has been there for {level.oldest:.0f} s"
            )
    oldest = max((level.oldest or 0 for level in (after.levels or {}).values()), default=0)
    words = [said, f"error queues +{sum(grown.values())}", f"oldest item {oldest:.0f} s"]
    if after.levels is None or before.levels is None:
        words[1:] = [f"queues not compared: {after.trouble or before.trouble}"]
    return Verdict(True, ", ".join(words))


def faults(groups: Sequence[Group], release: str) -> dict[str, str]:
    """Say of each worker that does not run from the release what is the matter, by its name."""
    found = {}
    for group in groups:
        for process in group.processes:
            verdict = judge([Group(group.name, (process,))], release, 0)
            if not verdict.ok:
                found[process.name] = verdict.reason
    return found


def _worse(before: Sample, after: Sample) -> bool:
    if after.failed < MIN_FAILURES or after.share <= before.share + WORSE_BY:
        return False
    # Of few jobs many fail by chance where some always do; of more than these, such a share is none.
    few = before.failed and after.ended <= 1000
    return not few or _chance(after.failed, after.ended, before.share) < BY_CHANCE


def _chance(failed: int, jobs: int, share: float) -> float:
    """Return how probable it is that so many of so many jobs fail, or more, if each does with this share."""
    return sum(
        math.comb(jobs, number) * share**number * (1 - share) ** (jobs - number)
        for number in range(failed, jobs + 1)
    )


def _growth(before: Sample, after: Sample) -> dict[str, int]:
    if before.levels is None or after.levels is None:
        return {}
    return {
        queue: level.parked - before.levels.get(queue, Level()).parked
        for queue, level in after.levels.items()
    }


def _seen(sample: Sample) -> str:
    if sample.outcomes is None:
        return "jobs not counted"
    return f"{sample.ended} jobs, {sample.failed} failed, {sample.parked} given up"


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{queue} +{number}" for queue, number in sorted(numbers.items()))


def _level(about: Any) -> Level:
    about = about if isinstance(about, dict) else {}
    oldest = about.get("oldest_s")
    known = isinstance(oldest, (int, float)) and not isinstance(oldest, bool)
    return Level(_whole(about.get("items")), _whole(about.get("errors")), float(oldest) if known else None)


def _numbers(found: Mapping[str, Any]) -> dict[str, int]:
    return {str(key): _whole(value) for key, value in found.items()}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
