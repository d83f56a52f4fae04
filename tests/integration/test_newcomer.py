"""What goes wrong on somebody's first day: each time one line that says what to do, and nothing half-done."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.bare_machine import WORKING_PYTHON, Machine, whole_machine
from support.deploy import ROOT
from support.ports import reserve

GIT = shutil.which("git") or "git"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has everything and is root."""
    return whole_machine(tmp_path)


def refused(machine: Machine, *command: str, **more: str) -> str:
    """Run a program that is to refuse; return its one line."""
    done = machine.run(*(command or ("bin/up",)), **more)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "took over" not in done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert machine.changed_nothing()
    return done.stderr.rstrip("\n")


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14"])
def test_a_python_that_is_not_supported_is_named_with_those_that_are(machine: Machine, version: str) -> None:
    machine.has("python3", f'case "$*" in *version_info*) echo {version} ;; *) echo {version}.2 ;; esac')
    line = refused(machine, "bin/up", "--yes")
    assert line == (
        f"bin/up: Python 3.11, 3.12 or 3.13 is needed, found python3 {version}.2; install one of them "
        "(Debian 12 and 13, Ubuntu 24.04 have one)"
    )


# --- space ---------------------------------------------------------------------------------------------


def free_space(machine: Machine, place: str, megabytes: int, size: int = 1_000_000) -> None:
    """Let df say that the file system of a path has so much left, and every other enough."""
    little, much = f" {size} {megabytes}", f" {size} 999999"
    machine.has(
        "df", f'echo Avail; case "${{@: -1}}" in "{place}"*) echo "{little}" ;; *) echo "{much}" ;; esac'
    )


def engine(machine: Machine, data: Path, name: str = platform.node(), security: str = "[]") -> None:
    """Let the engine that answers be of the machine of this name, with its files in a folder."""
    about = rf"{name}\n{security}\n{data}\n"
    machine.has(
        "stand-in-docker",
        f"case \"$1 $2\" in 'info --format') printf '{about}' ;; ps*) cat \"$HOME/ps\" 2>/dev/null ;; esac",
    )


def test_a_full_disk_under_the_checkout_is_told_with_what_is_needed(machine: Machine) -> None:
    free_space(machine, str(machine.checkout), 799)
    assert refused(machine) == (
        f"bin/up: {machine.checkout} has 799 MB free, and a virtual environment needs 800 MB: make room, "
        "then run bin/up again"
    )
    free_space(machine, str(machine.checkout), 800)
    assert machine.run("bin/up").returncode == 0
    # With the environment there, it is about logs alone.
    free_space(machine, str(machine.checkout), 101)
    assert machine.run("bin/up").returncode == 0
    free_space(machine, str(machine.checkout), 99)
    done = machine.run("bin/up")
    assert done.returncode == 1
    assert "has 99 MB free" in done.stderr


def test_what_makes_room_is_not_refused_for_want_of_it(machine: Machine) -> None:
    assert machine.run("bin/up").returncode == 0
    free_space(machine, str(machine.checkout), 0)
    assert machine.run("bin/up").returncode == 1
    down = machine.run("bin/down")
    assert down.returncode == 0, down.stderr
    assert "took over: -m kestrel_stack.lab down" in down.stdout


def test_a_full_disk_under_pips_temporary_folder_is_told(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    free_space(machine, str(tmp_path / "small"), 64)
    assert "needs 300 MB" in refused(machine, TMPDIR=str(tmp_path / "small"))


def test_a_full_disk_under_docker_is_told_unless_the_containers_stand(
    machine: Machine, tmp_path: Path
) -> None:
    data = tmp_path / "docker"
    data.mkdir()
    free_space(machine, str(data), 1500)
    engine(machine, data)
    (tmp_path / "ps").touch()
    assert refused(machine) == (
        f"bin/up: {data} has 1500 MB free, and what bin/up makes in Docker needs 2000 MB: make room, "
        "then run bin/up again"
    )
    (tmp_path / "ps").write_text("0123456789ab\n")
    assert machine.run("bin/up").returncode == 0


def test_the_disk_of_an_engine_on_another_machine_is_not_asked(machine: Machine, tmp_path: Path) -> None:
    """Docker Desktop's is in a virtual machine, under a path that may not be here at all."""
    free_space(machine, str(tmp_path), 1500)
    engine(machine, tmp_path / "docker", "docker-desktop")
    assert machine.run("bin/up").returncode == 0
    engine(machine, tmp_path / "docker")
    assert "what bin/up makes in Docker needs 2000 MB" in machine.run("bin/up").stderr


def test_a_file_system_that_does_not_know_its_size_is_not_full(machine: Machine) -> None:
    free_space(machine, str(machine.checkout), 0, size=0)
    assert machine.run("bin/up").returncode == 0


def test_a_disk_that_is_really_full_while_packages_are_installed_is_called_that(machine: Machine) -> None:
    done = machine.run("bin/up", PIP_DOES="echo wheel >/dev/full || exit 1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("failed: the disk is full; make room, then run bin/up again")
    assert machine.run("bin/up").returncode == 0


# --- the way out ---------------------------------------------------------------------------------------


def test_without_a_way_to_the_packages_it_says_that_and_goes_on_when_there_is_one(
    machine: Machine, tmp_path: Path
) -> None:
    """The real pip, and an index that does not answer."""
    port = reserve()
    pip = (
        f"{sys.executable} -m pip --disable-pip-version-check --retries 0 --timeout 2 download --no-deps "
        f"--index-url http://127.0.0.1:{port}/ --dest {tmp_path / 'to'} fabric==3.2.3"
    )
    done = machine.run("bin/up", PIP_DOES=f"PATH={os.environ['PATH']} {pip}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "bin/up: Prepare .venv (Python 3.12) failed: no way to where packages are; mend the network, or name "
        "a proxy (https_proxy) or an index (PIP_INDEX_URL), then run bin/up again"
    )
    assert machine.run("bin/up").returncode == 0


def test_a_machine_that_forwards_no_packets_is_told_how(machine: Machine) -> None:
    """In a network of its own, where that can really be switched off."""
    begin = ["unshare", "--net", "--mount", "sh", "-c"]
    engine(machine, machine.checkout)
    off = "mount -t proc proc /proc && echo 0 >/proc/sys/net/ipv4/ip_forward"
    if os.geteuid() != 0 or subprocess.run([*begin, off], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and a network namespace of its own")

    def up() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*begin, f'{off} && exec "$0"', str(machine.checkout / "bin" / "up")],
            env={**machine.environment, "PATH": f"{machine.path}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = up()
    assert done.returncode == 1
    assert done.stderr == (
        "bin/up: this machine forwards no packets, so containers reach no packages: "
        "sudo sysctl -w net.ipv4.ip_forward=1\n"
    )
    assert machine.changed_nothing()
    # What an engine of another machine, or one without root, forwards is not seen here.
    for other in ({"name": "docker-desktop"}, {"security": "[name=seccomp,profile=builtin name=rootless]"}):
        engine(machine, machine.checkout, **other)
        assert up().returncode == 0


# --- the checkout --------------------------------------------------------------------------------------


def with_git(machine: Machine) -> None:
    machine.lacks("git")
    (machine.path / "git").symlink_to(GIT)


def commit(machine: Machine) -> None:
    (machine.checkout / "examples/shop").mkdir(parents=True)
    (machine.checkout / "examples/shop/deploy.yml").write_text("keep: 5\n")
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "--all"], [*who, "commit", "-q", "-m", "start"]):
        subprocess.run([GIT, "-C", str(machine.checkout), *words], check=True)


def test_an_unpacked_archive_is_told_before_anything_is_made(machine: Machine) -> None:
    with_git(machine)
    line = refused(machine)
    assert f"{machine.checkout} is no git clone with a commit" in line
    assert "git init && git add --all && git commit" in line
    commit(machine)
    assert machine.run("bin/up").returncode == 0


def test_what_needs_no_commit_works_without_git(machine: Machine) -> None:
    with_git(machine)
    assert machine.run("bin/test", "--only", "unit").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_checkout_of_another_user_is_told_with_both_ways_out(machine: Machine) -> None:
    with_git(machine)
    commit(machine)
    subprocess.run(["chown", "-R", "nobody", str(machine.checkout)], check=True)
    line = refused(machine)
    assert f"{machine.checkout} belongs to another user" in line
    assert f"git config --global --add safe.directory '{machine.checkout}'" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("what", [".venv", ".lab", "."])
def test_what_an_earlier_run_as_root_left_is_told_with_the_command(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Others may enter, as they may not where pytest keeps its files.
        Path(folder).chmod(0o755)
        machine = whole_machine(Path(folder))
        machine.has("id", 'case "$1" in -u) echo 65534 ;; -un) echo nobody ;; esac')
        (machine.path / "stat").symlink_to(shutil.which("stat") or "stat")
        machine.calls.touch()
        machine.calls.chmod(0o666)
        left = machine.checkout / what
        left.mkdir(exist_ok=True)
        for path in [machine.checkout, *machine.checkout.rglob("*")]:
            if path != left:
                shutil.chown(path, 65534)
        done = subprocess.run(
            [str(machine.checkout / "bin/up")],
            user=65534,
            extra_groups=[],
            env=machine.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"bin/up: {left} belongs to root, and nobody may not write there: ")
        assert line.endswith(f"run bin/up as root, or: sudo chown -R nobody '{left}'")


@pytest.mark.parametrize("name", ["a folder with spaces", "Bücher-日本", "quote'd", "x" * 150])
def test_a_checkout_may_be_in_any_folder(tmp_path: Path, name: str) -> None:
    machine = whole_machine(tmp_path / name)
    done = machine.run("bin/up")
    assert done.returncode == 0, done.stderr
    assert "took over: -m kestrel_stack.lab up --env lab" in done.stdout
    # The second one believes the environment that the first one made.
    assert "Prepare .venv" in done.stdout
    assert "Prepare .venv" not in machine.run("bin/up").stdout


def test_the_sockets_of_ansibles_connections_are_not_below_the_checkout(tmp_path: Path) -> None:
    """A socket's path has 107 bytes at most, and a checkout may be deep in a folder."""
    program = Path(sys.executable).with_name("ansible-config")
    done = subprocess.run(
        [str(program), "dump", "--type", "connection", "--format", "json"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = [
        option["value"]
        for plugin in json.loads(done.stdout)
        for option in plugin.get("ssh", [])
        if option["name"] == "control_path_dir"
    ]
    assert found == ["~/.ansible/cp"]


# --- terminal and locale -------------------------------------------------------------------------------

LOCALES = [{"LC_ALL": "C"}, {"LANG": "C"}, {"LC_ALL": "xx_XX.UTF-8"}, {"LANG": "de_DE.ISO-8859-1"}, {}]


@pytest.mark.parametrize(
    "settings", LOCALES, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "none"
)
def test_a_locale_that_ansible_refuses_is_not_handed_on(machine: Machine, settings: dict[str, str]) -> None:
    for name in ("locale", "printenv"):
        (machine.path / name).symlink_to(shutil.which(name) or name)
    ansible = Path(sys.executable).with_name("ansible-playbook")
    machine.has(
        "python3",
        f'case "$*" in "-m kestrel_stack.lab "*) {ansible} --version || exit ;; esac\n{WORKING_PYTHON}',
    )
    del machine.environment["LANG"]
    done = machine.run("bin/up", TERM="dumb", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "took over" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("settings", LOCALES, ids=str)
def test_fab_reads_an_inventory_in_any_locale(settings: dict[str, str], tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "LANG" and not k.startswith("LC_")}
    shutil.copytree(ROOT / "ansible/inventories/single", tmp_path / "single")
    (tmp_path / "single/containers.yml").unlink(missing_ok=True)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("fab")), "status", f"--env={tmp_path / 'single'}"],
        cwd=ROOT,
        env={**environment, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "has no address" in done.stderr, done.stderr
