"""Upgrades of a real Bugsink whose tables change: every event stays, wherever the run is cut short."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from support.bugsink_host import BugsinkHost
from support.older_bugsink import older_lock

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A host on which an older Bugsink runs and has events; copied for every test."""
    with BugsinkHost(tmp_path_factory.mktemp("host") / "host") as host:
        host.old, host.new = host.release(str(older_lock())), host.release()
        host.do("apply", "--release", host.old)
        host.do("project")
        host.sent = [host.send(f"event {number}") for number in range(5)]
        assert not host.lost(host.sent)
        host.do("keep")
        host.systemctl("stop", "bugsink.service", "bugsink-snappea.service")
        shutil.copytree(host.state, host.folder / "as it was")
        yield host


@pytest.fixture
def host(ran):
    """As it was when only the older one had run."""
    ran.systemctl("stop", "bugsink.service", "bugsink-snappea.service")
    shutil.rmtree(ran.state)
    shutil.copytree(ran.folder / "as it was", ran.state)
    shutil.rmtree(ran.backups, ignore_errors=True)
    for note in (".upgrading", ".restoring"):
        (ran.root / note).unlink(missing_ok=True)
    (ran.root / "current").unlink()
    (ran.root / "current").symlink_to(Path("releases", ran.old))
    ran.configure()
    # Those that an earlier test removed.
    ran.release(str(older_lock()))
    ran.release()
    assert ran.do("apply", "--release", ran.old)["did"] == "started"
    ran.do("keep")
    return ran


def version(host) -> str:
    return host.inside("import bugsink.version; print(bugsink.version.__version__)")


def test_an_upgrade_keeps_every_event_and_makes_a_backup_that_goes_back(host):
    before = version(host)
    done = host.do("apply", "--release", host.new)
    assert done["did"] == "restarted"
    assert done["events"] == host.count() == len(host.sent)
    assert not host.lost([*host.sent, host.send("after the upgrade")])
    assert version(host) != before
    assert not (host.root / ".upgrading").exists()
    assert not (host.state / "before-upgrade").exists()
    assert host.do("apply", "--release", host.new)["did"] == "nothing"
    assert host.do("project")["changed"] is False
    # Back again only by the backup.
    host.do("keep")
    why = host.refuse("apply", "--release", host.old)
    assert f"Bugsink {before} is older than its database" in why
    assert why.endswith(f"release {host.new} goes on as it was configured before")
    assert host.are_active()
    assert host.do("apply", "--release", host.new)["did"] == "nothing"
    assert host.do("restore", done["backup"], "--yes")["events"] == len(host.sent)
    assert not host.lost(host.sent)


def broken(host) -> str:
    """Install a release like the new one, whose migrations fail half way; return its name."""
    name = f"{host.new[:-12]}{'b' * 12}"
    folder = host.root / "releases" / name
    shutil.copytree(host.root / "releases" / host.new / "venv", folder / "venv", symlinks=True)
    (migration,) = folder.glob("venv/lib/python*/site-packages/bsmain/migrations/0005_*.py")
    with migration.open("a") as file:
        file.write(
            "\n\ndef burn(*_):\n    raise RuntimeError('the disk burns')\n\n\n"
            "Migration.operations = [migrations.RunPython(burn)]\n"
        )
    manage = folder / "venv/bin/bugsink-manage"
    manage.write_text(f"#!{folder}/venv/bin/python\n{manage.read_text().partition(chr(10))[2]}")
    (folder / ".complete").touch()
    return name


def test_migrations_that_fail_half_way_bring_back_the_release_and_the_tables_of_before(host):
    name = broken(host)
    why = host.refuse("apply", "--release", name)
    assert "the disk burns" in why
    assert why.endswith(f"; release {host.old} goes on as it was configured before")
    assert host.are_active()
    assert not (host.state / "before-upgrade").exists()
    assert not host.lost([*host.sent, host.send("afterwards")])
    assert host.do("apply", "--release", host.old)["did"] == "nothing"
    host.release()
    assert host.do("apply", "--release", host.new)["events"] == len(host.sent) + 1


def test_a_new_release_that_does_not_start_gives_way_to_the_former_one_with_its_tables(host):
    host.configure(
        "import sys, bugsink.version\n"
        "is_web = sys.argv[0].endswith('gunicorn')\n"
        "assert not is_web or bugsink.version.__version__ < '2.6', 'not this one'"
    )
    host.do("apply", "--release", host.old)
    host.do("keep")
    code, answer, _ = host.run("apply", "--release", host.new)
    assert code == 1
    assert "not this one" in "".join(answer["log"])
    assert answer["failed"].endswith(f"; release {host.old} goes on as it was configured before")
    assert not host.lost([*host.sent, host.send("afterwards")])


@pytest.mark.parametrize(
    "kill",
    [
        *((name, 1) for name in ("prepare", "make_backup", "pack", "set_aside", "forget_aside", "migrate")),
        *(("ask", number) for number in (1, 2, 3)),
        *(("bugsink", number) for number in (4, 5)),
        ("stop", 1),
        *((name, 1) for name in ("releases.switch", "start", "answers")),
        ("forget_aside", 2),
    ],
)
@pytest.mark.parametrize("next_one", ["new", "old"])
def test_an_upgrade_that_is_cut_short_anywhere_is_finished_or_taken_back(host, kill, next_one):
    host.run("apply", "--release", host.new, kill=kill)
    release = getattr(host, next_one)
    code, _, err = host.run("apply", "--release", release)
    if code:
        # All was migrated and started: there is no way back but a backup.
        assert next_one == "old"
        assert "is older than its database" in err
        host.do("apply", "--release", host.new)
    assert host.are_active()
    assert not host.lost([*host.sent, host.send("afterwards")])
    assert host.count() == len(host.sent) + 1
    assert not (host.root / ".upgrading").exists()
    for path in host.backups.glob("bugsink-*"):
        with tarfile.open(path) as tar:
            assert tar.getnames()[0] == "about.json"


def test_no_room_for_a_backup_refuses_the_upgrade_and_leaves_what_runs(host):
    host.set(SPARE=10**18)
    try:
        why = host.refuse("apply", "--release", host.new)
    finally:
        host.set(SPARE=32 * 1024 * 1024)
    assert "MB free, and a backup of Bugsink needs" in why
    assert why.endswith(f"release {host.old} goes on as it was configured before")
    assert host.are_active()
    assert not host.lost(host.sent)
