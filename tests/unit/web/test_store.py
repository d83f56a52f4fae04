"""The store: what it keeps, for whom it waits, and what it does when its file cannot be used."""

import contextlib
import os
import shutil
import sqlite3
import stat
import threading
import time

import pytest

from kestrel_stack.web.record import audit, database, schema, store
from kestrel_stack.web.record.store import FILE, Store, StoreError, StoreTrouble
from support.broker import wait_until
from support.web_views import START, row, view


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits for long here; what is told is the same."""
    monkeypatch.setattr(database, "WRITE_BUSY_S", 0.05)
    monkeypatch.setattr(database, "READ_BUSY_S", 0.02)
    monkeypatch.setattr(store, "RETRY_S", 0.05)
    monkeypatch.setattr(store, "_VIEW_EVERY_S", 0.0)


@pytest.fixture
def opened(tmp_path):
    """Open a store; those that are still open are closed at the end."""
    stores = []

    def open_(folder=tmp_path / "state", **options):
        stores.append(Store(folder, **options))
        return stores[-1]

    yield open_
    for each in stores:
        each.close()


@pytest.fixture
def kept(opened):
    return opened()


def begin(kept, who="ann", action="flush", target="shop_mail", **more):
    return kept.audit_begin(who, "10.0.0.1", "operator", action, target, ("a:1", "b:1"), more or {"items": 3})


class Locked:
    """Another program that holds the file; a context manager."""

    def __init__(self, kept, for_readers_too=False):
        self.connection = sqlite3.connect(kept.path, isolation_level=None, timeout=5)
        self.for_readers_too = for_readers_too

    def __enter__(self):
        if self.for_readers_too:
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.connection.execute("BEGIN EXCLUSIVE")
        return self

    def __exit__(self, *_):
        self.connection.execute("ROLLBACK")
        self.connection.close()


@contextlib.contextmanager
def busy(kept, waiting=0):
    """While this lasts the writer is at work, and some more wait for it."""
    began, over = threading.Event(), threading.Event()

    def work(_):
        began.set()
        over.wait(60)

    threads = [
        threading.Thread(target=kept.write, args=(work,), kwargs={"timeout": 20}) for _ in range(1 + waiting)
    ]
    try:
        threads[0].start()
        assert began.wait(60)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: len(kept._jobs) == waiting, "the others to wait")
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class TestFiles:
    """What lies in the state folder."""

    def test_nobody_else_may_read_them(self, kept):
        begin(kept)
        for path in kept.folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
        assert {path.name for path in kept.folder.iterdir()} >= {FILE, FILE + "-wal", database.LOCK_FILE}

    def test_a_file_that_others_may_read_is_closed_to_them(self, opened):
        first = opened()
        first.close()
        first.path.chmod(0o644)
        again = opened()
        assert stat.S_IMODE(again.path.stat().st_mode) == 0o600

    def test_the_folder_of_somebody_is_left_as_it_is(self, opened, tmp_path):
        folder = tmp_path / "mine"
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        opened(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755

    def test_a_folder_serves_one_kestrel_web(self, opened, kept):
        with pytest.raises(StoreError, match=rf"in use by another kestrel-web \(process {os.getpid()}\)"):
            opened()
        kept.close()
        opened().audit_list()

    def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(self, opened, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError) as caught:
            opened(tmp_path / "file" / "state")
        assert str(tmp_path / "file" / "state") in str(caught.value) and "\n" not in str(caught.value)

    def test_the_file_of_a_newer_version_is_refused_and_left_as_it_is(self, opened):
        first = opened()
        first.close()
        with sqlite3.connect(first.path) as connection:
            connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
        connection.close()
        before = first.path.read_bytes()
        with pytest.raises(StoreError, match=r"newer kestrel-web \(version 2;") as caught:
            opened()
        assert "\n" not in str(caught.value)
        assert first.path.read_bytes() == before
        with pytest.raises(StoreError, match="newer kestrel-web"):
            opened()  # the folder was given free by the one before

    def test_an_older_file_becomes_a_newer_one_with_all_that_is_in_it(self, opened, monkeypatch):
        first = opened()
        begin(first)
        first.close()
        more = "CREATE TABLE later (x); INSERT INTO later VALUES (1)"
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, more))
        again = opened()
        assert again.read("SELECT x FROM later") == [(1,)]
        assert len(again.audit_list()) == 1

    def test_a_step_that_fails_leaves_the_version_before(self, opened, monkeypatch):
        opened().close()
        wrong = "CREATE TABLE later (x); INSERT INTO nowhere VALUES (1)"
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, wrong))
        broken = opened()
        assert "nowhere" in broken.trouble()
        broken.close()
        monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:-1])
        assert opened().trouble() is None

    def test_a_file_that_is_taken_away_is_made_anew(self, kept):
        begin(kept)
        kept.path.unlink()
        begin(kept)
        assert kept.path.exists() and [entry.who for entry in kept.audit_list()] == ["ann"]
        assert kept.trouble() is None


class TestAudit:
    """The log of actions."""

    def test_an_action_is_there_before_it_is_done_and_has_its_outcome_after(self, opened):
        kept = opened(clock=iter([START - 1, START, START + 2]).__next__)
        entry = begin(kept)
        (begun,) = kept.audit_list()
        assert (begun.outcome, begun.ended_at, begun.at) == ("begun", None, START)
        kept.audit_end(entry, "done", {"flushed": 3})
        (done,) = kept.audit_list()
        assert (done.id, done.outcome, done.ended_at) == (entry, "done", START + 2)
        assert (done.who, done.address, done.role) == ("ann", "10.0.0.1", "operator")
        assert (done.action, done.target, done.servers) == ("flush", "shop_mail", ("a:1", "b:1"))
        assert done.detail == {"items": 3, "flushed": 3}

    def test_what_a_dead_process_left_open_is_cut_and_what_it_ended_is_not(self, opened):
        first = opened()
        entry = begin(first)
        first.audit_end(begin(first), "failed")
        first.close()
        again = opened()
        assert [each.outcome for each in again.audit_list()] == ["failed", "cut"]
        assert again.audit_list()[1].id == entry and again.audit_list()[1].ended_at is not None

    def test_entries_are_in_the_order_of_their_ids_whatever_the_clock_does(self, opened):
        clock = [START]
        kept = opened(clock=lambda: clock[0])
        ids = []
        for at in (START, START - 86_400, START + 10**9, 0.0, START):
            clock[0] = at
            ids.append(begin(kept))
        assert [entry.id for entry in kept.audit_list()] == sorted(ids, reverse=True) and len(set(ids)) == 5

    def test_pages_follow_each_other_without_a_hole(self, kept):
        ids = [begin(kept) for _ in range(23)]
        seen, before = [], None
        while page := kept.audit_list(before, 5):
            seen += [entry.id for entry in page]
            before = page[-1].id
        assert seen == ids[::-1]
        assert len(kept.audit_list(10**30, 10**30)) == 23 and kept.audit_list(-(10**9), -1) == []

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({"who": "ann"}, [3, 1]),
            ({"action": "flush", "target": "shop_mail"}, [1]),
            ({"outcome": "done"}, [2]),
            ({"server": "b:1"}, [3, 2, 1]),
            ({"server": "b:"}, []),
            ({"text": "MAIL+aud"}, [2]),
            ({"text": "100%"}, [3]),
            ({"text": "1_0"}, []),
            ({"text": "'; DROP TABLE audit"}, []),
            ({"since": START + 1, "until": START + 3}, [3, 2]),
            ({"who": "", "action": None}, [3, 2, 1]),
        ],
    )
    def test_they_can_be_searched(self, opened, filters, found):
        clock = iter([START - 1, START, START + 1, START + 1, START + 2])
        kept = opened(clock=clock.__next__)
        begin(kept)
        kept.audit_end(begin(kept, who="bob", target="shop_mail~2Baudit", action="delete"), "done")
        begin(kept, note="100% sure", target="other")
        assert [entry.id for entry in kept.audit_list(filters=filters)] == found

    def test_a_filter_that_there_is_not_is_an_error_that_names_those_that_are(self, kept):
        with pytest.raises(ValueError, match="who, action"):
            kept.audit_list(filters={"who; --": "x"})

    def test_details_of_any_kind_and_size_are_kept_short(self, kept):
        begin(kept, body="x" * 100_000, bad="\ud800", odd=object(), raw=b"\xff")
        (entry,) = kept.audit_list()
        assert sum(len(str(value)) for value in entry.detail.values()) < audit.MAX_DETAIL

    def test_the_old_go_after_more_than_a_year_and_never_all_of_them(self, kept, monkeypatch):
        monkeypatch.setattr(audit, "KEEP_AT_LEAST", 5)
        monkeypatch.setattr(audit, "KEEP_AT_MOST", 30)
        now = time.time()

        def fill(connection):
            for number in range(50):
                at = now - (500 if number < 40 else 370) * 86_400
                audit.begin(connection, at, "", "", "", "", "", str(number), (), {})

        kept.write(fill)
        assert kept.write(lambda connection: audit.prune(connection, now)) == 40
        assert kept.write(lambda connection: audit.prune(connection, now + 10**10)) == 5
        assert [entry.target for entry in kept.audit_list()] == ["49", "48", "47", "46", "45"]


class TestTrouble:
    """The file cannot be used for a time."""

    def test_a_locked_file_is_told_and_everything_goes_on_afterwards(self, opened):
        kept = opened(clock=iter(range(int(START), int(START) + 10**6, 7)).__next__)
        entry = begin(kept)
        kept.record(view(START, row("q", items=1)))
        with Locked(kept):
            for number in range(1, 9):
                kept.record(view(START + 10 * number, row("q", items=number)))
                time.sleep(0.005)
            with pytest.raises(StoreTrouble, match="another program has locked"):
                begin(kept)
            kept.audit_end(entry, "done")
            kept.put("key", [1])
            assert kept.get("key") == [1]
            kept.history("q", START, START + 60, 6)
            assert "another program has locked" in kept.trouble()
        wait_until(lambda: kept.trouble() is None, "the trouble to end")
        wait_until(lambda: kept.audit_list()[0].outcome == "done", "the outcome that waited")
        assert len(kept.audit_list()) == 1
        kept.close()
        again = opened()
        assert again.get("key") == [1]
        items = [sample.items for sample in again.history("q", START, START + 90, 9)]
        assert items.count(None) <= 4 and max(n for n in items if n is not None) == 8

    @pytest.mark.parametrize("for_readers_too", [False, True])
    def test_it_starts_while_the_file_is_locked(self, opened, for_readers_too):
        first = opened()
        begin(first)
        first.close()
        with Locked(first, for_readers_too):
            kept = opened()
            assert kept.audit_list() == [] or not for_readers_too
            assert "locked" in kept.trouble()
            with pytest.raises(StoreTrouble):
                begin(kept)
        wait_until(lambda: kept.trouble() is None, "the trouble to end")
        assert [entry.outcome for entry in kept.audit_list()] == ["cut"]

    def test_what_nobody_waits_for_any_more_is_not_written(self, kept):
        with Locked(kept):
            for _ in range(3):
                with pytest.raises(StoreTrouble):
                    kept.write("INSERT INTO kv VALUES ('late', '1')", timeout=0.001)
        begin(kept)
        assert kept.get("late") is None

    def test_nobody_waits_for_a_writer_that_hangs(self, kept):
        with busy(kept):
            with pytest.raises(StoreTrouble, match="could not be written"):
                kept.write("DELETE FROM kv", timeout=0.01)
            kept.record(view(START, row("q", items=1)))
            kept.put("key", 1)
            assert kept.audit_list() == []
        begin(kept)

    def test_the_queue_of_what_is_to_be_written_is_bounded(self, kept, monkeypatch):
        monkeypatch.setattr(store, "MAX_JOBS", 2)
        with busy(kept, waiting=2), pytest.raises(StoreTrouble, match="too much waits"):
            begin(kept)

    def test_an_error_of_the_one_who_writes_is_his_and_leaves_nothing(self, kept):
        def work(connection):
            connection.execute("INSERT INTO kv VALUES ('half', '1')")
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            kept.write(work)
        assert kept.get("half") is None and kept.trouble() is None

    def test_after_the_end_nothing_is_accepted_and_nothing_hangs(self, kept):
        kept.close()
        kept.close()
        with pytest.raises(StoreTrouble):
            begin(kept)
        kept.record(view(START, row("q")))
        assert kept.history("q", START, START + 10) == []


class TestDamage:
    """The file is not what it was."""

    def check(self, kept, entries):
        wait_until(lambda: kept.trouble() is None, "a new file")
        aside = [path for path in kept.folder.iterdir() if ".damaged-" in path.name and path.suffix != ".x"]
        assert aside
        told, *rest = kept.audit_list(limit=1000)
        assert told.action == "database" and ".damaged-" in told.detail["text"]
        assert [entry.id for entry in rest] == entries
        assert begin(kept) > max(entries, default=0)

    def test_rubbish_is_moved_aside_and_a_new_file_made(self, opened, caplog):
        first = opened()
        first.close()
        first.path.write_bytes(b"rubbish" * 1000)
        kept = opened()
        self.check(kept, [])
        (aside,) = kept.folder.glob(f"{FILE}.damaged-*")
        assert aside.read_bytes() == b"rubbish" * 1000
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600
        assert aside.name in caplog.text

    def test_the_audit_log_is_taken_over_from_a_file_with_damaged_pages(self, opened):
        first = opened()
        ids = [begin(first, note="x" * 300) for _ in range(100)]
        first.put("key", 1)
        first.record(view(START, *(row(f"q{n}", items=n) for n in range(300))))
        first.record(view(START + 60, row("q0", items=1)))
        first.close()
        with sqlite3.connect(first.path) as connection:
            pages = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.close()
        with first.path.open("r+b") as file:
            file.seek((pages["history"] - 1) * size)
            file.write(b"\xff" * size)
        kept = opened()
        kept.history("q0", START, START + 90)
        self.check(kept, ids[::-1])
        assert kept.get("key") == 1
        kept.record(view(START + 120, row("q0", items=2)))
        wait_until(lambda: kept.history("q0", START + 120, START + 130), "history to go on")

    def test_a_page_lost_in_the_audit_log_costs_only_what_was_on_it(self, opened):
        first = opened()
        ids = [begin(first, note="x" * 300) for _ in range(200)]
        first.close()
        with sqlite3.connect(first.path) as connection:
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.close()
        content = first.path.read_bytes()
        leaf = content.index(b'"note"', len(content) // 2) // size
        first.path.write_bytes(content[: leaf * size] + b"\xff" * size + content[(leaf + 1) * size :])
        kept = opened()
        kept.audit_list(limit=1000)
        wait_until(lambda: list(kept.folder.glob("*.damaged-*")), "the damage to be found")
        wait_until(lambda: kept.trouble() is None, "a new file")
        rest = {entry.id for entry in kept.audit_list(limit=1000)} & set(ids)
        assert len(rest) > 180 and {ids[0], ids[-1]} <= rest

    def test_a_file_damaged_while_it_is_used_is_replaced(self, kept):
        ids = [begin(kept, note="x" * 300) for _ in range(100)]
        kept.write(lambda connection: connection.execute("SELECT 1"))
        kept._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = kept.path.stat().st_size
        with kept.path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        assert kept.audit_list() == []
        wait_until(lambda: list(kept.folder.glob("*.damaged-*")), "the damage to be found")
        wait_until(lambda: kept.trouble() is None, "a new file")
        assert begin(kept) and ids


def test_the_history_has_its_share_of_the_disk_and_gives_back_the_rest(kept, monkeypatch):
    kept._limit_bytes = 200_000
    at = START
    for _ in range(200):
        rows = [row(f"q{n}", items=int(at * n) % 5000, rate_in=float(n + at % 7)) for n in range(60)]
        kept.record(view(at, *rows))
        kept.write(lambda _: None)
        at += 20
    assert kept.path.stat().st_size > 300_000
    entry = begin(kept)
    over, housekeep = threading.Event(), kept._housekeep
    monkeypatch.setattr(kept, "_housekeep", lambda now: (housekeep(now), over.set()))
    with kept._condition:
        kept._next_housekeeping = 0.0
        kept._condition.notify_all()
    assert over.wait(60)
    kept._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert kept.path.stat().st_size <= 240_000
    assert kept.audit_list()[0].id == entry
    (last,) = [sample.items for sample in kept.history("q7", at - 20, at, 1)][-1:]
    assert last is not None


def test_who_acts_does_not_wait_for_the_housekeeping(kept, monkeypatch):
    """What is to be removed may take minutes altogether; an action is audited between two steps of it."""
    monkeypatch.setattr(kept, "_limit_bytes", 0)
    acted, steps = threading.Event(), []
    actor = threading.Thread(target=lambda: (begin(kept), acted.set()))

    def shorten(_):
        steps.append(acted.wait(60) if steps else False)
        if not actor.ident:
            actor.start()
            wait_until(lambda: kept._jobs, "the action to wait")
        return len(steps) < 2

    monkeypatch.setattr(kept._recorder, "shorten", shorten)
    with kept._condition:
        kept._next_housekeeping = 0.0
        kept._condition.notify_all()
    wait_until(lambda: len(steps) == 2, "the second step")
    actor.join()
    assert steps == [False, True]


def test_a_trouble_is_in_the_log_once_until_it_is_over(kept, caplog):
    """Readers and the writer see the same trouble in different words; neither fills the log."""
    aside = kept.folder.with_name("aside")
    kept.folder.rename(aside)
    tries = []
    for _ in range(10):
        assert kept.audit_list() == []
        with contextlib.suppress(StoreTrouble):
            tries.append(kept.write("DELETE FROM kv"))
    assert tries == []
    assert len([each for each in caplog.records if each.levelname == "ERROR"]) == 1
    aside.rename(kept.folder)
    kept.write("DELETE FROM kv")
    assert kept.trouble() is None


class TestTries:
    """A writer that cannot write tries again after a while, and is asleep until then."""

    @pytest.fixture
    def tries(self, kept, monkeypatch):
        """Make the next try one that is long in coming, and count what the writer does meanwhile."""
        monkeypatch.setattr(store, "RETRY_S", 1000.0)
        rounds = []
        background = kept._background
        monkeypatch.setattr(kept, "_background", lambda stopping: (rounds.append(1), background(stopping)))
        return rounds

    def hold(self, kept, tries):
        """Have one try made, with housekeeping overdue; then a handful of reasons to look again."""
        with kept._condition:
            kept._next_housekeeping = 0.0
            kept._condition.notify_all()
        wait_until(lambda: tries and kept._next_try > kept._monotonic(), "a try that fails")
        for number in range(5):
            kept.put("alerts", number)
        assert kept._until_due() > 900
        assert len(tries) < 20

    def test_when_the_folder_is_gone(self, kept, tries):
        shutil.rmtree(kept.folder)
        self.hold(kept, tries)
        assert "cannot be used" in kept.trouble()

    def test_when_the_file_is_locked(self, kept, tries):
        with Locked(kept):
            self.hold(kept, tries)
        assert "locked" in kept.trouble()

    def test_when_it_has_an_error_of_its_own(self, kept, tries, monkeypatch):
        monkeypatch.setattr(kept, "_ready", lambda: {}["a mistake"])
        self.hold(kept, tries)

    def test_what_somebody_waits_for_is_tried_at_once(self, kept, tries):
        with Locked(kept):
            self.hold(kept, tries)
        assert begin(kept) and kept.trouble() is None
        assert kept._until_due() > 900, "housekeeping is not tried by that"


def test_a_view_is_handed_over_without_waiting_and_only_the_last_ones_wait(kept):
    with busy(kept):
        for number in range(1000):
            kept.record(view(START + number, row("q", items=number)))
        assert [seen.at for seen in kept._views] == [START + 996 + number for number in range(4)]


def test_sparks_are_of_every_queue_that_was_asked_for(kept):
    kept.record(view(time.time(), *(row(f"q{n}", items=n) for n in range(40))))
    kept.write(lambda _: None)
    wait_until(lambda: kept.spark(["q3"], 900, 48)["q3"][-1] == 3, "the view to be taken in")
    wanted = ["", "nobody", *(f"q{n}" for n in range(40))]
    sparks = kept.spark(wanted, 900, 48)
    assert set(sparks) == set(wanted) and sparks["q3"][-1] == 3 and set(sparks["nobody"]) == {None}
    assert len({len(spark) for spark in sparks.values()}) == 1
