"""How long ``ansible-playbook site.yml`` takes: ``python bench/site.py`` (needs Docker).

    bench/site.py --hosts 1,4 --runs 3 --json

The same playbook on the same hosts, in turns: with this repository's ansible.cfg, and with the settings that
Ansible comes with (no pipelining, 5 forks, the linear strategy, its own SSH connections). A first run has
hosts of its own, made anew; a run with nothing to change is refused as a measurement if it changed something.

    hosts   what they are
    1       everything on one host
    4       queue1, worker1, worker2, web1 (pages and kestrel-web)
    10      queue1, queue2, worker1 to worker6, web1 (pages and kestrel-web), web2 (pages)

Errors are in the workers' logs only (sentry_backend: none), so that the three differ by their hosts alone.
Hosts are containers; they and what was written for them are removed at the end, also on Ctrl-C. Progress goes
to stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

import yaml

from kestrel_stack.lab import programs
from lib.common import ROOT, about, at_least, conditions, numbers, parser, say

OURS, PLAIN = "kestrel-stack", "plain Ansible settings"
FIRST, AGAIN = "first", "no change"
SIZES = {
    1: {"stack1": ("kestrel", "consumers", "web", "kestrel_web")},
    4: {
        "queue1": ("kestrel",),
        "worker1": ("consumers",),
        "worker2": ("consumers",),
        "web1": ("web", "kestrel_web"),
    },
    10: {
        **{f"queue{number}": ("kestrel",) for number in (1, 2)},
        **{f"worker{number}": ("consumers",) for number in range(1, 7)},
        "web1": ("web", "kestrel_web"),
        "web2": ("web",),
    },
}
"""How many hosts there are: their names, and the groups of each."""
DEADLINE_S = 3600
"""After this many seconds a run is ended."""
PLAIN_CFG = """[defaults]
interpreter_python = /usr/bin/python3
host_key_checking = True
retry_files_enabled = False
"""
"""What has nothing to do with speed."""
RECAP = re.compile(r"^\S+\s+: (ok=.*)$", re.MULTILINE)


class Hosts:
    """Containers for one inventory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.folder = ROOT / ".lab" / f"bench-site-{count}"
        groups: dict[str, dict] = {}
        for host, names in SIZES[count].items():
            for name in names:
                groups.setdefault(name, {"hosts": {}})["hosts"][host] = None
        groups["app"] = {"children": {"consumers": None, "web": None}}
        (self.folder / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
        lab = yaml.safe_load((ROOT / "ansible/inventories/lab/group_vars/all.yml").read_text())
        lab["sentry_backend"] = "none"
        (self.folder / "group_vars/all.yml").write_text(yaml.safe_dump(lab))
        (self.folder / "plain.cfg").write_text(PLAIN_CFG)

    def make_anew(self) -> None:
        """Replace the containers by fresh ones."""
        say(f"  {self.count} hosts: made anew")
        self._lab("up", "--recreate")

    def remove(self) -> None:
        """Take away the containers and what was written for them."""
        if self.folder.is_dir():
            self._lab("down")
            shutil.rmtree(self.folder)

    def _lab(self, *words: str) -> None:
        lab = [sys.executable, "-m", "kestrel_stack.lab", "hosts", *words, "--inventory", str(self.folder)]
        _run(lab, os.environ)

    def site(self, contender: str, what: str) -> tuple[float, int]:
        """Run the playbook; return its seconds, and how many tasks it ran, each host's counted."""
        config = ROOT / "ansible.cfg" if contender == OURS else self.folder / "plain.cfg"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_CONFIG": str(config),
            "ANSIBLE_NOCOLOR": "1",
        }
        began = time.monotonic()
        said = _run(
            [programs.tool("ansible-playbook"), "-i", str(self.folder), "ansible/site.yml"], environment
        )
        seconds = time.monotonic() - began
        recaps = [
            {key: int(value) for key, value in (word.split("=") for word in found.split())}
            for found in RECAP.findall(said)
        ]
        changed = sum(recap["changed"] for recap in recaps)
        if len(recaps) != self.count:
            raise SystemExit(
                f"{what} on {self.count} hosts: {len(recaps)} hosts in its recap:\n{said[-2000:]}"
            )
        if what == AGAIN and changed:
            raise SystemExit(f"a run with nothing to change on {self.count} hosts changed {changed}:\n{said}")
        tasks = sum(recap["ok"] + recap["skipped"] for recap in recaps)
        done = f"{tasks} tasks, {changed} changed"
        say(f"  {self.count:>2} hosts, {what:<9}  {contender:<23} {seconds:7.1f} s  {done}")
        return seconds, tasks


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a program to its end and return what it printed; end with its last lines if it fails."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=DEADLINE_S)[0]
    except BaseException:
        programs.end(process)
        raise
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed ({process.returncode}):\n" + "\n".join(said.splitlines()[-30:])
        )
    return said


def measure(count: int, runs: int, first_runs: int) -> tuple[list[list], list[list]]:
    """Return each contender's seconds on so many hosts, and its seconds for one task on one host."""
    seconds: dict[tuple[str, str], list[float]] = {}
    per_task: dict[tuple[str, str], list[float]] = {}

    def note(contender: str, what: str) -> None:
        took, tasks = hosts.site(contender, what)
        seconds.setdefault((what, contender), []).append(took)
        per_task.setdefault((what, contender), []).append(took / tasks)

    hosts = Hosts(count)
    try:
        if not first_runs:
            hosts.make_anew()
            hosts.site(OURS, FIRST)
        for _ in range(first_runs):
            for contender in (PLAIN, OURS):
                hosts.make_anew()
                note(contender, FIRST)
        for number in range(runs):
            for contender in (OURS, PLAIN) if number % 2 else (PLAIN, OURS):
                note(contender, AGAIN)
    finally:
        hosts.remove()
    return (
        [[count, what, contender, found] for (what, contender), found in seconds.items()],
        [
            [f"{contender}, {what}", count, statistics.median(found)]
            for (what, contender), found in per_task.items()
        ],
    )


def main() -> int:
    """Measure what was asked for, and print it."""
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--hosts", type=numbers, default=sorted(SIZES), metavar="N,…", help="of 1, 4 and 10 (default: all)"
    )
    arguments.add_argument(
        "--first-runs",
        type=at_least(0),
        default=1,
        metavar="N",
        help="first runs of each, on hosts made anew (default: 1; 0: unmeasured)",
    )
    given = arguments.parse_args()
    if unknown := [count for count in given.hosts if count not in SIZES]:
        arguments.error(f"--hosts {unknown[0]}: there are {', '.join(map(str, SIZES))}")
    programs.interrupts_on_term()
    found = conditions(
        ansible=_version("ansible-core"), mitogen=_version("mitogen"), first_runs=given.first_runs
    )
    seconds: list[list] = []
    per_task: list[list] = []
    try:
        for count in given.hosts:
            more = measure(count, given.runs, given.first_runs)
            seconds += more[0]
            per_task += more[1]
    except KeyboardInterrupt:
        say("interrupted; its hosts are removed")
        return 130
    if given.json:
        print(json.dumps({"conditions": found, "seconds": seconds, "per task": per_task}, indent=1))
    else:
        show(found, seconds, per_task)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def show(found: dict[str, object], seconds: list[list], per_task: list[list]) -> None:
    """Print a table: medians, and how many times faster."""
    print(f"{about(found)}, ansible-core {found['ansible']}, mitogen {found['mitogen']}\n")
    medians = {(count, what, name): statistics.median(runs) for count, what, name, runs in seconds}
    tasks = {(count, name): value for name, count, value in per_task}
    print(f"{'hosts':>5}  {'run':<9}  {OURS:>14}  {PLAIN:>22}  {'ratio':>5}   ms for a task on a host, each")
    for count, what in dict.fromkeys((count, what) for count, what, _ in medians):
        ours, plain = (medians[count, what, name] for name in (OURS, PLAIN))
        each = " and ".join(f"{1000 * tasks[count, f'{name}, {what}']:.0f}" for name in (OURS, PLAIN))
        print(f"{count:>5}  {what:<9}  {ours:>12.1f} s  {plain:>20.1f} s  {plain / ours:>5.1f}   {each}")


if __name__ == "__main__":
    sys.exit(main())
