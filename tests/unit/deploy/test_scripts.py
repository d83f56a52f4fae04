"""The scripts, run for real by bash in a folder that stands for a host."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.deploy import plan, scripts
from support.deploy import ROOT, Tree, make_wheel

OLD = "20260101T000000Z-aaaaaaaa"
NEW = "20260102T000000Z-bbbbbbbb"
HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def every_script():
    link = {"shared_files": [".env", "config/a.ini"], "shared_directories": ["var", "a/b"]}
    prepared = {"venv": "v", "stack_wheel": "w.whl", "release_json": {"a": 1}}
    return {
        "inspect": scripts.inspect("/srv/shop", ["shop_a", "shop_b"], [".env"], settle=3),
        "inspect, no workers": scripts.inspect("/srv/shop", []),
        "status": scripts.status(["shop_a"]),
        "lock": scripts.lock("/srv/shop", {"id": "1"}),
        "unlock": scripts.unlock("/srv/shop", "1"),
        "receive": scripts.receive("/srv/shop", NEW, size=5, sha256="0" * 64, seconds=3),
        "prepare": scripts.prepare("/srv/shop", NEW, **prepared, **link),
        "prepare, nothing shared": scripts.prepare("/srv/shop", NEW, **prepared),
        "switch": scripts.switch("/srv/shop", ["shop_a"], from_release=OLD, to_release=NEW),
        "switch back": scripts.switch("/srv/shop", [], from_release=NEW, to_release="", going_back=True),
        "finish": scripts.finish("/srv/shop", "1"),
        "finish, all of it": scripts.finish(
            "/srv/shop", "1", verified=NEW, record={"a": 1}, remove_releases=[OLD], remove_venvs=["v"]
        ),
    }


@pytest.mark.parametrize("name", every_script())
def test_shellcheck_finds_nothing(name):
    checker = shutil.which("shellcheck", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    if checker is None:
        pytest.fail("shellcheck is missing: install requirements/controller.txt")
    done = subprocess.run(
        [checker, "--shell=bash", "-"],
        input=every_script()[name],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_value_is_quoted_in_every_template():
    nasty = {
        "inspect": scripts.inspect(HOSTILE, [HOSTILE], [HOSTILE], settle=1, helper=HOSTILE),
        "status": scripts.status([HOSTILE], helper=HOSTILE),
        "lock": scripts.lock(HOSTILE, {"id": HOSTILE}),
        "unlock": scripts.unlock(HOSTILE, HOSTILE),
        "receive": scripts.receive(HOSTILE, HOSTILE, size=1, sha256=HOSTILE, seconds=1),
        "prepare": scripts.prepare(
            HOSTILE,
            HOSTILE,
            venv=HOSTILE,
            stack_wheel=HOSTILE,
            release_json={"a": HOSTILE},
            shared_files=[HOSTILE],
            shared_directories=[HOSTILE],
        ),
        "switch": scripts.switch(
            HOSTILE, [HOSTILE], from_release=HOSTILE, to_release=HOSTILE, helper=HOSTILE
        ),
        "finish": scripts.finish(
            HOSTILE,
            HOSTILE,
            verified=HOSTILE,
            record={"a": HOSTILE},
            remove_releases=[HOSTILE],
            remove_venvs=[HOSTILE],
        ),
    }
    assert {path.name.split(".")[0] for path in scripts.TEMPLATES.glob("[!_]*.j2")} == set(nasty)
    for name, text in nasty.items():
        # Unquoted, one of the apostrophes, the semicolon or the backticks would show up outside quotes.
        spans = text.replace("'\"'\"'", "")
        for line in spans.splitlines():
            outside = "".join(line.split("'")[::2]) if not line.lstrip().startswith("#") else ""
            assert "touch pwned" not in outside, f"{name}: {line}"


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_a_lock_holds_exactly_what_was_given(tmp_path_factory, text):
    tree = Tree(tmp_path_factory.mktemp("host"))
    code, lines, err = tree.run(scripts.lock(str(tree.srv), {"id": "1", "owner": text}))
    assert (code, lines) == (0, ["@ lock taken"]), err
    assert json.loads((tree.srv / ".deploy.lock").read_text())["owner"] == text
    assert sorted(p.name for p in tree.srv.iterdir()) == [".deploy.lock", "releases", "shared", "venvs"]
    assert not list(tree.base.rglob("pwned"))


# --- the lock --------------------------------------------------------------------------------------------


def test_of_many_who_lock_at_once_one_wins_and_the_others_see_it_whole(tree):
    for turn in range(6):
        go = tree.base / f"go-{turn}"
        wait = f"while [ ! -e {go} ]; do :; done\n"
        runs = [tree.start(wait + scripts.lock(str(tree.srv), {"id": f"id-{n}"})) for n in range(8)]
        go.touch()
        said = []
        for run in runs:
            said.append(run.stdout.read().decode().strip())
            assert run.wait(30) == 0
            for stream in (run.stdin, run.stdout, run.stderr):
                stream.close()
        taken = [n for n, text in enumerate(said) if text == "@ lock taken"]
        assert len(taken) == 1
        assert set(said) - {"@ lock taken"} == {f'@ lock held {{"id": "id-{taken[0]}"}}'}
        assert sorted(p.name for p in tree.srv.iterdir()) == [".deploy.lock", "releases", "shared", "venvs"]
        (tree.srv / ".deploy.lock").unlink()


def test_only_the_lock_with_the_right_id_is_removed(tree):
    tree.run(scripts.lock(str(tree.srv), {"id": "mine"}))
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), "other"))
    assert lines == ['@ kept {"id": "mine"} ']
    assert (tree.srv / ".deploy.lock").exists()
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), "mine"))
    assert lines == ["@ unlocked"]
    assert not (tree.srv / ".deploy.lock").exists()


def test_a_missing_folder_names_the_fix(tree):
    code, _, err = tree.run(scripts.lock(str(tree.base / "nowhere"), {"id": "1"}))
    assert code == 1
    assert "is missing: run ansible-playbook site.yml first" in err


# --- receiving -------------------------------------------------------------------------------------------


def receive(tree, data, **changes):
    values = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "seconds": 20, **changes}
    process = tree.start(scripts.receive(str(tree.srv), NEW, **values))
    _, err = process.communicate(data, timeout=30)
    return process.returncode, err.decode()


def test_a_whole_upload_is_kept(tree):
    data = os.urandom(300_000)
    assert receive(tree, data) == (0, "")
    assert (tree.srv / "releases" / f".{NEW}.upload").read_bytes() == data


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": 400_000}, "broke off after 300000 of 400000 bytes"),
        ({"sha256": "0" * 64}, "arrived damaged"),
    ],
)
def test_an_upload_that_breaks_off_or_is_damaged_leaves_nothing(tree, changes, complaint):
    code, err = receive(tree, os.urandom(300_000), **changes)
    assert code == 1
    assert complaint in err
    assert list((tree.srv / "releases").iterdir()) == []


def test_what_an_earlier_deploy_left_half_done_is_removed(tree):
    for name in ("upload", "stage", "partial"):
        (tree.srv / "releases" / f".{OLD}.{name}").mkdir()
    tree.release(OLD)
    assert receive(tree, b"x")[0] == 0
    assert sorted(p.name for p in (tree.srv / "releases").iterdir()) == [f".{NEW}.upload", OLD]


# --- preparing -------------------------------------------------------------------------------------------


def upload(tree, *, files=None, wheels=(), requirements=""):
    app = io.BytesIO()
    with tarfile.open(fileobj=app, mode="w:gz") as made:
        for name, text in (files or {"shop/jobs.py": "X = 1\n"}).items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            made.addfile(member, io.BytesIO(text.encode()))
    with tarfile.open(tree.srv / "releases" / f".{NEW}.upload", "w") as made:
        for name, content in {
            "app.tar.gz": app.getvalue(),
            **({"requirements.txt": requirements.encode()} if wheels else {}),
            **{f"wheels/{path.name}": path.read_bytes() for path in wheels},
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))


def prepare(tree, **changes):
    values = {
        "venv": "v9",
        "stack_wheel": "stack-1.0-py3-none-any.whl",
        "release_json": {"release": NEW},
        **changes,
    }
    return scripts.prepare(str(tree.srv), NEW, **values)


def test_a_release_is_unpacked_gets_its_venv_its_links_and_its_byte_code(tree, tmp_path):
    stack = make_wheel(tmp_path / "w", "stack")
    library = make_wheel(tmp_path / "w", "library")
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    upload(
        tree,
        files={"shop/jobs.py": "X = 1\n", "var/in-the-way": "", "a/b/in-the-way": ""},
        wheels=(stack, library),
        requirements=f"library==1.0 --hash=sha256:{digest}\n",
    )
    (tree.srv / "shared" / ".env").write_text("secret")
    code, lines, err = tree.run(
        prepare(tree, shared_files=[".env"], shared_directories=["var", "a/b"], release_json={"by": HOSTILE})
    )
    assert code == 0, err
    assert lines == ["@ unpacked", "@ venv built", "@ prepared"]
    release = tree.srv / "releases" / NEW
    assert json.loads((release / "release.json").read_text()) == {"by": HOSTILE}
    assert str((release / "venv").readlink()) == "../../venvs/v9"
    assert (release / ".env").read_text() == "secret"
    assert str((release / "a" / "b").readlink()) == "../../../shared/a/b"
    assert (release / "var").resolve() == tree.srv / "shared" / "var"
    python = release / "venv" / "bin" / "python"
    seen = subprocess.run(
        [python, "-c", "import library, stack; print(library.VERSION)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == "1.0\n"
    assert list((release / "shop" / "__pycache__").glob("jobs.*.pyc"))
    assert [p.name for p in (tree.srv / "releases").iterdir()] == [NEW]


def test_a_complete_venv_is_kept_and_one_without_its_mark_is_built_anew(tree, tmp_path):
    stack = make_wheel(tmp_path / "w", "stack")
    half = tree.srv / "venvs" / "v9"
    half.mkdir()
    (half / "left-over").touch()
    upload(tree, wheels=(stack,))
    code, lines, err = tree.run(prepare(tree))
    assert code == 0, err
    assert "@ venv built" in lines
    assert not (half / "left-over").exists()
    shutil.rmtree(tree.srv / "releases" / NEW)
    upload(tree)
    code, lines, err = tree.run(prepare(tree))
    assert code == 0, err
    assert "@ venv kept" in lines


def test_a_venv_whose_build_fails_is_never_marked_complete(tree, tmp_path):
    stack = make_wheel(tmp_path / "w", "stack")
    stack.write_bytes(b"this is no wheel")
    upload(tree, wheels=(stack,))
    code, _, err = tree.run(prepare(tree))
    assert code != 0
    assert "stack" in err
    assert not (tree.srv / "venvs" / "v9" / ".complete").exists()
    assert not (tree.srv / "releases" / NEW).exists()


def test_a_wheel_with_another_hash_is_refused_on_the_host_too(tree, tmp_path):
    stack, library = make_wheel(tmp_path / "w", "stack"), make_wheel(tmp_path / "w", "library")
    upload(tree, wheels=(stack, library), requirements=f"library==1.0 --hash=sha256:{'0' * 64}\n")
    code, _, err = tree.run(prepare(tree))
    assert code != 0
    assert "HASHES" in err
    assert not (tree.srv / "releases" / NEW).exists()


def test_a_missing_shared_file_is_named(tree):
    tree.release(OLD, venv="v9")
    upload(tree)
    code, _, err = tree.run(prepare(tree, shared_files=["config/x.ini"]))
    assert code == 1
    assert "shared/config/x.ini is missing: put it there" in err
    assert not (tree.srv / "releases" / NEW).exists()


def test_a_step_ends_with_all_its_children_when_the_connection_is_lost(tree):
    upload(tree)
    # Another builder holds the venvs, so that the step has to wait in a child.
    with (tree.srv / "venvs" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = tree.start(prepare(tree))
        assert process.stdout.readline() == b"@ unpacked\n"
        wait_for(lambda: "flock" in commands_of(process.pid))
        process.stdin.close()
        assert process.wait(10) == -signal.SIGTERM
        wait_for(lambda: not commands_of(process.pid))
    assert not (tree.srv / "releases" / NEW).exists()
    process.stdout.close()
    process.stderr.close()


def commands_of(session):
    """The programs of a session that are alive."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        words = rest.split()
        if int(words[3]) == session and words[0] != "Z":
            found.add(name)
    return found


# --- switching -------------------------------------------------------------------------------------------


def switch(tree, old, new, **kwargs):
    return scripts.switch(
        str(tree.srv), tree.groups, from_release=old, to_release=new, helper=str(tree.helper), **kwargs
    )


@pytest.fixture
def running(tree):
    tree.release(OLD)
    tree.release(NEW, verified=False)
    tree.run_from(OLD)
    return tree


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
    state = plan.parse_inspection("h", look.stdout.read().decode().splitlines())
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


# --- finishing and looking -------------------------------------------------------------------------------


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
    state = plan.parse_inspection("h", lines)
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
    found = plan.problems(plan.parse_inspection("h", lines), "deploy", needs_workers=True)
    assert any("folder under /srv is missing" in text for text in found)
    assert any("kestrel-stack-workers is missing" in text for text in found)


def test_a_refused_sudo_is_told_from_a_failing_helper(tree):
    tree.helper.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    _, lines, _ = tree.run(scripts.inspect(str(tree.srv), tree.groups, helper=str(tree.helper)))
    found = plan.problems(plan.parse_inspection("h", lines), "deploy", needs_workers=True)
    assert [text for text in found if "by sudo: run ansible-playbook site.yml first" in text]
