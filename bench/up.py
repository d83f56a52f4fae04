"""How long ``bin/up`` takes where the image and the virtual environment are there: ``python bench/up.py``.

    bench/up.py --runs 1 --env single

Needs Docker. Measured are the last commit's ``bin/up`` without any host (``warm``), the same once more (``no
change``), and ``bin/down``, in a checkout of its own in a temporary folder: a lab that stands in this one is
left alone. The image is made first if it is not there. Progress goes to stderr; the table has medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lib.common import ROOT, about, conditions, parser, say, spread

STEP = re.compile(r"^  (\S.*?) {2,}(?:(\d+) min )?(\d+(?:\.\d+)?) s(?: |$)")
"""A finished step of bin/up: its name, and how long it took."""
DEADLINE_S = 1800
"""After this a bin/up is ended."""
CASES = ("warm", "no change", "down")


class Checkout:
    """The last commit, somewhere else."""

    def __init__(self, folder: Path, env: str) -> None:
        self.folder = folder / "checkout"
        self.env = env
        self._run(["git", "clone", "-q", str(ROOT), str(self.folder)], ROOT)

    def up(self) -> tuple[float, dict[str, float]]:
        """Return how many seconds bin/up took, and each of its steps."""
        began = time.monotonic()
        said = self._run(["bin/up", "--env", self.env], self.folder)
        seconds = time.monotonic() - began
        steps: dict[str, float] = {}
        for line in said.splitlines():
            found = STEP.match(line)
            if found:
                name = re.split(r"[:,]", found[1])[0]
                steps[name] = steps.get(name, 0.0) + 60 * int(found[2] or 0) + float(found[3])
        return seconds, steps

    def down(self) -> float:
        began = time.monotonic()
        self._run(["bin/down"], self.folder)
        return time.monotonic() - began

    def image(self) -> None:
        """Make the host image if it is not there."""
        self._run([sys.executable, "-m", "kestrel_stack.lab", "image"], self.folder / "src")

    def _run(self, command: list[str], folder: Path) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        said = []
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"KESTREL_STACK_VENV": sys.prefix},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            timer = threading.Timer(DEADLINE_S, process.terminate)
            timer.start()
            try:
                for line in process.stdout:
                    said.append(line)
                    if STEP.match(line):
                        say(f"  {line.rstrip()}")
            finally:
                timer.cancel()
        if process.returncode:
            raise SystemExit(
                f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said[-15:]).rstrip()}"
            )
        return "".join(said)


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Return the seconds by case, and by case and step."""
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    steps: dict[str, dict[str, list[float]]] = {case: {} for case in CASES}

    with tempfile.TemporaryDirectory(prefix="kestrel-bench-") as folder, contextlib.ExitStack() as stack:
        checkout = Checkout(Path(folder), options.env)
        stack.callback(checkout.down)
        say("the host image, if it is not there")
        checkout.image()

        def note(case: str, run: int, do: Callable[[], tuple[float, dict[str, float]]]) -> None:
            taken, parts = do()
            seconds[case].append(taken)
            for name, of_it in parts.items():
                steps[case].setdefault(name, []).append(of_it)
            say(f"run {run + 1} of {options.runs}: {case:<10}{taken:7.1f} s")

        for run in range(options.runs):
            note("warm", run, checkout.up)
            note("no change", run, checkout.up)
            note("down", run, lambda: (checkout.down(), {}))
    return seconds, steps


def table(seconds: dict[str, list[float]], steps: dict[str, dict[str, list[float]]]) -> str:
    lines = [f"{'bin/up':<48}{'seconds':>10}  (least-most)"]
    for case, found in seconds.items():
        of_it = spread(found)
        lines.append(f"{case:<48}{of_it['median']:>10.1f}  ({of_it['least']:.1f}-{of_it['most']:.1f})")
        for name, taken in steps[case].items():
            lines.append(f"    {name:<44}{spread(taken)['median']:>10.1f}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--env", choices=("lab", "single"), default="lab", help="which lab (default: lab)")
    return made.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        seconds, steps = measure(options)
    except OSError as exc:
        raise SystemExit(f"bench/up.py: {exc}") from None
    found = conditions(env=options.env, runs=options.runs)
    if options.json:
        print(json.dumps({"conditions": found, "seconds": seconds, "steps": steps}, indent=2))
    else:
        print(f"\n{about(found)}; medians of {options.runs} runs\n\n{table(seconds, steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
