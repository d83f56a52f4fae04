"""A TCP proxy that can be slow, fall silent and be cut: a bad line in front of a server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable


class TcpProxy:
    """Listens on a loopback address and forwards to a server, until it is told otherwise.

    `delay` is in seconds, each way, and holds for data as for new connections. Use it as a context manager.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1", delay: float = 0.0) -> None:
        self._target = (host, port)
        self.address = listen
        self.port = 0
        self.delay = delay
        self.sent = 0
        """Bytes that went to the server so far."""
        self.connections = 0
        self._limit: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._open: asyncio.Event
        self._fallen_silent = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # --- what a test does with it -----------------------------------------------------------------------

    def fall_silent(self) -> None:
        """Forward nothing from now on, in neither direction; connections stay, new ones get no answer."""
        self._do(self._open.clear)
        self._fallen_silent.set()

    def fall_silent_after(self, count: int) -> None:
        """Fall silent when so many more bytes have gone to the server."""
        self._limit = self.sent + count

    def wait_for_silence(self, seconds: float = 120) -> None:
        """Wait until the bytes given to `fall_silent_after` have gone."""
        assert self._fallen_silent.wait(seconds), f"only {self.sent} bytes were sent"

    def speak(self) -> None:
        """Forward again, what was held back first."""
        self._limit = None
        self._fallen_silent.clear()
        self._do(self._open.set)

    def cut(self) -> None:
        """Break every connection; new ones are forwarded."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._do(abort)

    # --- how --------------------------------------------------------------------------------------------

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _do(self, action: Callable[[], object]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open = asyncio.Event()
        self._open.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, self.address, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        other = None
        try:
            await asyncio.sleep(2 * self.delay)
            await self._open.wait()
            there, other = await asyncio.open_connection(*self._target)
            self._writers.add(other)
            await asyncio.gather(self._pump(reader, other, count=True), self._pump(there, writer))
        except OSError:
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False
    ) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def deliver() -> None:
            while True:
                due, data = await late.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if count and self._limit is not None and self.sent >= self._limit:
                    self._open.clear()
                    self._fallen_silent.set()
                await self._open.wait()
                if not data:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                if count:
                    self.sent += len(data)
                writer.write(data)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            while not delivery.done():
                data = await reader.read(16384)
                await late.put((time.monotonic() + self.delay, data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()
