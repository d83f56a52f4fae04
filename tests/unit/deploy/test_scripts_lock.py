"""The lock of a host, held by scripts that are run for real by bash in a folder that stands for the host."""

import fcntl
import json
import os
import signal
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.deploy import hoststate, scripts
from support.deploy import Tree
from support.holder import ID, Holder

OTHER = "fedcba9876543210"


@pytest.fixture
def holders(tree):
    """Start holders in the tree; those that still run at the end lose their connection."""
    made = []

    def make(lock_id=ID, **options):
        made.append(Holder(tree, lock_id, **options))
        return made[-1]

    yield make
    for one in made:
        if one.process.returncode is None:
            one.end()


@pytest.fixture
def lock(tree):
    return tree.srv / ".deploy.lock"


def content(lock):
    return json.loads(lock.read_text())


def age(lock, seconds):
    """Let the lock have been renewed so long ago."""
    then = time.time() - seconds
    os.utime(lock, (then, then))


def state(tree):
    _, lines, _ = tree.run(scripts.inspect(str(tree.srv), (), helper=str(tree.helper)))
    return hoststate.parse_inspection("h", lines).lock


# --- taking ----------------------------------------------------------------------------------------------


def test_a_lock_says_whose_it_is_and_when_it_was_taken(holders, tree, lock):
    one = holders()
    assert one.lock() == ["@ lock taken"]
    assert content(lock) == {**one.content(), "taken": pytest.approx(time.time(), abs=5)}
    assert state(tree) == {**content(lock), "state": "held", "left": 0}


def test_of_many_who_lock_at_once_one_wins_and_the_others_see_it_whole(holders, lock):
    for _ in range(3):
        ones = [holders(f"{n:016x}", patience=1) for n in range(8)]
        for one in ones:
            one.begin("lock " + json.dumps(one.content(owner=one.id), sort_keys=True))
        said = {one.id: one.answer() for one in ones}
        won = [name for name, lines in said.items() if lines == ["@ lock taken"]]
        assert won == [content(lock)["id"]]
        for name, lines in said.items():
            if name not in won:
                last = lines[-1].removeprefix("@ lock refused held 0 ")
                assert json.loads(last) == content(lock)
        for one in ones:
            one.ask("unlock")
            one.end()
        assert not lock.exists()


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_a_lock_holds_exactly_what_was_given(tmp_path_factory, text):
    one = Holder(Tree(tmp_path_factory.mktemp("host")))
    assert one.lock(owner=text) == ["@ lock taken"]
    srv = one.tree.srv
    assert content(srv / ".deploy.lock")["owner"] == text
    assert sorted(p.name for p in srv.iterdir()) == [".deploy.lock", "releases", "shared", "venvs"]
    one.end()
    assert not list(one.tree.base.rglob("pwned"))


def test_one_of_two_that_came_at_the_same_moment_gives_way_and_the_other_waits_for_it(holders, lock):
    small, great = holders("0" * 16), holders("f" * 16)
    assert great.lock() == ["@ lock taken"]
    small.begin("lock " + json.dumps(small.content()))
    # It waits on the host, so what shows that is that it takes the lock when the other gives way.
    great.ask("unlock")
    assert small.answer()[-1] == "@ lock taken"
    assert great.lock()[-1].startswith("@ lock refused held 0 ")
    assert content(lock)["id"] == small.id


def test_who_waits_and_is_told_otherwise_does_not_wait_any_more(holders, lock):
    small, great = holders("0" * 16, patience=1000), holders("f" * 16)
    great.lock()
    small.begin("lock " + json.dumps(small.content()))
    small.number += 1
    small.send("2 unlock")
    lines = small.answer()
    assert [line.split()[2] for line in lines if line.startswith("@ lock")][-1] == "refused"
    assert content(lock)["id"] == great.id


def test_a_folder_that_is_missing_names_the_fix(tree, holders):
    tree.srv.rename(tree.base / "gone")
    one = holders()
    one.begin("lock " + json.dumps(one.content()))
    code, _, err = one.end(close=False)
    assert code == 1
    assert "is missing: run ansible-playbook site.yml first" in err


# --- keeping and losing ----------------------------------------------------------------------------------


def test_every_sign_of_life_renews_the_lock(holders, lock):
    one = holders()
    one.lock()
    age(lock, 50)
    assert one.renew() == "@ lock kept"
    assert time.time() - lock.stat().st_mtime < 10


def test_who_holds_it_keeps_it_whatever_the_clock_says(holders, tree, lock):
    one, other = holders(), holders(OTHER)
    one.lock()
    for jump in (100_000, -100_000):
        age(lock, jump)
        assert other.lock()[-1].startswith("@ lock refused held ")
    assert state(tree)["state"] == "held"


def test_a_lock_that_somebody_removed_or_took_is_lost_and_not_touched(holders, tree, lock):
    one = holders()
    one.lock()
    tree.run(scripts.unlock(str(tree.srv), one.id))
    assert one.renew() == "@ lock lost "
    holders(OTHER).lock()
    assert one.ask("unlock") == []
    assert one.finish(record={"a": 1})[0] == 0
    assert content(lock)["id"] == OTHER


def test_after_a_lost_connection_the_lock_lasts_a_moment_and_is_found_again(holders, lock):
    one = holders()
    one.lock()
    assert one.end()[0] == 0
    again = holders()
    assert again.ask("again") == ["@ lock taken"]
    assert again.renew() == "@ lock kept"


def test_what_was_lost_meanwhile_is_not_taken_again(holders, lock):
    one = holders()
    one.lock()
    one.end()
    lock.unlink()
    again = holders()
    assert again.ask("again") == ["@ lock lost "]
    assert not lock.exists()


def test_when_the_holder_of_a_lock_is_gone_the_next_waits_and_takes_over_and_says_whose_it_was(holders, lock):
    one, other = holders(grace=1), holders(OTHER, grace=1)
    one.lock(owner="ann")
    before = content(lock)
    one.end()
    lines = other.lock(owner="bob")
    assert json.loads(lines[-2].removeprefix("@ lock from ")) == before
    assert lines[-1] == "@ lock taken"
    assert content(lock)["owner"] == "bob"


def test_a_holder_that_died_without_a_word_keeps_the_lock_for_its_lease_and_no_longer(holders, tree, lock):
    one, other = holders(), holders(OTHER)
    one.lock()
    one.kill()
    age(lock, 30)
    refused = other.lock()[-1].split(" ", 5)
    assert refused[:4] == ["@", "lock", "refused", "dying"]
    assert 25 <= int(refused[4]) <= 30
    assert state(tree)["state"] == "dying"
    age(lock, 61)
    assert state(tree)["state"] == "stale"
    assert other.lock()[-1] == "@ lock taken"


def test_a_lock_from_the_future_ends_as_well(holders, lock):
    one, other = holders(), holders(OTHER)
    one.lock()
    one.kill()
    age(lock, -100_000)
    assert other.lock()[-1] == "@ lock taken"


def test_a_silent_deploy_loses_the_lock(holders, lock):
    one = holders(lease=1, grace=0)
    one.lock(lease=1)
    # Nothing is said, and nothing is closed.
    assert one.process.wait(60) == 0
    assert holders(OTHER).lock(lease=1)[-1] == "@ lock taken"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_holder_that_is_told_to_end_lets_go(holders, lock, number):
    one, other = holders(grace=1), holders(OTHER, grace=1)
    one.lock()
    one.process.send_signal(number)
    # bash may hear of a signal only when the next line comes.
    with suppress(BrokenPipeError):
        one.send("")
    assert one.process.wait(60) == 75
    assert other.lock()[-1] == "@ lock taken"


def test_a_dead_deploys_switch_is_waited_for(holders, tree, lock):
    one, other = holders(grace=0), holders(OTHER, grace=0)
    with (tree.srv / ".switching").open("w") as switch:
        fcntl.flock(switch, fcntl.LOCK_EX)
        one.lock()
        one.end()
        age(lock, 1000)
        assert state(tree)["state"] == "switching"
        other.begin("lock " + json.dumps(other.content()))
        assert other.line().startswith("@ lock waits switching {")
    assert other.answer()[-1] == "@ lock taken"


def test_a_dead_deploys_switch_is_not_waited_for_without_end(holders, tree, lock):
    one, other = holders(), holders(OTHER, settle=0)
    with (tree.srv / ".switching").open("w") as switch:
        fcntl.flock(switch, fcntl.LOCK_EX)
        one.lock()
        one.end()
        assert other.lock()[-1].startswith("@ lock refused switching 0 {")


# --- what is no lock of ours -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "maintenance until monday\n", "{\0\xff\n}", '{"owner": "ann"}', "[1]"])
def test_a_lock_that_names_no_lease_stands_until_somebody_removes_it(holders, tree, lock, text):
    lock.write_bytes(text.encode("latin-1"))
    age(lock, 1_000_000)
    line = holders().lock()[-1]
    assert line.startswith("@ lock refused forever 0 ")
    assert lock.read_bytes() == text.encode("latin-1")
    found = state(tree)
    assert found["state"] == "forever"
    mark = str(found.get("id") or found.get("content") or "")
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), mark))
    assert lines == ["@ unlocked"]


def test_a_lock_that_cannot_be_read_is_still_a_lock_and_can_be_removed(holders, tree, lock):
    lock.mkdir()
    assert "unreadable" in holders().lock()[-1]
    found = state(tree)
    assert (found["state"], found["unreadable"]) == ("forever", True)
    assert tree.run(scripts.unlock(str(tree.srv), ""))[1] == ["@ unlocked"]
    assert not lock.exists()


def test_a_link_to_nowhere_is_a_lock_too(holders, lock):
    lock.symlink_to("nowhere")
    assert holders().lock()[-1].startswith("@ lock refused forever ")


def test_only_the_lock_with_the_right_id_is_removed(holders, tree, lock):
    holders().lock()
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), OTHER))
    assert lines[0].startswith('@ kept {"id": "')
    assert lock.exists()
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), ID))
    assert lines == ["@ unlocked"]
    assert not lock.exists()
