"""The parent's hold on its child: start it, give it a job, see how that ends, stop or kill it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kestrel_stack.consumer import frames
from kestrel_stack.consumer.log import LEVELS, OWN_KEYS, KeptBack, Log
from kestrel_stack.consumer.output import Output
from kestrel_stack.consumer.signals import Signals
from kestrel_stack.queue.spinning import Spinner

START_TIMEOUT = 60.0
"""Seconds for importing the application."""
STOP_GRACE = 2.0
"""Seconds that an idle child gets to end by itself; an application's exit handlers run in them."""
ABORT_GRACE = 1.0
"""Seconds that a child gets to print where it hangs, before it is killed."""


class UnusableApp(Exception):  # noqa: N818 - it names what is the matter
    """The application cannot be imported, or has no registry there; trying again would not help."""

    def __init__(self, message: str, stack: str = ""):
        super().__init__(message)
        self.stack = stack


class ChildFailed(Exception):  # noqa: N818 - it names what is the matter
    """The child died or hung while it started; another try may work."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `error` is that of the parked record, `memory` the child's in bytes, if it was wanted.

    `asks` is ``park`` or ``retry`` when the job said so, `delay` the one it asked for. `died` when the child
    did, `replace` when the child must not do another job. `sentry_event` is what the child has reported,
    `event` what it wants to be reported; `repeated` names the error when it was not reported again.
    """

    done: bool
    reason: str = ""
    error: Mapping[str, str] | None = None
    memory: int = 0
    asks: str | None = None
    delay: object = None
    died: bool = False
    replace: bool = False
    sentry_event: str | None = None
    event: Mapping[str, Any] | None = None
    repeated: tuple[object, ...] | None = None


class Runner:
    """One child at a time. `watch` descriptors and signals are looked at while a job runs.

    `pass_on` takes the envelopes that the child would send to Sentry.
    """

    def __init__(
        self,
        app: str,
        log: Log,
        signals: Signals,
        environ: Mapping[str, str] | None = None,
        start_timeout: float = START_TIMEOUT,
        pass_on: Callable[[bytes], object] | None = None,
    ):
        self._pass_on = pass_on
        self._app = app
        self._log = log
        self._sink = log.sink
        self._signals = signals
        self._environ = dict(os.environ if environ is None else environ)
        self._start_timeout = start_timeout
        self._output = Output(log)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._decoder = frames.Decoder()
        self._inbox: list[dict[str, Any]] = []
        self._broken: str | None = None
        self._number = 0
        self._poller = select.poll()
        self._spinner = Spinner()
        self._polled: tuple[int | None, int | None] | None = None
        self.jobs: list[str] = []
        self.kept = KeptBack()
        """What the job in hand, or the last one, logged below info."""

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start a child and wait until it has imported the application.

        Raises `UnusableApp`, or `ChildFailed` when it died, took longer than its time, or the worker was told
        to stop meanwhile.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                *(sys.executable, "-m", "kestrel_stack.consumer.child"),
                *(str(theirs.fileno()), str(os.getpid()), self._app),
            ]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._output.stdout,
                    stderr=self._output.stderr,
                    pass_fds=[theirs.fileno()],
                    env=self._environ,
                    # A group of its own: what is sent to the worker's group is for the worker to decide,
                    # and what a hanging job has started can be killed with it.
                    process_group=0,
                )
            except OSError as exc:
                ours.close()
                raise ChildFailed(f"it could not be started: {exc.strerror}") from None
        ours.setblocking(False)
        self._socket = ours
        self._decoder = frames.Decoder()
        self._inbox = []
        self._broken = None
        deadline = time.monotonic() + self._start_timeout
        message = self._wait(deadline, give_up=lambda: self._signals.stop is not None)
        if message is not None and message.get("type") == "ready":
            self.jobs = list(message["jobs"])
            return
        if message is not None:
            self.kill()
            raise UnusableApp(message.get("message", "unknown"), message.get("stack", ""))
        late = f"it was not ready after {self._start_timeout:g} s"
        ending = self._ending() or self._broken or self._signals.stop or late
        self.kill()
        raise ChildFailed(ending)

    def alive(self) -> bool:
        """Say whether there is a child that can take a job; log what it printed meanwhile."""
        self._output.drain()
        return self._process is not None and self._ending() is None

    def run(
        self,
        queue: str,
        body: bytes,
        timeout: float,
        log: Log,
        watch: Callable[[], int | None],
        on_event: Callable[[], None],
        delays: Sequence[int] = (),
        memory: bool = False,
    ) -> Outcome:
        """Have the child do the job in `body`, an item of `queue`; after `timeout` seconds it is killed.

        `watch` returns a descriptor to look at as well, and `on_event` is called when something came of it.
        `delays` are the queue's retry delays; with `memory` the outcome tells the child's size.
        """
        assert self._socket is not None
        self._number += 1
        self._output.begin(log)
        deadline = time.monotonic() + timeout
        head = {
            "type": "run",
            "number": self._number,
            "queue": queue,
            "delays": list(delays),
            "memory": memory,
        }
        self._hand_over(frames.encode(head, body), timeout)
        message = self._wait(deadline, watch, on_event)
        if message is not None:
            self._output.begin(self._log)
            return self._outcome(message)
        self._output.finish()
        ending = self._ending()
        if self._broken is not None:
            kind, reason = "BrokenChild", f"The process that ran the job sent nonsense: {self._broken}."
        elif ending is not None:
            kind, reason = "ChildDied", f"The process that ran the job died: {ending}."
        else:
            kind, reason = "JobTimeout", f"The job took longer than {timeout:g} s and was killed."
            self._abort()
        self.kill()
        stack = self._output.tail()
        self._output.begin(self._log)
        died = kind != "JobTimeout"
        return Outcome(False, reason, {"class": kind, "message": reason, "stack": stack}, died=died)

    def stop(self) -> None:
        """End an idle child: it gets `STOP_GRACE` seconds, then it is killed."""
        if self._process is None:
            return
        self._close_socket()
        deadline = time.monotonic() + STOP_GRACE
        while self._ending() is None and (left := deadline - time.monotonic()) > 0:
            self._poll(left, None)
        if self._ending() is None:
            self._log.warning("child did not end and is killed", child=self.pid)
            self.kill()
            return
        # What it left running in the background is not ours to end.
        self._process.wait()
        self._process = None
        self._output.finish()

    def kill(self) -> None:
        """Kill the child and what it started, at once."""
        if self._process is None:
            return
        # Its group is killed before the child is waited for: until then nobody else can get the number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None
        self._close_socket()
        self._output.finish()

    def wait(self, seconds: float) -> None:
        """Wait, logging what is printed meanwhile; return early at any signal."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._poll(left, None):
                return

    def _hand_over(self, data: bytes, timeout: float) -> None:
        assert self._socket is not None
        # When sending fails the child has died, or has not read for the whole time: both are seen afterwards.
        with contextlib.suppress(OSError):
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._socket.settimeout(timeout)
                self._socket.sendall(memoryview(data)[sent:])
        if self._socket.gettimeout() != 0:
            self._socket.setblocking(False)

    def _wait(
        self,
        deadline: float,
        watch: Callable[[], int | None] = lambda: None,
        on_event: Callable[[], None] = lambda: None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """Return the child's next answer; None when it died, sent nonsense, or the time is over."""
        silent_since: float | None = None
        looked = False
        while True:
            if looked:
                self._read_messages()
            looked = True
            ended = not self._inbox and self._ending() is not None
            if ended:
                # Once more: what it sent before it died is complete now.
                self._read_messages()
            if self._inbox:
                return self._inbox.pop(0)
            if self._socket is None and silent_since is None:
                silent_since = time.monotonic()
                deadline = min(deadline, silent_since + STOP_GRACE)
            left = deadline - time.monotonic()
            if left <= 0 and silent_since is not None and not ended:
                self._broken = "it closed its connection to the worker"
            if ended or self._broken is not None or left <= 0 or give_up():
                return None
            self._poll(left, watch(), on_event)

    def _poll(self, seconds: float, watched: int | None, on_event: Callable[[], None] = lambda: None) -> bool:
        """Wait for anything to happen; say whether it was a signal."""
        wanted = (None if self._socket is None else self._socket.fileno(), watched)
        if self._polled != wanted:
            # Made once for many jobs: the same descriptors are looked at, job after job.
            self._polled = wanted
            self._poller = select.poll()
            for descriptor in (self._signals.fileno(), *self._output.filenos(), *wanted):
                if descriptor is not None:
                    self._poller.register(descriptor, select.POLLIN)
        found = self._spinner.look(self._look)
        if not found:
            found = self._poller.poll(max(1, round(seconds * 1000)))
        self._spinner.note()
        ready = {descriptor for descriptor, _ in found}
        if not ready.isdisjoint(self._output.filenos()):
            self._output.drain()
        if watched in ready:
            on_event()
        if self._signals.fileno() in ready:
            self._signals.clear()
            return True
        return False

    def _look(self) -> list[tuple[int, int]]:
        return self._poller.poll(0)

    def _read_messages(self) -> None:
        while self._socket is not None and self._broken is None and not self._inbox:
            try:
                data = self._socket.recv(frames.CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close_socket()
                return
            try:
                for message, body in self._decoder.feed(data):
                    self._sort(message, body)
            except frames.BrokenFrame as exc:
                self._broken = str(exc)

    def _sort(self, message: dict[str, Any], body: bytes) -> None:
        kind = message.get("type")
        if kind == "log":
            self._output.drain()
            self._log_for_job(message)
        elif kind == "envelope":
            if self._pass_on is not None:
                self._pass_on(body)
        elif kind in ("ready", "unusable") or (kind == "result" and message.get("number") == self._number):
            self._inbox.append(message)

    def _log_for_job(self, message: Mapping[str, Any]) -> None:
        """Write a line of a job's, or keep it back; no field of it may pass for one of the worker's own."""
        level, event, of = message.get("level"), str(message.get("event")), message.get("of")
        fields = message.get("fields")
        if level not in LEVELS or not isinstance(fields, dict) or not isinstance(of, dict):
            return
        own = {f"{key}_" if key in of or key in OWN_KEYS else key: content for key, content in fields.items()}
        if level == "debug":
            self.kept.add(event, {**of, **own})
        self._sink(level, event, {**of, **own})

    def _outcome(self, message: dict[str, Any]) -> Outcome:
        memory, replace = int(message.get("memory", 0)), bool(message.get("replace"))
        if message.get("outcome") == "done":
            return Outcome(True, memory=memory)
        if message.get("outcome") == "unknown":
            known = ", ".join(message.get("known", []))
            reason = f"{self._app} has no job of this name; it has: {known}."
            error = {"class": "UnknownJob", "message": reason, "stack": ""}
            return Outcome(False, reason, error, memory, asks="park")
        error = message["error"]
        return Outcome(
            done=False,
            reason=message.get("reason") or f"The job raised {error['class']}.",
            error=error,
            memory=memory,
            asks=message.get("asks"),
            delay=message.get("delay"),
            replace=replace,
            sentry_event=message.get("sentry_event"),
            event=message.get("event"),
            repeated=tuple(message["repeated"]) if message.get("repeated") else None,
        )

    def _ending(self) -> str | None:
        """Return how the child ended, None while it lives. It is not waited for yet: see `kill`."""
        if self._process is None:
            return "there is none"
        if self._process.returncode is not None:
            return _describe(self._process.returncode)
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "nobody knows how"
        if found is None:
            return None
        return _describe(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)

    def _abort(self) -> None:
        """Have a hanging child print its stack, for the parked record."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGABRT)
        deadline = time.monotonic() + ABORT_GRACE
        while self._ending() is None and (left := deadline - time.monotonic()) > 0:
            self._poll(left, None)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _describe(returncode: int) -> str:
    if returncode >= 0:
        return f"it exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"it was killed by {name}"
