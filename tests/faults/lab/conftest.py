"""One lab for all faults; it is made anew only after a fault that it did not get over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fault_lab import FaultLab, say

# A folder whose hosts are used again by the next run, and not removed: for whoever works on these tests.
# `python -m kestrel_stack.lab hosts down --inventory FOLDER/whole` removes them.
KEEP = "KESTREL_STACK_FAULT_LAB"


@pytest.fixture(scope="session")
def made_fault_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultLab]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.fail("no Docker engine answers; run bin/test, or leave these out with -m 'not docker'")
    kept = os.environ.get(KEEP)
    # The folder's name is in the containers' names; pytest's own counts from 0 in every run.
    folder = Path(kept) if kept else tmp_path_factory.mktemp(f"faults{os.getpid()}-", numbered=False)
    lab = FaultLab(folder)
    say("\nfaults: makes the hosts, about three minutes")
    try:
        lab.make()
        yield lab
    finally:
        if not kept:
            lab.remove()


@pytest.fixture
def lab(made_fault_lab: FaultLab) -> FaultLab:
    """The hosts, well."""
    if made_fault_lab.broken:
        say(f"\nfaults: makes the hosts anew, since they did not get over {made_fault_lab.broken}")
        made_fault_lab.again()
    made_fault_lab.runs.clear()
    return made_fault_lab
