"""Jobs with ids, so many a second, through the real producer; and which of them were done, and how often."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kestrel_stack.queue import Producer
from kestrel_stack.queue.errors import QueueFull, ServerUnavailable

RATE = 200
"""Jobs a second."""
SLOW_EVERY = 200
"""Each of so many jobs takes `SLOW` seconds, so that a drain meets jobs in hand."""
SLOW = 0.5
QUICK = 0.002
DELAYED_EVERY = 50
"""Each of so many jobs is delayed, where a load is told by how much."""

# What the application needs in its shop/jobs.py. A line is written with one write() to a file opened to
# append, so that it is whole, and there also when the worker is killed the moment after.
NOTE_JOB = '''

@registry.job("Note")
def note(data, context):
    """Note durably that this job was done."""
    import os
    import time

    began = time.time()
    time.sleep(data["seconds"])
    line = f"{context.id} {data['sent']:.6f} {began:.6f} {time.time():.6f} {context.release}\\n"
    descriptor = os.open(f"var/done-{data['run']}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o664)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
'''


WHOLE = re.compile(r"[0-9a-f-]{36} \d+\.\d{6} \d+\.\d{6} \d+\.\d{6} \d{8}T\d{6}Z-[0-9a-f]{8}")


@dataclass(frozen=True)
class Note:
    """One line that a worker wrote: times in seconds since the epoch."""

    id: str
    sent: float
    began: float
    done: float
    release: str
    host: str

    @property
    def wait(self) -> float:
        """Seconds from before the job was enqueued until a worker began with it."""
        return self.began - self.sent


def parse_notes(text: str, host: str) -> list[Note]:
    """Return the notes in a host's file; a line that a full disk has cut off is none."""
    found = []
    for line in text.splitlines():
        if not WHOLE.fullmatch(line):
            continue
        job, sent, began, done, release = line.split()
        found.append(Note(job, float(sent), float(began), float(done), release, host))
    return found


class Load:
    """Producers that go on until `stop`. A job is acknowledged when `enqueue` returned."""

    def __init__(
        self,
        server: str,
        namespace: str,
        queues: dict[str, int],
        rate: float = RATE,
        *,
        producers: int = 1,
        described: Sequence[Mapping[str, Any]] = (),
        data: Mapping[str, Mapping[str, Any]] | None = None,
        delay: int = 0,
    ) -> None:
        """`queues` says how many of each so many jobs go to which queue; `server` may be several.

        The jobs come from so many `producers` with connections of their own. `described` is what they know of
        the queues, `data` is added to the jobs of a queue, and each of `DELAYED_EVERY` jobs is delayed by
        `delay` seconds, unless that is 0.
        """
        self.run = uuid.uuid4().hex[:12]
        self.acknowledged: dict[str, float] = {}
        """When each was acknowledged, by id."""
        self.queue_of: dict[str, str] = {}
        """Which queue each job goes to, by id."""
        self.delayed: dict[str, float] = {}
        """When those that were delayed are due, by id."""
        self.enqueued = 0
        """How many jobs there were, whether they were acknowledged or not."""
        self.refused = 0
        """How often `enqueue` raised; the job was then tried again with the same id."""
        self.refusal = ""
        """What it raised last."""
        self.slowest = 0.0
        """The longest that one `enqueue` took, in seconds, whether it returned or raised."""
        self._server = server
        self._namespace = namespace
        self._turn = [name for name, share in queues.items() for _ in range(share)]
        self._described = list(described) or list(dict.fromkeys(self._turn))
        self._data = data or {}
        self._delay = delay
        self.rate = rate
        self._burst = 0
        self._stop = threading.Event()
        self.counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._produce, args=(first, producers), daemon=True)
            for first in range(producers)
        ]
        self._error: BaseException | None = None

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Enqueue no more. Raises what ended the producer early."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self._error is not None:
            raise self._error

    def burst(self, count: int) -> None:
        """Enqueue so many jobs at once, beside the others."""
        self._burst = count

    def missing(self, notes: list[Note]) -> set[str]:
        """The acknowledged jobs that nobody has done."""
        return set(self.acknowledged) - {note.id for note in notes}

    @staticmethod
    def doubled(notes: list[Note]) -> int:
        """How often a job was done again."""
        return sum(count - 1 for count in Counter(note.id for note in notes).values())

    def _produce(self, first: int, step: int) -> None:
        try:
            with Producer(
                self._namespace, "acme", servers=self._server, queues=self._described, timeout=5
            ) as producer:
                began, number = time.monotonic(), first
                while not self._stop.wait(max(0.0, began + number / self.rate - time.monotonic())):
                    self._one(producer, number)
                    number += step
                    while first == 0 and self._burst and not self._stop.is_set():
                        self._burst -= 1
                        self._one(producer, number + self._burst)
        except BaseException as error:
            self._error = error

    def _one(self, producer: Producer, number: int) -> None:
        seconds = SLOW if number % SLOW_EVERY == SLOW_EVERY - 1 else QUICK
        queue = self._turn[number % len(self._turn)]
        data = {"run": self.run, "sent": time.time(), "seconds": seconds, **self._data.get(queue, {})}
        delay = self._delay if self._delay and number % DELAYED_EVERY == 0 else None
        job_id = str(uuid.uuid4())
        with self.counting:
            self.enqueued += 1
        self.queue_of[job_id] = queue
        while True:
            began = time.monotonic()
            refusal = None
            due = time.time() + (delay or 0)
            try:
                producer.enqueue("Note", data, queue=queue, id=job_id, delay=delay)
            except (ServerUnavailable, QueueFull) as error:
                refusal = error
            with self.counting:
                self.slowest = max(self.slowest, time.monotonic() - began)
                if refusal is not None:
                    self.refused += 1
                    self.refusal = f"{type(refusal).__name__}: {refusal}"
            if refusal is None:
                break
            if self._stop.wait(0.05):
                return
        if delay:
            self.delayed[job_id] = due
        self.acknowledged[job_id] = time.time()
