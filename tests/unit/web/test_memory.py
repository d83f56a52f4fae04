"""Threads share their heaps where the C library is glibc."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from kestrel_stack.web import memory

MANY_THREADS = """
import re, sys, threading
from kestrel_stack.web import memory
if sys.argv[1] == "few":
    assert memory.few_arenas()
held, over = threading.Barrier(17), threading.Event()
def use():
    kept = [bytes(300) for _ in range(1000)]  # small enough for the C library's heap, too many for Python's
    large = [bytearray(5000) for _ in range(200)]
    held.wait()
    over.wait()
threads = [threading.Thread(target=use) for _ in range(16)]
for thread in threads: thread.start()
held.wait()
# Each further heap of glibc is a mapping of 64 MB, most of which is not to be touched.
lines = [line.split() for line in open("/proc/self/maps")]
sizes = [int(b, 16) - int(a, 16) for a, b in (line[0].split("-") for line in lines if line[1] == "---p")]
print(sum(size > 32 << 20 for size in sizes))
over.set()
"""


def heaps(which: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS, which],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


def test_threads_share_two_heaps():
    if platform.libc_ver()[0] != "glibc":
        assert not memory.few_arenas()
        return
    assert heaps("few") <= 2 < heaps("many")
