"""The admin HTTP, as ``/CMD``, ``/CMD.json`` or ``/CMD.txt``, by GET or POST.

ping, stats (``?period=SECONDS``, ``?namespace=NAME``, ``?filtered=1``), server_info, threads, gc, reload,
shutdown, quiesce (which is a shutdown, as in Kestrel) and logging (``?name=LOGGER&level=LEVEL``). gc, reload,
shutdown and quiesce answer ``ok`` at once and act a moment later. Source: observed on Kestrel 2.4.1.

Not here: Kestrel's pages with graphs (report, graph, graph_data, static) and its profiler (pprof), which
answer 404 and say so; ``jvm_*`` numbers (see stats.py). filtered changes nothing, as in a Kestrel without
configured filters.

No authentication, as in Kestrel: bind it to loopback or keep it behind a firewall. Slow clients, large
requests and many connections are bounded.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from kestrel_stack.broker import SERVER_VERSION

if TYPE_CHECKING:
    from kestrel_stack.broker.server import Broker

log = logging.getLogger("kestrel.admin")

MAX_HEAD = 16 * 1024
"""Bytes of a request head that we read."""

MAX_BODY = 64 * 1024
"""Bytes of a request body that we read, to throw them away."""

MAX_CONNECTIONS = 64
"""Connections at a time; more are closed at once."""

TIMEOUT_S = 10.0
"""Seconds that a client may take for its request, and for taking the answer."""

DELAY_S = 0.1
"""Seconds after which what was answered ``ok`` is done."""

MAX_PERIOD_S = 86400
"""The longest period that stats are kept for."""

NOT_DRAWN = ("report", "graph", "graph_data", "static", "pprof", "drilldown")

LEVELS = {
    "FATAL": logging.CRITICAL,
    "CRITICAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "TRACE": logging.DEBUG,
    "ALL": logging.DEBUG,
    "OFF": logging.CRITICAL + 10,
}
"""Kestrel's names of log levels, and ours."""

Answer = dict[str, Any] | str


class AdminServer:
    """Answers one HTTP request per connection."""

    def __init__(self, broker: Broker):
        self._broker = broker
        self._connections = 0

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of one connection."""
        reader = asyncio.StreamReader(limit=MAX_HEAD)
        return asyncio.StreamReaderProtocol(reader, self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                writer.transport.abort()
                return
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            # What is not read would make the close a reset, which can overtake the answer.
            body = min(_content_length(head), MAX_BODY)
            if body:
                await asyncio.wait_for(reader.readexactly(body), TIMEOUT_S)
            writer.write(self._respond(head))
            await asyncio.wait_for(writer.drain(), TIMEOUT_S)
        except asyncio.LimitOverrunError:
            writer.write(_response(400, "text/plain", "bad request: its head is too long\n"))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()  # not a request, or nobody there any more
        except asyncio.CancelledError:
            writer.transport.abort()  # the broker stops; passed on, asyncio would log it as an error
        finally:
            self._connections -= 1
            writer.close()
            if writer.transport.get_write_buffer_size():  # what a client does not take is thrown away
                asyncio.get_running_loop().call_later(TIMEOUT_S, writer.transport.abort)

    def _respond(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or words[0] not in ("GET", "POST", "HEAD"):
            return _response(400, "text/plain", "bad request\n")
        with_body = words[0] != "HEAD"
        try:
            address = urlsplit(words[1])
            parameters = {name: values[-1] for name, values in parse_qs(address.query).items()}
        except ValueError:
            return _response(400, "text/plain", "bad request\n", with_body=with_body)
        path = address.path.strip("/")
        if path.partition("/")[0] in NOT_DRAWN:
            text = f"/{path}: the embedded broker has no graphs and no profiler; see /stats.json\n"
            return _response(404, "text/plain", text, with_body=with_body)
        command, _, form = path.partition(".")
        run = self._COMMANDS.get(command)
        if run is None or form not in ("", "json", "txt"):
            return _response(404, "text/plain", "no such command\n", with_body=with_body)
        try:
            answer = run(self, parameters)
        except ValueError as error:
            return _response(400, "text/plain", f"{error}\n", with_body=with_body)
        if form == "txt":
            return _response(200, "text/plain", _as_text(answer), with_body=with_body)
        body = answer if isinstance(answer, dict) else {"response": answer}
        return _response(
            200, "application/json", json.dumps(body, separators=(",", ":")) + "\n", with_body=with_body
        )

    # Commands

    def _ping(self, parameters: dict[str, str]) -> Answer:
        return "pong"

    def _stats(self, parameters: dict[str, str]) -> Answer:
        period = parameters.get("period")
        if period is not None and not (
            period.isascii() and period.isdigit() and 0 < int(period[:9]) <= MAX_PERIOD_S and len(period) < 9
        ):
            raise ValueError(f"period must be seconds from 1 to {MAX_PERIOD_S}")
        return self._broker.stats.admin(
            period_s=int(period) if period else None, namespace=parameters.get("namespace")
        )

    def _server_info(self, parameters: dict[str, str]) -> Answer:
        started = time.gmtime(self._broker.started_ms / 1000)
        return {
            "name": "kestrel",
            "version": SERVER_VERSION,
            "build": "embedded",
            "build_revision": "",
            "build_branch_name": "",
            "build_last_few_commits": [],
            "start_time": time.strftime("%a %b %d %H:%M:%S UTC %Y", started),
            "uptime": self._broker.uptime_ms,
        }

    def _threads(self, parameters: dict[str, str]) -> Answer:
        frames = sys._current_frames()
        return {
            "threads": {
                str(thread.ident): {
                    "thread": thread.name,
                    "daemon": thread.daemon,
                    "stack": [
                        f"{frame.filename}:{frame.lineno} {frame.name}"
                        for frame in reversed(traceback.extract_stack(frames.get(thread.ident or 0)))
                    ],
                }
                for thread in threading.enumerate()
            }
        }

    def _gc(self, parameters: dict[str, str]) -> Answer:
        return self._soon(gc.collect)

    def _reload(self, parameters: dict[str, str]) -> Answer:
        return self._soon(self._broker.reload, "the admin reload")

    def _shutdown(self, parameters: dict[str, str]) -> Answer:
        self._broker.request_stop("the admin shutdown", delay_s=DELAY_S)
        return "ok"

    def _quiesce(self, parameters: dict[str, str]) -> Answer:
        self._broker.request_stop("the admin quiesce", delay_s=DELAY_S)
        return "ok"

    def _logging(self, parameters: dict[str, str]) -> Answer:
        name, level = parameters.get("name"), parameters.get("level", "").upper()
        known = sorted(each for each in logging.root.manager.loggerDict if each.startswith("kestrel"))
        if not level:
            levels = {
                each: logging.getLevelName(logging.getLogger(each).getEffectiveLevel()) for each in known
            }
            return {"root": logging.getLevelName(logging.root.level), **levels}
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        if name and name not in known:
            raise ValueError(f"no logger has this name; known are {', '.join(known)}; no name is all of them")
        logging.getLogger(name or None).setLevel(LEVELS[level])
        log.log(logging.WARNING, "the log level of %s is %s", name or "everything", level)
        return f"Successfully changed the level of the following logger(s): {name or 'root'}"

    @staticmethod
    def _soon(work: Callable[..., object], *arguments: object) -> str:
        asyncio.get_running_loop().call_later(DELAY_S, work, *arguments)
        return "ok"

    _COMMANDS: dict[str, Callable[[AdminServer, dict[str, str]], Answer]] = {  # noqa: RUF012
        "ping": _ping,
        "stats": _stats,
        "server_info": _server_info,
        "threads": _threads,
        "gc": _gc,
        "reload": _reload,
        "shutdown": _shutdown,
        "quiesce": _quiesce,
        "logging": _logging,
    }


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, number = line.partition(b":")
        if name.strip().lower() == b"content-length" and number.strip().isdigit():
            return int(number.strip()[:9])
    return 0


def _as_text(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer + "\n"
    lines = []
    for key, entry in sorted(answer.items()):
        if isinstance(entry, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {_in_line(number)}" for name, number in sorted(entry.items())]
        else:
            lines.append(f"{key}: {_in_line(entry)}")
    return "\n".join(lines) + "\n"


def _in_line(entry: object) -> str:
    if isinstance(entry, dict):
        return "(" + ", ".join(f"{name}={_in_line(value)}" for name, value in entry.items()) + ")"
    if isinstance(entry, list):
        return "(" + ", ".join(_in_line(value) for value in entry) + ")"
    return str(entry)


def _response(status: int, kind: str, text: str, *, with_body: bool = True) -> bytes:
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    body = text.encode("utf-8")
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
