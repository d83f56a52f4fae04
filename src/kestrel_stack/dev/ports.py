"""Ports of loopback that nobody listens on."""

from __future__ import annotations

import socket

TRIES = 20


def is_free(port: int) -> bool:
    """Say whether a server could listen on the port now."""
    with socket.socket() as sock:
        # As servers do: a connection that ended a moment ago does not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            return False
    return True


def free_from(port: int) -> int:
    """Return the port, else the next free one of those above it, else any free one."""
    for candidate in range(port, min(port + TRIES, 65536)):
        if is_free(candidate):
            return candidate
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
