"""A delay mover process for tests."""

from __future__ import annotations

import json
import subprocess
import sys

from support.broker import DEADLINE_S, wait_until
from support.worker import ROOT, App, clean_environment, settings

HOUR = 3600


class MoverProcess:
    """A real mover for the queue `work`; a context manager. Its log is text unless told otherwise."""

    def __init__(self, folder, servers, *flags, delays=(1, HOUR), debug=True, config=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "mover.log"
        file = folder / "mover.json"
        file.write_text(
            json.dumps(config or settings(servers, {"name": "work", "retry_delays": list(delays)}))
        )
        command = [sys.executable, "-m", "kestrel_stack.consumer.mover", "--config", str(file), *flags]
        environ = clean_environment(App(folder / "app")) | {"PYTHONPATH": str(ROOT / "src")}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *(["--debug"] if debug else [])], env=environ, stdout=log, stderr=log
            )

    @property
    def log(self):
        return self.log_file.read_text()

    def wait_for(self, text, count=1):
        try:
            wait_until(lambda: self.log.count(text) >= count, f"{count} times {text!r}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.log}") from None

    def end(self, number=None):
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
