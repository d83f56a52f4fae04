"""Ports of loopback that are given to nobody else while a test needs them."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def hold(host: str = "127.0.0.1") -> socket.socket:
    """Return a socket with a port that nobody else is given until it is closed; it does not listen.

    Who connects is refused. A server that is told the port can listen there, and again after it has ended,
    since servers reuse addresses. A port that is asked for and closed again is, on a busy machine, the next
    one's who asks.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


def reserve() -> int:
    """Return a port that is held until this process ends."""
    _reserved.append(hold())
    return _reserved[-1].getsockname()[1]


def nobody() -> str:
    """Return an address at which nobody listens."""
    return f"127.0.0.1:{reserve()}"
