"""bin/* on machines that lack things: the real scripts, with a PATH of stand-ins."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.bare_machine import WORKING_PYTHON, Machine, whole_machine

INSTALL = "apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has everything and is root."""
    return whole_machine(tmp_path)


def test_a_machine_that_has_everything_is_asked_nothing_and_goes_on(machine: Machine) -> None:
    done = machine.run("bin/up")
    assert done.returncode == 0, done.stderr
    assert "took over: -m kestrel_stack.lab up --env lab --suite bookworm" in done.stdout
    assert machine.called("apt-get") == []
    other = machine.run("bin/up", "--env=single", "--suite=trixie")
    assert "took over: -m kestrel_stack.lab up --env single --suite trixie" in other.stdout


@pytest.mark.parametrize(
    ("lacking", "package"),
    [
        ("git", "git"),
        ("ssh", "openssh-client"),
        ("ssh-keygen", "openssh-client"),
        ("stand-in-docker", "docker.io"),
    ],
)
def test_what_is_missing_is_named_with_its_command_and_nothing_is_changed(
    machine: Machine, lacking: str, package: str
) -> None:
    machine.lacks(lacking)
    done = machine.run("bin/up")
    assert done.returncode == 1
    assert f"apt-get install -y --no-install-recommends {package}" in done.stderr
    assert "--yes" in done.stderr
    assert machine.called("apt-get") == []
    assert machine.changed_nothing()


def test_everything_missing_is_named_at_once(machine: Machine) -> None:
    for name in ("python3", "git", "ssh", "stand-in-docker", "mmdebstrap"):
        machine.lacks(name)
    done = machine.run("bin/up")
    line = next(line for line in done.stderr.splitlines() if "apt-get install" in line)
    for package in ("python3 ", "python3-venv", "git", "openssh-client", "docker.io", "mmdebstrap"):
        assert package in line + " "
    assert machine.changed_nothing()


def test_yes_installs_exactly_what_is_missing(machine: Machine) -> None:
    machine.lacks("git")
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 0, done.stderr
    assert machine.called("apt-get install") == [f"{INSTALL} git"]


@pytest.mark.parametrize("lists", ["there", "made by the update"])
def test_where_the_engines_client_is_a_package_of_its_own_it_is_installed_too(
    machine: Machine, lists: str
) -> None:
    machine.lacks("stand-in-docker")
    known = machine.path / "lists"
    machine.has("apt-cache", f'[[ "$*" == "show docker-cli" && -e {known} ]]')
    machine.has("apt-get", f'[[ $1 != update ]] || : >"{known}"')
    if lists == "there":
        known.touch()
    machine.run("bin/up", "--yes")
    assert machine.called("apt-get install") == [f"{INSTALL} docker.io docker-cli"]


def test_the_tests_of_the_php_half_need_php_its_extensions_and_phpunit(machine: Machine) -> None:
    done = machine.run("bin/test", "--only", "php", "--yes")
    assert done.returncode == 0, done.stderr
    assert machine.called("apt-get install") == [f"{INSTALL} php-cli php-memcached php-sqlite3 phpunit"]


def test_the_tests_with_processes_need_what_a_deploy_may_run_as_well(machine: Machine) -> None:
    for name in ("php", "phpunit", "unzip"):
        machine.has(name)
    done = machine.run("bin/test", "--only", "processes", "--yes")
    assert done.returncode == 0, done.stderr
    assert machine.called("apt-get install") == [f"{INSTALL} composer rsync"]


def test_an_extension_alone_may_be_missing(machine: Machine) -> None:
    machine.has("phpunit")
    machine.has("php", '[[ "$*" != *sqlite3* ]]')
    assert machine.run("bin/test", "--only", "php", "--yes").returncode == 0
    assert machine.called("apt-get install") == [f"{INSTALL} php-sqlite3"]


def test_dev_needs_no_engine_and_means_the_folder_it_is_called_in(machine: Machine, tmp_path: Path) -> None:
    machine.lacks("stand-in-docker")
    machine.lacks("dockerd")
    (machine.path / "realpath").symlink_to(shutil.which("realpath") or "")
    app = tmp_path / "my app"
    app.mkdir()
    done = subprocess.run(
        [str(machine.checkout / "bin" / "dev"), "--env=./inventory", "--queues", "mail", "--fresh"],
        cwd=app,
        env=machine.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    flags = f"--app={app} --env={app}/inventory --queues=mail --fresh"
    assert f"took over: -m kestrel_stack.dev {flags}" in done.stdout
    machine.calls.unlink()
    for wrong, says in (("--wrong", "unknown argument: --wrong"), ("--port", "--port needs a value")):
        refused = machine.run("bin/dev", wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"bin/dev: {says}; see bin/dev --help\n"


def test_the_tests_in_a_browser_need_chromium_but_no_engine(machine: Machine) -> None:
    machine.lacks("dockerd")
    machine.lacks("stand-in-docker")
    done = machine.run("bin/test", "--only", "browser", "--yes")
    installed = " ".join(machine.called("apt-get install"))
    assert "chromium" in installed.split(), done.stderr
    assert "docker.io" not in installed.split()
    machine.has("chromium")
    machine.calls.unlink()
    assert machine.run("bin/test", "--only", "browser", "--yes").returncode == 0
    assert "chromium" not in " ".join(machine.called("apt-get install")).split()


@pytest.mark.parametrize("command", [("bin/up",), ("bin/test", "--only", "unit"), ("bin/test", "--list")])
def test_what_runs_no_php_here_does_not_ask_for_it(machine: Machine, command: tuple[str, ...]) -> None:
    assert machine.run(*command).returncode == 0
    assert machine.called("apt-get") == []


def test_continuous_integration_is_not_asked(machine: Machine) -> None:
    machine.lacks("git")
    assert machine.run("bin/up", CI="true").returncode == 0
    assert len(machine.called("apt-get install")) == 1


def test_a_failed_installation_shows_its_end_and_stops(machine: Machine) -> None:
    machine.lacks("git")
    machine.has("apt-get", '[[ $1 == update ]] || { echo "E: no space left on device" >&2; exit 100; }')
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 1
    assert "E: no space left on device" in done.stderr
    assert "took over" not in done.stdout
    assert not (machine.checkout / ".venv").exists()


def test_another_apt_that_runs_is_waited_for_or_named(machine: Machine) -> None:
    machine.lacks("git")
    lock = "Could not get lock /var/lib/apt/lists/lock. It is held by process 7163 (apt-get)"
    machine.has("apt-get", f'echo "E: {lock}" >&2; exit 100')
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "bin/up: Install git failed: another apt runs on this machine; let it end, then run bin/up again"
    )


def test_without_root_the_command_has_sudo(machine: Machine) -> None:
    machine.has("id", 'case "$1" in -u) echo 1000 ;; -un) echo ada ;; esac')
    machine.has("sudo")
    machine.lacks("git")
    done = machine.run("bin/up")
    assert done.returncode == 1
    assert "sudo apt-get update && sudo apt-get install -y --no-install-recommends git" in done.stderr


def test_no_docker_and_no_root_is_one_line_and_nothing_is_done(machine: Machine) -> None:
    machine.has("id", 'case "$1" in -u) echo 1000 ;; -un) echo ada ;; esac')
    machine.lacks("stand-in-docker")
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "docker.io" in done.stderr
    assert "root" in done.stderr
    assert machine.changed_nothing()


def no_engine(reason: str) -> str:
    """Return what Debian 12's client does: it tells the reason, but for info as part of what was asked."""
    told = f'echo "ERROR: {reason}"; echo "errors pretty printing info" >&2'
    return f'if [[ $1 == info ]]; then {told}; else echo "{reason}" >&2; fi; exit 1'


def test_an_engine_that_the_user_may_not_use_is_named_with_the_way_out(machine: Machine) -> None:
    machine.has("id", 'case "$1" in -u) echo 1000 ;; -un) echo ada ;; esac')
    machine.has("stand-in-docker", no_engine("permission denied while trying to connect"))
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "bin/up: user ada may not use the Docker engine: "
        "run 'sudo usermod -aG docker ada', log in again, run bin/up again"
    ]


def test_an_engine_elsewhere_that_does_not_answer_is_named(machine: Machine) -> None:
    machine.has("stand-in-docker", no_engine("Cannot connect"))
    done = machine.run("bin/up", "--yes", DOCKER_HOST="tcp://192.0.2.1:2375")
    assert done.returncode == 1
    assert "no Docker engine answers at DOCKER_HOST=tcp://192.0.2.1:2375: Cannot connect;" in done.stderr
    assert machine.changed_nothing()


def test_a_client_that_was_named_and_is_not_there_is_not_what_apt_installs(machine: Machine) -> None:
    done = machine.run("bin/up", "--yes", KESTREL_STACK_DOCKER="/opt/no/docker")
    assert done.returncode == 1
    assert done.stderr == (
        "bin/up: KESTREL_STACK_DOCKER=/opt/no/docker: there is no such program; correct or unset it\n"
    )
    assert machine.called("apt-get") == []


def test_the_bootstrap_tool_is_not_asked_for_when_the_base_can_be_pulled(machine: Machine) -> None:
    machine.lacks("mmdebstrap")
    machine.has("stand-in-docker", "[[ $1 == info || $1 == manifest ]] || exit 1")
    (machine.path / "timeout").unlink()
    machine.has("timeout", 'shift; exec "$@"')
    assert machine.run("bin/up").returncode == 0
    machine.has("stand-in-docker", "[[ $1 == info ]] || exit 1")
    done = machine.run("bin/up")
    assert done.returncode == 1
    assert "mmdebstrap" in done.stderr


def test_a_python_that_is_too_old_is_refused_by_its_version(machine: Machine) -> None:
    machine.has("python3", 'case "$*" in *version_info*) echo 3.9 ;; *) echo 3.9.2 ;; esac')
    done = machine.run("bin/up", "--yes")
    assert done.returncode == 1
    assert "found python3 3.9.2" in done.stderr
    assert machine.changed_nothing()


def test_another_python_beside_one_that_is_too_new_is_used(machine: Machine) -> None:
    shutil.move(machine.path / "python3", machine.path / "python3.12")
    machine.has("python3", 'case "$*" in *version_info*) echo 3.14 ;; *) exit 1 ;; esac')
    done = machine.run("bin/up")
    assert done.returncode == 0, done.stderr
    assert "(Python 3.12)" in done.stdout


def test_a_python_whose_venv_does_not_work_needs_its_package(machine: Machine) -> None:
    machine.has("python3", WORKING_PYTHON.replace('mkdir -p "$3/bin"', "exit 1"))
    done = machine.run("bin/up")
    assert done.returncode == 1
    assert "--no-install-recommends python3-venv" in done.stderr


def test_one_that_is_interrupted_while_it_tries_a_python_leaves_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    places = tmp_path / "temporary"
    places.mkdir()
    tries = f'case "$*" in "-m venv {places}"*) mkdir "$3"; touch {tmp_path}/tried; exec sleep 600 ;; esac\n'
    machine.has("python3", tries + WORKING_PYTHON)
    running = subprocess.Popen(
        [str(machine.checkout / "bin" / "up")],
        env={**machine.environment, "TMPDIR": str(places)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for((tmp_path / "tried").exists)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(timeout=60) != 0
    assert list(places.iterdir()) == []
    assert machine.changed_nothing()


def test_the_second_run_makes_no_environment(machine: Machine) -> None:
    machine.run("bin/up")
    first = len(machine.called("python3 -m venv"))
    assert machine.run("bin/up").returncode == 0
    assert len(machine.called("python3 -m venv")) == first


def test_only_the_pinned_set_with_hashes_is_installed_and_then_the_checkout_alone(machine: Machine) -> None:
    machine.run("bin/up")
    pip = machine.called("python3 -m pip")
    assert len(pip) == 2
    assert "--require-hashes" in pip[0]
    assert "--no-deps" in pip[0]
    assert "--no-deps --no-build-isolation" in pip[1]


def test_an_interrupted_installation_is_not_believed(machine: Machine) -> None:
    done = machine.run("bin/up", PIP_DOES="echo 'ERROR: connection broken'; exit 1")
    assert done.returncode == 1
    assert "connection broken" in done.stderr
    assert (machine.checkout / ".venv").exists()
    assert machine.run("bin/up").returncode == 0
    assert (machine.checkout / ".venv" / ".kestrel-stack-stamp").exists()


def test_a_changed_lock_makes_the_environment_anew(machine: Machine) -> None:
    machine.run("bin/up")
    (machine.checkout / ".venv" / "left-over").touch()
    (machine.checkout / "requirements" / "controller.txt").write_text("# another\n")
    assert machine.run("bin/up").returncode == 0
    assert not (machine.checkout / ".venv" / "left-over").exists()


def test_one_that_is_activated_is_made_anew_by_the_python_that_it_came_from(machine: Machine) -> None:
    machine.run("bin/up")
    environment = machine.checkout / ".venv"
    shutil.copy(environment / "bin" / "python", environment / "bin" / "python3")
    (machine.checkout / "requirements" / "controller.txt").write_text("# another\n")
    machine.calls.unlink()
    activated = f"{environment}/bin:{machine.environment['PATH']}"
    done = machine.run("bin/up", PATH=activated, VIRTUAL_ENV=str(environment))
    assert done.returncode == 0, done.stderr
    assert len(machine.called(f"python3 -m venv {environment}")) == 1


def test_a_folder_that_is_no_environment_is_never_removed(machine: Machine) -> None:
    precious = machine.checkout.parent / "precious"
    precious.mkdir()
    (precious / "thesis").touch()
    done = machine.run("bin/up", KESTREL_STACK_VENV=str(precious))
    assert done.returncode == 1
    assert "is not a virtual environment" in done.stderr
    assert (precious / "thesis").exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_environment_that_somebody_else_made_is_never_removed(machine: Machine, elsewhere: bool) -> None:
    folder = machine.checkout.parent / "theirs" if elsewhere else machine.checkout / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr\n")
    (folder / "bin" / "python").touch(mode=0o755)
    machine.lacks("git")
    more = {"KESTREL_STACK_VENV": str(folder)} if elsewhere else {}
    done = machine.run("bin/up", "--yes", **more)
    assert done.returncode == 1
    assert done.stderr == (
        f"bin/up: {folder} is a virtual environment that no bin/* of a checkout has made: "
        "move it away, or set KESTREL_STACK_VENV to another folder\n"
    )
    assert machine.called("apt-get install") == []
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "pyvenv.cfg"]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("moment", ["-m venv ", "-m pip "])
def test_one_that_was_interrupted_at_any_moment_is_made_anew(
    machine: Machine, moment: str, elsewhere: bool
) -> None:
    folder = machine.checkout.parent / "ours" if elsewhere else machine.checkout / ".venv"
    more = {"KESTREL_STACK_VENV": str(folder)} if elsewhere else {}
    works = "" if moment == "-m pip " else f'case "$*" in "-m venv {folder}") exit 1 ;; esac\n'
    for _ in range(2):
        # The second time there is something that is half-made.
        machine.has("python3", works + WORKING_PYTHON)
        assert machine.run("bin/up", PIP_DOES="exit 1", **more).returncode == 1
        assert not (folder / ".kestrel-stack-stamp").exists()
        (folder / "left-over").touch()
        (folder / ".left-over").touch()
    machine.has("python3", WORKING_PYTHON)
    assert machine.run("bin/up", **more).returncode == 0
    assert not list(folder.glob("*left-over"))
    assert (folder / ".kestrel-stack-stamp").exists()


def test_one_that_is_being_made_anew_is_not_believed_when_the_lock_is_the_old_one_again(
    machine: Machine,
) -> None:
    machine.run("bin/up")
    lock = machine.checkout / "requirements" / "controller.txt"
    before = lock.read_text()
    lock.write_text("# another\n")
    machine.has("rm", f'exec {shutil.which("rm")} -f "${{@: -1}}" 2>/dev/null')
    assert machine.run("bin/up").returncode == 1, "an rm that removes no folder"
    machine.lacks("rm")
    (machine.path / "rm").symlink_to(str(shutil.which("rm")))
    lock.write_text(before)
    made = len(machine.called("python3 -m venv"))
    assert machine.run("bin/up").returncode == 0
    assert len(machine.called("python3 -m venv")) > made


def test_two_at_once_make_one_environment(machine: Machine) -> None:
    gate = machine.checkout.parent / "gate"
    pip_does = f"touch {gate}.entered; while [[ ! -e {gate} ]]; do sleep 0.05; done"
    command = [str(machine.checkout / "bin" / "up")]
    environment = {**machine.environment, "PIP_DOES": pip_does}
    started: list[subprocess.Popen[str]] = []
    for _ in range(2):
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        if len(started) == 1:
            wait_for(Path(f"{gate}.entered").exists)
    assert started[1].stdout is not None
    waiting = started[1].stdout.readline()
    gate.touch()
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "waiting for another bin/*" in waiting
    assert len(machine.called("python3 -m venv " + str(machine.checkout))) == 1


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


@pytest.mark.parametrize(("answer", "installs"), [("y", True), ("n", False), ("", False)])
def test_on_a_terminal_the_question_is_asked_and_only_yes_installs(
    machine: Machine, answer: str, installs: bool
) -> None:
    machine.lacks("git")
    controller, terminal = pty.openpty()
    try:
        os.write(controller, f"{answer}\n".encode())
        done = subprocess.run(
            [str(machine.checkout / "bin" / "up")],
            env=machine.environment,
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    assert bool(machine.called("apt-get install")) is installs
    assert (done.returncode == 0) is installs
    if not installs:
        assert "nothing was changed" in done.stderr
        assert machine.changed_nothing()


@pytest.mark.parametrize(
    ("command", "named", "code"),
    [
        (("bin/up", "--wrong"), "--wrong", 2),
        (("bin/up", "--env"), "--env needs a value", 2),
        (("bin/up", "--env="), "--env and --suite need a value", 2),
        (("bin/up", "--env", "production"), "--env production", 1),
        (("bin/up", "--suite", "buster"), "--suite buster", 1),
        (("bin/down", "--wrong"), "--wrong", 2),
        (("bin/test", "--wrong"), "--wrong", 2),
        (("bin/test", "--only"), "--only needs a stage", 2),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_changed(
    machine: Machine, command: tuple[str, ...], named: str, code: int
) -> None:
    done = machine.run(*command)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert machine.changed_nothing()


def test_down_on_a_fresh_checkout_says_that_nothing_is_there_and_prepares_nothing(machine: Machine) -> None:
    machine.has("stand-in-docker", "[[ $1 == ps ]] || exit 1")
    done = machine.run("bin/down")
    assert (done.returncode, done.stdout) == (0, "nothing is there\n")
    assert machine.changed_nothing()


def test_an_interrupted_step_takes_what_it_started_with_it(machine: Machine) -> None:
    note = machine.checkout.parent / "pid"
    process = subprocess.Popen(
        [str(machine.checkout / "bin" / "up")],
        env={
            **machine.environment,
            "PIP_DOES": f"sleep 300 & echo $! >{note}.new; mv {note}.new {note}; wait",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell cannot trap what it inherits as ignored, as it does when the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(note.exists)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    wait_for(lambda: not Path(f"/proc/{note.read_text().strip()}").exists())
    assert machine.run("bin/up").returncode == 0
