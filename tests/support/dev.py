"""bin/dev as a real process, on an application in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from kestrel_stack.queue import Producer
from support.broker import wait_until

ROOT = Path(__file__).parents[2]

JOBS = """\
import pathlib, subprocess, time

from kestrel_stack.consumer import Registry

registry = Registry()
VERSION = 1


@registry.job("HelloWorld")
def hello_world(data, context):
    print("hello", data["name"], "from version", VERSION)


@registry.job("WaitFor")
def wait_for(data, context):
    pathlib.Path(data["begun"]).touch()
    while not pathlib.Path(data["file"]).exists():
        time.sleep(0.01)
    print("waited in version", VERSION)


@registry.job("FailOnce")
def fail_once(data, context):
    context.log.debug("about to fail", tried=context.attempt)
    if context.attempt == 1:
        raise ZeroDivisionError("no luck at first")


@registry.job("LeaveBehind")
def leave_behind(data, context):
    subprocess.Popen(["sleep", "300"])
"""


def environment(**more: str) -> dict[str, str]:
    """What bin/bootstrap would hand over, with nothing of the caller's stack in it."""
    ours = ("KESTREL_STACK_", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1", **more}


def write(file: Path, text: str) -> None:
    """Write as editors do: never half of it."""
    new = file.with_name(f".{file.name}.tmp")
    new.write_text(text)
    new.rename(file)


class Dev:
    """A running bin/dev; a context manager. What it writes is in `out`."""

    def __init__(self, app: Path, *flags: str, stdout=None, **popen):
        self.app = app
        self.file = app.parent / f"{app.name}.out"
        self.file.unlink(missing_ok=True)
        with self.file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kestrel_stack.dev", "--app", str(app), *flags],
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=stdout or log,
                env=environment(),
                start_new_session=True,
                **popen,
            )

    @property
    def out(self) -> str:
        return self.file.read_text()

    def until(self, pattern: str, since: int = 0) -> re.Match:
        """Wait until it has written what matches, after the first `since` characters."""

        def found():
            return re.search(pattern, self.out[since:], re.MULTILINE)

        with contextlib.suppress(AssertionError):
            wait_until(lambda: found() or self.process.poll() is not None, pattern)
        assert found(), f"it never wrote {pattern!r}:\n{self.out}"
        return found()

    def ready(self) -> Dev:
        """Wait for the first screen."""
        self.until("Stop with Ctrl-C")
        return self

    @property
    def mark(self) -> int:
        """How much it has written until now."""
        return len(self.out)

    @property
    def settings(self) -> Path:
        return Path(shlex.split(re.search(r"export KESTREL_STACK_CONFIG=(.*)", self.out)[1])[0])

    @property
    def web(self) -> str:
        return re.findall(r"http://127\.0\.0\.1:\d+", self.out)[-1]

    @property
    def broker(self) -> tuple[str, int]:
        host, port = json.loads(self.settings.read_text())["servers"][0].split(":")
        return host, int(port)

    def enqueue(self, job: str, queue: str | None = None, **data) -> str:
        """Enqueue a job; returns its short id."""
        with Producer.from_settings("acme", self.settings) as producer:
            return producer.enqueue(job, data, queue=queue)[:8]

    def processes(self) -> dict[int, str]:
        """Everything that was started for the application, by process id."""
        return processes_of(self.app)

    def pid(self, text: str) -> int:
        """The process with `text` in its command line, the first of several."""
        wait_until(lambda: any(text in line for line in self.processes().values()), text)
        return min(pid for pid, line in self.processes().items() if text in line)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Dev:
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        wait_until(lambda: not [one for one in self.processes().values() if "sleep" not in one], "its end")


def processes_of(app: Path) -> dict[int, str]:
    """What runs with the application's mark in its environment, zombies left out."""
    mark = f"KESTREL_STACK_DEV={app}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line:
                    found[int(entry.name)] = line
    return found
