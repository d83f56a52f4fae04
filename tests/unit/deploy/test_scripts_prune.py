"""What a deploy's last script removes, run for real in a folder that stands for a host."""

import json

import pytest

from kestrel_stack.deploy import scripts
from support.deploy import NEW, OLD

OLDER = "20251231T000000Z-cccccccc"


@pytest.fixture
def host(running):
    """Three releases with static files, as the deploys have left them."""
    (running.srv / ".deploy.lock").write_text(json.dumps({"id": "me", "lease": 60}))
    running.release(OLDER, venv="v0")
    store = running.srv / "assets"
    held = {
        OLDER: ["a.1.css", "img/old.1.png", "img/é b\n.1.png"],
        OLD: ["a.1.css", "a.2.css"],
        NEW: ["a.3.css", "a.2.css", "img/new.1.png"],
    }
    for release, names in held.items():
        for name in ["manifest.json", *names]:
            path = running.srv / "releases" / release / "_assets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            stored = store / name
            stored.parent.mkdir(parents=True, exist_ok=True)
            if name != "manifest.json" and not stored.exists():
                stored.hardlink_to(path)
    return running


def stored(host):
    top = host.srv / "assets"
    return sorted(path.relative_to(top).as_posix() for path in top.rglob("*"))


def finish(host, *releases, **details):
    code, lines, err = host.run(
        scripts.finish(str(host.srv), "me", remove_releases=list(releases), **details)
    )
    assert code == 0, err
    return lines


def test_static_files_that_no_release_has_go_with_their_release(host):
    # a.1.css is linked from the oldest release only, and another release has a copy of its own.
    (host.srv / "releases" / OLD / "_assets" / "a.1.css").unlink()
    (host.srv / "releases" / OLD / "_assets" / "a.1.css").write_text("a.1.css")
    lines = finish(host, OLDER, remove_venvs=["v0"])
    assert f"@ removed release {OLDER}" in lines
    assert stored(host) == ["a.1.css", "a.2.css", "a.3.css", "img", "img/new.1.png"]
    assert (host.srv / "assets" / "a.1.css").read_text() == "a.1.css"
    assert [path.name for path in (host.srv / "venvs").iterdir()] == ["v1"]


def test_what_a_failed_deploy_published_goes_with_it(host):
    # Its release is gone already: the step that failed removed it.
    (host.srv / "assets" / "b.9.css").write_text("b")
    finish(host, "20260103T000000Z-dddddddd")
    assert "b.9.css" not in stored(host)
    assert "a.1.css" in stored(host)


def test_an_empty_folder_of_static_files_goes(host):
    host.run_from(NEW)
    finish(host, OLDER, OLD)
    assert stored(host) == ["a.2.css", "a.3.css", "img", "img/new.1.png"]
    (host.srv / ".deploy.lock").write_text(json.dumps({"id": "me", "lease": 60}))
    host.run_from(OLD)
    (host.srv / "releases" / NEW / "_assets" / "img" / "new.1.png").unlink()
    finish(host, OLDER)
    assert "img" not in stored(host)


def test_nothing_goes_when_nothing_is_removed(host):
    (host.srv / "assets" / "b.9.css").write_text("b")
    finish(host, verified=NEW)
    assert "b.9.css" in stored(host)


def test_a_list_that_cannot_be_made_removes_nothing(host):
    before = stored(host)
    # As if the folder could not be read, which root always can.
    script = scripts.finish(str(host.srv), "me", remove_releases=[OLDER])
    broken = 'find() { case $1 in releases/*) return 1 ;; *) command find "$@" ;; esac; }\n'
    host.run(broken + script)
    assert stored(host) == before


def test_an_application_without_static_files_has_no_such_folder(running):
    (running.srv / ".deploy.lock").write_text(json.dumps({"id": "me", "lease": 60}))
    running.release(OLDER)
    finish(running, OLDER)
    assert not (running.srv / "assets").exists()
    assert OLDER not in {path.name for path in (running.srv / "releases").iterdir()}
