"""The key of a queue: its name as plain ASCII, for addresses, rows, files and JSON.

A name on a server may hold any byte but ``.``, ``/``, ``~``, space, line feed and NUL (source: observed),
so it need not be text at all. In its key letters, digits, ``_`` and ``-`` stand for themselves and any other
byte is ``~XX``, its value in hexadecimal: the key of ``shop_mail`` is ``shop_mail``, that of
``shop_mail+audit`` is ``shop_mail~2Baudit``. ``~`` is free for that, since no name holds one.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_NAME_BYTES = 255
"""No name is longer: it is a file's name on its server."""

_ILLEGAL = re.compile(rb"[./~ \n\0]")
_KEY = re.compile(r"(?:[A-Za-z0-9_-]|~[0-9A-F]{2})+")
_OTHER = re.compile(rb"[^A-Za-z0-9_-]")


def make(name: bytes) -> str:
    """Return the key of a queue's name."""
    return _OTHER.sub(lambda match: b"~%02X" % match[0][0], name).decode("ascii")


def legal(name: bytes) -> bool:
    """Say whether a server could be asked about a queue of this name."""
    return 0 < len(name) <= MAX_NAME_BYTES and not _ILLEGAL.search(name)


def parse(key: str) -> bytes:
    """Return the name that a key stands for; raise `ValueError` when it is no name's key."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a queue")
    name = re.sub(rb"~([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), key.encode("ascii"))
    if not legal(name) or make(name) != key:
        raise ValueError(f"{key!r} is not the key of a queue")
    return name


@lru_cache(maxsize=16384)
def show(key: str) -> str:
    r"""Return the name for people to read: as text where it is UTF-8, other bytes as ``\xNN``.

    What would move a cursor or turn the text's direction is escaped too.
    """
    text = parse(key).decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
