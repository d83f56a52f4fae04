"""What every comparison needs: progress, its command line, medians, and what its numbers hold for."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = 5
BUSY = 0.1
"""From this share of the processors on, the machine is not quiet."""

# Nobody's Python programs are to be compiled anew at each start, whatever this shell says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def say(text: str) -> None:
    """Tell of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


# --- the command line --------------------------------------------------------------------------------------


def parser(description: str, runs: int = RUNS) -> argparse.ArgumentParser:
    """Return the parser of a comparison, with the flags that all of them have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--runs",
        type=at_least(1),
        default=runs,
        metavar="N",
        help=f"how often each is measured (default: {runs})",
    )
    made.add_argument("--json", action="store_true", help="print every number as JSON instead of the table")
    return made


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from there on."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return read


def numbers(text: str) -> list[int]:
    """Read a list of whole numbers, separated by commas."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between, not {text}") from None


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, not {text}")
    return host, int(port)


def chosen(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a type of arguments: names of those that are known, separated by commas."""

    def read(text: str) -> list[str]:
        names = [word.strip() for word in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: there are {', '.join(known)}")
        return names

    return read


# --- numbers -----------------------------------------------------------------------------------------------


def spread(found: Sequence[float]) -> dict[str, float]:
    """Return the median of some numbers, and the least and the most of them."""
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


# --- what they hold for ------------------------------------------------------------------------------------


def conditions(**more: object) -> dict[str, object]:
    """Return when and where something is measured, and what else is named."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        **more,
    }


def about(found: dict[str, object]) -> str:
    """Return those conditions as a sentence's beginning."""
    # A part that was measured before has not noted it.
    some = found.get("usable_cores", found["cores"])
    cores = f"{found['cores']} cores" if some == found["cores"] else f"{some} of {found['cores']} cores"
    return (
        f"{found['date']} UTC, {cores} ({found['cpu']}), {found['memory_gb']} GB, "
        f"{found['system']}, Linux {found['kernel']}, Python {found['python']}"
    )


def _cpu() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def busy(seconds: float) -> float:
    """Return what share of the processors others use, looking on for so long."""
    began = _processor_time()
    time.sleep(seconds)
    idle, total = (after - before for before, after in zip(began, _processor_time(), strict=True))
    return max(0.0, 1 - idle / total) if total else 0.0


def _processor_time() -> tuple[int, int]:
    """Return the ticks that all processors were idle, and all ticks."""
    ticks = [int(word) for word in _lines("/proc/stat")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def needs(program: str, package: str) -> None:
    """End with one line if a program is missing."""
    if not shutil.which(program):
        raise SystemExit(f"there is no {program} here: apt install {package}")
