"""Runs other programs: output to a log, and line by line to who shows progress; Ctrl-C ends them first."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from kestrel_stack.lab.errors import LabError

END_SECONDS = 15.0


def tool(name: str) -> str:
    """Return the path of a program of the virtual environment that this Python belongs to."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def run_logged(
    command: Sequence[str],
    log: Path,
    on_line: Callable[[str], None] = lambda line: None,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int:
    """Run a program with no input and return its exit code; its lines go to ``log`` and ``on_line``.

    On an interrupt the program gets SIGINT, time to end, and then SIGTERM, before KeyboardInterrupt goes on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:

        def note(line: str) -> None:
            file.write(line)
            file.flush()
            on_line(line.rstrip("\n"))

        try:
            return run_through(
                command, environment={**os.environ, **(environment or {})}, cwd=cwd, on_line=note
            )
        except OSError as error:
            raise LabError(f"{command[0]} cannot be run: {error.strerror or error}") from None


def run_through(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path | None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run a program with no input, its output let through or given to ``on_line``; return its exit code.

    On an interrupt the program gets SIGINT and time to clean up, as under ``run_logged``. Raises OSError when
    it cannot be run.
    """
    process = None
    try:
        with interrupts_held():
            process = start(
                command, environment=environment, cwd=cwd, out=None if on_line is None else subprocess.PIPE
            )
        if on_line is not None and process.stdout is not None:
            with io.TextIOWrapper(process.stdout, errors="replace") as lines:
                for line in lines:
                    on_line(line)
        return process.wait()
    except BaseException:
        if process is not None:
            end(process)
        raise
    finally:
        if process is not None and process.stdout is not None:
            process.stdout.close()


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path | None,
    out: BinaryIO | int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program with no input; both its outputs go to ``out`` or are let through. Raises OSError."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=None if out is None else subprocess.STDOUT,
        env=environment,
        cwd=cwd,
        # A session of its own, so that a terminal's Ctrl-C does not reach it twice: Ansible takes a second
        # one as "now".
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes], grace: float = END_SECONDS) -> None:
    """End a program and what it started in its session: as Ctrl-C would, after ``grace`` seconds harder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        _signal(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
            break
    # What it left running; a shell's background programs do not hear SIGINT.
    _signal(process, signal.SIGTERM)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


_held = _interrupted = False


def interrupts_on_term() -> None:
    """Treat SIGTERM as Ctrl-C: say what stands, end what runs.

    SIGINT too is handled here: a program that a shell put into the background inherits it ignored, and would
    pass that on to everything it starts.
    """

    def interrupt(number: int, frame: object) -> None:
        global _interrupted
        if not _held:
            raise KeyboardInterrupt
        _interrupted = True

    for term in (signal.SIGTERM, signal.SIGINT):
        signal.signal(term, interrupt)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold an interrupt back to the end of the block: else a program is started that nobody knows of."""
    global _held, _interrupted
    _held = True
    try:
        yield
    finally:
        _held = False
        if _interrupted:
            _interrupted = False
            raise KeyboardInterrupt


def stage_program(name: str, run: Callable[[], int]) -> NoReturn:
    """End this program as ``run`` does: with its exit code, a refusal as one line, 130 when interrupted."""
    interrupts_on_term()
    try:
        sys.exit(run())
    except LabError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
