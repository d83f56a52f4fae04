"""Whose turn it is: one operator at a time at a queue or server, and every form once."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kestrel_stack.web.actions.plans import VERBS, ActionRefused, show
from kestrel_stack.web.actions.tasks import Task
from kestrel_stack.web.tables import text

FORMS = 5000
"""One-time ids of forms that are remembered, to do nothing twice."""
TWICE_S = 30.0
"""So long the second click waits for the outcome of the first."""


@dataclass(frozen=True)
class Hold:
    """Somebody is at a queue or a server."""

    who: str
    action: str
    since: float


class Holds:
    """Who is at which queue or server."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Hold] = {}

    def get(self, target: str) -> Hold | None:
        """Return who is at it at this moment."""
        with self._lock:
            return self._held.get(target)

    def take(self, targets: Iterable[str], who: str, action: str) -> Callable[[], None]:
        """Take all of them and return what releases them; raise `ActionRefused` naming who has one."""
        wanted = list(targets)
        mine = Hold(who, action, self._clock())
        with self._lock:
            for target in wanted:
                other = self._held.get(target)
                if other is not None:
                    doing = "look at the parked jobs of" if other.action == "look" else VERBS[other.action]
                    raise ActionRefused(
                        409,
                        f"{other.who} has begun to {doing} {show(target)} at {text.clock(other.since)}; "
                        "wait until that is over.",
                    )
            for target in wanted:
                self._held[target] = mine

        def release() -> None:
            with self._lock:
                for target in wanted:
                    if self._held.get(target) is mine:
                        del self._held[target]

        return release


class _Form:
    """One sending of a form; the second waits for the first."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.task: Task | None = None


class Forms:
    """The forms of one process: each has an id, and is heeded once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run = secrets.token_urlsafe(6)
        self._forms: OrderedDict[tuple[str, str], _Form] = OrderedDict()

    def new(self) -> str:
        """Return the id of a new form; it is worth nothing after a restart."""
        return f"{self._run}.{secrets.token_urlsafe(12)}"

    def task(self, who: str, once: str | None, begin: Callable[[], Task]) -> Task:
        """Do what `begin` does once for each form; the second sending gets the first one's task."""
        if once is None:
            return begin()
        if not once.startswith(f"{self._run}."):
            raise ActionRefused(
                409, "This page is from before kestrel-web was started again: look at it anew."
            )
        mark = (who, once)
        with self._lock:
            form = self._forms.get(mark)
            first = form is None
            if form is None:
                form = self._forms[mark] = _Form()
                while len(self._forms) > FORMS:
                    self._forms.popitem(last=False)
        if first:
            try:
                form.task = begin()
            except BaseException:
                # Nothing was begun: the same form may be sent again.
                with self._lock:
                    self._forms.pop(mark, None)
                raise
            finally:
                form.over.set()
            return form.task
        if not form.over.wait(TWICE_S) or form.task is None:
            raise ActionRefused(409, "The same form was sent twice; look at what became of the first.")
        return form.task
