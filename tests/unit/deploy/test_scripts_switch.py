"""The script that switches a host, run for real by bash in a folder that stands for a host."""

import threading

import pytest

from kestrel_stack.deploy import hoststate, plan, scripts
from support.deploy import NEW, OLD, wait_for


def switch(tree, old, new, **kwargs):
    return scripts.switch(
        str(tree.srv), tree.groups, from_release=old, to_release=new, helper=str(tree.helper), **kwargs
    )


def stand(lines):
    return [line.split()[2] for line in lines if line.startswith("@ stand")]


def test_workers_are_drained_and_started_again_from_the_new_release(running):
    code, lines, err = running.run(switch(running, OLD, NEW))
    assert code == 0, err
    assert running.current == NEW
    assert str((running.srv / "current").readlink()) == f"releases/{NEW}"
    assert running.workers == {"shop_a": NEW, "shop_b": NEW}
    assert stand(lines) == ["after"]
    calls = (running.base / "calls").read_text().split("\n")[:-1]
    assert sorted(calls[:2]) == ["drain shop_a", "drain shop_b"]
    assert sorted(calls[2:]) == ["start shop_a", "start shop_b"]


def test_current_is_there_at_every_moment(running):
    missed, looks, done = [], [], threading.Event()

    def look():
        while not done.is_set():
            looks.append(1)
            if running.current not in (OLD, NEW):
                missed.append(running.current)

    watcher = threading.Thread(target=look)
    watcher.start()
    for old, new in ((OLD, NEW), (NEW, OLD)) * 3:
        assert running.run(switch(running, old, new))[0] == 0
    done.set()
    watcher.join()
    assert len(looks) > 1000
    assert missed == []


@pytest.mark.parametrize("action", ["drain", "start"])
def test_a_host_whose_workers_do_not_obey_goes_back_by_itself(running, action):
    # The start fails from the new release only: an application that does not import.
    running.mark(f"fail-{action}-shop_b", NEW if action == "start" else "")
    code, lines, err = running.run(switch(running, OLD, NEW))
    assert code == 1
    assert f"workers {action} shop_b: shop_b_00 would not {action}" in err
    assert running.current == OLD
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
    assert stand(lines) == ["before"]


def test_a_host_that_cannot_go_back_says_so(running):
    running.mark("fail-start-shop_b")
    code, lines, _ = running.run(switch(running, OLD, NEW))
    assert code == 1
    assert running.current == OLD
    assert stand(lines) == ["broken"]


def test_a_first_deploy_that_fails_leaves_no_current_and_no_workers(tree):
    tree.release(NEW, verified=False)
    tree.mark("fail-start-shop_b")
    code, lines, _ = tree.run(switch(tree, "", NEW))
    assert code == 1
    assert tree.current is None
    assert tree.workers == {"shop_a": None, "shop_b": None}
    assert stand(lines) == ["before"]


@pytest.mark.parametrize("moment", ["drain", "start"])
def test_a_connection_that_is_lost_puts_the_host_back(running, moment):
    slow = running.mark(f"slow-{moment}-shop_b")
    process = running.start(switch(running, OLD, NEW))
    wait_for((running.base / f"in-{moment}-shop_b").exists)
    # Nobody listens any more, either.
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    slow.unlink()
    assert process.wait(20) == 75
    assert running.current == OLD
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_whoever_comes_back_can_wait_for_the_end_of_a_switch(running):
    slow = running.mark("slow-start-shop_a")
    process = running.start(switch(running, OLD, NEW))
    wait_for((running.base / "in-start-shop_a").exists)
    process.stdin.close()
    look = running.start(
        scripts.inspect(str(running.srv), running.groups, settle=20, helper=str(running.helper))
    )
    slow.unlink()
    state = hoststate.parse_inspection("h", look.stdout.read().decode().splitlines())
    assert state.current == OLD
    assert plan.judge(state.groups, OLD, 0).ok
    for done in (process, look):
        done.communicate(timeout=20) if done.stdin is None else done.wait(20)
        for stream in (done.stdin, done.stdout, done.stderr):
            stream.close()


def test_a_current_that_somebody_changed_is_not_touched(running):
    code, lines, err = running.run(switch(running, NEW, OLD))
    assert code == 1
    assert f"current is {OLD}, not {NEW}" in err
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
    assert not (running.base / "calls").exists()
    assert stand(lines) == ["before"]


def test_nothing_is_switched_to_a_release_without_a_complete_venv(running):
    (running.srv / "venvs" / "v1" / ".complete").unlink()
    code, _, err = running.run(switch(running, OLD, NEW))
    assert code == 1
    assert f"releases/{NEW} is not complete" in err
    assert running.current == OLD


def test_the_way_back_goes_on_although_a_drain_fails(running):
    running.run_from(NEW)
    running.mark("fail-drain-shop_a")
    code, lines, err = running.run(switch(running, NEW, OLD, going_back=True))
    assert code == 0, err
    assert running.current == OLD
    assert stand(lines) == ["after"]
