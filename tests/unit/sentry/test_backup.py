"""Backups of Sentry and the ways back, and the look at Docker's disk."""

from __future__ import annotations

import http.server
import json
import tarfile
import threading

import pytest

RESTORE = "./scripts/restore.sh --no-report-self-hosted-issues --minimize-downtime"


def data(host):
    """What the stand-in's database has seen."""
    return (host.state_folder / "volumes/sentry-postgres/version").read_text()


def test_a_daily_backup_stops_nothing_and_holds_the_export_and_the_keys(installed):
    since = len(installed.calls())
    answer = installed.done("backup", "--keep", 2)
    assert installed.called()[since:] == [
        "./scripts/backup.sh --no-report-self-hosted-issues --minimize-downtime",
    ]
    folder = installed.backups / answer["backup"].rpartition("/")[2]
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


def test_old_ones_go_by_kind(installed):
    for number in range(1, 6):
        for end in ("", "-full"):
            folder = installed.backups / f"2026010{number}T000000Z-26.7.0{end}"
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
    installed.done("backup", "--keep", 3)
    names = sorted(path.name for path in installed.backups.iterdir())
    assert names[:4] == [
        *("20260104T000000Z-26.7.0", "20260104T000000Z-26.7.0-full"),
        *("20260105T000000Z-26.7.0", "20260105T000000Z-26.7.0-full"),
    ]
    assert len(names) == 5


def test_what_is_half_installed_is_not_backed_up(host):
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


def test_a_backup_that_lost_a_part_is_refused_before_anything_stops(installed):
    installed.want("26.8.0")
    installed.done("apply")
    (kept,) = installed.backups.iterdir()
    (kept / "sentry-postgres.tar").unlink()
    since = len(installed.calls())
    assert "has lost sentry-postgres; nothing was changed" in installed.refused("restore", kept, "--yes")
    assert installed.called()[since:] == []
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


def test_a_webhook_that_is_down_is_told_without_its_address(host, monkeypatch):
    usage = host.tool.shutil.disk_usage
    monkeypatch.setattr(host.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
    host.want("26.7.0", webhook="http://127.0.0.1:1/hook?token=t0ken")
    _, _, err = host.do("disk")
    assert "sentry_self_hosted_webhook was not reached" in err
    assert "t0ken" not in err
