"""Producers and consumers that each know what the broker told them, and the sums over all of them."""

from __future__ import annotations

import collections
import contextlib
import random
import threading
from dataclasses import dataclass, field

from support.broker import BrokerProcess, RawClient


@dataclass
class Ledger:
    """What every client was told; an item is ``producer-number`` and padding that follows from it."""

    queue: str = "jobs"
    stored: list[bytes] = field(default_factory=list)
    unsure: list[bytes] = field(default_factory=list)
    confirmed: list[bytes] = field(default_factory=list)
    in_hand: list[bytes] = field(default_factory=list)
    _next: collections.Counter = field(default_factory=collections.Counter)

    def item(self, producer: int, number: int, sizes: tuple[int, int]) -> bytes:
        name = b"%d-%d " % (producer, number)
        return name + b"x" * random.Random(name).randint(*sizes)

    def produce(self, broker: BrokerProcess, producer: int, sizes: tuple[int, int], stop) -> None:
        """Store items one after the other until told to stop or cut off."""
        with contextlib.suppress(OSError), broker.connect() as client:
            while not stop.is_set():
                item = self.item(producer, self._next[producer], sizes)
                self._next[producer] += 1
                try:
                    client.set(self.queue, item)
                except (AssertionError, OSError):
                    self.unsure.append(item)
                    return
                self.stored.append(item)

    def consume(self, broker: BrokerProcess, stop) -> None:
        """Take, keep and confirm one item after the other until told to stop or cut off."""
        held = None
        with contextlib.suppress(OSError), broker.connect() as client:
            try:
                while not stop.is_set():
                    item = client.get(f"{self.queue}/t=100/close/open")
                    if held is not None:
                        self.confirmed.append(held)
                    held = item
                if held is not None:
                    client.ask(b"get %b/close\r\n" % self.queue.encode(), b"END\r\n")
                    self.confirmed.append(held)
                    held = None
            except (AssertionError, OSError):
                if held is not None:
                    self.in_hand.append(held)

    def check(self, left: list[bytes], order: bool = True) -> None:
        """Hold what the queue has left against what everybody was told."""
        counted = collections.Counter(left)
        twice = [item[:20] for item, number in counted.items() if number > 1]
        assert not twice, f"given out twice: {twice}"
        again = [item[:20] for item, number in collections.Counter(self.confirmed).items() if number > 1]
        assert not again, f"confirmed twice: {again}"
        back = [item[:20] for item in set(left) & set(self.confirmed)]
        assert not back, f"confirmed, and there again: {back}"
        lost = set(self.stored) - set(left) - set(self.confirmed) - set(self.in_hand)
        assert not lost, f"lost: {sorted(item[:20] for item in lost)[:20]} of {len(self.stored)}"
        foreign = set(left) - set(self.stored) - set(self.unsure)
        assert not foreign, f"nobody sent: {sorted(foreign)[:3]}"
        if order:
            for producer in self._next:
                numbers = [int(item.split(b" ")[0].split(b"-")[1]) for item in left if _of(item, producer)]
                assert numbers == sorted(numbers), f"out of order: items of producer {producer}"


def _of(item: bytes, producer: int) -> bool:
    return item.startswith(b"%d-" % producer)


@contextlib.contextmanager
def running(ledger: Ledger, broker: BrokerProcess, producers: int, consumers: int, sizes=(0, 200)):
    """Traffic while the block runs; afterwards every client has ended."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=ledger.produce, args=(broker, number, sizes, stop))
        for number in range(producers)
    ]
    threads += [threading.Thread(target=ledger.consume, args=(broker, stop)) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def fill(client: RawClient, queue: str, items: list[bytes]) -> None:
    """Store items in one go, and see that each was stored."""
    queue_name = queue.encode()
    client.send(b"".join(b"set %b 0 0 %d\r\n%b\r\n" % (queue_name, len(item), item) for item in items))
    client.expect(b"STORED\r\n" * len(items))
