"""What a person sees: one line per step with its time, readable in a pipe, coloured on a terminal."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from .hoststate import Group, HostState, describe_lock
from .plan import judge
from .survey import LastDeploy, QueueNumbers

PROGRESS_PAUSE = 5.0
"""Seconds between two lines of a progress display in a pipe."""


class Report:
    """Prints steps as they happen. Safe to call from several threads."""

    def __init__(self, console: Console | None = None, errors: Console | None = None) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What a host says need not fit this machine's locale, and must not end a deploy half-way.
            sys.stdout.reconfigure(errors="backslashreplace")
        # Steps are flushed line by line, so that a pipe shows them when they happen.
        self.console = console or Console(highlight=False, soft_wrap=True, file=sys.stdout)
        if not self.console.is_terminal:
            # A pipe has no width; a line that is cut would be of no use to grep.
            self.console.width = 400
        self.errors = errors or Console(highlight=False, soft_wrap=True, stderr=True)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._width = 0

    def hosts(self, names: Iterable[str]) -> None:
        """Learn the hosts' names, so that the lines stand below each other."""
        self._width = max((len(name) for name in names), default=0)

    def step(self, text: str, host: str = "", style: str = "") -> None:
        """Print one line: seconds since the start, the host if it is about one, what happened."""
        line = Text.assemble((f"{time.monotonic() - self._started:7.1f} s  ", "dim"))
        line.append(f"{host:<{self._width}}  ", style="cyan" if host else "")
        line.append(text, style=style)
        self._print(line)

    def good(self, text: str, host: str = "") -> None:
        """Print a step that ended well."""
        self.step(text, host, "green")

    def bad(self, text: str, host: str = "") -> None:
        """Print a step that went wrong; the error itself comes at the end, on standard error."""
        self.step(text, host, "red")

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        self._print(Text(text))

    def lines(self, lines: Sequence[str | Text]) -> None:
        """Print lines of somebody else's making, whole, however long they are."""
        with self._lock:
            for line in lines:
                if isinstance(line, Text) and self.console.is_terminal:
                    self.console.print(line, soft_wrap=True)
                else:
                    # Many lines a second in a pipe are no work for a painter.
                    self.console.file.write(f"{line.plain if isinstance(line, Text) else line}\n")
            if lines:
                self.console.file.flush()

    def error(self, text: str) -> None:
        """Print why the command ends with an error."""
        with self._lock, _whoever_listens():
            self.errors.print(Text.assemble(("fab: ", "red bold"), text))
            self.errors.file.flush()

    def confirm(self, question: str, *, unattended: bool = True) -> bool:
        """Ask on a terminal; where nobody can be asked, in a pipe or a job, the answer is ``unattended``."""
        if not (self.console.is_terminal and sys.stdin.isatty()):
            return unattended
        with self._lock:
            try:
                return self.console.input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
            except EOFError:
                return False

    def json(self, data: Any) -> None:
        """Print data for programs."""
        with self._lock, _whoever_listens():
            print(json.dumps(data, indent=2, sort_keys=True), file=self.console.file)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Print a table; in a pipe it has no frame, and no line of it is cut or folded."""
        if not self.console.is_terminal:
            with _whoever_listens():
                self.lines(_plain_table([columns, *rows]))
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        whole = list(rows)
        longest = [
            max(len(word) for row in [columns, *whole] for word in ("", *str(row[index]).split()))
            for index in range(len(columns))
        ]
        # A name that is folded cannot be copied; but a cell that has no room is worse.
        roomy = sum(longest) + 2 * len(columns) <= self.console.width
        for column, length in zip(columns, longest, strict=True):
            table.add_column(
                column,
                overflow="fold",
                no_wrap=column in ("host", "release"),
                min_width=length if roomy else None,
            )
        for row in whole:
            table.add_row(*row)
        with self._lock, _whoever_listens():
            self.console.print(table)
            self.console.file.flush()

    def progress(self, what: str, totals: Mapping[str, int]) -> Progress:
        """Show how far an upload is; ``totals`` are the bytes that each host gets."""
        return Progress(self, what, totals)

    def _print(self, text: Text) -> None:
        with self._lock, _whoever_listens():
            self.console.print(text)
            self.console.file.flush()


@contextmanager
def _whoever_listens() -> Iterator[None]:
    """Go on when nobody reads any more: a closed pipe or terminal must not leave hosts half-switched.

    Rich answers a broken pipe with SystemExit.
    """
    with suppress(OSError, SystemExit):
        yield


class Progress:
    """How far several uploads are together: a bar on a terminal, in a pipe a line now and then.

    A context manager. `advance` may be called from any thread. Uploads that are over before the first line is
    due leave no line at all.
    """

    def __init__(self, report: Report, what: str, totals: Mapping[str, int]) -> None:
        self._report = report
        self._what = what
        self._totals = dict(totals)
        self._sent = dict.fromkeys(totals, 0)
        self._total = sum(totals.values())
        self._lock = threading.Lock()
        self._next = time.monotonic() + PROGRESS_PAUSE
        self._bar: Bar | None = None
        if report.console.is_terminal and self._total:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(),
                console=report.console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=self._total, said="")

    def advance(self, host: str, sent: int) -> None:
        """Note that ``sent`` more bytes have left for the host."""
        with self._lock:
            # A host that is sent everything once more, after a part, has no more than its whole.
            self._sent[host] = min(self._sent.get(host, 0) + sent, self._totals.get(host, 0))
            now = time.monotonic()
            line = self._bar is None and now >= self._next
            if line:
                self._next = now + PROGRESS_PAUSE
            said = self._said()
            if self._bar is not None:
                self._bar.update(self._task, completed=sum(self._sent.values()), said=said)
        if line:
            self._report.step(f"{self._what}: {said}")

    def restart(self, host: str, total: int) -> None:
        """Begin again for a host that needs ``total`` bytes instead."""
        with self._lock:
            self._total += total - self._totals.get(host, 0)
            self._totals[host] = total
            self._sent[host] = 0
            if self._bar is not None:
                self._bar.update(self._task, total=self._total)

    def _said(self) -> str:
        done = sum(self._sent[host] >= total for host, total in self._totals.items())
        sent = sum(self._sent.values())
        percent = 100 * sent // self._total if self._total else 100
        return (
            f"{percent} %, {size(sent)} of {size(self._total)}, {done} of {count(len(self._totals), 'host')}"
        )

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _plain_table(rows: Sequence[Sequence[str | Text]]) -> list[str]:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]


# --- texts, pure ---------------------------------------------------------------------------


def count(number: int, thing: str) -> str:
    """Say how many: ``1 host``, ``2 hosts``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def size(number: int) -> str:
    """Say how large: bytes as ``12 kB`` or ``3.4 MB``."""
    return f"{number / 1_000_000:.1f} MB" if number >= 100_000 else f"{max(1, number // 1000)} kB"


def age(created_at: str, now: datetime) -> str:
    """Say how long ago a moment was: ``4 min``, ``3 h``, ``12 d``; empty when the moment is unreadable."""
    try:
        then = datetime.fromisoformat(created_at)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return _rounded(max(0, int((now - then).total_seconds())))


def duration(seconds: float | None) -> str:
    """Say how long: ``0.4 s``, ``12 s``, ``4 min``, ``3 h``, ``12 d``; empty for None."""
    if seconds is None:
        return ""
    if isinstance(seconds, float) and seconds < 10:
        return f"{seconds:.1f} s"
    return _rounded(int(seconds))


def _rounded(seconds: int) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def workers_text(state: HostState, between: str = ", ") -> str:
    """Say how the workers of a host stand: ``shop_mail 2/2, …``; a group that is not well says why."""
    groups = [group for group in state.groups if group is not state.web]
    return between.join(f"{group.name} {_group_text(group, state.current)}" for group in groups) or "none"


def web_text(state: HostState) -> str:
    """Say how what serves the pages of a host stands: ``1/1``; empty where no pages are served."""
    return "" if state.web is None else _group_text(state.web, state.current)


def _group_text(group: Group, current: str) -> str:
    if group.error is not None:
        return f"? ({group.error[:80]})"
    old = {process.release for process in group.processes if process.state == "RUNNING"} - {None, current}
    text = f"{group.running}/{len(group.processes)}"
    return text + (f" (from {', '.join(sorted(old))})" if old else "")


STATUS_COLUMNS = ("host", "release", "ref", "age", "workers", "web", "lock")


def status_row(state: HostState, now: datetime, between: str = ", ") -> list[str | Text]:
    """One host's row of `fab status`; ``between`` stands between the groups of workers."""
    release = state.current_release
    return [
        state.host,
        state.current or "none yet: run fab deploy",
        release.ref if release else "",
        age(release.created_at, now) if release else "",
        Text(workers_text(state, between), style="green" if _is_well(state) else "red"),
        Text(web_text(state), style="green" if _is_well(state) else "red"),
        lock_text(state),
    ]


def lock_text(state: HostState) -> str:
    """Say who holds a host's deploy lock."""
    if state.lock is None:
        return "free"
    dead = "left behind by " if state.lock.get("state") in ("stale", "dying") else ""
    return dead + describe_lock(state.lock)


def _is_well(state: HostState) -> bool:
    return not state.groups or judge(state.groups, state.current, 0).ok


QUEUE_COLUMNS = ("queue", "backlog", "open", "oldest", "retrying", "parked")


def queue_row(queue: QueueNumbers) -> list[str | Text]:
    """One queue's row of `fab status`."""
    return [
        queue.name,
        str(queue.items),
        str(queue.open),
        duration(queue.oldest_s),
        str(queue.retries),
        Text(str(queue.errors), style="yellow" if queue.errors else ""),
    ]


def deploy_text(last: LastDeploy, now: datetime) -> str:
    """Say who deployed last, when, what, and how it ended."""
    record = {key: " ".join(str(value).split()) for key, value in last.record.items() if value}
    about = ", ".join(text for text in (record.get("ref", ""), record.get("rev", "")[:8]) if text)
    what = f"{record.get('action', 'deploy')} of {record.get('release', 'no release')}"
    what += f" ({about})" if about else ""
    who = record.get("by", "somebody unknown")
    failed = [host for host, result in last.results.items() if result != "ok"]
    ended = f"failed on {', '.join(failed)}" if failed else "ok"
    if failed and "reason" in record:
        ended += f": {record['reason'][:300]}"
    return f"{what} by {who}, {age(record['at'], now)} ago: {ended}"


def status_json(state: HostState) -> dict[str, Any]:
    """One host of `fab status --json`."""
    release = state.current_release
    return {
        "host": state.host,
        "answers": True,
        "release": state.current or None,
        "rev": release.rev if release else None,
        "ref": release.ref if release else None,
        "created_at": release.created_at if release else None,
        "verified": bool(release and release.verified),
        "python": state.facts.get("python"),
        "lock": dict(state.lock) if state.lock else None,
        "groups": [_group_json(group) for group in state.groups if group is not state.web],
        "web": None if state.web is None else _group_json(state.web),
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "error": group.error,
        "running": group.running,
        "processes": [vars(process) for process in group.processes],
    }
