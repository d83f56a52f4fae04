"""Every role's argument spec, defaults and files agree, as the house has it."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (CHECKOUT / "ansible/roles").iterdir() if path.is_dir())
# Read by the stack but set by no role's defaults: the inventory must say them.
SHARED = re.compile(r"(kestrel_stack_\w+|deploy_user)\Z")
# Required or refused by the role that reads them, and named for a part that comes later.
ELSEWHERE = {"sentry_backend"}

roles = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict:
    return load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def defaults(role: Path) -> dict:
    return load(role / "defaults/main.yml")


def test_there_are_roles():
    assert {"common", "app_host", "kestrel", "supervisor", "consumers", "web", "kestrel_web", "sentry"} <= {
        role.name for role in ROLES
    }


@roles
def test_the_argument_spec_equals_the_defaults(role):
    declared = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert declared == defaults(role)


@roles
def test_a_variable_has_a_default_or_is_required_and_shared_ones_are_required(role):
    for name, option in options(role).items():
        assert ("default" in option) != option.get("required", False), name
        assert bool(SHARED.match(name) or name in ELSEWHERE) == option.get("required", False), name


@roles
def test_every_variable_says_what_it_is_and_which_type_it_has(role):
    def check(where, given):
        for name, option in given.items():
            assert option["description"].endswith("."), f"{where}{name}"
            assert "type" in option, f"{where}{name}"
            assert "elements" in option or option["type"] != "list", f"{where}{name}"
            check(f"{where}{name}.", option.get("options", {}))

    check(f"{role.name}: ", options(role))


@roles
def test_variables_carry_their_roles_prefix(role):
    for name in defaults(role):
        assert name.startswith(f"{role.name}_")
    for name in load(role / "vars/main.yml") or {}:
        assert name.startswith(f"_{role.name}_")
    for file in (role / "tasks").glob("*.yml"):
        for name in re.findall(r"^\s*register: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert name.startswith(f"__{role.name}_"), f"{file}: {name}"


@roles
def test_every_default_is_used(role):
    files = [
        path
        for path in [*role.rglob("*.yml"), *(CHECKOUT / "templates").rglob("*")]
        if path.is_file() and path.parent.name not in {"defaults", "meta"}
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    for name in defaults(role):
        assert re.search(rf"\b{name}\b", text), name


@roles
def test_every_default_has_a_comment_above_its_group(role):
    lines = (role / "defaults/main.yml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+:", line):
            group = number
            while lines[group - 1].strip() and not lines[group - 1].startswith("#"):
                group -= 1
            assert lines[group - 1].startswith("#"), line


@roles
def test_a_role_links_the_one_folder_of_templates(role):
    assert (role / "templates").readlink() == Path("../../../templates")
    assert (role / "templates").resolve() == CHECKOUT / "templates"


@roles
def test_main_only_dispatches(role):
    first, *others = load(role / "tasks/main.yml")
    # site.yml runs it for all roles of a host before its first change; a role alone does it itself.
    assert first.pop("when") == "__common_checked is not defined"
    assert first == {**first, "ansible.builtin.include_tasks": "preflight.yml"}
    for task in (first, *others):
        (part,) = set(task) - {"name"}
        # Read with the playbook, which costs nothing on the hosts; unless its name depends on them.
        kind = "include" if task is first or "{{" in task[part] else "import"
        assert part == f"ansible.builtin.{kind}_tasks", task["name"]


@roles
def test_every_task_is_named_and_takes_its_module_from_ansible_builtin(role):
    def check(tasks, file):
        for task in tasks:
            assert task["name"][0].isupper(), file
            for part in ("block", "rescue", "always"):
                check(task.get(part, []), file)
            modules = [key for key in task if "." in key]
            assert all(module.startswith("ansible.builtin.") for module in modules), task["name"]
            assert len(modules) == 1 or "block" in task, task["name"]

    for file in [*(role / "tasks").glob("*.yml"), *(role / "handlers").glob("*.yml")]:
        check(load(file), file)


@roles
def test_files_get_an_owner_a_group_and_a_quoted_mode(role):
    modules = ("file", "template", "copy")
    for file in (role / "tasks").glob("*.yml"):
        for task in load(file):
            for module in modules:
                arguments = task.get(f"ansible.builtin.{module}")
                if arguments is None or arguments.get("state") in ("absent", "link"):
                    continue
                assert {"owner", "group", "mode"} <= set(arguments), task["name"]
                assert isinstance(arguments["mode"], str), task["name"]


def test_templates_that_can_be_checked_are_checked_before_they_replace_a_file():
    validated = {}
    for role in ROLES:
        for file in (role / "tasks").glob("*.yml"):
            for task in load(file):
                if arguments := task.get("ansible.builtin.template"):
                    validated[arguments["src"]] = "validate" in arguments
    assert validated, "no templates"
    # systemd and supervisor have no check of one file; what is wrong in them shows when they are read.
    assert {name for name, checked in validated.items() if not checked} == {
        "etc/supervisor/supervisord.conf.j2",
        "etc/supervisor/conf.d/program.conf.j2",
        "etc/supervisor/conf.d/mover.conf.j2",
        "etc/supervisor/conf.d/alarm.conf.j2",
        "etc/systemd/system/kestrel.service.j2",
        # A loop over units of the packet filter, and one over those of the guard.
        "etc/systemd/system/{{ item }}.j2",
        "etc/systemd/system/kestrel-stack-spool-guard.{{ item }}.j2",
        "etc/tmpfiles.d/kestrel-stack-kestrel.conf.j2",
        "etc/systemd/system/supervisor.service.d/10-kestrel-stack.conf.j2",
        "etc/systemd/system/kestrel-stack-nginx.service.j2",
        "etc/systemd/system/kestrel-stack-web.socket.j2",
        # A release's unit, and the one that starts the current release at boot.
        "etc/systemd/system/kestrel-stack-web{{ item }}.service.j2",
        "etc/systemd/system/kestrel-web.service.j2",
        "etc/systemd/system/kestrel-web-nginx.service.j2",
        "etc/systemd/system/sentry-nginx.service.j2",
    }


def test_the_queues_are_described_the_same_in_every_role():
    specs = {role.name: options(role).get("kestrel_stack_queues") for role in ROLES}
    specs = {name: spec for name, spec in specs.items() if spec}
    assert len(specs) >= 4
    first = next(iter(specs.values()))
    for name, spec in specs.items():
        assert spec == first, name


def blocks(tasks):
    for task in tasks or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from blocks(task.get(part))


@roles
def test_a_rescue_ends_by_failing(role):
    """With any_errors_fatal one that goes on takes the other hosts out of all that follows, in silence."""
    for path in sorted((role / "tasks").glob("*.yml")):
        for task in blocks(load(path)):
            assert "rescue" not in task or "ansible.builtin.fail" in task["rescue"][-1], (path, task["name"])


def reached(role: str, entry: str, seen: dict[Path, list]) -> dict[Path, list]:
    """Return what a role's file of tasks leads to, and its handlers: each file with all its tasks."""
    folder = CHECKOUT / "ansible/roles" / role
    for path in (folder / "tasks" / entry, folder / "handlers/main.yml"):
        # A name may depend on the host.
        for file in path.parent.glob(re.sub(r"{{.*?}}", "*", path.name)):
            if file in seen:
                continue
            seen[file] = list(blocks(load(file)))
            for task in seen[file]:
                for kind in ("include", "import"):
                    if part := task.get(f"ansible.builtin.{kind}_tasks"):
                        reached(role, part, seen)
                    if other := task.get(f"ansible.builtin.{kind}_role"):
                        reached(other["name"], f"{other.get('tasks_from', 'main')}.yml", seen)
    return seen


def test_where_no_host_waits_nothing_is_meant_for_all_hosts_at_once():
    loose = [
        play
        for play in load(CHECKOUT / "ansible/site.yml")
        if play.get("vars", {}).get("__hosts_wait") is False
    ]
    assert len(loose) == 3
    found: dict[Path, list] = {}
    for play in loose:
        assert not {"any_errors_fatal", "max_fail_percentage", "serial", "strategy"} & set(play), play["name"]
        for task in play["tasks"]:
            for kind in ("include", "import"):
                if part := task.get(f"ansible.builtin.{kind}_role"):
                    reached(part["name"], f"{part.get('tasks_from', 'main')}.yml", found)
    assert {file.parent.parent.name for file in found} >= {"kestrel", "sentry", "consumers", "web"}
    for file, tasks in found.items():
        for task in tasks:
            # The free strategy knows neither; of Kestrel's servers each waits for its turn.
            assert not {"run_once", "any_errors_fatal"} & set(task), (file, task["name"])
            assert "ansible_play_batch" not in str(task.get("loop")), (file, task["name"])


def test_both_ansible_cfg_say_the_same_but_for_where_things_are():
    def read(path):
        parser = configparser.ConfigParser()
        parser.read(CHECKOUT / path)
        return {section: dict(parser[section]) for section in parser.sections()}

    root, inner = read("ansible.cfg"), read("ansible/ansible.cfg")
    assert (CHECKOUT / root["defaults"].pop("inventory")) == CHECKOUT / "ansible/inventories/lab"
    assert (CHECKOUT / "ansible" / inner["defaults"].pop("inventory")) == CHECKOUT / "ansible/inventories/lab"
    strategies = CHECKOUT / "ansible/plugins/strategy"
    for option, folder in (("strategy_plugins", strategies), ("roles_path", CHECKOUT / "ansible/roles")):
        ours, *others = root["defaults"].pop(option).split(":")
        assert (CHECKOUT / ours) == folder
        ours, *inner_others = inner["defaults"].pop(option).split(":")
        assert (CHECKOUT / "ansible" / ours) == folder
        assert others == inner_others
        # Where Ansible looks by itself, for roles of somebody's own.
        assert option != "roles_path" or others == [
            "~/.ansible/roles",
            "/usr/share/ansible/roles",
            "/etc/ansible/roles",
        ]
    assert (strategies / f"{root['defaults']['strategy']}.py").is_file()
    assert root == inner


def test_no_collection_is_used():
    for file in (CHECKOUT / "ansible").rglob("*.yml"):
        if "inventories" not in file.parts:
            assert not re.search(
                r"^\s*(community|ansible\.(posix|utils|netcommon))\.", file.read_text(), re.M
            ), file
    assert not list(CHECKOUT.glob("**/requirements.y*ml"))
