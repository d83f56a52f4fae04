"""The script that switches a host, run for real by bash in a folder that stands for a host."""

import os
import shutil
import signal
import threading
import time

import pytest

from kestrel_stack.deploy import hoststate, plan, scripts
from kestrel_stack.deploy.scripts import Pings, Side
from support.deploy import NEW, OLD, wait_for

PINGS = Pings(("a", "b"), 70, "deploy-1")


def switch(tree, old, new, **kwargs):
    old, new = (side if isinstance(side, Side) else Side(side) for side in (old, new))
    return scripts.switch(
        str(tree.srv),
        tree.groups,
        old,
        new,
        logs=str(tree.logs.parent),
        helper=str(tree.helper),
        web_helper=str(tree.web_helper),
        **kwargs,
    )


def said(lines, word):
    return [line.split(" ", 2)[2] for line in lines if line.startswith(f"@ {word} ")]


def stand(lines):
    return said(lines, "stand")


def test_workers_are_drained_and_started_again_from_the_new_release(running):
    code, lines, err = running.run(switch(running, OLD, NEW))
    assert code == 0, err
    assert running.current == NEW
    assert str((running.srv / "current").readlink()) == f"releases/{NEW}"
    assert running.workers == {"shop_a": NEW, "shop_b": NEW}
    assert stand(lines) == ["after"]
    assert sorted(running.calls[:2]) == ["drain shop_a", "drain shop_b"]
    assert sorted(running.calls[2:]) == ["start shop_a", "start shop_b"]


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
    assert said(lines, "failed") == [action]
    assert stand(lines) == ["before"]


def test_a_host_that_cannot_go_back_says_so(running):
    running.mark("fail-start-shop_b")
    code, lines, _ = running.run(switch(running, OLD, NEW))
    assert code == 1
    assert running.current == OLD
    assert stand(lines) == ["broken"]
    assert "shop_b_00 would not start" in said(lines, "trouble")[0]


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
    assert process.wait(60) == 75
    assert running.current == OLD
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


@pytest.mark.parametrize("moment", range(14))
def test_whenever_the_connection_is_lost_the_host_ends_on_one_side_and_says_so(running, moment):
    process = running.start(switch(running, OLD, NEW, pings=PINGS, web="shop"))
    time.sleep(moment * 0.02)  # no condition to wait for: any moment will do
    process.stdin.close()
    lines = process.stdout.read().decode().splitlines()
    process.stderr.read()
    code = process.wait(60)
    process.stdout.close()
    process.stderr.close()
    where = NEW if stand(lines) == ["after"] else OLD
    # Ended before it listened for signals, it has touched nothing.
    silent = code == -signal.SIGTERM and running.calls == []
    assert (code, stand(lines)) in ((0, ["after"]), (75, ["before"])) or silent
    assert running.current == where
    assert running.workers == {"shop_a": where, "shop_b": where}
    assert running.pages == where


def stopped_at(tree, when):
    """Switch, and send TERM from inside the script at the command that ``when``, shell code, picks out."""
    trap = f"""moment=0
    term_at() {{
        [ "$BASHPID" = $$ ] || return 0
        moment=$((moment + 1))
        if {when}; then kill -TERM $$; fi
    }}
    set -T; trap 'term_at "$BASH_COMMAND"' DEBUG
    """
    script = switch(tree, OLD, NEW, pings=PINGS, web="shop")
    code, lines, err = tree.run(script.replace("phase=begun\n", f"{trap}phase=begun\n", 1))
    where = NEW if stand(lines) == ["after"] else OLD
    assert (code, stand(lines)) in ((0, ["after"]), (75, ["before"])), (lines, err)
    assert said(lines, "trouble") == []
    assert tree.current == where
    assert tree.workers == {"shop_a": where, "shop_b": where}
    assert tree.pages == where
    return code


def test_a_signal_while_the_pings_are_being_started_puts_the_host_back(running):
    assert stopped_at(running, "[ \"$1\" = 'ping=$!' ]") == 75


@pytest.mark.long
def test_a_signal_at_any_command_leaves_the_host_on_one_side(running):
    codes = []
    # The script's own commands, one after the other, until it ends before there are so many.
    while not codes or codes[-1] != 0 or len(codes) < 60:
        assert len(codes) < 400
        running.run_from(OLD)
        codes.append(stopped_at(running, f'[ "$moment" -eq {len(codes) + 1} ]'))
    assert 75 in codes


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
        done.communicate(timeout=60) if done.stdin is None else done.wait(60)
        for stream in (done.stdin, done.stdout, done.stderr):
            stream.close()


def test_a_current_that_somebody_changed_is_not_touched(running):
    code, lines, err = running.run(switch(running, NEW, OLD))
    assert code == 1
    assert f"current is {OLD}, not {NEW}" in err
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
    assert running.calls == []
    assert stand(lines) == ["before"]


def test_nothing_is_switched_to_a_release_without_a_complete_venv(running):
    (running.srv / "venvs" / "v1" / ".complete").unlink()
    code, _, err = running.run(switch(running, OLD, NEW))
    assert code == 1
    assert f"releases/{NEW} is not complete" in err
    assert running.current == OLD


def test_a_switch_that_has_not_ended_is_not_called_anything_else(running):
    slow = running.mark("slow-drain-shop_a")
    process = running.start(switch(running, OLD, NEW))
    wait_for((running.base / "in-drain-shop_a").exists)
    for going_back, where in ((False, "before"), (True, "busy")):
        script = switch(running, NEW, OLD, going_back=going_back)
        code, lines, err = running.run(script.replace("flock -w 30", "flock -w 0"))
        assert (code, stand(lines)) == (1, [where])
        assert "another switch is still under way" in err
    slow.unlink()
    process.stdin.close()
    process.stdout.read()
    process.stderr.read()
    assert process.wait(60) == 75
    process.stdout.close()
    process.stderr.close()
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


# --- what the machine refuses ----------------------------------------------------------------------------

# A full disk, for what makes links: it takes so many.
FULL = """
ln() {
    echo >>"$TREE/links"
    if [ "$(wc -l <"$TREE/links")" -gt LINKS ]; then echo "ln: No space left on device" >&2; return 1; fi
    command ln "$@"
}
"""


def test_a_link_that_cannot_be_made_puts_the_host_back(running):
    code, lines, err = running.run(FULL.replace("LINKS", "0") + switch(running, OLD, NEW))
    assert code == 1
    assert "No space left on device" in err
    assert (said(lines, "failed"), stand(lines)) == (["link"], ["before"])
    assert running.current == OLD
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_when_the_link_cannot_be_made_on_the_way_back_the_workers_stay_on_what_is_there(running):
    running.mark("fail-ping")
    code, lines, _ = running.run(FULL.replace("LINKS", "1") + switch(running, OLD, NEW, pings=PINGS))
    assert (code, stand(lines)) == (1, ["stuck"])
    assert running.current == NEW
    assert running.workers == {"shop_a": NEW, "shop_b": NEW}
    way_back = FULL.replace("LINKS", "1") + switch(running, NEW, OLD, going_back=True)
    code, lines, err = running.run(way_back)
    assert (code, stand(lines)) == (1, ["stuck"])
    assert "current could not be changed" in err


def test_what_an_interrupted_switch_left_is_in_nobodys_way(running):
    (running.srv / ".current.new").mkdir()
    (running.srv / ".current.new" / "left").touch()
    code, lines, err = running.run(switch(running, OLD, NEW))
    assert (code, stand(lines)) == (0, ["after"]), err


def test_a_log_that_cannot_be_read_does_not_leave_the_workers_down(running):
    (running.logs / "odd.log").mkdir()
    code, lines, err = running.run(switch(running, OLD, NEW))
    assert (code, stand(lines)) == (0, ["after"]), err


def test_however_it_is_ended_no_workers_stay_down(running):
    slow = running.mark("slow-drain-shop_b")
    process = running.start(switch(running, OLD, NEW))
    wait_for((running.base / "in-drain-shop_b").exists)
    os.kill(process.pid, signal.SIGUSR1)
    slow.unlink()
    lines = process.stdout.read().decode().splitlines()
    process.stderr.read()
    assert process.wait(60) != 0
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert stand(lines) == ["before"]
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


# --- verifying -------------------------------------------------------------------------------------------


def test_a_worker_that_starts_and_dies_puts_the_host_back_with_its_own_last_words(running):
    running.mark("seen-shop_b", "FATAL")
    running.log("shop_b_00", "from the old release")
    slow = running.mark("slow-start-shop_a")
    process = running.start(switch(running, OLD, NEW))
    wait_for((running.base / "in-start-shop_a").exists)
    running.log("shop_b_00", *(f"line {number}" for number in range(20)), '{"event": "x"}')
    slow.unlink()
    lines = process.stdout.read().decode().splitlines()
    err = process.stderr.read().decode()
    assert process.wait(60) == 1
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert "worker shop_b_00 is FATAL" in err
    assert said(lines, "failed") == ["verify"]
    assert said(lines, "log") == [
        *(f"shop_b_00 line {number}" for number in range(13, 20)),
        'shop_b_00 {"event": "x"}',
    ]
    assert stand(lines) == ["before"]
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_what_an_old_worker_wrote_is_not_quoted(running):
    running.mark("seen-shop_b", "FATAL")
    running.log("shop_b_00", "from the old release")
    _, lines, _ = running.run(switch(running, OLD, NEW))
    assert said(lines, "log") == []


def test_a_worker_that_does_not_come_up_is_waited_for_until_the_time_is_up(running):
    running.mark("seen-shop_a", "STARTING")
    code, lines, err = running.run(switch(running, OLD, NEW, verify_seconds=1))
    assert code == 1
    assert "worker shop_a_00 is STARTING" in err
    assert stand(lines) == ["before"]


# --- somebody has to listen ------------------------------------------------------------------------------


def test_a_switch_that_nobody_has_listened_to_for_long_goes_back(running, monkeypatch):
    monkeypatch.setattr(scripts, "LISTEN_AFTER", 0)
    monkeypatch.setattr(scripts, "LISTEN_SECONDS", 1)
    process = running.start(switch(running, OLD, NEW))  # the line is silent, and has not ended
    lines = process.stdout.read().decode().splitlines()
    assert process.wait(60) == 1
    assert "nobody listened any more" in process.stderr.read().decode()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert (said(lines, "failed"), stand(lines)) == (["listening"], ["before"])
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_a_sign_of_life_is_enough(running, monkeypatch):
    monkeypatch.setattr(scripts, "LISTEN_AFTER", 0)
    process = running.start(switch(running, OLD, NEW))
    lines = []
    for line in process.stdout:
        lines.append(line.decode().rstrip())
        if lines[-1] == "@ listening":
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert process.wait(60) == 0
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    assert stand(lines) == ["after"]


# --- pings -----------------------------------------------------------------------------------------------


def test_every_queue_is_asked_on_the_new_release(running):
    code, lines, err = running.run(switch(running, OLD, NEW, pings=PINGS))
    assert code == 0, err
    assert [line.split('"queue": ')[1][:3] for line in said(lines, "ping")] == ['"a"', '"b"']
    assert all(NEW in line for line in said(lines, "ping"))
    assert running.calls[-1] == "ping"


def test_a_queue_that_is_not_answered_puts_the_host_back(running):
    running.mark("fail-ping")
    code, lines, err = running.run(switch(running, OLD, NEW, pings=PINGS))
    assert code == 1
    assert "not every queue was answered" in err
    assert said(lines, "failed") == ["ping"]
    assert stand(lines) == ["before"]
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_a_ping_is_not_waited_for_when_the_connection_is_lost(running):
    running.mark("slow-ping")
    process = running.start(switch(running, OLD, NEW, pings=PINGS))
    wait_for(lambda: (running.base / "in-ping").exists() and (running.base / "in-ping").read_text())
    process.stdin.close()
    assert process.wait(60) == 75
    process.stdout.close()
    process.stderr.close()
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
    wait_for(lambda: not os.path.exists(f"/proc/{(running.base / 'in-ping').read_text()}"))  # noqa: PTH110


# --- hooks -----------------------------------------------------------------------------------------------


def hooked(tree, release, before="", after="", rev="1234"):
    return Side(
        release,
        rev,
        {
            "before_switch": before.replace("BASE", str(tree.base)),
            "after_switch": after.replace("BASE", str(tree.base)),
        },
    )


def test_hooks_run_around_the_switch_in_the_new_release_with_what_they_need_to_know(running):
    note = 'echo "NAME $KESTREL_STACK_APP $KESTREL_STACK_RELEASE $KESTREL_STACK_PREVIOUS $KESTREL_STACK_REV'
    note += ' $PWD $KESTREL_STACK_RELEASE_PATH ${PATH%%:*}" >>BASE/calls'
    new = hooked(running, NEW, note.replace("NAME", "before"), note.replace("NAME", "after"), rev="abcd")
    code, lines, err = running.run(switch(running, OLD, new))
    assert code == 0, err
    folder = f"{running.srv}/releases/{NEW}"
    about = f"srv {NEW} {OLD} abcd {folder} {folder} {folder}/venv/bin"
    assert running.calls[0] == f"before {about}"
    assert running.calls[-1] == f"after {about}"
    assert stand(lines) == ["after"]


def test_a_failing_before_switch_leaves_the_workers_alone(running):
    new = hooked(running, NEW, "echo the cache is cold; exit 3")
    code, lines, err = running.run(switch(running, OLD, new))
    assert code == 1
    assert "the cache is cold" in err
    assert "exit code 3" in err
    assert not any(call.startswith("drain") for call in running.calls)
    assert (said(lines, "failed"), stand(lines)) == (["before_switch"], ["before"])
    assert running.current == OLD


def test_a_failing_after_switch_puts_the_host_back_and_runs_the_old_ones(running):
    old = hooked(running, OLD, after='echo "old $KESTREL_STACK_RELEASE" >>BASE/calls')
    new = hooked(running, NEW, after="exit 9")
    code, lines, _ = running.run(switch(running, old, new))
    assert code == 1
    assert (said(lines, "failed"), stand(lines)) == (["after_switch"], ["before"])
    assert running.calls[-1] == f"old {OLD}"
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_a_failing_hook_of_the_old_release_does_not_stop_the_way_back(running):
    running.mark("fail-start-shop_a", NEW)
    code, lines, _ = running.run(switch(running, hooked(running, OLD, after="exit 1"), NEW))
    assert (code, stand(lines)) == (1, ["before"])
    assert any("after_switch" in line for line in said(lines, "warning"))


def test_a_hook_is_ended_with_all_it_started_when_the_connection_is_lost(running):
    new = hooked(running, NEW, "sleep 300 & echo $! >BASE/pid; wait")
    process = running.start(switch(running, OLD, new))
    wait_for(lambda: (running.base / "pid").exists() and (running.base / "pid").read_text().strip())
    process.stdin.close()
    assert process.wait(60) == 75
    process.stdout.close()
    process.stderr.close()
    pid = (running.base / "pid").read_text().strip()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: PTH110
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


# --- pages -----------------------------------------------------------------------------------------------


def test_pages_are_served_from_the_new_release_before_its_workers_start(running):
    code, lines, err = running.run(switch(running, OLD, NEW, web="shop"))
    assert code == 0, err
    assert running.pages == NEW
    assert running.calls.index("reload web") == 2
    assert stand(lines) == ["after"]


def test_pages_that_do_not_come_up_put_the_host_back(running):
    running.mark("fail-reload-web", NEW)
    code, lines, err = running.run(switch(running, OLD, NEW, web="shop"))
    assert code == 1
    assert "pages reload web: the new release does not answer" in err
    assert (said(lines, "failed"), stand(lines)) == (["web"], ["before"])
    assert running.pages == OLD
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_pages_go_back_with_the_workers(running):
    running.mark("fail-start-shop_a", NEW)
    code, lines, _ = running.run(switch(running, OLD, NEW, web="shop"))
    assert (code, stand(lines), running.pages) == (1, ["before"], OLD)


def test_a_first_deploy_that_fails_serves_no_pages(tree):
    tree.release(NEW, verified=False)
    tree.mark("fail-start-shop_a")
    code, lines, _ = tree.run(switch(tree, "", NEW, web="shop"))
    assert (code, stand(lines), tree.pages) == (1, ["before"], "")


# --- the way back ----------------------------------------------------------------------------------------


def test_the_way_back_goes_on_although_a_drain_fails(running):
    running.run_from(NEW)
    running.mark("fail-drain-shop_a")
    code, lines, err = running.run(switch(running, NEW, OLD, going_back=True))
    assert code == 0, err
    assert running.current == OLD
    assert stand(lines) == ["after"]


def test_the_way_back_ends_where_it_should_although_nobody_listens_any_more(running):
    running.run_from(NEW)
    slow = running.mark("slow-drain-shop_a")
    process = running.start(switch(running, NEW, OLD, going_back=True, web="shop"))
    wait_for((running.base / "in-drain-shop_a").exists)
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    slow.unlink()
    assert process.wait(60) == 0
    assert (running.current, running.pages) == (OLD, OLD)
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}


def test_the_way_back_from_a_first_deploy_leads_to_nothing(running):
    running.run_from(NEW)
    code, lines, err = running.run(switch(running, NEW, "", going_back=True, web="shop"))
    assert code == 0, err
    assert (running.current, running.pages, stand(lines)) == (None, "", ["after"])
    assert running.workers == {"shop_a": None, "shop_b": None}


def test_there_is_no_way_back_to_a_release_that_was_deleted_and_what_runs_goes_on(running):
    running.run_from(NEW)
    shutil.rmtree(running.srv / "releases" / OLD)
    code, lines, err = running.run(switch(running, NEW, OLD, going_back=True))
    assert (code, stand(lines)) == (1, ["stuck"])
    assert f"releases/{OLD} is not complete" in err
    assert running.workers == {"shop_a": NEW, "shop_b": NEW}


def test_a_host_that_fails_stays_where_it_is_when_its_old_release_was_deleted(running):
    shutil.rmtree(running.srv / "releases" / OLD)
    running.mark("fail-ping")
    code, lines, _ = running.run(switch(running, OLD, NEW, pings=PINGS))
    assert (code, stand(lines)) == (1, ["stuck"])
    assert "there is no way back" in said(lines, "trouble")[0]
    assert running.current == NEW
    assert running.workers == {"shop_a": NEW, "shop_b": NEW}


def test_the_way_back_does_not_undo_what_somebody_else_did(running):
    other = "20260301T000000Z-cccccccc"
    running.release(other)
    running.run_from(other)
    code, lines, _ = running.run(switch(running, NEW, OLD, going_back=True))
    assert (code, stand(lines)) == (1, ["foreign"])
    assert running.calls == []


def test_a_host_that_is_back_already_is_seen_to_run(running):
    (running.base / "state" / "shop_a").unlink()
    code, lines, err = running.run(switch(running, NEW, OLD, going_back=True))
    assert (code, stand(lines)) == (0, ["after"]), err
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
    assert not any(call.startswith("drain") for call in running.calls)


# --- in place --------------------------------------------------------------------------------------------


def test_a_restart_drains_and_starts_in_place_without_hooks(running):
    side = hooked(running, OLD, "exit 1", "exit 1")
    before = (running.srv / "current").lstat().st_mtime_ns
    code, lines, err = running.run(switch(running, side, side, web="shop"))
    assert code == 0, err
    assert stand(lines) == ["after"]
    assert (running.srv / "current").lstat().st_mtime_ns == before
    assert sorted(running.calls) == sorted(
        ["drain shop_a", "drain shop_b", "reload web", "start shop_a", "start shop_b"]
    )


def test_a_restart_that_fails_starts_what_it_stopped(running):
    running.mark("fail-reload-web")
    code, lines, _ = running.run(switch(running, OLD, OLD, web="shop"))
    assert (code, stand(lines)) == (1, ["before"])
    assert running.workers == {"shop_a": OLD, "shop_b": OLD}
