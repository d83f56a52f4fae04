"""The processes of bin/dev: started, read, started again when they die, and ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kestrel_stack import processes
from kestrel_stack.dev.lines import DIM, RED, YELLOW, Screen

BACKOFF = (0.2, 1.0, 2.0, 5.0, 10.0)
"""Seconds until a process that died is started again, for the first time in a row and the next."""
LIVED = 10.0
"""After so many seconds its death is the first in a row again."""
EX_CONFIG = 78
"""Trying again would not mend it: only a change does."""
LONGEST_LINE = 64 * 1024
_CHUNK = 64 * 1024


@dataclass
class Member:
    """One process. `make` is asked for its command at every start."""

    name: str
    make: Callable[[], Sequence[str]]
    environ: Mapping[str, str] = field(default_factory=dict)
    on_line: Callable[[Member, bytes], bool] | None = None
    """Told every line; says whether it is to be shown."""
    on_end: Callable[[Member, int], None] | None = None
    """Told how it ended, when it was to end or is to run only once."""
    on_unusable: Callable[[Member], None] | None = None
    """Told that it cannot run as things are."""
    once: bool = False
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    again: bool = False
    """It ends only to be started again."""
    waits: bool = False
    """It cannot run as things are, and is not tried until they change."""
    began: float = 0.0
    deaths: int = 0
    start_at: float | None = None
    kill_at: float | None = None
    rest: bytes = b""
    begun: bool = False
    """A worker that takes jobs, and heeds signals."""
    trouble: bytes = b""
    """The line in which a worker said that its application cannot be used."""
    reload: bool = False
    """It is to be sent HUP when it has begun."""

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self.process is not None


class Crew:
    """All processes, served by one thread in `turn`; they work in `folder`."""

    def __init__(self, folder: Path, environ: Mapping[str, str], screen: Screen):
        self._folder = folder
        self._environ = dict(environ)
        self._screen = screen
        self._selector = selectors.DefaultSelector()
        self.members: dict[str, Member] = {}
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        self._woken, self._wake = read, write
        self._selector.register(read, selectors.EVENT_READ)

    def listen_for_signals(self) -> None:
        """Have any signal with a handler end the present wait."""
        # Without a handler the end of a process would wake nobody.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def wake(self) -> None:
        """End the present wait; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"\0")

    def add(self, key: str, member: Member) -> Member:
        """Take in a process; it is not started yet."""
        self.members[key] = member
        return member

    def start(self, member: Member) -> None:
        """Have a process run; nothing when it does, or is about to."""
        ending = member.running and not member.wanted
        member.wanted, member.waits = True, False
        if member.running:
            member.again = member.again or ending
        else:
            member.start_at = None
            self._start(member)

    def stop(self, member: Member, kill_after: float | None = None) -> None:
        """Have a process end, after what it has in hand; it is killed after some seconds, if at all."""
        member.wanted = member.again = member.waits = False
        member.start_at = None
        self._ask_to_end(member, kill_after)

    @staticmethod
    def _ask_to_end(member: Member, kill_after: float | None) -> None:
        if member.process is not None:
            member.process.send_signal(signal.SIGTERM)
            member.kill_at = None if kill_after is None else time.monotonic() + kill_after

    def restart(self, member: Member, kill_after: float | None = None) -> None:
        """Have a process end and start anew."""
        member.wanted, member.waits = True, False
        if member.running:
            member.again = True
            self._ask_to_end(member, kill_after)
        else:
            member.start_at = None
            self._start(member)

    def send(self, member: Member, number: signal.Signals) -> None:
        """Send a signal to a process, if there is one."""
        if member.process is not None:
            member.process.send_signal(number)

    def kill(self) -> None:
        """Kill all of them now."""
        for member in self.members.values():
            member.wanted = member.again = False
            member.start_at = None
            if member.process is not None:
                member.process.kill()

    def turn(self, most: float) -> None:
        """Wait for something to happen, at most so many seconds, and do what comes of it."""
        now = time.monotonic()
        times = [at for one in self.members.values() for at in (one.start_at, one.kill_at) if at is not None]
        wait = max(0.0, min([most, *(at - now for at in times)]))
        for key, _ in self._selector.select(wait):
            if key.fd == self._woken:
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._woken, _CHUNK):
                        pass
            else:
                self._read(key.data)
        for member in list(self.members.values()):
            self._look_after(member)

    def _look_after(self, member: Member) -> None:
        now = time.monotonic()
        if member.process is not None:
            code = member.process.poll()
            if code is not None:
                self._ended(member, code)
            elif member.kill_at is not None and now >= member.kill_at:
                member.kill_at = None
                self._screen.say(f"{member.name} did not end and is killed", YELLOW)
                member.process.kill()
        elif member.start_at is not None and now >= member.start_at:
            member.start_at = None
            self._start(member)

    def _start(self, member: Member) -> None:
        member.again, member.kill_at = False, None
        member.begun = member.reload = False
        read, write = os.pipe()
        try:
            member.process = processes.start(
                member.make(), self._folder, {**self._environ, **member.environ}, write
            )
        except OSError as exc:
            os.close(read)
            member.deaths += 1
            self._try_again(member, f"could not be started: {exc.strerror}")
            return
        finally:
            os.close(write)
        member.began = time.monotonic()
        os.set_blocking(read, False)
        self._selector.register(read, selectors.EVENT_READ, (member, read))

    def _read(self, data: tuple[Member, int]) -> bool:
        """Read once from a process; say whether there may be more."""
        member, descriptor = data
        try:
            found = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not found:
            self._close(data)
            return False
        *lines, member.rest = (member.rest + found).split(b"\n")
        if len(member.rest) > LONGEST_LINE:
            lines.append(member.rest)
            member.rest = b""
        for line in lines:
            self._show(member, line)
        return True

    def _close(self, data: tuple[Member, int]) -> None:
        member, descriptor = data
        self._selector.unregister(descriptor)
        os.close(descriptor)
        if member.rest:
            self._show(member, member.rest)
            member.rest = b""

    def _show(self, member: Member, line: bytes) -> None:
        if member.on_line is None or member.on_line(member, line):
            self._screen.line(member.name, line)

    def _ended(self, member: Member, code: int) -> None:
        for key in [key for key in self._selector.get_map().values() if key.data and key.data[0] is member]:
            # All that it wrote itself is in the pipe; what it started may go on writing without end.
            for _ in range(2):
                if not self._read(key.data):
                    break
            if key.fd in self._selector.get_map():
                # Somebody still holds the other end, and is not read any more.
                self._close(key.data)
        member.process, member.kill_at = None, None
        if member.again:
            self._start(member)
        elif not member.wanted or member.once:
            member.wanted = False
            if member.on_end is not None:
                member.on_end(member, code)
        elif code == EX_CONFIG:
            member.waits = True
            if member.on_unusable is not None:
                member.on_unusable(member)
                return
            self._screen.say(f"{member.name} cannot run, see above; tried again after the next change", RED)
        else:
            member.deaths = 1 if time.monotonic() - member.began > LIVED else member.deaths + 1
            self._try_again(member, processes.describe(code), DIM if code == 0 else RED)

    def _try_again(self, member: Member, why: str, colour: str = RED) -> None:
        pause = BACKOFF[min(member.deaths, len(BACKOFF)) - 1]
        member.start_at = time.monotonic() + pause
        self._screen.say(f"{member.name} {why}; started again in {pause:g} s", colour)

    def close(self) -> None:
        """Let go of everything; no process may run any more."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._woken)
        os.close(self._wake)
