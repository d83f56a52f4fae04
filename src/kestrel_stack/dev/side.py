"""The jobs of one language: which there are, whether they can be imported, how their workers start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kestrel_stack.processes import PHP

APP = "KESTREL_STACK_DEV_APP"
"""Tells app.py and app.php where the registry is: ``MODULE:REGISTRY``, or a file."""
HERE = Path(__file__).parent
LOOK_SECONDS = 30.0
"""That importing the application may take."""


@dataclass
class Side:
    """What is known of the jobs in one language. `program` runs it, `app` is where its registry is."""

    language: str
    app: str
    program: str
    jobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The keys of the data that each job reads, as far as they are known."""
    error: str | None = None
    looked: bool = False
    """There has been a first look."""
    looking_since: float | None = None
    doubted: bool = False
    """There was a look because a worker could not use it, and no file has changed since."""
    stale: bool = False
    """A file has changed since the look began."""

    @property
    def usable(self) -> bool:
        """Whether workers can do its jobs."""
        return self.looked and self.error is None

    def look(self, answer: Path) -> list[str]:
        """Return the command that writes to `answer` which jobs there are."""
        if self.language == "php":
            return [self.program, str(HERE / "look.php"), self.app, str(answer)]
        return [self.program, "-m", "kestrel_stack.dev.look", self.app, str(answer)]

    def read(self, answer: Path, said: str) -> None:
        """Take over what was found; `said` is how it ended, for when there is no answer."""
        self.looked, self.error = True, said
        try:
            found = json.loads(answer.read_text())
        except (OSError, ValueError):
            return
        if "jobs" in found:
            self.jobs = {name: tuple(keys) for name, keys in found["jobs"].items()}
            self.error = None
        else:
            self.error = tail(str(found.get("stack", "")), str(found["error"]))

    def worker(self, queue: str, settings: Path) -> list[str]:
        """Return the command of a worker."""
        flags = ["--queue", queue, "--config", str(settings), "--app"]
        if self.language == "php":
            return [self.program, str(PHP / "bin" / "consumer"), *flags, str(HERE / "app.php")]
        return [self.program, "-m", "kestrel_stack.consumer", *flags, "kestrel_stack.dev.app:registry"]

    @property
    def environ(self) -> dict[str, str]:
        """What a worker must know besides."""
        # A file that is saved twice within a second would look to Python as its bytecode's.
        return {APP: self.app, "PYTHONDONTWRITEBYTECODE": "1"}


def tail(stack: str, message: str) -> str:
    """Return an error with the place where it is: the last frame of its stack, which shows the line."""
    frames = stack.rstrip().split("\n  File ")
    return f"File {frames[-1]}" if len(frames) > 1 else message
