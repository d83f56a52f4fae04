"""fab's command line, as far as it goes without a host."""

import re

import pytest
import yaml

from support.deploy import ROOT, GitApp, fab
from support.ports import reserve

COMMANDS = ["check", "deploy", "logs", "releases", "rollback", "status", "unlock", "workers"]


@pytest.fixture
def app(tmp_path):
    return GitApp(tmp_path / "application")


@pytest.fixture
def inventory(tmp_path):
    """One host, at a port of this machine where nobody listens."""
    host = {"ansible_host": "127.0.0.1", "ansible_port": reserve(), "kestrel_stack_address": "127.0.0.1"}
    variables = {
        "kestrel_stack_app": "shop",
        "kestrel_stack_namespace": "shop",
        "kestrel_stack_environment": "test",
        "kestrel_stack_queues": [{"name": "mail"}],
        "deploy_user": "deploy",
    }
    groups = {"consumers": {"hosts": {"alone": host}}, "app": {"children": {"consumers": None}}}
    folder = tmp_path / "inventory"
    folder.mkdir()
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": groups}}))
    return folder


def refused(done, *words, code=1):
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fab: ")
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stdout


def test_the_commands_are_listed_each_with_a_sentence():
    done = fab("--list")
    assert re.findall(r"^  (\w+) +[A-Z]", done.stdout, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(command):
    text = fab("--help", command).stdout
    options = re.findall(r"^  (--[a-z-]+)(?:=STRING)?( +\S.*)?$", text, re.MULTILINE)
    assert ("--env" in dict(options)) and ("--limit" in dict(options))
    assert all(explained for _, explained in options), text


@pytest.mark.parametrize("words", [("deploy", "--colour=red"), ("deplyo",), ("rollback", "--ref=HEAD")])
def test_a_wrong_flag_or_command_ends_with_1(words):
    done = fab(*words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_environment_is_named(command):
    refused(fab(command, "--env=labb"), "unknown environment 'labb'", "lab")


def test_fab_is_found_and_says_the_same_from_a_folder_below(tmp_path):
    refused(fab("deploy", "--env=labb", cwd=ROOT / "docs" / "decisions"), "unknown environment 'labb'")


def test_an_unknown_ref_is_named_before_any_host_is_asked(app, inventory):
    refused(
        fab("deploy", f"--env={inventory}", f"--app={app.path}", "--ref=; touch pwned"),
        "unknown ref '; touch",
    )


def test_uncommitted_changes_are_named_and_can_be_left_out(app, inventory):
    app.write("shop/new.py", "")
    refused(fab("deploy", f"--env={inventory}", f"--app={app.path}"), "shop/new.py", "--allow-dirty")
    refused(fab("deploy", f"--env={inventory}", f"--app={app.path}", "--allow-dirty"), "does not answer")


@pytest.mark.parametrize("command", ["deploy", "rollback"])
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--batch=0", ["--batch is '0'", "25%"]),
        ("--batch=101%", ["--batch is '101%'"]),
        ("--canary=-1", ["--canary is '-1'", "whole number from 0"]),
        ("--canary=one", ["--canary is 'one'"]),
        ("--soak=1m", ["--soak is '1m'", "whole number from 0 to 86400"]),
    ],
)
def test_a_pace_that_makes_no_sense_is_refused_before_anything_is_read(command, flag, words):
    refused(fab(command, "--env=labb", flag), *words)


def test_an_unknown_key_in_deploy_yml_is_named_with_the_nearest(app, inventory):
    app.write("deploy.yml", "keeep: 5\n")
    app.commit()
    refused(fab("deploy", f"--env={inventory}", f"--app={app.path}"), "unknown key keeep: did you mean keep?")


def test_requirements_without_hashes_are_refused(app, inventory):
    app.write("requirements.txt", "requests==2.31.0\n")
    app.commit()
    refused(fab("deploy", f"--env={inventory}", f"--app={app.path}"), "requests has no hash")


# `check` names it among the other problems: see test_look.py.
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "check"])
def test_a_host_that_does_not_answer_is_named_with_what_to_try(app, inventory, command):
    words = [f"--app={app.path}"] if command == "deploy" else []
    done = fab(command, f"--env={inventory}", *words)
    refused(done, "alone does not answer at 127.0.0.1 port", "Connection refused", "Try: ssh ", "--limit")
    assert "\x1b" not in done.stdout


def test_a_limit_that_matches_nothing_is_refused(app, inventory):
    refused(
        fab("status", f"--env={inventory}", "--limit=nobody"),
        "'nobody' matches no host of group app",
        "alone",
    )
