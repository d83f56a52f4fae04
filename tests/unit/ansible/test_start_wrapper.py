"""The start wrapper, rendered as the role does, run by sh on releases in a folder of our own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import jinja2
import pytest

TEMPLATE = Path(__file__).resolve().parents[3] / "templates/usr/local/lib/kestrel-stack/start-consumer.j2"


@pytest.fixture
def srv(tmp_path):
    (tmp_path / "srv/shop").mkdir(parents=True)
    return tmp_path / "srv/shop"


@pytest.fixture
def wrapper(tmp_path):
    # -2 makes its wait 0 seconds: the wait is for supervisor, and there is none here.
    text = jinja2.Template(TEMPLATE.read_text(), undefined=jinja2.StrictUndefined).render(
        ansible_managed="Ansible managed", _consumers_start_seconds=-2, _consumers_php=f"{tmp_path}/php"
    )
    file = tmp_path / "start-consumer"
    file.write_text(text.replace("/srv/", f"{tmp_path}/srv/"))
    file.chmod(0o755)
    return lambda *arguments: subprocess.run(
        [file, *arguments], capture_output=True, text=True, check=False, cwd="/"
    )


def release(srv, name, python=True):
    """Make a release whose python says how it was called."""
    folder = srv / "releases" / name
    folder.mkdir(parents=True)
    venv = srv / "venvs/one"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    if python:
        (venv / "bin/python").write_text('#!/bin/sh\necho "$0" "$KESTREL_STACK_RELEASE" "$PWD" "$@"\n')
        (venv / "bin/python").chmod(0o755)
    (folder / "venv").symlink_to("../../venvs/one")
    (srv / "current").unlink(missing_ok=True)
    (srv / "current").symlink_to(f"releases/{name}")


def test_the_consumer_runs_from_physical_paths_only(srv, wrapper):
    release(srv, "20260101T000000Z-aaaaaaaa")
    done = wrapper("shop", "python", "--queue", "mail", "--app", "a b:c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        f"{srv}/venvs/one/bin/python 20260101T000000Z-aaaaaaaa {srv}/releases/20260101T000000Z-aaaaaaaa"
        " -m kestrel_stack.consumer --queue mail --app a b:c"
    )


def php_release(srv, name):
    """Make a release with the stack's own PHP code, and a php that says how it was called."""
    release(srv, name)
    consumer = srv / "releases" / name / "kestrel-stack/php/bin/consumer"
    consumer.parent.mkdir(parents=True)
    consumer.write_text("<?php\n")
    php = srv.parents[1] / "php"
    php.write_text('#!/bin/sh\necho "$KESTREL_STACK_RELEASE" "$PWD" "$@"\n')
    php.chmod(0o755)
    return consumer, php


def test_a_php_consumer_runs_from_the_release_with_the_hosts_php(srv, wrapper):
    consumer, _ = php_release(srv, "20260101T000000Z-aaaaaaaa")
    done = wrapper("shop", "php", "--queue", "mail", "--app", "php/jobs.php")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        f"20260101T000000Z-aaaaaaaa {srv}/releases/20260101T000000Z-aaaaaaaa"
        f" {consumer} --queue mail --app php/jobs.php"
    )


def test_a_release_without_the_stacks_php_and_a_host_without_php_are_named(srv, wrapper):
    consumer, php = php_release(srv, "one")
    php.unlink()
    done = wrapper("shop", "php")
    assert done.returncode == 78
    assert done.stderr == f"start-consumer: {php} is missing: run ansible-playbook site.yml\n"
    consumer.unlink()
    done = wrapper("shop", "php")
    assert done.returncode == 78
    assert done.stderr == "start-consumer: release one has no kestrel-stack/php: run fab deploy\n"


@pytest.mark.parametrize("dangling", [False, True])
def test_without_a_release_it_says_what_to_do_and_exits_78(srv, wrapper, dangling):
    if dangling:
        (srv / "current").symlink_to("releases/gone")
    done = wrapper("shop", "python", "--queue", "mail")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "start-consumer: no release of shop yet: run fab deploy\n"


def test_a_release_without_venv_or_python_is_named(srv, wrapper):
    release(srv, "one", python=False)
    done = wrapper("shop", "python")
    assert done.returncode == 78
    assert done.stderr == f"start-consumer: {srv}/venvs/one has no bin/python: run fab deploy\n"
    (srv / "releases/one/venv").unlink()
    done = wrapper("shop", "python")
    assert done.returncode == 78
    assert done.stderr == "start-consumer: release one has no venv: run fab deploy\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "usage: start-consumer APP LANGUAGE ARGUMENT..."),
        (("shop",), "usage: start-consumer APP LANGUAGE ARGUMENT..."),
        (("shop", "ruby"), "language ruby is unknown: set language: python or php"),
    ],
)
def test_wrong_usage_is_one_line(srv, wrapper, arguments, says):
    release(srv, "one")
    done = wrapper(*arguments)
    assert done.returncode == 78
    assert done.stderr == f"start-consumer: {says}\n"


def test_it_waits_longer_than_startsecs_before_it_gives_up():
    text = jinja2.Template(TEMPLATE.read_text()).render(_consumers_start_seconds=2)
    assert "sleep 4\n    exit 78" in text
