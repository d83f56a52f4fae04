"""Password hashes: which are taken, and how many are looked at at a time."""

from __future__ import annotations

import threading

import pytest
from argon2 import PasswordHasher, extract_parameters

from kestrel_stack.web.access import passwords
from kestrel_stack.web.access.passwords import BusyError, Passwords
from support.broker import wait_until

CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
# With a salt of its own each worker of a parallel run would find other tests here.
HASH = CHEAP.hash("correct horse", salt=b"always one salt.")


def test_a_hash_is_argon2id_and_takes_what_the_library_recommends():
    made = passwords.make("correct horse")
    assert made.startswith("$argon2id$")
    assert passwords.problem(made) is None
    assert not passwords.outdated(made)
    assert passwords.outdated(HASH)
    assert Passwords([made]).right(made, "correct horse")


@pytest.mark.parametrize("password", ["", "short", "x" * 1025, "é" * 600])
def test_a_password_that_is_too_short_or_too_long_gets_none(password):
    with pytest.raises(ValueError, match="password is too"):
        passwords.make(password)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "$2b$12$KIXQ",
        HASH.replace("argon2id", "argon2i"),
        HASH[:-22],
        HASH + "\n",
        HASH.replace("m=64", "m=7"),
        HASH.replace("m=64", "m=999999999"),
        HASH.replace("t=1", "t=0"),
        HASH.replace("t=1", "t=1000"),
        HASH.replace("p=1", "p=99"),
        HASH.rpartition("$")[0] + "$" + "A" * 17,
    ],
)
def test_a_hash_that_could_not_be_used_is_refused_in_one_line_without_it(text):
    line = passwords.problem(text)
    assert line
    assert "\n" not in line
    assert not text or text not in line


def test_right_and_wrong():
    looking = Passwords([HASH])
    assert looking.right(HASH, "correct horse")
    for wrong in ("", "correct horse ", "x" * 5000, "correct horse\0", "\ud800"):
        assert not looking.right(HASH, wrong)


def test_nobody_gets_in_with_the_decoys_password_and_it_costs_the_same():
    looking = Passwords([HASH, HASH, passwords.make("another one")])
    assert extract_parameters(looking._decoy) == extract_parameters(HASH)
    assert passwords.problem(looking._decoy) is None
    for password in ("", "correct horse", "x"):
        assert not looking.right(None, password)
    assert Passwords([])._decoy != Passwords([])._decoy


def test_the_work_for_an_unknown_name_is_done(monkeypatch):
    looked = []

    class Counting:
        def verify(self, text, password):
            looked.append(extract_parameters(text))
            return CHEAP.verify(text, password)

    monkeypatch.setattr(passwords, "_HASHER", Counting())
    looking = Passwords([HASH])
    looking.right(HASH, "wrong")
    looking.right(None, "wrong")
    looking.right(HASH, "x" * 5000)
    assert looked == [extract_parameters(HASH)] * 3


def test_so_many_at_a_time_so_many_wait_and_the_next_is_turned_away(monkeypatch):
    inside, go_on = threading.Semaphore(0), threading.Event()
    at_work, most = [], []

    class Slow:
        def verify(self, text, password):
            at_work.append(1)
            most.append(len(at_work))
            inside.release()
            go_on.wait(60)
            at_work.pop()
            return True

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    looking = Passwords([HASH], at_a_time=2, waiting=1)
    results = []
    threads = [threading.Thread(target=lambda: results.append(looking.right(HASH, "x"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=60)
    assert inside.acquire(timeout=60)
    # Two are at work, the third waits; whoever comes when all places are taken is turned away.
    wait_until(lambda: looking._room._value == 0, "the third to wait")
    with pytest.raises(BusyError):
        looking.right(HASH, "x")
    go_on.set()
    for thread in threads:
        thread.join()
    assert results == [True] * 3
    assert max(most) == 2
    assert looking.right(HASH, "x")


def test_memory_that_is_not_there_is_no_wrong_password():
    too_much = HASH.replace("m=64", "m=4294967295")
    with pytest.raises(BusyError):
        Passwords([HASH]).right(too_much, "correct horse")
