"""Putting jobs on a queue, from a web request or a script."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kestrel_stack.queue import settings
from kestrel_stack.queue.envelope import Envelope, now_ms
from kestrel_stack.queue.errors import InvalidJob, QueueFull, ServerUnavailable
from kestrel_stack.queue.interface import TIMEOUT, Descriptions, Queue, check_delay
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.settings import QueueSettings

MAX_BYTES = 1024 * 1024
"""Largest job in bytes, unless the producer is made with another limit."""


class Producer:
    """Enqueues the jobs of one tenant. It may be shared by threads and survives a fork.

    `servers` and `queues` are as in the settings file; `queues` may also be plain names.
    """

    def __init__(
        self,
        namespace: str,
        tenant: str,
        *,
        servers: str | Iterable[str | Server] = "127.0.0.1:22133",
        queues: Descriptions = (),
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
    ):
        self._set_up(KestrelStore(namespace, servers, queues), tenant, timeout, max_bytes)

    def _set_up(self, store: Queue, tenant: str, timeout: float, max_bytes: int) -> None:
        self.namespace = store.namespace
        self.tenant = tenant
        self._store = store
        self._timeout = timeout
        self._max_bytes = max_bytes

    @classmethod
    def on(
        cls, queue: Queue, tenant: str, *, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES
    ) -> Producer:
        """Return a producer on what `Queue.open` returned; both use the same connections."""
        made = cls.__new__(cls)
        made._set_up(queue, tenant, timeout, max_bytes)
        return made

    @classmethod
    def from_settings(
        cls, tenant: str, path: str | os.PathLike[str] | None = None, **options: Any
    ) -> Producer:
        """Return a producer for the application whose settings file is at `path` (see `settings.load`)."""
        found = settings.load(path)
        return cls(found.namespace, tenant, servers=found.servers, queues=found.queues.values(), **options)

    def enqueue(
        self,
        job: str,
        data: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        delay: int | None = None,
        id: str | uuid.UUID | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> str:
        """Put a job on its queue and return the job's id.

        `queue` is by default the job's name in snake case (``HelloWorld`` goes to ``hello_world``). With
        `delay` it is done so many seconds from now, at the earliest; only the queue's retry delays are
        possible. Raises `InvalidJob` or `InvalidQueueName` before anything is sent, `QueueFull` when every
        server refused the job, and `ServerUnavailable` when none took it within the time limit. After
        `ServerUnavailable` it is not known whether the job was stored: enqueue it again with the same `id`,
        and make the job safe to be done twice.
        """
        return self._send(self._checked(job, data, queue, delay, id, trace))

    @contextlib.contextmanager
    def after_commit(self) -> Iterator[AfterCommit]:
        """Collect jobs during a database transaction; enqueue them when the block ends without an error.

        Put it around the transaction, so that its end comes after the commit::

            with producer.after_commit() as jobs, database.transaction():
                ...
                jobs.enqueue("PostUpload", {"upload": 7})

        An error inside, such as that of a rollback, drops the jobs. A process that dies between the commit
        and the end of the block enqueues nothing: what must not be missed belongs into the database, too.
        Raises, after the commit, what `AfterCommit.flush` raises.
        """
        jobs = AfterCommit(self)
        yield jobs
        jobs.flush()

    def close(self) -> None:
        """Close the connections; the next job opens them again."""
        self._store.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(
        self,
        job: str,
        data: Mapping[str, Any] | None,
        queue: str | None,
        delay: int | None,
        id: str | uuid.UUID | None,
        trace: Mapping[str, str] | None,
    ) -> _Checked:
        described = self._queue(job, queue)
        if delay is not None:
            check_delay(described, delay)
        envelope = self._envelope(job, data, id, trace, delay)
        body = envelope.encode()
        if len(body) > self._max_bytes:
            raise InvalidJob(
                f"The job {job} has {len(body)} bytes; at most {self._max_bytes} are allowed. "
                "Store large data elsewhere and send its name."
            )
        return _Checked(described.name, envelope.id, body, delay)

    def _send(self, checked: _Checked) -> str:
        self._store.put(checked.queue, checked.body, checked.delay, self._timeout)
        return checked.id

    def _queue(self, job: str, queue: str | None) -> QueueSettings:
        queues = self._store.queues
        name = queue if queue is not None else snake_case(job)
        if name in queues:
            return queues[name]
        if queue is not None and not queues:
            # A producer that was told of no queues leaves the choice to its caller.
            return settings.describe_queue(queue, self.namespace)
        known = ", ".join(sorted(queues)) or "none"
        if queue is None:
            raise InvalidJob(
                f"The job {job!r} has no queue of its own name ({name!r}); give queue=, one of: {known}."
            )
        raise InvalidJob(f"The queue {queue!r} is not configured; configured: {known}.")

    def _envelope(
        self,
        job: str,
        data: Mapping[str, Any] | None,
        id: str | uuid.UUID | None,
        trace: Mapping[str, str] | None,
        delay: int | None,
    ) -> Envelope:
        try:
            job_id = str(uuid.uuid4() if id is None else uuid.UUID(str(id)))
        except ValueError:
            raise InvalidJob(f"The id {id!r} is not a UUID.") from None
        if data is not None and not isinstance(data, Mapping):
            raise InvalidJob(f"The data of the job {job} must be a dict, not {type(data).__name__}.")
        now = now_ms()
        return Envelope(
            job=job,
            tenant=self.tenant,
            data=dict(data or {}),
            id=job_id,
            enqueued_at=now,
            due_at=None if delay is None else now + delay * 1000,
            trace=None if trace is None else dict(trace),
        )


class AfterCommit:
    """Jobs that wait for a commit; see `Producer.after_commit`. `left` says how many are not enqueued yet."""

    def __init__(self, producer: Producer):
        self._producer = producer
        self._jobs: list[_Checked] = []

    @property
    def left(self) -> int:
        """How many jobs are not enqueued yet."""
        return len(self._jobs)

    def enqueue(
        self,
        job: str,
        data: Mapping[str, Any] | None = None,
        *,
        queue: str | None = None,
        delay: int | None = None,
        id: str | uuid.UUID | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> str:
        """Note a job and return its id; what is wrong with it is raised now, as by `Producer.enqueue`."""
        checked = self._producer._checked(job, data, queue, delay, id, trace)
        self._jobs.append(checked)
        return checked.id

    def flush(self) -> None:
        """Enqueue the jobs now.

        Raises `QueueFull` or `ServerUnavailable` when some of them were not taken; those are kept, so that
        another `flush` tries them again. A server that does not answer is waited for once, not for each job.
        """
        jobs, self._jobs = self._jobs, []
        count = len(jobs)
        failure: QueueFull | ServerUnavailable | None = None
        while jobs:
            try:
                self._producer._send(jobs[0])
            except QueueFull as exc:
                failure = exc
                self._jobs.append(jobs.pop(0))
            except ServerUnavailable as exc:
                failure = exc
                break
            except BaseException:
                self._jobs += jobs
                raise
            else:
                jobs.pop(0)
        self._jobs += jobs
        if failure is not None:
            raise type(failure)(f"After the commit {self.left} of {count} jobs are not enqueued. {failure}")


@dataclass(frozen=True)
class _Checked:
    """A job that only has to be sent."""

    queue: str
    id: str
    body: bytes
    delay: int | None


def snake_case(job: object) -> str:
    """Return a job's name as a queue's: ``HelloWorld`` is ``hello_world``, ``PDFReport`` ``pdf_report``."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", str(job))
    return text.lower()
