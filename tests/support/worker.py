"""A worker process for tests, and an application whose jobs tell what they do and wait when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from kestrel_stack.queue import Producer
from support.broker import DEADLINE_S, BrokerProcess, wait_until

ROOT = Path(__file__).parents[2]

APPLICATION = """
import os, pathlib, subprocess, sys, time
from kestrel_stack.consumer import Registry

registry = Registry()
FOLDER = pathlib.Path(os.environ["TEST_FOLDER"])


def note(name, text):
    with open(FOLDER / name, "ab", 0) as file:
        file.write(f"{text}\\n".encode())


def wait_for(name):
    while not (FOLDER / name).exists():
        time.sleep(0.01)


@registry.job("Note")
def note_it(data, context):
    note("done", data.get("text", context.id))


@registry.job("Slow")
def slow(data, context):
    note("begun", context.id)
    time.sleep(0.02)
    note("done", context.id)


@registry.job("Pid")
def pid(data, context):
    note("done", f"{os.getpid()} {os.getppid()}")


@registry.job("Wait")
def wait(data, context):
    note("begun", context.id)
    wait_for("go")
    note("done", context.id)


@registry.job("WaitThenRaise")
def wait_then_raise(data, context):
    note("begun", context.id)
    wait_for("go")
    raise RuntimeError("after the wait")


@registry.job("Raise")
def raise_it(data, context):
    raise ValueError(data["message"])


@registry.job("RaiseOddly")
def raise_oddly(data, context):
    class Odd(BaseException):
        def __str__(self):
            raise RuntimeError("not even this")
    raise Odd()


@registry.job("Exit")
def exit_it(data, context):
    sys.exit(data["status"])


@registry.job("Vanish")
def vanish(data, context):
    print("last words", file=sys.stderr)
    os._exit(data["status"])


@registry.job("Garbage")
def garbage(data, context):
    os.write(1, bytes(range(256)) * 2000)
    os.write(2, os.urandom(100_000))
    note("done", context.id)


@registry.job("AllDescriptors")
def all_descriptors(data, context):
    note("begun", context.id)
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"Hello, I am a print statement.")
        except OSError:
            pass


@registry.job("CloseDescriptors")
def close_descriptors(data, context):
    os.closerange(3, 64)


@registry.job("Fork")
def fork(data, context):
    os.fork()
    note("forked", os.getpid())


@registry.job("Daemonise")
def daemonise(data, context):
    if os.fork() == 0:
        os.setsid()
        wait_for("go")
        print("from the daemon", flush=True)
        note("daemon", "still here")
        os._exit(0)
    note("done", context.id)


@registry.job("Program")
def program(data, context):
    started = subprocess.Popen(["sleep", "600"])
    note("program", started.pid)
    started.wait()


@registry.job("TermProgram")
def term_program(data, context):
    started = subprocess.Popen(["sleep", "600"])
    started.terminate()
    note("done", started.wait())


@registry.job("Coroutine")
def coroutine(data, context):
    async def later(): ...
    made = later()
    made.close()
    return made


@registry.job("Memory")
def memory(data, context):
    global kept
    kept = bytearray(data["megabytes"] * 1_000_000)
    note("done", os.getpid())


@registry.job("Say")
def say(data, context):
    context.log.info("said", text=data["text"], environment=context.environment, release=context.release)
    print("printed", data["text"])
"""


class App:
    """The folder of the test application, and what its jobs have noted."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "jobs_app.py").write_text(APPLICATION)

    def noted(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def go(self) -> None:
        """Let the waiting jobs go on."""
        (self.folder / "go").touch()

    def wait_for(self, name: str, count: int = 1) -> list[str]:
        wait_until(lambda: len(self.noted(name)) >= count, f"{count} lines in {name}")
        return self.noted(name)


class WorkerProcess:
    """A real worker on the queue shop_work; a context manager. Its log is its stderr."""

    def __init__(
        self, app: App, servers: str, *flags: str, name: str = "worker", environ=None, app_name=None
    ):
        self.log_file = app.folder / f"{name}.log"
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("KESTREL_STACK_")
        }
        environment |= {"TEST_FOLDER": str(app.folder), "PYTHONPATH": str(ROOT / "src"), **(environ or {})}
        command = [
            *(sys.executable, "-m", "kestrel_stack.consumer", "--queue", "work"),
            *("--app", app_name or "jobs_app:registry", "--servers", servers, "--namespace", "shop"),
            *("--debug", "--min-uptime", "0", *flags),
        ]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=app.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def child(self) -> int:
        """The process id of the child that was started last."""
        self.wait_for("child started")
        started = [line for line in self.log.splitlines() if " debug child started " in line]
        return int(started[-1].split(" child=")[1].split()[0])

    def wait_for(self, text: str, count: int = 1) -> None:
        try:
            wait_until(lambda: self.log.count(text) >= count, f"{count} times {text!r} in the log")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.log}") from None

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and return the exit status."""
        if number is not None:
            self.send(number)
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end:\n{self.log}") from None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def producer(*brokers: BrokerProcess) -> Producer:
    """A producer for the queue `work`; use ``enqueue(job, data, queue="work")``."""
    return Producer("shop", "acme", servers=[broker.address for broker in brokers], queues=["work"])


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"
