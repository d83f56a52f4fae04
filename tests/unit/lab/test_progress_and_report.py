from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from kestrel_stack.lab import progress, report, up
from kestrel_stack.lab.inventory import Lab


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_pipe_a_step_is_one_plain_line_with_its_time() -> None:
    out = io.StringIO()
    with progress.step("Host image", out) as at:
        at.result = "built"
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r" *Host image +\d+\.\d s +built", lines[0])
    assert "\r" not in out.getvalue()
    assert "\033" not in out.getvalue()


def test_in_a_pipe_a_detail_is_a_line_of_its_own() -> None:
    out = io.StringIO()
    with progress.step("Roles", out) as at:
        at.detail("kestrel")
    assert out.getvalue().splitlines()[0].strip() == "kestrel"


@pytest.mark.parametrize(("error", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_step_that_raises_says_how_it_ended_and_lets_the_error_go_on(
    error: type[BaseException], word: str
) -> None:
    out = io.StringIO()
    with pytest.raises(error), progress.step("Hosts", out):
        raise error
    assert out.getvalue().split()[-1] == word


def test_on_a_terminal_the_last_thing_written_is_the_steps_line() -> None:
    out = Terminal()
    with progress.step("Hosts", out) as at:
        at.detail("worker1")
        at.result = "3 created"
    assert out.getvalue().rpartition("\033[K")[2].split() == ["Hosts", "0.0", "s", "3", "created"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (38.4, "38 s"), (125, "2 min 05 s")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_missing_jobs_are_those_enqueued_since_and_not_yet_done() -> None:
    wanted = {"acme": {"HelloWorld": 10}, "globex": {"SendMail": 3}}
    before = {"acme": {"HelloWorld": 5}}
    assert report.missing(wanted, before, before) == 13
    assert report.missing(wanted, before, {"acme": {"HelloWorld": 15}, "globex": {"SendMail": 2}}) == 1
    assert report.missing(wanted, before, {"acme": {"HelloWorld": 99}, "globex": {"SendMail": 3}}) == 0


def test_counts_are_added_without_touching_what_is_added() -> None:
    more = {"acme": {"HelloWorld": 1}}
    total = report.add(report.add({}, more), more)
    assert total == {"acme": {"HelloWorld": 2}}
    assert more == {"acme": {"HelloWorld": 1}}


def test_the_report_in_a_pipe_cuts_no_command_and_no_release() -> None:
    out = io.StringIO()
    command = (
        "ssh -F .lab/lab/ssh/config deploy@worker1 'cd /srv/shop/current && venv/bin/python enqueue.py "
        + "x" * 80
    )
    summary = report.Summary(
        hosts=[("worker1", "172.20.0.12", "consumers, app", "20261121T011500Z-1a2b3c4d")],
        enqueued={"acme": {"HelloWorld": 10}},
        done={"acme": {"HelloWorld": 9}},
        duplicates=1,
        try_next=[command],
        pages=[("web1", "http://172.20.0.14:8080/")],
        monitors=[("monitor1", f"http://172.20.0.15:8090/ (user operator, password in {'x' * 90}.json)")],
        errors=[("Bugsink on monitor1", f"http://172.20.0.15:8765/ (password in {'x' * 120}.json)")],
    )
    report.show(summary, out)
    text = out.getvalue()
    assert command in text
    assert "20261121T011500Z-1a2b3c4d" in text
    assert "\033" not in text
    row = next(line for line in text.splitlines() if "HelloWorld" in line and "acme" in line)
    assert row.split() == ["acme", "HelloWorld", "10", "9"]
    assert "done twice: 1" in text
    assert "the application's page on web1: http://172.20.0.14:8080/\n" in text
    assert (
        f"kestrel-web on monitor1: http://172.20.0.15:8090/ (user operator, password in {'x' * 90}.json)\n"
        in text
    )
    assert f"\nBugsink on monitor1: http://172.20.0.15:8765/ (password in {'x' * 120}.json)\n" in text


def test_the_time_of_bin_up_counts_what_was_installed_before_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "lab_of", lambda env: Lab(tmp_path, env, "0", (), {}, tmp_path / "state"))
    monkeypatch.setattr(up, "_up", lambda *_: None)
    monkeypatch.setattr(report, "show", lambda *_: None)
    monkeypatch.setattr(up.programs, "interrupts_on_term", lambda: None)
    monkeypatch.setenv("KESTREL_STACK_BOOTSTRAPPED", "1")
    monkeypatch.setenv("KESTREL_STACK_BOOTSTRAP_SECONDS", "36000")
    assert up.up("lab", "bookworm", recreate=False) == 0
    assert "lab is up in 600 min" in capsys.readouterr().out
