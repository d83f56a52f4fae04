"""The messages between a worker and its child: a JSON head and, for a job, the item's bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

_SIZES = struct.Struct(">II")
CHUNK = 64 * 1024
"""How much is received at once; of much more, the memory would be asked of the system for each message."""
MAX_HEAD = 8 * 1024 * 1024
MAX_BODY = 512 * 1024 * 1024


class BrokenFrame(Exception):  # noqa: N818 - it names what was received
    """Bytes that are not a message; nothing after them can be understood either."""


def encode(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a message as bytes."""
    data = json.dumps(head).encode("ascii")
    return _SIZES.pack(len(data), len(body)) + data + body


class Decoder:
    """Turns received bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Return the messages that `data` completes; raise `BrokenFrame` on nonsense."""
        self._buffer += data
        found: list[tuple[dict[str, Any], bytes]] = []
        while len(self._buffer) >= _SIZES.size:
            head_size, body_size = _SIZES.unpack_from(self._buffer)
            if head_size > MAX_HEAD or body_size > MAX_BODY:
                raise BrokenFrame(f"a message of {head_size} and {body_size} bytes was announced")
            end = _SIZES.size + head_size + body_size
            if len(self._buffer) < end:
                break
            try:
                head = json.loads(self._buffer[_SIZES.size : _SIZES.size + head_size].decode())
            except ValueError as exc:
                raise BrokenFrame(f"a message's head is not JSON: {exc}") from None
            if not isinstance(head, dict):
                raise BrokenFrame("a message's head is not an object")
            found.append((head, bytes(self._buffer[_SIZES.size + head_size : end])))
            del self._buffer[:end]
        return found
