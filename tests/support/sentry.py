"""A stand-in for Sentry: it takes envelopes over HTTP, keeps them, and can be slow, refuse or hang."""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import brotli

KEY = "0123456789abcdef0123456789abcdef"


class SentryServer:
    """A context manager. `events` are those that it took; `status` is what it answers.

    `tls` is a file with a key and a certificate.
    """

    def __init__(self, port: int = 0, tls: Path | None = None, address: str = "127.0.0.1") -> None:
        self.events: list[dict] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        """What it answers instead of the event's id."""
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
                    for name, value in {"Content-Type": "application/json", **outer.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    told = json.dumps({"id": json.loads(body.partition(b"\n")[0]).get("event_id")}).encode()
                    self.wfile.write(told if outer.body is None else outer.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self._address = address
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def dsn(self) -> str:
        return f"{self._scheme}://{KEY}@{self._address}:{self.port}/sub/7"

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


def make_certificate(folder: Path, name: str) -> Path:
    """A key and a certificate of its own making, in one file; `name` like ``DNS:errors.example``."""
    made = folder / f"{name.replace(':', '-')}.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(made)]
    about = ["-days", "2", "-subj", "/CN=errors", "-addext", f"subjectAltName={name}"]
    certificate = made.with_suffix(".crt")
    subprocess.run(
        ["openssl", "req", "-x509", *key, *about, "-out", str(certificate)], check=True, capture_output=True
    )
    made.write_text(made.read_text() + certificate.read_text())
    return made
