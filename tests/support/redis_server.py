"""A real Redis for tests and comparisons: the one on PATH, or Debian's packages unpacked, never installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from support.beanstalkd import unpack
from support.broker import wait_until
from support.ports import reserve

UNPACKED = Path(__file__).parents[2] / ".build" / "redis"


def program() -> tuple[str, dict[str, str]]:
    """Return the server's path and the environment that it needs; RuntimeError says what to do."""
    found = shutil.which("redis-server")
    if found:
        return found, dict(os.environ)
    if not (UNPACKED / "usr/bin/redis-check-rdb").exists():
        unpack(["redis-tools", *_libraries("redis-tools")], UNPACKED)
    libraries = ":".join(str(folder) for folder in (UNPACKED / "usr/lib").glob("*-linux-gnu*"))
    # Debian's redis-server is a link to this program, which looks at the name it is called by.
    server = UNPACKED / "usr/bin/redis-server"
    if not server.exists():
        server.symlink_to("redis-check-rdb")
    return str(server), {**os.environ, "LD_LIBRARY_PATH": libraries}


def _libraries(package: str) -> list[str]:
    shown = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True).stdout
    needed = re.findall(r"^ +(?:Pre)?Depends: ((?:lib|lua-)\S+)", shown, re.MULTILINE)
    return [name for name in needed if not name.startswith(("libc6", "libgcc", "libstdc"))]


class RedisProcess:
    """A Redis on a free port of loopback that writes nothing to disk; a context manager."""

    host = "127.0.0.1"

    def __init__(self, *arguments: str):
        self.arguments = arguments
        self.port = 0
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> RedisProcess:
        self.port = reserve()
        path, environment = program()
        self.process = subprocess.Popen(
            [path, "--bind", self.host, "--port", str(self.port), "--save", "", *self.arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "Redis to answer")
        return self

    def __exit__(self, *exc) -> None:
        self.process.kill()
        self.process.wait(60)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "redis-server ended"
        try:
            with socket.create_connection((self.host, self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100) == b"+PONG\r\n"
        except OSError:
            return False
