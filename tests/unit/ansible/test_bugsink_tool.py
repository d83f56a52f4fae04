"""The host's program for Bugsink: root works in folders of Bugsink's user, and is not led about by it."""

from __future__ import annotations

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
