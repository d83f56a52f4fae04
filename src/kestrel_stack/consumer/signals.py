"""What a worker is told by signals, and how it hears of them while it waits."""

from __future__ import annotations

import os
import signal


class Signals:
    """TERM and INT: stop after the job in hand. HUP: replace the child after it. USR1: reopen logs."""

    def __init__(self) -> None:
        self.stop: str | None = None
        self.replace = False
        self.reopen = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def install(self) -> None:
        """Take over the process's signals; only the main thread may."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_replace)
        signal.signal(signal.SIGUSR1, self._on_reopen)
        # Without a handler of Python's the wakeup descriptor would not hear of a child's death.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return a descriptor that is readable after every signal, until `clear`."""
        return self._read

    def clear(self) -> None:
        """Make `fileno` quiet again."""
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass

    def _on_stop(self, number: int, _: object) -> None:
        self.stop = signal.Signals(number).name

    def _on_replace(self, *_: object) -> None:
        self.replace = True

    def _on_reopen(self, *_: object) -> None:
        self.reopen = True
