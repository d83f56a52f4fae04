"""Two hosts in containers, set up by site.yml, to deploy to over real SSH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.deploy import FAB, ROOT, GitApp

HOSTS = ("worker1", "worker2")
# Few and short: a test waits for each worker to outlive supervisor's startsecs.
QUEUES = [{"name": "hello_world", "job_timeout": 20}, {"name": "mail", "job_timeout": 20}]
GROUPS = ("shop_hello_world", "shop_mail")


class Fab:
    """A running fab, whose lines are read as they come."""

    def __init__(self, words: tuple[str, ...], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [str(FAB), *words],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, *words: str, seconds: float = 120) -> None:
        """Wait for a line that has all these words in it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not any(all(word in line for word in words) for line in self.lines):
                left = deadline - time.monotonic()
                assert left > 0, f"no line with {words}:\n{self.text}"
                assert self._reader.is_alive(), f"ended without a line with {words}:\n{self.text}"
                self._changed.wait(min(left, 1))

    def end(self, seconds: float = 180) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(seconds)
        self._reader.join()
        self.process.stdout.close()
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Done:
    """A fab that has ended."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text


class DeployLab:
    """The hosts, and what a test does to them."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder
        self.ssh_config = Path()

    # --- making and removing ---------------------------------------------------------------------------

    def make(self) -> None:
        (self.inventory / "group_vars").mkdir(parents=True)
        shared = yaml.safe_load((ROOT / "ansible/inventories/lab/group_vars/all.yml").read_text())
        (self.inventory / "group_vars/all.yml").write_text(
            yaml.safe_dump({**shared, "kestrel_stack_queues": QUEUES})
        )
        groups = {
            "kestrel": {"hosts": {"worker1": None}},
            "consumers": {"hosts": dict.fromkeys(HOSTS)},
            "app": {"children": {"consumers": None}},
        }
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
        self._program("-m", "kestrel_stack.lab", "hosts", "up", "--inventory", str(self.inventory))
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        self._checked([playbook, "-i", str(self.inventory), "ansible/site.yml"])
        made = yaml.safe_load((self.inventory / "containers.yml").read_text())
        self.ssh_config = Path(made["all"]["vars"]["deploy_ssh_config"])

    def remove(self) -> None:
        self._program("-m", "kestrel_stack.lab", "hosts", "down", "--inventory", str(self.inventory))
        shutil.rmtree(self.inventory)

    def _program(self, *words: str) -> None:
        self._checked([sys.executable, *words])

    def _checked(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=580,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"

    # --- fab -------------------------------------------------------------------------------------------

    def start(self, *words: str, env: Path | None = None, cwd: Path = ROOT) -> Fab:
        return Fab((*words, f"--env={env or self.inventory}"), cwd)

    def fab(self, *words: str, env: Path | None = None, cwd: Path = ROOT) -> Done:
        run = self.start(*words, env=env, cwd=cwd)
        code = run.end()
        assert "Traceback" not in run.text, run.text
        return Done(code, run.text)

    def deploy(self, app: GitApp, *words: str, **kwargs) -> Done:
        return self.fab("deploy", f"--app={app.path}", *words, **kwargs)

    def deployed(self, app: GitApp, *words: str) -> str:
        """Deploy, expect it to go well, and return the new release."""
        done = self.deploy(app, *words)
        assert done.code == 0, done.text
        return self.current(HOSTS[-1])

    # --- looking ---------------------------------------------------------------------------------------

    def on(self, host: str, command: str, *, check: bool = True) -> str:
        """Run a shell command on a host, as root, over SSH; return what it prints."""
        done = subprocess.run(
            ["ssh", "-F", str(self.ssh_config), host, f"sudo sh -c {_quoted(command)}"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def current(self, host: str) -> str | None:
        name = self.on(host, "readlink /srv/shop/current || true")
        return name.removeprefix("releases/") or None

    def running(self, host: str) -> dict[str, list[str | None]]:
        """The release that each running worker's process really sits in, by group."""
        found: dict[str, list[str | None]] = {}
        for group in GROUPS:
            data = json.loads(self.on(host, f"/usr/local/sbin/kestrel-stack-workers status {group}"))
            found[group] = [p["release"] for p in data["processes"] if p["state"] == "RUNNING"]
        return found

    def assert_runs(self, release: str | None, *hosts: str) -> None:
        """Every worker of the hosts runs from the release, and current says so; None: nothing runs."""
        for host in hosts or HOSTS:
            assert self.current(host) == release, host
            assert self.running(host) == {group: [release] if release else [] for group in GROUPS}, host

    def assert_clean(self, *hosts: str) -> None:
        """No lock and nothing half-done is left on the hosts."""
        for host in hosts or HOSTS:
            left = self.on(host, "cd /srv/shop && find . -maxdepth 2 -name '.*.upload*' -o -name '.*.stage'"
                                 " -o -name '.*.partial' -o -name .deploy.lock")  # fmt: skip
            assert left == "", f"{host}: {left}"

    def wait_until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)

    def reset(self) -> None:
        """Put the hosts back to how site.yml left them: no release, no lock, workers stopped."""
        for host in HOSTS:
            stop = "; ".join(f"/usr/local/sbin/kestrel-stack-workers drain {group} >&2" for group in GROUPS)
            self.on(
                host,
                f"{stop}; cd /srv/shop && rm -rf current releases/* releases/.[a-z0-9]* deploys.jsonl"
                " .deploy.lock venvs/.lock && find venvs -mindepth 1 -name .broken -delete",
            )

    def settled(self) -> str | None:
        """The release that every worker of every host runs from, with nothing else about; None: not so."""
        release = self.current(HOSTS[0])
        try:
            self.assert_runs(release)
            self.assert_clean()
        except AssertionError:
            return None
        if release:
            for host in HOSTS:
                self.on(host, f"cd /srv/shop/releases && ls -A | grep -vxF {release} | xargs -r rm -rf --")
        return release

    def hold_venvs(self, host: str) -> subprocess.Popen[str]:
        """Take the lock that a venv is built under, so that `prepare` waits on this host until it ends."""
        held = subprocess.Popen(
            ["ssh", "-F", str(self.ssh_config), host,
             "sudo -u deploy flock /srv/shop/venvs/.lock sh -c 'echo held; read _'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert held.stdout.readline() == "held\n"
        return held


def let_go(held: subprocess.Popen[str]) -> None:
    held.stdin.close()
    held.stdout.close()
    held.wait(20)


def interrupt(run: Fab, number: int = signal.SIGINT) -> None:
    """Send a signal to fab alone, as a person's terminal or a service manager would."""
    os.kill(run.process.pid, number)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


@pytest.fixture(scope="session")
def made_lab(tmp_path_factory) -> Iterator[DeployLab]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.fail("no Docker engine answers; run bin/test, or leave these out with -m 'not docker'")
    # The folder's name is in the containers' names; pytest's own counts from 0 in every run.
    folder = tmp_path_factory.mktemp(f"deploy{os.getpid()}-", numbered=False)
    lab = DeployLab(folder)
    try:
        lab.make()
        yield lab
    finally:
        lab.remove()


@pytest.fixture
def lab(made_lab: DeployLab) -> DeployLab:
    made_lab.reset()
    return made_lab


@pytest.fixture
def app(tmp_path: Path) -> GitApp:
    return GitApp(tmp_path / "application")
