"""What a person sees: texts, and the progress display on a terminal and in a pipe."""

from __future__ import annotations

import io
import threading
from datetime import UTC, datetime

import pytest
from rich.console import Console

from kestrel_stack.deploy import report
from kestrel_stack.deploy.hoststate import Group, HostState, Process
from kestrel_stack.deploy.report import (
    Report,
    age,
    deploy_text,
    duration,
    queue_row,
    status_row,
    web_text,
    workers_text,
)
from kestrel_stack.deploy.survey import LastDeploy, QueueNumbers

NEW, OLD = "20261121T011500Z-1a2b3c4d", "20261120T011500Z-9f8e7d6c"
NOW = datetime(2026, 11, 21, 1, 30, tzinfo=UTC)


def host(current: str, *releases: str | None, web: tuple[str | None, ...] = ()) -> HostState:
    def group(name: str, names: tuple[str | None, ...]) -> Group:
        return Group(
            name,
            tuple(
                Process(f"{name}_{number:02d}", "RUNNING", 100 + number, 9, release)
                for number, release in enumerate(names)
            ),
        )

    groups = (group("shop_mail", releases), *([group("web", web)] if web else []))
    return HostState("worker1", {"current": current}, groups=groups)


@pytest.fixture
def piped():
    return Report(Console(file=io.StringIO(), highlight=False, soft_wrap=True))


@pytest.fixture
def terminal():
    return Report(
        Console(file=io.StringIO(), force_terminal=True, no_color=False, width=100, color_system="truecolor")
    )


# --- texts --------------------------------------------------------------------------------------------


def test_workers_of_the_current_release_are_counted() -> None:
    assert workers_text(host(NEW, NEW, NEW)) == "shop_mail 2/2"


def test_workers_of_another_release_are_named() -> None:
    assert workers_text(host(NEW, NEW, OLD)) == f"shop_mail 2/2 (from {OLD})"


def test_a_start_wrapper_that_waits_for_the_first_release_is_no_worker() -> None:
    assert workers_text(host("", None, None)) == "shop_mail 0/2"


def test_a_helper_that_refused_is_quoted() -> None:
    state = HostState("worker1", groups=(Group("shop_mail", error="sudo: a password is required"),))
    assert workers_text(state) == "shop_mail ? (sudo: a password is required)"


def test_what_serves_pages_is_no_worker() -> None:
    state = host(NEW, NEW, web=(NEW, OLD))
    assert workers_text(state) == "shop_mail 1/1"
    assert web_text(state) == f"2/2 (from {OLD})"
    assert web_text(host(NEW, NEW)) == ""


def test_a_host_that_is_not_well_is_red() -> None:
    def styles(state: HostState) -> list[str]:
        return [str(cell.style) for cell in status_row(state, NOW)[4:6]]

    assert styles(host(NEW, NEW)) == ["green", "green"]
    assert styles(host(NEW, OLD)) == ["red", "red"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.44, "0.4 s"), (9, "9 s"), (59.9, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")],
)
def test_a_time_is_said_in_its_largest_unit(seconds, text) -> None:
    assert duration(seconds) == text


def test_an_age_is_said_in_its_largest_unit() -> None:
    assert age("2026-11-21T01:18:00+00:00", NOW) == "12 min"
    assert age("2026-11-21T01:31:00", NOW) == "0 s"
    assert age("yesterday", NOW) == ""


def test_a_queue_with_parked_jobs_catches_the_eye() -> None:
    row = queue_row(QueueNumbers("mail", 12, 2, 3, 4, 61.5))
    assert [str(cell) for cell in row] == ["mail", "12", "2", "1 min", "4", "3"]
    assert str(row[5].style) == "yellow"
    assert str(queue_row(QueueNumbers("mail"))[5].style) == ""


def test_the_last_deploy_is_said_in_one_line() -> None:
    record = {
        "at": "2026-11-21T01:18:00+00:00",
        "action": "deploy",
        "release": NEW,
        "rev": "1a2b3c4d" + "0" * 32,
        "ref": "main",
        "by": "ann@laptop",
        "reason": "worker2: verify:\nboom",
    }
    well = LastDeploy(record, {"worker1": "ok", "worker2": "ok"})
    assert deploy_text(well, NOW) == f"deploy of {NEW} (main, 1a2b3c4d) by ann@laptop, 12 min ago: ok"
    failed = LastDeploy(record, {"worker1": "ok", "worker2": "failed"})
    assert deploy_text(failed, NOW).endswith("12 min ago: failed on worker2: worker2: verify: boom")
    bare = LastDeploy({"at": "2026-11-21T01:18:00+00:00"}, {"worker1": "ok"})
    assert deploy_text(bare, NOW) == "deploy of no release by somebody unknown, 12 min ago: ok"


def test_on_a_terminal_only_the_time_of_a_step_is_dim(terminal) -> None:
    terminal.good("prepared", "a")
    dim, rest = terminal.console.file.getvalue().split("\x1b[0m", 1)
    assert dim.startswith("\x1b[2m")
    assert "\x1b[32mprepared" in rest


# --- progress -----------------------------------------------------------------------------------------


def test_a_pipe_gets_a_line_now_and_then(piped, monkeypatch) -> None:
    monkeypatch.setattr(report, "PROGRESS_PAUSE", 0.0)
    with piped.progress("Sending", {"a": 1_000_000, "b": 3_000_000}) as progress:
        progress.advance("a", 1_000_000)
        progress.advance("b", 1_000_000)
    said = [line.split(" s  ", 1)[1].strip() for line in piped.console.file.getvalue().splitlines()]
    assert said == [
        "Sending: 25 %, 1.0 MB of 4.0 MB, 1 of 2 hosts",
        "Sending: 50 %, 2.0 MB of 4.0 MB, 1 of 2 hosts",
    ]
    assert "\x1b" not in piped.console.file.getvalue()


def test_what_is_sent_at_once_leaves_no_line_in_a_pipe(piped) -> None:
    with piped.progress("Sending", {"a": 1000}) as progress:
        progress.advance("a", 1000)
    assert piped.console.file.getvalue() == ""


def test_a_terminal_gets_a_bar_that_goes_away(terminal) -> None:
    with terminal.progress("Sending", {"a": 1_000_000}) as progress:
        progress.advance("a", 500_000)
        terminal.step("prepared", "a")
        progress._bar.refresh()
        assert "50 %, 0.5 MB of 1.0 MB, 0 of 1 host" in terminal.console.file.getvalue()
    assert "prepared" in terminal.console.file.getvalue()
    # The cursor is shown again, the bar's line is erased.
    assert terminal.console.file.getvalue().rstrip("\n").endswith(("\x1b[2K", "\x1b[?25h"))


def test_a_host_that_needs_everything_after_all_counts_anew(piped, monkeypatch) -> None:
    monkeypatch.setattr(report, "PROGRESS_PAUSE", 0.0)
    with piped.progress("Sending", {"a": 1_000_000}) as progress:
        progress.advance("a", 1_000_000)
        progress.restart("a", 4_000_000)
        progress.advance("a", 1_000_000)
    assert piped.console.file.getvalue().splitlines()[-1].endswith("25 %, 1.0 MB of 4.0 MB, 0 of 1 host")


def test_many_threads_may_advance_it(piped) -> None:
    names = [f"h{number}" for number in range(8)]
    with piped.progress("Sending", dict.fromkeys(names, 1000)) as progress:
        threads = [
            threading.Thread(target=lambda name=name: [progress.advance(name, 1) for _ in range(1000)])
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert progress._said().startswith("100 %")


def test_nothing_to_send_is_no_division_by_zero(terminal) -> None:
    with terminal.progress("Sending", {}) as progress:
        progress.advance("a", 5)
    assert terminal.console.file.getvalue() == ""


def test_a_table_in_a_pipe_has_no_frame_and_no_folded_line(piped) -> None:
    piped.table(("host", "what"), [["a", "x" * 1000], ["worker1", ""]])
    assert piped.console.file.getvalue() == f"host     what\na        {'x' * 1000}\nworker1\n"


def test_a_table_without_rows_is_its_head(piped) -> None:
    piped.table(("host", "what"), [])
    assert piped.console.file.getvalue() == "host  what\n"


def test_in_a_pipe_nobody_is_asked(piped) -> None:
    assert piped.confirm("Sure?")
    assert piped.console.file.getvalue() == ""


def test_a_line_of_a_log_is_never_cut_in_a_pipe(piped) -> None:
    piped.lines(["x" * 5000, "[red]no markup[/red]"])
    assert piped.console.file.getvalue() == "x" * 5000 + "\n[red]no markup[/red]\n"


def test_what_a_host_says_need_not_fit_this_machines_locale(monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    out = Report()
    out.bad("cannot find café →", "worker1")
    out.lines(["→"])
    said = written.getvalue().decode("latin-1")
    assert "cannot find café \\u2192" in said
    assert said.endswith("\\u2192\n")
