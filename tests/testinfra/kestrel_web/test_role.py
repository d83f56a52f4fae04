"""Role kestrel_web: panel1 as it comes beside a Kestrel, panel2 with every variable changed, behind nginx."""

from __future__ import annotations

import base64
import hashlib
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

from support import role_parts

CHECKOUT = Path(__file__).resolve().parents[3]
INVENTORY = Path(os.environ["KESTREL_STACK_INVENTORY"])
PANELS = ["panel1", "panel2"]
PASSWORD = "a sample, not a secret"
TOKEN = "sample-token"
EXPOSURE = 1.5
"""What `systemd-analyze security` may say at most: 10 is no sandbox at all."""


class Browser:
    """Somebody in front of panel2, from outside: TLS, cookies, forms."""

    def __init__(self, address, host="panel2:8443"):
        self.address, self.host = address, host
        self.cookies = {}

    def ask(self, method, path, fields=None, **headers):
        connection = http.client.HTTPSConnection(
            self.address, 8443, timeout=30, context=ssl._create_unverified_context()
        )
        body = urlencode(fields) if fields is not None else None
        said = {"Host": self.host, **headers}
        if self.cookies:
            said["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if body is not None:
            said |= {
                "Content-Type": "application/x-www-form-urlencoded",
                "Origin": f"https://{self.host}",
            }
        try:
            connection.request(method, f"/queues{path}", body, said)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return answer.status, answer.headers, text

    def log_in(self, name, password):
        form = self.ask("GET", "/login")[2]
        csrf = re.search(r'name="csrf_token" value="([^"]+)"', form)[1]
        return self.ask("POST", "/login", {"name": name, "password": password, "csrf_token": csrf})


@pytest.fixture
def browser(stack):
    return Browser(stack.vars("panel2")["kestrel_stack_address"])


@pytest.fixture(scope="module")
def queue(stack):
    return stack.vars("panel1")["kestrel_stack_address"]


@pytest.fixture(scope="module")
def api(root):
    """Ask panel1's JSON API, on the host itself, where nobody has to log in."""
    return lambda path: json.loads(root("panel1", f"curl -sS --fail http://127.0.0.1:8090/api/v1/{path}"))


def converge(*arguments, playbook="shared/converge.yml"):
    """Run the role once more."""
    return role_parts.ansible(
        CHECKOUT / "molecule" / playbook, INVENTORY, *arguments, MOLECULE_SCENARIO_NAME="kestrel_web"
    )


def pid(root, host, unit="kestrel-web"):
    return int(root(host, f"systemctl show --property MainPID --value {unit}"))


def test_it_listens_where_it_was_told_and_nowhere_else(root, queue):
    def listening(host):
        found = {line.split()[3] for line in root(host, "ss -H -l -t -n").splitlines()}
        return {one for one in found if not one.endswith(":22") and not one.startswith("127.0.0.11:")}

    assert listening("panel1") == {"127.0.0.1:8090", f"{queue}:22133", f"{queue}:2223"}
    assert listening("panel2") == {"127.0.0.1:8099", "0.0.0.0:8443"}


def test_a_queue_of_the_kestrel_is_shown_with_its_thresholds(root, api, memcache, queue, eventually):
    memcache("panel1", queue, 22133, "delete news_digest\r\n")
    for _ in range(4):
        assert memcache("panel1", queue, 22133, "set news_digest 0 0 1\r\nx\r\n") == "STORED\r\n"
    row = eventually(
        lambda: (found := api("queues/news_digest")["queue"])["numbers"]["items"] == 4 and found,
        "the items are seen",
    )
    # From the one description: more than {backlog: 3}.
    assert [alert["kind"] for alert in row["alerts"]] == ["backlog"]
    assert api("servers")["servers"][0]["source"] == "admin"
    assert "news_digest" in root("panel1", "curl -sS --fail http://127.0.0.1:8090/queues")
    memcache("panel1", queue, 22133, "delete news_digest\r\n")


def test_every_variable_reaches_the_configuration(root, queue, stack):
    written = json.loads(root("panel2", "cat /etc/kestrel-web/kestrel-web.json"))
    login = json.loads(Path(stack.vars("panel2")["kestrel_web_login_file"]).read_text())
    [generated, anna] = written.pop("users")
    assert generated == {"name": "operator", "role": "operator", "password_hash": login["password_hash"]}
    assert (anna["name"], anna["role"]) == ("anna", "operator")
    assert written == {
        "environment": "molecule",
        "servers": [f"{queue}:22133"],
        "admin_ports": {f"{queue}:22133": 2223},
        "settings": ["/etc/kestrel-web/apps/news-letter.json"],
        "listen": "127.0.0.1",
        "port": 8099,
        "prefix": "/queues",
        "hosts": ["panel2.example.com", "panel2"],
        "forwarded_from": ["192.0.2.6", "127.0.0.1", "::1"],
        "state": "/var/lib/kestrel-web",
        "tokens": [
            {
                "name": "prometheus",
                "role": "metrics",
                "sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            }
        ],
        "proxy": {"header": "X-Remote-User", "addresses": ["192.0.2.5"], "operators": ["anna"]},
        "session_s": 3600,
        "read_only": True,
        "actions": ["enqueue"],
        "confirm_typed_from": 5,
        "interval_s": 1,
        "timeout_s": 2,
        "history_days": 7,
        "history_mb": 64,
        "no_consumers_after_s": 30,
        "event_url": "https://errors.example.com/issues/event/{event_uuid}/",
        "webhook": {"url": "http://127.0.0.1:8098/hook?token=s3cret"},
    }
    assert root("panel2", "systemctl show kestrel-web --property TimeoutStartUSec --value").strip() == "20s"


def test_the_settings_are_the_applications_without_where_it_reports_errors(root):
    said = json.loads(root("panel1", "cat /etc/kestrel-web/apps/news-letter.json"))
    assert said["sentry_dsn"] is None
    assert [queue["name"] for queue in said["queues"]] == ["digest"]
    assert said["queues"][0]["alert"] == {"backlog": 3, "age": "5m"}


@pytest.mark.parametrize("panel", PANELS)
def test_what_it_has_is_nobody_elses_business(root, run_as, panel):
    shown = root(
        panel,
        "stat -c '%a %U %G %n' /etc/kestrel-web /etc/kestrel-web/kestrel-web.json"
        " /etc/kestrel-web/apps/news-letter.json /var/lib/kestrel-web /opt/kestrel-web/current",
    )
    assert shown.splitlines() == [
        "750 root kestrel-web /etc/kestrel-web",
        "640 root kestrel-web /etc/kestrel-web/kestrel-web.json",
        "640 root kestrel-web /etc/kestrel-web/apps/news-letter.json",
        "700 kestrel-web kestrel-web /var/lib/kestrel-web",
        "777 root root /opt/kestrel-web/current",
    ]
    assert root(panel, "find /etc/kestrel-web /var/lib/kestrel-web -perm /o+rwx").strip() == ""
    assert root(panel, "find /var/lib/kestrel-web -type f -perm /g+rwx").strip() == ""
    assert root(panel, "find /var/lib/kestrel-web -type f").strip()
    assert root(panel, "find /opt/kestrel-web -perm /o+w ! -type l").strip() == ""
    for user in ("nobody", "www-data"):
        assert run_as(panel, user, "cat /etc/kestrel-web/kestrel-web.json").rc != 0
    assert root(panel, "getent passwd kestrel-web").strip().endswith(":/usr/sbin/nologin")
    assert run_as(panel, "kestrel-web", "test -w /etc/kestrel-web/kestrel-web.json").rc != 0


@pytest.mark.parametrize("panel", PANELS)
def test_it_runs_without_any_privilege_in_a_sandbox_as_tight_as_can_be(root, panel):
    main = pid(root, panel)
    assert root(panel, f"ps -o user= -p {main}").strip() == "kestrel-web"
    status = dict(line.split(":", 1) for line in root(panel, f"cat /proc/{main}/status").splitlines())
    assert status["CapEff"].strip() == status["CapBnd"].strip() == "0000000000000000"
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    said = root(panel, "systemd-analyze security kestrel-web --no-pager")
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1]) <= EXPOSURE, said


def test_it_can_write_its_state_and_nothing_else_and_no_code(root):
    # World-writable folders show the sandbox, not the file rights. The probe runs in the unit's own sandbox.
    drop_in = "/run/systemd/system/kestrel-web.service.d"
    code = (
        "import mmap\ntry:\n mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        " print('probe-yes code')\nexcept OSError:\n print('probe-no code')\n"
    )
    root(
        "panel1", f"printf %s {shlex.quote(code)} >/opt/probe.py && install -d -m 1777 /opt/probe /var/probe"
    )
    root(
        "panel1",
        f"mkdir -p {drop_in} && cat >{drop_in}/probe.conf <<'UNIT'\n"
        "[Service]\n"
        "ExecStartPre=/bin/sh -c 'for d in /opt/probe /var/probe /etc/kestrel-web /opt/kestrel-web"
        " /var/lib/kestrel-web /tmp; do if touch $$d/.probe; then rm $$d/.probe; echo probe-yes $$d;"
        " else echo probe-no $$d; fi; done; for d in /etc/kestrel /var/spool /home /root; do"
        " if ls $$d; then echo probe-yes $$d; else echo probe-no $$d; fi; done'\n"
        "ExecStartPre=/opt/kestrel-web/current/venv/bin/python -I /opt/probe.py\n"
        "UNIT\n"
        "systemctl daemon-reload && systemctl restart kestrel-web",
    )
    try:
        log = root(
            "panel1",
            "journalctl --unit kestrel-web --output cat --no-pager"
            " _SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value kestrel-web)",
        )
    finally:
        root(
            "panel1",
            f"rm -r {drop_in} /opt/probe /opt/probe.py /var/probe && systemctl daemon-reload"
            " && systemctl restart kestrel-web",
        )
    answers = dict(reversed(pair) for pair in re.findall(r"probe-(yes|no) (\S+)", log))
    assert answers == {
        "/opt/probe": "no",
        "/var/probe": "no",
        "/etc/kestrel-web": "no",
        "/opt/kestrel-web": "no",
        "/var/lib/kestrel-web": "yes",
        "/tmp": "yes",
        "/etc/kestrel": "no",
        "/var/spool": "no",
        "/home": "no",
        "/root": "no",
        "code": "no",
    }


def test_who_has_the_password_gets_in_over_https_and_others_do_not(browser, root):
    status, headers, _ = browser.ask("GET", "/")
    assert status in (302, 303)
    assert headers["Location"].startswith("/queues/login")
    assert headers["Server"] == "nginx"
    assert headers.get_all("Strict-Transport-Security") == ["max-age=31536000"]
    assert "password" in browser.ask("GET", "/login")[2].lower()
    assert browser.log_in("anna", "wrong")[0] >= 400
    status, headers, _ = browser.log_in("anna", PASSWORD)
    assert status == 303
    cookies = headers.get_all("Set-Cookie")
    assert cookies
    assert all("Secure" in one and "HttpOnly" in one for one in cookies), cookies
    status, _, page = browser.ask("GET", "/queues")
    assert status == 200
    assert "molecule" in page
    assert PASSWORD not in root("panel2", "journalctl --no-pager --output cat")


def test_the_login_that_was_made_is_the_controllers_alone(stack, browser, root):
    file = Path(stack.vars("panel2")["kestrel_web_login_file"])
    assert file.stat().st_mode & 0o777 == 0o600
    login = json.loads(file.read_text())
    assert browser.log_in(login["name"], login["password"])[0] == 303
    assert len(login["password"]) >= 16
    # Not in the command, which sudo logs.
    hidden = base64.b64encode(login["password"].encode()).decode()
    found = root("panel2", f"echo {hidden} | base64 -d | grep -rlFf - /etc /opt /var/lib /var/log || :")
    assert found.strip() == ""
    assert login["password"] not in root("panel2", "journalctl --no-pager --output cat")


def test_where_it_is_read_only_nothing_can_be_done_whatever_the_role(browser, memcache, queue, eventually):
    memcache("panel1", queue, 22133, "set news_digest 0 0 1\r\nx\r\n")
    browser.log_in("anna", PASSWORD)
    eventually(
        lambda: "news_digest" in browser.ask("GET", "/api/v1/queues/news_digest")[2], "panel2 sees the queue"
    )
    csrf = re.search(r'name="csrf_token" value="([^"]+)"', browser.ask("GET", "/queues")[2])[1]
    status, _, _ = browser.ask("POST", "/queues/news_digest/do/flush", {"csrf_token": csrf})
    assert status == 403
    assert "x" in memcache("panel1", queue, 22133, "get news_digest/peek\r\n", "END\r\n")
    memcache("panel1", queue, 22133, "delete news_digest\r\n")


def test_a_token_reads_the_metrics_and_a_wrong_one_does_not(browser):
    assert "kestrel" in browser.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}")[2]
    assert browser.ask("GET", "/metrics", Authorization="Bearer other")[0] in (401, 403)
    assert browser.ask("GET", "/", Authorization=f"Bearer {TOKEN}")[0] in (302, 303, 401, 403)


def test_a_client_cannot_say_who_it_is_or_where_it_comes_from(browser):
    forged = {"X-Remote-User": "anna", "X-Forwarded-For": "192.0.2.5", "X-Forwarded-Host": "evil.example"}
    status, headers, _ = browser.ask("GET", "/queues", **forged)
    assert status in (302, 303)
    assert "evil" not in headers["Location"]


def test_another_name_gets_no_answer_at_all(stack):
    stranger = Browser(stack.vars("panel2")["kestrel_stack_address"], host="evil.example:8443")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        stranger.ask("GET", "/login")
    other = Browser(stack.vars("panel2")["kestrel_stack_address"], host="panel2.example.com:8443")
    assert other.ask("GET", "/login")[0] == 200


def test_debians_own_nginx_is_off_and_ours_has_one_privilege_at_most(root):
    assert root("panel2", "systemctl is-active nginx; :").strip() == "inactive"
    assert root("panel2", "systemctl is-enabled nginx; :").strip() == "disabled"
    main = pid(root, "panel2", "kestrel-web-nginx")
    assert root("panel2", f"ps -o user= -p {main}").strip() == "www-data"
    status = dict(line.split(":", 1) for line in root("panel2", f"cat /proc/{main}/status").splitlines())
    assert status["CapEff"].strip() == "0000000000000000"


@pytest.mark.parametrize("panel", PANELS)
def test_it_comes_back_after_a_kill_and_at_boot(root, eventually, panel):
    before = pid(root, panel)
    root(panel, f"kill -9 {before}")
    eventually(lambda: pid(root, panel) not in (0, before), "systemd starts it again")
    port, prefix = (8090, "") if panel == "panel1" else (8099, "/queues")
    eventually(
        lambda: root(panel, f"curl -s -o /dev/null http://127.0.0.1:{port}{prefix}/healthz && echo yes; :"),
        "it answers again",
    )
    assert root(panel, "systemctl is-enabled kestrel-web").strip() == "enabled"


def test_the_oldest_releases_are_removed_and_the_current_one_is_not(root):
    current = root("panel2", "readlink /opt/kestrel-web/current").strip().removeprefix("releases/")
    left = root("panel2", "ls -t /opt/kestrel-web/releases").split()
    assert left == [current, "py311-x86_64-000000000003"]


def test_a_check_of_a_host_as_it_is_finds_nothing_to_change():
    done = converge("--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0"], done.stdout


@pytest.fixture(scope="module")
def changed(root):
    """Change a setting of both hosts, with which panel1 does not come up; return what was before and the run.

    A start that fails is played by a condition in panel1's unit on what its configuration says.
    """
    drop_in = "/run/systemd/system/kestrel-web.service.d"
    before = {
        "config": root("panel1", "cat /etc/kestrel-web/kestrel-web.json"),
        **{unit: pid(root, "panel2", unit) for unit in ("kestrel-web", "kestrel-web-nginx")},
    }
    root(
        "panel1",
        f"mkdir -p {drop_in} && cat >{drop_in}/fails.conf <<'UNIT'\n"
        "[Service]\n"
        "ExecStartPre=/bin/sh -c 'if grep -q \\'\"interval_s\": 7\\' /etc/kestrel-web/kestrel-web.json;"
        " then echo the disk is made of cheese; exit 1; fi'\n"
        "UNIT\n"
        "systemctl daemon-reload",
    )
    try:
        return before, converge("--extra-vars", '{"kestrel_web_interval": 7}')
    finally:
        root("panel1", f"rm -r {drop_in} && systemctl daemon-reload")


def test_a_changed_setting_restarts_kestrel_web_and_nothing_else(root, changed):
    before, done = changed
    assert re.search(r"^panel2 .* failed=0 ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert pid(root, "panel2") not in (0, before["kestrel-web"])
    assert pid(root, "panel2", "kestrel-web-nginx") == before["kestrel-web-nginx"]
    assert json.loads(root("panel2", "cat /etc/kestrel-web/kestrel-web.json"))["interval_s"] == 7


def test_one_that_does_not_come_up_is_put_back_and_says_why(root, changed):
    before, done = changed
    assert re.search(r"^panel1 .* failed=1 ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    release = root("panel1", "readlink /opt/kestrel-web/current").strip().removeprefix("releases/")
    # Ansible breaks long lines; molecule lets it print failures elsewhere.
    said = " ".join(f"{done.stdout}{done.stderr}".split())
    assert f"panel1: release {release} does not come up: " in said
    assert f"; release {release} goes on as it was configured before" in said
    assert "the disk is made of cheese" in said
    assert root("panel1", "cat /etc/kestrel-web/kestrel-web.json") == before["config"]
    assert root("panel1", "stat -c '%a %U %G' /etc/kestrel-web/kestrel-web.json") == "640 root kestrel-web\n"
    assert root("panel1", "systemctl is-active kestrel-web").strip() == "active"
    assert root("panel1", "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8090/healthz") == "200"


def test_a_configuration_that_kestrel_web_refuses_never_replaces_the_old_one(root):
    before = root("panel1", "cat /etc/kestrel-web/kestrel-web.json"), pid(root, "panel1")
    # The role knows what a header looks like; that this one cannot be it, only kestrel-web knows.
    wrong = {"kestrel_web_proxy": {"header": "Cookie", "addresses": ["192.0.2.1"]}}
    done = converge("--limit=panel1", "--extra-vars", json.dumps(wrong))
    assert done.returncode != 0
    said = " ".join(f"{done.stdout}{done.stderr}".split())
    assert "failed to validate" in said
    assert "header" in said
    assert "like X-Remote-User" in said
    assert (root("panel1", "cat /etc/kestrel-web/kestrel-web.json"), pid(root, "panel1")) == before


def test_the_command_makes_hashes_of_passwords(stack, root):
    said = root("panel1", "printf 'long enough for this' | kestrel-web hash-password 2>/dev/null")
    assert said.strip().startswith("$argon2id$")


def test_who_tries_passwords_is_slowed_down_by_nginx_already(browser):
    csrf = re.search(r'name="csrf_token" value="([^"]+)"', browser.ask("GET", "/login")[2])[1]
    said = [
        browser.ask("POST", "/login", {"name": "eve", "password": "x", "csrf_token": csrf}) for _ in range(10)
    ]
    limited = [text for status, _, text in said if status == 429]
    assert any("<center>nginx</center>" in text for text in limited), [one[0] for one in said]
    assert browser.ask("GET", "/login")[0] == 200


def test_nginx_is_taken_away_where_it_is_no_longer_wanted(root):
    """Comes last: it changes panel2."""
    done = converge("--limit=panel2", "--extra-vars", '{"kestrel_web_nginx": false}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        root("panel2", "ls /etc/systemd/system /etc /var/cache | grep kestrel-web-nginx || :").strip() == ""
    )
    assert ":8443" not in root("panel2", "ss -H -l -t -n")
    assert root("panel2", "systemctl is-active kestrel-web").strip() == "active"
