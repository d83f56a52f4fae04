"""Which function does which job, and what is set up around every one of them.

A name that comes from a queue is only ever looked up here; it never becomes the name of a module or a file.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from kestrel_stack.consumer.log import Log
from kestrel_stack.queue.envelope import is_job_name


@dataclass(frozen=True)
class Context:
    """What a job knows besides its data.

    `attempt` is 1 for the first try; a job with the same `id` may come again, also with the same attempt.
    `enqueued_at` is in Unix milliseconds. `log` writes lines that carry the job's name, id and tenant; those
    below info are written only when the job fails. `queue` is the queue's name on the server.
    """

    job: str
    id: str
    tenant: str
    attempt: int
    enqueued_at: int
    trace: dict[str, str] | None
    environment: str | None
    release: str | None
    log: Log
    queue: str = ""


Around = Callable[[Context], AbstractContextManager[object]]
Job = Callable[[dict[str, Any], Context], object]


class Registry:
    """The jobs of one application, by name."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._around: list[Around] = []

    def job(self, name: str) -> Callable[[Job], Job]:
        """Register the decorated function ``(data, context)`` for the jobs called `name`.

        Raises `ValueError` for a name that is illegal or taken, `TypeError` for what would do nothing if it
        were called: a coroutine or generator function.
        """
        if not is_job_name(name):
            raise ValueError(
                f"{name!r} is not a job name: a letter, then letters, digits and '_', at most 100."
            )
        if name in self._jobs:
            raise ValueError(f"The job {name} is registered twice.")

        def register(function: Job) -> Job:
            if (
                inspect.iscoroutinefunction(function)
                or inspect.isgeneratorfunction(function)
                or inspect.isasyncgenfunction(function)
            ):
                raise TypeError(
                    f"The job {name} must be a plain function; one with async or yield would not run."
                )
            if not callable(function):
                raise TypeError(f"The job {name} must be a function.")
            self._jobs[name] = function
            return function

        return register

    def around(self, factory: Around) -> Around:
        """Register what is set up before every job and always cleared after it, for example its tenant.

        `factory` gets the job's context and returns a context manager; a generator function is made one. Of
        several, the first is the outermost. A job that raised an error has failed, also when the context
        manager suppresses the error. When clearing fails, the process that ran the job is replaced.
        """
        if not callable(factory) or inspect.iscoroutinefunction(factory):
            raise TypeError("around takes a function (context) that returns a context manager.")
        if inspect.isgeneratorfunction(factory):
            self._around.append(contextlib.contextmanager(factory))
        else:
            self._around.append(factory)
        return factory

    @property
    def arounds(self) -> list[Around]:
        """What was registered with `around`, the outermost first."""
        return list(self._around)

    def get(self, name: str) -> Job | None:
        """Return the function for `name`, or None."""
        return self._jobs.get(name)

    @property
    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._jobs)
