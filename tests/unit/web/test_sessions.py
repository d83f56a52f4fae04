"""Sessions in a real database, by a clock of the test's own."""

from __future__ import annotations

import contextlib

import pytest

from kestrel_stack.web.access import sessions
from kestrel_stack.web.access.sessions import Sessions, is_id, new_id
from kestrel_stack.web.config import User
from kestrel_stack.web.record.store import Store, StoreTrouble

ANN = User("ann", "$argon2id$one", "operator")
BOB = User("bob", "$argon2id$two")
HOUR = 3600.0


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Broken:
    """A database with the trouble of the test's choice."""

    def __init__(self, store):
        self.store = store
        self.reads = self.writes = True

    def read(self, *arguments):
        if not self.reads:
            raise StoreTrouble("the disk is gone")
        return self.store.read(*arguments)

    def write(self, *arguments, **named):
        if not self.writes:
            raise StoreTrouble("the disk is full")
        return self.store.write(*arguments, **named)


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(Store(tmp_path)) as opened:
        yield Broken(opened)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(store, clock, monkeypatch):
    monkeypatch.setattr(sessions, "AGAIN_S", 0.0)

    def sessions_of(*users: User) -> Sessions:
        """What a process that starts now has."""
        return Sessions(store, users or (ANN, BOB), 12 * HOUR, 2 * HOUR, clock)

    return sessions_of


def test_an_id_is_256_random_bits():
    assert len({new_id() for _ in range(100)}) == 100
    assert is_id(new_id())
    for text in (None, "", "x", "A" * 42, "A" * 44, "A" * 42 + "=", "é" * 43, "A" * 43 + "\n"):
        assert not is_id(text)


def test_an_id_stands_for_its_user_in_this_process_and_the_next(make):
    first = make()
    ann, bob = first.begin(ANN), first.begin(BOB)
    for each in (first, make()):
        assert (each.user(ann), each.user(bob), each.user(new_id())) == (ANN, BOB, None)


def test_the_database_does_not_know_the_id(make, store):
    ann = make().begin(ANN)
    [(key,)] = store.read("SELECT id_hash FROM sessions")
    assert ann.encode() not in key
    assert len(key) == 32


def test_it_ends_with_the_day(make, clock):
    each = make()
    ann = each.begin(ANN)
    for _ in range(11):
        clock.now += HOUR
        assert each.user(ann) == ANN
    clock.now += HOUR
    assert each.user(ann) is None
    assert make().user(ann) is None


def test_it_ends_when_nobody_uses_it(make, clock):
    each = make()
    ann = each.begin(ANN)
    clock.now += 2 * HOUR - 1
    assert make().user(ann) == ANN
    clock.now += 2 * HOUR - 1
    assert each.user(ann) == ANN
    clock.now += 2 * HOUR
    assert each.user(ann) is None


def test_a_clock_that_was_set_back_prolongs_nothing(make, clock):
    each = make()
    ann = each.begin(ANN)
    clock.now -= 200
    assert each.user(ann) == ANN
    clock.now -= 24 * HOUR
    assert each.user(ann) is None


def test_it_ends_with_the_user_and_with_the_password(make):
    ann, bob = make().begin(ANN), make().begin(BOB)
    changed = User("ann", "$argon2id$other", "operator")
    later = make(changed)
    assert later.user(ann) is None
    assert later.user(bob) is None
    # And does not come back with them.
    assert make().user(ann) is None


def test_the_role_is_todays(make):
    ann = make().begin(ANN)
    assert make(User("ann", ANN.password_hash, "viewer")).user(ann).role == "viewer"


def test_it_ends_for_other_processes_as_well(make):
    here, there = make(), make()
    ann = here.begin(ANN)
    assert there.user(ann) == ANN
    here.end(ann)
    assert here.user(ann) is None
    assert there.user(ann) is None


def test_nothing_ends_by_an_id_that_is_none(make, store):
    each = make()
    each.begin(ANN)
    for _ in range(10):
        each.end(new_id())
    each.end("nonsense")
    assert store.read("SELECT count(*) FROM sessions") == [(1,)]
    assert not each._ended


def test_a_full_disk_keeps_nobody_out_and_a_logout_holds(make, store):
    each = make()
    before = each.begin(ANN)
    store.writes = False
    during = each.begin(BOB)
    assert (each.user(before), each.user(during)) == (ANN, BOB)
    each.end(before)
    each.end(during)
    assert (each.user(before), each.user(during)) == (None, None)
    store.writes = True
    assert each.user(during) is None
    each.user(new_id())
    assert store.read("SELECT count(*) FROM sessions") == [(0,)]
    assert make().user(before) is None


def test_a_database_that_cannot_be_read_ends_no_session_that_memory_knows(make, store, monkeypatch):
    each = make()
    ann = each.begin(ANN)
    store.reads = store.writes = False
    assert each.user(ann) == ANN
    assert make().user(ann) is None
    monkeypatch.setattr(sessions, "AGAIN_S", 1000.0)
    each.user(ann)
    store.reads = store.writes = True
    assert each.user(ann) == ANN


def test_what_has_ended_does_not_come_back_by_a_request_that_was_under_way(make, store):
    each = make()
    store.writes = False
    ann = each.begin(ANN)
    key, session = next(iter(each._known.items()))
    each.end(ann)
    assert not each._keep(key, session)
    assert each.user(ann) is None


def test_a_user_has_so_many_and_the_one_that_rested_longest_goes(make, clock, store):
    each = make()
    first = each.begin(ANN)
    rested = each.begin(ANN)
    for _ in range(sessions.PER_USER - 1):
        clock.now += 61
        each.begin(ANN)
        each.user(first)
    assert store.read("SELECT count(*) FROM sessions") == [(sessions.PER_USER,)]
    assert each.user(first) == ANN
    assert each.user(rested) is None


def test_old_ones_leave_the_database(make, clock, store):
    each = make()
    each.begin(ANN)
    clock.now += 13 * HOUR
    each.begin(BOB)
    assert store.read("SELECT user FROM sessions") == [("bob",)]


def test_memory_is_bounded(make, store, monkeypatch):
    monkeypatch.setattr(sessions, "IN_MEMORY", 10)
    each = make()
    store.writes = False
    ids = [each.begin(ANN) for _ in range(30)]
    assert len(each._known) == 10
    for ended in ids:
        each.end(ended)
    assert len(each._ended) == len(each._to_delete) == 10


def test_the_database_is_written_once_a_minute_at_most(make, clock, store, monkeypatch):
    each = make()
    ann = each.begin(ANN)
    writes = []
    monkeypatch.setattr(each, "_write", lambda *arguments: writes.append(1) or True)
    for _ in range(100):
        each.user(ann)
    assert writes == []
    clock.now += 60
    each.user(ann)
    each.user(ann)
    assert writes == [1]
