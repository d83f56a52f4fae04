"""The scripts that look at a host and end a deploy, run for real in a folder that stands for a host."""

import json

from kestrel_stack.deploy import hoststate, plan, scripts
from support.deploy import NEW, OLD

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


def test_the_end_notes_prunes_and_gives_the_lock_back(running):
    running.run(scripts.lock(str(running.srv), {"id": "me"}))
    running.release("20260101T000001Z-cccccccc", venv="v0")
    code, lines, err = running.run(
        scripts.finish(
            str(running.srv),
            "me",
            verified=NEW,
            record={"release": NEW, "by": HOSTILE},
            remove_releases=["20260101T000001Z-cccccccc", OLD],
            remove_venvs=["v0"],
        )
    )
    assert code == 0, err
    assert json.loads((running.srv / "deploys.jsonl").read_text()) == {"release": NEW, "by": HOSTILE}
    assert (running.srv / "releases" / NEW / ".verified").exists()
    # What is current stays, whatever it was told.
    assert sorted(p.name for p in (running.srv / "releases").iterdir()) == [OLD, NEW]
    assert [p.name for p in (running.srv / "venvs").iterdir()] == ["v1"]
    assert not (running.srv / ".deploy.lock").exists()
    assert "@ unlocked" in lines


def test_looking_reports_all_that_a_plan_needs(running):
    running.run(scripts.lock(str(running.srv), {"id": "me", "owner": "ann"}))
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
