"""The memcache protocol of Kestrel 2.4.1: bytes to requests, and the fixed replies. No I/O here.

Source of the rules: observed on Kestrel 2.4.1. Two limits are ours, because Kestrel has none: the
length of a line, and data beyond the queue's max_item_size is skipped instead of being collected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_LINE = 1 << 20
"""Bytes of one command line; a longer one is not a client of ours."""

STORAGE_COMMANDS = frozenset({"set", "add", "replace", "append", "prepend", "cas"})

STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
END = b"END\r\n"
DELETED = b"DELETED\r\n"
ERROR = b"ERROR\r\n"
CLIENT_ERROR = b"CLIENT_ERROR\r\n"
SERVER_ERROR = b"SERVER_ERROR\r\n"

_INTEGER = re.compile(r"[+-]?[0-9]+\Z")


class HangUp(Exception):  # noqa: N818 (an instruction to the connection, not always an error)
    """Close the connection, after ``reply`` if there is one; without a reply is Kestrel's silent close."""

    def __init__(self, reply: bytes = b"", why: str = ""):
        super().__init__(why or reply.decode("latin-1").strip())
        self.reply = reply


@dataclass(slots=True)
class Request:
    """One request: the words of its line, and the data of a storage command.

    ``too_large`` says that the data was longer than the queue takes and was thrown away unread.
    """

    words: list[str]
    data: bytes | None = None
    too_large: bool = False

    def word(self, index: int) -> str:
        """Return the word at ``index``; a missing one is a silent close, as in Kestrel."""
        if index >= len(self.words):
            raise HangUp(why=f"{self.words[0]} lacks an argument")
        return self.words[index]


def integer(text: str) -> int:
    """Return a signed 32-bit integer as Kestrel reads it; anything else is a silent close."""
    if _INTEGER.match(text):
        value = int(text)
        if -(1 << 31) <= value < 1 << 31:
            return value
    raise HangUp(why=f"not an integer: {text[:40]!r}")


class RequestParser:
    """Cuts a stream of bytes into requests, however the bytes arrive."""

    def __init__(self, item_limit: Callable[[str], int | None]):
        """``item_limit`` gives the greatest item, in bytes, that the named queue takes (None: any)."""
        self._item_limit = item_limit
        self._buffer = bytearray()
        self._searched = 0
        self._pending: Request | None = None
        self._data_size = 0

    @property
    def buffered(self) -> int:
        """Bytes received and not yet part of a request."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += chunk

    def next(self) -> Request | None:
        """Return the next complete request, or None until more bytes come; HangUp if it makes no sense."""
        if self._pending is None:
            request = self._read_line()
            if request is None or self._pending is None:
                return request
        return self._read_data()

    def _read_line(self) -> Request | None:
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > MAX_LINE:
                raise HangUp(why=f"a line of more than {MAX_LINE} bytes")
            return None
        line = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 1]
        self._searched = 0
        words = line.removesuffix("\r").rstrip(" ").split(" ")
        words[0] = words[0].lower()
        request = Request(words)
        if words[0] in STORAGE_COMMANDS:
            self._expect_data(request)
        return request

    def _expect_data(self, request: Request) -> None:
        size = integer(request.word(4))
        if size < 0:
            raise HangUp(why=f"negative data size {size}")
        limit = self._item_limit(request.words[1])
        request.too_large = limit is not None and size > limit
        self._pending = request
        self._data_size = size + 2  # the two bytes after the data are skipped unread, as Kestrel does

    def _read_data(self) -> Request | None:
        request = self._pending
        if request is None:
            return None
        if request.too_large:
            skipped = min(self._data_size, len(self._buffer))
            del self._buffer[:skipped]
            self._data_size -= skipped
            if self._data_size:
                return None
        else:
            if len(self._buffer) < self._data_size:
                return None
            request.data = bytes(memoryview(self._buffer)[: self._data_size - 2])
            del self._buffer[: self._data_size]
        self._pending = None
        return request


@dataclass(frozen=True, slots=True)
class GetOptions:
    """What follows the key of a get: ``/t=<ms>``, ``/open``, ``/close``, ``/abort``, ``/peek``."""

    key: str
    wait_ms: int = 0
    open: bool = False
    close: bool = False
    abort: bool = False
    peek: bool = False

    @classmethod
    def parse(cls, text: str) -> GetOptions:
        """Parse ``key[/option…]``; unknown options are ignored; CLIENT_ERROR and close if they contradict."""
        if "/" not in text:
            if not text:
                raise HangUp(CLIENT_ERROR)
            return cls(text)
        key, *options = text.split("/")
        wait_ms = 0
        for option in options:
            if option.startswith("t="):
                wait_ms = integer(option[2:])
        asked = cls(
            key, wait_ms, "open" in options, "close" in options, "abort" in options, "peek" in options
        )
        if (
            not key
            or ((asked.peek or asked.abort) and (asked.open or asked.close))
            or (asked.peek and asked.abort)
        ):
            raise HangUp(CLIENT_ERROR)
        return asked


def value(key: str, data: bytes) -> bytes:
    """Return the reply that carries one item; flags are never stored, so they are always 0."""
    return b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key.encode("latin-1"), len(data), data)
