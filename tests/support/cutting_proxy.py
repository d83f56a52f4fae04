"""A line to a server that breaks at one chosen request: before it arrives, or before its answer does."""

from __future__ import annotations

import contextlib
import socket
import threading


class CuttingProxy:
    """Forwards to a server; a context manager.

    At request number `at` (from 1 on, over all connections) every connection breaks; with `answered` the
    server does what it was asked, and only its answer is lost. Later connections are forwarded.
    """

    def __init__(self, host: str, port: int):
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.requests = 0
        self._at = 0
        self._answered = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def arm(self, at: int, answered: bool) -> None:
        """Break at so many requests from now on; 0 is never."""
        with self._lock:
            self.requests, self._at, self._answered = 0, at, answered

    @property
    def cut(self) -> bool:
        """Whether the chosen request has come."""
        return 0 < self._at <= self.requests

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._break()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self._pairs.add((client, server))
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Forward requests and answers in turn: the clients of a queue send nothing ahead."""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                with self._lock:
                    self.requests += 1
                    chosen, answered = self.requests == self._at, self._answered
                if chosen and not answered:
                    break
                server.sendall(data)
                reply = server.recv(1 << 20)
                while data.startswith((b"stats", b"dump_stats")) and not reply.endswith(b"END\r\n"):
                    reply += server.recv(1 << 20)
                if chosen:
                    break
                if not reply:
                    break
                client.sendall(reply)
            else:
                chosen = False
            if chosen:
                self._break()
        for one in (client, server):
            one.close()
        with self._lock:
            self._pairs.discard((client, server))

    def _break(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
