"""The memcache protocol of Kestrel 2.4.1: bytes to requests, and the fixed replies. No I/O here.

Source of the rules: observed on Kestrel 2.4.1. Three limits are ours, because Kestrel has none: the
length of a line, the size of an item (what a journal record can hold), and data beyond the queue's
max_item_size is skipped instead of being collected.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_LINE = 1 << 20
"""Bytes of one command line; a longer one is not a client of ours."""

MAX_ITEM = (1 << 31) - 1 - 64
"""Bytes of one item; a journal record gives its length as a signed 32-bit integer."""

SMALL_ITEM = 64 * 1024
"""Up to here an item is collected before anybody asks whether its queue takes it."""

STORAGE_COMMANDS = frozenset({"set", "add", "replace", "append", "prepend", "cas"})

STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
END = b"END\r\n"
DELETED = b"DELETED\r\n"
ERROR = b"ERROR\r\n"
CLIENT_ERROR = b"CLIENT_ERROR\r\n"
SERVER_ERROR = b"SERVER_ERROR\r\n"

_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,10})\Z")


class HangUp(Exception):  # noqa: N818 (an instruction to the connection, not always an error)
    """Close the connection, after ``reply`` if there is one; without a reply is Kestrel's silent close."""

    def __init__(self, reply: bytes = b"", why: str = ""):
        super().__init__(why or reply.decode("latin-1").strip())
        self.reply = reply


@dataclass(slots=True)
class Request:
    """One request: the words of its line, and the data of a storage command.

    ``too_large`` is the size of data that was longer than the queue takes and was thrown away unread, else 0.
    """

    words: list[str]
    data: bytes | None = None
    too_large: int = 0

    def word(self, index: int) -> str:
        """Return the word at ``index``; a missing one is a silent close, as in Kestrel."""
        if index >= len(self.words):
            raise HangUp(why=f"{self.words[0]} lacks an argument")
        return self.words[index]


def integer(text: str) -> int:
    """Return a signed 32-bit integer as Kestrel reads it; anything else is a silent close."""
    if len(text) < 10 and text.isdigit() and text.isascii():
        return int(text)
    found = _INTEGER.match(text)
    if found:
        value = int(found[1] + found[2])
        if -(1 << 31) <= value < 1 << 31:
            return value
    raise HangUp(why=f"not an integer: {text[:40]!r}")


class RequestParser:
    """Cuts a stream of bytes into requests, however the bytes arrive.

    Between requests it holds nothing, so that ten thousand idle connections cost nothing here.
    """

    __slots__ = ("_at", "_buffer", "_data_size", "_item_limit", "_pending", "_searched")

    def __init__(self, item_limit: Callable[[str], int | None]):
        """``item_limit`` gives the greatest item, in bytes, that the named queue takes (None: any)."""
        self._item_limit = item_limit
        self._buffer: bytes | bytearray = b""
        self._at = 0  # where in the buffer the next request begins
        self._searched = 0  # up to where there is no line end
        self._pending: Request | None = None
        self._data_size = 0

    @property
    def buffered(self) -> int:
        """Bytes received and not yet part of a request."""
        return len(self._buffer) - self._at

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        if self._at == len(self._buffer):
            self._buffer = chunk
            self._at = self._searched = 0
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(memoryview(self._buffer)[self._at :])
            self._searched = max(0, self._searched - self._at)
            self._at = 0
        elif self._at > SMALL_ITEM:
            del self._buffer[: self._at]
            self._searched = max(0, self._searched - self._at)
            self._at = 0
        self._buffer += chunk

    def next(self) -> Request | None:
        """Return the next complete request, or None until more bytes come; HangUp if it makes no sense."""
        if self._pending is None:
            if self._at == len(self._buffer):
                self._buffer = b""
                self._at = self._searched = 0
                return None
            request = self._read_line()
            if self._pending is None:
                return request
        return self._read_data()

    def _read_line(self) -> Request | None:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", max(at, self._searched))
        if end < 0:
            self._searched = len(buffer)
            if len(buffer) - at > MAX_LINE:
                raise HangUp(why=f"a line of more than {MAX_LINE} bytes")
            return None
        self._at = end + 1
        line = buffer[at:end].decode("latin-1")
        words = line.removesuffix("\r").rstrip(" ").split(" ")
        words[0] = words[0].lower()
        request = Request(words)
        if words[0] in STORAGE_COMMANDS:
            self._expect_data(request)
        return request

    def _expect_data(self, request: Request) -> None:
        size = integer(request.word(4))
        if not 0 <= size <= MAX_ITEM:
            raise HangUp(why=f"impossible data size {size}")
        if size > SMALL_ITEM:
            limit = self._item_limit(request.words[1])
            request.too_large = size if limit is not None and size > limit else 0
        self._pending = request
        self._data_size = size + 2  # the two bytes after the data are skipped unread, as Kestrel does

    def _read_data(self) -> Request | None:
        request = self._pending
        if request is None:
            return None
        there = len(self._buffer) - self._at
        if request.too_large:
            skipped = min(self._data_size, there)
            self._at += skipped
            self._data_size -= skipped
            if self._data_size:
                self._buffer = b""
                self._at = self._searched = 0
                return None
        else:
            if there < self._data_size:
                return None
            stop = self._at + self._data_size
            request.data = (
                self._buffer[self._at : stop - 2]
                if isinstance(self._buffer, bytes)
                else bytes(memoryview(self._buffer)[self._at : stop - 2])
            )
            self._at = stop
            if stop == len(self._buffer):  # a large item must not be held twice
                self._buffer = b""
                self._at = self._searched = 0
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
        return _remembered(text) if len(text) <= 300 else _parse_options(text)


def _parse_options(text: str) -> GetOptions:
    if "/" not in text:
        if not text:
            raise HangUp(CLIENT_ERROR)
        return GetOptions(text)
    if not text.strip("/"):
        raise HangUp(why="nothing but slashes")  # Kestrel's splitting finds no key at all here
    key, *options = text.split("/")
    wait_ms = 0
    for option in options:
        if option.startswith("t="):
            wait_ms = integer(option[2:])
    asked = GetOptions(
        key, wait_ms, "open" in options, "close" in options, "abort" in options, "peek" in options
    )
    if (
        not key
        or ((asked.peek or asked.abort) and (asked.open or asked.close))
        or (asked.peek and asked.abort)
    ):
        raise HangUp(CLIENT_ERROR)
    return asked


_remembered = functools.lru_cache(maxsize=1024)(_parse_options)


def value(key: str, data: bytes) -> bytes:
    """Return the reply that carries one item; flags are never stored, so they are always 0."""
    return b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key.encode("latin-1"), len(data), data)
