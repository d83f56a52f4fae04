"""The scripts that look at a host and end a deploy, run for real in a folder that stands for a host."""

import json
import time

from kestrel_stack.deploy import hoststate, plan, scripts
from support.deploy import NEW, OLD
from support.holder import Holder

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


def test_the_end_notes_prunes_and_gives_the_lock_back(running):
    deploy = Holder(running)
    deploy.lock()
    running.release("20260101T000001Z-cccccccc", venv="v0")
    code, lines, err = deploy.finish(
        verified=NEW,
        record={"release": NEW, "by": HOSTILE},
        remove_releases=["20260101T000001Z-cccccccc", OLD],
        remove_venvs=["v0"],
    )
    assert code == 0, err
    assert json.loads((running.srv / "deploys.jsonl").read_text()) == {"release": NEW, "by": HOSTILE}
    assert (running.srv / "releases" / NEW / ".verified").exists()
    # What is current stays, whatever it was told.
    assert sorted(p.name for p in (running.srv / "releases").iterdir()) == [OLD, NEW]
    assert [p.name for p in (running.srv / "venvs").iterdir()] == ["v1"]
    assert not (running.srv / ".deploy.lock").exists()
    assert "@ unlocked" in lines


def test_a_release_that_failed_is_marked_with_the_reason_and_is_no_longer_a_good_one(running):
    deploy = Holder(running)
    deploy.lock()
    code, _, err = deploy.finish(failed=OLD, failed_why=HOSTILE)
    assert code == 0, err
    assert (running.srv / "releases" / OLD / ".failed").read_text() == f"{HOSTILE}\n"
    state = looked_at(running)
    assert [(release.verified, release.failed) for release in state.releases] == [
        (False, True),
        (False, False),
    ]
    deploy = Holder(running)
    deploy.lock()
    assert deploy.finish(verified=OLD)[0] == 0
    assert not (running.srv / "releases" / OLD / ".failed").exists()


def test_the_end_on_another_connection_is_the_same(running):
    deploy = Holder(running)
    deploy.lock()
    deploy.end()
    code, lines, err = running.run(scripts.finish(str(running.srv), deploy.id, remove_releases=[NEW]))
    assert code == 0, err
    assert "@ unlocked" in lines
    assert [p.name for p in (running.srv / "releases").iterdir()] == [OLD]


def test_what_cannot_be_noted_keeps_nothing_else_from_being_done(running):
    # Nobody, root included, can append to a folder or write into what is none.
    (running.srv / "deploys.jsonl").mkdir()
    deploy = Holder(running)
    deploy.lock()
    code, lines, err = deploy.finish(verified=NEW, record={"a": 1}, remove_releases=[])
    assert code == 0, err
    assert "@ warning the end of this deploy could not be noted (record): is the disk full?" in lines
    assert (running.srv / "releases" / NEW / ".verified").exists()
    assert "@ unlocked" in lines
    assert not (running.srv / ".deploy.lock").exists()


def test_who_lost_the_lock_removes_nothing(running):
    other = Holder(running, "f" * 16)
    other.lock()
    code, lines, err = running.run(
        scripts.finish(str(running.srv), "0" * 16, record={"a": 1}, remove_releases=[NEW])
    )
    assert code == 0, err
    assert "@ warning nothing was removed: the lock is somebody else's by now" in lines
    assert (running.srv / "releases" / NEW).exists()
    assert (running.srv / "deploys.jsonl").exists()
    assert (running.srv / ".deploy.lock").exists()
    other.end()


def looked_at(tree, **options):
    script = scripts.inspect(str(tree.srv), tree.groups, helper=str(tree.helper), **options)
    code, lines, err = tree.run(script)
    assert code == 0, err
    return hoststate.parse_inspection("h", lines, time.time())


def test_the_script_that_stays_reports_the_same_as_the_one_that_only_looks(running):
    deploy = Holder(running)
    held = hoststate.parse_inspection("h", deploy.inspection)
    once = hoststate.parse_inspection("h", deploy.ask("inspect"))
    looked = looked_at(running)
    assert held.releases == once.releases == looked.releases
    assert held.groups == once.groups == looked.groups
    assert {**held.facts, "clock": "", "disk_kb": ""} == {**looked.facts, "clock": "", "disk_kb": ""}
    deploy.end()


def test_a_release_with_long_hooks_is_read_whole(running):
    about = {"venv": "v1", "hooks": {"after_switch": "echo x\n" * 10000}}
    (running.srv / "releases" / OLD / "release.json").write_text(json.dumps(about))
    release = looked_at(running).release(OLD)
    assert (release.venv, release.hooks) == ("v1", about["hooks"])


def test_a_clock_is_compared_with_this_machines(running):
    assert abs(looked_at(running).clock_skew) < 5
    lines = ["@ fact clock 1000"]
    assert hoststate.parse_inspection("h", lines, 900.5).clock_skew == 99.5
    assert hoststate.parse_inspection("h", lines).clock_skew is None


def test_what_serves_pages_is_reported_beside_the_workers(running):
    web = running.base / "web"
    web.write_text(
        '#!/bin/sh\n[ "$*" = "status shop" ] && printf \'{"group": "web", "processes": [{"name": "web",'
        f' "state": "RUNNING", "pid": 1, "uptime": 9, "release": "{OLD}"}}]}}\'\n'
    )
    web.chmod(0o755)
    found = looked_at(running, web="shop", web_helper=str(web)).web
    assert (found.running, found.processes[0].release) == (1, OLD)
    assert looked_at(running).web is None


def test_looking_reports_all_that_a_plan_needs(running):
    deploy = Holder(running)
    deploy.lock()
    (running.srv / "releases" / ".half.partial").mkdir()
    (running.srv / "venvs" / "unfinished").mkdir()
    script = scripts.inspect(str(running.srv), running.groups, ["a b", ".env"], helper=str(running.helper))
    code, lines, err = running.run(script)
    assert code == 0, err
    state = hoststate.parse_inspection("h", lines)
    assert state.current == OLD
    assert [(release.name, release.verified) for release in state.releases] == [(OLD, True), (NEW, False)]
    assert state.venvs == ("v1",)
    assert state.lock["owner"] == "ann"
    assert state.missing_shared == ("a b", ".env")
    assert [(g.name, g.running) for g in state.groups] == [("shop_a", 1), ("shop_b", 1)]
    assert state.target.arch in plan.ARCHITECTURES
    assert int(state.facts["disk_kb"]) > 0
    deploy.end()


def test_looking_at_an_empty_machine_reports_no_folder_and_no_helper(tree):
    script = scripts.inspect(str(tree.base / "none"), ["shop_a"], helper=str(tree.base / "no-helper"))
    code, lines, err = tree.run(script)
    assert code == 0, err
    found = plan.problems(hoststate.parse_inspection("h", lines), "deploy", needs_workers=True)
    assert any("folder under /srv is missing" in text for text in found)
    assert any("kestrel-stack-workers is missing" in text for text in found)


def test_a_refused_sudo_is_told_from_a_failing_helper(tree):
    tree.helper.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    _, lines, _ = tree.run(scripts.inspect(str(tree.srv), tree.groups, helper=str(tree.helper)))
    found = plan.problems(hoststate.parse_inspection("h", lines), "deploy", needs_workers=True)
    assert [text for text in found if "by sudo: run ansible-playbook site.yml first" in text]


def test_a_helper_that_does_not_answer_is_named_and_does_not_keep_the_rest(tree):
    held = tree.mark("slow-status-shop_b")
    script = scripts.inspect(str(tree.srv), tree.groups, helper=str(tree.helper)).replace("-t 20", "-t 1")
    _, lines, _ = tree.run(script)
    held.unlink()
    found = hoststate.parse_inspection("h", lines)
    assert [group.error for group in found.groups] == [
        None,
        "no answer within 20 s: does supervisord hang (systemctl restart supervisor)?",
    ]
    assert found.facts["disk_kb"]


def test_a_host_without_workers_and_pages_is_not_waited_for(tree):
    script = scripts.inspect(str(tree.srv), (), helper=str(tree.helper)).replace("-t 20", "-t 1000")
    assert hoststate.parse_inspection("h", tree.run(script)[1]).groups == ()
