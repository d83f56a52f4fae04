"""Installing, configuring and upgrading: what is called, in which order, with what beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support.host_programs import CHECKOUT, run

INSTALLER = (
    "./install.sh --skip-user-creation --no-report-self-hosted-issues --skip-commit-check"
    " --apply-automatic-config-updates"
)
UP = "docker compose --env-file .env --env-file .env.custom up --wait"
STOP = "docker compose --env-file .env --env-file .env.custom stop"
BACKUP = "./scripts/backup.sh --no-report-self-hosted-issues --minimize-downtime"
# The stand-in's installer ends as the real one does.
OWN_STOP = "docker compose --ansi never --env-file .env.custom stop -t 60"


def test_the_first_run_installs_and_the_second_changes_nothing(host):
    answer = host.done("apply")
    assert (answer["did"], answer["changed"]) == ("installed", True)
    assert host.called() == [INSTALLER, OWN_STOP, UP]
    assert host.calls()[0]["cwd"] == str(host.tree)
    assert host.state()["version"] == "26.7.0"
    since = len(host.calls())
    assert host.done("plan")["changed"] is False
    answer = host.done("apply")
    assert (answer["did"], answer["changed"]) == ("nothing", False)
    assert host.called()[since:] == []


def test_the_installer_finds_every_file_as_it_has_to_be(resting):
    seen = resting.state_folder / "install-0"
    key = (resting.root / "secret_key").read_text().strip()
    assert (seen / ".env.custom").read_text().splitlines() == [
        "COMPOSE_PROFILES=errors-only",
        f"SENTRY_BIND=127.0.0.1:{resting.port}",
        f"SENTRY_SYSTEM_SECRET_KEY={key}",
        f"LAUNCHPAD_RPC_SHARED_SECRET={resting.tool.launchpad(key)}",
    ]
    example = (resting.tree / "sentry/sentry.conf.example.py").read_text()
    conf = (seen / "sentry.conf.py").read_text()
    assert conf == example + "\n# BEGIN KESTREL STACK\nSENTRY_BEACON = False\n# END KESTREL STACK\n"
    assert "system.secret-key" not in (seen / "config.yml").read_text()
    modes = {
        name: (resting.tree / name).stat().st_mode & 0o777
        for name in (
            ".env.custom",
            "docker-compose.override.yml",
            "sentry/config.yml",
            "sentry/sentry.conf.py",
        )
    }
    assert set(modes.values()) == {0o600, 0o644}
    assert modes[".env.custom"] == modes["docker-compose.override.yml"] == 0o600
    for name in ("secret_key", "state.json", "install.log"):
        assert (resting.root / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.long
def test_a_changed_configuration_runs_the_installer_once_and_no_backup(installed):
    since = len(installed.calls())
    installed.want("26.7.0", env="COMPOSE_PROFILES=feature-complete")
    assert installed.done("plan")["steps"] == ["files", "install", "up"]
    assert installed.done("apply")["did"] == "configured"
    assert installed.called()[since:] == [INSTALLER, OWN_STOP, UP]
    assert installed.done("apply")["changed"] is False


def test_another_tag_is_backed_up_then_installed(installed):
    key = (installed.root / "secret_key").read_text()
    since = len(installed.calls())
    installed.want("26.8.0")
    assert installed.done("plan")["steps"] == ["backup", "files", "install", "up"]
    answer = installed.done("apply")
    assert (answer["did"], answer["former"]) == ("upgraded", "26.7.0")
    assert installed.called()[since:] == [BACKUP, STOP, INSTALLER, OWN_STOP, UP]
    (kept,) = installed.backups.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == [
        *("backup.json", "configuration.tar", "manifest.json"),
        *("sentry-data.tar", "sentry-kafka.tar", "sentry-postgres.tar"),
    ]
    assert json.loads((kept / "manifest.json").read_text())["version"] == "26.7.0"
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}
    assert kept.stat().st_mode & 0o777 == 0o700
    assert not (installed.tree / "sentry/backup.json").exists()
    # The new release's own example, and the key of before.
    assert "# As of 26.8.0." in (installed.tree / "sentry/sentry.conf.py").read_text()
    assert (installed.root / "secret_key").read_text() == key
    assert installed.done("apply")["changed"] is False


def test_a_backup_that_fails_stops_the_upgrade_and_the_old_one_runs_on(resting):
    since = len(resting.calls())
    resting.flag("backup-fails")
    resting.want("26.8.0")
    assert "backup.sh" in resting.refused("apply")
    assert resting.called()[since:] == [BACKUP]
    assert resting.state()["version"] == "26.7.0"
    assert list(resting.backups.iterdir()) == []
    assert "stand-in:26.7.0" in (resting.tree / ".env").read_text()


def test_too_little_room_for_the_copy_is_found_before_anything_stops(resting, monkeypatch):
    usage = resting.tool.shutil.disk_usage
    monkeypatch.setattr(resting.tool.shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
    since = len(resting.calls())
    resting.want("26.8.0")
    assert "free some, or mount a larger disk there; nothing was changed" in resting.refused("apply")
    assert resting.called()[since:] == []


@pytest.mark.long
def test_an_installer_that_fails_is_told_with_its_last_lines_and_resumed_without_a_second_backup(installed):
    installed.flag("install-fails")
    installed.want("26.8.0")
    code, answer, _ = installed.do("apply")
    (kept,) = installed.backups.iterdir()
    assert code == 1
    assert "the installer of Sentry 26.8.0 did not finish" in answer["failed"]
    assert f"Sentry 26.7.0 comes back by: kestrel-stack-sentry restore {kept} --yes" in answer["failed"]
    # The stand-in fails with the key in its last line.
    assert any(line.startswith("FAIL: ") and "***" in line for line in answer["log"])
    assert installed.state()["installing"]["version"] == "26.8.0"
    installed.no_flag("install-fails")
    since = len(installed.calls())
    assert installed.done("apply")["did"] == "upgraded"
    assert installed.called()[since:] == [INSTALLER, OWN_STOP, UP]
    assert "installing" not in installed.state()
    assert list(installed.backups.iterdir()) == [kept]


@pytest.mark.long
def test_a_cut_change_is_not_left_for_another_version(installed):
    installed.flag("install-fails")
    installed.want("26.8.0")
    installed.refused("apply")
    installed.want("26.9.0")
    assert "the change to Sentry 26.8.0 was cut: finish it first" in installed.refused("plan")


@pytest.mark.long
def test_a_cut_first_installation_is_taken_up_again(host):
    host.flag("install-fails")
    assert "did not finish" in host.refused("apply")
    key = (host.root / "secret_key").read_text()
    assert "version" not in host.state()
    host.no_flag("install-fails")
    assert host.done("apply")["did"] == "installed"
    assert (host.root / "secret_key").read_text() == key


def test_a_wrong_version_at_first_can_be_put_right(host):
    host.want("26.7.1")
    assert "Sentry 26.7.1 cannot be fetched" in host.refused("plan")
    host.want("26.7.0")
    facts = host.tool.host_facts(host.asks("26.7.0"))
    assert host.tool.state_problems(facts, host.asks("26.7.0")) == []
    assert host.done("plan")["steps"] == ["files", "install", "up"]


def test_what_a_kill_left_half_done_is_not_taken_for_a_hands_work(host):
    host.flag("install-fails")
    host.refused("apply")
    host.no_flag("install-fails")
    # The installer had changed the file; git had not come to its end, and left its lock.
    conf = host.tree / "sentry/sentry.conf.py"
    conf.write_text(conf.read_text().replace('"postgres"', '"pgbouncer"'))
    subprocess.run(["git", "symbolic-ref", "HEAD", "refs/heads/none"], cwd=host.tree, check=True)
    for name in ("index.lock", "shallow.lock", "refs/tags/26.7.0.lock"):
        (host.tree / ".git" / name).touch()
    assert host.done("apply")["did"] == "installed"
    assert "pgbouncer" not in conf.read_text()
    assert "pgbouncer" in (host.root / "sentry.conf.py.before").read_text()
    assert host.done("apply")["changed"] is False


def test_an_installer_that_outlives_a_killed_run_is_not_joined_by_a_second_one(host):
    host.flag("install-hangs")
    process = host.process("apply")
    installer = int(host.wait_for("hanging"))
    process.kill()
    process.communicate()
    assert not host.tool.is_free()
    os.killpg(installer, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not host.tool.is_free():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_time_limit_ends_the_installer_and_all_that_it_started(host):
    host.flag("install-hangs")
    host.want("26.7.0", install_seconds=1)
    assert "install.sh" in (found := host.refused("apply")) and "took longer than 1 s" in found
    pid = int((host.state_folder / "hanging").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_containers_that_do_not_come_up_are_named_and_the_next_run_goes_on(host):
    host.flag("up-fails")
    code, answer, _ = host.do("apply")
    assert code == 1
    assert "not all containers came up" in answer["failed"]
    assert any("web" in line and "unhealthy" in line for line in answer["log"])
    host.no_flag("up-fails")
    assert host.done("apply")["changed"] is True


def test_one_that_is_down_is_started_without_the_installer(installed):
    installed.stop()
    since = len(installed.calls())
    answer = installed.done("apply")
    assert (answer["did"], answer["steps"]) == ("started", ["up"])
    assert installed.called()[since:] == [UP]


@pytest.mark.long
def test_what_the_installer_does_to_sentry_conf_is_right_and_what_a_hand_does_is_not(host):
    host.flag("install-edits")
    host.done("apply")
    conf = host.tree / "sentry/sentry.conf.py"
    assert "pgbouncer" in conf.read_text()
    assert host.done("apply")["changed"] is False
    lines = conf.read_text().splitlines()
    conf.write_text("\n".join([*lines[:1], "MINE = 1", *lines[1:]]) + "\n")
    found = host.refused("apply")
    assert "sentry.conf.py was changed by hand, first in line 2" in found
    assert "sentry_self_hosted_conf" in found
    (found,) = host.tool.edits()
    assert "first in line 2" in found


def test_ends_of_lines_that_bash_would_take_for_values_are_put_right(resting):
    path = resting.tree / ".env.custom"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert resting.done("plan")["files"] == [".env.custom"]
    (resting.root / "secret_key").unlink()
    assert resting.done("plan")["files"] == [".env.custom"]


def test_a_line_after_the_block_is_found_too_and_the_block_itself_is_ours(installed):
    conf = installed.tree / "sentry/sentry.conf.py"
    before = conf.read_text()
    conf.write_text(before + "MINE = 1\n")
    assert "changed by hand" in installed.refused("plan")
    conf.write_text(before.replace("SENTRY_BEACON = False", "SENTRY_BEACON = True"))
    assert installed.done("apply")["files"] == ["sentry/sentry.conf.py"]
    assert conf.read_text() == before


@pytest.mark.long
def test_old_events_are_not_lost_sight_of(host):
    host.want("25.5.1")
    host.done("apply")
    host.want("26.7.0")
    found = host.refused("plan")
    assert "Sentry 25.5.1 keeps events where 25.9.0 and newer do not look" in found
    line = 'SENTRY_NODESTORE_OPTIONS |= {"read_through": True, "delete_through": True}'
    assert line in found
    host.want("26.7.0", block=f"# BEGIN KESTREL STACK\n{line}\n# END KESTREL STACK\n")
    assert host.done("plan")["steps"] == ["backup", "files", "install", "up"]


def test_the_releases_own_files_changed_by_hand_are_refused(resting):
    (resting.tree / "docker-compose.yml").write_text("services: {mine: {}}\n")
    found = resting.refused("plan")
    assert "(docker-compose.yml)" in found and "sentry_self_hosted_override" in found


def test_a_tag_that_is_another_commit_is_refused(host):
    host.want("26.7.0", commit=host.commits["26.8.0"])
    found = host.refused("plan")
    assert f"tag 26.7.0 of sentry_self_hosted_repository is commit {host.commits['26.7.0']}, not" in found
    assert host.called() == []


def test_a_repository_that_is_not_there_is_named(host):
    host.want("26.7.0", repository=str(host.folder / "gone"))
    assert "cannot be fetched from sentry_self_hosted_repository" in host.refused("plan")


def test_a_block_that_is_no_python_is_refused_before_the_installer(host):
    host.want("26.7.0", block="# BEGIN KESTREL STACK\nX = \n# END KESTREL STACK\n")
    assert "sentry_self_hosted_conf is no Python" in host.refused("plan")


def test_a_setting_of_the_release_that_the_role_does_not_know_is_warned_of(host):
    host.want("26.9.0")
    (found,) = host.done("plan")["warnings"]
    assert "sets brand.new-setting, which this role does not" in found


def test_a_folder_of_somebody_elses_is_left_alone(host):
    host.tree.mkdir()
    (host.tree / "mine").write_text("x")
    assert "was not made by this role" in host.refused("plan")


def test_a_lost_key_is_taken_from_what_sentry_runs_with_or_refused(installed):
    key = (installed.root / "secret_key").read_text()
    (installed.root / "secret_key").unlink()
    assert installed.done("apply")["changed"] is False
    assert (installed.root / "secret_key").read_text() == key
    (installed.root / "secret_key").unlink()
    (installed.tree / ".env.custom").unlink()
    assert "secret_key is missing: put it back from a backup" in installed.refused("plan")


@pytest.mark.long
def test_a_key_of_the_inventorys_is_used_and_one_that_bash_would_read_otherwise_is_refused(host):
    (host.root / "secret_key").write_text("k" * 50 + "\n")
    host.done("apply")
    assert "SENTRY_SYSTEM_SECRET_KEY=" + "k" * 50 in (host.tree / ".env.custom").read_text()
    # Another one takes its place, and the one before is not lost.
    (host.root / "secret_key").write_text("n" * 50 + "\n")
    host.done("apply")
    assert "SENTRY_SYSTEM_SECRET_KEY=" + "n" * 50 in (host.tree / ".env.custom").read_text()
    assert (host.root / "secret_key.before").read_text() == "k" * 50 + "\n"
    assert (host.root / "secret_key.before").stat().st_mode & 0o777 == 0o600
    (host.root / "secret_key").write_text("$(reboot)" + "k" * 50)
    assert "sentry_secret_key has to be 32 or more letters" in host.refused("plan")


def test_a_second_run_waits_for_the_first_and_installs_nothing_again(host):
    answers = []
    runs = [
        threading.Thread(target=lambda: answers.append(host.tool.do_apply(host.tool.parse(["apply"]))))
        for _ in "ab"
    ]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sorted(answer["did"] for answer in answers) == ["installed", "nothing"]


def test_progress_shows_the_stages_and_the_result(host):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(host.tool.main(["apply", "--job", "one"])))
    thread.start()
    phases = []
    for _ in range(200):
        answer = host.tool.do_progress(host.tool.parse(["progress", "one", "--seconds", "0.2"]))
        phases.append(answer["phase"])
        if answer["done"]:
            break
    thread.join()
    assert runs == [0]
    assert answer["result"]["did"] == "installed"
    host.flag("install-fails")
    host.want("26.7.0", env="COMPOSE_PROFILES=feature-complete")
    host.do("apply", "--job", "two")
    answer = host.done("progress", "two")
    assert "did not finish" in answer["result"]["failed"]


def test_a_log_that_ends_amid_a_character_is_read(host):
    (host.root / "install.log").write_bytes("▶ Fetching images ...\n▶".encode()[:-1])
    assert host.done("progress", "one", "--seconds", "0")["phase"] == "Fetching images"


def test_a_disk_that_is_full_is_told_to_who_waits(host, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host.tool, "apply", full)
    assert "No space left" in host.refused("apply", "--job", "one")
    assert "No space left" in host.done("progress", "one")["result"]["failed"]


def test_a_job_that_was_killed_is_told(host, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answer = host.done("progress", "never")
    assert answer["done"] and "ended without a word" in answer["result"]["failed"]


def test_secrets_are_in_no_argument_and_in_no_word(installed):
    installed.done("project")
    key = (installed.root / "secret_key").read_text().strip()
    token = (installed.root / "token").read_text().strip()
    password = json.loads((installed.root / "admin.json").read_text())["password"]
    for call in installed.calls():
        for secret in (key, token, password, "mail-s3cret"):
            assert not any(secret in part for part in call["call"])
    assert installed.tool.hidden(f"x {key} {token} {password} mail-s3cret y") == "x *** *** *** *** y"
    # As a script and its complaints would show it, too.
    for shown in (repr(password), json.dumps(password), json.dumps(json.dumps(password))):
        assert "p4ssw0rd" not in installed.tool.hidden(shown)


def test_a_broken_file_of_the_administrators_is_one_line(host):
    (host.root / "admin.json").write_text("{")
    assert "admin.json is no JSON" in host.refused("project")


def test_the_program_says_how_it_is_used():
    done = run(CHECKOUT / "templates/usr/local/sbin/kestrel-stack-sentry", "--help")
    assert done.returncode == 0 and "preflight" in done.stdout
