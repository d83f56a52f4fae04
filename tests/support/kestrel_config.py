"""Role kestrel's configurations as Ansible itself renders them, without a host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"

INVENTORY = {
    "kestrel_stack_namespace": "shop",
    "kestrel_stack_address": "127.0.0.1",
    "kestrel_stack_queues": [{"name": "mail"}],
}


TEMPLATES = ("kestrel.scala", "embedded.json")


def render_all(
    folder: Path,
    inventories: Mapping[str, Mapping[str, Any]],
    consumers: tuple[str, ...] = (),
    templates: tuple[str, ...] = TEMPLATES,
) -> dict[str, dict[str, str]]:
    """Return, for each named set of variables, the text of each template. One run of Ansible for all.

    The files stay in FOLDER/NAME. An AssertionError holds what Ansible said.
    """
    role = CHECKOUT / "ansible/roles/kestrel"
    own: dict[str, Any] = {}
    for file in ("defaults/main.yml", "vars/main.yml"):
        own.update(yaml.safe_load((role / file).read_text(encoding="utf-8")))
    hosts = {
        name: {**own, **INVENTORY, **given, "role_path": str(role)} for name, given in inventories.items()
    }
    for name in hosts:
        (folder / name).mkdir()
    tasks = [
        {
            "name": "Render the template",
            "ansible.builtin.template": {
                "src": str(CHECKOUT / "templates/etc/kestrel" / f"{template}.j2"),
                "dest": f"{folder}/{{{{ inventory_hostname }}}}/{template}",
                "mode": "0600",
            },
        }
        for template in templates
    ]
    play = [{"name": "Render", "hosts": "kestrel", "gather_facts": False, "tasks": tasks}]
    children = {"consumers": {"hosts": {name: {} for name in consumers}}, "kestrel": {"hosts": hosts}}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"children": children}}), encoding="utf-8")
    (folder / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    done = subprocess.run(
        [PLAYBOOK, "-i", folder / "hosts.yml", "-c", "local", folder / "play.yml"],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_ROLES_PATH": str(CHECKOUT / "ansible/roles"),
            "ANSIBLE_FILTER_PLUGINS": str(CHECKOUT / "ansible/roles/common/filter_plugins"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        name: {template: (folder / name / template).read_text(encoding="utf-8") for template in templates}
        for name in hosts
    }
