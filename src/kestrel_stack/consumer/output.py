"""What jobs print: two pipes that every child gets as stdout and stderr, turned into log lines.

The pipes belong to the worker and outlive a child, so that a process which a job left behind can go on
printing.
"""

from __future__ import annotations

import os
import select

from kestrel_stack.consumer.log import Log

MAX_LINE = 8 * 1024
"""Longer lines are logged in pieces of this many bytes."""
TAIL = 8 * 1024
"""So many bytes of a job's stderr are kept, to be parked with the job if its process dies."""

_CHUNK = 64 * 1024
_AT_ONCE = 32


class Output:
    """Reads the pipes without ever waiting, and logs what was printed, line by line."""

    def __init__(self, log: Log):
        self.log = log
        self._read: dict[str, int] = {}
        self._write: dict[str, int] = {}
        self._partial: dict[str, bytes] = {}
        self._tail = b""
        self._poller = select.poll()
        for stream in ("stdout", "stderr"):
            self._read[stream], self._write[stream] = os.pipe()
            os.set_blocking(self._read[stream], False)
            self._poller.register(self._read[stream], select.POLLIN)
            self._partial[stream] = b""
        self._filenos = list(self._read.values())

    @property
    def stdout(self) -> int:
        """The descriptor for a child's stdout."""
        return self._write["stdout"]

    @property
    def stderr(self) -> int:
        """The descriptor for a child's stderr."""
        return self._write["stderr"]

    def filenos(self) -> list[int]:
        """Return the descriptors to wait for."""
        return self._filenos

    def begin(self, log: Log) -> None:
        """Log from now on with `log`'s fields: those of the job that starts now."""
        self.finish()
        self.log = log
        self._tail = b""

    def drain(self) -> None:
        """Log the whole lines that are there; a flood in parts, so that the caller keeps its deadlines."""
        if not self._poller.poll(0):
            return
        for stream, descriptor in self._read.items():
            for _ in range(_AT_ONCE):
                try:
                    data = os.read(descriptor, _CHUNK)
                except BlockingIOError:
                    break
                self._take(stream, data)

    def finish(self) -> None:
        """Log everything that is there, also a line without an end."""
        self.drain()
        for stream, rest in self._partial.items():
            if rest:
                self._log(stream, rest)
            self._partial[stream] = b""

    def tail(self) -> str:
        """Return the end of what the job printed to stderr."""
        return self._tail.decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Close the pipes."""
        for descriptor in (*self._read.values(), *self._write.values()):
            os.close(descriptor)

    def _take(self, stream: str, data: bytes) -> None:
        if stream == "stderr":
            self._tail = (self._tail + data)[-TAIL:]
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        for text in lines:
            self._log(stream, text)
        while len(rest) > MAX_LINE:
            self._log(stream, rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest

    def _log(self, stream: str, text: bytes) -> None:
        for start in range(0, len(text) or 1, MAX_LINE):
            shown = text[start : start + MAX_LINE].removesuffix(b"\r").decode("utf-8", "backslashreplace")
            self.log.info("output", stream=stream, text=shown)
