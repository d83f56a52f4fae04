"""The admin HTTP: ping, stats, server_info and shutdown, as ``/CMD``, ``/CMD.json`` or ``/CMD.txt``.

No authentication, as in Kestrel: bind it to loopback or keep it behind a firewall.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kestrel_stack.broker import SERVER_VERSION

if TYPE_CHECKING:
    from kestrel_stack.broker.server import Broker

MAX_HEAD = 16 * 1024
"""Bytes of a request head that we read."""

TIMEOUT_S = 10.0
"""Seconds that a client may take for its request."""


class AdminServer:
    """Answers one HTTP request per connection."""

    def __init__(self, broker: Broker):
        self._broker = broker

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of one connection."""
        reader = asyncio.StreamReader(limit=MAX_HEAD)
        return asyncio.StreamReaderProtocol(reader, self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            writer.write(self._respond(head))
            await asyncio.wait_for(writer.drain(), TIMEOUT_S)
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # not a request, or nobody there any more
        finally:
            writer.close()

    def _respond(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or words[0] not in ("GET", "POST", "HEAD"):
            return _response(400, "text/plain", "bad request\n")
        command, _, form = urlsplit(words[1]).path.lstrip("/").partition(".")
        answer = self._command(command)
        if answer is None or form not in ("", "json", "txt"):
            return _response(404, "text/plain", "no such command\n")
        with_body = words[0] != "HEAD"
        if form == "txt":
            return _response(200, "text/plain", _as_text(answer), with_body=with_body)
        body = answer if isinstance(answer, dict) else {"response": answer}
        return _response(200, "application/json", json.dumps(body) + "\n", with_body=with_body)

    def _command(self, command: str) -> dict[str, Any] | str | None:
        broker = self._broker
        if command == "ping":
            return "pong"
        if command == "stats":
            return broker.stats.admin()
        if command == "server_info":
            return {
                "name": "kestrel",
                "version": SERVER_VERSION,
                "build": "embedded",
                "build_revision": "",
                "build_branch_name": "",
                "build_last_few_commits": [],
                "start_time": time.strftime(
                    "%a %b %d %H:%M:%S UTC %Y", time.gmtime(broker.started_ms / 1000)
                ),
                "uptime": broker.clock() - broker.started_ms,
            }
        if command == "shutdown":
            broker.request_stop("the admin shutdown", delay_s=0.1)
            return "ok"
        return None


def _as_text(answer: dict[str, Any] | str) -> str:
    if isinstance(answer, str):
        return answer + "\n"
    lines = []
    for key, entry in answer.items():
        if isinstance(entry, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {number}" for name, number in sorted(entry.items())]
        else:
            lines.append(f"{key}: {entry}")
    return "\n".join(lines) + "\n"


def _response(status: int, kind: str, text: str, *, with_body: bool = True) -> bytes:
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    body = text.encode("utf-8")
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
