from __future__ import annotations

from kestrel_stack.deploy.hoststate import Group, HostState, Process
from kestrel_stack.deploy.report import workers_text

NEW, OLD = "20261121T011500Z-1a2b3c4d", "20261120T011500Z-9f8e7d6c"


def host(current: str, *releases: str | None) -> HostState:
    processes = tuple(
        Process(f"shop_mail_{number:02d}", "RUNNING", 100 + number, 9, release)
        for number, release in enumerate(releases)
    )
    return HostState("worker1", {"current": current}, groups=(Group("shop_mail", processes),))


def test_workers_of_the_current_release_are_counted() -> None:
    assert workers_text(host(NEW, NEW, NEW)) == "shop_mail 2/2"


def test_workers_of_another_release_are_named() -> None:
    assert workers_text(host(NEW, NEW, OLD)) == f"shop_mail 2/2 (from {OLD})"


def test_a_start_wrapper_that_waits_for_the_first_release_is_no_worker() -> None:
    assert workers_text(host("", None, None)) == "shop_mail 0/2"


def test_a_helper_that_refused_is_quoted() -> None:
    state = HostState("worker1", groups=(Group("shop_mail", error="sudo: a password is required"),))
    assert workers_text(state) == "shop_mail ? (sudo: a password is required)"
