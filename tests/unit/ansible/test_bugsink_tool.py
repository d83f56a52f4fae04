"""The host's program for Bugsink: root works in folders of Bugsink's user, and is not led about by it."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pwd
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from support.host_programs import CHECKOUT, load

PROGRAM = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-bugsink"
OTHER = "nobody"
SECRET = "for root alone\n"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return load(PROGRAM)


@pytest.fixture
def host(tool, monkeypatch):
    """Folders on a host where Bugsink's user is somebody else; a file there is root's alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir(mode=0o750)
        os.chown(state, pwd.getpwnam(OTHER).pw_uid, pwd.getpwnam(OTHER).pw_gid)
        for constant, value in {"USER": OTHER, "STATE": state, "ROOT": folder / "opt"}.items():
            monkeypatch.setattr(tool, constant, value)
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(SECRET)
        yield folder
        assert (folder / "secret").read_text() == SECRET
        assert (folder / "secret").stat().st_uid == 0
        assert (os.geteuid(), os.getegid()) == (0, 0)


def work(tool, host, **links):
    """Make a folder for a backup, as the program does, with links that the user lays in it."""
    folder = host / "state/.backup"
    tool.mine(folder)
    with tool.theirs():
        (folder / "db.sqlite3").write_bytes(b"a database")
        for name, target in links.items():
            (folder / name).symlink_to(target)
    return folder


def test_a_folder_of_the_user_is_never_given_away_by_root(tool, host, monkeypatch):
    real, inner = Path.mkdir, host / "roots"
    inner.mkdir()

    def exchanged(path, *arguments, **options):
        real(path, *arguments, **options)
        path.rmdir()
        path.symlink_to(inner)

    tool.mine(host / "state/first")
    assert (host / "state/first").owner() == OTHER
    monkeypatch.setattr(Path, "mkdir", exchanged)
    tool.mine(host / "state/.backup")
    assert inner.stat().st_uid == 0


def test_a_backup_holds_nothing_that_the_user_may_not_read(tool, host):
    new = host / "new.tar.gz"
    folder = work(tool, host, ingestion=host / "secret")
    about = {}
    with pytest.raises(PermissionError):
        tool.pack(folder, about, new)
    assert SECRET.encode() not in new.read_bytes()
    (folder / "ingestion").unlink()
    tool.pack(folder, about, new)
    with tarfile.open(new) as tar:
        assert tar.getnames() == ["about.json", "db.sqlite3"]


def test_a_backup_is_not_unpacked_through_a_link(tool, host):
    packed = host / "bugsink.tar.gz"
    folder = work(tool, host)
    tool.pack(folder, {"v": 1}, packed)
    with tool.theirs():
        (folder / "db.sqlite3").unlink()
        (folder / "db.sqlite3").symlink_to(host / "secret")
    with pytest.raises(tool.Failed, match="nothing was changed"):
        tool.unpack(packed, folder)
    (folder / "db.sqlite3").unlink()
    about = tool.unpack(packed, folder)
    assert (folder / "db.sqlite3").owner() == OTHER
    assert set(about["files"]) == {"db.sqlite3"}


def test_what_is_moved_stays_where_the_user_may_write(tool, host, monkeypatch):
    """Here a restore that was cut short is taken back, and what was before has become a link."""
    roots = host / "roots"
    roots.mkdir()
    (host / "opt").mkdir()
    before = host / "state/before-restore-1"
    with tool.theirs():
        before.symlink_to(roots)
        (host / "state/db.sqlite3").write_bytes(b"new")
    (roots / "db.sqlite3").write_bytes(b"of somebody else")
    tool.restoring().write_text(json.dumps({"before": str(before), "had": ["db.sqlite3"]}))
    monkeypatch.setattr(tool, "stop", lambda: None)
    with pytest.raises(PermissionError):
        tool.undo_cut_restore()
    assert (roots / "db.sqlite3").read_bytes() == b"of somebody else"


def test_what_takes_too_long_is_named_without_what_was_run(tool, monkeypatch):
    def slow(*command, **_):
        raise subprocess.TimeoutExpired(command, 7)

    monkeypatch.setattr(tool, "run", slow)
    monkeypatch.setattr(tool, "as_user", dict)
    with pytest.raises(tool.Failed) as failed:
        tool.ask("py311", "state")
    assert str(failed.value) == f"Bugsink (state) was not done after {tool.LONG} s"


def test_who_removes_old_events_has_no_database_open_that_is_exchanged(tool, monkeypatch):
    stopped = []
    monkeypatch.setattr(tool, "run", lambda *command, **_: stopped.append(command[-1]))
    tool.stop()
    assert stopped == ["bugsink-vacuum.service", *tool.UNITS]


@pytest.fixture
def small(tool, tmp_path, monkeypatch):
    """Folders of a host, and a Bugsink that does nothing."""
    for name in ("state", "opt"):
        (tmp_path / name).mkdir()
    for constant, value in {
        "USER": getpass.getuser(),
        "STATE": tmp_path / "state",
        "ROOT": tmp_path / "opt",
        "is_postgresql": lambda: False,
        "ask": lambda *_, **__: {"events": 1},
        "migrate": lambda _: None,
        "stop": lambda: None,
        "start": lambda _: None,
    }.items():
        monkeypatch.setattr(tool, constant, value)
    return tmp_path


def fill(folder, text, names):
    for name in names:
        path = folder / name / "event.json" if name == "ingestion" else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


BEFORE = ("db.sqlite3", "db.sqlite3-wal", "snappea.sqlite3", "ingestion")
AFTER = ("db.sqlite3", "snappea.sqlite3", "ingestion")


class Cut(BaseException):
    """The power went."""


@pytest.mark.parametrize("number", range(1, len(BEFORE) + len(AFTER) + 1))
def test_a_restore_that_is_cut_short_at_any_file_is_taken_back(tool, small, monkeypatch, number):
    state, work = small / "state", small / "state/.restore"
    fill(state, "before", BEFORE)
    was = contents(state)
    fill(work, "in the backup", AFTER)
    real, calls = Path.rename, []

    def dying(path, target):
        calls.append(path)
        if len(calls) == number:
            raise Cut
        return real(path, target)

    about = {"events": 1, "waiting": 0, "made": "today"}
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(Path, "rename", dying)
        tool.exchange("py311", work, about, 1)
    # As the next run begins.
    assert tool.undo_cut_restore() is True
    tool.clear()
    assert {name: text for name, text in contents(state).items() if "cut-restore" not in name} == was
    assert tool.undo_cut_restore() is False


def test_a_restore_keeps_aside_all_that_was_there(tool, small):
    state, work = small / "state", small / "state/.restore"
    fill(state, "before", BEFORE)
    was = contents(state)
    fill(work, "in the backup", AFTER)
    about = {"events": 1, "waiting": 0, "made": "today"}
    done = tool.exchange("py311", work, about, 1)
    assert contents(Path(done["before"])) == was
    assert not (state / "db.sqlite3-wal").exists()
    assert (state / "db.sqlite3").read_text() == "in the backup"


def test_what_is_no_whole_backup_is_refused(tool, small):
    work, good = small / "state/.backup", small / "good.tar.gz"
    fill(work, os.urandom(3000).hex(), AFTER)
    tool.pack(work, {"v": 1}, good)
    data, middle = good.read_bytes(), good.stat().st_size // 2

    def tar(name, *members):
        with tarfile.open(small / name, "w:gz") as packed:
            for path, arcname in members:
                packed.add(path, arcname)
        return small / name

    with tarfile.open(good) as packed:
        packed.extractall(small / "unpacked")
    about, database = small / "unpacked/about.json", small / "unpacked/db.sqlite3"
    (small / "short").write_bytes(data[:middle])
    (small / "bent").write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
    (small / "link").symlink_to("/etc/passwd")
    (small / "other").write_text("another one")
    for path, said in (
        (small / "short", "is damaged"),
        (small / "bent", "is damaged"),
        (tar("changed", (about, "about.json"), (small / "other", "db.sqlite3")), "is damaged"),
        (tar("missing", (about, "about.json")), "is damaged"),
        (tar("first", (database, "db.sqlite3")), "is no backup"),
        (
            tar("outside", (about, "about.json"), (database, "ingestion/../../db.sqlite3")),
            "no part of a backup",
        ),
        (tar("linked", (about, "about.json"), (small / "link", "db.sqlite3")), "no part of a backup"),
        (small / "none", "is missing"),
    ):
        tool.clear()
        work = small / "state/.restore"
        tool.mine(work)
        with pytest.raises(tool.Failed, match=said):
            tool.unpack(path, work)
    tool.clear()
    tool.mine(small / "state/.restore")
    assert set(tool.unpack(good, small / "state/.restore")["files"]) == {
        "db.sqlite3", "snappea.sqlite3", "ingestion/event.json",
    }  # fmt: skip


def test_a_restore_says_what_it_would_replace_and_does_nothing_without_a_word(tool, small, monkeypatch):
    about = {"v": 1, "events": 3, "made": "20260101T000000Z"}
    for name, value in {
        "running_release": lambda: "py311",
        "ask": lambda *_, **__: {"events": 7},
        "unpack": lambda *_: about,
        "refuse_other": lambda *_: None,
    }.items():
        monkeypatch.setattr(tool, name, value)
    fill(small / "state", "before", BEFORE)
    was = contents(small / "state")
    options = argparse.Namespace(file="bugsink.tar.gz", yes=False, start_seconds=1)
    with pytest.raises(tool.Failed) as failed:
        tool.do_restore(options)
    assert str(failed.value) == (
        "this lets 3 events of 20260101T000000Z take the place of the 7 that are there: say --yes"
    )
    assert contents(small / "state") == was
