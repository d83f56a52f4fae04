"""A small blocking client for the memcache protocol as Kestrel speaks it.

Seconds in Python, milliseconds on the wire. Every call ends within its time limits. After any error the
connection is dropped: a reply that was read by half would be taken for the answer to the next command. What
was reserved on a dropped connection goes back to its queue, so a call that must run on the same connection
as an earlier one (`close_read`, `abort_read`) never connects anew.

Source of the protocol facts: observed on Kestrel 2.4.1.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time

from kestrel_stack.queue import names
from kestrel_stack.queue.errors import ProtocolError, QueueFull, ReservationLost, ServerUnavailable
from kestrel_stack.queue.servers import Server
from kestrel_stack.queue.spinning import Spinner

CONNECT_TIMEOUT = 2.0
"""Seconds until a connection must stand."""
READ_TIMEOUT = 5.0
"""Seconds until an answer must be complete, after the time that the server was asked to wait for an item."""
MAX_ITEM_BYTES = 256 * 1024 * 1024
"""An answer that announces more than this is taken for nonsense, before memory is taken for it."""

_MAX_LINE = 64 * 1024
_CHUNK = 64 * 1024


class KestrelClient:
    """One connection to one server, made at the first command and again after an error."""

    def __init__(
        self,
        server: Server,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
    ):
        self.server = server
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._socket: socket.socket | None = None
        self._poller = select.poll()
        self._spinner = Spinner()
        self._buffer = bytearray()
        self._deadline = math.inf
        self.connection = 0
        """Counts the connections made, so that a caller can tell whether two commands used the same one."""

    def set(self, queue: str, data: bytes, expires: float = 0) -> None:
        """Put `data` on `queue`; the server drops it after `expires` seconds (0: never).

        Raises `QueueFull` when the server refuses the item. After `ServerUnavailable` the item may be on the
        queue or not.
        """
        seconds = math.ceil(expires)
        if not 0 <= seconds < 1_000_000:
            # From a million on the server takes the number for a date.
            raise ValueError(f"expires is from 0 to 999,999 seconds, not {expires}")
        header = b"set %b 0 %d %d\r\n" % (self._name(queue), seconds, len(data))
        self._send(header + data + b"\r\n")
        line = self._line()
        if line == b"NOT_STORED":
            raise QueueFull(
                f"{self.server} refused the item for {queue}: the queue is full or the item too large."
            )
        self._expect(line, b"STORED")

    def get(
        self,
        queue: str,
        wait: float = 0,
        *,
        open: bool = False,
        close: bool = False,
        abort: bool = False,
        peek: bool = False,
        same_connection: bool = False,
    ) -> bytes | None:
        """Return the next item of `queue`, or None when there is none within `wait` seconds.

        With `open` the item is only reserved; `close` confirms the oldest reserved one first, `abort` puts it
        back at the head, `peek` looks without taking. With `same_connection` a connection must stand already,
        otherwise `ReservationLost` is raised: a `close` on a new one would be answered, and confirm nothing.
        """
        if peek + abort + (open or close) > 1:
            raise ValueError("peek and abort go with nothing else")
        options = f"/t={round(wait * 1000)}" if wait > 0 else ""
        for name, on in (("close", close), ("open", open), ("abort", abort), ("peek", peek)):
            options += f"/{name}" if on else ""
        if same_connection and not self.connected():
            raise ReservationLost(f"The connection to {self.server} that held an item of {queue} is gone.")
        self._send(b"get %b%b\r\n" % (self._name(queue), options.encode()), max(0.0, wait), same_connection)
        line = self._line()
        if line == b"END":
            return None
        data = self._value(line)
        self._expect(self._line(), b"END")
        return data

    def close_read(self, queue: str) -> None:
        """Confirm the oldest reserved item of `queue`; `ReservationLost` when its connection is gone."""
        self.get(queue, close=True, same_connection=True)

    def abort_read(self, queue: str) -> None:
        """Put the oldest reserved item of `queue` back at its head, unless its connection is gone."""
        self.get(queue, abort=True, same_connection=True)

    def delete(self, queue: str) -> None:
        """Remove `queue` with everything in it."""
        self._command(b"delete " + self._name(queue), b"DELETED")

    def flush(self, queue: str) -> None:
        """Remove every item of `queue`; reserved ones survive."""
        self._command(b"flush " + self._name(queue), b"END")

    def version(self) -> str:
        """Return the server's version, for example ``2.4.1``."""
        self._send(b"version\r\n")
        line = self._line()
        word, _, version = line.partition(b" ")
        self._expect(word, b"VERSION", line)
        return version.decode("latin-1")

    def status(self) -> str:
        """Return ``UP``, ``READONLY`` or ``QUIESCENT``."""
        self._send(b"status\r\n")
        line = self._line()
        if line not in (b"UP", b"READONLY", b"QUIESCENT", b"DOWN"):
            self._unexpected(line)
        return line.decode("ascii")

    def stats(self) -> dict[str, str]:
        """Return all numbers of the server by name, for example ``queue_shop_mail_items``."""
        self._send(b"stats\r\n")
        found: dict[str, str] = {}
        while (line := self._line()) != b"END":
            word, _, rest = line.partition(b" ")
            self._expect(word, b"STAT", line)
            name, _, value = rest.decode("latin-1").partition(" ")
            found[name] = value
        return found

    def items(self, queue: str) -> int:
        """Return how many items `queue` holds, without those that are reserved; 0 when it does not exist."""
        # Not by `stats`, which has the numbers of every queue; and nothing that takes, since Kestrel makes a
        # queue that is asked for an item.
        self._send(b"dump_stats %b\r\n" % self._name(queue))
        line = self._line()
        self._expect(line.partition(b" ")[0], b"queue", line)
        items = 0
        while (line := self._line()) != b"END":
            key, _, value = line.strip().partition(b"=")
            if key == b"items" and value.isdigit():
                items = int(value)
        return items

    def limit(self, connect: float, read: float) -> None:
        """Set how long the next commands may take, in seconds: to connect, and to get the answer."""
        self._connect_timeout = connect
        self._read_timeout = read

    def fileno(self) -> int | None:
        """Return the connection's file descriptor, to see its end with `poll`; None without a connection."""
        return None if self._socket is None else self._socket.fileno()

    def connected(self) -> bool:
        """Say whether the connection stands, without sending anything.

        Between two commands a server has nothing to say: what can be read then is the connection's end, or
        the late half of an answer that nobody waits for any more.
        """
        if self._socket is None:
            return False
        try:
            quiet = not self._poller.poll(0) and not self._buffer
        except OSError:
            quiet = False
        if not quiet:
            self.disconnect()
        return quiet

    def disconnect(self) -> None:
        """Drop the connection; what is reserved on it goes back to its queue."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None
        self._buffer.clear()

    def __enter__(self) -> KestrelClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def _connect(self) -> socket.socket:
        try:
            made = socket.create_connection((self.server.host, self.server.port), self._connect_timeout)
        except (OSError, UnicodeError) as exc:
            raise ServerUnavailable(f"{self.server} is not reachable: {_reason(exc)}.") from None
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A server that lost its power says nothing; a minute later its connection counts as gone.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = made
        self._poller = select.poll()
        self._poller.register(made, select.POLLIN | select.POLLHUP | select.POLLERR)
        self._buffer.clear()
        self.connection += 1
        return made

    def _send(self, request: bytes, extra: float = 0.0, same_connection: bool = False) -> None:
        """Send a request and start the clock for its answer: `extra` seconds and the usual limit."""
        connection = self._socket if same_connection or self.connected() else self._connect()
        assert connection is not None
        self._deadline = time.monotonic() + self._read_timeout + extra
        try:
            connection.settimeout(self._left())
            connection.sendall(request)
        except BaseException as exc:
            self._fail(exc)

    def _name(self, queue: str) -> bytes:
        """Return how `queue` is called on the wire; an operator's tool may know more names than producers."""
        return names.check(queue).encode("ascii")

    def _command(self, request: bytes, answer: bytes) -> None:
        self._send(request + b"\r\n")
        self._expect(self._line(), answer)

    def _line(self) -> bytes:
        """Return the next line of the answer without its end."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            if len(self._buffer) > _MAX_LINE:
                self._unexpected(bytes(self._buffer))
            start = len(self._buffer)
            self._receive()
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return line

    def _value(self, header: bytes) -> bytes:
        """Return the data that follows a ``VALUE <key> 0 <bytes>`` line."""
        parts = header.split(b" ")
        if parts[0] != b"VALUE" or len(parts) != 4 or not parts[3].isdigit() or len(parts[3]) > 12:
            self._unexpected(header)
        size = int(parts[3])
        if size > MAX_ITEM_BYTES:
            self._unexpected(header)
        while len(self._buffer) < size + 2:
            self._receive()
        data = bytes(self._buffer[:size])
        if self._buffer[size : size + 2] != b"\r\n":
            self._unexpected(bytes(self._buffer[size : size + 20]))
        del self._buffer[: size + 2]
        return data

    def _receive(self) -> None:
        try:
            if self._socket is None:
                raise ConnectionResetError("the connection was dropped")
            self._socket.settimeout(self._left())
            self._spinner.look(self._look)
            received = self._socket.recv(_CHUNK)
            self._spinner.note()
            if not received:
                raise ConnectionResetError("the server closed the connection")
        except BaseException as exc:
            self._fail(exc)
        self._buffer += received

    def _look(self) -> list[tuple[int, int]]:
        return self._poller.poll(0)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _expect(self, word: bytes, wanted: bytes, line: bytes | None = None) -> None:
        if word != wanted:
            self._unexpected(word if line is None else line)

    def _unexpected(self, line: bytes) -> None:
        self.disconnect()
        shown = line[:100].decode("ascii", "backslashreplace")
        if line.startswith(b"SERVER_ERROR"):
            # This is how a server answers that was told to be read-only or quiescent.
            raise ServerUnavailable(f"{self.server} refused with {shown!r}; its status is not UP.")
        raise ProtocolError(f"{self.server} answered {shown!r}, which was not expected.")

    def _fail(self, exc: BaseException) -> None:
        self.disconnect()
        if isinstance(exc, OSError):
            raise ServerUnavailable(f"{self.server} gave no answer: {_reason(exc)}.") from None
        raise exc


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "timed out"
    return str(getattr(exc, "strerror", None) or exc)
