"""Reads what ``ansible-playbook`` prints, as it comes: where it is, what failed, what changed."""

from __future__ import annotations

import re
from collections.abc import Callable

HEADING = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(?P<name>.*)\] \**$")
FAILED = re.compile(r"^(fatal|failed): \[(?P<host>[^\]]+)\]")
RECAP = re.compile(r"^(?P<host>\S+)\s*: ok=\d+\s+changed=(?P<changed>\d+)\s+unreachable=\d+\s+failed=\d+")
FAILURE_LINES = 30


class Output:
    """Follows one run; ``feed`` takes its lines."""

    def __init__(self, *, on_role: Callable[[str], None], on_task: Callable[[str], None]) -> None:
        self.changed: dict[str, int] = {}
        self._on_role = on_role
        self._on_task = on_task
        self._announced: set[str] = set()
        self._task: list[str] = []
        self._failing = False
        self._failures: list[str] = []

    def feed(self, line: str) -> None:
        """Take one line, without its line end."""
        heading = HEADING.match(line)
        if heading or line.startswith("PLAY RECAP"):
            self._close_task()
        if heading:
            self._task = [line.rstrip(" *")]
            self._announce(line.startswith("PLAY"), heading["name"])
            return
        recap = RECAP.match(line)
        if recap:
            self.changed[recap["host"]] = int(recap["changed"])
        if FAILED.match(line):
            self._failing = True
        if line.strip():
            self._task.append(line)

    def _announce(self, play: bool, name: str) -> None:
        if play:
            self._announced.clear()
        role = name if play else name.partition(" : ")[0] if " : " in name else ""
        # Roles that depend on each other alternate; once per play says enough.
        if role and role not in self._announced:
            self._announced.add(role)
            self._on_role(role)
        if not play:
            self._on_task(name)

    def _close_task(self) -> None:
        # Ignored failures are rescued by the play itself and end with this line.
        if self._failing and not any(line.startswith("...ignoring") for line in self._task):
            self._failures += self._task
        self._task, self._failing = [], False

    def failure(self) -> list[str]:
        """Return the failing tasks' headings and output, at most 30 lines; empty when none failed.

        Several: no host waits for another one's failure, and the last to fail only says that the run ends.
        """
        self._close_task()
        return self._failures[:FAILURE_LINES]

    @property
    def changes(self) -> int:
        """Return the number of changed tasks over all hosts."""
        return sum(self.changed.values())
