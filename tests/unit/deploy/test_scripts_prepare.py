"""The script that receives and prepares a release, run for real in a folder that stands for a host."""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.deploy import build, scripts
from kestrel_stack.deploy.build import Bundle
from kestrel_stack.deploy.build.tree import File
from support.bundles import archive_of, digest, state_of, wheels_of
from support.deploy import NEW, OLD, Tree, make_wheel, wait_for

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"
FILES = {
    "shop/__init__.py": "",
    "shop/jobs.py": "def fail():\n    raise ValueError\n",
    "shop/mail.py": "X = 1\n",
    "bin/run": File(b"#!/bin/sh\necho ran\n", executable=True),
    "link": File(link="shop/jobs.py"),
    "data/é b.txt": "text",
}


class Host:
    """A host made of a folder, and what a controller does for it."""

    def __init__(self, folder, venv=True):
        self.tree = Tree(folder / "host")
        self.cache = folder / "cache"
        self.srv = self.tree.srv
        if venv:
            self.make_venv()

    def make_venv(self):
        """Have a complete virtual environment, as an earlier deploy leaves one."""
        venv = self.srv / "venvs" / "v9"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        (venv / ".complete").touch()

    def archive(self, files):
        return archive_of(files, self.cache)

    def bundle(self, files, *, base=None, full=False, wheels=None):
        """Pack what this host lacks; ``base`` is the name of its current release and the files of that."""
        known = {base[0]: self.archive(base[1]).manifest} if base else {}
        venvs = ("v9",) if (self.srv / "venvs" / "v9" / ".complete").exists() else ()
        state = state_of(known, current=base[0] if base else "", venvs=venvs)
        wheels = wheels or wheels_of()
        return build.bundle_for(self.archive(files), wheels, state, full=full, cache=self.cache)

    def script(self, release, bundle, **changes):
        values = {
            "venv": "v9",
            "release_json": {"release": release, "rev": "abc"},
            **changes,
        }
        return scripts.prepare(str(self.srv), release, bundle=bundle, **values)

    def prepare(self, release, bundle, data=None, **changes):
        data = bundle.path.read_bytes() if data is None else data
        return self.tree.run(self.script(release, bundle, **changes), data)

    def deploy(self, release, files, base=None, **changes):
        bundle = self.bundle(files, base=base)
        code, lines, err = self.prepare(release, bundle, **changes)
        assert code == 0, err
        assert lines[-1] == "@ prepared", lines
        return lines

    def release(self, name=NEW):
        return self.srv / "releases" / name

    @property
    def names(self):
        return sorted(path.name for path in (self.srv / "releases").iterdir())


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def content_of(folder):
    """All that a release has of its manifest: content, executable or not, target of links."""
    made = {".manifest.json", ".bytecode.json", "release.json", "venv", ".verified"}
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in made or "__pycache__" in name:
            continue
        if path.is_symlink():
            found[name] = File(link=str(path.readlink()))
        elif path.is_file():
            found[name] = File(path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def as_files(files):
    return {path: File(x.encode()) if isinstance(x, str) else x for path, x in files.items()}


def photograph(folder):
    """Everything of a folder that somebody could notice: contents, inodes, modes, times of change."""
    taken = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        # Not st_ctime of files: another link to a file changes it, and nothing else of the file.
        seen = (facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_uid)
        held = path.read_bytes() if stat.S_ISREG(facts.st_mode) else None
        taken[path.relative_to(folder).as_posix()] = (seen, held)
    return taken


# --- receiving -------------------------------------------------------------------------------------------


def test_a_release_is_made_of_what_was_sent(host):
    lines = host.deploy(NEW, FILES)
    assert lines == ["@ received", "@ unpacked 6 linked 0", "@ compiled 3", "@ venv kept", "@ prepared"]
    assert content_of(host.release()) == as_files(FILES)
    manifest = (host.release() / ".manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == host.archive(FILES).manifest
    assert host.names == [NEW]


def test_the_upload_is_exactly_as_long_as_said_and_what_follows_is_signs_of_life(host):
    bundle = host.bundle(FILES)
    process = host.tree.start(host.script(NEW, bundle))
    for block in (bundle.path.read_bytes()[:1000], bundle.path.read_bytes()[1000:] + b"\n\n"):
        process.stdin.write(block)
        process.stdin.flush()
    assert process.stdout.read().endswith(b"@ prepared\n")
    assert process.wait(60) == 0
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def broken(bundle, **changes):
    return Bundle(**{**{key: getattr(bundle, key) for key in ("path", "sha256", "size")}, **changes})


def test_an_upload_that_breaks_off_leaves_nothing(host):
    bundle = host.bundle(FILES)
    process = host.tree.start(host.script(NEW, bundle))
    _, err = process.communicate(bundle.path.read_bytes()[:-1], timeout=60)
    assert process.returncode == 1
    assert f"broke off after {bundle.size - 1} of {bundle.size} bytes" in err.decode()
    assert host.names == []


def test_an_upload_that_arrives_damaged_leaves_nothing(host):
    bundle = host.bundle(FILES)
    code, _, err = host.prepare(NEW, broken(bundle, sha256="0" * 64))
    assert (code, err) == (1, "the upload arrived damaged (sha256)\n")
    assert host.names == []


@pytest.mark.parametrize("size", [b"", b"x", bytes(100_000)])
def test_an_upload_that_is_something_else_is_refused_in_one_line(host, tmp_path, size):
    path = tmp_path / "other"
    path.write_bytes(size)
    code, _, err = host.prepare(NEW, Bundle(path, digest(path), len(size)))
    assert code == 1
    assert err.startswith("the upload cannot be read")
    assert err.count("\n") == 1
    assert host.names == []


def test_a_disk_without_room_is_told_and_leaves_nothing(host):
    # A limit of the shell's on the size of files stands for a full disk: writing fails in the same places.
    host.deploy(OLD, FILES)
    before = photograph(host.release(OLD))
    for limit in (2, 40):
        bundle = host.bundle({**FILES, "large": bytes(200_000)})
        script = host.script(NEW, bundle).replace("set -euo", f"ulimit -f {limit}; trap '' XFSZ; set -euo", 1)
        code, _, err = host.tree.run(script, bundle.path.read_bytes())
        assert code == 1
        assert "no room" in err
        assert host.names == [OLD]
    assert photograph(host.release(OLD)) == before


def test_what_an_earlier_deploy_left_half_done_is_removed(host):
    for name in ("upload", "stage", "partial"):
        (host.srv / "releases" / f".{OLD}.{name}").mkdir()
    host.tree.release(OLD)
    host.deploy(NEW, FILES)
    assert host.names == [OLD, NEW]


def test_a_release_that_is_there_already_is_never_touched(host):
    host.deploy(NEW, FILES)
    before = photograph(host.release())
    code, _, err = host.prepare(NEW, host.bundle({"other": "x"}))
    assert code == 1
    assert "exists already" in err
    assert photograph(host.release()) == before


# --- building upon an earlier release ---------------------------------------------------------------------


def test_unchanged_files_are_linked_and_changed_ones_are_not(host):
    host.deploy(OLD, FILES)
    before = photograph(host.release(OLD))
    changed = {**FILES, "shop/mail.py": "X = 2\n", "new/file": "n"}
    del changed["data/é b.txt"]
    lines = host.deploy(NEW, changed, base=(OLD, FILES))
    assert "@ unpacked 2 linked 4" in lines
    assert content_of(host.release()) == as_files(changed)
    for name in ("shop/jobs.py", "bin/run"):
        assert (host.release() / name).samefile(host.release(OLD) / name)
    assert not (host.release() / "shop/mail.py").samefile(host.release(OLD) / "shop/mail.py")
    assert photograph(host.release(OLD)) == before


def test_one_changed_file_of_many_is_a_small_upload(host):
    files = {f"shop/m{number}.txt": os.urandom(25_000) for number in range(200)}
    whole = host.bundle(files)
    part = host.bundle({**files, "shop/m7.txt": b"changed"}, base=(OLD, files))
    assert whole.size > 5_000_000
    assert part.size < 4096
    assert (whole.base_release, part.base_release) == (None, OLD)


def test_files_cannot_be_written_in_place(host):
    # A hook that appends to a file would change the releases that share it; root may do so all the same.
    host.deploy(OLD, FILES)
    modes = {path.stat().st_mode & 0o222 for path in host.release(OLD).rglob("*") if path.suffix == ".py"}
    assert modes == {0}


def tamper_content(release):
    path = release / "shop" / "jobs.py"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("Value", "Other"))
    path.chmod(0o444)


def tamper_mode(release):
    (release / "shop" / "jobs.py").chmod(0o644)


def tamper_file_to_link(release):
    path = release / "shop" / "jobs.py"
    path.rename(release.parent.parent / "elsewhere.py")
    path.symlink_to(release.parent.parent / "elsewhere.py")


def tamper_folder_to_link(release):
    (release / "shop").rename(release.parent.parent / "elsewhere")
    (release / "shop").symlink_to("../../elsewhere")


def tamper_manifest(release):
    (release / ".manifest.json").chmod(0o644)
    with (release / ".manifest.json").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (tamper_content, "shop/jobs.py has been changed"),
        (tamper_mode, "shop/jobs.py has other permissions"),
        (tamper_file_to_link, "shop/jobs.py: Too many levels of symbolic links"),
        (tamper_folder_to_link, "shop is not a folder any more"),
        (tamper_manifest, ".manifest.json has been changed"),
        (lambda release: (release / "shop" / "jobs.py").unlink(), "shop/jobs.py: No such file"),
        (lambda release: (release / ".manifest.json").unlink(), ".manifest.json: No such file"),
        (shutil.rmtree, ".manifest.json: No such file"),
    ],
)
def test_a_release_that_is_not_as_it_was_is_not_built_upon(host, tamper, reason):
    host.deploy(OLD, FILES)
    tamper(host.release(OLD))
    before = photograph(host.srv)
    changed = {**FILES, "shop/mail.py": "X = 2\n"}
    code, lines, err = host.prepare(NEW, host.bundle(changed, base=(OLD, FILES)))
    assert (code, err) == (0, "")
    assert lines[-1].startswith("@ need full ")
    assert reason in lines[-1]
    after = photograph(host.srv)
    assert {k: v for k, v in after.items() if k != "releases"} == {
        k: v for k, v in before.items() if k != "releases"
    }
    # Asked for everything, the controller sends it, and nothing of the old release is needed.
    wheels = wheels_of(make_wheel(host.cache, "stack"))
    bundle = host.bundle(changed, base=(OLD, FILES), full=True, wheels=wheels)
    assert (bundle.base_release, bundle.with_wheels) == (None, True)
    code, lines, err = host.prepare(NEW, bundle)
    assert code == 0, err
    assert content_of(host.release()) == as_files(changed)


def test_a_venv_that_is_gone_asks_for_everything(host):
    bundle = host.bundle(FILES)
    shutil.rmtree(host.srv / "venvs" / "v9")
    code, lines, err = host.prepare(NEW, bundle)
    assert (code, err) == (0, "")
    assert lines[-1] == "@ need full venvs/v9 is not complete"
    assert host.names == []


def test_two_deploys_at_once_do_not_mix(host):
    # The lock keeps them apart; should it be lost, the later one has its way and the other one fails.
    host.deploy(OLD, FILES)
    with (host.srv / "venvs" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        bundle = host.bundle({**FILES, "who": "first"}, base=(OLD, FILES))
        first = host.tree.start(host.script("20260101T000001Z-cccccccc", bundle))
        first.stdin.write(bundle.path.read_bytes())
        first.stdin.flush()
        wait_for(lambda: "flock" in commands_of(first.pid))
        bundle = host.bundle({**FILES, "who": "second"}, base=(OLD, FILES))
        second = host.tree.start(host.script(NEW, bundle))
        second.stdin.write(bundle.path.read_bytes())
        second.stdin.flush()
        wait_for(lambda: "flock" in commands_of(second.pid))
    codes = [process.wait(60) for process in (first, second)]
    for process in (first, second):
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    assert codes[0] != 0
    assert codes[1] == 0
    assert host.names == [OLD, NEW]
    assert content_of(host.release()) == as_files({**FILES, "who": "second"})


PARTS = st.sampled_from(["a", "b", "c.py", "é", "x y"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
CONTENTS = st.one_of(
    st.builds(File, st.sampled_from([b"", b"one", b"two", b"X = 1\n"]), st.booleans()),
    st.builds(File, link=st.sampled_from(["a", "../b", "/nowhere"])),
)
TREES = st.dictionaries(PATHS, CONTENTS, max_size=8).map(
    lambda tree: {
        path: file for path, file in tree.items() if not any(o.startswith(f"{path}/") for o in tree)
    }
)


@settings(max_examples=20, deadline=None)
@given(TREES, TREES, TREES)
def test_any_tree_on_top_of_any_other_is_exactly_the_new_one(tmp_path_factory, first, second, third):
    host = Host(tmp_path_factory.mktemp("delta"))
    names = (OLD, NEW, "20260103T000000Z-cccccccc")
    host.deploy(names[0], first)
    before = photograph(host.release(names[0]))
    host.deploy(names[1], second, base=(names[0], first))
    host.deploy(names[2], third, base=(names[1], second))
    for name, tree in zip(names, (first, second, third), strict=True):
        assert content_of(host.release(name)) == tree
    assert photograph(host.release(names[0])) == before
    known = hashlib.sha256((host.release(names[2]) / ".manifest.json").read_bytes()).hexdigest()
    assert known == host.archive(third).manifest


# --- byte code -------------------------------------------------------------------------------------------


def imported(release, statement):
    """Import from a release with the byte code that it has; what was compiled anew would be told."""
    done = subprocess.run(
        [sys.executable, "-v", "-I", "-B", "-c", f"import sys; sys.path.insert(0, '.'); {statement}"],
        cwd=release,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_byte_code_of_unchanged_files_is_linked_and_knows_its_own_release(host):
    host.deploy(OLD, FILES)
    lines = host.deploy(NEW, {**FILES, "shop/mail.py": "X = 22\n"}, base=(OLD, FILES))
    assert "@ compiled 1" in lines
    name = next(p.name for p in (host.release() / "shop/__pycache__").iterdir() if p.name.startswith("jobs"))
    linked = host.release() / "shop/__pycache__" / name
    assert linked.samefile(host.release(OLD) / "shop/__pycache__" / name)
    shutil.rmtree(host.release(OLD))
    told = imported(host.release(), "import shop.jobs, shop.mail; assert shop.mail.X == 22; shop.jobs.fail()")
    # Python took the byte code and put the true path in the place of the one that was compiled in.
    source = host.release() / "shop" / "jobs.py"
    assert f"{linked} matches {source}" in told
    assert f'File "{source}", line 2, in fail' in told
    assert OLD not in told


def test_byte_code_that_is_not_what_was_compiled_is_made_anew(host):
    host.deploy(OLD, FILES)
    damaged = next((host.release(OLD) / "shop/__pycache__").glob("jobs.*"))
    right = damaged.read_bytes()
    damaged.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert "@ compiled 1" in host.deploy(NEW, FILES, base=(OLD, FILES))
    assert (host.release() / "shop/__pycache__" / damaged.name).read_bytes() == right


@pytest.mark.parametrize("record", ["", "[]", '{"magic":"other","files":{}}', '{"magic":1}'])
def test_byte_code_of_another_python_or_without_a_record_is_made_anew(host, record):
    host.deploy(OLD, FILES)
    path = host.release(OLD) / ".bytecode.json"
    path.unlink()
    path.write_text(record)
    assert "@ compiled 3" in host.deploy(NEW, FILES, base=(OLD, FILES))


def test_a_file_that_does_not_compile_is_a_warning(host):
    lines = host.deploy(NEW, {**FILES, "samples/old.py": "print 'x'\n"})
    told = [line for line in lines if line.startswith("@ warning")]
    assert len(told) == 1
    assert "samples/old.py" in told[0]


def test_many_files_are_compiled_by_all_processors(host):
    files = {f"shop/m{number}.py": f"X = {number}\n" for number in range(150)}
    assert "@ compiled 150" in host.deploy(NEW, files)
    assert len(list((host.release() / "shop/__pycache__").iterdir())) == 150


# --- static content --------------------------------------------------------------------------------------


ASSETS = {"_assets/manifest.json": "{}", "_assets/manifest.php": "<?php", "_assets/css/a.1234.css": "a"}


def test_static_files_are_where_they_outlive_their_release(host):
    host.deploy(OLD, {**FILES, **ASSETS})
    newer = {**FILES, **ASSETS, "_assets/css/a.5678.css": "b", "_assets/css/a.5678.css.gz": b"z"}
    host.deploy(NEW, newer, base=(OLD, {**FILES, **ASSETS}))
    store = host.srv / "assets"
    found = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    assert found == {"css/a.1234.css", "css/a.5678.css", "css/a.5678.css.gz"}
    assert (store / "css/a.1234.css").samefile(host.release(OLD) / "_assets/css/a.1234.css")
    shutil.rmtree(host.release(OLD))
    assert (store / "css/a.1234.css").read_text() == "a"


def test_a_static_file_that_is_there_is_never_overwritten(host):
    (host.srv / "assets" / "css").mkdir(parents=True)
    other = host.srv / "assets" / "css" / "a.1234.css"
    other.write_text("other")
    code, _, err = host.prepare(NEW, host.bundle(ASSETS))
    assert code == 1
    assert "assets/css/a.1234.css has been changed" in err
    assert other.read_text() == "other"
    assert host.names == []
    other.write_text("a")
    host.deploy(NEW, ASSETS)


def test_a_compressed_copy_by_another_compressor_is_kept(host):
    (host.srv / "assets").mkdir()
    (host.srv / "assets" / "a.1.css.gz").write_text("other bytes")
    host.deploy(NEW, {"_assets/a.1.css.gz": "z"})
    assert (host.srv / "assets" / "a.1.css.gz").read_text() == "other bytes"


# --- the virtual environment and the links ---------------------------------------------------------------


def test_a_release_gets_its_venv_and_its_links(tmp_path):
    host = Host(tmp_path, venv=False)
    stack, library = make_wheel(tmp_path / "w", "stack"), make_wheel(tmp_path / "w", "library")
    wheels = wheels_of(library, stack, requirements=f"library==1.0 --hash=sha256:{digest(library)}\n")
    bundle = host.bundle(FILES, wheels=wheels)
    assert bundle.with_wheels
    (host.srv / "shared" / ".env").write_text("secret")
    code, lines, err = host.prepare(
        NEW, bundle, shared_files=[".env"], shared_directories=["var", "a/b"], release_json={"by": HOSTILE}
    )
    assert code == 0, err
    assert lines[-2:] == ["@ venv built", "@ prepared"]
    release = host.release()
    assert json.loads((release / "release.json").read_text()) == {"by": HOSTILE}
    assert str((release / "venv").readlink()) == "../../venvs/v9"
    assert (release / ".env").read_text() == "secret"
    assert str((release / "a" / "b").readlink()) == "../../../shared/a/b"
    assert (release / "var").resolve() == host.srv / "shared" / "var"
    python = release / "venv" / "bin" / "python"
    seen = subprocess.run(
        [python, "-c", "import library, stack; print(library.VERSION)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == "1.0\n"
    assert host.names == [NEW]


def test_a_venv_without_its_mark_is_built_anew(tmp_path):
    host = Host(tmp_path, venv=False)
    half = host.srv / "venvs" / "v9"
    half.mkdir()
    (half / "left-over").touch()
    code, lines, err = host.prepare(
        NEW, host.bundle(FILES, wheels=wheels_of(make_wheel(tmp_path / "w", "stack")))
    )
    assert code == 0, err
    assert "@ venv built" in lines
    assert not (half / "left-over").exists()


def test_a_venv_whose_build_fails_leaves_nothing(tmp_path):
    host = Host(tmp_path, venv=False)
    stack = make_wheel(tmp_path / "w", "stack")
    stack.write_bytes(b"this is no wheel")
    code, _, err = host.prepare(NEW, host.bundle(FILES, wheels=wheels_of(stack)))
    assert code != 0
    assert "stack" in err
    # What there is of it only takes room, which may be what was lacking.
    assert not (host.srv / "venvs" / "v9").exists()
    assert host.names == []


def test_a_shared_folder_that_is_made_can_be_written_by_the_application(host):
    shared = host.srv / "shared"
    (shared / "private").mkdir(mode=0o700)
    directories = ["media", "a/b", "private"]
    assert host.prepare(NEW, host.bundle(FILES), shared_directories=directories)[0] == 0
    modes = {name: (shared / name).stat().st_mode & 0o777 for name in ("media", "a", "a/b", "private")}
    assert modes == {"media": 0o775, "a": 0o775, "a/b": 0o775, "private": 0o700}
    assert (host.release() / "shop/jobs.py").stat().st_mode & 0o222 == 0
    assert host.release().stat().st_mode & 0o022 == 0


def test_a_wheel_with_another_hash_is_refused_on_the_host_too(tmp_path):
    host = Host(tmp_path, venv=False)
    stack, library = make_wheel(tmp_path / "w", "stack"), make_wheel(tmp_path / "w", "library")
    wheels = wheels_of(library, stack, requirements=f"library==1.0 --hash=sha256:{'0' * 64}\n")
    code, _, err = host.prepare(NEW, host.bundle(FILES, wheels=wheels))
    assert code != 0
    assert "HASHES" in err
    assert host.names == []


def test_a_missing_shared_file_is_named(host):
    code, _, err = host.prepare(NEW, host.bundle(FILES), shared_files=["config/x.ini"])
    assert code == 1
    assert "shared/config/x.ini is missing: put it there" in err
    assert host.names == []


# --- the application's check -----------------------------------------------------------------------------


def test_the_check_runs_in_the_release_where_it_will_run(host):
    show = "pwd; which python; env | grep ^KESTREL_STACK_ | sort; cat var/seen"
    (host.srv / "shared/var/seen").write_text("shared")
    command = f"({show}) >../../seen 2>&1"
    host.deploy(NEW, FILES, check=command, previous=OLD, app="shop", shared_directories=["var"])
    here = str(host.release())
    assert (host.srv / "seen").read_text().splitlines() == [
        here,
        f"{here}/venv/bin/python",
        "KESTREL_STACK_APP=shop",
        f"KESTREL_STACK_PREVIOUS={OLD}",
        f"KESTREL_STACK_RELEASE={NEW}",
        f"KESTREL_STACK_RELEASE_PATH={here}",
        "KESTREL_STACK_REV=abc",
        "shared",
    ]


def test_a_check_that_fails_ends_with_everything_as_before(host):
    host.deploy(OLD, FILES)
    before = photograph(host.release(OLD))
    bundle = host.bundle(FILES, base=(OLD, FILES))
    code, lines, err = host.prepare(NEW, bundle, check="echo first; echo the config is wrong >&2; exit 3")
    assert code == 1
    assert "the config is wrong" in err
    assert "the hook check failed with exit code 3" in err
    assert "@ prepared" not in lines
    assert host.names == [OLD]
    assert photograph(host.release(OLD)) == before


def test_a_check_that_does_not_end_is_ended_with_what_it_started(host):
    command = "sleep 61.5 & sleep 61.5"
    code, _, err = host.prepare(NEW, host.bundle(FILES), check=command, hook_seconds=1)
    assert code == 1
    assert "the hook check did not end within 1 s" in err
    assert host.names == []
    wait_for(lambda: not [1 for line in Path("/proc").glob("[0-9]*/cmdline") if said(line) == "sleep 61.5"])


def said(path):
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def test_a_check_with_a_hostile_text_is_only_that_command(host):
    host.deploy(NEW, FILES, check=f"printf %s {shlex.quote(HOSTILE)} >../../said")
    assert (host.srv / "said").read_text() == HOSTILE
    assert not list(host.tree.base.rglob("pwned"))


# --- when the connection is lost ---------------------------------------------------------------------------


def test_a_step_ends_with_all_its_children_and_leaves_nothing_when_the_connection_is_lost(host):
    bundle = host.bundle(FILES)
    process = host.tree.start(host.script(NEW, bundle, check="touch ../../started; sleep 60"))
    process.stdin.write(bundle.path.read_bytes())
    process.stdin.flush()
    wait_for(lambda: (host.srv / "started").exists() and "sleep" in commands_of(process.pid))
    process.stdin.close()
    assert process.wait(60) == -signal.SIGTERM
    wait_for(lambda: not commands_of(process.pid))
    assert host.names == []
    process.stdout.close()
    process.stderr.close()


def commands_of(session):
    """The programs of a session that are alive."""
    found = set()
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat_file.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        words = rest.split()
        if int(words[3]) == session and words[0] != "Z":
            found.add(name)
    return found
