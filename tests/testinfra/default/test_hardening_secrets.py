"""Secrets are where they are needed and nowhere else: in no log, process list, release, page, output or git.

These search for the secrets that the hosts really hold. What plays and deploys print, and what every
other secret variable leaves behind, is in tests/integration/test_secrets_whole.py, with plays of its own.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from support.secret_places import FORGET, KEEP, PLACES, forms, named, script

CHECKOUT = Path(__file__).resolve().parents[3]


def hosts(stack):
    return sorted(stack.data["_meta"]["hostvars"])


@pytest.fixture(autouse=True)
def _several_hosts(stack):
    if len(hosts(stack)) == 1:
        pytest.skip("everything is on one host")


@pytest.fixture(scope="module")
def held(stack, root):
    """Every secret that the hosts hold, by what it is."""
    found = {}
    for host in stack.group("sentry"):
        found["Bugsink's token"] = root(host, "cat /etc/bugsink/token").strip()
        found["Bugsink's secret key"] = root(host, "cat /etc/bugsink/secret_key").strip()
        found["Bugsink's password"] = json.loads(root(host, "cat /etc/bugsink/admin.json"))["password"]
    for host in stack.group("kestrel_web"):
        login = json.loads(Path(stack.vars(host)["kestrel_web_login_file"]).read_text())
        found["kestrel-web's password"] = login["password"]
    for host in stack.group("app"):
        dsn = json.loads(root(host, "cat /etc/kestrel-stack/shop.json"))["sentry_dsn"]
        found["the DSN's key"] = re.search(r"//([^@]+)@", dsn)[1]
    assert len(found) == 5
    assert all(len(text) >= 12 and "\n" not in text for text in found.values()), sorted(found)
    return found


@pytest.fixture
def search(stack):
    """Return a function that says which of some texts a command's output has in it, on a host."""

    def find(host, texts, command):
        client = stack.host(host).backend.client
        stdin, stdout, stderr = client.exec_command("sudo sh -c " + shlex.quote(KEEP), timeout=60)
        stdin.write("".join(f"{form}\n" for text in texts.values() for form in forms(text)))
        stdin.channel.shutdown_write()
        assert stdout.channel.recv_exit_status() == 0, stderr.read()
        try:
            _, stdout, _ = client.exec_command("sudo sh -c " + shlex.quote(script(command)), timeout=120)
            return named(texts, set(stdout.read().decode(errors="replace").split("\n")))
        finally:
            client.exec_command("sudo " + FORGET)[1].channel.recv_exit_status()

    return find


def test_the_search_finds_what_is_there(search, stack, held):
    [host] = stack.group("sentry")
    assert search(host, held, "cat /etc/bugsink/token") == ["Bugsink's token"]
    assert search(host, held, "printf 'x%sy' $(cat /etc/bugsink/secret_key)") == ["Bugsink's secret key"]
    # As Ansible prints a file that it has read.
    assert search(host, held, "printf 'x%sy' $(cat /etc/bugsink/secret_key) | base64 -w0") == [
        "Bugsink's secret key"
    ]
    assert search(host, held, "echo nothing") == []


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_that_the_hosts_hold_is_in(search, stack, held, place):
    assert {host: found for host in hosts(stack) if (found := search(host, held, PLACES[place]))} == {}


def test_no_secret_is_on_a_page_of_kestrel_web(operator, held):
    texts = {}
    for path in (
        "/",
        "/queues",
        "/servers",
        "/alerts",
        "/audit",
        "/api/v1/queues",
        "/api/v1/servers",
        "/metrics",
    ):
        status, headers, text = operator.ask("GET", path)
        texts[path] = f"{status} {headers} {text}"
    assert sum(text.startswith("200 ") for text in texts.values()) >= 5, {p: t[:3] for p, t in texts.items()}
    assert [(path, what) for path, text in texts.items() for what, key in held.items() if key in text] == []


def test_no_secret_is_in_git(held):
    done = subprocess.run(
        ["git", "grep", "-c", "-F", "-f", "-", "--untracked"], cwd=CHECKOUT, text=True, capture_output=True,
        input="\n".join(held.values()) + "\n",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")


def test_what_the_controller_keeps_of_secrets_is_for_its_user_alone(stack):
    [host] = stack.group("kestrel_web")
    files = [stack.vars(host)[name] for name in ("kestrel_web_login_file", "sentry_login_file")]
    config = Path(stack.vars(host)["deploy_ssh_config"])
    files += re.findall(r'IdentityFile "?([^"\n]+)', config.read_text())[:1]
    assert len(files) == 3
    assert {path: oct(Path(path).stat().st_mode & 0o777) for path in files} == dict.fromkeys(files, "0o600")
