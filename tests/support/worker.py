"""A worker process for tests, and an application whose jobs tell what they do and wait when told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from kestrel_stack.queue import Producer
from support.broker import DEADLINE_S, BrokerProcess, wait_until

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "php")
APPLICATIONS = {"python": "jobs_app:registry", "php": "jobs_app.php"}


def consumer(language: str) -> list[str]:
    """Return the command of a language's worker, without flags."""
    if language == "python":
        return [sys.executable, "-m", "kestrel_stack.consumer"]
    php = shutil.which("php")
    assert php, "there is no php here; install Debian's php-cli"
    return [php, str(ROOT / "php" / "bin" / "consumer")]


def clean_environment(app: App, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which nothing but `more` tells a worker what to do."""
    ours = ("KESTREL_STACK_", "SUPERVISOR_", "SENTRY_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"TEST_FOLDER": str(app.folder), "PYTHONPATH": str(ROOT / "src"), **(more or {})}


def settings(servers: str, *queues: dict) -> dict:
    """Return the content of a settings file."""
    return {
        "app": "shop",
        "namespace": "shop",
        "environment": "test",
        "servers": servers.split(","),
        "queues": list(queues),
    }


class App:
    """The folder of the test application, and what its jobs have noted."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("jobs_app.py", "jobs_app.php"):
            shutil.copy(Path(__file__).with_name(file), folder)

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
    """A real worker, on the queue shop_work unless told otherwise; a context manager. Its log is its stderr.

    Without ``debug`` that log is JSON: see ``records``. ``settings`` is the content of a settings file.
    """

    def __init__(
        self,
        app: App,
        servers: str,
        *flags: str,
        name: str = "worker",
        environ=None,
        app_name=None,
        language: str = "python",
        queue: str = "work",
        debug: bool = True,
        settings: dict | None = None,
    ):
        self.log_file = app.folder / f"{name}.log"
        command = [
            *(*consumer(language), "--queue", queue),
            *("--app", app_name or APPLICATIONS[language], "--servers", servers, "--namespace", "shop"),
            *(*(["--debug"] if debug else []), "--min-uptime", "0", *flags),
        ]
        if settings is not None:
            file = app.folder / f"{name}.json"
            file.write_text(json.dumps(settings))
            command += ["--config", str(file)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=app.folder,
                env=clean_environment(app, environ),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def records(self) -> list[dict]:
        """The whole lines of a log that is JSON."""
        *lines, _ = self.log_file.read_bytes().split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            text = self.log[-4000:]
            raise AssertionError(f"a line of the worker's log is not JSON; it ends with:\n{text}") from None

    def events(self, event: str) -> list[dict]:
        return [record for record in self.records if record["event"] == event]

    def jobs(self, count: int) -> list[dict]:
        """The first so many lines about jobs in a log that is JSON."""
        self.wait_until(lambda: len(self.events("job")) >= count, f"{count} lines about jobs")
        return self.events("job")

    @property
    def child(self) -> int:
        """The process id of the child that was started last."""
        self.wait_for("child started")
        started = [line for line in self.log.splitlines() if " debug child started " in line]
        return int(started[-1].split(" child=")[1].split()[0])

    def wait_for(self, text: str, count: int = 1) -> None:
        self.wait_until(lambda: self.log.count(text) >= count, f"{count} times {text!r} in the log")

    def wait_until(self, condition, what: str) -> None:
        """Wait, for as long as the worker lives; the log is in the message if it is in vain."""
        try:
            wait_until(lambda: condition() or self.process.poll() is not None, what)
            assert condition(), f"the worker ended with {self.process.poll()} before {what}"
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
