"""A TCP connection on which everything has to be done by a deadline, however a server drips or hangs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from kestrel_stack.queue.servers import Server

CHUNK = 256 * 1024
MAX_BYTES = 64 * 1024 * 1024
"""An answer that gets longer is taken for nonsense."""


class LineError(Exception):
    """A server that could not be asked; the message is a few words and does not name it."""


class Closed(LineError):  # noqa: N818 - it names what is the matter
    """The server closed the connection."""


class Line:
    """One connection to one server; `deadline` is a moment of the monotonic clock."""

    def __init__(self, server: Server, deadline: float, monotonic: Callable[[], float] = time.monotonic):
        self._monotonic = monotonic
        self._rest = b""
        self.deadline = deadline
        try:
            self._socket = self._connect(server)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, UnicodeError) as error:
            raise LineError(reason(error)) from None

    def _connect(self, server: Server) -> socket.socket:
        # Not by `create_connection`, which gives each address of a name the whole time.
        failure: OSError = OSError(f"{server.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM
        ):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self._left())
                made.connect(address)
            except OSError as error:
                made.close()
                failure = error
            else:
                return made
        raise failure

    def send(self, request: bytes) -> None:
        """Send all of a request."""
        try:
            self._socket.settimeout(self._left())
            self._socket.sendall(request)
        except ConnectionError as error:
            raise Closed(reason(error)) from None
        except OSError as error:
            raise LineError(reason(error)) from None

    def until(self, end: bytes, most: int = MAX_BYTES) -> bytes:
        """Return the answer up to and without its `end`, which follows a line's end or comes first."""
        parts: list[bytes] = []
        size = 0
        tail = self._rest
        self._rest = b""
        while True:
            at = tail.find(end)
            if at >= 0:
                found = b"".join((*parts, tail[:at]))
                self._rest = tail[at + len(end) :]
                return found
            # What might be the beginning of the end stays in the tail.
            keep = len(end) - 1
            if len(tail) > keep:
                cut = len(tail) - keep
                parts.append(tail[:cut])
                size += cut
                tail = tail[cut:]
            if size > most:
                raise LineError(f"its answer has no end within {most} bytes")
            tail += self._receive()

    def line(self) -> bytes:
        """Return the next line without its end."""
        return self.until(b"\n", 64 * 1024).removesuffix(b"\r")

    def everything(self, size: int | None = None) -> bytes:
        """Return `size` bytes, or all until the server closes."""
        parts = [self._rest]
        got = len(self._rest)
        self._rest = b""
        while size is None or got < size:
            try:
                chunk = self._receive()
            except Closed:
                if size is None:
                    break
                raise
            parts.append(chunk)
            got += len(chunk)
            if got > MAX_BYTES:
                raise LineError(f"its answer has no end within {MAX_BYTES} bytes")
        return b"".join(parts)[:size]

    def idle(self) -> bool:
        """Say whether nothing waits to be read, as it must be between two requests."""
        if self._rest:
            return False
        try:
            self._socket.setblocking(False)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            self._socket.settimeout(self._left())
            chunk = self._socket.recv(CHUNK)
        except ConnectionError as error:
            raise Closed(reason(error)) from None
        except OSError as error:
            raise LineError(reason(error)) from None
        if not chunk:
            raise Closed("closed the connection")
        return chunk

    def _left(self) -> float:
        left = self.deadline - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def reason(error: BaseException) -> str:
    """Return why something failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error).lower() or type(error).__name__
