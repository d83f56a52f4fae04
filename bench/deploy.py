"""A deploy's time beside Capistrano, pyinfra and plain Fabric in the same run: ``python bench/deploy.py``.

    bench/deploy.py --hosts 2,4,10 --delay 0,50       # all of it; needs Docker and Capistrano
    bench/deploy.py --hosts 2 --delay 0 --only fab,fabric --runs 1

Containers are the hosts, made by site.yml; the same application (200 files, 5 MB, one commit more before each
deploy that changes a file) goes to all of them with each tool, in turns. The delay is added each way by a TCP
proxy before each sshd. Cases:

    nothing    the same commit once more (forced where the tool would see that there is nothing to do)
    one file   a commit that changes one file
    workers    one file, and each host's workers are drained and started (``fab deploy`` verifies, too)

The peers fetch from a mirror of the repository on the host itself, which costs them no time on the network;
ours sends from this machine. ``fab deploy`` runs with ``--batch=100%`` and no canary, as the others do it;
``host by host`` is how it runs by default, but for the time that a canary is watched. Capistrano (Debian's
package) runs its default flow with its git plug-in; pyinfra five operations; plain Fabric nine calls of
ThreadingGroup.run without any check. Every run begins with a new process and new connections. The tables have
medians; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lib.common import ROOT, about, chosen, conditions, needs, numbers, parser, say

PEERS_ENVIRONMENT = ROOT / ".build" / "bench-pyinfra"
PYINFRA = "pyinfra==3.10.0"
FILES = 200
BYTES = 5_000_000
CASES = ("nothing", "one file", "workers")
QUEUE = "noop"
GROUP = f"bench_{QUEUE}"
HELPER = "/usr/local/sbin/kestrel-stack-workers"
PEER_ROOT = "/srv/peer"
"""Where the peers deploy to, one folder for each."""
RUN_SECONDS = 300

JOBS = """
from kestrel_stack.consumer import Registry

registry = Registry()
"""


def run(command: list[str], *, cwd: Path = ROOT, what: str = "", **kwargs) -> str:
    """Run a program to its end and return what it printed; end the bench with its last words if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        **kwargs,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise SystemExit(f"{what or command[0]} ended with {done.returncode}:\n{last}")
    return done.stdout


def program(name: str) -> str:
    """Return a program beside this Python."""
    return str(Path(sys.executable).with_name(name))


# --- the application ---------------------------------------------------------------------------------------


class Application:
    """A repository with FILES files of BYTES in all, and a commit more when it is asked for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changes = 0
        filling = random.Random(1)
        each = BYTES // FILES
        for number in range(FILES):
            path = folder / f"lib{number % 10}" / f"module_{number:03}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(filling.randbytes(each))
        (folder / "shop").mkdir()
        (folder / "shop" / "__init__.py").write_text("")
        (folder / "shop" / "jobs.py").write_text(JOBS)
        (folder / "deploy.yml").write_text("keep: 5\n")
        self.git("init", "-q", "-b", "main")
        self.change()

    def git(self, *words: str) -> str:
        names = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "bench")
        mails = dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "bench@example.com")
        return run(["git", *words], cwd=self.folder, env={**os.environ, **names, **mails}).strip()

    def change(self) -> None:
        """Make a commit that changes one file."""
        self.changes += 1
        (self.folder / "shop" / "version.py").write_text(f"VERSION = {self.changes}\n")
        self.git("add", "-A")
        self.git("commit", "-qm", f"change {self.changes}")


# --- hosts -------------------------------------------------------------------------------------------------


class DelayingProxy:
    """A TCP proxy on loopback that holds everything back for a while, in both directions."""

    def __init__(self, target: str, delay: float) -> None:
        self._target = target
        self._delay = delay
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        server.close()
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The three-way handshake of TCP itself takes a round trip, too.
        await asyncio.sleep(2 * self._delay)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target, 22)
        except OSError:
            writer.close()
            return
        # Ended from outside when the part of the run is over; asyncio would tell of it otherwise.
        with contextlib.suppress(asyncio.CancelledError):
            pumps = self._pump(reader, far_writer), self._pump(far_reader, writer)
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes, each piece as much later as the delay says, in order and without a limit."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due, data = await pieces.get()
                    await asyncio.sleep(max(0.0, due - self._loop.time()))
                    if not data:
                        break
                    writer.write(data)
                    await writer.drain()
            with contextlib.suppress(OSError):
                writer.close()

        task = asyncio.ensure_future(deliver())
        data = b"-"
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            pieces.put_nowait((self._loop.time() + self._delay, data))
        await task

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class Fleet:
    """Containers that are hosts, set up by site.yml, and the ways to them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.names = [f"bench{number}" for number in range(1, count + 1)]
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        self.folder = folder
        self._write(self.inventory, consumers=True)
        self._lab("up")
        self.made = yaml.safe_load((self.inventory / "containers.yml").read_text())
        self.variables = self.made["all"]["vars"]
        self.addresses = {host: values["ansible_host"] for host, values in self.made["all"]["hosts"].items()}

    def _write(self, folder: Path, *, consumers: bool) -> None:
        hosts = dict.fromkeys(self.names)
        groups = {
            "kestrel": {"hosts": {self.names[0]: None}},
            "consumers": {"hosts": hosts if consumers else {}},
            "kestrel_web": None,
            "sentry": None,
            "web": None,
            "app": {"hosts": {} if consumers else hosts, "children": {"consumers": None, "web": None}},
        }
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
        (folder / "group_vars").mkdir()
        everywhere = {
            "kestrel_stack_app": "bench",
            "kestrel_stack_namespace": "bench",
            "kestrel_stack_environment": "bench",
            "kestrel_stack_queues": [{"name": QUEUE, "job_timeout": 10}],
            "deploy_user": "deploy",
            "consumers_python_app": "shop.jobs:registry",
            "kestrel_flavor": "embedded",
            "kestrel_listen_address": "{{ kestrel_stack_address }}",
            "sentry_backend": "none",
        }
        (folder / "group_vars" / "all.yml").write_text(yaml.safe_dump(everywhere))

    def _lab(self, action: str) -> None:
        command = [sys.executable, "-m", "kestrel_stack.lab", "hosts", action, "--inventory", self.inventory]
        run(command, what=f"hosts {action}")

    def set_up(self) -> None:
        run([program("ansible-playbook"), "-i", self.inventory, "ansible/site.yml"], what="site.yml")
        self.everywhere(
            "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install git >/dev/null"
            f" && install -d -o deploy -g deploy {PEER_ROOT}"
        )

    def everywhere(self, command: str, stdin: str = "") -> None:
        """Run a shell command as root on every host, outside of what is measured."""
        config = self.variables["deploy_ssh_config"]
        started = [
            subprocess.Popen(
                ["ssh", "-F", config, host, f"sudo sh -c '{command}'"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for host in self.names
        ]
        for host, process in zip(self.names, started, strict=True):
            said = process.communicate(timeout=580)[0]
            if process.returncode:
                raise SystemExit(f"{host}: {command}: {said[-1000:]}")

    def push(self, application: Application) -> None:
        """Bring the mirror on each host up to date, which the peers fetch from."""
        bundle = self.folder / "bundle"
        application.git("bundle", "create", "-q", str(bundle), "main")
        config = self.variables["deploy_ssh_config"]
        for host in self.names:
            run(["scp", "-q", "-F", config, bundle, f"{host}:/tmp/bundle"])
        mirror = f"{PEER_ROOT}/mirror.git"
        self.everywhere(
            'chmod 644 /tmp/bundle && cd /tmp && sudo -u deploy sh -c "'
            f"test -d {mirror} || git clone -q --mirror /tmp/bundle {mirror};"
            f' git -C {mirror} fetch -q /tmp/bundle +main:main"'
        )

    def remove(self) -> None:
        self._lab("down")

    @contextlib.contextmanager
    def at(self, delay: float) -> Iterator[Way]:
        """Yield the way to the hosts with so many seconds added in each direction."""
        proxies = (
            {host: DelayingProxy(address, delay) for host, address in self.addresses.items()} if delay else {}
        )
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            where = {
                host: ("127.0.0.1", proxies[host].port) if proxies else (address, 22)
                for host, address in self.addresses.items()
            }
            yield self._way(folder, where)
        finally:
            for proxy in proxies.values():
                proxy.close()
            shutil.rmtree(folder)

    def _way(self, folder: Path, where: dict[str, tuple[str, int]]) -> Way:
        keys = Path(self.variables["deploy_ssh_config"]).with_name("known_hosts").read_text()
        known = []
        for line in keys.splitlines():
            names, key = line.split(" ", 1)
            host, port = where[names.split(",")[0]]
            known.append(f"{host if port == 22 else f'[{host}]:{port}'} {key}")
        (folder / "known_hosts").write_text("\n".join(known) + "\n")
        original = Path(self.variables["deploy_ssh_config"]).read_text()
        identity = re.search(r'IdentityFile "?([^"\n]+)', original)[1]
        (folder / "ssh_config").write_text(
            "Host *\n"
            f"    IdentityFile {identity}\n    IdentitiesOnly yes\n    IdentityAgent none\n"
            f"    UserKnownHostsFile {folder / 'known_hosts'}\n    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
        )
        inventories = {}
        for workers in (False, True):
            inventory = folder / ("with-workers" if workers else "without")
            inventory.mkdir()
            self._write(inventory, consumers=workers)
            hosts = {
                name: {
                    "ansible_host": host,
                    "ansible_port": port,
                    "kestrel_stack_address": self.addresses[name],
                }
                for name, (host, port) in where.items()
            }
            variables = {**self.variables, "deploy_ssh_config": str(folder / "ssh_config")}
            (inventory / "containers.yml").write_text(
                yaml.safe_dump({"all": {"hosts": hosts, "vars": variables}})
            )
            inventories[workers] = inventory
        return Way(folder, where, inventories, identity)


@dataclass
class Way:
    """How the hosts are reached in one part of the run."""

    folder: Path
    where: dict[str, tuple[str, int]]
    inventories: dict[bool, Path]
    identity: str


# --- contenders --------------------------------------------------------------------------------------------


class Contender:
    """A tool that deploys the application to all hosts."""

    name = ""
    cases = CASES

    def __init__(self, way: Way, application: Application) -> None:
        self.way = way
        self.application = application
        self.folder = way.folder / re.sub(r"\W+", "-", self.name)
        self.folder.mkdir()
        self.prepare()

    def prepare(self) -> None:
        """Write what the tool needs."""

    def deploy(self, case: str) -> None:
        raise NotImplementedError


class Ours(Contender):
    """`fab deploy`, all hosts at once."""

    name = "fab deploy"
    flags = ("--batch=100%", "--canary=0", "--soak=0")

    def deploy(self, case: str) -> None:
        inventory = self.way.inventories[case == "workers"]
        run(
            [
                program("fab"),
                "deploy",
                f"--env={inventory}",
                f"--app={self.application.folder}",
                "--force",
                "--yes",
                *self.flags,
            ],
            what=f"fab deploy ({case})",
        )


class OursByDefault(Ours):
    """`fab deploy` with its defaults but for the time that a canary is watched: host by host."""

    name = "fab deploy, host by host"
    cases = ("workers",)
    flags = ("--soak=0",)


class Capistrano(Contender):
    """Capistrano's default flow with its git plug-in."""

    name = "capistrano"

    def prepare(self) -> None:
        (self.folder / "config" / "deploy").mkdir(parents=True)
        (self.folder / "Capfile").write_text(
            'require "capistrano/setup"\nrequire "capistrano/deploy"\n'
            'require "capistrano/scm/git"\ninstall_plugin Capistrano::SCM::Git\n'
        )
        (self.folder / "config" / "deploy.rb").write_text(
            'lock "~> 3.17"\nset :application, "bench"\nset :branch, "main"\nset :keep_releases, 5\n'
            f'set :repo_url, "file://{PEER_ROOT}/mirror.git"\nset :deploy_to, "{PEER_ROOT}/capistrano"\n'
            f'set :ssh_options, {{ config: false, keys: ["{self.way.identity}"], keys_only: true,'
            " use_agent: false,"
            f' user_known_hosts_file: "{self.way.folder / "known_hosts"}", verify_host_key: :always }}\n'
            'if ENV["WORKERS"]\n  namespace :deploy do\n    task :restart_workers do\n'
            "      on roles(:app) do\n"
            f'        execute :sudo, "{HELPER}", "drain", "{GROUP}"\n'
            f'        execute :sudo, "{HELPER}", "start", "{GROUP}"\n'
            "      end\n    end\n    after :publishing, :restart_workers\n  end\nend\n"
        )
        servers = "".join(
            f'server "{host}", user: "deploy", port: {port}, roles: %w[app]\n'
            for host, port in self.way.where.values()
        )
        (self.folder / "config" / "deploy" / "bench.rb").write_text(servers)

    def deploy(self, case: str) -> None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8"} | ({"WORKERS": "1"} if case == "workers" else {})
        run(["cap", "bench", "deploy"], cwd=self.folder, env=environment, what="capistrano")


class Pyinfra(Contender):
    """pyinfra: a release folder by git, a link, and what is older removed."""

    name = "pyinfra"

    def prepare(self) -> None:
        (self.folder / "inventory.py").write_text(
            "hosts = ["
            + ", ".join(
                repr(
                    (
                        name,
                        {
                            "ssh_hostname": host,
                            "ssh_port": port,
                            "ssh_user": "deploy",
                            "ssh_key": self.way.identity,
                            "ssh_known_hosts_file": str(self.way.folder / "known_hosts"),
                            "ssh_strict_host_key_checking": "yes",
                            "ssh_look_for_keys": False,
                            "ssh_allow_agent": False,
                        },
                    )
                )
                for name, (host, port) in self.way.where.items()
            )
            + "]\n"
        )
        (self.folder / "deploy.py").write_text(
            "import os, time\nfrom pyinfra.operations import files, git, server\n\n"
            f'root = "{PEER_ROOT}/pyinfra"\nrelease = os.environ["RELEASE"]\n'
            'files.directory(path=f"{root}/releases")\n'
            'new = f"{root}/releases/{release}"\n'
            f'git.repo(src="file://{PEER_ROOT}/mirror.git", dest=new, branch="main")\n'
            'link = f"ln -s releases/{release} {root}/.new && mv -T {root}/.new {root}/current"\n'
            "server.shell(commands=[link])\n"
            'server.shell(commands=[f"cd {root}/releases && ls -1 | head -n -5 | xargs -r rm -rf"])\n'
            'if os.environ.get("WORKERS"):\n'
            f'    server.shell(commands=["sudo {HELPER} drain {GROUP}", "sudo {HELPER} start {GROUP}"])\n'
        )

    def deploy(self, case: str) -> None:
        environment = {**os.environ, "RELEASE": f"{time.time_ns()}"}
        if case == "workers":
            environment["WORKERS"] = "1"
        command = [str(PEERS_ENVIRONMENT / "bin" / "pyinfra"), "-y", "inventory.py", "deploy.py"]
        run(command, cwd=self.folder, env=environment, what="pyinfra")


class PlainFabric(Contender):
    """Nine calls of ThreadingGroup.run, without a check of anything."""

    name = "plain fabric"

    def prepare(self) -> None:
        (self.folder / "plain.py").write_text(
            f"""
import os, time
from fabric import Config, ThreadingGroup

root, release = "{PEER_ROOT}/fabric", str(time.time_ns())
hosts = {[f"deploy@{host}:{port}" for host, port in self.way.where.values()]!r}
config = Config(runtime_ssh_path="{self.way.folder / "ssh_config"}")
group = ThreadingGroup(*hosts, config=config, connect_kwargs={{"allow_agent": False, "look_for_keys": False}})
new = f"{{root}}/releases/{{release}}"
for command in (
    f"mkdir -p {{root}}/releases",
    f"test -w {{root}}",
    f"mkdir {{new}}",
    f"git -C {PEER_ROOT}/mirror.git archive main | tar -x -C {{new}}",
    f"git -C {PEER_ROOT}/mirror.git rev-parse main > {{new}}/REVISION",
    f"ln -s releases/{{release}} {{root}}/.new",
    f"mv -T {{root}}/.new {{root}}/current",
    f"ls -1 {{root}}/releases | head -n -5 | (cd {{root}}/releases && xargs -r rm -rf)",
    f"echo {{release}} >> {{root}}/log",
):
    group.run(command, hide=True)
if os.environ.get("WORKERS"):
    group.run("sudo {HELPER} drain {GROUP}", hide=True)
    group.run("sudo {HELPER} start {GROUP}", hide=True)
"""
        )

    def deploy(self, case: str) -> None:
        environment = dict(os.environ) | ({"WORKERS": "1"} if case == "workers" else {})
        run([sys.executable, "plain.py"], cwd=self.folder, env=environment, what="plain fabric")


CONTENDERS = {
    "fab": Ours,
    "default": OursByDefault,
    "capistrano": Capistrano,
    "pyinfra": Pyinfra,
    "fabric": PlainFabric,
}


def require(names: list[str]) -> None:
    """End with one line when a tool is missing; pyinfra gets an environment of its own."""
    if "capistrano" in names:
        needs("cap", "capistrano")
    if "pyinfra" in names and not (PEERS_ENVIRONMENT / "bin" / "pyinfra").exists():
        say(f"installing {PYINFRA}")
        venv.create(PEERS_ENVIRONMENT, with_pip=True, clear=True)
        run([str(PEERS_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-qq", PYINFRA])


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass
class Results:
    """Seconds by hosts, delay in milliseconds, case and contender."""

    seconds: dict[tuple[int, int, str, str], list[float]] = field(default_factory=dict)

    def add(self, key: tuple[int, int, str, str], seconds: float) -> None:
        self.seconds.setdefault(key, []).append(seconds)

    def median(self, *key: object) -> float | None:
        found = self.seconds.get(key)
        return statistics.median(found) if found else None


def measure(options: argparse.Namespace) -> Results:
    results = Results()
    for count in options.hosts:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kestrel-bench-")))
            application = Application(folder / "application")
            say(f"{count} hosts: making them")
            fleet = Fleet(folder, count)
            stack.callback(fleet.remove)
            fleet.set_up()
            for delay in options.delay:
                _part(fleet, application, delay, options, results)
    return results


def _part(
    fleet: Fleet, application: Application, delay: int, options: argparse.Namespace, results: Results
) -> None:
    """All contenders in turns, with one delay."""
    count = len(fleet.names)
    with fleet.at(delay / 1000) as way:
        contenders = [CONTENDERS[name](way, application) for name in options.only]
        fleet.push(application)
        for contender in contenders:
            # The first deploy to a host is another thing: ours makes a virtual environment there.
            contender.deploy("workers" if contender.cases == ("workers",) else "nothing")
        # With workers from here on, so that those of the first deploy run.
        for case in options.cases:
            for run_number in range(options.runs):
                for contender in contenders:
                    if case not in contender.cases:
                        continue
                    if case != "nothing":
                        application.change()
                        fleet.push(application)
                    began = time.monotonic()
                    contender.deploy(case)
                    seconds = time.monotonic() - began
                    results.add((count, delay, case, contender.name), seconds)
                    say(
                        f"{count} hosts, {delay} ms, {case}, run {run_number + 1} of {options.runs}:"
                        f" {contender.name:<26}{seconds:6.2f} s"
                    )


def tables(results: Results, options: argparse.Namespace) -> str:
    """One table for each case: a row for each contender, medians in seconds, and what ours is to it."""
    lines = []
    ours = Ours.name
    columns = [(count, delay) for delay in options.delay for count in options.hosts]
    for case in options.cases:
        head = "".join(f"{f'{count} hosts, {delay} ms':>22}" for count, delay in columns)
        lines += [f"{case:<26}{head}", "-" * (26 + len(head))]
        for name in (CONTENDERS[key].name for key in options.only):
            cells = []
            for count, delay in columns:
                seconds, mine = (
                    results.median(count, delay, case, name),
                    results.median(count, delay, case, ours),
                )
                if seconds is None:
                    cells.append("")
                elif name == ours or mine is None:
                    cells.append(f"{seconds:.2f} s       ")
                else:
                    cells.append(f"{seconds:.2f} s {seconds / mine:5.1f}x")
            if any(cells):
                lines.append(f"{name:<26}" + "".join(f"{cell:>22}" for cell in cells))
        lines.append("")
    few, many = min(options.hosts), max(options.hosts)
    for delay in options.delay:
        small, large = (results.median(count, delay, "one file", ours) for count in (few, many))
        if few != many and small and large:
            lines.append(
                f"{ours}, one file, {delay} ms: {many} hosts take {large / small:.2f} times as long as {few}"
            )
    return "\n".join(lines).rstrip()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add("--hosts", type=numbers, default=[2, 4, 10], metavar="N,…", help="how many (default: 2,4,10)")
    add("--delay", type=numbers, default=[0, 50], metavar="MS,…", help="added each way (default: 0,50)")
    for name, known in (("only", list(CONTENDERS)), ("cases", list(CASES))):
        text = f"of: {', '.join(known)} (default: all)"
        add(f"--{name}", type=chosen(known), default=known, metavar="NAME,…", help=text)
    options = made.parse_args(arguments)
    if min(options.hosts) < 1 or min(options.delay) < 0:
        made.error("--hosts must be at least 1, --delay at least 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    require(options.only)
    results = measure(options)
    found = conditions(files=FILES, bytes=BYTES, runs=options.runs, pyinfra=PYINFRA)
    if options.json:
        flat = [[*key, seconds] for key, seconds in results.seconds.items()]
        print(json.dumps({"conditions": found, "seconds": flat}, indent=2))
    else:
        print(f"{about(found)}; {FILES} files, {BYTES:,} bytes, medians of {options.runs} runs, {PYINFRA}\n")
        print(tables(results, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
