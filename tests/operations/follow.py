"""Follow chapters of docs/operations.md on a stage: ``python -m operations.follow FOLDER [CHAPTER…]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from operations import runbook, troubles
from operations.stage import EVERY, QUEUES, Stage
from support.load import Load, Note, parse_notes

RATE = 20
"""Jobs a second, while a chapter is followed."""
SHARES = {"hello_world": 9, "mail": 1}
AGAIN_SECONDS = 180
DRAIN_SECONDS = 240


class Failed(Exception):  # noqa: N818 - it names what is the matter
    """A chapter is not true."""


def follow(stage: Stage, chapter: runbook.Chapter, say: Callable[[str], None] = lambda line: None) -> str:
    """Do what a chapter says while jobs come and go; return a line about the jobs. Raises Failed."""
    # Those that a chapter adds or removes, too: a producer goes on to the next.
    servers = ",".join(f"{stage.addresses[host]}:22133" for host in (*QUEUES, "queue3"))
    load = Load(servers, "shop", SHARES, RATE).start()
    try:
        for step in chapter.steps:
            say(f"{chapter.name}: {step.kind} {' '.join(step.words)}")
            _do(stage, step, say)
    finally:
        load.stop()
    notes = settled(stage, load)
    lost, doubled = load.missing(notes), load.doubled(notes)
    if not load.acknowledged:
        raise Failed(f"{chapter.name}: no job was acknowledged")
    if lost:
        raise Failed(
            f"{chapter.name}: {len(lost)} of {len(load.acknowledged)} jobs are lost: {sorted(lost)[:3]}"
        )
    if doubled and not chapter.doubled:
        raise Failed(f"{chapter.name}: {doubled} of {len(load.acknowledged)} jobs were done twice")
    jobs = f"{len(load.acknowledged)} jobs, {load.refused} refusals, 0 lost, {doubled} done twice"
    return f"{chapter.name}: {jobs}"


def settled(stage: Stage, load: Load) -> list[Note]:
    """Return what the workers noted, when all was done or the time is over."""
    path = f"/srv/shop/shared/var/done-{load.run}"
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        notes = [
            note
            for host in EVERY
            for note in parse_notes(stage.inside(host, f"cat {path} 2>/dev/null || true"), host)
        ]
        if not load.missing(notes) or time.monotonic() > deadline:
            return notes
        time.sleep(0.5)


def _do(stage: Stage, step: runbook.Step, say: Callable[[str], None]) -> None:
    match step.kind:
        case "step":
            _type(stage, step, say)
        case "edit":
            runbook.edit(Path(stage.spoken(step.words[1])), stage.spoken("\n".join(step.fence)))
        case "remove":
            runbook.remove(Path(stage.spoken(step.words[1])), step.words[2])
        case "trouble":
            troubles.KNOWN[step.words[0]](stage, *step.words[1:])


def _type(stage: Stage, step: runbook.Step, say: Callable[[str], None]) -> None:
    for number, (command, shown) in enumerate(step.commands, 1):
        wanted = step.exit_code if number == len(step.commands) else 0
        deadline = time.monotonic() + AGAIN_SECONDS
        while True:
            say(f"$ {command}")
            done = stage.type(command)
            say(done.stdout.rstrip())
            missing = runbook.missing(shown, done.stdout, step.exact)
            if done.returncode == wanted and missing is None:
                if step.keeps and number == len(step.commands):
                    stage.kept[step.keeps] = done.stdout.strip().splitlines()[-1]
                break
            if not step.again or time.monotonic() > deadline:
                why = (
                    f"exit code {done.returncode}, not {wanted}"
                    if missing is None
                    else f"not said: {missing}"
                )
                raise Failed(f"{step.name}: {command}: {why}\n{done.stdout[-4000:]}")
            time.sleep(1)


def main() -> int:
    """Follow the chapters that are named, or all; return 1 when one of them is not true."""
    parser = argparse.ArgumentParser(prog="python -m operations.follow", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a stage, see operations.stage")
    parser.add_argument("chapter", nargs="*")
    options = parser.parse_args()
    stage = Stage(options.folder)
    chapters = runbook.document()
    unknown = set(options.chapter) - {chapter.name for chapter in chapters}
    if unknown:
        parser.error(f"no such chapter: {', '.join(sorted(unknown))}")
    for chapter in chapters:
        if not options.chapter or chapter.name in options.chapter:
            try:
                tell(follow(stage, chapter, tell))
            except Failed as error:
                # The next chapter begins where this one was to end.
                tell(f"{chapter.name} FAILED: {error}")
                return 1
    return 0


def tell(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
