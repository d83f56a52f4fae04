"""Visitors of the web servers: they come at a fixed rate, whether or not those before them were answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

WAYS = ("direct", "queued")
DOUBLE_CLICK_EVERY = 10
"""Every tenth order is sent a second time, `DOUBLE_CLICK_AFTER` seconds after the first."""
DOUBLE_CLICK_AFTER = 0.05


@dataclass(frozen=True)
class Visit:
    """One request: when it was sent (seconds since the first), how long it took, and whether it went well."""

    way: str
    order: int
    at: float
    seconds: float
    ok: bool


class Visitors:
    """Send each order to both web servers and keep what came of it; a visitor waits `patience` seconds."""

    def __init__(self, ports: dict[str, int], rate: float, patience: float):
        self._ports = ports
        self._rate = rate
        self._patience = patience
        self._began = time.monotonic()
        self._open: set[asyncio.Task[None]] = set()
        self.visits: list[Visit] = []
        self.orders = 0

    @property
    def now(self) -> float:
        """Seconds since the first visitor."""
        return time.monotonic() - self._began

    @property
    def waiting(self) -> int:
        """How many visitors are waiting for an answer."""
        return len(self._open)

    async def come(self, seconds: float) -> None:
        """Have visitors come for so long, and wait for the last answer; cancelled, nobody stays behind."""
        self._began = time.monotonic()
        clicks: list[asyncio.TimerHandle] = []
        try:
            while (due := self.orders / self._rate) < seconds:
                await asyncio.sleep(max(0.0, due - self.now))
                self._send(self.orders)
                if self.orders % DOUBLE_CLICK_EVERY == 0:
                    loop = asyncio.get_running_loop()
                    clicks.append(loop.call_later(DOUBLE_CLICK_AFTER, self._send, self.orders))
                self.orders += 1
            await asyncio.sleep(2 * DOUBLE_CLICK_AFTER)
            while self._open:
                await asyncio.wait(self._open)
        finally:
            # A second click would come when the loop is being closed, and find nobody who ends it.
            for click in clicks:
                click.cancel()
            for task in self._open:
                task.cancel()
            if self._open:
                await asyncio.wait(self._open)

    def _send(self, order: int) -> None:
        for way in WAYS:
            task = asyncio.create_task(self._visit(way, order))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _visit(self, way: str, order: int) -> None:
        at = self.now
        try:
            async with asyncio.timeout(self._patience):
                status = await self._request(self._ports[way], order)
        except (TimeoutError, OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            status = 0
        self.visits.append(Visit(way, order, at, self.now - at, 200 <= status < 300))

    @staticmethod
    async def _request(port: int, order: int) -> int:
        return (await request(port, "POST", f"/orders/{order}"))[0]


async def request(port: int, method: str, path: str) -> tuple[int, bytes]:
    """Make one HTTP request to loopback; return the status and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), await reader.read()
    finally:
        writer.close()
