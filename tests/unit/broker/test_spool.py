"""All queues of a folder: fanouts, aliases, settings, idle queues."""

import errno
import os

import pytest

from kestrel_stack.broker import journal as journal_module
from kestrel_stack.broker.config import QueueSettings, parse
from kestrel_stack.broker.journal import JournalError
from kestrel_stack.broker.protocol import HangUp
from kestrel_stack.broker.spool import Spool


@pytest.fixture
def spool_of(tmp_path, clock):
    """Make a loaded spool of the test's folder; the one before is closed."""
    (tmp_path / "spool").mkdir()
    opened = []

    def make(**config) -> Spool:
        close()
        settings = {"queue_path": str(tmp_path / "spool"), "sync_journal_ms": None, **config}
        opened.append(Spool(parse(settings), clock=clock))
        opened[-1].load()
        return opened[-1]

    def close():
        while opened:
            opened.pop().close()

    yield make
    close()


def content(spool: Spool) -> dict[str, list[bytes]]:
    """Take everything out of every queue."""
    found = {}
    for name, queue in spool.queues.items():
        found[name] = []
        while item := queue.remove():
            found[name].append(item.data)
    return found


# Fanouts


def test_a_fanout_gets_copies_from_its_first_use_on_and_nothing_older(spool_of):
    spool = spool_of()
    spool.add("a", b"1")
    spool.get_or_create("a+x")
    spool.add("a", b"2")
    spool.add("a+y", b"only y")
    spool.add("a", b"3")
    assert spool.total_items == 3 + 3 + 1
    assert content(spool) == {"a": [b"1", b"2", b"3"], "a+x": [b"2", b"3"], "a+y": [b"only y", b"3"]}


def test_a_fanout_is_restored_at_start_by_its_file(spool_of):
    spool = spool_of()
    spool.get_or_create("a+x")
    spool = spool_of()
    assert spool.fanouts == {"a": {"a+x": None}}
    spool.add("a", b"1")
    assert content(spool) == {"a+x": [b"1"], "a": [b"1"]}


def test_a_deleted_fanout_is_detached_and_a_deleted_parent_keeps_its_fanouts(spool_of):
    spool = spool_of()
    for name in ("a+x", "a+y", "a"):
        spool.get_or_create(name)
    spool.delete("a+x")
    spool.delete("a")
    spool.add("a", b"1")
    assert content(spool) == {"a+y": [b"1"], "a": [b"1"]}


def test_what_a_fanout_refuses_is_its_own_loss(spool_of):
    spool = spool_of(queues={"a+x": {"max_items": 1}, "a": {"max_items": 2}})
    spool.get_or_create("a+x")
    assert [spool.add("a", b"%d" % n) for n in range(4)] == [True, True, False, False]
    assert content(spool) == {"a+x": [b"0"], "a": [b"0", b"1"]}


def test_a_fanout_that_takes_what_its_parent_refuses_has_it(spool_of):
    spool = spool_of(queues={"a": {"max_item_size": 3}, "a+big": {"max_item_size": 5}})
    spool.get_or_create("a+big")
    assert spool.item_limit("a") == 5
    assert not spool.add("a", b"12345")
    assert content(spool) == {"a+big": [b"12345"], "a": []}


def test_a_parent_that_is_fanout_only_keeps_nothing_but_refuses_what_is_too_large(spool_of):
    spool = spool_of(queues={"a": {"fanout_only": True, "max_item_size": 3}})
    assert spool.add("a", b"1")
    spool.get_or_create("a+x")
    assert spool.add("a", b"1")
    assert not spool.add("a", b"1234")
    assert spool.add("a+x", b"2")
    assert content(spool) == {"a": [], "a+x": [b"1", b"2"]}


def test_a_fanout_whose_journal_fails_fails_the_set_before_the_parent_has_it(spool_of, monkeypatch):
    spool = spool_of()
    child = spool.get_or_create("a+x")
    spool.get_or_create("a")

    def full(records):
        raise JournalError(errno.ENOSPC)

    monkeypatch.setattr(child.journal, "append", full)
    with pytest.raises(JournalError):
        spool.add("a", b"1")
    assert content(spool) == {"a+x": [], "a": []}


# Names


@pytest.mark.parametrize("name", ["", "+", "++", ".", "..", "a.b", "a~b", "a/b", "a+b.c", "a\0b", "q" * 256])
def test_a_name_that_no_queue_can_have_is_a_silent_close(spool_of, name):
    spool = spool_of()
    with pytest.raises(HangUp) as refusal:
        spool.get_or_create(name)
    assert refusal.value.reply == b""
    assert (spool.queues, spool.fanouts) == ({}, {})


@pytest.mark.parametrize("name", ["a", "+b", "a+", "a+b+c", "\xfc", "a b", "a\tb", "q" * 230])
def test_every_other_name_is_one_and_is_found_again(spool_of, name):
    spool_of().add(name, b"1")
    assert content(spool_of()) == {name: [b"1"]}


def test_what_is_no_file_is_no_queue_and_stops_nobody(spool_of, tmp_path):
    (tmp_path / "spool" / "folder").mkdir()
    os.mkfifo(tmp_path / "spool" / "pipe")  # whoever opens it waits for ever
    (tmp_path / "spool" / "loop").symlink_to("loop")
    spool = spool_of()
    for name in ("folder", "pipe", "loop"):
        with pytest.raises(HangUp):
            spool.get_or_create(name)
    assert spool.add("a", b"1")
    assert content(spool) == {"a": [b"1"]}


# Aliases


def test_an_alias_is_all_of_its_queues_for_a_set(spool_of):
    spool = spool_of(aliases={"all": ["a", "b+x"]})
    spool.get_or_create("a+copy")
    assert spool.add("all", b"12")
    assert content(spool) == {"a+copy": [b"12"], "a": [b"12"], "b+x": [b"12"]}
    assert (spool.aliases["all"].put_items, spool.aliases["all"].put_bytes) == (1, 2)


def test_an_alias_refuses_when_one_does_and_the_others_have_the_item(spool_of):
    spool = spool_of(aliases={"all": ["full", "b"]}, queues={"full": {"max_items": 1}})
    assert spool.add("all", b"1")
    assert not spool.add("all", b"2")
    assert content(spool) == {"full": [b"1"], "b": [b"1", b"2"]}


def test_the_greatest_item_of_an_alias_is_that_of_its_most_generous_queue(spool_of):
    spool = spool_of(
        aliases={"some": ["a", "b"], "any": ["a", "c"]},
        queues={"a": {"max_item_size": 3}, "b": {"max_item_size": 5}},
    )
    assert (spool.item_limit("some"), spool.item_limit("any")) == (5, None)


def test_deleting_an_alias_does_nothing(spool_of):
    spool = spool_of(aliases={"all": ["a"]})
    spool.delete("all")
    assert spool.add("all", b"1")
    assert content(spool) == {"a": [b"1"]}


# Settings and reload


def test_a_reload_reaches_live_queues_their_fanouts_and_new_ones(spool_of):
    spool = spool_of(queues={"a": {"max_items": 1}})
    for name in ("a", "a+x", "b"):
        spool.get_or_create(name)
    changed = {"queues": {"a": {"max_items": 7}}, "default": {"max_size": 9}}
    config = {"queue_path": str(spool.config.queue_path), "sync_journal_ms": None, **changed}
    assert spool.reload(parse(config)) == []
    assert spool.queues["a"].settings == QueueSettings(7, 9)
    assert spool.queues["a+x"].settings == QueueSettings(7, 9)
    assert spool.queues["b"].settings == spool.get_or_create("new").settings == QueueSettings(max_size=9)


def test_what_a_queue_has_from_its_beginning_stays_and_is_named(spool_of):
    spool = spool_of()
    spool.get_or_create("a")
    changed = {"default": {"keep_journal": False, "max_items": 3}}
    config = {"queue_path": str(spool.config.queue_path), "sync_journal_ms": None, **changed}
    assert spool.reload(parse(config)) == ['queue "a": keep_journal']
    assert spool.queues["a"].settings.keep_journal
    assert spool.queues["a"].settings.max_items == 3


def test_a_reload_changes_when_journals_are_synced(spool_of):
    spool = spool_of()
    asked = []
    spool._syncer_for = lambda period: lambda journal: asked.append(period)
    journal = spool.get_or_create("a").journal
    for sync_ms in (0, 7, None):
        config = {"queue_path": str(spool.config.queue_path), "sync_journal_ms": sync_ms}
        spool.reload(parse({**config, "default": {}}))
        assert journal.sync_each_write == (sync_ms == 0)
        os.close(journal.duplicate_for_sync())
        spool.add("a", b"1")
    assert asked == [7]


def test_an_expired_item_goes_to_its_queue_also_when_that_was_deleted_since(spool_of, clock):
    spool = spool_of(queues={"a": {"expire_to_queue": "late"}})
    spool.add("a", b"1", 1000)
    spool.delete("late")
    clock.now += 1001
    assert spool.queues["a"].drop_expired() == 1
    assert content(spool) == {"a": [], "late": [b"1"]}


def test_a_reload_changes_makes_and_ends_aliases(spool_of):
    spool = spool_of(aliases={"stays": ["a"], "goes": ["a"]})
    spool.add("stays", b"1")
    changed = {"aliases": {"stays": ["b"], "comes": ["c"]}}
    spool.reload(parse({"queue_path": str(spool.config.queue_path), "sync_journal_ms": None, **changed}))
    assert {name: alias.targets for name, alias in spool.aliases.items()} == {
        "stays": ("b",),
        "comes": ("c",),
    }
    assert spool.aliases["stays"].put_items == 1
    spool.add("goes", b"2")
    assert content(spool) == {"a": [b"1"], "goes": [b"2"]}


def test_an_alias_that_hides_a_queue_is_named(spool_of, caplog):
    spool_of().add("all", b"1")
    spool_of(aliases={"all": ["a"]})
    assert "all: the alias hides a queue of this name" in caplog.text


def test_the_queue_that_items_expire_to_is_made_with_its_source(spool_of):
    spool = spool_of(queues={"a": {"expire_to_queue": "b"}, "b": {"expire_to_queue": "a"}})
    spool.get_or_create("a")
    assert list(spool.queues) == ["a", "b"]
    late = {"default": {"expire_to_queue": "late"}, "queues": {"late": {"expire_to_queue": None}}}
    assert list(spool_of(**late).queues) == ["a", "b", "late"]


# Idle queues


def test_an_empty_queue_older_than_its_limit_is_deleted_and_counted(spool_of, clock):
    spool = spool_of(queues={"old": {"max_queue_age": 10}, "full": {"max_queue_age": 10}})
    for name in ("old", "full", "other"):
        spool.get_or_create(name)
    spool.add("full", b"1")
    clock.now += 10_000
    spool.delete_idle()
    assert list(spool.queues) == ["old", "full", "other"]
    clock.now += 1
    spool.delete_idle()
    assert list(spool.queues) == ["full", "other"]
    assert (spool.queue_expires, spool.queue_deletes) == (1, 1)
    assert sorted(path.name for path in spool.config.queue_path.iterdir()) == ["full", "other"]


def test_a_queue_with_open_reads_is_not_idle(spool_of, clock):
    spool = spool_of(default={"max_queue_age": 10})
    spool.add("a", b"1")
    xid, _ = spool.queues["a"].open()
    clock.now += 20_000
    spool.delete_idle()
    spool.queues["a"].put_back_one(xid)
    assert content(spool) == {"a": [b"1"]}


def test_the_times_of_a_deleted_queue_stay_in_the_servers(spool_of):
    spool = spool_of()
    spool.get_or_create("a")
    spool.timings_of("a").set.add(5)
    spool.delete("a")
    assert spool.timings == {}
    assert spool.past_timings.set.summary()["count"] == 1


# What a start cuts off


def test_a_queue_named_like_the_folder_of_what_was_cut_off_is_one_and_nothing_is_lost(spool_of, tmp_path):
    spool_of().add("damaged", b"1")
    (tmp_path / "spool/a").write_bytes(b"somebody's file")
    assert content(spool_of()) == {"a": [], "damaged": [b"1"]}
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "spool"]
    assert [path.read_bytes() for path in kept] == [b"somebody's file"]


def test_half_of_what_is_cut_off_is_not_kept_as_if_it_were_the_whole(spool_of, tmp_path, monkeypatch, caplog):
    def full(source, target):
        target.write(source.read(3))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal_module.shutil, "copyfileobj", full)
    (tmp_path / "spool").joinpath("a").write_bytes(b"somebody's file")
    spool_of()
    assert "cannot keep what is dropped: No space left on device" in caplog.text
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
