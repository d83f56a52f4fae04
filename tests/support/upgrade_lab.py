"""Hosts that an older commit of this repository has built, and what becomes of them and of their jobs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kestrel_stack.lab import inventory
from support.deploy import ROOT

NOW = ROOT / "ansible/inventories/lab/group_vars/all.yml"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
FAB = Path(sys.executable).with_name("fab")
QUEUE, WORKER, MONITOR = "queue1", "worker1", "monitor1"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
TASK = re.compile(r"^TASK \[(.*)\]")

# Runs on the consumer host with the release of the moment, whatever becomes of `current`.
STEADY = """
import os, time
from kestrel_stack.queue import Producer, QueueError
producer = Producer.from_settings("acme")
with open("/var/tmp/acknowledged", "a", buffering=1) as ids, open("/var/tmp/refused", "a", buffering=1) as no:
    while os.path.exists("/var/tmp/go"):
        try:
            ids.write(producer.enqueue("HelloWorld", {"name": "Ada"}, queue="hello_world") + "\\n")
        except QueueError as exc:
            no.write(f"{type(exc).__name__}\\n")
            producer = Producer.from_settings("acme")
            time.sleep(0.1)
        time.sleep(0.05)
"""
LEDGER = """
import sqlite3
for row in sqlite3.connect("/srv/shop/shared/var/ledger.sqlite").execute("SELECT id, again FROM done"):
    print(*row)
"""
ITEMS = """
import json, socket, sys
with socket.create_connection((sys.argv[1], 22133), 10) as server:
    server.sendall(b"STATS\\r\\n")
    text = b""
    while not text.endswith(b"END\\r\\n"):
        text += server.recv(65536)
words = [line.split() for line in text.decode().splitlines()]
found = {word[1]: word[2] for word in words if len(word) == 3}
wanted = [name for name in found if name.startswith("queue_") and name.endswith("_items")]
print(json.dumps({name[6:-6]: int(found[name]) for name in wanted if not name.endswith("_mem_items")}))
"""


@dataclass(frozen=True)
class Milestone:
    """The last commit of a piece of work, and what it knew of."""

    name: str
    commit: str
    monitor: bool = False
    """Whether it has the group kestrel_web."""
    pages: bool = False
    """Whether it has the group web."""
    delays: bool = False
    """Whether jobs can be enqueued for later."""
    bugsink: bool = False


MILESTONES = [
    Milestone("first stack", "2eed355"),
    Milestone("kestrel", "96dda50"),
    Milestone("jobs", "fe5a3f6", delays=True),
    Milestone("deploy", "d8a70cc", delays=True, pages=True),
    Milestone("kestrel-web", "478ac25", delays=True, pages=True, monitor=True),
    Milestone("sentry", "111e817", delays=True, pages=True, monitor=True, bugsink=True),
]


def has_commit(commit: str) -> bool:
    """Tell whether this clone has a commit; one that CI makes has often the last alone."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def variables_of(path: Path) -> dict:
    """The variables of a file of group_vars."""
    return yaml.safe_load(path.read_text())


def groups(*, pages: bool = False, monitor: bool = False, bugsink: bool = False) -> dict:
    """Return an inventory's hosts.yml: a queue, a worker, and a monitor where there is one."""
    children = {
        "kestrel": {"hosts": {QUEUE: None}},
        "consumers": {"hosts": {WORKER: None}},
        "web": {"hosts": {WORKER: None} if pages else {}},
        "kestrel_web": {"hosts": {MONITOR: None} if monitor else {}},
        "sentry": {"hosts": {MONITOR: None} if bugsink else {}},
        "app": {"children": {"consumers": None, "web": None}},
    }
    return {"all": {"children": children}}


@dataclass
class Play:
    """A run of ansible-playbook that has ended."""

    code: int
    text: str
    tasks: list[str] = field(default_factory=list)

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """What the last lines say of each host."""
        names = ("ok", "changed", "unreachable", "failed")
        return {
            m[1]: dict(zip(names, map(int, m.groups()[1:]), strict=True)) for m in RECAP.finditer(self.text)
        }

    def assert_done(self) -> Play:
        assert self.code == 0, self.text[-6000:]
        return self

    def assert_unchanged(self) -> Play:
        self.assert_done()
        changed = {host: row["changed"] for host, row in self.recap.items() if row["changed"]}
        assert self.recap
        assert not changed, "\n".join(re.findall(r"^TASK.*|^changed:.*", self.text, re.MULTILINE))
        return self


class UpgradeLab:
    """At most three hosts, and two checkouts that work on them: an older one and this one."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.old = folder / "old"
        self.say = say

    # --- making and removing ---------------------------------------------------------------------------

    def checkout(self, commit: str) -> None:
        """Have the older commit as a checkout of its own."""
        if self.old.exists():
            return
        git = ["git", "-c", "advice.detachedHead=false", "-c", "safe.directory=*"]
        subprocess.run(
            [*git, "clone", "-q", "--shared", "--no-checkout", str(ROOT), str(self.old)], check=True
        )
        subprocess.run([*git, "-C", str(self.old), "checkout", "-q", commit], check=True)

    def write_inventory(self, hosts: Mapping, variables: Mapping) -> None:
        """Write hosts.yml and group_vars; where the containers are is kept."""
        (self.inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts, sort_keys=False))
        (self.inventory / "group_vars/all.yml").write_text(yaml.safe_dump(dict(variables), sort_keys=False))

    def old_variables(self) -> dict:
        """The variables of the older checkout's lab."""
        return variables_of(self.old / "ansible/inventories/lab/group_vars/all.yml")

    def up(self, suite: str = "bookworm") -> None:
        """Make the containers."""
        self._lab("up", "--inventory", str(self.inventory), "--suite", suite)

    def remove(self) -> None:
        """Remove the containers; the folder stays for who looks at what happened."""
        self._lab("down", "--inventory", str(self.inventory))
        shutil.rmtree(self.old, ignore_errors=True)

    @contextlib.contextmanager
    def as_the_old_lab_says_it(self) -> Iterator[None]:
        """Without what the older lab did not write into containers.yml: its roles refuse the unknown."""
        path = self.inventory / "containers.yml"
        now = path.read_text()
        made = yaml.safe_load(now)
        wrote = (self.old / "src/kestrel_stack/lab/inventory.py").read_text()
        for name in [name for name in made["all"]["vars"] if f'"{name}"' not in wrote]:
            del made["all"]["vars"][name]
        path.write_text(yaml.safe_dump(made))
        try:
            yield
        finally:
            path.write_text(now)

    def _lab(self, action: str, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "kestrel_stack.lab", "hosts", action, *words],
            cwd=ROOT,
            env=self._environment(ROOT),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=580,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _environment(self, checkout: Path) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(checkout / "src"),
            "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_FORCE_COLOR": "0",
        }

    # --- what is run on the hosts ------------------------------------------------------------------------

    def play(
        self, checkout: Path = ROOT, *words: str, at_task: Callable[[int, str], str | None] | None = None
    ) -> Play:
        """Run site.yml; `at_task` is told of each task as it begins and may say "kill"."""
        started = time.monotonic()
        process = subprocess.Popen(
            [str(PLAYBOOK), "-i", str(self.inventory), "ansible/site.yml", *words],
            cwd=checkout,
            env=self._environment(checkout),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: list[str] = []
        tasks: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if found := TASK.match(line):
                tasks.append(found[1])
                if at_task and at_task(len(tasks), found[1]) == "kill":
                    self._kill(process)
        code = process.wait(60)
        process.stdout.close()
        seconds = time.monotonic() - started
        self.say(f"site.yml of {checkout.name}: exit {code}, {len(tasks)} tasks, {seconds:.0f} s")
        return Play(code, "".join(lines), tasks)

    def _kill(self, process: subprocess.Popen[str]) -> None:
        """End a playbook as a power cut of the controller does: with all it started, its ssh as well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # Kept connections are in sessions of their own; they are known by this lab's file.
        mark = str(inventory.load(self.inventory).ssh_config).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes() and path.read_bytes().startswith(
                    (b"ssh\0", b"ssh:", b"/usr/bin/ssh")
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def fab(self, checkout: Path, *words: str) -> str:
        """Run fab of a checkout on these hosts, expect it to go well, and return what it said."""
        started = time.monotonic()
        done = subprocess.run(
            [str(FAB), *words, f"--env={self.inventory}"],
            cwd=checkout,
            env=self._environment(checkout),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=580,
            check=False,
        )
        self.say(
            f"fab {words[0]} of {checkout.name}: exit {done.returncode}, {time.monotonic() - started:.0f} s"
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def inside(self, host: str, command: str, *, check: bool = True, stdin: str = "") -> str:
        """Run a shell command as root in a host's container; return what it prints."""
        done = subprocess.run(
            ["docker", "exec", "-i", self.container(host), "sh", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def container(self, host: str) -> str:
        return inventory.load(self.inventory).container(host)

    def address(self, host: str) -> str:
        made = yaml.safe_load((self.inventory / "containers.yml").read_text())["all"]
        return made["hosts"][host]["ansible_host"]

    def cut_power(self, host: str) -> None:
        subprocess.run(["docker", "kill", self.container(host)], check=True, capture_output=True)

    # --- jobs --------------------------------------------------------------------------------------------

    def in_release(self, script: str, *words: str) -> str:
        """Run Python of the present release on the worker's host, as who deploys."""
        arguments = " ".join(f"'{word}'" for word in words)
        return self.inside(
            WORKER,
            f"cd -P /srv/shop/current && exec sudo -u deploy venv/bin/python - {arguments}",
            stdin=script,
        )

    def enqueue(
        self, job: str, count: int, *, queue: str, data: Mapping | None = None, delay: int = 0
    ) -> set[str]:
        """Enqueue with the producer of the present release; return the ids."""
        script = (
            "import json, sys\nfrom kestrel_stack.queue import Producer\n"
            "job, count, queue, data, delay = sys.argv[1:]\n"
            "more = {'delay': int(delay)} if delay != '0' else {}\n"
            "p = Producer.from_settings('acme')\n"
            "for _ in range(int(count)):\n    print(p.enqueue(job, json.loads(data), queue=queue, **more))\n"
        )
        said = self.in_release(
            script, job, str(count), queue, json.dumps(data or {"name": "Ada"}), str(delay)
        )
        return set(said.split())

    @contextlib.contextmanager
    def steady(self) -> Iterator[Callable[[], tuple[set[str], int]]]:
        """Up to twenty jobs a second from the worker's host.

        The function says which were acknowledged so far, and how often one was refused.
        """
        self.inside(WORKER, "rm -f /var/tmp/acknowledged /var/tmp/refused; touch /var/tmp/go")
        self.inside(WORKER, "install -m 644 /dev/stdin /var/tmp/steady.py", stdin=STEADY)
        self.inside(
            WORKER,
            "cd -P /srv/shop/current && sudo -u deploy setsid venv/bin/python /var/tmp/steady.py"
            " </dev/null >/var/tmp/steady.log 2>&1 & sleep 0",
        )

        def found() -> tuple[set[str], int]:
            ids = self.inside(WORKER, "cat /var/tmp/acknowledged 2>/dev/null || true").split()
            refused = self.inside(WORKER, "cat /var/tmp/refused 2>/dev/null || true").split()
            return set(ids), len(refused)

        try:
            yield found
        finally:
            self.inside(WORKER, "rm -f /var/tmp/go", check=False)

    def steady_ended(self) -> bool:
        return self.inside(WORKER, "pgrep -f /var/tmp/stead[y].py || true") == ""

    def done(self) -> dict[str, int]:
        """The ids in the shop's ledger, each with how often it was delivered again."""
        rows = self.inside(WORKER, "python3 -", stdin=LEDGER).splitlines()
        return {row.split()[0]: int(row.split()[1]) for row in rows}

    def items(self) -> dict[str, int]:
        """The items of each queue, by its name on the server."""
        return json.loads(self.inside(WORKER, f"python3 - {self.address(QUEUE)}", stdin=ITEMS))

    def programs(self) -> dict[str, str]:
        """Every program of supervisor and its state."""
        rows = [line.split() for line in self.inside(WORKER, "supervisorctl status || true").splitlines()]
        return {row[0]: row[1] for row in rows if len(row) > 1}

    def releases_running(self) -> dict[str, set[str | None]]:
        """By group of workers, the releases that their running processes sit in."""
        found = {}
        groups = {name.split(":")[0] for name in self.programs()}
        # These two are the roles' own and run from no release.
        for group in groups - {"shop_mover", "shop_alarm"}:
            answer = self.inside(WORKER, f"/usr/local/sbin/kestrel-stack-workers status {group}", check=False)
            with contextlib.suppress(ValueError, KeyError):
                processes = json.loads(answer)["processes"]
                found[group] = {p["release"] if p["state"] == "RUNNING" else None for p in processes}
        return found

    def current(self) -> str:
        return self.inside(WORKER, "basename $(readlink /srv/shop/current)")

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (
                f"waited {seconds:.0f} s in vain until {what}\n{self.evidence()}"
            )
            time.sleep(0.3)

    def evidence(self) -> str:
        """How the worker's host stands, for who reads of a failure."""
        look = (
            "supervisorctl status; cat /var/tmp/steady.log; wc -l /var/tmp/acknowledged /var/tmp/refused;"
            " sort /var/tmp/refused | uniq -c; tail -n 6 /var/log/kestrel-stack/*/*.log /var/log/*/shop*.log;"
            " cat /etc/kestrel-stack/shop.json"
        )
        return f"{self.items()}\n{self.inside(WORKER, f'{{ {look}; }} 2>&1 | cut -c1-400', check=False)}"
