"""Two queue servers and two hosts with workers, under steady load, while a test does something bad to them.

`FaultLab.under_load` starts the load, lets the test make and end its fault, and then counts: every
acknowledged job must be done, and what was done twice must be explained. What came out is a row of a table of
docs/proof.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kestrel_stack.lab import image
from support import faults_outside, proof
from support.deploy import GitApp
from support.deploy_lab import DeployLab
from support.faults_app import fault_app
from support.load import Load, Note

QUEUE_HOSTS = ("queue1", "queue2")
WORKER_HOSTS = ("worker1", "worker2")
OUTSIDE = "outside1"
"""What is not ours: no play touches it, no deploy goes there."""
PORT = 22133
DELAY = 2
"""Seconds by which some jobs of the load are delayed."""
# Few and short: a test waits for each worker to outlive supervisor's startsecs.
_EACH = {"job_timeout": 10, "retry_delays": [1, DELAY, 5, 10], "max_jobs": 100_000, "max_memory": "128MB"}
QUEUES = [
    {"name": "hello_world", "processes": 2, **_EACH},
    {"name": "hello_world_php", "language": "php", "processes": 2, **_EACH},
    {"name": "mail", "processes": 1, **_EACH},
    {"name": "partner", "processes": 1, **_EACH},
    {"name": "partner_php", "language": "php", "processes": 1, **_EACH},
]
PROCESSES = {f"shop_{queue['name']}": queue["processes"] for queue in QUEUES}
OF_A_HOST = sum(PROCESSES.values())
"""Workers on one host; each holds one job at most."""
WORKERS = OF_A_HOST * len(WORKER_HOSTS)
"""Workers of all hosts; each holds one job at most."""
SHARES = {"hello_world": 5, "hello_world_php": 4, "mail": 1}
"""Of ten jobs of a load, how many go to which queue, unless a test says otherwise."""
LANES = len(SHARES) * len(QUEUE_HOSTS)
"""Delay queues that the load uses, on all servers; a mover holds one job of each at most."""
PRODUCERS = 4
RATE = float(os.environ.get("KESTREL_STACK_FAULT_RATE") or proof.RATE)
"""Jobs a second; fewer for a machine that has not the time."""
STEP = 0.5
"""Seconds of one point of a row's series."""

INSTALL = (
    "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update"
    " && apt-get -qq install --yes nftables faketime >/dev/null"
)
CUT = """
table inet proof_cut {
    chain input { type filter hook input priority -400; iifname != "lo" drop; }
    chain output { type filter hook output priority -400; oifname != "lo" drop; }
}
"""


def flavor() -> str:
    """Return which Kestrel the lab runs, from KESTREL_ARCHIVE; a stand-in for a release is called that."""
    archive = os.environ.get("KESTREL_ARCHIVE")
    if not archive:
        return "embedded"
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archive) as found:
        if any(name.endswith("libs/standin.pyz") for name in found.namelist()):
            return "stand-in"
    return "release"


class Host:
    """One host of the lab. Commands go through the engine, not over the network, which may be cut."""

    def __init__(self, lab: FaultLab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.address = lab.addresses[name]

    def run(self, command: str, *, check: bool = True, user: str = "root") -> str:
        """Run a shell command and return what it prints."""
        return self.lab.inside(self.name, command, check=check, user=user)

    def docker(self, *words: str) -> None:
        """Do something to the container: `pause`, `unpause`, `restart --time 0`."""
        container = self.lab.container(self.name)
        done = subprocess.run(["docker", *words, container], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"docker {' '.join(words)} {self.name}: {done.stderr}"

    def cut(self) -> None:
        """Drop every packet to and from the host, as a pulled cable does; see `mend`."""
        self.run(f"echo '{CUT}' | nft -f -")

    def mend(self) -> None:
        """Let packets through again. Does nothing where none are dropped."""
        self.run("nft delete table inet proof_cut 2>/dev/null || true")

    def restart(self) -> None:
        """End every process of the host at once, and start it again."""
        self.docker("restart", "--time=0")

    def pid(self, unit: str = "kestrel") -> int:
        """Return the main process of a unit, 0 where there is none."""
        return int(self.run(f"systemctl show --property=MainPID --value {unit}"))

    def says(self, request: str) -> str | None:
        """Ask the queue server and return the first line of its answer; None: it does not answer."""
        lines = self.answers(request)
        return lines[0] if lines else None

    def answers(self, request: str) -> list[str]:
        """Ask the queue server and return the lines of its answer; none: it does not answer."""
        try:
            with socket.create_connection((self.address, PORT), timeout=2) as connection:
                connection.sendall(f"{request}\r\nquit\r\n".encode())
                with connection.makefile("rb") as lines:
                    return [line.decode().strip() for line in lines]
        except OSError:
            return []

    def serves(self) -> bool:
        """Tell whether the queue server takes items and gives them."""
        return self.says("status") == "UP"

    def journal(self, unit: str = "kestrel", *, lines: int = 1, since: float | None = None) -> str:
        """Return the last lines of a unit's journal."""
        after = f"--since=@{since:.0f}" if since is not None else ""
        return self.run(f"journalctl --unit={unit} --output=cat --no-pager --lines={lines} {after}")


class Run:
    """A load that goes on, and the fault that is made meanwhile."""

    def __init__(self, lab: FaultLab, section: str, fault: str, load: Load) -> None:
        self.lab = lab
        self.section = section
        self.name = fault
        self.load = load
        self.row: proof.Row | None = None
        """What came of it; there once the load is over."""
        self.notes: list[Note] = []
        self.began = 0.0
        self.ended = 0.0
        """When the fault began and ended; 0: it did not."""
        self._recovered = 0.0
        self._said = ""
        self._may_double = 0
        self._why: list[str] = []

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """What is inside is the fault. Where it heals itself, only what makes it belongs inside."""
        self.began = self.began or time.time()
        yield
        self.ended = time.time()

    def goes_on(self, jobs: int, seconds: float = 60) -> None:
        """Wait until so many more jobs are acknowledged."""
        before = len(self.load.acknowledged)
        self.lab.wait_until(lambda: len(self.load.acknowledged) >= before + jobs, seconds)

    def is_refused(self, tries: int = 1, seconds: float = 60) -> None:
        """Wait until so many more tries to enqueue were refused."""
        before = self.load.refused
        self.lab.wait_until(lambda: self.load.refused >= before + tries, seconds)

    def recovered(self, condition: Callable[[], object], seconds: float = 90) -> None:
        """Wait for a condition that belongs to the recovery; when it holds counts for its time."""
        self.lab.wait_until(condition, seconds)
        self._recovered = max(self._recovered, time.time())

    def said(self, text: str) -> None:
        """Note what an operator sees: a line of a log, of `status`, of kestrel-web."""
        self._said = text.strip().splitlines()[-1] if text.strip() else ""
        assert self._said, "the operator sees nothing"

    def allow_doubled(self, count: int, why: str) -> None:
        """Let so many more jobs be done twice, and say why that may be."""
        self._may_double += count
        if why not in self._why:
            self._why.append(why)

    # --- the end -----------------------------------------------------------------------------------------

    def wait_for_recovery(self, seconds: float = 120) -> None:
        """Wait, with the load going on, until what was acknowledged before the fault's end is done."""
        if self.ended:
            self.goes_on(1, seconds)
            self.lab.wait_until(lambda: not self.unfinished(), seconds)

    def unfinished(self) -> set[str]:
        """Return what was acknowledged before the fault's end and is not done, but for delayed jobs."""
        done = {note.id for note in self.lab.notes(self.load)}
        return {
            job
            for job, when in dict(self.load.acknowledged).items()
            if when <= self.ended and job not in done and job not in self.load.delayed
        }

    def recovery(self) -> float | None:
        """Return the seconds from the fault's end until jobs came in and the older ones were done."""
        if not self.ended:
            return None
        acknowledged = self.load.acknowledged
        first_after = min((when for when in acknowledged.values() if when > self.ended), default=self.ended)
        first_done: dict[str, float] = {}
        for note in self.notes:
            first_done[note.id] = min(note.done, first_done.get(note.id, note.done))
        older = [
            first_done[job]
            for job, when in acknowledged.items()
            if when <= self.ended and job in first_done and job not in self.load.delayed
        ]
        return round(max([first_after, self._recovered, self.ended, *older]) - self.ended, 2)

    def early(self) -> list[str]:
        """Return the delayed jobs that were done before they were due."""
        return [note.id for note in self.notes if note.began < self.load.delayed.get(note.id, 0.0)]

    def count(self) -> proof.Row:
        """Make the row of what happened."""
        load = self.load
        done = set(load.acknowledged) & {note.id for note in self.notes}
        doubled = load.doubled(self.notes)
        allowed = f"at most {self._may_double}: {'; '.join(self._why)}" if self._why else ""
        self.row = proof.Row(
            section=self.section,
            fault=self.name,
            flavor=flavor(),
            suite=os.environ.get("KESTREL_STACK_SUITE", image.SUITES[0]),
            enqueued=load.enqueued,
            acknowledged=len(load.acknowledged),
            refused=load.refused,
            done=len(done),
            lost=len(load.acknowledged) - len(done),
            doubled=doubled,
            recovery_seconds=self.recovery(),
            rate=load.rate,
            allowed=allowed,
            said=self._said,
            at=proof.now(),
            machine=proof.machine(),
            commit=self.lab.commit,
            series=self._series(),
        )
        return self.row

    def _series(self) -> dict:
        times = [*self.load.acknowledged.values(), *(note.done for note in self.notes)]
        first = min(times, default=0.0)
        size = int((max(times, default=0.0) - first) / STEP) + 1

        def counted(moments) -> list[int]:
            found = Counter(int((moment - first) / STEP) for moment in moments)
            return [found[index] for index in range(size)]

        seen: dict[str, float] = {}
        for note in self.notes:
            seen[note.id] = min(note.done, seen.get(note.id, note.done))
        return {
            "step": STEP,
            "acknowledged": counted(self.load.acknowledged.values()),
            "done": counted(seen.values()),
            "fault": [round(self.began - first, 2), round(self.ended - first, 2)] if self.ended else None,
        }

    def check(self) -> None:
        """Hold the row to what is promised."""
        row = self.row
        assert row is not None
        assert row.acknowledged > 0
        missing = self.load.missing(self.notes)
        assert not missing, f"{len(missing)} of {row.acknowledged} jobs are lost: {sorted(missing)[:5]}"
        said = f"{row.doubled} jobs were done twice ({row.allowed or 'none may'})"
        assert row.doubled <= self._may_double, f"{said}; the slowest enqueue took {self.load.slowest:.2f} s"
        assert not self.early(), f"{len(self.early())} delayed jobs were done before they were due"


class FaultLab(DeployLab):
    """The hosts, and the load that they are under."""

    queue_hosts = QUEUE_HOSTS
    worker_hosts = WORKER_HOSTS
    queues = QUEUES

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.inventory = self.whole
        self.broken = ""
        """Why the hosts are not to be used any more."""
        self._undo: list[Callable[[], object]] = []

    # --- making ------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the hosts, set them up and deploy, in about three minutes; what is there is used again."""
        if not self.whole.exists():
            self._write_inventory(self.whole, self.worker_hosts)
        self._up()
        if self._ready.exists() and self._ready.read_text().split("\n")[0] != flavor():
            self._site("--limit=kestrel")
            self._ready.write_text(f"{flavor()}\n{self.commit}")
        elif not self._ready.exists():
            faults_outside.install(lambda command: self.inside(OUTSIDE, command))
            commit = proof.commit()
            self._site()
            for name in (*self.queue_hosts, *self.worker_hosts):
                # What the faults are made with.
                self.inside(name, f"[ -x /usr/sbin/nft ] && [ -x /usr/bin/faketime ] || {{ {INSTALL}; }}")
            self.deployed(self.app)
            self._ready.write_text(f"{flavor()}\n{commit}")
        self.wait_for_health()

    @property
    def _ready(self) -> Path:
        """The file that says that the hosts are set up: with which flavor, from which commit."""
        return self.whole.parent / "ready"

    @property
    def commit(self) -> str:
        """The commit that the hosts were set up from, which for kept hosts may be an earlier one."""
        said = self._ready.read_text().split("\n") if self._ready.exists() else []
        return said[1] if len(said) > 1 else proof.commit()

    @functools.cached_property
    def app(self) -> GitApp:
        """The application that the hosts run."""
        folder = self.whole.parent / "app"
        shutil.rmtree(folder, ignore_errors=True)
        return fault_app(folder)

    def _variables(self) -> dict:
        dsn = faults_outside.DSN.replace("ADDRESS", f"{{{{ hostvars['{OUTSIDE}'].ansible_host }}}}")
        return {**super()._variables(), "sentry_backend": "external", "app_host_sentry_dsn": dsn}

    def _groups(self, workers: tuple[str, ...]) -> dict:
        return {**super()._groups(workers), "outside": {"hosts": {OUTSIDE: None}}}

    def again(self) -> None:
        """Make the hosts anew."""
        self.remove()
        # It went with the hosts' folder.
        self.__dict__.pop("app", None)
        self.make()
        self.broken = ""

    # --- looking -----------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Return a host by its name."""
        return Host(self, name)

    def servers(self) -> str:
        """Return the queue servers as a producer is told of them."""
        return ",".join(f"{self.addresses[name]}:{PORT}" for name in self.queue_hosts)

    def workers_running(self, *hosts: str) -> bool:
        """Tell whether every worker of the hosts (all) runs."""
        for host in hosts or self.worker_hosts:
            for group, count in PROCESSES.items():
                said = self.inside(host, f"/usr/local/sbin/kestrel-stack-workers status {group}", check=False)
                with contextlib.suppress(ValueError):
                    states = [process["state"] for process in json.loads(said)["processes"]]
                    if states == ["RUNNING"] * count:
                        continue
                return False
        return True

    def servers_up(self) -> bool:
        """Tell whether every queue server takes items and gives them."""
        return all(self.host(name).serves() for name in self.queue_hosts)

    def parked(self) -> int:
        """Return how many jobs are parked, on all servers."""
        found = 0
        for name in self.queue_hosts:
            stats = self.inside(name, f"curl -s http://{self.addresses[name]}:2223/stats.txt", check=False)
            for line in stats.splitlines():
                if line.strip().startswith("q/shop_") and "_errors/items:" in line:
                    found += int(line.split(":")[1])
        return found

    def wait_for_health(self, seconds: float = 120) -> None:
        """Wait until all servers and workers are as before any fault."""
        self.wait_until(lambda: self.servers_up() and self.workers_running(), seconds)

    # --- the load ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def under_load(
        self,
        section: str,
        fault: str,
        rate: float = RATE,
        queues: Mapping[str, int] | None = None,
        data: Mapping[str, Mapping[str, object]] | None = None,
    ) -> Iterator[Run]:
        """Let jobs come in while the body makes a fault and ends it; then count, write the row and check it.

        `queues` are the shares of the queues, `data` is what their jobs get beside what all get.
        """
        load = Load(
            self.servers(),
            "shop",
            dict(queues or SHARES),
            rate,
            producers=PRODUCERS,
            described=self.queues,
            data=data,
            delay=DELAY,
        ).start()
        run = Run(self, section, fault, load)
        settled = False
        try:
            try:
                # Nothing is measured before jobs flow.
                run.goes_on(int(rate))
                self.wait_until(lambda: self.notes(load))
                yield run
                run.wait_for_recovery()
                run.goes_on(int(rate))
            finally:
                try:
                    self.undo()
                finally:
                    run.notes = self.settle(load)
                    settled = True
            self.wait_for_health()
            run.count()
            run.check()
        except BaseException as error:
            self.broken = f"{fault}: {error}"
            # An earlier row of this fault must not stand for what failed now.
            if settled and not isinstance(error, KeyboardInterrupt):
                proof.add(dataclasses.replace(run.count(), failed=str(error) or type(error).__name__))
            raise
        proof.add(run.row)

    def finally_(self, undo: Callable[[], object]) -> None:
        """Have something undone when the load ends, whatever happens; it may have been undone already."""
        self._undo.append(undo)

    def undo(self) -> None:
        """Undo what faults have left: cut lines, frozen hosts, what `finally_` was told, deploys."""
        problems: list[Exception] = []
        for name in (*self.queue_hosts, *self.worker_hosts):
            try:
                container = self.container(name)
                subprocess.run(["docker", "unpause", container], capture_output=True, check=False)
                subprocess.run(["docker", "start", container], capture_output=True, check=False)
                self.host(name).mend()
            except Exception as error:
                problems.append(error)
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                problems.append(error)
        for fab in self.runs:
            # A deploy that a failed test has left.
            if fab.process.poll() is None:
                fab.process.terminate()
                try:
                    fab.process.wait(30)
                except subprocess.TimeoutExpired:
                    fab.process.kill()
        if problems:
            raise problems[0]

    @contextlib.contextmanager
    def cut_off(self, *names: str) -> Iterator[None]:
        """Drop every packet to and from hosts."""
        for name in names:
            self.host(name).cut()
        try:
            yield
        finally:
            for name in names:
                self.host(name).mend()


def say(text: str) -> None:
    """Say what takes time, beside pytest's own output."""
    print(text, file=sys.__stderr__, flush=True)
