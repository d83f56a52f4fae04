"""Doing something once: on a real SQLite file and on a real Redis, with threads, processes and crashes."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import uuid

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kestrel_stack.queue.once import Busy, Once, RedisStore, SqliteStore, StoreFailed
from support.broker import wait_until
from support.redis_server import RedisProcess

DAY = 86_400


@pytest.fixture(scope="module")
def redis_server():
    with RedisProcess() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def make(request, tmp_path):
    """Return a function that makes a store on the same data, as each worker makes its own."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "once.db")
    server = request.getfixturevalue("redis_server")
    return lambda: RedisStore(redis.Redis(server.host, server.port))


@pytest.fixture
def key():
    return uuid.uuid4().hex


def boom():
    raise ZeroDivisionError


def test_a_function_runs_the_first_time_and_not_again(make, key):
    done = []
    assert Once(make()).run(key, DAY, lambda: done.append(1)) is True
    assert Once(make()).run(key, DAY, lambda: done.append(2)) is False
    assert Once(make()).run(key + "x", DAY, lambda: done.append(3)) is True
    assert done == [1, 3]


def test_a_function_that_failed_runs_again(make, key):
    once = Once(make())
    with pytest.raises(ZeroDivisionError):
        once.run(key, DAY, boom)
    assert once.run(key, DAY, lambda: None) is True
    assert once.run(key, DAY, boom) is False


def test_while_one_is_at_it_the_other_is_told_busy(make, key):
    def try_it_too():
        with pytest.raises(Busy, match="Another worker is at"):
            Once(make()).run(key, DAY, boom)

    assert Once(make()).run(key, DAY, try_it_too) is True


def test_after_its_ttl_it_runs_again(make, key):
    once = Once(make())
    assert once.run(key, 0.05, lambda: None) is True
    wait_until(lambda: once.run(key, DAY, lambda: None), "the mark to be forgotten")


def test_of_many_threads_one_runs_it(make, key):
    done, begin = [], threading.Barrier(8)

    def work():
        once = Once(make())
        begin.wait()
        while True:
            try:
                once.run(key, DAY, lambda: done.append(threading.get_ident()))
                return
            except Busy:
                continue

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1


def test_of_many_processes_one_runs_it(make, tmp_path):
    """Each key is wanted by all; what was run is in a file that the processes append to."""
    ran = tmp_path / "ran"
    keys = [uuid.uuid4().hex for _ in range(25)]

    def work():
        once = Once(make())
        for key in keys:
            while True:
                try:
                    once.run(key, DAY, lambda key=key: append(ran, key))
                    break
                except Busy:
                    continue

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(ran.read_text().split()) == sorted(keys)


def append(path, line):
    with path.open("a") as file:
        file.write(line + "\n")


def test_a_worker_that_dies_between_the_act_and_its_mark_leaves_a_claim_until_its_lease_is_over(make, key):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=lambda: Once(make(), lease=1).run(key, DAY, die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    once = Once(make())
    with pytest.raises(Busy):
        once.run(key, DAY, boom)
    done = []

    def again():
        try:
            return once.run(key, DAY, lambda: done.append(1))
        except Busy:
            return False

    wait_until(again, "the lease to end")
    assert done == [1]


def test_one_whose_lease_ran_out_marks_it_unless_another_is_at_it(make, key):
    store = make()
    late, other = "late", "other"
    assert store.claim(key, late, 0.05)
    wait_until(lambda: free(store, key, other), "the lease to end")
    store.mark(key, late, DAY)
    with pytest.raises(Busy):
        store.claim(key, "third", 60)
    store.release(key, late)
    with pytest.raises(Busy):
        store.claim(key, "third", 60)
    store.release(key, other)
    assert store.claim(key, late, 0.05)
    store.mark(key, late, DAY)
    assert store.claim(key, "third", 60) is False


def free(store, key, token):
    try:
        return store.claim(key, token, 60)
    except Busy:
        return False


def test_a_mark_comes_even_after_its_claim_was_cleared_away(make, key):
    store = make()
    store.mark(key, "whose claim is gone", DAY)
    assert store.claim(key, "other", 60) is False


@pytest.mark.parametrize("wrong", ["", "x" * 201, None, 7])
def test_a_key_that_cannot_be_kept_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="1 to 200 characters"):
        Once(SqliteStore(tmp_path / "once.db")).run(wrong, DAY, boom)


def test_times_that_make_no_sense_are_refused(tmp_path):
    store = SqliteStore(tmp_path / "once.db")
    with pytest.raises(ValueError, match="ttl"):
        Once(store).run("a", 0, boom)
    with pytest.raises(ValueError, match="lease"):
        Once(store, lease=0)


def test_a_file_that_cannot_be_used_is_named_and_nothing_is_run(tmp_path):
    with pytest.raises(StoreFailed, match=f"{tmp_path}.* cannot be used"):
        Once(SqliteStore(tmp_path)).run("a", DAY, boom)
    (tmp_path / "text").write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(StoreFailed, match="not a database"):
        Once(SqliteStore(tmp_path / "text")).run("a", DAY, boom)


def test_a_locked_file_is_waited_for_and_then_named(tmp_path):
    path = tmp_path / "once.db"
    Once(SqliteStore(path)).run("a", DAY, lambda: None)
    holding = sqlite3.connect(path, isolation_level=None)
    holding.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="locked"):
        Once(SqliteStore(path, timeout=0.1)).run("b", DAY, boom)
    holding.close()


def test_an_error_of_the_application_is_not_taken_for_one_of_the_store(tmp_path):
    def fails():
        raise sqlite3.OperationalError("the application's own")

    with pytest.raises(sqlite3.OperationalError, match="the application's own"):
        Once(SqliteStore(tmp_path / "once.db")).run("a", DAY, fails)


def test_a_redis_that_is_away_is_said_and_nothing_is_run():
    at_once = Retry(NoBackoff(), 0)
    with pytest.raises(StoreFailed, match="Redis cannot be used"):
        Once(RedisStore(redis.Redis("127.0.0.1", 1, retry=at_once))).run("a", DAY, boom)


def test_what_is_forgotten_takes_no_room(tmp_path):
    path = tmp_path / "once.db"
    once = Once(SqliteStore(path))
    for number in range(20):
        once.run(f"short {number}", 0.001, lambda: None)
    wait_until(lambda: once.run("last", 0.001, lambda: None) and rows(path) == 1, "old rows to be deleted")


def rows(path):
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT count(*) FROM kestrel_stack_once").fetchone()[0]
    finally:
        database.close()
