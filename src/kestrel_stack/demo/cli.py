"""The command line of ``bin/demo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from kestrel_stack.demo import chart, outage, picture, report
from kestrel_stack.demo.errors import DemoError
from kestrel_stack.demo.report import Outage, Sample
from kestrel_stack.demo.stage import Stage
from kestrel_stack.processes import clean_environment

PICTURE = Path(".build/demo/outage.png")
PIPE_WIDTH = 100
PLAIN_EVERY = 2.0
"""Seconds between two lines about the queues where there is no terminal."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="bin/demo", description="What the stack is for, in half a minute.")
    demos = top.add_subparsers(dest="demo", required=True, metavar="outage")
    one = demos.add_parser(
        "outage",
        help="a third party's API goes down and comes back",
        description="A third party's API goes down for a while. One web server calls it within the request, "
        "another enqueues. Everything is real and on loopback: web servers, embedded broker, delay mover, "
        "workers in Python and, where php is installed, in PHP. "
        "Exit status: 0 every job was done, once; 1 not so.",
    )
    one.add_argument("--quick", action="store_true", help="a short outage: about 10 seconds instead of 30")
    one.add_argument(
        "--png", type=Path, default=PICTURE, metavar="FILE", help=f"picture (default: {PICTURE})"
    )
    one.add_argument("--no-php", action="store_true", help="no PHP workers, also where php is installed")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a demo; return 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(given)
    except DemoError as exc:
        print(f"bin/demo: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        # Such as a full disk: nothing here can be done without files.
        print(f"bin/demo: {exc.strerror}{f': {exc.filename}' if exc.filename else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbin/demo: interrupted; every process of the demo has ended", file=sys.stderr)
        return 130


def run(given: argparse.Namespace) -> int:
    """Tell the story of the outage and print what came of it."""
    picture.check(given.png)
    scale = outage.QUICK if given.quick else outage.FULL
    no_php = "--no-php" if given.no_php else outage.no_php()
    speak = ["python"] if no_php else ["python", "php"]
    screen = Screen()
    with _folder() as folder:
        with Stage(folder, clean_environment()) as stage:
            story = outage.Story(stage, scale, speak, screen.say, screen.tick)
            story.set_up()
            print(f"Running: {', '.join(stage.names)}", flush=True)
            if no_php:
                print(f"No PHP workers: {no_php}", flush=True)
            found = asyncio.run(story.run())
            screen.clear()
        show(found, screen, given.png)
        if faults := found.faults():
            raise DemoError("; ".join(faults))
    return 0


def show(found: Outage, screen: Screen, file: Path) -> None:
    """Print the tables and the chart, and write the picture to `file`."""
    print(f"\n{report.tables(found)}\n")
    print(chart.draw(found, screen.width, screen.unicode))
    if picture.available():
        picture.save(found, file)
        print(f"\nPicture: {file}", flush=True)
    else:
        print("\nNo picture: Pillow is not installed (pip install 'kestrel-stack[demo]')", flush=True)


class Screen:
    """Events as lines; the state of the queues on the last line of a terminal, or now and then in a pipe."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self.width = min(shutil.get_terminal_size((PIPE_WIDTH, 24)).columns - 2, PIPE_WIDTH)
        self.unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._next = 0.0

    def say(self, at: float, text: str) -> None:
        """Print an event."""
        self.clear()
        print(f"{at:6.1f} s  {text}", flush=True)

    def tick(self, at: float, sample: Sample, waiting: int) -> None:
        """Show the state of things."""
        text = (
            f"{at:6.1f} s    {waiting} visitors waiting; jobs: {sample.ready} ready, "
            f"{sample.delayed} to be tried again, {sample.reserved} in hand"
        )
        if self._terminal:
            print(f"\r\033[K{text[: self.width]}", end="", flush=True)
        elif at >= self._next:
            self._next = at + PLAIN_EVERY
            print(text, flush=True)

    def clear(self) -> None:
        """Clear the last line of a terminal."""
        if self._terminal:
            print("\r\033[K", end="", flush=True)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Give a folder for journals and logs: removed after a good run, kept and named after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="kestrel-stack-demo-"))
    try:
        yield folder
    except DemoError as exc:
        raise DemoError(f"{exc} (logs: {folder})") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
