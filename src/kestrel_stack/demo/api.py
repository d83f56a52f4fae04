"""A stand-in for a third party's API that can go down: ``python -m kestrel_stack.demo.api PORTFILE``.

Up, it takes an order (``POST /orders/NAME``) after `LATENCY` seconds and notes it. Down, it does what an
overloaded service does: it accepts the connection and never answers. It knows no idempotency keys, so an
order that is posted twice is there twice.

``POST /control/down`` and ``/control/up`` switch it, ``GET /control/orders`` tells how often it took each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

LATENCY = 0.02
"""Seconds that an order takes while the API is up."""


class Api:
    """The orders taken so far, and whether the next one gets an answer."""

    def __init__(self) -> None:
        self.orders: Counter[str] = Counter()
        self.down = False
        self._hanging: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one request of a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path, _ = head.decode("latin-1").split("\r\n", 1)[0].split(" ")
            if path.startswith("/orders/"):
                await self._order(path.removeprefix("/orders/"), reader, writer)
            else:
                self._answer(writer, *self._control(method, path))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass  # not a whole request, or its sender has gone
        finally:
            self._hanging.discard(writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _order(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            # Until its sender gives up, or the outage ends: then the connection is cut and nothing was done.
            self._hanging.add(writer)
            await reader.read()
            return
        await asyncio.sleep(LATENCY)
        if reader.at_eof():
            return  # its sender has given up: to take the order now would be to take it twice
        self.orders[name] += 1
        self._answer(writer, "201 Created", {"order": name})

    def _control(self, method: str, path: str) -> tuple[str, object]:
        if (method, path) == ("GET", "/control/orders"):
            return "200 OK", self.orders
        if (method, path) not in (("POST", "/control/down"), ("POST", "/control/up")):
            return "404 Not Found", {}
        self.down = path.endswith("down")
        if not self.down:
            for writer in self._hanging:
                writer.transport.abort()
        return "200 OK", {}

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, status: str, content: object) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)


async def main(port_file: Path) -> None:
    """Serve on a free port of loopback and write it to `port_file`."""
    server = await asyncio.start_server(Api().serve, "127.0.0.1", 0, backlog=1024)
    write_port(port_file, server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def write_port(file: Path, port: int) -> None:
    """Write the port in one step, so that a reader never sees half of it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"port": port}))
    new.rename(file)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
