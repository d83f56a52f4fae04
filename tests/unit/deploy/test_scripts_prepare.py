"""The scripts that receive and prepare a release, run for real in a folder that stands for a host."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from kestrel_stack.deploy import scripts
from support.deploy import NEW, OLD, make_wheel, wait_for

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


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
