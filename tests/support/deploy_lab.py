"""Hosts in containers, set up by site.yml, to deploy to over real SSH: a queue, two or three with workers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from kestrel_stack.lab import inventory
from support.deploy import FAB, JOBS, ROOT, GitApp
from support.load import NOTE_JOB, RATE, Load, Note, parse_notes
from support.tcp_proxy import TcpProxy

HOSTS = ("worker1", "worker2")
"""The hosts of the environment that is deployed to unless a test says otherwise."""
THREE = (*HOSTS, "worker3")
QUEUE_HOST = "queue1"
DELAYS = [2, 5, 10, 20, 30]
"""Seconds; so many tries that no job is given up while a release is about that cannot do it."""
# Few and short: a test waits for each worker to outlive supervisor's startsecs.
# A worker that has done its share and is replaced would be seen as one that is down.
_EACH = {"job_timeout": 20, "retry_delays": DELAYS, "max_jobs": 100_000}
QUEUES = [{"name": "hello_world", "processes": 2, **_EACH}, {"name": "mail", "processes": 1, **_EACH}]
PROCESSES = {"shop_hello_world": 2, "shop_mail": 1}
GROUPS = tuple(PROCESSES)
SHARES = {"hello_world": 9, "mail": 1}
"""Of ten jobs of the load, how many go to which queue."""


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
        self.times: list[float] = []
        """When each line came, in seconds since the epoch."""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self.times.append(time.time())
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

    queue_hosts: tuple[str, ...] = (QUEUE_HOST,)
    worker_hosts: tuple[str, ...] = THREE
    queues: Sequence[dict] = QUEUES
    """As in the inventory."""

    def __init__(self, folder: Path) -> None:
        self.whole = folder / "whole"
        """The inventory with every host; what the containers are made from."""
        self.inventory = folder / "pair"
        """The inventory with the first two that are deployed to."""
        self.ssh_config = Path()
        self.addresses: dict[str, str] = {}
        self.runs: list[Fab] = []
        """Every fab that was started; a test may clear it."""
        self.current_load: Load | None = None
        self.place = ""
        """How the hosts of a test stand at its end, where they are others than these."""

    # --- making and removing ---------------------------------------------------------------------------

    def make(self) -> None:
        self._write_inventory(self.whole, self.worker_hosts)
        self._up()
        self._site()
        self._write_inventory(self.inventory, HOSTS)
        shutil.copy(self.whole / "containers.yml", self.inventory)

    def _up(self) -> None:
        self._program("-m", "kestrel_stack.lab", "hosts", "up", "--inventory", str(self.whole))
        made = yaml.safe_load((self.whole / "containers.yml").read_text())["all"]
        self.ssh_config = Path(made["vars"]["deploy_ssh_config"])
        self.addresses = {name: host["ansible_host"] for name, host in made["hosts"].items()}

    def _site(self, *words: str) -> None:
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        self._checked([playbook, "-i", str(self.whole), "ansible/site.yml", *words])

    def _variables(self) -> dict:
        """What is another here than in the lab's own inventory."""
        return {
            "kestrel_stack_queues": list(self.queues),
            # The load comes from the machine that the tests run on, which is in no group.
            "kestrel_firewall_port_from": ["172.16.0.0/12"],
            # What collects errors has tests of its own.
            "sentry_backend": "none",
        }

    def _groups(self, workers: tuple[str, ...]) -> dict:
        return {
            "kestrel": {"hosts": dict.fromkeys(self.queue_hosts)},
            "consumers": {"hosts": dict.fromkeys(workers)},
            "app": {"children": {"consumers": None}},
        }

    def _write_inventory(self, folder: Path, workers: tuple[str, ...]) -> None:
        (folder / "group_vars").mkdir(parents=True)
        shared = yaml.safe_load((ROOT / "ansible/inventories/lab/group_vars/all.yml").read_text())
        (folder / "group_vars/all.yml").write_text(yaml.safe_dump({**shared, **self._variables()}))
        groups = self._groups(workers)
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}, sort_keys=False))

    def remove(self) -> None:
        self._program("-m", "kestrel_stack.lab", "hosts", "down", "--inventory", str(self.whole))
        shutil.rmtree(self.whole.parent)

    def _program(self, *words: str) -> None:
        self._checked([sys.executable, *words])

    def _checked(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"

    # --- fab -------------------------------------------------------------------------------------------

    def start(self, *words: str, env: Path | None = None, cwd: Path = ROOT) -> Fab:
        self.runs.append(Fab((*words, f"--env={env or self.inventory}"), cwd))
        return self.runs[-1]

    def fab(self, *words: str, env: Path | None = None, cwd: Path = ROOT) -> Done:
        run = self.start(*words, env=env, cwd=cwd)
        code = run.end()
        assert "Traceback" not in run.text, run.text
        return Done(code, run.text)

    def deploy(self, app: GitApp, *words: str, **kwargs) -> Done:
        return self.fab("deploy", f"--app={app.path}", *words, **kwargs)

    def deployed(self, app: GitApp, *words: str, **kwargs) -> str:
        """Deploy, expect it to go well, and return the new release."""
        done = self.deploy(app, *words, **kwargs)
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

    def inside(self, host: str, command: str, *, check: bool = True, user: str = "root") -> str:
        """Run a shell command in a host's container without SSH and sudo; return what it prints."""
        done = subprocess.run(
            ["docker", "exec", "--user", user, self.container(host), "sh", "-c", command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def container(self, host: str) -> str:
        return inventory.load(self.whole).container(host)

    @contextlib.contextmanager
    def frozen(self, host: str) -> Iterator[None]:
        """A host that stands still, as one does whose hypervisor or disk hangs."""
        subprocess.run(["docker", "pause", self.container(host)], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["docker", "unpause", self.container(host)], check=True, capture_output=True)

    @contextlib.contextmanager
    def behind_proxy(self, host: str, folder: Path, **kwargs) -> Iterator[tuple[TcpProxy, Path]]:
        """A proxy in front of a host's sshd, and an inventory that goes through it."""
        with TcpProxy(self.addresses[host], 22, **kwargs) as proxy:
            copy = folder / "proxied"
            shutil.copytree(self.inventory, copy)
            made = yaml.safe_load((copy / "containers.yml").read_text())
            made["all"]["hosts"][host].update(ansible_host=proxy.address, ansible_port=proxy.port)
            config = folder / "proxied_ssh_config"
            config.write_text(f"Host {proxy.address}\n    HostKeyAlias {host}\n{self.ssh_config.read_text()}")
            made["all"]["vars"]["deploy_ssh_config"] = str(config)
            (copy / "containers.yml").write_text(yaml.safe_dump(made))
            yield proxy, copy

    def current(self, host: str) -> str | None:
        name = self.inside(host, "readlink /srv/shop/current || true")
        return name.removeprefix("releases/") or None

    def running(self, host: str) -> dict[str, list[str | None]]:
        """The release that each running worker's process really sits in, by group."""
        found: dict[str, list[str | None]] = {}
        for group in GROUPS:
            data = json.loads(self.inside(host, f"/usr/local/sbin/kestrel-stack-workers status {group}"))
            found[group] = [p["release"] for p in data["processes"] if p["state"] == "RUNNING"]
        return found

    def assert_runs(self, release: str | None, *hosts: str) -> None:
        """Every worker of the hosts runs from the release, and current says so; None: nothing runs."""
        for host in hosts or HOSTS:
            assert self.current(host) == release, host
            expected = {group: [release] * PROCESSES[group] if release else [] for group in GROUPS}
            assert self.running(host) == expected, host

    def assert_clean(self, *hosts: str) -> None:
        """No lock and nothing half-done is left on the hosts."""
        for host in hosts or HOSTS:
            names = ("*.upload*", "*.stage", "*.partial", "deploy.lock")
            found = " -o ".join(f"-name '.{name}'" for name in names)
            left = self.inside(host, f"cd /srv/shop && find . -maxdepth 2 {found}")
            assert left == "", f"{host}: {left}"

    def wait_until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)

    def reset(self) -> None:
        """Put the hosts back to how site.yml left them: no release, no lock, workers stopped."""
        for host in self.worker_hosts:
            stop = "; ".join(f"/usr/local/sbin/kestrel-stack-workers drain {group} >&2" for group in GROUPS)
            self.on(
                host,
                f"{stop}; cd /srv/shop && rm -rf current releases/* releases/.[a-z0-9]* deploys.jsonl"
                " .deploy.lock venvs/.lock && find venvs -mindepth 1 -name .broken -delete",
            )

    def settled(self, hosts: tuple[str, ...] = HOSTS) -> str | None:
        """The release that every worker of the hosts runs from, with nothing else about; None: not so."""
        release = self.current(hosts[0])
        try:
            self.assert_runs(release, *hosts)
            for other in set(self.worker_hosts) - set(hosts):
                self.assert_runs(None, other)
            self.assert_clean(*hosts)
        except AssertionError:
            return None
        if release:
            for host in hosts:
                others = f"ls -A | grep -vxF {release}"
                self.inside(host, f"cd /srv/shop/releases && {others} | xargs -r rm -rf --")
        return release

    def assert_whole(self, *hosts: str) -> None:
        """Each host runs entirely from the release that its current names, whichever that is."""
        for host in hosts or HOSTS:
            self.assert_runs(self.current(host), host)

    def wait_for_quiet(self, *hosts: str) -> None:
        """Wait until nothing that a deploy started runs on the hosts any more."""
        for host in hosts or HOSTS:
            find = "pgrep -u deploy -f kestrel-stack-deploy || true"
            self.wait_until(lambda host=host, find=find: self.inside(host, find) == "", 150)

    @contextlib.contextmanager
    def held(self, hook: str, host: str) -> Iterator[Callable[[], None]]:
        """Let a hook (see `holding`) wait on a host; gives a function that waits until it does."""
        self.inside(host, f"rm -f /tmp/at-{hook}; touch /tmp/hold-{hook}")
        try:
            yield lambda: self.wait_until(lambda: self.inside(host, f"ls /tmp/at-{hook} || true"))
        finally:
            self.inside(host, f"rm -f /tmp/hold-{hook}")

    @contextlib.contextmanager
    def stopped_worker(self, host: str, name: str = "shop_mail_00") -> Iterator[None]:
        """A worker's process that hears nothing, TERM neither, as one that hangs in the kernel."""
        pid = self.inside(host, f"supervisorctl pid shop_mail:{name}")
        self.inside(host, f"kill -STOP {pid}")
        try:
            yield
        finally:
            self.inside(host, f"kill -CONT {pid} 2>/dev/null || true")

    # --- load ------------------------------------------------------------------------------------------

    def load(self, rate: float = RATE) -> Load:
        """Start to enqueue jobs; see `settle`."""
        return Load(f"{self.addresses[QUEUE_HOST]}:22133", "shop", SHARES, rate).start()

    def notes(self, load: Load) -> list[Note]:
        """What the workers of every host have noted of a load."""
        file = f"/srv/shop/shared/var/done-{load.run}"
        return [note for host in self.worker_hosts for note in parse_notes(self._file(host, file), host)]

    def _file(self, host: str, file: str) -> str:
        """Return what is in a host's file, "" where there is none; also of a host that is switched off."""
        container = self.container(host)
        state = subprocess.check_output(
            ["docker", "inspect", "-f", "{{.State.Running}}", container], text=True
        )
        if state.strip() == "true":
            return self.inside(host, f"cat {file} 2>/dev/null || true")
        # Without the disks that were mounted in it, which nobody has then.
        copied = subprocess.run(
            ["docker", "cp", f"{container}:{file}", "-"], capture_output=True, check=False
        )
        if copied.returncode != 0:
            return ""
        with tarfile.open(fileobj=io.BytesIO(copied.stdout)) as archive:
            found = archive.extractfile(archive.next())
            return found.read().decode() if found else ""

    def settle(self, load: Load, seconds: float = 120) -> list[Note]:
        """End a load, give its last jobs time to be done, and return all notes."""
        load.stop()
        deadline = time.monotonic() + seconds
        while load.missing(notes := self.notes(load)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for host in self.worker_hosts:
            self.inside(host, f"rm -f /srv/shop/shared/var/done-{load.run}")
        return notes

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
    held.wait(60)


def interrupt(run: Fab, number: int = signal.SIGINT) -> None:
    """Send a signal to fab alone, as a person's terminal or a service manager would."""
    os.kill(run.process.pid, number)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


@pytest.fixture(scope="session")
def made_lab(tmp_path_factory, request) -> Iterator[DeployLab]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.fail("no Docker engine answers; run bin/test, or leave these out with -m 'not docker'")
    # The folder's name is in the containers' names; pytest's own counts from 0 in every run.
    folder = tmp_path_factory.mktemp(f"deploy{os.getpid()}-", numbered=False)
    lab = DeployLab(folder)
    # Only long tests have use for a third host to deploy to; the others need not wait until it is set up.
    if not any(item.get_closest_marker("long") for item in request.session.items):
        lab.worker_hosts = HOSTS
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
    return loaded_app(tmp_path / "application")


def holding(hook: str) -> str:
    """A command for a hook of deploy.yml, which waits where `DeployLab.held` wants it to."""
    return (
        f"[ ! -e /tmp/hold-{hook} ] || {{ touch /tmp/at-{hook};"
        f" while [ -e /tmp/hold-{hook} ]; do sleep 0.1; done; rm -f /tmp/at-{hook}; }}"
    )


def loaded_app(folder: Path) -> GitApp:
    """An application that can do the jobs of a load, too."""
    app = GitApp(folder)
    app.write("shop/jobs.py", JOBS + NOTE_JOB)
    # Watching a canary is a test of its own; the others need not wait for it.
    app.write("deploy.yml", (app.path / "deploy.yml").read_text() + "roll: {soak: 0}\n")
    app.commit("jobs of a load")
    return app
