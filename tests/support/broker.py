"""A broker process for tests: start, kill, restart, and raw bytes to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from support import ports

DEADLINE_S = 60.0


class Broker:
    """Any broker that listens at `host` and `port`, asked with raw bytes."""

    host = "127.0.0.1"
    port = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def connect(self) -> RawClient:
        return RawClient(self.host, self.port)

    def raw(self, request: bytes) -> bytes:
        """Send bytes on a new connection followed by ``quit``, and return everything that was answered."""
        with self.connect() as client:
            client.send(request + b"quit\r\n")
            return client.read_all()

    def stats(self, queue: str) -> dict[str, int]:
        """The numbers of one queue."""
        prefix = f"STAT queue_{queue}_"
        lines = self.raw(b"stats\r\n").decode("latin-1").split("\r\n")
        pairs = [line.removeprefix(prefix).split(" ") for line in lines if line.startswith(prefix)]
        return {key: int(number) for key, number in pairs if number.isdigit()}

    def drain(self, queue: str) -> list[bytes]:
        """Take every item of a queue with plain gets, in order."""
        items = []
        with self.connect() as client:
            while (item := client.get(queue)) is not None:
                items.append(item)
        return items


class BrokerProcess(Broker):
    """A real broker on loopback with its spool in a folder of its own; a context manager.

    Keyword arguments are keys of the broker's configuration. The ports are free ones at the first start and
    stay the same over restarts. ``log`` is what it wrote to stderr since the first start.
    """

    def __init__(self, tmp_path: Path, **config):
        self.folder = tmp_path / "broker"
        self.spool = Path(config.pop("queue_path", self.folder / "spool"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spool.mkdir(exist_ok=True)
        self.config = {"port": 0, "admin_port": 0, **config, "queue_path": str(self.spool)}
        self.config_file = self.folder / "broker.json"
        self.log_file = self.folder / "broker.log"
        self._port_file = self.folder / "ports.json"
        self.holds_ports = True
        """Whether it is told its ports; else it chooses them, and may lose them while it is restarted."""
        self._held: list[socket.socket] = []
        self.process: subprocess.Popen | None = None
        self.port = 0
        self.admin_port: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def command(self) -> list[str]:
        self.config_file.write_text(json.dumps(self.config))
        return [
            *(sys.executable, "-m", "kestrel_stack.broker"),
            *("--config", str(self.config_file), "--port-file", str(self._port_file)),
        ]

    def start(self, preexec_fn=None) -> BrokerProcess:
        """Start it and return when it answers; the log is in the message if it does not."""
        self._port_file.unlink(missing_ok=True)
        for key in ("port", "admin_port"):
            # The same after a restart, and until then nobody else's.
            if self.config[key] == 0 and self.holds_ports:
                self._held.append(ports.hold())
                self.config[key] = self._held[-1].getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stderr=log, stdout=log, env=environment, preexec_fn=preexec_fn
            )
        wait_until(lambda: self._port_file.exists() or self.process.poll() is not None, "the broker to start")
        if not self._port_file.exists():
            raise RuntimeError(f"the broker ended with {self.process.returncode}:\n{self.log}")
        told = json.loads(self._port_file.read_text())
        self.port, self.admin_port = told["port"], told["admin_port"]
        self.config |= {"port": self.port, "admin_port": self.admin_port}
        return self

    def kill(self) -> None:
        """SIGKILL: a crash of the process."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM: an orderly stop; returns the exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> BrokerProcess:
        self.terminate()
        return self.start()

    def reconfigure(self, **changes) -> None:
        """Change the configuration and its file; the running broker reads it when it is told to reload."""
        self.config |= changes
        self.config_file.write_text(json.dumps(self.config))

    def _end(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> BrokerProcess:
        return self if self.process else self.start()

    def __exit__(self, *exc) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        for held in self._held:
            held.close()


class RawClient:
    """A connection that sends and expects exact bytes; knows nothing that the broker knows."""

    def __init__(self, host: str, port: int, timeout: float = DEADLINE_S):
        self.sock = socket.create_connection((host, port), timeout)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def expect(self, reply: bytes) -> None:
        """Read exactly as many bytes as ``reply`` has; AssertionError if they differ or it closes."""
        got = bytearray(self._buffer[: len(reply)])
        self._buffer = self._buffer[len(got) :]
        while len(got) < len(reply) and (chunk := self._receive(len(reply) - len(got))):
            got += chunk
        assert got == reply, f"expected {_short(reply)}, got {_short(got)}"

    def ask(self, data: bytes, reply: bytes) -> None:
        self.send(data)
        self.expect(reply)

    def line(self) -> bytes:
        while b"\n" not in self._buffer:
            chunk = self._receive(65536)
            if not chunk:
                raise ConnectionError(f"closed after {self._buffer!r}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line + b"\n"

    def set(self, queue: str, data: bytes) -> None:
        self.ask(b"set %b 0 0 %d\r\n%b\r\n" % (queue.encode(), len(data), data), b"STORED\r\n")

    def get(self, queue_and_options: str) -> bytes | None:
        """One get; the item's data, or None for END."""
        self.send(b"get %b\r\n" % queue_and_options.encode())
        head = self.line()
        if head == b"END\r\n":
            return None
        assert head.startswith(b"VALUE "), head
        size = int(head.split()[3])
        got = bytearray(self._buffer)  # which grows without a copy for each chunk
        while len(got) < size + 7:
            chunk = self._receive(1 << 20)
            assert chunk, "closed in the middle of an item"
            got += chunk
        assert got[size : size + 7] == b"\r\nEND\r\n", got[size : size + 7]
        self._buffer = bytes(got[size + 7 :])
        return bytes(got[:size])

    def read_all(self) -> bytes:
        """Everything until the server closes."""
        data, self._buffer = self._buffer, b""
        while chunk := self._receive(65536):
            data += chunk
        return data

    def read_some(self) -> bytes:
        """What is there, or comes next; nothing if the server has closed."""
        data, self._buffer = self._buffer, b""
        return data or self._receive(65536)

    def _receive(self, most: int) -> bytes:
        with contextlib.suppress(ConnectionResetError):
            return self.sock.recv(most)
        return b""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _short(data: bytes) -> str:
    return repr(bytes(data)) if len(data) <= 300 else f"{bytes(data[:300])!r}... ({len(data)} bytes)"


def wait_until(condition, what: str, seconds: float = DEADLINE_S) -> None:
    """Return as soon as ``condition()`` is true; AssertionError naming ``what`` if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.01)
