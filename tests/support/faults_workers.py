"""What is done to the workers of a host: killed by a seeded killer, stopped, short of memory, short of disk.

The killer is a program on the host, beside the workers, so that it is as quick as they are: `KILLER` is sent
to ``python3 -``. It reads the notes of the jobs that are done, and for each of them throws a die.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Run = Callable[[str], str]
"""Runs a shell command on the host as root, and returns what it prints."""
SEED = 20261121
"""The killer's, so that a run can be had again."""

# Every worker that supervisord started, and what that one started: parents and children.
FIND = r"""
import os, re

def processes():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = open(f"/proc/{name}/stat").read()
                words = open(f"/proc/{name}/cmdline").read().split("\0")
            except OSError:
                continue
            found[int(name)] = (int(stat.rpartition(")")[2].split()[1]), words)
    return found

def workers(queue=None):
    every = processes()
    at = {pid: words.index("--queue") for pid, (_, words) in every.items() if "--queue" in words[:-1]}
    queues = {pid: every[pid][1][number + 1] for pid, number in at.items()}
    # A child may have its parent's command line: a parent is a worker that no worker started.
    parents = {pid: q for pid, q in queues.items() if every[pid][0] not in queues and queue in (None, q)}
    # PHP's sender of errors is no child that does jobs.
    children = {
        pid: parent for pid, (parent, words) in every.items()
        if parent in parents and not any(word.endswith("consumer-sentry") for word in words)
    }
    return parents, children
"""

KILLER = (
    FIND
    + r"""
import json, random, signal, sys, time

notes, seed, share, seconds, most, kinds = json.loads(sys.argv[1])
dice = random.Random(seed)
killed = {"parents": 0, "children": 0}
deadline = time.monotonic() + seconds
seen = position = 0
while time.monotonic() < deadline and sum(killed.values()) < most:
    try:
        with open(notes, "rb") as file:
            file.seek(position)
            new = file.read()
    except FileNotFoundError:
        new = b""
    position += len(new)
    for _ in range(new.count(b"\n")):
        seen += 1
        if dice.random() >= share:
            continue
        kind = dice.choice(kinds)
        parents, children = workers()
        there = sorted(parents if kind == "parents" else children)
        if there and time.monotonic() < deadline and sum(killed.values()) < most:
            try:
                os.kill(dice.choice(there), signal.SIGKILL)
                killed[kind] += 1
            except ProcessLookupError:
                pass
    time.sleep(0.02)
print(json.dumps({"jobs": seen, **killed}))
"""
)


@dataclass(frozen=True)
class Kills:
    """What a killer did: how many jobs it saw done, how many processes it killed."""

    jobs: int
    parents: int
    children: int

    @property
    def all(self) -> int:
        return self.parents + self.children


class Killer:
    """A killer at work in a container; `end` waits for it."""

    def __init__(
        self,
        container: str,
        notes: str,
        seed: int,
        share: float,
        *,
        seconds: float = 20,
        most: int = 400,
        kinds: tuple[str, ...] = ("parents", "children"),
    ) -> None:
        """Kill for `share` of the jobs that are noted in a file, for so many seconds and at most so often."""
        words = json.dumps([notes, seed, share, seconds, most, kinds])
        self._seconds = seconds
        self._process = subprocess.Popen(
            ["docker", "exec", "-i", container, "python3", "-", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._process.stdin.write(KILLER)
        self._process.stdin.close()
        self._process.stdin = None

    def end(self) -> Kills:
        out, _ = self._process.communicate(timeout=self._seconds + 60)
        assert self._process.returncode == 0, out
        return Kills(**json.loads(out))


def pids(run: Run, queue: str | None = None) -> tuple[list[int], list[int]]:
    """The parents and the children of a host's workers, or of those of one queue."""
    ask = f"parents, children = workers({queue!r})\nprint([sorted(parents), sorted(children)])\n"
    parents, children = json.loads(run(f"python3 - <<'END'\n{FIND}{ask}END"))
    return parents, children


@contextlib.contextmanager
def stopped(run: Run, processes: list[int]) -> Iterator[None]:
    """Processes that hear nothing, until the end."""
    words = " ".join(map(str, processes))
    run(f"kill -STOP {words}")
    try:
        yield
    finally:
        # Some may be gone: killed because they took too long.
        run(f"for pid in {words}; do kill -CONT $pid 2>/dev/null || true; done")


@contextlib.contextmanager
def small_disk(
    run: Run, folder: str, megabytes: int, before: str = "true", after: str = "true"
) -> Iterator[SmallDisk]:
    """Let a folder be on a disk of its own, with what is in it and so much room beside, until the end.

    `before` and `after` are commands around each change, for who has files open there.
    """
    # What kept hosts have logged in many runs fits in, too: else the disk would be full from the start.
    size = megabytes + int(run(f"du -sm {folder}").split()[0])
    run(
        f"{before}; rm -rf {folder}.aside && cp -a {folder} {folder}.aside"
        f" && mount -t tmpfs -o size={size}m,mode=$(stat -c %a {folder}) tmpfs {folder}"
        f" && {{ chown --reference={folder}.aside {folder} && cp -a {folder}.aside/. {folder}/"
        f" || {{ umount -l {folder}; false; }}; }}; moved=$?; {after}; exit $moved"
    )
    try:
        yield SmallDisk(run, folder, size)
    finally:
        run(
            f"{before}; rm -f {folder}/.filling; rm -rf {folder}.aside; cp -a {folder} {folder}.aside;"
            f" umount -l {folder} && rm -rf {folder}/* && cp -a {folder}.aside/. {folder}/"
            f" && rm -rf {folder}.aside; {after}"
        )


class SmallDisk:
    """A disk that can be filled."""

    def __init__(self, run: Run, folder: str, megabytes: int) -> None:
        self._run = run
        self._folder = folder
        self._megabytes = megabytes

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Let not a byte be free until the end."""
        self._run(f"head -c {self._megabytes + 1}M /dev/zero >{self._folder}/.filling 2>/dev/null || true")
        assert self.free() == 0
        try:
            yield
        finally:
            self._run(f"rm -f {self._folder}/.filling")

    def free(self) -> int:
        """Free kilobytes."""
        return int(self._run(f"df -k --output=avail {self._folder} | tail -n 1"))
