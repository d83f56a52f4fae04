"""Role sentry with Bugsink: errors1 collects behind nginx, worker1 reports. It was upgraded, and rebooted."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import ssl
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from support import role_parts

CHECKOUT = Path(__file__).resolve().parents[3]
INVENTORY = Path(os.environ["KESTREL_STACK_INVENTORY"])
APP = "news-letter"
TOOL = "kestrel-stack-bugsink"
SETTINGS = f"/etc/kestrel-stack/{APP}.json"
EXPOSURE = 2.0
"""What `systemd-analyze security` may say at most: 10 is no sandbox at all."""
LONG = pytest.mark.skipif(not os.environ.get("KESTREL_STACK_LONG"), reason="runs under bin/test --long")
UNITS = ["bugsink", "bugsink-snappea", "bugsink-vacuum", "sentry-nginx"]


def converge(*arguments, inventory=INVENTORY):
    """Run the scenario's plays once more."""
    return role_parts.ansible(CHECKOUT / "molecule/sentry/converge.yml", inventory, *arguments)


def said(done):
    """Return everything that a run printed, in one line: Ansible breaks long ones."""
    return " ".join(f"{done.stdout}{done.stderr}".split())


class Browser:
    """Somebody in front of errors1, from outside: TLS, cookies, forms."""

    def __init__(self, address, host="errors1:8443"):
        self.address, self.host = address, host
        self.cookies = {}

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPSConnection(
            self.address, 8443, timeout=30, context=ssl._create_unverified_context()
        )
        sent = {"Host": self.host, "Referer": f"https://{self.host}{path}", **headers}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if isinstance(body, dict):
            body = urlencode(body)
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return answer.status, answer.headers, text

    def log_in(self, email, password):
        form = self.ask("GET", "/accounts/login/")[2]
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)[1]
        fields = {"username": email, "password": password, "csrfmiddlewaretoken": token}
        return self.ask("POST", "/accounts/login/", fields)


@pytest.fixture
def browser(stack):
    return Browser(stack.vars("errors1")["kestrel_stack_address"])


@pytest.fixture(scope="module")
def login(stack):
    return json.loads(Path(stack.vars("errors1")["sentry_login_file"]).read_text())


@pytest.fixture
def told(root):
    return json.loads(root("errors1", f"cat /etc/kestrel-stack-sentry/{APP}.json"))


@pytest.fixture(scope="module")
def send(root):
    """Send an event from worker1 as a worker would, and return its id once Bugsink has digested it."""

    def once():
        done = root(
            "worker1",
            "runuser --user worker -- env PYTHONPATH=/usr/local/lib/kestrel-stack/jobs.pyz python3 -P"
            f" -m kestrel_stack.consumer.sentry_check --config {SETTINGS}",
        )
        event = json.loads(done)["event_id"]
        assert json.loads(root("errors1", f"{TOOL} seen {event} --seconds 60"))["seen"] is True
        return event

    return once


@pytest.fixture(scope="module")
def events(root):
    """Count the events that Bugsink has."""
    code = "import sqlite3; print(sqlite3.connect('{}').execute('SELECT count(*) FROM {}').fetchone()[0])"

    def count(table="events_event"):
        found = code.format("file:/var/lib/bugsink/db.sqlite3?mode=ro", table)
        found = found.replace("')", "', uri=True)", 1)
        return int(root("errors1", f"python3 -c {shlex.quote(found)}"))

    return count


def pid(root, unit):
    return int(root("errors1", f"systemctl show --property MainPID --value {unit}"))


def test_what_the_older_release_had_is_still_there_after_upgrade_and_reboot(root, events):
    # One from the run with the older release; the run with this one had nothing new to prove.
    assert events() == 1
    assert events("issues_issue") == 1
    releases = root("errors1", "ls /opt/bugsink/releases").split()
    assert len(releases) == 2
    versions = {
        release: root(
            "errors1", f"ls /opt/bugsink/releases/{release}/venv/lib/python3*/site-packages | grep ^bugsink-"
        ).strip()
        for release in releases
    }
    assert "bugsink-2.5.1.dist-info" in versions.values()
    current = root("errors1", "readlink /opt/bugsink/current").strip().removeprefix("releases/")
    assert versions[current] != "bugsink-2.5.1.dist-info"
    # Made before the database was changed.
    assert root("errors1", "ls /var/backups/bugsink | wc -l").strip() == "1"


def test_it_listens_where_it_was_told_and_nowhere_else(root):
    found = {line.split()[3] for line in root("errors1", "ss -H -l -t -n").splitlines()}
    found = {one for one in found if not one.endswith(":22") and not one.startswith("127.0.0.11:")}
    assert found == {"127.0.0.1:8777", "0.0.0.0:8443"}


def test_an_error_of_another_host_becomes_an_issue(send, events, told):
    before = events()
    first, second = send(), send()
    assert first != second
    assert events() == before + 2
    # However often it happens.
    assert events("issues_issue") == 1
    assert told["url"] == "https://errors1:8443"
    assert told["event_url"] == "https://errors1:8443/issues/event/{event_uuid}/"


def test_the_other_host_was_told_where_errors_go(root, run_as, told):
    settings = json.loads(root("worker1", f"cat {SETTINGS}"))
    assert settings["sentry_dsn"] == told["dsn"]
    assert root("worker1", f"stat -c '%a %U %G' {SETTINGS}").strip() == f"640 root {APP}"
    marker = root("worker1", f"cat /var/lib/kestrel-stack-sentry/{APP}").strip()
    assert re.fullmatch("[0-9a-f]{64}", marker)
    assert run_as("worker1", "worker", "ls /var/lib/kestrel-stack-sentry").rc != 0


def test_what_it_has_is_nobody_elses_business(root, run_as):
    shown = root(
        "errors1",
        "stat -c '%a %U %G %n' /etc/bugsink /etc/bugsink/* /etc/kestrel-stack-sentry"
        f" /etc/kestrel-stack-sentry/{APP}.json /var/lib/bugsink /var/backups/bugsink",
    )
    assert shown.splitlines() == [
        "750 root sentry /etc/bugsink",
        "600 root root /etc/bugsink/admin.json",
        "640 root sentry /etc/bugsink/bugsink_conf.py",
        "700 root root /etc/bugsink/former",
        "640 root sentry /etc/bugsink/mail.json",
        "644 root root /etc/bugsink/project.json",
        "640 root sentry /etc/bugsink/secret_key",
        "600 root root /etc/bugsink/token",
        "700 root root /etc/kestrel-stack-sentry",
        f"600 root root /etc/kestrel-stack-sentry/{APP}.json",
        "750 sentry sentry /var/lib/bugsink",
        "700 root root /var/backups/bugsink",
    ]
    assert root("errors1", "find /var/backups/bugsink -type f ! -perm 0600").strip() == ""
    assert root("errors1", "find /var/lib/bugsink -type f -perm /o+rwx").strip() == ""
    assert root("errors1", "find /opt/bugsink /etc/bugsink -perm /o+w ! -type l").strip() == ""
    for user in ("nobody", "www-data"):
        assert run_as("errors1", user, "cat /etc/bugsink/bugsink_conf.py").rc != 0
    assert run_as("errors1", "sentry", "test -w /etc/bugsink/bugsink_conf.py").rc != 0
    assert run_as("errors1", "sentry", "cat /etc/bugsink/token").rc != 0
    assert root("errors1", "getent passwd sentry").strip().endswith(":/usr/sbin/nologin")


@pytest.mark.parametrize("unit", UNITS)
def test_it_runs_in_a_sandbox_without_any_privilege(root, unit):
    text = root("errors1", f"systemd-analyze security {unit} --no-pager")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", text)[1]) <= EXPOSURE, text
    main = pid(root, unit)
    if not main:
        assert unit == "bugsink-vacuum"
        return
    user = "www-data" if unit == "sentry-nginx" else "sentry"
    assert root("errors1", f"ps -o user= -p {main}").strip() == user
    status = dict(line.split(":", 1) for line in root("errors1", f"cat /proc/{main}/status").splitlines())
    assert status["CapEff"].strip() == "0000000000000000"
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_old_events_are_removed_and_backups_made_by_timers(root):
    for timer in ("bugsink-vacuum.timer", "bugsink-backup.timer"):
        assert root("errors1", f"systemctl is-active {timer}").strip() == "active"
        assert root("errors1", f"systemctl is-enabled {timer}").strip() == "enabled"
    root("errors1", "systemctl start bugsink-vacuum bugsink-backup")
    log = root("errors1", "journalctl --unit bugsink-vacuum --output cat --no-pager")
    assert "Vacuum complete" in log
    assert "Skipping old events" not in log


def test_every_variable_reaches_the_configuration(root):
    names = [
        "SESSION_COOKIE_SECURE", "USE_X_REAL_IP", "EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_PASSWORD",
        "EMAIL_USE_TLS", "DEFAULT_FROM_EMAIL", "BUGSINK", "ALLOWED_HOSTS",
    ]  # fmt: skip
    code = (
        "import json, runpy; said = runpy.run_path('/etc/bugsink/bugsink_conf.py');"
        f" print(json.dumps({{name: said[name] for name in {names}}}))"
    )
    python = "/opt/bugsink/current/venv/bin/python"
    found = json.loads(root("errors1", f"runuser --user sentry -- {python} -I -B -c {shlex.quote(code)}"))
    limits = found.pop("BUGSINK")
    assert found == {
        "SESSION_COOKIE_SECURE": True,
        "USE_X_REAL_IP": True,
        "EMAIL_HOST": "127.0.0.1",
        "EMAIL_PORT": 2525,
        "EMAIL_HOST_PASSWORD": "mail-s3cret",
        "EMAIL_USE_TLS": False,
        "DEFAULT_FROM_EMAIL": "errors@example.com",
        "ALLOWED_HOSTS": ["errors1", "127.0.0.1", "[::1]", "localhost"],
    }
    assert (limits["PHONEHOME"], limits["USE_ADMIN"], limits["USER_REGISTRATION"]) == (
        False,
        False,
        "CB_NOBODY",
    )
    assert limits["BASE_URL"] == "https://errors1:8443"
    assert limits["MAX_EVENTS_PER_PROJECT_PER_5_MINUTES"] == limits["MAX_EVENTS_PER_5_MINUTES"] == 400
    assert limits["MAX_EVENTS_PER_PROJECT_PER_HOUR"] == 900
    assert limits["MAX_EVENTS_PER_PROJECT_PER_MONTH"] == 90000
    assert limits["MAX_RETENTION_PER_PROJECT_EVENT_COUNT"] == 5000
    assert limits["MAX_EVENT_AGE_DAYS"] == 30
    command = root("errors1", "systemctl show --property ExecStart --value bugsink")
    assert "--workers 1 " in command


def test_who_has_the_login_gets_in_over_https_and_others_do_not(browser, login):
    status, headers, _ = browser.ask("GET", "/")
    assert status == 302
    assert headers["Location"].startswith("/accounts/login/")
    assert headers["Strict-Transport-Security"] == "max-age=31536000"
    assert browser.log_in(login["email"], "wrong")[0] == 200
    assert login["email"] == "anna@example.com"
    status, headers, _ = browser.log_in(login["email"], login["password"])
    assert status == 302
    cookies = headers.get_all("Set-Cookie")
    assert any(one.startswith("sessionid=") for one in cookies)
    assert all("Secure" in one for one in cookies), cookies
    status, _, page = browser.ask("GET", "/projects/mine/")
    assert status == 200
    assert "letters" in page
    # With the times of each, for which Debian's base system has no time zones.
    status, _, page = browser.ask("GET", "/issues/1/")
    assert status == 200
    assert "can report errors from worker1" in page
    # Nobody makes an account for himself.
    assert Browser(browser.address).ask("GET", "/accounts/signup/")[0] in (403, 404)


def test_another_name_gets_no_answer_at_all(browser):
    stranger = Browser(browser.address, host="evil.example:8443")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        stranger.ask("GET", "/accounts/login/")


def test_who_sends_too_much_is_told_so_by_nginx(root, browser):
    # Over one connection, as fast as can be, for a project that there is none of: nothing is kept.
    flood = """
import collections, http.client, ssl
connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=ssl._create_unverified_context())
said = collections.Counter()
for _ in range(400):
    connection.request("POST", "/api/999/envelope/", b"{}", {"Host": "errors1:8443"})
    answer = connection.getresponse()
    answer.read()
    said[answer.status] += 1
print(said[429])
"""
    assert int(root("errors1", f"python3 -c {shlex.quote(flood)}")) > 0
    # Pages are not events.
    assert browser.ask("GET", "/accounts/login/")[0] == 200


@pytest.fixture(scope="module")
def checked():
    """A check of hosts as they are, but for one value of the settings: there must be something to show."""
    done = converge("--check", "--diff", "-vv", "--extra-vars", '{"kestrel_stack_environment": "other"}')
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_what_is_secret_is_in_no_log_and_in_nothing_that_ansible_prints(root, told, login, checked):
    secrets = {
        "password": login["password"],
        "key of the DSN": re.search(r"//([0-9a-f]+)@", told["dsn"])[1],
        "token": root("errors1", "cat /etc/bugsink/token").strip(),
        "secret key": root("errors1", "cat /etc/bugsink/secret_key").strip(),
        "password of mail": "mail-s3cret",
    }
    printed = {
        "ansible": f"{checked.stdout}{checked.stderr}",
        **{host: root(host, "journalctl --no-pager --output cat") for host in ("errors1", "worker1")},
    }
    assert "Bugsink, which collects" in printed["errors1"]
    found = [(name, where) for name, value in secrets.items() for where in printed if value in printed[where]]
    assert found == []
    running = root("errors1", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert [name for name, value in secrets.items() if value in running] == []


def test_a_check_finds_nothing_to_change_but_the_settings_that_have_the_new_value(checked):
    assert re.findall(r"^(\w+) .* changed=(\d+)", checked.stdout, re.MULTILINE) == [
        ("errors1", "0"),
        ("worker1", "1"),
    ], checked.stdout


@LONG
def test_a_port_of_another_program_is_refused_with_the_program_that_has_it(root):
    root("errors1", "systemd-run --quiet --unit taken python3 -m http.server 8799 --bind 127.0.0.1")
    try:
        done = converge("--limit=errors1", "--extra-vars", '{"sentry_bugsink_port": 8799}')
    finally:
        root("errors1", "systemctl stop taken")
    assert done.returncode != 0
    assert re.search(
        r"errors1: sentry_bugsink_port: port 8799 on 127\.0\.0\.1 is taken by python3 \(pid \d+\):"
        r" stop it or set sentry_bugsink_port",
        said(done),
    ), said(done)
    assert re.search(r"^errors1 .* changed=0 ", done.stdout, re.MULTILINE)


def test_a_setting_that_does_not_come_up_is_taken_back_and_says_why(root, send):
    before = root("errors1", "cat /etc/systemd/system/bugsink.service /etc/bugsink/bugsink_conf.py")
    drop_in = "/run/systemd/system/bugsink.service.d"
    # A start that fails is played by a condition in the unit on what the configuration says.
    root(
        "errors1",
        f"mkdir -p {drop_in} && cat >{drop_in}/fails.conf <<'UNIT'\n"
        "[Service]\n"
        "ExecStartPre=/bin/sh -c 'if grep -q \\'AGE_DAYS\": 77\\' /etc/bugsink/bugsink_conf.py;"
        " then echo the disk is made of cheese; exit 1; fi'\n"
        "UNIT\n"
        "systemctl daemon-reload",
    )
    try:
        done = converge("--limit=errors1", "--extra-vars", '{"sentry_retention_days": 77}')
    finally:
        root("errors1", f"rm -r {drop_in} && systemctl daemon-reload")
    assert done.returncode != 0
    assert "the disk is made of cheese" in said(done), said(done)
    assert "does not come up" in said(done)
    after = root("errors1", "cat /etc/systemd/system/bugsink.service /etc/bugsink/bugsink_conf.py")
    assert after == before
    assert send()


def test_a_backup_brings_back_what_it_has_and_nothing_else(root, send, events):
    made = json.loads(root("errors1", f"{TOOL} backup"))
    before = events()
    send()
    assert events() == before + 1
    file = root("errors1", "ls -t /var/backups/bugsink/*.tar.gz | head -n 1").strip()
    assert made["events"] == before
    root("errors1", f"{TOOL} restore {file} --yes")
    assert events() == before
    assert send()


def test_a_wrong_dsn_of_somebody_elses_is_found_out_before_the_first_job_fails(tmp_path, told, root):
    """The inventory without its host for errors, and with a DSN whose key nobody has."""
    hosts = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    hosts["all"]["children"]["sentry"] = None
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    for name in ("containers.yml", "group_vars"):
        (tmp_path / name).symlink_to(INVENTORY / name)
    wrong = re.sub(r"//[0-9a-f]+@", f"//{'0' * 32}@", told["dsn"])
    variables = {"sentry_backend": "external", "app_host_sentry_dsn": wrong}
    try:
        done = converge("--limit=worker1", "--extra-vars", json.dumps(variables), inventory=tmp_path)
        assert done.returncode != 0
        assert "worker1: sentry_check: " in said(done), said(done)
        assert "0" * 32 not in said(done)
    finally:
        again = converge("--limit=worker1")
    # And back, though the host that collects the errors was left out of the run.
    assert again.returncode == 0, said(again)
    assert json.loads(root("worker1", f"cat {SETTINGS}"))["sentry_dsn"] == told["dsn"]


@LONG
def test_as_it_comes_it_speaks_http_and_nginx_is_taken_away(root, stack, events, send):
    """Comes last: it changes errors1 for good."""
    address = stack.vars("errors1")["kestrel_stack_address"]
    variables = {"sentry_nginx": False, "sentry_listen_address": address, "sentry_bugsink_port": 8765}
    before = events()
    done = converge("--extra-vars", json.dumps(variables))
    assert done.returncode == 0, said(done)
    assert f"WARNING: sentry_listen_address {address} of errors1 speaks HTTP" in said(done)
    left = root("errors1", "ls /etc/systemd/system /etc /var/cache | grep sentry-nginx || :")
    assert left.strip() == ""
    listening = root("errors1", "ss -H -l -t -n")
    assert ":8443" not in listening
    assert f"{address}:8765" in listening
    dsn = json.loads(root("worker1", f"cat {SETTINGS}"))["sentry_dsn"]
    assert re.fullmatch(rf"http://[0-9a-f]+@{re.escape(address)}:8765/1", dsn)
    # Another DSN is proved once more.
    assert events() == before + 1
    connection = http.client.HTTPConnection(address, 8765, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/accounts/login/")
        answer = connection.getresponse()
        answer.read()
    assert answer.status == 200
    assert all("Secure" not in one for one in answer.headers.get_all("Set-Cookie"))
