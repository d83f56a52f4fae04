"""Every script: quoted, and nothing for shellcheck to find."""

import json
import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.deploy import scripts
from support.deploy import NEW, OLD, ROOT, Tree

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


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
