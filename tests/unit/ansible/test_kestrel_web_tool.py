"""The host's program for kestrel-web: releases out of wheels, and a way back when one does not come up."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import sqlite3
import tarfile

import pytest

from support.host_programs import CHECKOUT, load

PROGRAM = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-kestrel-web"
OLD, NEW = "py311-x86_64-00000000000a", "py311-x86_64-00000000000b"


class Host:
    """A host's folders, and a systemd that does as it is told."""

    def __init__(self, tool, folder, monkeypatch):
        self.tool = tool
        self.root, self.etc = folder / "opt", folder / "etc"
        self.unit = folder / "kestrel-web.service"
        (self.etc / "apps").mkdir(parents=True)
        (self.root / "releases").mkdir(parents=True)
        (folder / "state").mkdir()
        for name, value in {
            "ROOT": self.root,
            "CONFIGURATION": self.etc,
            "UNIT_FILE": self.unit,
            "STARTED": self.root / ".started",
            "FORMER": self.etc / "former",
            "DATABASE": folder / "state" / "kestrel-web.sqlite3",
            "ASIDE": folder / "state" / "before-upgrade.sqlite3",
            "run": self.run,
            "answers": lambda seconds: None,
            "last_lines": lambda since: ["the last line"],
        }.items():
            monkeypatch.setattr(tool, name, value)
        self.active, self.enabled, self.starts = False, False, 0
        self.broken = set()

    def run(self, *command, check=True, **_):
        match command[1:2]:
            case ("is-active",):
                return "active" if self.active else "inactive"
            case ("is-enabled",):
                return "enabled" if self.enabled else "disabled"
            case ("enable",):
                self.enabled = True
            case ("restart",):
                self.starts += 1
                self.active = self.text() not in self.broken
                self.migrate()
                if not self.active:
                    raise self.tool.Failed("systemctl restart kestrel-web.service failed: see")
                self.tool.do_started(None)
            case ("stop",):
                self.active = False
        return ""

    def release(self, key):
        (self.root / "releases" / key).mkdir()
        (self.root / "releases" / key / ".complete").touch()

    def write(self, text, *, app="shop"):
        self.unit.write_text("[Unit]")
        (self.etc / "kestrel-web.json").write_text(text)
        (self.etc / "kestrel-web.json").chmod(0o640)
        (self.etc / "apps" / f"{app}.json").write_text("{}")

    def migrate(self):
        """A release makes newer tables of older ones first of all, and refuses those that are newer."""
        wanted = {OLD: 1, NEW: 2}.get(self.tool.current(), 0)
        with contextlib.closing(sqlite3.connect(self.tool.DATABASE)) as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            self.active = self.active and found <= wanted
            connection.execute(f"PRAGMA user_version = {max(found, wanted)}")

    def text(self):
        return (self.etc / "kestrel-web.json").read_text()

    def apply(self, release, keep=3):
        return self.tool.do_apply(argparse.Namespace(release=release, start_seconds=1, keep_releases=keep))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(load(PROGRAM), tmp_path, monkeypatch)
    host.release(OLD)
    host.write("old")
    return host


def test_it_is_started_once_and_restarted_only_when_something_changed(host):
    assert host.apply(OLD) == {"did": "started", "release": OLD, "removed": [], "changed": True}
    assert host.enabled
    assert host.apply(OLD) == {"did": "nothing", "release": OLD, "removed": [], "changed": False}
    host.write("new")
    assert host.apply(OLD)["did"] == "restarted"
    host.unit.write_text("[Service]")
    assert host.apply(OLD)["did"] == "restarted"
    (host.etc / "apps" / "shop.json").write_text("[]")
    assert host.apply(OLD)["did"] == "restarted"
    host.release(NEW)
    assert host.apply(NEW)["did"] == "restarted"
    assert host.starts == 5


def test_one_that_was_interrupted_before_its_restart_is_restarted_by_the_next_run(host):
    host.apply(OLD)
    host.write("new")
    # Here the play ends. What ran is not what stands any more, so it is not put aside in place of the old.
    assert host.tool.do_keep(None) == {"kept": False}
    assert host.apply(OLD)["did"] == "restarted"


def test_what_does_not_come_up_is_replaced_by_all_that_ran_before(host):
    host.apply(OLD)
    assert host.tool.do_keep(None) == {"kept": True}
    host.release(NEW)
    host.write("new", app="other")
    host.broken = {"new"}
    with pytest.raises(host.tool.Failed) as failed:
        host.apply(NEW)
    assert str(failed.value) == (
        f"release {NEW} does not come up: it ended, or did not say that it is ready;"
        f" release {OLD} goes on as it was configured before"
    )
    assert failed.value.log == ["the last line"]
    assert host.active
    assert host.text() == "old"
    assert (host.etc / "kestrel-web.json").stat().st_mode & 0o777 == 0o640
    assert names(host.etc / "apps") == ["shop.json"]
    assert host.tool.current() == OLD
    assert names(host.tool.DATABASE.parent) == ["kestrel-web.sqlite3"]
    assert host.tool.tables(host.tool.DATABASE) == 1
    assert host.apply(OLD)["changed"] is False


def test_a_newer_release_changes_the_database_and_leaves_no_copy_of_it(host):
    host.apply(OLD)
    host.tool.do_keep(None)
    host.release(NEW)
    assert host.apply(NEW)["did"] == "restarted"
    assert names(host.tool.DATABASE.parent) == ["kestrel-web.sqlite3"]
    assert host.tool.tables(host.tool.DATABASE) == 2


def test_a_first_one_that_does_not_come_up_is_stopped_and_nothing_is_pretended(host):
    host.broken = {"old"}
    with pytest.raises(host.tool.Failed) as failed:
        host.apply(OLD)
    assert str(failed.value).endswith("; nothing runs now, for there is nothing to put back")
    assert not host.active


def test_what_was_kept_is_for_root_alone(host):
    host.apply(OLD)
    host.tool.do_keep(None)
    former = host.etc / "former"
    assert former.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in former.iterdir()} == {0o600}


def test_the_oldest_releases_go_but_never_the_current_one_or_the_one_to_go_back_to(host):
    host.apply(OLD)
    host.tool.do_keep(None)
    for number in range(3):
        key = f"py311-x86_64-{number:012x}"
        host.release(key)
        os.utime(host.root / "releases" / key, (1000 + number, 1000 + number))
    os.utime(host.root / "releases" / OLD, (1, 1))
    host.release(NEW)
    host.write("new")
    done = host.apply(NEW, keep=3)
    assert sorted(done["removed"]) == ["py311-x86_64-000000000000", "py311-x86_64-000000000001"]
    assert host.apply(NEW, keep=1)["removed"] == ["py311-x86_64-000000000002"]
    assert names(host.root / "releases") == sorted([OLD, NEW])


def packed(folder, content):
    path = folder / "wheels.tar"
    with tarfile.open(path, "w") as made:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def install(host, path, sha256=None):
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return host.tool.do_install(argparse.Namespace(tar=str(path), sha256=sha256, key=NEW))


def test_a_release_is_made_once_out_of_what_was_sent(host, tmp_path, monkeypatch):
    seen = {}

    def build(folder, unpacked):
        folder.mkdir()
        seen.update({path.name: path.read_bytes() for path in unpacked.rglob("*") if path.is_file()})

    monkeypatch.setattr(host.tool.releases, "build", build)
    path = packed(tmp_path, {"requirements.txt": b"a==1", "wheels/a-1-py3-none-any.whl": b"a"})
    assert install(host, path) == {"changed": True, "release": NEW}
    assert seen == {"requirements.txt": b"a==1", "a-1-py3-none-any.whl": b"a"}
    assert install(host, path) == {"changed": False, "release": NEW}
    assert not [name for name in names(host.root) if name.startswith(".unpack")]


@pytest.mark.parametrize(
    "name", ["../a.whl", "/etc/passwd", "wheels/../../a.whl", "wheels/a.txt", "setup.py"]
)
def test_what_is_no_wheel_is_refused(host, tmp_path, name):
    with pytest.raises(host.tool.Failed, match="which is no wheel"):
        install(host, packed(tmp_path, {name: b""}))
    assert not (host.root / "releases" / NEW).exists()


def test_what_arrived_damaged_or_does_not_build_leaves_no_half_a_release(host, tmp_path, monkeypatch):
    path = packed(tmp_path, {"requirements.txt": b""})
    with pytest.raises(host.tool.Failed, match="arrived damaged"):
        install(host, path, "0" * 64)

    def build(folder, unpacked):
        folder.mkdir()
        raise host.tool.Failed("pip failed")

    monkeypatch.setattr(host.tool.releases, "build", build)
    with pytest.raises(host.tool.Failed, match="pip failed"):
        install(host, path)
    assert not (host.root / "releases" / NEW).exists()


def test_a_link_that_the_service_laid_where_its_database_is_put_aside_leads_nowhere(
    host, tmp_path, monkeypatch
):
    host.apply(OLD)
    host.release(NEW)
    theirs, run = tmp_path / "of somebody else", host.run
    theirs.write_text("as it was")

    def stopped(*command, **options):
        if command[1] == "stop":
            host.tool.ASIDE.symlink_to(theirs)
        return run(*command, **options)

    monkeypatch.setattr(host.tool, "run", stopped)
    assert host.apply(NEW)["did"] == "restarted"
    assert theirs.read_text() == "as it was"
