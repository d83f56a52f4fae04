"""Role sentry with self-hosted Sentry, up to its containers: docker, its scripts and its API are stand-ins.

The tests run in this order: the last ones change the version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from support import role_parts

CHECKOUT = Path(__file__).resolve().parents[3]
SCENARIO = CHECKOUT / "molecule/sentry-self-hosted"
STANDIN = "/usr/local/lib/stand-in/state"
INSTALLER = (
    "./install.sh --skip-user-creation --no-report-self-hosted-issues --skip-commit-check"
    " --apply-automatic-config-updates"
)
UP = "docker compose --env-file .env --env-file .env.custom up --wait"
STATE = (
    "find /opt/sentry /etc/kestrel-stack-sentry /usr/local/sbin /etc/systemd/system /var/backups"
    " -not -path '*/.git/*' -not -name .lock -type f -printf '%p %T@ %s %m\\n' | sort"
)


@pytest.fixture(scope="module")
def on(root):
    """Run a command on the host as root."""
    return lambda command: root("sentry1", command)


@pytest.fixture(scope="module")
def called(on):
    """Return what the stand-ins were called with, but for questions."""

    def read():
        found = [json.loads(line)["call"] for line in on(f"cat {STANDIN}/calls.jsonl").splitlines()]
        quiet = {"version", "info", "volume", "ps"}
        return [" ".join(call) for call in found if not quiet & set(call[1:3])]

    return read


def play(*arguments, **variables):
    """Run the role again."""
    return role_parts.ansible(
        *(SCENARIO / "converge.yml", SCENARIO / "inventory"),
        *("--extra-vars", json.dumps(variables), *arguments),
    )


def message(done):
    """Return what Ansible printed of a refusal, as one line."""
    assert done.returncode != 0, done.stdout[-2000:]
    return " ".join((done.stdout + done.stderr).split())


def test_two_runs_called_the_installer_once(called):
    assert [call for call in called() if "install.sh" in call] == [INSTALLER]
    assert [call for call in called() if call.endswith("up --wait")] == [UP]


def test_sentry_got_its_files(on):
    seen = f"{STANDIN}/install-0"
    env = on(f"cat {seen}/.env.custom").splitlines()[2:]
    assert env[:4] == [
        "COMPOSE_PROFILES=errors-only",
        "SENTRY_BIND=127.0.0.1:9000",
        "SENTRY_EVENT_RETENTION_DAYS=30",
        "SENTRY_MAIL_HOST=example.com",
    ]
    assert re.fullmatch(r"SENTRY_SYSTEM_SECRET_KEY=[0-9a-f]{64}", env[4])
    conf = on(f"cat {seen}/sentry.conf.py")
    assert conf.startswith("from sentry.conf.server import *")
    assert conf.count("# BEGIN KESTREL STACK") == conf.count("# END KESTREL STACK") == 1
    for line in (
        "SENTRY_BEACON = False",
        'CSRF_TRUSTED_ORIGINS = ["https://errors.example.com"]',
        "SESSION_COOKIE_SECURE = True",
        'SENTRY_OPTIONS["mail.from"] = "errors@example.com"',
        'SENTRY_FEATURES["organizations:discover"] = False',
    ):
        assert f"\n{line}\n" in conf
    config = on(f"cat {seen}/config.yml")
    assert 'system.url-prefix: "https://errors.example.com"' in config
    assert "mail.use-ssl: true" in config and "mail.use-tls" not in config and "changeme" not in config
    override = on(f"cat {seen}/docker-compose.override.yml")
    for line in ("KAFKA_LOG_RETENTION_HOURS: '2'", "KAFKA_LOG_RETENTION_BYTES: '536870912'", "mem_limit: 2g"):
        assert line in override


def test_nobody_but_root_gets_at_what_is_secret(on, run_as):
    assert (
        on("stat -c '%a %U' /opt/sentry /etc/kestrel-stack-sentry /var/backups/sentry").split("\n")[:3]
        == ["700 root"] * 3
    )
    names = on(
        "cd /opt/sentry; stat -c '%a %n' secret_key admin.json token state.json install.log wanted/*"
    ).split()
    assert set(names[::2]) == {"600"}
    assert run_as("sentry1", "nobody", "cat /opt/sentry/self-hosted/sentry/config.yml").rc != 0


def test_the_other_hosts_are_told_where_errors_go(on):
    told = json.loads(on("cat /etc/kestrel-stack-sentry/news-letter.json"))
    assert told == {
        "dsn": f"https://{'c' * 32}@errors.example.com/2",
        "url": "https://errors.example.com",
        "event_url": "https://errors.example.com/organizations/sentry/projects/news-letter/events/{event_id}/",
    }
    users = json.loads(on(f"cat {STANDIN}/users.json"))
    assert users["anna@example.com"] == {
        "superuser": True,
        "password": 'a sample, not a secret: it\'s $5 \\ "quoted"',
    }


def test_no_secret_is_in_an_argument_or_in_the_journal(on):
    calls = [json.loads(line)["call"] for line in on(f"cat {STANDIN}/calls.jsonl").splitlines()]
    journal = on("journalctl --no-pager")
    for secret in (on("cat /opt/sentry/secret_key"), on("cat /opt/sentry/token"), "a sample, not a secret"):
        assert not any(secret.strip() in part for call in calls for part in call)
        assert secret.strip() not in journal
    assert "sample-mail-password" not in journal


def test_the_timers_run_and_their_services_work(on):
    timers = "kestrel-stack-sentry-backup.timer kestrel-stack-sentry-disk.timer"
    assert on(f"systemctl is-active {timers}; systemctl is-enabled {timers}").split() == [
        *("active", "active", "enabled", "enabled")
    ]
    on("systemctl start kestrel-stack-sentry-disk.service kestrel-stack-sentry-backup.service")
    assert len(on("ls /var/backups/sentry").split()) == 1


def test_all_that_stands_against_it_is_told_at_once_and_nothing_is_touched(on):
    conf, state = "/opt/sentry/self-hosted/sentry/sentry.conf.py", "/opt/sentry/state.json"
    on(f"echo 2.26.1-4 > {STANDIN}/compose; echo 18.9.1 > {STANDIN}/server")
    on(f"cp -p {conf} /root/conf; sed -i '2i MINE = 1' {conf}")
    on(f"cp -p {state} /root/state; sed -i 's/26.7.0/24.8.0/' {state}")
    before = on(STATE)
    needs = {"errors-only": {"cpus": 5000, "memory_mb": 10**9}, "disk_gb": 10**6, "upgrade_disk_gb": 10**6}
    try:
        found = message(play(_sentry_self_hosted_needs=needs, sentry_self_hosted_version="26.8.0"))
        assert on(STATE) == before
    finally:
        on(f"rm {STANDIN}/compose {STANDIN}/server; mv /root/conf {conf}; mv /root/state {state}")
    for said in (
        "CPUs, and profile errors-only needs 5000",
        "MB of memory, and profile errors-only needs 1000000000 MB",
        f"GB free on {STANDIN}, and an upgrade needs 1000000 GB",
        "docker 18.9.1, and Sentry needs 19.03.6",
        "docker compose 2.26.1-4, and Sentry needs 2.32.2",
        "Sentry 24.8.0 cannot become 26.8.0 at once, for 25.5.1 may not be left out",
        "sentry.conf.py was changed by hand, first in line 2",
    ):
        assert said in found


def test_a_check_of_another_version_changes_nothing_and_shows_no_secret(on):
    before = on(STATE)
    done = play("--check", "--diff", sentry_self_hosted_version="26.8.0", sentry_retention_days=31)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "+SENTRY_EVENT_RETENTION_DAYS=31" in done.stdout
    assert on(STATE) == before
    for secret in (
        "a sample, not a secret",
        "sample-mail-password",
        on("cat /opt/sentry/secret_key").strip(),
    ):
        assert secret not in done.stdout


def test_another_version_is_backed_up_then_installed(on, called):
    since = len(called())
    done = play(sentry_self_hosted_version="26.8.0")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "backup, files, install, up" in done.stdout
    # Which engine it is may be asked at any time.
    calls = [call for call in called()[since:] if call != "docker --version"]
    assert calls[:3] == [
        "./scripts/backup.sh --no-report-self-hosted-issues --minimize-downtime",
        "docker compose --env-file .env --env-file .env.custom stop",
        INSTALLER,
    ]
    assert calls[-1] == UP
    assert len(on("ls -d /var/backups/sentry/*-26.7.0-full").split()) == 1
    assert json.loads(on("cat /opt/sentry/state.json"))["version"] == "26.8.0"
    assert "As of 26.8.0" in on("cat /opt/sentry/self-hosted/sentry/sentry.conf.py")
