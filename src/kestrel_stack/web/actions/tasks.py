"""What operators have had done: at once or over a while, with progress, a way to stop it, and its outcome.

It lives in this process only; what must outlast it is in the audit log.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

KEEP = 500
"""Tasks that are remembered; the oldest that are over go first."""
AT_ONCE = 4
"""Tasks that run at a time: each keeps connections to the servers busy."""

log = logging.getLogger("kestrel-web")

RUNNING, DONE, PART, FAILED, STOPPED = "running", "done", "part", "failed", "stopped"


BROKE = "kestrel-web itself failed in the middle of this; its log says why. Look at the servers."


class Busy(Exception):  # noqa: N818 - it names what is the matter
    """As many tasks run as may."""


@dataclass(frozen=True)
class Result:
    """What became of an action on one server, or of one queue in a bulk action."""

    server: str
    outcome: str
    """``done``, ``failed``, ``not reached``, ``stopped`` or ``refused``."""
    text: str
    count: int | None = None
    """Items that it was about, where that is known."""
    target: str = ""
    """In a bulk action: the key of the queue."""


@dataclass(frozen=True)
class Outcome:
    """What became of an action: every server that it was for is named."""

    results: tuple[Result, ...]
    text: str = ""
    """One line about all of it, such as the id of a job."""
    state: str = DONE
    """``done``, ``part`` (done on some servers only), ``failed`` or ``stopped``."""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One action that somebody asked for, as it is at this moment. Times are Unix seconds."""

    id: str
    action: str
    target: str
    """The key of the queue or the server's address; of several queues their number, such as ``12 queues``."""
    who: str
    began: float
    ended: float | None = None
    state: str = RUNNING
    done: int = 0
    total: int | None = None
    """How many there were when it began; others may add to them."""
    text: str = ""
    results: tuple[Result, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    stopping: bool = False
    can_stop: bool = False

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.ended is None

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine to read."""
        return {
            "id": self.id,
            "action": self.action,
            "target": self.target,
            "who": self.who,
            "began": self.began,
            "ended": self.ended,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "text": self.text,
            "stopping": self.stopping,
            "results": [
                {
                    "server": result.server,
                    "outcome": result.outcome,
                    "text": result.text,
                    "count": result.count,
                    **({"target": result.target} if result.target else {}),
                }
                for result in self.results
            ],
            "detail": dict(self.detail),
        }


class Work:
    """A task from within: it says how far it is, and hears that it shall stop."""

    def __init__(self, tasks: Tasks, task: str):
        self.id = task
        self.stop = threading.Event()
        self.stopped_by = ""
        """Who told it to stop."""
        self._tasks = tasks

    def says(self, **changes: Any) -> None:
        """Change what is shown of the task: `done`, `total`, `text`, `results`."""
        self._tasks._change(self.id, **changes)


class Tasks:
    """All tasks of one process."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._lock = threading.Lock()
        self._all: OrderedDict[str, Task] = OrderedDict()
        self._works: dict[str, Work] = {}
        self._threads: dict[str, threading.Thread] = {}

    def get(self, task: str) -> Task | None:
        """Return a task by its id."""
        with self._lock:
            return self._all.get(task)

    def running(self) -> list[Task]:
        """Return those that go on, the latest first."""
        with self._lock:
            return [task for task in reversed(self._all.values()) if task.running]

    def over(self, action: str, target: str, who: str, outcome: Outcome, began: float) -> Task:
        """Note an action that was done at once."""
        done = sum(result.outcome == "done" for result in outcome.results)
        task = Task(
            *(secrets.token_urlsafe(12), action, target, who, began, self._clock(), outcome.state),
            done=done,
            total=len(outcome.results),
            text=outcome.text,
            results=outcome.results,
            detail=outcome.detail,
        )
        with self._lock:
            self._keep(task)
        return task

    def start(
        self, action: str, target: str, who: str, total: int | None, run: Callable[[Work], Outcome]
    ) -> Task:
        """Begin `run` in a thread of its own; raise `Busy` when too many run, or no thread can begin."""
        task = Task(
            *(secrets.token_urlsafe(12), action, target, who, self._clock()), total=total, can_stop=True
        )
        work = Work(self, task.id)

        def body() -> None:
            try:
                outcome = run(work)
            except Exception:
                log.exception("the task %s %s failed", action, target)
                outcome = Outcome((), BROKE, FAILED)
            self._change(
                task.id,
                ended=self._clock(),
                state=outcome.state,
                text=outcome.text,
                results=outcome.results,
                detail=outcome.detail,
            )
            with self._lock:
                self._works.pop(task.id, None)
                self._threads.pop(task.id, None)

        thread = threading.Thread(target=body, name=f"task {action}", daemon=True)
        with self._lock:
            if len(self._threads) >= AT_ONCE:
                raise Busy(f"{AT_ONCE} tasks run already; wait for one of them, or stop one.")
            self._keep(task)
            self._works[task.id], self._threads[task.id] = work, thread
        try:
            thread.start()
        except RuntimeError as exc:
            with self._lock:
                for known in (self._all, self._works, self._threads):
                    known.pop(task.id, None)
            raise Busy(f"This machine has no room for another task: {exc}.") from None
        return task

    def stop(self, task: str, who: str = "") -> bool:
        """Tell a task to stop after the item in hand; say whether it was running."""
        with self._lock:
            work = self._works.get(task)
        if work is None:
            return False
        work.stopped_by = work.stopped_by or who
        work.stop.set()
        work.says(stopping=True)
        return True

    def close(self, seconds: float = 3.0) -> None:
        """Stop all of them, and wait for them for so long."""
        with self._lock:
            works, threads = list(self._works), list(self._threads.values())
        for task in works:
            self.stop(task, "kestrel-web, which ends")
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _keep(self, task: Task) -> None:
        self._all[task.id] = task
        for other in [other.id for other in self._all.values() if not other.running]:
            if len(self._all) <= KEEP:
                break
            del self._all[other]

    def _change(self, task: str, **changes: Any) -> None:
        with self._lock:
            if task in self._all and self._all[task].running:
                self._all[task] = replace(self._all[task], **changes)
