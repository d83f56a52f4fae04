"""A kestrel-web process for tests: a free port, a state folder of its own, and requests to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

from support import ports
from support.broker import DEADLINE_S, Broker, wait_until

ROOT = Path(__file__).parents[2]
_LISTENING = re.compile(r"listening at (http://(\[\S+\]|[^\s:]+):(\d+)(?:/\S*)?)")

_HURRIED = """
import importlib, sys
from kestrel_stack.web.cli import main
for place, value in {constants!r}.items():
    module, _, name = place.rpartition(".")
    module = importlib.import_module("kestrel_stack.web." + module)
    getattr(module, name)
    setattr(module, name, value)
sys.exit(main())
"""


def clean_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """An environment in which nothing but `more` tells kestrel-web what to do."""
    ours = ("KESTREL_STACK_", "STATE_DIRECTORY", "NOTIFY_SOCKET", "XDG_STATE_HOME")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"PYTHONPATH": str(ROOT / "src"), **(more or {})}


def servers(*brokers: Broker) -> dict:
    """The keys `servers` and `admin_ports` of a configuration for these brokers."""
    return {
        "servers": [broker.address for broker in brokers],
        "admin_ports": {broker.address: getattr(broker, "admin_port", None) for broker in brokers},
    }


class KestrelWeb:
    """A real kestrel-web on loopback; a context manager.

    Keyword arguments are keys of its configuration file, for example ``servers(broker)`` with two stars.
    `hurry` sets constants of its modules, for a test that is not about how long something takes:
    ``{"alerting.judge.CLEAR_AFTER_S": 0.5}``.
    ``url`` ends without a slash and has the prefix in it; ``log`` is what it wrote since the first start.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        hurry: dict[str, object] | None = None,
        **config,
    ):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.state = Path(config.setdefault("state", str(folder / "state")))
        self.config = {"listen": "127.0.0.1", "port": 0, "interval_s": 0.1, **config}
        self.config_file = folder / "kestrel-web.json"
        self.log_file = folder / "kestrel-web.log"
        self.flags = flags
        self.hurry = hurry or {}
        self.environment = clean_environment(environment)
        self.process: subprocess.Popen | None = None
        self.host, self.port, self.url = "127.0.0.1", 0, ""
        self._held: socket.socket | None = None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def command(self) -> list[str]:
        """Write the configuration file and return the command that uses it."""
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(json.dumps(self.config))
        program = ["-m", "kestrel_stack.web"]
        if self.hurry:
            program = ["-c", _HURRIED.format(constants=self.hurry)]
        return [sys.executable, *program, "--config", str(self.config_file), *self.flags]

    def launch(self, preexec_fn=None) -> subprocess.Popen:
        """Start it without waiting for anything."""
        if (self.config["listen"], self.config["port"]) == ("127.0.0.1", 0):
            # The same after a restart, and until then nobody else's.
            self._held = ports.hold()
            self.config["port"] = self._held.getsockname()[1]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=self.environment, preexec_fn=preexec_fn
            )
        return self.process

    def start(self, preexec_fn=None) -> KestrelWeb:
        """Start it and return when it answers; the log is in the message if it does not."""
        written = len(self.log)
        self.launch(preexec_fn)

        def listening():
            return _LISTENING.search(self.log, written)

        try:
            wait_until(lambda: listening() or self.process.poll() is not None, "kestrel-web to start")
            if not (found := listening()):
                raise RuntimeError(f"kestrel-web ended with {self.process.returncode}:\n{self.log}")
            self.host, self.port = found[2].strip("[]"), int(found[3])
            self.config["port"] = self.port
            self.url = found[1].rstrip("/")
            self.get(f"{self.config.get('prefix', '')}/healthz")  # whatever it says: it answers
        except BaseException:
            self.__exit__()
            raise
        return self

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ):
        """One request on a connection of its own; returns the response, its body in `.data`.

        `path` is sent as it is, without the prefix put before it; redirects are not followed.
        """
        connection = HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            response.data = response.read()
            return response
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None):
        return self.request("GET", path, headers=headers)

    def kill(self) -> None:
        """SIGKILL: a crash of the process."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM: an orderly stop; returns the exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> KestrelWeb:
        self.terminate()
        return self.start()

    def _end(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> KestrelWeb:
        return self if self.process else self.start()

    def __exit__(self, *exc) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        if self._held:
            self._held.close()
