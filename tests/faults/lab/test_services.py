"""What is not ours fails: the third party that jobs call, and Sentry. Jobs of other queues do not notice."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from support.fault_lab import OUTSIDE, FaultLab, Host, Run
from support.faults_jobs import log_lines, logged, p99, requeue_until_done, told, waits
from support.faults_outside import API_PORT, Outside

pytestmark = [pytest.mark.docker, pytest.mark.long]

SECTION = "services"
PARTNER = ("partner", "partner_php")
OTHERS = ("hello_world", "hello_world_php", "mail")
SHARES = {"hello_world": 8, "hello_world_php": 8, "mail": 2, "partner": 1, "partner_php": 1}
RATE = 100
SENTRY_WAITS = 2.0
"""Seconds that a worker gives Sentry for each step."""


def outside(lab: FaultLab, name: str) -> Outside:
    return Outside(name, lab.host(OUTSIDE).run)


@contextlib.contextmanager
def calling(lab: FaultLab, fault: str, section: str = SECTION) -> Iterator[Run]:
    """A load of which one job in ten calls the third party."""
    call = {"call": f"http://{lab.addresses[OUTSIDE]}:{API_PORT}/"}
    with lab.under_load(section, fault, RATE, SHARES, dict.fromkeys(PARTNER, call)) as run:
        yield run


def say_others(lab: FaultLab, run: Run, text: str) -> None:
    """Note what is seen, and how long the other queues' jobs waited meanwhile."""
    waited = waits(lab, run, OTHERS)
    assert waited, "no job of another queue was done meanwhile"
    run.said(f"{told(text)} (p99 of the other queues' waits meanwhile: {p99(waited) * 1000:.0f} ms)")


def of_both(found: list[list[str]]) -> list[str]:
    """Lines of both languages, in the order of time; none while one language has said nothing."""
    return sorted((line for lines in found for line in lines), key=logged) if all(found) else []


def retried(lab: FaultLab, since: float, outcome: str = "retry") -> list[str]:
    """The lines of the partners' jobs that ended like this."""
    words = f'"outcome":"{outcome}"'
    hosts = [lab.host(name) for name in lab.worker_hosts]
    return of_both(
        [
            [line for host in hosts for line in log_lines(host, words, group=f"shop_{queue}_0*", since=since)]
            for queue in PARTNER
        ]
    )


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("down", "third party down: nothing listens"),
        ("500", "third party answers 500"),
        ("hang", "third party takes connections and never answers"),
        ("cut", "third party is a black hole: packets dropped"),
    ],
    ids=["down", "500", "hang", "cut"],
)
def test_the_third_party_fails(lab: FaultLab, mode: str, fault: str) -> None:
    began = time.time()
    api = outside(lab, "api")
    ways = {"down": api.down, "cut": api.black_hole}
    with calling(lab, f"{fault}; jobs are retried") as run:
        before = api.asked()
        with run.fault(), ways.get(mode, lambda: api.being(mode))():
            lab.wait_until(lambda: retried(lab, began))
            run.goes_on(RATE * 6)
        assert mode != "500" or api.asked() > before
        requeue_until_done(lab, run)
        say_others(lab, run, retried(lab, began)[-1])


def test_the_third_party_is_slow(lab: FaultLab) -> None:
    api = outside(lab, "api")
    with calling(lab, "third party slow: each answer takes 1 s") as run:
        with run.fault(), api.being("slow 1"):
            run.goes_on(RATE * 8)
        assert api.answered().get("slow", 0) >= 5
        lines = lab.inside("worker1", "kestrel-stack-jobs count").splitlines()
        say_others(lab, run, next(line for line in lines if line.startswith("partner ")))


def test_the_third_party_is_down_until_jobs_are_given_up(lab: FaultLab) -> None:
    began = time.time()
    with calling(lab, "third party down for longer than all retries: parked, and requeued afterwards") as run:
        with run.fault(), outside(lab, "api").down():
            lab.wait_until(lambda: retried(lab, began, "parked"), 120)
            parked = lab.parked()
        assert parked > 0
        requeued = requeue_until_done(lab, run)
        assert requeued >= parked
        say_others(lab, run, retried(lab, began, "parked")[-1])


# --- Sentry: a stand-in, which takes events as Sentry and Bugsink do ------------------------------------


def sentry_lines(host: Host, since: float, words: str) -> list[str]:
    """What the partners' workers of a host say of Sentry."""
    return of_both([log_lines(host, words, group=f"shop_{queue}_0*", since=since) for queue in PARTNER])


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("down", "Sentry (a stand-in) down: nothing listens"),
        ("hang", "Sentry (a stand-in) takes connections and never answers"),
        ("500", "Sentry (a stand-in) answers 500"),
        ("cut", "Sentry (a stand-in) is a black hole: packets dropped"),
    ],
    ids=["down", "hang", "500", "cut"],
)
def test_sentry_fails(lab: FaultLab, mode: str, fault: str) -> None:
    began = time.time()
    sentry, api = outside(lab, "sentry"), outside(lab, "api")
    ways = {"down": sentry.down, "cut": sentry.black_hole}
    host = lab.host("worker1")
    with calling(lab, f"{fault}, while jobs fail") as run:
        # Without failures nobody would talk to Sentry.
        with run.fault(), ways.get(mode, lambda: sentry.being(mode))(), api.being("500"):
            lab.wait_until(lambda: sentry_lines(host, began, "sentry is away"), 60)
            run.goes_on(RATE * 4)
        assert p99(waits(lab, run, OTHERS)) < 60
        requeue_until_done(lab, run)
        # What was not reported is counted, and said when the worker ends.
        host.run("supervisorctl restart shop_partner:* shop_partner_php:*")
        lines = sentry_lines(host, began, '"event":"errors"')
        assert lines
        assert all(json.loads(line)["not_reported"] > 0 for line in lines), lines
        say_others(lab, run, lines[-1])
