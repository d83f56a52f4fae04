"""Putting jobs on a queue, from a web request or a script."""

from __future__ import annotations

import os
import random
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from kestrel_stack.queue import names, settings
from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.envelope import Envelope
from kestrel_stack.queue.errors import InvalidJob, ProtocolError, QueueFull, ServerUnavailable
from kestrel_stack.queue.servers import Server, parse_servers
from kestrel_stack.queue.settings import QueueSettings

MAX_BYTES = 1024 * 1024
"""Largest job in bytes, unless the producer is made with another limit."""
TIMEOUT = 5.0
"""Seconds after which `Producer.enqueue` gives up, however many servers there are."""


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
        queues: Iterable[str | Mapping[str, Any] | QueueSettings] = (),
        timeout: float = TIMEOUT,
        max_bytes: int = MAX_BYTES,
    ):
        self.namespace = names.check(namespace, "namespace")
        self.tenant = tenant
        self._servers = parse_servers(servers)
        described = [settings.describe_queue(queue, namespace) for queue in queues]
        self._queues = {queue.name: queue for queue in described}
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._clients: dict[Server, KestrelClient] = {}
        self._process = os.getpid()

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

        `queue` is by default the job's name in snake case (``HelloWorld`` goes to ``hello_world``). Raises
        `InvalidJob` or `InvalidQueueName` before anything is sent, `QueueFull` when every server refused
        the job, and `ServerUnavailable` when none took it within the time limit. After `ServerUnavailable`
        it is not known whether the job was stored: enqueue it again with the same `id`, and make the job
        safe to be done twice.
        """
        described = self._queue(job, queue)
        if delay is not None:
            self._refuse_delay(described, delay)
        envelope = self._envelope(job, data, id, trace)
        body = envelope.encode()
        if len(body) > self._max_bytes:
            raise InvalidJob(
                f"The job {job} has {len(body)} bytes; at most {self._max_bytes} are allowed. "
                "Store large data elsewhere and send its name."
            )
        self._send(names.make(self.namespace, described.name), body)
        return envelope.id

    def close(self) -> None:
        """Close the connections; the next job opens them again."""
        with self._lock:
            self._drop_all()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _queue(self, job: str, queue: str | None) -> QueueSettings:
        name = queue if queue is not None else snake_case(job)
        if name in self._queues:
            return self._queues[name]
        if queue is not None and not self._queues:
            # A producer that was told of no queues leaves the choice to its caller.
            return settings.describe_queue(queue, self.namespace)
        known = ", ".join(sorted(self._queues)) or "none"
        if queue is None:
            raise InvalidJob(
                f"The job {job!r} has no queue of its own name ({name!r}); give queue=, one of: {known}."
            )
        raise InvalidJob(f"The queue {queue!r} is not configured; configured: {known}.")

    def _refuse_delay(self, queue: QueueSettings, delay: int) -> None:
        if delay not in queue.retry_delays or isinstance(delay, bool):
            allowed = ", ".join(map(str, queue.retry_delays)) or "none"
            raise InvalidJob(
                f"The delay {delay!r} is not one of the retry_delays of the queue {queue.name}, "
                f"in seconds: {allowed}."
            )
        raise InvalidJob("Delayed jobs come with a later version; enqueue without delay=.")

    def _envelope(
        self,
        job: str,
        data: Mapping[str, Any] | None,
        id: str | uuid.UUID | None,
        trace: Mapping[str, str] | None,
    ) -> Envelope:
        try:
            job_id = str(uuid.uuid4() if id is None else uuid.UUID(str(id)))
        except ValueError:
            raise InvalidJob(f"The id {id!r} is not a UUID.") from None
        if data is not None and not isinstance(data, Mapping):
            raise InvalidJob(f"The data of the job {job} must be a dict, not {type(data).__name__}.")
        return Envelope(
            job=job,
            tenant=self.tenant,
            data=dict(data or {}),
            id=job_id,
            trace=None if trace is None else dict(trace),
        )

    def _send(self, queue: str, body: bytes) -> None:
        # Each server is tried once, in random order, so that producers spread over the servers.
        servers = random.sample(self._servers, len(self._servers))
        deadline = time.monotonic() + self._timeout
        failures: list[Exception] = []
        if not self._lock.acquire(timeout=self._timeout):
            raise ServerUnavailable(f"Not enqueued: other threads are enqueueing since {self._timeout:g} s.")
        try:
            for number, server in enumerate(servers):
                left = deadline - time.monotonic()
                if left <= 0:
                    failures.append(ServerUnavailable(f"{server} was not tried: no time was left."))
                    continue
                # The time left is shared, so that one silent server does not use up what the others need.
                try:
                    self._client(server, left / (len(servers) - number)).set(queue, body)
                except (QueueFull, ServerUnavailable, ProtocolError) as exc:
                    failures.append(exc)
                else:
                    return
        finally:
            self._lock.release()
        said = " ".join(map(str, failures))
        if all(isinstance(failure, QueueFull) for failure in failures):
            raise QueueFull(f"Not enqueued: {said}")
        raise ServerUnavailable(f"Not enqueued: {said}")

    def _client(self, server: Server, seconds: float) -> KestrelClient:
        if self._process != os.getpid():
            # After a fork both processes would write into the same connections.
            self._drop_all()
            self._process = os.getpid()
        client = self._clients.setdefault(server, KestrelClient(server))
        client.limit(connect=seconds / 2, read=seconds / 2)
        return client

    def _drop_all(self) -> None:
        for client in self._clients.values():
            client.disconnect()
        self._clients.clear()


def snake_case(job: object) -> str:
    """Return a job's name as a queue's: ``HelloWorld`` is ``hello_world``, ``PDFReport`` ``pdf_report``."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", str(job))
    return text.lower()
