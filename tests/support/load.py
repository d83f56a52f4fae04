"""Jobs with ids, so many a second, through the real producer; and which of them were done, and how often."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass

from kestrel_stack.queue import Producer
from kestrel_stack.queue.errors import QueueFull, ServerUnavailable

RATE = 200
"""Jobs a second."""
SLOW_EVERY = 200
"""Each of so many jobs takes `SLOW` seconds, so that a drain meets jobs in hand."""
SLOW = 0.5
QUICK = 0.002

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
    """Return the notes in a host's file."""
    found = []
    for line in text.splitlines():
        job, sent, began, done, release = line.split()
        found.append(Note(job, float(sent), float(began), float(done), release, host))
    return found


class Load:
    """A producer that goes on until `stop`. A job is acknowledged when `enqueue` returned."""

    def __init__(self, server: str, namespace: str, queues: dict[str, int], rate: float = RATE) -> None:
        """`queues` says how many of each so many jobs go to which queue."""
        self.run = uuid.uuid4().hex[:12]
        self.acknowledged: dict[str, float] = {}
        """When each was acknowledged, by id."""
        self.refused = 0
        """How often `enqueue` raised; the job was then tried again with the same id."""
        self._server = server
        self._namespace = namespace
        self._turn = [name for name, share in queues.items() for _ in range(share)]
        self._rate = rate
        self._burst = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._error: BaseException | None = None

    def start(self) -> Load:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Enqueue no more. Raises what ended the producer early."""
        self._stop.set()
        self._thread.join(60)
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

    def _produce(self) -> None:
        try:
            names = tuple(dict.fromkeys(self._turn))
            with Producer(self._namespace, "acme", servers=self._server, queues=names, timeout=5) as producer:
                began, number = time.monotonic(), 0
                while not self._stop.wait(max(0.0, began + number / self._rate - time.monotonic())):
                    self._one(producer, number)
                    number += 1
                    while self._burst and not self._stop.is_set():
                        self._burst -= 1
                        self._one(producer, number + self._burst)
        except BaseException as error:
            self._error = error

    def _one(self, producer: Producer, number: int) -> None:
        seconds = SLOW if number % SLOW_EVERY == SLOW_EVERY - 1 else QUICK
        data = {"run": self.run, "sent": time.time(), "seconds": seconds}
        queue = self._turn[number % len(self._turn)]
        job_id = str(uuid.uuid4())
        while True:
            try:
                producer.enqueue("Note", data, queue=queue, id=job_id)
                break
            except (ServerUnavailable, QueueFull):
                self.refused += 1
                if self._stop.wait(0.05):
                    return
        self.acknowledged[job_id] = time.time()
