"""Backups of Sentry and the ways back, and the look at Docker's disk."""

from __future__ import annotations

import http.server
import json
import tarfile
import threading
from pathlib import Path

import pytest

RESTORE = "./scripts/restore.sh --no-report-self-hosted-issues --minimize-downtime"


def data(host):
    """What the stand-in's database has seen."""
    return (host.state_folder / "volumes/sentry-postgres/version").read_text()


def test_a_daily_backup_stops_nothing_and_holds_the_export_and_the_keys(resting):
    since = len(resting.calls())
    log = (resting.root / "install.log").read_text()
    for number in range(7):
        (resting.tree / f"sentry_backup_log-2026-01-0{number}_00-00-00.txt").touch()
    answer = resting.done("backup", "--keep", 2)
    assert resting.called()[since:] == [
        "./scripts/backup.sh --no-report-self-hosted-issues --minimize-downtime",
    ]
    # What the scripts write down of themselves does not grow for ever; the log of the installation stays.
    assert len(list(resting.tree.glob("sentry_backup_log-*.txt"))) == 5
    assert (resting.root / "install.log").read_text() == log
    folder = resting.backups / answer["backup"].rpartition("/")[2]
    assert sorted(path.name for path in folder.iterdir()) == [
        "backup.json",
        "configuration.tar",
        "manifest.json",
    ]
    with tarfile.open(folder / "configuration.tar") as packed:
        names = packed.getnames()
    assert {
        "self-hosted/.env.custom",
        "self-hosted/sentry/sentry.conf.py",
        "secret_key",
        "state.json",
    } <= set(names)


@pytest.mark.long
def test_a_full_backup_by_hand_starts_sentry_again(installed):
    since = len(installed.calls())
    folder = installed.done("backup", "--full")["backup"]
    assert folder.endswith("-full")
    assert [call.split(" ")[-1] for call in installed.called()[since:]] == [
        "--minimize-downtime",
        "stop",
        "--wait",
    ]
    assert installed.done("apply")["changed"] is False


def test_old_ones_go_by_kind(resting):
    for number in range(1, 6):
        for end in ("", "-full"):
            folder = resting.backups / f"2026010{number}T000000Z-26.7.0{end}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
    resting.done("backup", "--keep", 3)
    names = sorted(path.name for path in resting.backups.iterdir())
    assert names[:4] == [
        *("20260104T000000Z-26.7.0", "20260104T000000Z-26.7.0-full"),
        *("20260105T000000Z-26.7.0", "20260105T000000Z-26.7.0-full"),
    ]
    assert len(names) == 5


def test_what_is_somebody_elses_in_the_folder_stays(resting, tmp_path):
    mine = [tmp_path / "to" / name for name in ("a-page", "z-page", ".mine.new")]
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    cut = tmp_path / "to/.20260101T000000Z-26.7.0.new"
    cut.mkdir()
    resting.done("backup", "--to", tmp_path / "to", "--keep", 1)
    assert all((folder / "manifest.json").exists() for folder in mine)
    assert not cut.exists()


def test_a_volume_whose_files_are_elsewhere_is_copied_from_there_or_refused(installed, tmp_path):
    since = len(installed.calls())
    elsewhere = {"sentry-kafka": {"Options": {"type": "nfs", "o": "addr=10.0.0.9", "device": ":/kafka"}}}
    installed.flag("volumes.json", json.dumps(elsewhere))
    found = installed.refused("backup", "--full")
    assert "volume sentry-kafka is mounted by Docker from elsewhere" in found
    # The engine is silent: that is not a Sentry without volumes.
    installed.flag("volume-fails")
    assert "docker volume ls" in installed.refused("backup", "--full")
    installed.no_flag("volume-fails")
    assert installed.called()[since:] == []
    assert list(installed.backups.iterdir()) == []
    (tmp_path / "data").mkdir()
    (tmp_path / "data/segment").write_text("events")
    bound = {"Options": {"type": "none", "o": "bind", "device": str(tmp_path / "data")}}
    installed.flag("volumes.json", json.dumps({"sentry-kafka": bound}))
    kept = Path(installed.done("backup", "--full")["backup"])
    with tarfile.open(kept / "sentry-kafka.tar") as packed:
        assert "./segment" in packed.getnames()


def test_volumes_are_measured_as_they_are_on_the_disk_while_their_files_come_and_go(host):
    volume = host.folder / "kafka"
    volume.mkdir()
    with (volume / "00.index").open("wb") as file:
        file.truncate(10**12)
    assert host.tool.used([volume]) < 10**6
    du = host.standin / "du"
    du.write_text('#!/bin/sh\necho "4096\t$3"\necho "du: cannot access \'x\': No such file" >&2\nexit 1\n')
    du.chmod(0o755)
    assert host.tool.used([volume]) == 4096


def test_a_full_backup_that_is_stopped_lets_sentry_go_on(installed):
    since = len(installed.calls())
    installed.flag("stop-hangs")
    process = installed.process("backup", "--full")
    stopping = int(installed.wait_for("stopping"))
    installed.no_flag("stop-hangs")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped by SIGTERM" in err
    assert not Path(f"/proc/{stopping}").exists()
    assert [call.split(" ")[-1] for call in installed.called()[since:]][-2:] == ["stop", "--wait"]
    assert list(installed.backups.iterdir()) == []


def test_what_is_half_installed_or_half_restored_is_not_backed_up(host):
    assert "nothing to back up" in host.refused("backup")
    half = {"version": "26.7.0", "commit": "a" * 40, "restoring": "/b/1"}
    (host.root / "state.json").write_text(json.dumps(half))
    assert "nothing to back up" in host.refused("backup")


def test_the_way_back_from_an_upgrade_brings_volumes_files_and_release(installed):
    before = data(installed)
    conf = (installed.tree / "sentry/sentry.conf.py").read_text()
    key = (installed.root / "secret_key").read_text()
    installed.want("26.8.0")
    installed.done("apply")
    assert data(installed) != before
    (kept,) = installed.backups.iterdir()
    assert "give --yes as well" in installed.refused("restore", kept)
    (installed.root / "secret_key").write_text("lost" * 20)
    (installed.state_folder / "volumes/sentry-postgres/since").write_text("gone afterwards")
    since = len(installed.calls())
    answer = installed.done("restore", kept, "--yes")
    assert (answer["version"], answer["full"]) == ("26.7.0", True)
    called = [call.split(" ")[-1] for call in installed.called()[since:]]
    assert called == ["--remove-orphans", "--apply-automatic-config-updates", "60", "--wait"]
    # The installer of the old release then ran over the old data.
    assert data(installed) == before + "SENTRY_IMAGE=stand-in:26.7.0\n"
    assert not (installed.state_folder / "volumes/sentry-postgres/since").exists()
    assert (installed.tree / "sentry/sentry.conf.py").read_text() == conf
    assert (installed.root / "secret_key").read_text() == key
    assert installed.state()["version"] == "26.7.0"
    assert {"restoring", "installing"} & set(installed.state()) == set()
    installed.want("26.7.0")
    assert installed.done("apply")["changed"] is False


@pytest.mark.long
def test_a_restore_that_is_cut_is_finished_by_the_same_command(installed):
    installed.want("26.8.0")
    installed.done("apply")
    (kept,) = installed.backups.iterdir()
    installed.flag("install-fails")
    installed.refused("restore", kept, "--yes")
    assert installed.state()["restoring"] == str(kept)
    assert "was cut: finish it first" in installed.refused("plan")
    installed.no_flag("install-fails")
    assert installed.done("restore", kept, "--yes")["version"] == "26.7.0"
    assert "restoring" not in installed.state()


@pytest.mark.long
def test_a_restore_that_is_killed_after_its_configuration_is_still_one(installed, monkeypatch):
    kept = Path(installed.done("backup", "--full")["backup"])
    whole = installed.tool.run

    def run(*command, **options):
        said = whole(*command, **options)
        if "--extract" in command and str(command[-1]).endswith("configuration.tar"):
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr(installed.tool, "run", run)
    with pytest.raises(KeyboardInterrupt):
        installed.tool.main(["restore", str(kept), "--yes"])
    assert installed.state()["restoring"] == str(kept)


def test_a_backup_that_lost_a_part_is_refused_before_anything_stops(installed, monkeypatch):
    kept = Path(installed.done("backup", "--full")["backup"])
    since = len(installed.calls())
    postgres = kept / "sentry-postgres.tar"
    whole = postgres.read_bytes()
    postgres.write_bytes(whole[:-1])
    found = installed.refused("restore", kept, "--yes")
    assert "has lost sentry-postgres.tar, or a part of it" in found and "nothing was changed" in found
    postgres.write_bytes(whole)
    (kept / "configuration.tar").rename(kept / "aside")
    assert "has lost configuration.tar" in installed.refused("restore", kept, "--yes")
    (kept / "aside").rename(kept / "configuration.tar")
    # Nor where it would not fit, or its release cannot be had.
    usage = installed.tool.shutil.disk_usage
    monkeypatch.setattr(installed.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=-(10**9)))
    assert "GB more than what is there" in installed.refused("restore", kept, "--yes")
    monkeypatch.setattr(installed.tool.shutil, "disk_usage", usage)
    manifest = json.loads((kept / "manifest.json").read_text())
    (kept / "manifest.json").write_text(json.dumps({**manifest, "version": "26.7.9", "commit": "d" * 40}))
    assert "Sentry 26.7.9 cannot be fetched" in installed.refused("restore", kept, "--yes")
    assert installed.called()[since:] == []
    assert "restoring" not in installed.state()
    assert "is no backup" in installed.refused("restore", installed.folder, "--yes")


@pytest.mark.long
def test_an_export_is_read_into_the_version_that_wrote_it(installed):
    folder = installed.done("backup")["backup"]
    since = len(installed.calls())
    installed.done("restore", folder, "--yes")
    assert installed.called()[since] == RESTORE
    assert (installed.state_folder / "restored.json").read_text().startswith("[{")
    assert not (installed.tree / "sentry/backup.json").exists()
    installed.want("26.8.0")
    installed.done("apply")
    assert "install 26.7.0 on an empty host first" in installed.refused("restore", folder, "--yes")


@pytest.fixture
def webhook():
    """Whoever is told."""
    got = []

    class Told(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Told)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook?token=t0ken", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_too_little_disk_is_told_once_and_so_is_its_end(host, webhook, monkeypatch):
    address, got = webhook
    free = {"now": 5e9}
    usage = host.tool.shutil.disk_usage
    monkeypatch.setattr(host.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=free["now"]))
    host.want("26.7.0", disk_floor_gb=2, webhook=address)
    assert host.done("disk")["free_gb"] == 5.0
    assert got == []
    free["now"] = 1e9
    code, _, err = host.do("disk")
    assert code == 1 and err.startswith("<4>Sentry on ")
    assert "1.0 GB free on " in got[0]["text"] and "less than 2 GB" in got[0]["text"]
    assert host.do("disk")[0] == 1
    assert len(got) == 1
    free["now"] = 5e9
    host.done("disk")
    assert "again" in got[1]["text"]


def test_images_may_be_on_another_disk_than_dockers_root(host, monkeypatch):
    folder = host.folder / "containerd"
    folder.mkdir()
    monkeypatch.setattr(host.tool, "CONTAINERD", str(folder))
    usage = host.tool.shutil.disk_usage
    free = {str(folder): 3e9}
    monkeypatch.setattr(
        host.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=free.get(str(path), 90e9))
    )
    assert host.done("disk")["free_gb"] == 90.0
    host.flag("driver", "[[driver-type io.containerd.snapshotter.v1]]")
    assert host.done("disk")["free_gb"] == 3.0
    facts = host.tool.host_facts(host.asks("26.8.0"))
    assert (facts["disk"], facts["disk_gb"]) == (str(folder), 3.0)


def test_a_webhook_that_is_down_is_told_without_its_address(host, monkeypatch):
    usage = host.tool.shutil.disk_usage
    monkeypatch.setattr(host.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
    host.want("26.7.0", webhook="http://127.0.0.1:1/hook?token=t0ken")
    _, _, err = host.do("disk")
    assert "sentry_self_hosted_webhook was not reached" in err
    assert "t0ken" not in err
