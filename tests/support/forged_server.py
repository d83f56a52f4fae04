"""Servers that are no Kestrel, or a hostile one: they hang, drip, babble, or say what no Kestrel would."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

GREETING = b"VERSION 2.4.1\r\nUP\r\n"
Talk = Callable[[socket.socket], None]


class ForgedServer:
    """Listens on a free port of loopback; `talk` has each connection to itself. A context manager."""

    def __init__(self, talk: Talk):
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                self._sockets.append(one)
                threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: socket.socket) -> None:
        with contextlib.suppress(OSError), one:
            self._talk(one)

    def __enter__(self) -> ForgedServer:
        return self

    def __exit__(self, *_: object) -> None:
        # Not close() alone: a thread waits in accept().
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def silent(one: socket.socket) -> None:
    """Accept, and never answer."""
    while one.recv(65536):
        pass


def says(answer: bytes, again: bool = False) -> Talk:
    """Answer the first request with these bytes, or every one; then close when the other does."""

    def talk(one: socket.socket) -> None:
        first = True
        while one.recv(65536):
            if first or again:
                one.sendall(answer)
            first = False

    return talk


def for_ever(chunk: bytes, first: bytes = b"", pause: float = 0.0) -> Talk:
    """Answer the first request without an end."""
    stopped = threading.Event()

    def talk(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(first)
        while not stopped.wait(pause) if pause else True:
            one.sendall(chunk)

    return talk


def kestrel(stats: bytes) -> Talk:
    """Answer as a Kestrel would, with these lines of `stats` before its END."""

    def talk(one: socket.socket) -> None:
        rest = b""
        while chunk := one.recv(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                word = line.split(b" ")[0].strip()
                if word == b"version":
                    one.sendall(b"VERSION 2.4.1\r\n")
                elif word == b"status":
                    one.sendall(b"UP\r\n")
                elif word == b"stats":
                    one.sendall(stats + b"END\r\n")
                else:
                    one.sendall(b"END\r\n")

    return talk


def web(body: bytes, status: bytes = b"200 OK", head: bytes = b"") -> Talk:
    """Answer one request over HTTP and close."""

    def talk(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n" + body)

    return talk
