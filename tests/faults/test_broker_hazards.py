"""Where Kestrel 2.4.1 loses or doubles items, the embedded broker does not.

One test or more for each way, named after what happens in Kestrel (observed on Kestrel 2.4.1; those that
were only read in its code are marked so). Limits are so small that what takes gigabytes there happens here
at once.
"""

import contextlib
import resource

import pytest

from support.broker import BrokerProcess, wait_until
from support.traffic import Ledger, fill, running

SMALL = {"default_journal_size": 3_000, "max_memory_size": 3_000, "max_journal_size": 9_000}


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None, default=SMALL) as process:
        yield process
        assert "Traceback" not in process.log
        assert "unexpected error" not in process.log


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%06d" % number + b"x" * 194 for number in range(start, start + count)]


def spool_bytes(broker) -> int:
    total = 0
    for path in broker.spool.iterdir():
        with contextlib.suppress(FileNotFoundError):  # replaced while we look
            total += path.stat().st_size
    return total


def crash(broker) -> None:
    broker.kill()
    broker.start()


# 1: each pack loses one item if the server later stops


@pytest.mark.parametrize("how", ["plain", "close/open"])
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_packing_while_a_backlog_drains_loses_no_item_at_a_later_stop(broker, how, end):
    items = numbered(400)
    with broker.connect() as client:
        fill(client, "jobs", items)
        request = "jobs" if how == "plain" else "jobs/close/open"
        assert [client.get(request) for _ in range(250)] == items[:250]
        if how != "plain":
            client.ask(b"get jobs/close\r\n", b"END\r\n")
        getattr(broker, end)()
    broker.start()
    assert broker.drain("jobs") == items[250:]


def test_every_moment_of_a_drain_is_a_good_one_to_be_killed(broker):
    """Wherever packing stands: after each kill exactly the rest is there."""
    items = numbered(300)
    with broker.connect() as client:
        fill(client, "jobs", items)
    taken = 0
    for step in (1, 13, 15, 16, 17, 31, 47, 1, 59, 90):
        with broker.connect() as client:
            assert [client.get("jobs") for _ in range(step)] == items[taken : taken + step]
            taken += step
            broker.kill()
        broker.start()
    assert broker.drain("jobs") == items[taken:]


# 2: a restart during read-behind, then a pack, loses more


def test_a_restart_in_read_behind_and_then_packing_loses_no_item(broker):
    items = numbered(600)
    with broker.connect() as client:
        fill(client, "jobs", items[:300])
        assert [client.get("jobs") for _ in range(40)] == items[:40]
    broker.restart()
    with broker.connect() as client:
        fill(client, "jobs", items[300:])
        assert [client.get("jobs/close/open") for _ in range(300)] == items[40:340]
        client.ask(b"get jobs/close\r\n", b"END\r\n")
    broker.restart()
    with broker.connect() as client:
        assert [client.get("jobs") for _ in range(100)] == items[340:440]
    crash(broker)
    assert broker.drain("jobs") == items[440:]


# 3: a checkpoint that is never reached ends all packing


def test_a_queue_that_never_empties_and_never_exceeds_its_memory_frees_its_history(broker):
    """In Kestrel a checkpoint set before read-behind is never reached, and the archives stay for ever."""
    with broker.connect() as client:
        client.set("jobs", b"first")
        for _ in range(300):
            fill(client, "jobs", [b"y" * 200] * 5)
            client.send(b"get jobs\r\n" * 5)
            while not client.line().startswith(b"VALUE"):
                pass
            for _ in range(4):
                while not client.line().startswith(b"VALUE"):
                    pass
            client.line()
            client.line()
        assert broker.stats("jobs")["items"] == 1

        def freed() -> bool:
            client.set("jobs", b"y" * 200)  # a queue that is used looks after its files
            client.get("jobs")
            return spool_bytes(broker) < 20_000

        wait_until(freed, "the history of the queue to be freed")
    crash(broker)
    assert broker.drain("jobs") == [b"y" * 200]


def test_a_backlog_after_a_checkpoint_is_freed_when_it_drains(broker):
    items = numbered(1000)
    with broker.connect() as client:
        for start in range(0, 100, 10):  # archives without a backlog
            fill(client, "jobs", items[start : start + 10])
            assert [client.get("jobs") for _ in range(9)]
        fill(client, "jobs", items[100:])
        before = spool_bytes(broker)
        assert before > 150_000
        for _ in range(900):
            assert client.get("jobs")

        def freed() -> bool:
            client.set("jobs", b"more")  # a queue that is used looks after its files
            client.get("jobs")
            return spool_bytes(broker) < before / 4

        wait_until(freed, "what was drained to be freed")


# 4: an open read after plain gets brings an empty item back


def test_reads_opened_among_plain_gets_bring_no_empty_item_back(broker):
    items = numbered(300)
    with broker.connect() as plain, broker.connect() as holder:
        fill(plain, "jobs", items)
        held = []
        for number in range(200):
            if number % 10 == 9:
                held.append(holder.get("jobs/open"))
                assert held[-1] == items[number]
            else:
                assert plain.get("jobs") == items[number]
        broker.kill()
    broker.start()
    assert broker.drain("jobs") == [*held, *items[200:]]


# 5: a rewrite is not atomic


def test_open_reads_survive_kills_in_the_middle_of_rewrites(broker):
    """The queue runs empty again and again, so that its file is rewritten with the reads that are open."""
    with broker.connect() as holder:
        fill(holder, "jobs", [b"held-1", b"held-2"])
        assert [holder.get("jobs/open"), holder.get("jobs/open")] == [b"held-1", b"held-2"]
        ledger = Ledger()
        for _ in range(5):
            with running(ledger, broker, producers=1, consumers=2):
                enough = len(ledger.stored) + 150
                wait_until(lambda enough=enough: len(ledger.stored) >= enough, "items to be stored")
                broker.kill()
            broker.start()
            left = broker.drain("jobs")
            assert [item for item in left if item.startswith(b"held")] == [b"held-1", b"held-2"]
            ledger.check([item for item in left if not item.startswith(b"held")])
            ledger.confirmed += [item for item in left if not item.startswith(b"held")]
            with broker.connect() as again:
                fill(again, "jobs", [b"held-1", b"held-2"])
                again.send(b"get jobs/open\r\nget jobs/open\r\n")
                holder = broker.connect()  # keeps them open through the next round
                again.close()
                wait_until(lambda: broker.stats("jobs")["open_transactions"] == 0, "them to be back")
                first, second = holder.get("jobs/open"), holder.get("jobs/open")
                assert {first, second} == {b"held-1", b"held-2"}
                if first == b"held-2":  # returned in reversed order; put straight for the next round
                    holder.ask(b"get jobs/close\r\nget jobs/close\r\n", b"END\r\nEND\r\n")
                    fill(holder, "jobs", [b"held-1", b"held-2"])
                    assert [holder.get("jobs/open"), holder.get("jobs/open")] == [b"held-1", b"held-2"]


def leftovers_of_a_rewrite(spool) -> None:
    """What Kestrel leaves when it stops between making the empty .pack and filling it by a rename."""
    (spool / "jobs~~100").write_bytes(b"half a rewr")
    (spool / "jobs.99.pack").write_bytes(b"")


def test_an_empty_pack_file_deletes_no_archive(broker):
    with broker.connect() as client:
        fill(client, "jobs", numbered(3))
    broker.terminate()
    (broker.spool / "jobs").rename(broker.spool / "jobs.98")
    leftovers_of_a_rewrite(broker.spool)
    broker.start()
    assert "jobs.99.pack: empty" in broker.log
    assert not list(broker.spool.glob("*~~*")) + list(broker.spool.glob("*.pack"))
    assert broker.drain("jobs") == numbered(3)


# 6: a pack still running when the queue empties brings old items back (read in Kestrel's code)


def test_a_queue_drained_at_full_speed_while_it_is_packed_stays_drained(broker):
    items = numbered(1500)
    for _ in range(3):
        with broker.connect() as client:
            fill(client, "jobs", items)
            client.send(b"get jobs\r\n" * len(items))
            client.expect(b"".join(b"VALUE jobs 0 %d\r\n%b\r\nEND\r\n" % (len(item), item) for item in items))
            client.set("jobs", b"new")  # an empty queue is rewritten by the next set
            broker.kill()
        broker.start()
        assert broker.drain("jobs") == [b"new"]


# 7: a full disk; see test_broker_disk_full.py


# 8: an error while packing makes delete and shutdown wait for ever (read in Kestrel's code)


@contextlib.contextmanager
def no_file_beyond(broker, size: int):
    """Let no file of the broker grow beyond ``size`` bytes: packing fails, as it does on a full disk."""
    soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_packing_that_fails_holds_up_neither_a_delete_nor_the_stop(broker):
    items = numbered(400)
    with broker.connect() as client:
        fill(client, "jobs", items)
        fill(client, "other", items)
        with no_file_beyond(broker, 10):
            # Gets need room for their records, too: they are refused, and nothing is taken.
            client.ask(b"get jobs\r\n", b"SERVER_ERROR\r\n")
        client.close()
    with broker.connect() as client:
        for _ in range(200):
            client.get("jobs/close/open")
        (broker.spool / "jobs~~0").mkdir()  # in the way of whatever is replaced now
        for _ in range(150):
            client.get("jobs/close/open")
        client.ask(b"get jobs/close\r\n", b"END\r\n")
        client.ask(b"delete jobs\r\n", b"DELETED\r\n")
        client.set("jobs", b"again")
    assert broker.terminate() == 0
    broker.start()
    assert broker.drain("other") == items
    assert broker.drain("jobs") == [b"again"]


# 9: a clock that was set back; see test_broker_host.py


# 10: nothing in a file says whose it is


def test_a_foreign_file_with_a_queues_name_is_not_destroyed(tmp_path):
    """Kestrel makes a queue of it and cuts it to nothing, without a copy."""
    spool = tmp_path / "broker" / "spool"
    spool.mkdir(parents=True)
    notes = b"Notes about the queues, left in the wrong folder.\n" * 50
    (spool / "notes").write_bytes(notes)
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        assert f"{spool}/notes" in broker.log
        assert broker.drain("notes") == []
        with broker.connect() as client:
            client.set("jobs", b"1")
        assert broker.terminate() == 0
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == notes]
    assert kept, "nobody has the notes any more"


@pytest.mark.parametrize("size", [-1, 2_147_483_647, 900 << 20], ids=["negative", "greatest", "900 MB"])
def test_an_impossible_size_in_one_file_stops_neither_the_start_nor_other_queues(broker, size):
    """Kestrel ends at each start: NegativeArraySizeException, OutOfMemoryError."""
    with broker.connect() as client:
        fill(client, "jobs", [b"1", b"2"])
        fill(client, "other", [b"3"])
    broker.kill()
    with (broker.spool / "jobs").open("ab") as journal:
        journal.write(b"\x02" + size.to_bytes(4, "little", signed=True) + b"x" * 40)
    broker.start()
    assert f"{broker.spool}/jobs" in broker.log
    assert broker.drain("jobs") == [b"1", b"2"]
    assert broker.drain("other") == [b"3"]


def test_a_break_in_an_archive_does_not_cut_the_current_file(broker):
    """Kestrel cuts the current file at the offset of the break in the archive, at every start."""
    items = numbered(20)
    with broker.connect() as client:
        fill(client, "jobs", items)
    broker.terminate()
    archives = sorted(path for path in broker.spool.glob("jobs.*"))
    assert archives
    whole = archives[0].read_bytes()
    archives[0].write_bytes(whole[:221] + b"\xfe" + whole[222:])
    current = (broker.spool / "jobs").read_bytes()
    broker.start()
    assert (broker.spool / "jobs").read_bytes() == current
    left = broker.drain("jobs")
    assert left[0] == items[0]
    assert left[1:] == [item for item in items if item in left[1:]]
    assert items[-1] in left


# Beside the ten: xids after a delete, items that expire into a queue that refuses them, discards


def test_a_read_of_a_deleted_queue_does_not_end_another_consumers_read(broker):
    """Kestrel counts xids from 1 again after a delete: the old holder confirms the new one's item."""
    with broker.connect() as old, broker.connect() as new:
        fill(old, "jobs", [b"old"])
        assert old.get("jobs/open") == b"old"
        new.ask(b"delete jobs\r\n", b"DELETED\r\n")
        fill(new, "jobs", [b"new"])
        assert new.get("jobs/open") == b"new"
        old.ask(b"get jobs/close\r\n", b"END\r\n")
        assert broker.stats("jobs")["open_transactions"] == 1
        new.close()
        wait_until(lambda: broker.stats("jobs")["items"] == 1, "the item to be back")
    crash(broker)
    assert broker.drain("jobs") == [b"new"]


@pytest.mark.parametrize("limit", [{"max_items": 1}, {"max_size": 1}, {"max_item_size": 3}])
def test_an_expired_item_whose_new_queue_is_full_is_not_lost(tmp_path, limit):
    queues = {"jobs": {"expire_to_queue": "late"}, "late": limit}
    with BrokerProcess(tmp_path, admin_port=None, queues=queues) as broker:
        with broker.connect() as client:
            fill(client, "late", [b"old"])
            client.ask(b"set jobs 0 -1 5\r\nlate1\r\n", b"STORED\r\n")
            client.send(b"flush_expired jobs\r\n")
            assert client.line().strip().isdigit()
        crash(broker)
        late = broker.drain("late")
        assert broker.raw(b"flush_expired jobs\r\n").strip().isdigit()
        # Wherever it is kept until there is room: it is there once, and nowhere else.
        everything = late + broker.drain("late") + broker.drain("jobs")
        if limit == {"max_item_size": 3}:
            assert everything.count(b"late1") + broker.stats("jobs")["items"] == 1
        else:
            assert sorted(everything) == [b"late1", b"old"]


def test_items_that_expire_into_a_queue_survive_kills_on_their_way(tmp_path):
    queues = {"jobs": {"expire_to_queue": "late", **SMALL}, "late": SMALL}
    with BrokerProcess(tmp_path, admin_port=None, queues=queues, expiration_timer_ms=20) as broker:
        stored = []
        for round_number in range(4):
            with broker.connect() as client:
                items = numbered(200, start=1000 * round_number)
                client.send(b"".join(b"set jobs 0 -1 %d\r\n%b\r\n" % (len(item), item) for item in items))
                client.expect(b"STORED\r\n" * 150)
                stored += items[:150]
                broker.kill()
            broker.start()
        wait_until(lambda: broker.stats("jobs")["items"] == 0, "everything to expire")
        late = broker.drain("late")
        assert set(stored) <= set(late)
