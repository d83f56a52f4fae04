"""What is not ours, on a host of its own: what the jobs call, and a stand-in for Sentry; they misbehave.

`install` puts this very file there as two systemd units. It runs on a host's own Python, with nothing else:
``faults_outside.py NAME``. What NAME does is in /run/outside-NAME: ``ok``, ``500``, ``slow SECONDS`` (each
answer takes so long), ``hang`` (it takes connections and requests, and never answers).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

API_PORT, SENTRY_PORT = 8080, 9000
PORTS = {"api": API_PORT, "sentry": SENTRY_PORT}
KEY = "0123456789abcdef0123456789abcdef"
DSN = f"http://{KEY}@ADDRESS:{SENTRY_PORT}/1"
PROGRAM = "/usr/local/lib/faults_outside.py"
UNIT = f"""[Unit]
Description=Not ours: %i

[Service]
ExecStart=/usr/bin/python3 {PROGRAM} %i
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""
Run = Callable[[str], str]
"""Runs a shell command on the host as root, and returns what it prints."""


class Server(ThreadingHTTPServer):
    """Takes every connection at once, as a third party behind a balancer does."""

    daemon_threads = True
    request_queue_size = 1024


class Outside:
    """One service as a test sees it; `run` is on its host."""

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self._run = run

    @contextlib.contextmanager
    def being(self, mode: str) -> Iterator[None]:
        """Let it answer otherwise; what hangs then is let go at the end."""
        self._run(f"echo {mode} >/run/outside-{self.name}")
        try:
            yield
        finally:
            self._run(f"echo ok >/run/outside-{self.name}")

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Let nothing listen at its port."""
        self._run(f"systemctl stop outside@{self.name}")
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[None]:
        """Drop every packet to its port."""
        rule = f"tcp dport {PORTS[self.name]} drop"
        chain = f"chain input {{ type filter hook input priority -400; {rule}; }}"
        self._run(f"nft 'add table inet outside_{self.name} {{ {chain}; }}'")
        try:
            yield
        finally:
            self._run(f"nft delete table inet outside_{self.name}")

    def start(self) -> None:
        """Start it if it is down, answering well, and wait until it does."""
        self._run(f"echo ok >/run/outside-{self.name}; systemctl start outside@{self.name}")
        ask = f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {PORTS[self.name]}), 1)'"
        tries = "1 2 3 4 5 6 7 8 9 10"
        self._run(f"for _ in {tries}; do {ask} 2>/dev/null && exit 0; sleep 0.2; done; exit 1")

    def asked(self) -> int:
        """How many requests came so far, also those that got no answer."""
        return int(self._run(f"wc -l </var/tmp/outside-{self.name} 2>/dev/null || echo 0"))

    def answered(self) -> dict[str, int]:
        """How many requests came so far, by how it was to answer them."""
        counts: dict[str, int] = {}
        for line in self._run(f"cat /var/tmp/outside-{self.name} 2>/dev/null || true").splitlines():
            mode = line.split()[1]
            counts[mode] = counts.get(mode, 0) + 1
        return counts


def install(run: Run) -> None:
    """Put both services on a host, and wait until they answer."""
    own = Path(__file__).read_text()
    run(f"cat >{PROGRAM} <<'END-OF-PROGRAM'\n{own}\nEND-OF-PROGRAM")
    run(f"cat >/etc/systemd/system/outside@.service <<'END-OF-UNIT'\n{UNIT}\nEND-OF-UNIT")
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq"
    run(f"command -v nft >/dev/null || {{ {apt} update && {apt} install --yes nftables >/dev/null; }}")
    run("systemctl daemon-reload && systemctl -q enable outside@api outside@sentry")
    for name in PORTS:
        Outside(name, run).start()


def serve(name: str) -> None:
    """Serve for ever."""
    mode_file = Path(f"/run/outside-{name}")
    noted = Path(f"/var/tmp/outside-{name}").open("a", buffering=1)  # noqa: SIM115 - until the process ends
    lock = threading.Lock()

    def mode() -> list[str]:
        with contextlib.suppress(OSError):
            return mode_file.read_text().split() or ["ok"]
        return ["ok"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            now = mode()
            with lock:
                noted.write(f"{time.time():.3f} {now[0]}\n")
            if now[0] == "slow":
                time.sleep(float(now[1]))
            while mode()[0] == "hang":
                time.sleep(0.1)
            answer = json.dumps({"id": event_id(self.headers, body)}).encode()
            # A client that waited in vain has gone.
            with contextlib.suppress(OSError):
                self.send_response(500 if now[0] == "500" else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - the name is the library's

        def log_message(self, *_: object) -> None:
            pass

    Server(("0.0.0.0", PORTS[name]), Handler).serve_forever()


def event_id(headers: object, body: bytes) -> str | None:
    """The id of the event that an envelope brings; None where there is none to read."""
    with contextlib.suppress(ValueError, OSError, EOFError, AttributeError):
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return json.loads(body.partition(b"\n")[0]).get("event_id")
    return None


if __name__ == "__main__":
    serve(sys.argv[1])
