"""Expired items go to another queue, and none is lost on the way."""

import errno
import os

import pytest

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker.queue import Queue


@pytest.fixture
def queues():
    return {}


@pytest.fixture
def pair(make, queues):
    """Make the source ``q`` and its target ``dead``."""

    def make_pair(source=None, target=None) -> tuple[Queue, Queue]:
        settings = {"expire_to_queue": "dead", **(source or {})}
        queues["q"] = make(find=queues.get, **settings)
        queues["dead"] = make(name="dead", find=queues.get, **(target or {}))
        return queues["q"], queues["dead"]

    return make_pair


def held(queue: Queue) -> list[tuple[bytes, int, int]]:
    return [(item.data, item.added_ms, item.expiry_ms) for item in iter(queue.remove, None)]


def test_an_expired_item_moves_with_a_new_time_and_without_its_expiry(pair, clock):
    """As golden case 18."""
    source, target = pair({"max_age": 1})
    source.add(b"one")
    source.add(b"two")
    clock.now += 1200
    assert source.drop_expired() == 2
    assert (source.items, source.expired, source.journal.path.read_bytes()[-2:]) == (0, 2, b"\x01\x01")
    assert held(target) == [(b"one", clock.now, 0), (b"two", clock.now, 0)]


def test_the_targets_own_max_age_holds_for_the_copy(pair, clock):
    source, target = pair({"max_age": 1}, {"max_age": 10})
    source.add(b"one")
    clock.now += 1000
    source.drop_expired()
    assert held(target) == [(b"one", clock.now, clock.now + 10_000)]


@pytest.mark.parametrize("look", ["add", "get", "peek", "sweep"])
def test_whatever_looks_at_the_head_moves_it(pair, clock, look):
    source, target = pair()
    source.add(b"late", 1000)
    source.add(b"live")
    clock.now += 1000
    {
        "add": lambda: source.add(b"next"),
        "get": source.open,
        "peek": source.peek,
        "sweep": source.drop_expired,
    }[look]()
    assert [data for data, *_ in held(target)] == [b"late"]


@pytest.mark.parametrize("limits", [{"max_items": 1}, {"max_size": 3}, {"max_item_size": 4}])
def test_what_the_target_refuses_waits_at_the_head_and_goes_when_there_is_room(pair, clock, caplog, limits):
    """Kestrel loses it: golden case 19."""
    source, target = pair(None, limits)
    for data in (b"one", b"three", b"two"):
        source.add(data, 1000)
    source.add(b"live")
    clock.now += 1000
    moved = source.drop_expired()
    assert moved == target.items
    assert (moved, source.items) == (1, 3)
    assert (source.remove(), source.peek(), source.items) == (None, None, 3)
    assert caplog.text.count("dead does not take its expired items") == 1
    target.settings = make_unlimited(target)
    assert source.peek().data == b"live"
    assert [data for data, *_ in held(target)] == [b"one", b"three", b"two"]


def make_unlimited(queue: Queue):
    return type(queue.settings)()


def test_they_wait_too_when_there_is_no_such_queue_and_after_a_restart(pair, clock, queues, make):
    source, _ = pair()
    source.add(b"late", 1000)
    clock.now += 1000
    queues.pop("dead").delete()
    assert (source.drop_expired(), source.items, source.remove()) == (0, 1, None)
    source.close()
    source = make(find=queues.get, expire_to_queue="dead")
    assert source.items == 1
    queues["dead"] = make(name="dead")
    assert source.drop_expired() == 1
    assert queues["dead"].items == 1


def test_the_target_is_looked_up_each_time_so_that_a_new_one_of_its_name_gets_them(pair, clock, queues, make):
    """Kestrel goes on with the deleted one, and what expires is lost."""
    source, old = pair()
    old.delete()
    queues["dead"] = make(name="dead")
    source.add(b"late", 1000)
    clock.now += 1000
    source.drop_expired()
    assert queues["dead"].items == 1


def test_a_full_disk_at_the_target_leaves_the_item_here(pair, clock, monkeypatch):
    source, target = pair()
    source.add(b"late", 1000)
    clock.now += 1000
    full = True

    def write(fd, data, real=os.write):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(journal_module.os, "write", write)
    assert (source.drop_expired(), source.items, target.items) == (0, 1, 0)
    full = False
    assert (source.drop_expired(), source.items, target.items) == (1, 0, 1)


def test_a_disk_that_fills_between_the_two_records_moves_the_item_once(pair, clock, monkeypatch, make):
    source, target = pair()
    source.add(b"late", 1000)
    source.add(b"live")
    clock.now += 1000
    full = True

    def write(fd, data, real=os.write):
        if full and bytes(data) == b"\x01":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(journal_module.os, "write", write)
    assert (source.drop_expired(), source.drop_expired(), target.items) == (1, 0, 1)
    full = False
    assert source.remove().data == b"live"
    source.close()
    assert make().items == 0


@pytest.mark.parametrize("refused_after", [0, 1])
def test_a_crash_between_the_two_records_gives_the_item_twice_and_never_loses_it(
    pair, clock, monkeypatch, make, refused_after
):
    class KilledError(BaseException):
        pass

    source, _target = pair()
    source.add(b"late", 1000)
    clock.now += 1000
    writes = 0

    def write(fd, data, real=os.write):
        nonlocal writes
        writes += 1
        if writes > refused_after:
            raise KilledError
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, "write", write)
        with pytest.raises(KilledError):
            source.drop_expired()
    again, dead = make(), make(name="dead")
    assert (again._backlog.items, dead.items) == (1, refused_after)


def test_two_queues_that_expire_to_each_other_do_not_go_round_for_ever(make, clock, queues):
    queues["q"] = make(find=queues.get, expire_to_queue="dead", max_age=1)
    queues["dead"] = make(name="dead", find=queues.get, expire_to_queue="q", max_age=1)
    queues["q"].add(b"1")
    queues["dead"].add(b"2")
    clock.now += 1000
    queues["q"].drop_expired()
    queues["dead"].drop_expired()
    assert sorted(data for queue in queues.values() for data, *_ in held(queue)) == [b"1", b"2"]


def test_what_comes_back_meanwhile_pushes_nothing_out(make, clock, queues):
    """An item that goes may bring one back; the heads that are on their way are not the ones to discard."""
    queues["q"] = make(find=queues.get, expire_to_queue="dead", max_items=3, discard_old_when_full=True)
    queues["dead"] = make(name="dead", find=queues.get, expire_to_queue="q")
    queues["dead"].add(b"back", 1000)
    queues["q"].add(b"goes", 1000)
    for data in (b"stays", b"stays too"):
        queues["q"].add(data)
    clock.now += 1000
    queues["q"].drop_expired()
    assert [data for data, *_ in held(queues["q"])][:2] == [b"stays", b"stays too"]
    assert sum(queue.discarded for queue in queues.values()) == 0


def test_a_queue_that_would_expire_to_itself_keeps_its_items(make, clock, queues):
    queues["q"] = make(find=queues.get, expire_to_queue="q", max_age=1)
    queues["q"].add(b"1")
    clock.now += 1000
    assert (queues["q"].drop_expired(), queues["q"].items) == (0, 1)


def test_a_thousand_items_larger_than_memory_move_in_order(pair, clock):
    source, target = pair({"max_memory_size": 100}, {"max_memory_size": 100})
    expected = [b"%06d" % number for number in range(1000)]
    for data in expected:
        source.add(data, 1000)
    clock.now += 1000
    assert source.drop_expired(10) == 10
    assert source.drop_expired() == 990
    assert [data for data, *_ in held(target)] == expected


def test_who_waits_at_the_target_gets_it(pair, clock):
    source, target = pair()
    got = []

    class Waiting:
        def alive(self):
            return True

        def wake(self):
            got.append(target.remove().data)

    target.wait(Waiting())
    source.add(b"late", 1000)
    clock.now += 1000
    source.drop_expired()
    assert got == [b"late"]
