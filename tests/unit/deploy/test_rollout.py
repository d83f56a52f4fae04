"""Rolling over hosts made of folders: whatever fails, every host ends where it is said to be."""

import errno
import io
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from kestrel_stack.deploy import rollout as module
from kestrel_stack.deploy.appspec import AppSpec, Hooks
from kestrel_stack.deploy.errors import CHANGED, FAILED, DeployError, HostError, Locked
from kestrel_stack.deploy.plan import Pace
from kestrel_stack.deploy.report import Report
from kestrel_stack.deploy.rollout import AFTER, BEFORE, BROKEN, FOREIGN, STUCK, UNKNOWN, Rollout
from support.deploy import NEW, OLD, wait_for
from support.local_session import LocalSession

HOSTS = ("h1", "h2", "h3")
REV = "b" * 40


@pytest.fixture
def session(tmp_path):
    made = LocalSession(tmp_path)
    made.make()
    return made


class Rolled:
    """A rollout that has ended: its error, and where every host is."""

    def __init__(
        self, session, *, spec=None, pace=None, action="deploy", to=NEW, during=None, migrate="", out=None
    ):
        self.session = session
        self.error = None
        self.rollout = Rollout(session, out or Report(), action)
        source = SimpleNamespace(rev=REV, ref="main", spec=spec or AppSpec())
        wheels = dict.fromkeys(session.trees, SimpleNamespace(key="v1"))
        helper = threading.Thread(target=during) if during else None
        if helper:
            helper.start()
        try:
            with self.rollout as rollout:
                if action == "deploy":
                    rollout.about(to, source, wheels)
                elif action == "rollback":
                    rollout.about(to)
                if migrate:
                    rollout.migrate(migrate)
                where = {host: to or session.states[host.name].current for host in session.hosts}
                rollout.roll(where, pace or Pace())
                rollout.succeeded(5 if action == "deploy" else None)
        except DeployError as error:
            self.error = error
        if helper:
            helper.join()

    @property
    def current(self):
        return {name: tree.current for name, tree in self.session.trees.items()}

    @property
    def order(self):
        return [host for host, what in self.session.ran if what == "switch"]

    def is_as_before(self, *, code=FAILED):
        """Every host is on the old release with all its workers, and the error says so."""
        assert self.error is not None
        assert self.error.code == code, self.error
        assert self.rollout.stand == dict.fromkeys(HOSTS, BEFORE)
        assert "Every host is as before" in str(self.error)
        for tree in self.session.trees.values():
            assert tree.current == OLD
            assert tree.workers == {"shop_a": OLD, "shop_b": OLD}


# --- well ------------------------------------------------------------------------------------------------


def test_hosts_are_switched_one_after_the_other_and_the_end_is_looked_at_once_more(session, capsys):
    rolled = Rolled(session)
    assert rolled.error is None
    assert rolled.order == ["h1", "h2", "h3"]
    assert rolled.current == dict.fromkeys(HOSTS, NEW)
    assert sorted(session.ran[-2:]) == [("h1", "plan"), ("h2", "plan")]
    assert f"Deployed {NEW} on 3 hosts" in capsys.readouterr().out
    for details in session.details.values():
        assert details["verified"] == NEW
        record = details["record"]
        assert (record["result"], record["release"], record["previous"]) == ("ok", NEW, OLD)
        assert (record["rev"], record["ref"]) == (REV, "main")
        assert record["reason"] is None
        assert "failed" not in details


def test_one_host_costs_one_script(tmp_path):
    session = LocalSession(tmp_path, ("h1",))
    session.make()
    session.ran.clear()
    assert Rolled(session, pace=Pace(canary=1, soak=30)).error is None
    assert session.ran == [("h1", "switch")]


def test_all_at_once(session):
    rolled = Rolled(session, pace=Pace(batch="100%"))
    assert rolled.error is None
    assert sorted(rolled.order) == list(HOSTS)
    assert rolled.current == dict.fromkeys(HOSTS, NEW)


def test_every_queue_is_asked(session):
    assert Rolled(session).error is None
    assert all("ping" in tree.calls for tree in session.trees.values())


def test_a_release_of_an_older_version_answers_no_pings_and_is_not_asked(session):
    assert Rolled(session, action="rollback").error is None
    assert not any("ping" in tree.calls for tree in session.trees.values())


def test_pings_can_be_left_out(session):
    assert Rolled(session, pace=Pace(ping=False)).error is None
    assert not any("ping" in tree.calls for tree in session.trees.values())


def test_a_rollback_goes_the_same_way(session, capsys):
    assert Rolled(session).error is None
    session.inspect()
    rolled = Rolled(session, action="rollback", to=OLD)
    assert rolled.error is None
    assert rolled.current == dict.fromkeys(HOSTS, OLD)
    assert f"Rolled back to {OLD} on 3 hosts" in capsys.readouterr().out
    assert session.details["h1"]["verified"] == OLD
    assert "remove_releases" not in session.details["h1"]


def test_a_restart_in_place(session, capsys):
    rolled = Rolled(session, action="restart", to="")
    assert rolled.error is None
    assert rolled.current == dict.fromkeys(HOSTS, OLD)
    assert "Restarted the workers of 3 hosts" in capsys.readouterr().out
    record = session.details["h1"]["record"]
    assert (record["action"], record["release"], record["result"]) == ("restart", OLD, "ok")
    assert set(session.details["h1"]) == {"record"}


# --- failing on host k of n, at every step ---------------------------------------------------------------

FAULTS = {
    "before_switch": ("", Hooks(before_switch="test ! -e BASE/fault || { echo no cache; exit 3; }")),
    "drain": ("fail-drain-shop_a", Hooks()),
    "start": ("fail-start-shop_a", Hooks()),
    "verify": ("seen-shop_b", Hooks()),
    "ping": ("fail-ping", Hooks()),
    "after_switch": ("", Hooks(after_switch="test ! -e BASE/fault || { echo no pages; exit 3; }")),
}
SAID = {
    "before_switch": "before_switch: no cache",
    "drain": "drain: workers drain shop_a: shop_a_00 would not drain",
    "start": "start: workers start shop_a: shop_a_00 would not start",
    "verify": "verify: worker shop_b_00 is FATAL",
    "ping": "ping: queue a: no answer within 70 s; queue b: no answer",
    "after_switch": "after_switch: no pages",
}


def _places():
    """Every step on the last host, when all others are switched, and one on each; the rest with --long."""
    for step in FAULTS:
        for host in HOSTS:
            near = host != HOSTS[-1] and step != "verify"
            yield pytest.param(step, host, marks=pytest.mark.long if near else ())


@pytest.mark.parametrize(("step", "host"), list(_places()))
def test_a_host_that_fails_takes_all_before_it_back(session, step, host, capsys):
    mark, hooks = FAULTS[step]
    tree = session.trees[host]
    tree.mark(mark or "fault", {"start": NEW, "verify": "FATAL"}.get(step, ""))
    hooks = Hooks(
        before_switch=hooks.before_switch.replace("BASE", '"$TREE"'),
        after_switch=hooks.after_switch.replace("BASE", '"$TREE"'),
    )
    rolled = Rolled(session, spec=AppSpec(hooks=hooks))
    rolled.is_as_before()
    assert str(rolled.error).startswith(f"{host}: {SAID[step]}")
    printed = capsys.readouterr().out
    assert f"failed in {step}: " in printed
    reached = HOSTS[: HOSTS.index(host) + 1]
    for name in HOSTS:
        details = session.details[name]
        if name in reached:
            # What failed is marked on every host that tried it, and stays there to be looked at.
            assert details["failed"] == NEW
            assert details["record"]["result"] == "failed"
            assert SAID[step] in details["record"]["reason"]
            assert "verified" not in details
        else:
            assert details == {"remove_releases": [NEW]}
    # Back in the same careful way: the last that was switched first.
    assert rolled.order == [*reached, *reversed(reached[:-1])]


def test_the_workers_own_words_are_in_the_summary(session, capsys):
    tree = session.trees["h2"]
    tree.mark("seen-shop_b", "FATAL")
    slow = tree.mark("slow-start-shop_a")

    def speak():
        wait_for((tree.base / "in-start-shop_a").exists)
        tree.log("shop_b_00", '{"event": "cannot import", "error": "no module named shop"}')
        slow.unlink()

    rolled = Rolled(session, during=speak)
    rolled.is_as_before()
    printed = capsys.readouterr().out
    assert 'h2  shop_b_00: {"event": "cannot import", "error": "no module named shop"}' in printed


def test_hosts_of_one_batch_fail_and_go_back_each_for_itself(session):
    session.trees["h2"].mark("fail-start-shop_a", NEW)
    rolled = Rolled(session, pace=Pace(batch="3"))
    rolled.is_as_before()
    assert rolled.error.code == FAILED


def test_a_switch_may_take_as_long_as_the_requests_that_the_old_release_finishes(tmp_path):
    session = LocalSession(tmp_path, ("h1",), web=True)
    session.hosts = (replace(session.hosts[0], web_request_timeout=900),)
    session.make()
    limits = []
    run = session.run

    def noting(host, script, what, timeout=60, **more):
        if what == "switch":
            limits.append(timeout)
        return run(host, script, what, timeout, **more)

    session.run = noting
    assert Rolled(session).error is None
    assert limits[0] >= 2 * 900


def test_a_first_deploy_that_fails_on_the_second_host_leaves_no_release_anywhere(tmp_path):
    session = LocalSession(tmp_path, web=True)
    for tree in session.trees.values():
        tree.release(NEW, verified=False)
    session.inspect()
    session.trees["h2"].mark("fail-ping")
    rolled = Rolled(session)
    assert rolled.error.code == FAILED, rolled.error
    assert "Every host is as before" in str(rolled.error)
    for name in ("h1", "h2"):
        tree = session.trees[name]
        assert tree.current is None
        assert tree.workers == {"shop_a": None, "shop_b": None}
        assert tree.pages == ""


def test_a_rollback_that_fails_marks_nothing(session):
    assert Rolled(session).error is None
    session.inspect()
    session.trees["h2"].mark("fail-start-shop_a", OLD)
    rolled = Rolled(session, action="rollback", to=OLD)
    assert rolled.error.code == FAILED
    assert rolled.current == dict.fromkeys(HOSTS, NEW)
    assert all(set(details) <= {"record"} for details in session.details.values())


def test_a_restart_that_fails_restarts_no_further_host(session):
    session.trees["h2"].mark("fail-drain-shop_a")
    rolled = Rolled(session, action="restart", to="")
    assert rolled.error.code == FAILED
    assert "h2: drain" in str(rolled.error)
    assert rolled.order == ["h1", "h2"]
    assert rolled.current == dict.fromkeys(HOSTS, OLD)


# --- the way back fails ----------------------------------------------------------------------------------


def test_a_host_that_cannot_go_back_is_named_and_the_others_do(session):
    session.trees["h1"].mark("fail-start-shop_b", OLD)
    session.trees["h3"].mark("fail-ping")
    rolled = Rolled(session)
    assert rolled.error.code == CHANGED
    assert rolled.rollout.stand == {"h1": BROKEN, "h2": BEFORE, "h3": BEFORE}
    assert f"h1 is {BROKEN}; as before: h2, h3" in str(rolled.error)
    assert rolled.current == dict.fromkeys(HOSTS, OLD)


def test_there_is_no_way_back_when_the_old_release_was_deleted_by_hand(session):
    def delete():
        wait_for(lambda: session.trees["h1"].current == NEW)
        shutil.rmtree(session.trees["h1"].srv / "releases" / OLD)

    session.trees["h3"].mark("fail-ping")
    rolled = Rolled(session, during=delete)
    assert rolled.error.code == CHANGED
    assert rolled.rollout.stand == {"h1": STUCK, "h2": BEFORE, "h3": BEFORE}
    assert rolled.current == {"h1": NEW, "h2": OLD, "h3": OLD}
    assert session.trees["h1"].workers == {"shop_a": NEW, "shop_b": NEW}


def test_what_somebody_else_switched_meanwhile_is_not_touched(session):
    session.trees["h1"].release("20260301T000000Z-cccccccc")

    def switch():
        wait_for(lambda: session.trees["h2"].current == NEW)
        session.trees["h1"].run_from("20260301T000000Z-cccccccc")

    session.trees["h2"].mark("slow-start-shop_a")
    session.trees["h3"].mark("fail-ping")

    def during():
        switch()
        (session.trees["h2"].base / "slow-start-shop_a").unlink()

    rolled = Rolled(session, during=during)
    assert rolled.error.code == CHANGED
    assert rolled.rollout.stand == {"h1": FOREIGN, "h2": BEFORE, "h3": BEFORE}


def test_a_host_that_another_deploy_has_locked_meanwhile_is_left_to_it(session):
    def lose():
        wait_for(lambda: session.trees["h1"].current == NEW)
        wait_for(lambda: session.trees["h2"].current == NEW)
        session.lost_locks["h1"] = Locked("h1 is locked by ann@desk")

    session.trees["h3"].mark("fail-ping")
    rolled = Rolled(session, during=lose)
    assert rolled.error.code == CHANGED
    assert rolled.current == {"h1": NEW, "h2": OLD, "h3": OLD}
    assert "h1 is NOT as before" in str(rolled.error)
    assert "ann@desk" in str(rolled.error)


def test_a_host_whose_lock_is_lost_is_not_switched_and_the_others_go_back(session):
    session.lost_locks["h2"] = HostError("h2", "the lock was lost: somebody removed it")
    rolled = Rolled(session)
    rolled.is_as_before()
    assert rolled.order == ["h1", "h1"]


def test_what_was_broken_before_the_deploy_may_be_broken_after_it(session):
    tree = session.trees["h1"]
    tree.mark("seen-shop_b", "FATAL")
    tree.run_from(NEW)  # `seen` is about what runs from NEW: here that is the release before
    later = "20260301T000000Z-cccccccc"
    tree.release(later, verified=False)
    session.inspect()
    tree.mark("fail-ping")
    rollout = Rollout(session, Report(), "deploy")
    wheels = dict.fromkeys(session.trees, SimpleNamespace(key="v1"))
    with pytest.raises(DeployError, match="Every host is as before") as caught, rollout:
        rollout.about(later, SimpleNamespace(rev=REV, ref="main", spec=AppSpec()), wheels)
        rollout.roll({session.hosts[0]: later})
    assert caught.value.code == FAILED
    assert tree.current == NEW
    assert rollout.stand["h1"] == BEFORE


def test_workers_that_a_switch_left_down_are_started_again(session):
    tree = session.trees["h2"]
    slow = tree.mark("slow-drain-shop_a")

    def kill():
        wait_for((tree.base / "in-drain-shop_a").exists)
        session.processes["h2"].kill()
        # The script is gone, what it had begun goes on.
        slow.unlink()
        wait_for(lambda: tree.workers == {"shop_a": None, "shop_b": None})

    rolled = Rolled(session, during=kill)
    rolled.is_as_before()


# --- connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["drain", "start"])
def test_a_connection_that_is_lost_in_mid_switch(session, moment):
    tree = session.trees["h2"]
    slow = tree.mark(f"slow-{moment}-shop_a")

    def cut():
        wait_for((tree.base / f"in-{moment}-shop_a").exists)
        session.cut("h2")
        slow.unlink()

    rolled = Rolled(session, during=cut)
    rolled.is_as_before()
    assert "the connection was lost" in str(rolled.error)


def test_a_host_that_does_not_come_back_is_named_and_the_others_go_back(session, monkeypatch):
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0)
    tree = session.trees["h2"]
    slow = tree.mark("slow-start-shop_a")

    def cut():
        wait_for((tree.base / "in-start-shop_a").exists)
        session.away.add("h2")
        session.cut("h2")
        slow.unlink()

    rolled = Rolled(session, during=cut)
    assert rolled.error.code == CHANGED
    assert rolled.rollout.stand == {"h1": BEFORE, "h2": UNKNOWN, "h3": BEFORE}
    assert f"h2 is {UNKNOWN}; as before: h1, h3" in str(rolled.error)
    # Nobody told it to, and yet it goes back.
    wait_for(lambda: tree.current == OLD and tree.workers == {"shop_a": OLD, "shop_b": OLD})


@pytest.mark.parametrize("how", ["away", "refusing"])
def test_a_host_that_is_away_when_it_should_go_back_is_named(session, monkeypatch, how):
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0)
    session.trees["h3"].mark("fail-ping")

    def leave():
        wait_for(lambda: session.trees["h2"].current == NEW)
        getattr(session, how).add("h1")

    rolled = Rolled(session, during=leave)
    assert rolled.error.code == CHANGED
    assert rolled.rollout.stand == {"h1": UNKNOWN, "h2": BEFORE, "h3": BEFORE}


def test_a_connection_that_is_lost_on_the_way_back_does_not_end_it(session):
    tree = session.trees["h1"]
    session.trees["h2"].mark("fail-ping")

    def cut():
        wait_for(lambda: tree.current == NEW and tree.workers["shop_a"] == NEW)
        slow = tree.mark("slow-drain-shop_a")
        wait_for((tree.base / "in-drain-shop_a").exists)
        session.cut("h1")
        slow.unlink()

    rolled = Rolled(session, during=cut)
    rolled.is_as_before()


def test_a_host_that_is_away_for_a_moment_at_the_end_is_asked_again(session):
    def leave():
        wait_for(lambda: session.trees["h3"].current == NEW)
        session.refusing.add("h1")
        wait_for(lambda: ("h1", "plan") in session.ran)
        session.refusing.clear()

    session.ran.clear()
    assert Rolled(session, during=leave).error is None


# --- Ctrl-C ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["drain", "start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_host_switches_takes_every_host_back(session, moment, number, capsys):
    tree = session.trees["h2"]
    slow = tree.mark(f"slow-{moment}-shop_a")

    def stop():
        wait_for((tree.base / f"in-{moment}-shop_a").exists)
        os.kill(os.getpid(), number)
        wait_for(session.cancel.is_set)
        slow.unlink()

    rolled = Rolled(session, during=stop)
    rolled.is_as_before()
    assert str(rolled.error).startswith("stopped")
    assert rolled.order == ["h1", "h2", "h1"]
    # It was not the release that failed.
    for details in session.details.values():
        assert details["remove_releases"] == [NEW]
        assert "failed" not in details
    assert session.details["h2"]["record"]["reason"] == "stopped"
    assert "Stopping: every host that was switched goes back" in capsys.readouterr().out


def test_pressing_it_again_does_not_cut_the_way_back_short(session):
    tree = session.trees["h1"]

    def stop():
        wait_for(lambda: session.trees["h2"].current == NEW)
        slow = tree.mark("slow-drain-shop_a")
        os.kill(os.getpid(), signal.SIGINT)
        wait_for((tree.base / "in-drain-shop_a").exists)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        slow.unlink()

    before = signal.getsignal(signal.SIGINT)
    rolled = Rolled(session, during=stop)
    rolled.is_as_before()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_the_last_host_changes_nothing_any_more(session):
    rollout = Rollout(session, Report(), "deploy")
    wheels = dict.fromkeys(session.trees, SimpleNamespace(key="v1"))
    with rollout:
        rollout.about(NEW, SimpleNamespace(rev=REV, ref="main", spec=AppSpec()), wheels)
        rollout.roll(dict.fromkeys(session.hosts, NEW))
        rollout.succeeded(5)
        os.kill(os.getpid(), signal.SIGINT)
    assert rollout.stand == dict.fromkeys(HOSTS, AFTER)
    assert session.details["h1"]["verified"] == NEW


def test_ctrl_c_before_the_first_switch_touches_no_host(session):
    rollout = Rollout(session, Report(), "deploy")
    with pytest.raises(DeployError, match=r"stopped\. Every host is as before") as caught, rollout:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)
    assert caught.value.code == FAILED
    assert all(details == {} for details in session.details.values())


# --- the canary ------------------------------------------------------------------------------------------


def lines(tree, *outcomes):
    from datetime import UTC, datetime

    for outcome in outcomes:
        event = {"time": datetime.now(UTC).isoformat(), "event": "job", "outcome": outcome, "job": "Mail"}
        tree.log("shop_a_00", json.dumps(event))


def test_a_canary_is_switched_and_watched_before_the_others(session, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAMPLE_PAUSE", 0.1)
    lines(session.trees["h1"], "done", "done")
    rolled = Rolled(session, pace=Pace(batch="2", canary=1, soak=1))
    assert rolled.error is None
    assert rolled.order[0] == "h1"
    watched = [host for host, what in session.ran if what == "soak"]
    assert len(watched) >= 2
    assert set(watched) == {"h1"}
    printed = capsys.readouterr().out
    assert " s (2 jobs, 0 failed, 0 given up in 600 s before)" in printed


def test_of_several_canaries_the_one_that_fails_is_named(session, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_PAUSE", 0.1)

    def die():
        wait_for(lambda: session.ran.count(("h2", "soak")) > 1)
        session.trees["h2"].mark("seen-shop_a", "FATAL")

    rolled = Rolled(session, pace=Pace(canary=2, soak=120), during=die)
    rolled.is_as_before()
    assert "soak: worker h2 shop_a_00 is FATAL" in str(rolled.error)


def test_a_canary_whose_jobs_are_given_up_takes_itself_back(session, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAMPLE_PAUSE", 0.1)
    tree = session.trees["h1"]
    tree.mark("count", json.dumps({"queues": {"a": {"items": 1, "errors": 0, "oldest_s": None}}}))

    def fail():
        wait_for(lambda: session.ran.count(("h1", "soak")) > 1)
        tree.mark("count", json.dumps({"queues": {"a": {"items": 1, "errors": 1, "oldest_s": None}}}))
        lines(tree, "parked")

    rolled = Rolled(session, pace=Pace(canary=1, soak=120), during=fail)
    rolled.is_as_before()
    assert "h1: soak: jobs were given up, and none before: 1 jobs, 1 failed" in str(rolled.error)
    assert "error queues: a +1" in str(rolled.error)
    printed = capsys.readouterr().out
    assert '"outcome": "parked"' in printed
    assert rolled.order == ["h1", "h1"]


def test_ctrl_c_while_the_canary_is_watched_takes_it_back(session):
    def stop():
        wait_for(lambda: session.ran.count(("h1", "soak")) > 0 and session.trees["h1"].current == NEW)
        wait_for(lambda: session.trees["h1"].workers["shop_b"] == NEW)
        os.kill(os.getpid(), signal.SIGINT)

    rolled = Rolled(session, pace=Pace(canary=1, soak=120), during=stop)
    rolled.is_as_before()


def test_a_worker_of_the_canary_that_dies_while_it_is_watched(session, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_PAUSE", 0.1)

    def die():
        wait_for(lambda: session.ran.count(("h1", "soak")) > 1)
        session.trees["h1"].mark("seen-shop_a", "FATAL")

    rolled = Rolled(session, pace=Pace(canary=1, soak=120), during=die)
    rolled.is_as_before()
    assert "h1: soak: worker shop_a_00 is FATAL" in str(rolled.error)


def test_a_first_deploy_has_nothing_to_be_compared_with(tmp_path):
    session = LocalSession(tmp_path)
    for tree in session.trees.values():
        tree.release(NEW, verified=False)
    session.inspect()
    rolled = Rolled(session, pace=Pace(canary=1, soak=60))
    assert rolled.error is None
    assert ("h1", "soak") not in session.ran


def test_a_worker_that_dies_behind_the_rollouts_back_is_found_at_the_end(session, monkeypatch):
    def die():
        wait_for(lambda: session.trees["h3"].current == NEW)
        session.trees["h1"].mark("seen-shop_a", "FATAL")

    rolled = Rolled(session, during=die)
    rolled.is_as_before()
    assert "h1: the last look at all hosts: worker shop_a_00 is FATAL" in str(rolled.error)


# --- the migration ---------------------------------------------------------------------------------------


def test_a_migration_runs_once_in_the_new_release_before_anything_is_switched(session, capsys):
    command = 'echo "$KESTREL_STACK_RELEASE $PWD $(readlink "$TREE/srv/current")" | tee -a "$TREE/migrated"'
    assert Rolled(session, migrate=command).error is None
    tree = session.trees["h1"]
    said = f"{NEW} {tree.srv}/releases/{NEW} releases/{OLD}"
    assert (tree.base / "migrated").read_text() == f"{said}\n"
    assert not any((session.trees[name].base / "migrated").exists() for name in ("h2", "h3"))
    assert said in capsys.readouterr().out


def test_a_migration_that_fails_ends_the_deploy_before_the_first_switch(session):
    rolled = Rolled(session, migrate="echo column exists; exit 2")
    rolled.is_as_before()
    assert "h1: migrate: " in str(rolled.error)
    assert "column exists" in str(rolled.error)
    assert "the migration was begun on h1, and what it did stays" in str(rolled.error)
    assert rolled.order == []


def test_after_a_revert_it_is_said_that_the_migration_stays(session):
    session.trees["h2"].mark("fail-ping")
    rolled = Rolled(session, migrate="true")
    rolled.is_as_before()
    assert str(rolled.error).endswith("; the migration has run and stays")


# --- nobody listens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
def test_a_terminal_that_is_gone_does_not_cut_the_way_back_short(session, error, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise error(errno.EIO, "nobody there")

    def on_broken_pipe(self):
        raise SystemExit(1)  # as rich does, but without taking standard output away from all tests

    monkeypatch.setattr(Console, "on_broken_pipe", on_broken_pipe)
    session.trees["h3"].mark("fail-ping")
    rolled = Rolled(session, out=Report(Console(file=Gone()), Console(file=Gone())))
    rolled.is_as_before()


# --- defects ---------------------------------------------------------------------------------------------


class RolloutWithADefect(Rollout):
    """A defect of ours cannot be had from a real host."""

    def _forward(self, *args):
        super()._forward(*args)
        raise TypeError("'int' object is not callable")


def test_a_defect_puts_every_host_back_and_shows_its_trace(session, monkeypatch, capsys):
    monkeypatch.setitem(globals(), "Rollout", RolloutWithADefect)
    rolled = Rolled(session)
    rolled.is_as_before()
    assert "defect: TypeError: 'int' object is not callable. Every host is as before" in str(rolled.error)
    assert "Traceback" in capsys.readouterr().err
