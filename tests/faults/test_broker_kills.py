"""kill -9 at any moment, again and again, while journals rotate, are rewritten and are read back.

The limits are so small that each of these happens many times a second. A moment is a random number of
stored items; the seed is the test's parameter, so that a failure can be had again.
"""

import random

import pytest

from support.broker import BrokerProcess, wait_until
from support.traffic import Ledger, running

ROTATES = {"default_journal_size": 2_000, "max_memory_size": 6_000, "max_journal_size": 20_000}
REWRITES = {"default_journal_size": 500, "max_memory_size": 1_000_000}


def kill_again_and_again(broker, ledger, rounds, seed, producers, consumers):
    dice = random.Random(seed)
    for _ in range(rounds):
        with running(ledger, broker, producers, consumers):
            enough = len(ledger.stored) + dice.randint(1, 400)
            wait_until(lambda enough=enough: len(ledger.stored) >= enough, "items to be stored")
            broker.kill()
        broker.start()
    assert "Traceback" not in broker.log
    ledger.check(broker.drain(ledger.queue))


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_while_a_backlog_grows_and_journals_rotate(tmp_path, seed):
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES) as broker:
        kill_again_and_again(broker, Ledger(), 6, seed, producers=4, consumers=1)


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_while_a_queue_runs_empty_and_its_journal_is_rewritten(tmp_path, seed):
    with BrokerProcess(tmp_path, admin_port=None, default=REWRITES) as broker:
        kill_again_and_again(broker, Ledger(), 6, seed, producers=1, consumers=3)


def test_kills_while_a_backlog_is_read_back_from_disk(tmp_path):
    """The backlog is on disk; only consumers run, and each start finds a journal half read."""
    dice = random.Random(7)
    ledger = Ledger()
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES) as broker:
        with running(ledger, broker, producers=3, consumers=0):
            wait_until(lambda: len(ledger.stored) >= 1500, "a backlog")
        for _ in range(6):
            with running(ledger, broker, producers=0, consumers=3):
                enough = len(ledger.confirmed) + dice.randint(1, 150)
                wait_until(lambda enough=enough: len(ledger.confirmed) >= enough, "items to be confirmed")
                broker.kill()
            broker.start()
        ledger.check(broker.drain("jobs"))


def test_orderly_stops_in_mid_burst_lose_nothing_either(tmp_path):
    dice = random.Random(3)
    ledger = Ledger()
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES) as broker:
        for _ in range(4):
            with running(ledger, broker, producers=3, consumers=2):
                enough = len(ledger.stored) + dice.randint(1, 400)
                wait_until(lambda enough=enough: len(ledger.stored) >= enough, "items to be stored")
                assert broker.terminate() == 0
            broker.start()
        ledger.check(broker.drain("jobs"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("settings", [ROTATES, REWRITES], ids=["rotates", "rewrites"])
def test_many_kills(tmp_path, seed, settings):
    dice = random.Random(seed)
    with BrokerProcess(tmp_path, admin_port=None, default=settings) as broker:
        kill_again_and_again(broker, Ledger(), 40, seed, dice.randint(1, 5), dice.randint(0, 5))
