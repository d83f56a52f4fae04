"""A stand-in for Sentry: it takes envelopes over HTTP, keeps them, and can be slow, refuse or hang."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brotli

KEY = "0123456789abcdef0123456789abcdef"


class SentryServer:
    """A context manager. `events` are those that it took; `status` is what it answers."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hang = threading.Event()
        self.hang.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                # The library packs with brotli where it finds that.
                unpack = {"gzip": gzip.decompress, "br": brotli.decompress}
                body = unpack.get(self.headers.get("Content-Encoding", ""), bytes)(body)
                outer.requests.append((self.path, dict(self.headers), body))
                outer.hang.wait()
                if outer.status == 200:
                    # Version 1 of the library sends events one by one to the older address.
                    outer.events += [json.loads(body)] if self.path.endswith("/store/") else events_of(body)
                # A client that waited in vain has gone.
                with contextlib.suppress(ConnectionError):
                    self.send_response(outer.status)
                    for name, value in outer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def dsn(self) -> str:
        return f"http://{KEY}@127.0.0.1:{self._server.server_port}/sub/7"

    def __enter__(self) -> SentryServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()


def events_of(body: bytes) -> list[dict]:
    """The events of an envelope, by the lengths in its item headers."""
    head, _, rest = body.partition(b"\n")
    assert json.loads(head)["sent_at"]
    found = []
    while rest.strip():
        line, _, rest = rest.partition(b"\n")
        item = json.loads(line)
        size = item.get("length", rest.find(b"\n") if b"\n" in rest else len(rest))
        data, rest = rest[:size], rest[size:].removeprefix(b"\n")
        if item["type"] == "event":
            found.append(json.loads(data))
    return found
