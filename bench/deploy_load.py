"""A deploy under load, drawn: ``python bench/deploy_load.py``.

    bench/deploy_load.py                       # a good deploy: the picture of docs/deploy.md
    bench/deploy_load.py --fail-on worker3     # one that fails on a host and goes back everywhere

Makes a queue server and three hosts with workers in containers (needs Docker), deploys an application,
enqueues 200 jobs a second through the real producer, deploys a change meanwhile, and counts: every job that
was acknowledged must have been done. The picture (needs Pillow, the extra ``demo``) has the jobs done in each
second by release, and how long jobs waited for a worker; with several runs, those of the last. Figures go to
stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.common import ROOT, at_least, conditions, parser, say

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
# The programs that it starts are this checkout's, too, whichever one the environment was made for.
os.environ["PYTHONPATH"] = str(ROOT / "src")

from kestrel_stack.demo import canvas  # noqa: E402
from kestrel_stack.demo.canvas import DIM, GRID, Canvas  # noqa: E402
from kestrel_stack.demo.chart import scale  # noqa: E402
from kestrel_stack.demo.errors import DemoError  # noqa: E402
from kestrel_stack.demo.report import duration, percentile  # noqa: E402
from support.deploy_lab import THREE, DeployLab, Fab, loaded_app  # noqa: E402
from support.load import RATE, SLOW, SLOW_EVERY, Load, Note  # noqa: E402

PICTURE = Path(".build/deploy-load.png")
AROUND = 10.0
"""Seconds of load before the deploy and after it."""
BROKEN = """
import socket

if socket.gethostname() == "{host}":
    raise RuntimeError("this does not import here")
"""


@dataclass
class Event:
    """What fab said of a host; seconds since the load began."""

    at: float
    host: str
    text: str


@dataclass
class Found:
    """Everything that was observed; times in seconds since the load began."""

    seconds: float
    deploy: tuple[float, float]
    exit_code: int
    sent: list[float]
    notes: list[Note]
    lost: int
    doubled: int
    refused: int
    old: str
    new: str
    events: list[Event]


def observe(lab: DeployLab, folder: Path, options: argparse.Namespace) -> Found:
    """Deploy under load; the hosts are there."""
    app = loaded_app(folder / "application")
    say("first deploy")
    old = lab.deployed(app, "--yes", env=lab.whole)
    changed = (app.path / "shop/jobs.py").read_text()
    if options.fail_on:
        changed = BROKEN.format(host=options.fail_on) + changed
    app.write("shop/jobs.py", changed)
    app.write("shop/more.py", "X = 1\n")
    app.commit()
    say(f"{options.rate:g} jobs a second")
    load = lab.load(options.rate)
    began = time.time()
    time.sleep(AROUND)
    deploy_began = time.time() - began
    run = lab.start("deploy", f"--app={app.path}", "--yes", f"--soak={options.soak}", env=lab.whole)
    code = run.end(600)
    deploy_ended = time.time() - began
    say(run.text)
    time.sleep(AROUND)
    seconds = time.time() - began
    notes = lab.settle(load)
    releases = Counter(note.release for note in notes)
    return Found(
        seconds,
        (deploy_began, deploy_ended),
        code,
        sorted(at - began for at in load.acknowledged.values()),
        [_since(began, note) for note in notes],
        len(load.missing(notes)),
        Load.doubled(notes),
        load.refused,
        old,
        next((release for release in releases if release != old), ""),
        _events(run, began),
    )


def _since(began: float, note: Note) -> Note:
    return Note(note.id, note.sent - began, note.began - began, note.done - began, note.release, note.host)


def _events(run: Fab, began: float) -> list[Event]:
    found = []
    for at, line in zip(run.times, run.lines, strict=True):
        # 12.3 s  worker1  drained shop_mail
        words = line.split(None, 3)
        if len(words) == 4 and words[1] == "s" and words[2] in THREE:
            found.append(Event(at - began, words[2], words[3]))
    return found


# --- figures -----------------------------------------------------------------------------------------------


def per_second(times: list[float], seconds: float) -> list[int]:
    """Return how many of the times lie in each whole second."""
    counted = Counter(int(at) for at in times)
    return [counted[second] for second in range(int(seconds))]


def waits(notes: list[Note], seconds: float, share: float) -> list[float | None]:
    """Return the percentile of the waits of the jobs that were begun in each second; None without jobs."""
    found: dict[int, list[float]] = {}
    for note in notes:
        found.setdefault(int(note.began), []).append(note.wait)
    return [percentile(found[second], share) if second in found else None for second in range(int(seconds))]


def figures(found: Found) -> dict[str, object]:
    """Return the numbers that the picture's sentence has, and some more."""
    begin, end = found.deploy
    during = [note.wait for note in found.notes if begin <= note.began <= end]
    quiet = [note.wait for note in found.notes if note.began < begin]
    return {
        "exit": found.exit_code,
        "deploy_seconds": round(end - begin, 1),
        "enqueued": len(found.sent),
        "done": len({note.id for note in found.notes}),
        "lost": found.lost,
        "doubled": found.doubled,
        "producer_errors": found.refused,
        "by_release": dict(Counter(note.release for note in found.notes)),
        "p99_wait_ms_before": round(percentile(quiet, 0.99) * 1000, 1),
        "p99_wait_ms_during": round(percentile(during, 0.99) * 1000, 1),
        "longest_wait_ms_during": round(max(during, default=0.0) * 1000, 1),
    }


# --- the picture -------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 1000, 680
LEFT, RIGHT = 84, 28
UPPER, LOWER = (110, 340), (410, 616)
OLD, NEW, SENT = "#b6d4fb", "#0969da", "#bc4c00"
SHADE = "#fff1e5"
SHORTEST, LONGEST = 0.001, 10.0


def spans(found: Found) -> list[tuple[str, float, float]]:
    """Return when which host was worked on: from its workers' end to the last look at the new ones."""
    done: list[tuple[str, float, float]] = []
    open_since: dict[str, tuple[float, float]] = {}
    for event in found.events:
        if event.text.startswith("drained"):
            since, _ = open_since.get(event.host, (event.at, event.at))
            open_since[event.host] = (since, event.at)
        elif event.host in open_since and event.text.startswith(("switched", "started", "back on")):
            open_since[event.host] = (open_since[event.host][0], event.at)
        elif event.host in open_since and event.text.startswith(("verified", "goes back")):
            done.append((event.host, open_since.pop(event.host)[0], event.at))
    return done + [(host, since, until) for host, (since, until) in open_since.items()]


def watched(found: Found) -> tuple[float, float] | None:
    """Return when the canary was watched; None: it was not."""
    began = next((event.at for event in found.events if event.text.startswith("watching")), None)
    ended = next((event.at for event in found.events if event.text.startswith("soak:")), None)
    return (began, ended) if began is not None and ended is not None else None


def draw(found: Found, file: Path) -> None:
    """Draw the picture; raises `DemoError` when it cannot be written."""
    sheet = Canvas(WIDTH, HEIGHT)
    numbers = figures(found)
    ended = "goes back on every host" if found.exit_code else "goes out host by host"
    sheet.text(LEFT, 16, f"Under {RATE} jobs a second, a release {ended}", 19)
    sheet.text(
        LEFT,
        44,
        f"{numbers['enqueued']} jobs enqueued: {numbers['lost']} lost, {numbers['doubled']} done twice; "
        f"1 in {SLOW_EVERY} takes {SLOW:g} s; fab deploy took {numbers['deploy_seconds']:.0f} s",
        14,
        DIM,
    )

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, at / found.seconds)

    for top, bottom in (UPPER, LOWER):
        for _, begin, end in spans(found):
            sheet.box(x(begin), top, x(end), bottom, SHADE)
    for host, begin, end in spans(found):
        sheet.text((x(begin) + x(end)) / 2, UPPER[1] + 6, host, 13, SENT, "ma")
    canary = watched(found)
    if canary and x(canary[1]) - x(canary[0]) > 100:
        sheet.text((x(canary[0]) + x(canary[1])) / 2, UPPER[1] + 6, "canary watched", 13, DIM, "ma")
    _throughput(sheet, found, x)
    _waits(sheet, found, x)
    for event in found.events:
        if event.text.startswith(("switched to", "back on")):
            for top, bottom in (UPPER, LOWER):
                sheet.line([(x(event.at), top), (x(event.at), bottom)], SENT, 1)
    sheet.save(file)


def _throughput(sheet: Canvas, found: Found, x) -> None:
    top, bottom = UPPER
    every = per_second([note.done for note in found.notes], found.seconds)
    new = per_second([note.done for note in found.notes if note.release == found.new], found.seconds)
    sent = per_second(found.sent, found.seconds)
    end = scale(max([*every, *sent]) + 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / end

    sheet.text(LEFT, top - 24, "Jobs done in each second", 13)
    sheet.legend(
        WIDTH - RIGHT,
        top - 24,
        [
            ("by the old release", DIM, OLD),
            ("by the new", DIM, NEW),
            ("enqueued", DIM, SENT),
            ("host at work; line: its switch", DIM, SHADE),
        ],
    )
    sheet.area([(x(second + 0.5), y(value)) for second, value in enumerate(every)], bottom, OLD)
    sheet.area([(x(second + 0.5), y(value)) for second, value in enumerate(new)], bottom, NEW)
    sheet.line([(x(second + 0.5), y(value)) for second, value in enumerate(sent)], SENT, 1)
    for part in range(5):
        value = end * part / 4
        sheet.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], GRID, 1)
        sheet.text(LEFT - 10, y(value), f"{value:g}", 13, DIM, "rm")
    sheet.line([(LEFT, bottom), (WIDTH - RIGHT, bottom)], DIM, 1)


def _waits(sheet: Canvas, found: Found, x) -> None:
    top, bottom = LOWER

    def y(seconds: float) -> float:
        share = math.log10(min(LONGEST, max(SHORTEST, seconds)) / SHORTEST) / math.log10(LONGEST / SHORTEST)
        return bottom - (bottom - top) * share

    sheet.text(LEFT, top - 24, "How long jobs waited for a worker, in each second", 13)
    sheet.legend(WIDTH - RIGHT, top - 24, [("99 of 100 waited less", DIM, NEW), ("half of them", DIM, OLD)])
    for power in range(round(math.log10(LONGEST / SHORTEST)) + 1):
        seconds = SHORTEST * 10**power
        sheet.line([(LEFT, y(seconds)), (WIDTH - RIGHT, y(seconds))], GRID, 1)
        label = f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
        sheet.text(LEFT - 10, y(seconds), label, 13, DIM, "rm")
    for share, colour in ((0.5, OLD), (0.99, NEW)):
        points = [
            (x(second + 0.5), y(value))
            for second, value in enumerate(waits(found.notes, found.seconds, share))
            if value is not None
        ]
        sheet.line(points, colour, 2)
    sheet.line([(LEFT, bottom), (WIDTH - RIGHT, bottom)], DIM, 1)
    for second in range(0, int(found.seconds) + 1, 10):
        sheet.line([(x(second), bottom), (x(second), bottom + 5)], DIM, 1)
        sheet.text(x(second), bottom + 8, str(second), 13, DIM, "ma")
    sheet.text((LEFT + WIDTH - RIGHT) / 2, bottom + 30, "seconds", 13, DIM, "ma")


# --- the command line --------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, runs=1)
    add = made.add_argument
    add("--png", type=Path, default=PICTURE, metavar="FILE", help=f"the picture (default: {PICTURE})")
    add("--rate", type=float, default=RATE, metavar="N", help=f"jobs a second (default: {RATE})")
    add(
        "--soak", type=at_least(0), default=10, metavar="SECONDS", help="of watching the canary (default: 10)"
    )
    add("--fail-on", choices=THREE, metavar="HOST", help="the new release does not start there: worker1 … 3")
    add("--observations", type=Path, metavar="FILE", help="every observation, for another picture")
    options = made.parse_args(arguments)
    if options.rate <= 0:
        made.error("--rate must be above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not canvas.available():
        raise SystemExit("bench/deploy_load.py: Pillow is not installed: pip install 'kestrel-stack[demo]'")
    found: list[Found] = []
    try:
        canvas.check(options.png)
        with tempfile.TemporaryDirectory(prefix=f"load{os.getpid()}-") as folder:
            lab = DeployLab(Path(folder) / "lab")
            try:
                say("making a queue server and three hosts (a minute or two)")
                lab.make()
                for number in range(options.runs):
                    say(f"run {number + 1} of {options.runs}")
                    found.append(observe(lab, Path(folder) / f"run{number}", options))
            finally:
                lab.remove()
        draw(found[-1], options.png)
    except (AssertionError, DemoError, OSError) as error:
        raise SystemExit(f"bench/deploy_load.py: {error}") from None
    if options.observations:
        options.observations.write_text(json.dumps([asdict(each) for each in found]) + "\n")
    numbers = [figures(each) for each in found]
    where = conditions(runs=options.runs, rate=options.rate, soak=options.soak)
    print(json.dumps({"conditions": where, "figures": numbers} if options.json else numbers, indent=2))
    say(f"{options.png}: p99 during the deploy {duration(numbers[-1]['p99_wait_ms_during'] / 1000)}")
    return 1 if any(each.lost for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
