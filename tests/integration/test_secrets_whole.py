"""A secret in every variable: none is in what Ansible and fab print, in process lists meanwhile, or left.

One host is everything. `site.yml -vvv --diff` makes it, changes every secret, and then sends errors
elsewhere; after each of the first two the shop is deployed. Every secret is a text found nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from argon2 import PasswordHasher

from kestrel_stack.lab import inventory
from support.deploy import FAB, ROOT, git
from support.secret_places import FORGET, KEEP, PLACES, SETTINGS, forms, named, script
from support.sentry import SentryServer

pytestmark = [pytest.mark.docker, pytest.mark.long]

HOST = "stack1"
MARK = "canary"
NOT_SEEDED = {
    # Variables that are secret or look so, and are not given: why.
    "sentry_bugsink_postgresql": "needs a PostgreSQL; its file is bugsink_conf.py, as sentry_mail's is",
    "sentry_self_hosted_webhook": "of the other backend: scenario sentry-self-hosted",
    "sentry_self_hosted_conf": "of the other backend: scenario sentry-self-hosted",
    "kestrel_web_generate_login": "no secret: whether to make one",
    "sentry_generate_login": "no secret: whether to make one",
    "kestrel_web_login_file": "no secret: a path",
    "sentry_login_file": "no secret: a path",
    "kestrel_web_logins_per_minute": "no secret: a number",
    "app_host_deploy_keys": "public keys",
    "web_tls_key": "a path of a file that the operator has put there",
    "kestrel_web_tls_key": "a path of a file that the operator has put there",
    "sentry_tls_key": "a path of a file that the operator has put there",
}
SECRET_NAME = re.compile(r"password|secret|token|dsn|webhook|login|_key|_users|_mail$|postgresql|_conf$")
IN_THE_ENVIRONMENT = ("SENTRY_AUTH_TOKEN", "BUGSINK_AUTH_TOKEN", "DEPLOY_WEBHOOK")
AFTER = {
    # None of them is there: what fab says of one that does not answer is the likeliest to say too much.
    "sentry": {"url": "https://sentry.example.invalid", "organization": "shop", "projects": ["shop"]},
    "bugsink": {"url": "https://errors.example.invalid", "projects": ["shop"]},
    "webhook": "$DEPLOY_WEBHOOK",
}


def word() -> str:
    return f"{MARK}{secrets.token_hex(16)}"


class Round:
    """One set of secrets: `texts` are what is searched for, by name; `given` is for Ansible."""

    def __init__(self) -> None:
        self.texts = {
            name: word()
            for name in (
                *("consumers_alarm_webhook", "kestrel_web_webhook", "sentry_secret_key", "sentry_mail"),
                *("sentry_admin_password", "login", "program", *IN_THE_ENVIRONMENT),
            )
        }
        address = "https://hooks.example.invalid"
        hashed = PasswordHasher().hash(self.texts["login"])
        digest = hashlib.sha256(self.texts["program"].encode()).hexdigest()
        # Neither is a password; who has one may still try passwords for as long as they like.
        self.texts |= {"kestrel_web_users": hashed.rpartition("$")[2], "kestrel_web_tokens": digest}
        mail = {"host": "mail.example.invalid", "port": 587, "from": "errors@example.com", "user": "errors"}
        self.given = {
            "consumers_alarm_webhook": f"{address}/{self.texts['consumers_alarm_webhook']}",
            "kestrel_web_webhook": f"{address}/{self.texts['kestrel_web_webhook']}",
            "sentry_secret_key": self.texts["sentry_secret_key"] * 2,
            "sentry_mail": mail | {"password": self.texts["sentry_mail"]},
            "sentry_admin_password": self.texts["sentry_admin_password"],
            "kestrel_web_users": [{"name": "anna", "role": "operator", "password_hash": hashed}],
            "kestrel_web_tokens": [{"name": "probe", "role": "viewer", "sha256": digest}],
        }
        self.environment = {name: self.texts[name] for name in IN_THE_ENVIRONMENT}
        self.environment["DEPLOY_WEBHOOK"] = f"{address}/{self.texts['DEPLOY_WEBHOOK']}"
        self.arrives = set(self.given)


class Whole:
    """The host, what was printed about it, and what was seen of command lines meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "secrets"
        self.app = folder / "shop"
        self.texts: dict[str, str] = {}
        """Every secret so far, by the round and its name."""
        self.printed: dict[str, str] = {}
        self.arrived: dict[str, list[str]] = {}
        """What Ansible was given and was found in the host's settings, by round."""
        self.expected: dict[str, list[str]] = {}
        self.lines: set[bytes] = set()
        """Command lines of this machine and, since its hosts are containers, of the host."""
        self._over = threading.Event()

    def make(self) -> None:
        shutil.copytree(ROOT / "ansible/inventories/single/group_vars", self.inventory / "group_vars")
        shutil.copy(ROOT / "ansible/inventories/single/hosts.yml", self.inventory)
        self.run(sys.executable, "-m", "kestrel_stack.lab", "hosts", "up", "--inventory", self.inventory)
        shutil.copytree(ROOT / "examples/shop", self.app)
        spec = yaml.safe_load((self.app / "deploy.yml").read_text()) | {"after": AFTER}
        (self.app / "deploy.yml").write_text(yaml.safe_dump(spec))
        git(self.app, "init", "-q", "-b", "main")
        git(self.app, "add", "-A")
        git(self.app, "commit", "-q", "-m", "made")

    def remove(self) -> None:
        self.run(sys.executable, "-m", "kestrel_stack.lab", "hosts", "down", "--inventory", self.inventory)

    @property
    def container(self) -> str:
        return inventory.load(self.inventory).container(HOST)

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=2400, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
        return done.stdout

    def play(self, name: str, given: Mapping[str, object], **environment: str) -> None:
        path = self.folder / "given.json"
        path.touch(0o600)
        path.write_text(json.dumps(given))
        tool = Path(sys.executable).with_name("ansible-playbook")
        words = ("-i", self.inventory, "ansible/site.yml", "-vvv", "--diff", "-e", f"@{path}")
        said = self.run(tool, *words, **environment)
        path.unlink()
        self.printed[f"{name}: site.yml"] = said

    def settle(self, name: str, texts: Mapping[str, str], arrives: set[str]) -> None:
        """Note the round's secrets, and which of those that Ansible was given have come to the host."""
        self.texts |= {f"{name}: {what}": text for what, text in texts.items()}
        self.expected[name] = sorted(arrives)
        self.arrived[name] = self.search({what: texts[what] for what in arrives}, SETTINGS)

    def deploy(self, name: str, environment: Mapping[str, str]) -> None:
        # Without a commit of its own the second one finds nothing to do, and tells nobody.
        git(self.app, "commit", "-q", "--allow-empty", "-m", name)
        said = self.run(FAB, "deploy", f"--app={self.app}", f"--env={self.inventory}", **environment)
        self.printed[f"{name}: fab deploy"] = said

    def root(self, command: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["docker", "exec", "-i", self.container, "sh", "-c", command],
            input=stdin.encode(), capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode(errors="replace")

    def search(self, texts: Mapping[str, str], command: str) -> list[str]:
        """Return the names of the texts that a command's output on the host has in any form."""
        self.root(KEEP, "".join(f"{form}\n" for text in texts.values() for form in forms(text)))
        try:
            return named(texts, set(self.root(script(command)).split("\n")))
        finally:
            self.root(FORGET)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep every command line there is meanwhile."""
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self.lines.add((process / "cmdline").read_bytes())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = Whole(tmp_path_factory.mktemp("secrets"))
    try:
        made.make()
        with made.watched():
            play_everything(made)
        yield made
    finally:
        if made.inventory.exists():
            made.remove()


def play_everything(made: Whole) -> None:
    shared = {
        "sentry_generate_login": False,
        "sentry_admin_email": "anna@example.com",
        "kestrel_web_generate_login": False,
    }
    for name in ("first", "changed"):
        one = Round()
        # Without Mitogen every module tells the host's journal what it was given.
        made.play(name, shared | one.given, **({} if name == "first" else {"ANSIBLE_STRATEGY": "linear"}))
        made.settle(name, one.texts, one.arrives)
        made.deploy(name, one.environment)
    # What the host made by itself was there all the time.
    settings = json.loads(made.root("cat /etc/kestrel-stack/shop.json"))
    made.texts |= {
        "made: Bugsink's token": made.root("cat /etc/bugsink/token").strip(),
        "made: the DSN's key": re.search(r"//([^@]+)@", settings["sentry_dsn"])[1],
    }
    key = word()
    with SentryServer(address=gateway(made)) as server:
        # Errors go somewhere else now; Bugsink is not ours to set up any more.
        groups = yaml.safe_load((made.inventory / "hosts.yml").read_text())
        del groups["all"]["children"]["sentry"]
        (made.inventory / "hosts.yml").write_text(yaml.safe_dump(groups))
        dsn = f"http://{key}@{gateway(made)}:{server.port}/7"
        # The others are not given any more: what shows a change shows what was there before.
        users = {"kestrel_web_users": one.given["kestrel_web_users"]}
        made.play("elsewhere", shared | users | {"sentry_backend": "external", "app_host_sentry_dsn": dsn})
        made.settle("elsewhere", {"app_host_sentry_dsn": key}, {"app_host_sentry_dsn"})
        assert server.events, "no event was sent to the DSN that was given"
    made.printed["fab status"] = made.run(FAB, "status", f"--env={made.inventory}")
    made.printed["fab logs"] = made.run(FAB, "logs", "--lines=200", f"--env={made.inventory}")


def gateway(made: Whole) -> str:
    """Return this machine's address as the host sees it: the first of its network."""
    hosts = yaml.safe_load((made.inventory / "containers.yml").read_text())["all"]["hosts"]
    network = ipaddress.ip_network(f"{hosts[HOST]['ansible_host']}/24", strict=False)
    return str(next(network.hosts()))


def test_every_secret_variable_is_given_or_has_a_reason():
    given = set(Round().given) | {"app_host_sentry_dsn"}
    assert secret_variables() == given | set(NOT_SEEDED)


def secret_variables() -> set[str]:
    """Every variable of the roles that is secret by its specification, or looks so by its name."""
    found = set()
    for path in sorted((ROOT / "ansible/roles").glob("*/meta/argument_specs.yml")):
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            for name, option in spec["options"].items():
                inner = option.get("options", {}).values()
                hidden = option.get("no_log") or any(one.get("no_log") for one in inner)
                if hidden or SECRET_NAME.search(name):
                    found.add(name)
    return found


def test_every_secret_has_come_to_the_host_and_is_found_there(whole):
    # So that finding it nowhere else means something.
    assert whole.arrived == whole.expected
    for name in ("first: site.yml", "changed: site.yml", "elsewhere: site.yml"):
        assert re.search(rf"{HOST} .*changed=[1-9]", whole.printed[name]), name


def test_the_deploys_tried_to_tell_others(whole):
    for name in ("first: fab deploy", "changed: fab deploy"):
        for who in ("Sentry", "Bugsink", "webhook"):
            tried = rf"{who}.*(?:told|example\.invalid)|example\.invalid.*{who}"
            assert re.search(tried, whole.printed[name]), (who, whole.printed[name])


def test_no_secret_is_in_what_ansible_and_fab_print(whole):
    found = {where: names for where, text in whole.printed.items() if (names := named(whole.texts, text))}
    assert found == {}
    assert len(whole.printed) == 7


def test_no_secret_was_in_a_process_list(whole):
    said = b"\n".join(whole.lines).decode(errors="replace")
    # Those of the host are among them.
    assert "/usr/bin/supervisord" in said
    assert "ansible-playbook" in said
    assert named(whole.texts, said) == []


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_left_in(whole, place):
    assert whole.search(whole.texts, PLACES[place]) == []


def test_no_earlier_secret_is_left_in_the_settings(whole):
    old = {name: text for name, text in whole.texts.items() if name.startswith("first: ")}
    # What ran before is kept beside what runs, for the way back; until the next change.
    standing = SETTINGS.replace("-type f", "-type f ! -path '*/former/*'")
    assert whole.search(old, standing) == []
