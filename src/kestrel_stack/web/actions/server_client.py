"""One server as an operator sees it: commands for queues of any legal name, each within a bounded time.

A queue is given by its key (see `keys`). What `KestrelClient` calls unavailable is told apart here, since an
operator must know whether a command may have been done: `NotReached` is before anything was sent, `NotDone`
is a refusal, `Unknown` is silence after sending.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.errors import ProtocolError, QueueError, QueueFull, ServerUnavailable
from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys

CONNECT_S = 2.0
READ_S = 5.0
RELOAD_S = 20.0
"""A real Kestrel compiles its configuration before it answers, for seconds."""
SETTLE_S = 5.0
"""Until a server shows what it was told: its new status, or that it is gone."""
NAMES_AT_ONCE = 50
"""Queues whose numbers are asked for in one line."""
WHOLE_BYTES = 4 * 1024 * 1024
"""Up to here an item is read whole for a look; of a larger one only the first bytes are read."""

STATUSES = ("UP", "READONLY", "QUIESCENT")


class ServerError(Exception):
    """A command to one server that did not do what it should; the message is one line."""


class NotReached(ServerError):  # noqa: N818 - it names what is the matter
    """No connection: nothing was sent."""


class NotDone(ServerError):  # noqa: N818
    """The server refused: nothing was changed."""


class Unknown(ServerError):  # noqa: N818
    """No answer after the command was sent: it may have been done."""


@dataclass(frozen=True)
class Present:
    """What one server says of one queue at this moment; without `exists` all of it is 0."""

    exists: bool = False
    items: int = 0
    bytes: int = 0
    waiters: int = 0
    open_transactions: int = 0
    children: tuple[str, ...] = ()
    """Keys of its fanouts."""
    alias: bool = False
    """It is no queue but another name for some."""


@dataclass(frozen=True)
class Item:
    """The head of a queue: the bytes that were read of it, and how many it has."""

    body: bytes
    size: int


class ServerClient(KestrelClient):
    """One connection to one server for an operator's commands; `ServerError` says why one was not done."""

    def __init__(self, server: Server, read_s: float = READ_S, connect_s: float = CONNECT_S):
        super().__init__(server, connect_s, read_s)
        self._read_s = read_s
        self._keep: int | None = None
        self._size = 0

    def present(self, queues: Iterable[str]) -> dict[str, Present]:
        """Return the numbers of some queues; asking never makes one."""
        wanted = list(dict.fromkeys(queues))
        found: dict[str, Present] = {}
        with self._told("show its numbers"):
            for start in range(0, len(wanted), NAMES_AT_ONCE):
                part = wanted[start : start + NAMES_AT_ONCE]
                self._send(b"dump_stats %b\r\n" % b" ".join(map(self._name, part)))
                for key in part:
                    found[key] = self._block()
                self._expect(self._line(), b"END")
        return found

    def flush_queue(self, queue: str) -> None:
        """Remove every item of a queue; reserved ones stay."""
        with self._told("flush"):
            self.flush(queue)

    def delete_queue(self, queue: str) -> None:
        """Remove a queue with everything in it."""
        with self._told("delete"):
            self.delete(queue)

    def flush_expired(self, queue: str | None = None) -> int:
        """Remove expired items of one queue, or of all; return how many there were."""
        command = b"flush_all_expired" if queue is None else b"flush_expired " + self._name(queue)
        with self._told(command.partition(b" ")[0].decode()):
            self._send(command + b"\r\n")
            line = self._line()
            if not line.isdigit():
                self._unexpected(line)
            return int(line)

    def put(self, queue: str, body: bytes) -> None:
        """Put one item on a queue, which is made if there is none."""
        with self._told("take an item"):
            self.set(queue, body)

    def head(self, queue: str, keep: int = WHOLE_BYTES) -> Item | None:
        """Return the head of a queue and leave it there; at most `keep` bytes of it are read.

        A queue without items is not asked, since Kestrel makes one that it is asked for an item of.
        """
        if not self.present([queue])[queue].items:
            return None
        self._keep = keep
        try:
            with self._told("show the head of a queue"):
                self._send(b"get %b/peek\r\n" % self._name(queue))
                line = self._line()
                if line == b"END":
                    return None
                body = self._value(line)
                if len(body) == self._size:
                    self._expect(self._line(), b"END")
                return Item(body, self._size)
        finally:
            self._keep = None

    def reload(self) -> None:
        """Have the server read its configuration again; it answers the same when that is wrong."""
        self.limit(CONNECT_S, RELOAD_S)
        try:
            with self._told("reload"):
                self._command(b"reload", b"Reloaded config.")
        finally:
            self.limit(CONNECT_S, self._read_s)

    def set_status(self, status: str) -> str:
        """Tell the server to be UP, READONLY or QUIESCENT; return what it says it is, some time later."""
        if status not in STATUSES:
            raise ValueError(f"{status!r} is no status; there are {', '.join(STATUSES)}")
        with self._told(f"be {status}"):
            self._command(b"status " + status.lower().encode(), b"END")
        # A server may have been configured to let clients go first.
        deadline = time.monotonic() + SETTLE_S
        while (now := self.server_status()) != status and time.monotonic() < deadline:
            time.sleep(0.1)
        return now

    def server_status(self) -> str:
        """Return the server's status."""
        with self._told("say its status"):
            return self.status()

    def shutdown(self) -> bool:
        """Stop the server; say whether it was seen to be gone. It closes the connection without a reply."""
        with self._told("shut down"):
            self.version()
            self._send(b"shutdown\r\n")
        try:
            line = self._line()
        except ServerUnavailable:
            pass
        else:
            self.disconnect()
            raise NotDone(f"{self.server} answered {_short(line)} and was not shut down.")
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            try:
                self._connect()
            except ServerUnavailable:
                return True
            self.disconnect()
            time.sleep(0.1)
        return False

    def _name(self, queue: str) -> bytes:
        return keys.parse(queue)

    def _block(self) -> Present:
        """Read one block of ``dump_stats``: ``queue 'NAME' {``, lines ``key=value``, ``}``."""
        line = self._line()
        self._expect(line.partition(b" ")[0], b"queue", line)
        numbers: dict[bytes, bytes] = {}
        while (line := self._line()) != b"}":
            key, _, value = line.strip().partition(b"=")
            numbers[key] = value

        def number(key: bytes) -> int:
            value = numbers.get(key, b"")
            return int(value) if value.isdigit() and len(value) < 20 else 0

        return Present(
            exists=b"items" in numbers,
            items=number(b"items"),
            bytes=number(b"bytes"),
            waiters=number(b"waiters"),
            open_transactions=number(b"open_transactions"),
            children=tuple(keys.make(name) for name in numbers.get(b"children", b"").split(b",") if name),
            alias=b"put_items" in numbers and b"items" not in numbers,
        )

    def _value(self, header: bytes) -> bytes:
        keep = self._keep
        words = header.split(b" ")
        size = int(words[3]) if len(words) == 4 and words[3].isdigit() and len(words[3]) <= 12 else 0
        self._size = size
        if keep is None or size <= keep or words[0] != b"VALUE":
            return super()._value(header)
        while len(self._buffer) < keep:
            self._receive()
        body = bytes(self._buffer[:keep])
        # The rest may be hundreds of megabytes: it is cheaper to hang up than to read it.
        self.disconnect()
        return body

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Connect, and tell refusals from silence."""
        if not self.connected():
            try:
                self._connect()
            except ServerUnavailable as exc:
                raise NotReached(f"{exc} Nothing was sent to it.") from None
        try:
            yield
        except QueueFull:
            raise NotDone(
                f"{self.server} refused the item: the queue is full or the item too large."
            ) from None
        except (ServerUnavailable, ProtocolError) as exc:
            raise self._why(str(exc), what) from None
        except QueueError as exc:
            raise NotDone(str(exc)) from None

    def _why(self, said: str, what: str) -> ServerError:
        """Return the error with its reason: a server that is not UP refuses, in one case without a word."""
        refused = "SERVER_ERROR" in said
        closed = "closed the connection" in said or "reset by peer" in said
        if refused or closed:
            status = self._status_now()
            if status in ("READONLY", "QUIESCENT"):
                how = "answers SERVER_ERROR" if refused else "closes without a reply"
                return NotDone(
                    f"{self.server} is {status} and refuses to {what} (it {how}): set it to UP first."
                )
            if refused:
                return NotDone(f"{self.server} answered SERVER_ERROR: it refuses to {what}; see its log.")
            return Unknown(
                f"{self.server} closed the connection without a reply: so it does with a name that is not "
                f"legal, and when it stops. Whether it did {what} is not known; look again."
            )
        if "answered" in said:
            return NotDone(said)
        return Unknown(f"{said} It may have been done all the same; look again.")

    def _status_now(self) -> str | None:
        with contextlib.suppress(QueueError), KestrelClient(self.server, 1.0, 2.0) as other:
            return other.status()
        return None


def _short(line: bytes) -> str:
    return repr(line[:100].decode("ascii", "backslashreplace"))
