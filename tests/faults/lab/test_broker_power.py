"""What a power cut can cost: what is on the disk when a producer is told that its job is stored.

No machine is switched off here. strace shows the order of what counts, and a cut file is a model of a lost
tail.
"""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from kestrel_stack.lab import image
from support import proof
from support.broker import BrokerProcess, wait_until
from support.load import Load

pytestmark = [pytest.mark.docker, pytest.mark.long]

RATE = 200
JOBS = 1000
LINE = re.compile(
    r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?P<call>\w+)\((?P<fd>\d+)<(?P<file>[^>]*)>(?P<rest>.*)"
)
RESUMED = re.compile(r"(?P<thread>\d+) +(?P<at>\d+\.\d+) <\.\.\. (?P<call>\w+) resumed>.*= (?P<result>\d+)")


class TracedBroker(BrokerProcess):
    """A broker whose writes, syncs and replies are written down by strace."""

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    def command(self) -> list[str]:
        calls = "trace=write,fdatasync,sendto"
        words = [
            "strace",
            "-D",
            "-f",
            "-y",
            "-ttt",
            "-s",
            "6",
            "-e",
            calls,
            "-e",
            "signal=none",
            "-o",
            str(self.trace),
        ]
        return [*words, *super().command()]


@dataclass
class Seen:
    """What a trace tells of one journal."""

    acknowledged: int = 0
    syncs: int = 0
    most_at_risk: int = 0
    """Most acknowledged jobs at one moment whose record was not on the disk."""
    longest: float = 0.0
    """The longest that one of them was so, in seconds."""


def read_trace(trace: Path, journal: str) -> Seen:
    """Follow what is written, synced and acknowledged; a sync covers what was written before it began."""
    seen = Seen()
    written = synced = 0
    syncing: dict[str, int] = {}
    writing: set[str] = set()
    at_risk: list[tuple[int, float]] = []

    def sync(size: int, at: float) -> None:
        nonlocal synced
        synced = max(synced, size)
        seen.syncs += 1
        while at_risk and at_risk[0][0] <= synced:
            seen.longest = max(seen.longest, at - at_risk.pop(0)[1])

    for line in trace.read_text(errors="replace").splitlines():
        if resumed := RESUMED.match(line):
            thread = resumed["thread"]
            if resumed["call"] == "fdatasync" and thread in syncing:
                sync(syncing.pop(thread), float(resumed["at"]))
            elif resumed["call"] == "write" and thread in writing:
                writing.remove(thread)
                written += int(resumed["result"])
        elif match := LINE.match(line):
            at = float(match["at"])
            unfinished = "<unfinished" in match["rest"]
            if match["call"] == "write" and match["file"] == journal:
                if unfinished:
                    writing.add(match["thread"])
                else:
                    written += int(match["rest"].rsplit("= ", 1)[1])
            elif match["call"] == "fdatasync" and match["file"] == journal:
                if unfinished:
                    syncing[match["thread"]] = written
                else:
                    sync(written, at)
            elif match["call"] == "sendto" and '"STORED' in match["rest"]:
                seen.acknowledged += 1
                if written > synced:
                    at_risk.append((written, at))
                    seen.most_at_risk = max(seen.most_at_risk, len(at_risk))
    return seen


def note(fault: str, seen: Seen, said: str) -> None:
    """Add a row; `lost` is what a power cut at the worst moment would have cost."""
    proof.add(
        proof.Row(
            section="power loss",
            fault=fault,
            flavor="embedded",
            suite=image.SUITES[0],
            enqueued=seen.acknowledged,
            acknowledged=seen.acknowledged,
            refused=0,
            done=seen.acknowledged - seen.most_at_risk,
            lost=seen.most_at_risk,
            doubled=0,
            recovery_seconds=seen.longest,
            allowed="",
            said=said,
            at=proof.now(),
            machine=proof.machine(),
            commit=proof.commit(),
        )
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")
@pytest.mark.parametrize("period", [0, 100, 1000])
def test_what_is_on_the_disk_when_a_job_is_acknowledged(tmp_path: Path, period: int) -> None:
    with TracedBroker(tmp_path, sync_journal_ms=period) as broker:
        load = Load(broker.address, "shop", {"hello_world": 1}, RATE, producers=4).start()
        wait_until(lambda: len(load.acknowledged) >= JOBS, f"{JOBS} jobs to be acknowledged")
        load.stop()
        assert broker.terminate() == 0
        # strace is a process of its own, and may not have written all of it yet.
        wait_until(lambda: "+++ exited" in broker.trace.read_text(errors="replace"), "the trace's end")
    seen = read_trace(broker.trace, str(broker.spool / "shop_hello_world"))
    assert seen.acknowledged == len(load.acknowledged)
    assert seen.syncs > 0
    if period == 0:
        assert seen.most_at_risk == 0
    else:
        # The trace does see what is not synced: otherwise it would prove nothing for 0 either.
        assert seen.most_at_risk > 0
    note(
        f"`kestrel_sync_journal_ms: {period}`" + (" (the default)" if period == 100 else ""),
        seen,
        f"{seen.syncs} syncs",
    )


def test_a_lost_tail_costs_what_is_behind_the_cut_and_nothing_before_it(tmp_path: Path) -> None:
    items = [b"%06d" % number + b"x" * (number % 50) for number in range(500)]
    ends, end = [], 0
    for item in items:
        end += len(item) + 21
        ends.append(end)
    chance = random.Random(8)
    cuts = 20
    lost = 0
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        with broker.connect() as client:
            for item in items:
                client.set("jobs", item)
        broker.kill()
        journal = broker.spool / "jobs"
        whole = journal.read_bytes()
        assert len(whole) == end
        for _ in range(cuts):
            size = chance.randrange(1, end)
            journal.write_bytes(whole[:size])
            broker.start()
            before = [item for item, last in zip(items, ends, strict=True) if last <= size]
            lost += len(items) - len(before)
            assert broker.stats("jobs")["items"] == len(before)
            assert broker.drain("jobs") == before
            broker.kill()
        log = broker.log
    assert "the record is cut short" in log
    seen = Seen(acknowledged=cuts * len(items), most_at_risk=lost)
    said = "every job before the cut is there, in order; the log names file and bytes"
    note(f"a model: the journal's tail gone from {cuts} random places on", seen, said)
