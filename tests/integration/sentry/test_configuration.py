"""Bugsink's configuration as Ansible writes it and a real Bugsink reads it: who may call it by which name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.bugsink import clean_environment, venv
from support.host_programs import CHECKOUT

ROLE = CHECKOUT / "ansible/roles/sentry"
COMMON = {
    "kestrel_stack_app": "shop",
    "sentry_backend": "bugsink",
    "sentry_admin_password": "'\"%$ {% raw %}{{ no }}{% endraw %}",
    "sentry_tls_certificate": "/etc/ssl/errors.pem",
    "sentry_tls_key": "/etc/ssl/errors.key",
}
HOSTS = {
    "everywhere": {"kestrel_stack_address": "fd00::9", "sentry_listen_address": "::"},
    "one": {"kestrel_stack_address": "FD00::9", "sentry_listen_address": "FD00::9"},
    "renamed": {
        "kestrel_stack_address": "10.0.0.1",
        "sentry_nginx": True,
        "sentry_server_name": "errors1",
        "sentry_url": "https://errors.example.com",
    },
    "numbered": {
        "kestrel_stack_address": "10.0.0.1",
        "sentry_nginx": True,
        "sentry_server_name": "errors1",
        "sentry_url": "https://[fd00::9]:8443",
    },
}
# Which names are let in, and which settings follow from how it is reached.
ASK = """
import json, sys
import django
django.setup()
from django.conf import settings
from django.test import Client
names = json.load(sys.stdin)
print(json.dumps({
    "status": {name: Client().get("/health/ready", HTTP_HOST=name).status_code for name in names},
    "secure": [settings.SESSION_COOKIE_SECURE, settings.CSRF_COOKIE_SECURE],
    "believed": [settings.USE_X_REAL_IP, settings.USE_X_FORWARDED_FOR, settings.USE_X_FORWARDED_HOST],
}))
"""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The files of each host, of one run of Ansible."""
    folder = tmp_path_factory.mktemp("rendered")
    own: dict[str, object] = {}
    for file in ("defaults/main.yml", "vars/main.yml"):
        own |= yaml.safe_load((ROLE / file).read_text())
    hosts = {}
    for name, given in HOSTS.items():
        etc = folder / name
        etc.mkdir()
        (etc / "secret_key").write_text("k" * 50)
        hosts[name] = {
            **own, **COMMON, **given, "role_path": str(ROLE),
            "_sentry_bugsink_folder": str(etc), "_sentry_bugsink_state": str(etc),
        }  # fmt: skip
    tasks = [{"ansible.builtin.set_fact": {"distribution_major_version": "12", "cacheable": True}}] + [
        {
            "ansible.builtin.template": {
                "src": f"{source}.j2",
                "dest": f"{folder}/{{{{ inventory_hostname }}}}/{Path(source).name}",
                "mode": "0600",
            }
        }
        for source in (
            "etc/bugsink/bugsink_conf.py",
            "etc/sentry-nginx/nginx.conf",
            "etc/systemd/system/bugsink.service",
        )
    ]
    (folder / "templates").symlink_to(CHECKOUT / "templates")
    (folder / "hosts.json").write_text(json.dumps({"all": {"children": {"sentry": {"hosts": hosts}}}}))
    (folder / "play.yml").write_text(json.dumps([{"hosts": "sentry", "gather_facts": False, "tasks": tasks}]))
    filters = [str(CHECKOUT / f"ansible/roles/{role}/filter_plugins") for role in ("common", "sentry")]
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.json", "-c", "local", "play.yml"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_FILTER_PLUGINS": ":".join(filters),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("host", "right", "wrong", "secure", "believed"),
    [
        ("everywhere", ["[::1]:8765", "[fd00::9]:8765", "127.0.0.1"], ["[::]", "evil.example"], False, False),
        ("one", ["[fd00::9]:8765", "localhost"], ["[fd00::a]", ""], False, False),
        (
            "renamed",
            ["errors.example.com", "errors1", "127.0.0.1:8765"],
            ["10.0.0.1", "x.errors1"],
            True,
            True,
        ),
        ("numbered", ["[fd00::9]:8443", "errors1"], ["fd00::9"], True, True),
    ],
)
def test_it_answers_to_its_names_alone(rendered, host, right, wrong, secure, believed):
    done = subprocess.run(
        [venv() / "bin/python", "-c", ASK],
        input=json.dumps(right + wrong),
        env=clean_environment(PYTHONPATH=str(rendered / host), DJANGO_SETTINGS_MODULE="bugsink_conf"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == dict.fromkeys(right, 200) | dict.fromkeys(wrong, 400)
    assert said["secure"] == [secure, secure]
    # A client's own word for its address counts only where nginx replaces it.
    assert said["believed"] == [believed, False, False]


def test_addresses_with_colons_stand_in_brackets(rendered):
    assert "--bind [::]:8765 " in (rendered / "everywhere/bugsink.service").read_text()
    assert "server_name errors1 [fd00::9];" in (rendered / "numbered/nginx.conf").read_text()
    assert "server_name errors1 errors.example.com;" in (rendered / "renamed/nginx.conf").read_text()
