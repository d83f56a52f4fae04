"""Releases older than the playbook read the settings that it writes; it reads older inventories."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import ansible_filters
from support.deploy import ROOT
from support.upgrade_lab import MILESTONES, has_commit

filters = ansible_filters.load()


def unpack(commit: str, wanted: list[str], folder: Path) -> None:
    """Have some of what an earlier commit had in a folder."""
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    packed = subprocess.run([*git, "archive", commit, *wanted], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)


@pytest.mark.parametrize("milestone", MILESTONES, ids=lambda m: m.name)
def test_settings_that_are_written_today_are_read_by_an_earlier_release(milestone, tmp_path: Path) -> None:
    if not has_commit(milestone.commit):
        pytest.skip(f"this clone has no commit {milestone.commit}: git fetch --unshallow brings it")
    wanted = ["src/kestrel_stack/__init__.py", "src/kestrel_stack/queue", "ansible/inventories/lab"]
    unpack(milestone.commit, wanted, tmp_path)
    said = yaml.safe_load((tmp_path / "ansible/inventories/lab/group_vars/all.yml").read_text())
    settings = {
        "app": "shop",
        "namespace": "shop",
        "environment": "lab",
        "host": "worker1",
        "servers": ["192.0.2.1:22133"],
        "queues": filters.settings_queues(said["kestrel_stack_queues"]),
        "sentry_dsn": None,
    }
    (tmp_path / "shop.json").write_text(json.dumps(settings))
    script = "import sys; from kestrel_stack.queue import settings; print(*settings.load(sys.argv[1]).queues)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, 'src'); {script}", "shop.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [queue["name"] for queue in said["kestrel_stack_queues"]]


def options(checkout: Path) -> dict[str, dict]:
    """Return what each role's argument specs say of its variables."""
    found = {}
    for file in checkout.glob("ansible/roles/*/meta/argument_specs.yml"):
        found[file.parts[-3]] = options_of = {}
        for entry in yaml.safe_load(file.read_text())["argument_specs"].values():
            options_of |= entry["options"]
    return found


def defaults(checkout: Path) -> dict[str, object]:
    """Return the defaults of all roles' variables."""
    files = checkout.glob("ansible/roles/*/defaults/main.yml")
    return {name: value for file in files for name, value in (yaml.safe_load(file.read_text()) or {}).items()}


def changes(where: str, earlier: dict, today: dict) -> list[str]:
    """Return why an inventory that was right would be refused, or would mean something else."""
    found = [f"{where} {name} is unknown" for name in earlier if name not in today]
    for name, now in today.items():
        was = earlier.get(name)
        if was is None:
            found += [f"{where} {name} is required"] if now.get("required") else []
            continue
        found += [
            f"{where} {name}: {key} was {was.get(key)}, is {now.get(key)}"
            for key in ("type", "elements", "required", "default")
            if was.get(key) != now.get(key)
        ]
        gone = set(was.get("choices", ())) - set(now.get("choices") or was.get("choices", ()))
        found += [f"{where} {name}: {choice} is no choice" for choice in gone]
        found += changes(f"{where} {name}", was.get("options", {}), now.get("options", {}))
    return found


@pytest.mark.parametrize("milestone", MILESTONES, ids=lambda m: m.name)
def test_an_earlier_inventory_means_today_what_it_meant(milestone, tmp_path: Path) -> None:
    """Else docs/upgrading.md has to say what changed, and preflight what to write instead."""
    if not has_commit(milestone.commit):
        pytest.skip(f"this clone has no commit {milestone.commit}: git fetch --unshallow brings it")
    unpack(milestone.commit, ["ansible/roles"], tmp_path)
    earlier, today = options(tmp_path), options(ROOT)
    assert "kestrel_stack_queues" in earlier["kestrel"]
    changed = [line for role, was in earlier.items() for line in changes(role, was, today[role])]
    meant, means = defaults(tmp_path), defaults(ROOT)
    assert meant
    changed += [f"{name} was {meant[name]}" for name in meant if meant[name] != means.get(name)]
    assert not changed


def test_an_option_that_is_used_is_in_the_settings() -> None:
    [queue] = filters.settings_queues([{"name": "mail", "max_memory": "64MB", "max_time": None}])
    assert queue["max_memory"] == "64MB"
    assert "max_time" not in queue
    assert queue["max_jobs"] == 1000
