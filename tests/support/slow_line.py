"""A TCP line with a long way: every byte arrives later than it was sent, both ways, and is counted."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Flights:
    """What one connection over the line was used for."""

    round_trips: int = 0
    """How often the caller, having heard something, said something again: the first words count as one."""
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    """To the server and back."""


class SlowLine:
    """Listens on loopback and passes on to ``target``, ``delay`` seconds later each way.

    A new connection costs one way there and back as well, as TCP's own greeting does. Unlike a sleep between
    two reads the delay does not narrow the line: any number of bytes may be under way.
    """

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        self.delay = delay
        self.connections: list[Flights] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                outside, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(outside)
            threading.Thread(target=self._serve, args=(outside,), daemon=True).start()

    def _serve(self, outside: socket.socket) -> None:
        # The caller believes to be connected at once: what TCP's greeting takes is made up for here.
        time.sleep(2 * self.delay)
        try:
            inside = socket.create_connection(self._target)
        except OSError:
            outside.close()
            return
        self._sockets.append(inside)
        for one in (outside, inside):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flights = Flights()
        self.connections.append(flights)
        heard = threading.Event()
        heard.set()
        _Way(outside, inside, self.delay, lambda size: self._to_server(flights, heard, size), None)
        _Way(inside, outside, self.delay, lambda size: self._back(flights, size), heard)

    @staticmethod
    def _to_server(flights: Flights, heard: threading.Event, size: int) -> None:
        flights.bytes[0] += size
        if heard.is_set():
            heard.clear()
            flights.round_trips += 1

    @staticmethod
    def _back(flights: Flights, size: int) -> None:
        flights.bytes[1] += size

    def close(self) -> None:
        """Stop listening and cut what is connected."""
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Way:
    """One direction of one connection."""

    def __init__(self, source, sink, delay, count, delivered) -> None:
        self._delay = delay
        self._count = count
        self._delivered = delivered
        self._queue: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._take, args=(source,), daemon=True).start()
        threading.Thread(target=self._give, args=(sink,), daemon=True).start()

    def _take(self, source: socket.socket) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            if data:
                self._count(len(data))
            with self._changed:
                self._queue.append((time.monotonic() + self._delay, data))
                self._changed.notify()

    def _give(self, sink: socket.socket) -> None:
        with suppress(OSError):
            while True:
                with self._changed:
                    while not self._queue:
                        self._changed.wait()
                    due, data = self._queue.popleft()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if self._delivered is not None:
                    self._delivered.set()
                sink.sendall(data)
