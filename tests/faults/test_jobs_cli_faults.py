"""The command line for jobs, killed again and again: no job is ever lost, and few are doubled."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.interface import Queue
from support.broker import BrokerProcess, wait_until

SRC = Path(__file__).parents[2] / "src"
JOBS = 900
ROUNDS = 80
BATCH = 50
"""Items that a dump has in hand, so that a kill can leave them in both places."""


def run(broker, *arguments):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "kestrel_stack.queue.jobs", *map(str, arguments)),
            *("--servers", broker.address, "--namespace", "shop"),
        ],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed(process, seconds):
    """Kill the process after some seconds, unless it has ended; say whether it was killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def nothing_in_hand(broker):
    return not any(
        broker.stats(queue).get("open_transactions") for queue in ("shop_mail", "shop_mail_errors")
    )


def park_again(store):
    """Park all that is ready, as a worker would."""
    worker = store.worker("mail")
    while (held := worker.reserve(0)) is not None:
        worker.park(held, ParkedRecord("Boom", held.body, 1).encode())
        worker.done(held)
    worker.drop()


@pytest.mark.long
def test_kills_at_any_moment_lose_no_job_and_double_at_most_what_was_under_way(tmp_path):
    """Requeue, list, dump and load, with crashes of the broker in between."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    file = tmp_path / "dump.jsonl"
    marks = tmp_path / "dump.jsonl.loaded"
    with BrokerProcess(tmp_path) as broker, Queue.open(f"kestrel://{broker.address}/shop") as store:
        made = set()
        for number in range(JOBS):
            envelope = Envelope(job="SendMail", tenant=f"t{number % 3}")
            store.park("mail", ParkedRecord("Boom", envelope.encode(), 1).encode())
            made.add(envelope.id)
        kills = copies = 0
        for _ in range(ROUNDS):
            allowed, arguments = chance.choice(
                [
                    (1, ["requeue", "mail", "--tenant", "t0"]),
                    (1, ["requeue", "mail", "--count", "400"]),
                    (1, ["parked", "list", "mail", "--tenant", "t1"]),
                    (BATCH, ["dump", "mail", file, "--append"]),
                    (BATCH, ["dump", "mail", file, "--append", "--parked"]),
                    (1, ["load", file]),
                    (1, ["load", file]),
                ]
            )
            process = run(broker, *arguments)
            if killed(process, chance.uniform(0.1, 0.6)):
                kills += 1
                copies += allowed
            elif arguments[0] == "load" and process.returncode == 0:
                file.unlink()
                marks.unlink()
            wait_until(lambda: nothing_in_hand(broker), "everything to be back on its queue")
            if chance.random() < 0.1:
                broker.kill()
                broker.start()
            if chance.random() < 0.3:
                park_again(store)
        if file.exists():
            assert run(broker, "load", file).wait(60) in (0, 1)  # 1: there was nothing left to load
        records = [ParkedRecord.decode(record).body for record in broker.drain("shop_mail_errors")]
        found = [Envelope.decode(body).id for body in [*broker.drain("shop_mail"), *records]]
    assert kills > ROUNDS / 5, f"seed {seed}: too few kills to prove anything"
    assert set(found) == made, f"seed {seed}"
    assert len(found) - len(made) <= copies, f"seed {seed}"
