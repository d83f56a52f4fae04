"""How bin/dev's processes are started, started again, and ended."""

import io
import os
import re
import signal

import pytest

from kestrel_stack.dev import crew
from kestrel_stack.dev.crew import Crew, Member
from kestrel_stack.dev.lines import Screen
from support.broker import wait_until


@pytest.fixture
def stage(tmp_path):
    """A crew, what it wrote, and a way to add a shell script to it."""
    out = io.StringIO()
    made = Crew(tmp_path, os.environ, Screen(out, colour=False))
    before = signal.getsignal(signal.SIGCHLD)
    made.listen_for_signals()

    def add(script, **more):
        return made.add(script, Member("it", lambda: ["sh", "-c", script], **more))

    yield made, out, add
    made.kill()
    turn_until(made, lambda: not any(one.running for one in made.members.values()))
    made.close()
    signal.signal(signal.SIGCHLD, before)


def turn_until(made, condition):
    def turned():
        made.turn(0.05)
        return condition()

    wait_until(turned, "the crew")


def test_what_dies_again_and_again_is_started_less_and_less_often(stage, monkeypatch):
    made, out, add = stage
    monkeypatch.setattr(crew, "BACKOFF", (0.01, 0.02, 0.03))
    made.start(add("echo said; exit 3"))
    turn_until(made, lambda: out.getvalue().count("started again") >= 5)
    pauses = re.findall(r"it ended with 3; started again in ([\d.]+) s", out.getvalue())
    assert pauses[:5] == ["0.01", "0.02", "0.03", "0.03", "0.03"]
    assert out.getvalue().count(" it said") >= 5


def test_what_cannot_run_as_things_are_waits_to_be_started(stage):
    made, out, add = stage
    member = add("exit 78")
    made.start(member)
    turn_until(made, lambda: member.waits)
    assert "started again" not in out.getvalue()
    made.start(member)
    assert member.running


def test_what_is_to_end_and_is_wanted_again_before_it_has_is_started_anew(stage, tmp_path):
    made, out, add = stage
    member = add("trap 'sleep 0.2; echo ends; exit' TERM; echo begins; while :; do sleep 0.01; done")
    made.start(member)
    turn_until(made, lambda: "begins" in out.getvalue())
    made.stop(member)
    made.start(member)
    turn_until(made, lambda: out.getvalue().count("begins") == 2)
    assert "ends" in out.getvalue()
    assert "started again" not in out.getvalue()


def test_what_does_not_end_is_killed(stage):
    made, out, add = stage
    member = add("trap '' TERM; echo begins; while :; do sleep 0.01; done")
    made.start(member)
    turn_until(made, lambda: "begins" in out.getvalue())
    made.stop(member, 0.1)
    turn_until(made, lambda: not member.running)
    assert "it did not end and is killed" in out.getvalue()


def test_what_cannot_be_started_is_said_and_tried_again(stage, tmp_path):
    made, out, add = stage
    tmp_path.rmdir()
    member = add("echo here; sleep 60")
    made.start(member)
    assert "it could not be started: No such file or directory; started again in 0.2 s\n" in out.getvalue()
    tmp_path.mkdir()
    turn_until(made, lambda: "it here" in out.getvalue())


def test_the_last_line_is_shown_without_an_end_and_a_flood_in_pieces(stage):
    made, out, add = stage
    member = add("head -c 200000 /dev/zero | tr '\\0' x; printf last; kill -9 $$")
    made.start(member)
    turn_until(made, lambda: "killed by SIGKILL" in out.getvalue())
    lines = [
        line.split(" it", 1)[1].strip() for line in out.getvalue().splitlines() if " bin/dev " not in line
    ]
    assert "".join(lines) == "x" * 200000 + "last"
    assert len(lines) > 1


def test_what_a_process_leaves_behind_does_not_keep_us_reading(stage):
    made, out, add = stage
    member = add("trap '' PIPE; (while echo flood; do :; done) & echo $!; exec sleep 0.2", once=True)
    made.start(member)
    # Were the flood read to its end, this turn would have none.
    turn_until(made, lambda: not member.running)
    assert "flood" in out.getvalue()
    assert member.rest == b""


def test_the_end_of_a_process_ends_a_wait(stage):
    made, _, add = stage
    member = add("exit 0", once=True)
    made.start(member)
    # Were it not woken, this would take an hour.
    while member.running:
        made.turn(3600)
