"""``bin/up`` and ``bin/down`` after the bootstrap: engine, image, hosts, roles, a deploy, jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kestrel_stack.lab import (
    daemon,
    engine,
    hosts,
    image,
    inventory,
    locks,
    login,
    playbook,
    programs,
    report,
)
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import CHECKOUT, Lab
from kestrel_stack.lab.progress import Step, clock, say, step

ENGINE_STATE = CHECKOUT / ".lab" / "engine"
WANTED_JOBS: report.Jobs = {
    "acme": {"HelloWorld": 10, "SendMail": 3},
    "globex": {"HelloWorld": 10, "SendMail": 3},
}
PHP_TENANT, PHP_QUEUE = "globex", "hello_world_php"
"""Whose HelloWorld is done in PHP, where the inventory has the queue for it."""
JOBS_SECONDS = 60.0
PAGE_SECONDS = 10.0
SENTRIES = {
    # The backend: its name, the variable of its port, that port, and the page that says whether it works.
    "bugsink": ("Bugsink", "sentry_bugsink_port", 8765, "/health/ready"),
    "self_hosted": ("Sentry", "sentry_self_hosted_port", 9000, "/_health/"),
}


def lab_of(env: str) -> Lab:
    """Return the lab of ``ansible/inventories/ENV``; raise LabError, naming those there are, otherwise."""
    folder = CHECKOUT / "ansible" / "inventories"
    if not (folder / env / "hosts.yml").is_file():
        known = sorted(path.parent.name for path in folder.glob("*/hosts.yml"))
        raise LabError(
            f"--env {env}: no inventory {folder / env}/hosts.yml; there are: {', '.join(known) or 'none'}"
        )
    return inventory.load(folder / env)


@dataclass
class Run:
    """One ``bin/up``: what it is for, and what it has changed so far."""

    lab: Lab
    changes: list[str] = field(default_factory=list)
    standing: list[str] = field(default_factory=list)
    at: str = ""

    @property
    def log(self) -> Path:
        """Return the folder for the programs' whole output."""
        return self.lab.state / "log"


def up(env: str, suite: str, *, recreate: bool) -> int:
    """Bring a whole stack up and return the exit code; a second run changes nothing and says so."""
    image.check_suite(suite)
    lab = lab_of(env)
    # What came before Python counts: packages and the virtual environment are named among what was done.
    started = time.monotonic() - float(os.environ.get("KESTREL_STACK_BOOTSTRAP_SECONDS", "0"))
    run = Run(lab)
    if os.environ.get("KESTREL_STACK_BOOTSTRAPPED") == "1":
        run.changes.append("virtual environment")
    programs.interrupts_on_term()
    try:
        with locks.held(
            lock_path(lab), busy=f"another bin/up or bin/down works on {env}; wait for it to end"
        ):
            summary = _up(run, suite, recreate)
    except KeyboardInterrupt:
        stands = ", ".join(run.standing) or "nothing"
        say(
            f"\nbin/up: interrupted at: {run.at or 'start'}. Standing: {stands}. Go on: bin/up --env {env}. "
            f"Remove: bin/down --env {env}",
            sys.stderr,
        )
        return 130
    report.show(summary, sys.stdout)
    say(
        f"\n{env} is up in {clock(time.monotonic() - started)}: {'; '.join(run.changes) or 'nothing changed'}"
    )
    return 0


def lock_path(lab: Lab) -> Path:
    """Return the lock that ``bin/up`` and ``bin/down`` hold; beside the state, which ``bin/down`` removes."""
    return lab.state.with_name(f"{lab.state.name}.lock")


def _up(run: Run, suite: str, recreate: bool) -> report.Summary:
    lab = run.lab
    run.at = "Docker engine"
    with step("Docker engine") as at:
        started = daemon.ensure(ENGINE_STATE)
        at.result = "started" if started else "answers"
    if started:
        run.changes.append("engine started")
        run.standing.append("the engine")

    run.at = "host image"
    with step(f"Host image, {suite}") as at:
        name, built = image.ensure(suite, log=run.log / "image.log", say=at.detail)
        at.result = f"built {name}" if built else name
    if built:
        run.changes.append("host image built")

    run.at = "hosts"
    with step(f"Hosts: {', '.join(lab.hosts)}") as at:
        done = hosts.up(lab, name, recreate=recreate, say=at.line)
        at.result = _hosts_result(done)
    if done.changed:
        run.changes.append(f"hosts: {_hosts_result(done)}")
    if done.created:
        # What was enqueued before was in containers that are gone.
        (lab.state / "jobs.json").unlink(missing_ok=True)
    run.standing.append(f"hosts {', '.join(lab.hosts)}")

    run.at = "site.yml"
    changed = _play(run)
    if changed:
        run.changes.append(f"roles: {changed} changes")
    run.standing.append("roles")

    run.at = "fab deploy"
    variables = _variables(lab)
    consumers = lab.groups.get("consumers", ())
    apps = {host: str(variables[host].get("kestrel_stack_app", "shop")) for host in consumers}
    carriers = {
        host: str(variables[host].get("kestrel_stack_app", "shop")) for host in lab.groups.get("app", ())
    }
    before = _releases(lab, carriers)
    _deploy(run)
    after = _releases(lab, carriers)
    if after != before:
        run.changes.append("deployed " + ", ".join(sorted(set(after.values()))))
    run.standing.append("the application")

    run.at = "jobs"
    enqueued = _jobs(run, apps, after)
    totals, duplicates = _done(lab, apps)
    run.at = "pages"
    pages = _pages(lab, done.addresses, variables)
    run.at = "kestrel-web"
    monitors = _monitors(lab, done.addresses, variables)
    run.at = "errors"
    errors = _errors(lab, done.addresses, variables)
    groups = {
        host: [group for group, members in lab.groups.items() if group != "all" and host in members]
        for host in lab.hosts
    }
    return report.Summary(
        hosts=[
            (host, done.addresses[host], ", ".join(groups[host]), after.get(host, "-")) for host in lab.hosts
        ],
        enqueued=enqueued,
        done=totals,
        duplicates=duplicates,
        pages=pages,
        monitors=monitors,
        errors=errors,
        try_next=_try_next(lab, apps, errors[0][0] if lab.groups.get("sentry") else "the worker's log"),
    )


def _hosts_result(done: hosts.Up) -> str:
    parts = [
        f"{len(names)} {what}"
        for names, what in ((done.created, "created"), (done.started, "started"))
        if names
    ]
    return ", ".join(parts) or "stand"


def _play(run: Run) -> int:
    log = run.log / "ansible-playbook.log"
    command = [programs.tool("ansible-playbook"), "-i", str(run.lab.inventory), "ansible/site.yml"]
    with step("Roles: ansible-playbook ansible/site.yml") as at:
        terminal = sys.stdout.isatty()
        output = playbook.Output(
            on_role=(lambda role: None) if terminal else at.detail,
            on_task=at.detail if terminal else (lambda task: None),
        )
        code = programs.run_logged(command, log, output.feed, cwd=CHECKOUT)
        if code == 0:
            at.result = f"changed={output.changes}"
            return output.changes
        at.result = "failed"
    for line in output.failure() or _tail(log):
        say(f"    {line}", sys.stderr)
    raise LabError(
        f"ansible-playbook failed (exit {code}); its whole output: {_shown(log)}. Go on with bin/up"
    )


def _deploy(run: Run) -> None:
    log = run.log / "fab-deploy.log"
    command = [programs.tool("fab"), "deploy", "--env", run.lab.inventory.name]
    with step("Application: fab deploy") as at:
        code = programs.run_logged(command, log, at.detail, cwd=CHECKOUT)
        if code == 0:
            at.result = _last(log)
            return
        at.result = "failed"
    for line in _tail(log) if sys.stdout.isatty() else []:
        say(f"    {line}", sys.stderr)
    raise LabError(
        f"fab deploy failed (exit {code}): {_last(log)}; its whole output: {_shown(log)}. Go on with bin/up"
    )


def _shown(path: Path) -> str:
    return str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else str(path)


def _tail(log: Path, lines: int = 20) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def _last(log: Path) -> str:
    found = [line.strip() for line in _tail(log) if line.strip()]
    # fab's lines begin with its own clock; the step has one already.
    return re.sub(r"^[\d.]+ s\s+", "", found[-1]) if found else ""


def _variables(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return every host's variables, as Ansible itself merges them."""
    command = [programs.tool("ansible-inventory"), "-i", str(lab.inventory), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if done.returncode != 0:
        raise LabError(f"ansible-inventory failed: {engine.last_line(done.stderr)}")
    found = json.loads(done.stdout)["_meta"]["hostvars"]
    return {host: found.get(host, {}) for host in lab.hosts}


def ssh(lab: Lab, host: str, command: str, *, user: str = "deploy") -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host of the lab over SSH and return its result, whatever it is."""
    return subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", "-l", user, host, command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def _releases(lab: Lab, apps: Mapping[str, str]) -> dict[str, str]:
    """Return the release that ``current`` names on each of these hosts that has one."""

    def release(host: str) -> tuple[str, str]:
        done = ssh(lab, host, f"readlink /srv/{shlex.quote(apps[host])}/current")
        return host, Path(done.stdout.strip()).name if done.returncode == 0 else ""

    with ThreadPoolExecutor(max_workers=8) as pool:
        return {host: name for host, name in pool.map(release, apps) if name}


def _in_release(app: str, command: Sequence[str]) -> str:
    return f"cd /srv/{shlex.quote(app)}/current && {shlex.join(command)}"


def _done(lab: Lab, apps: Mapping[str, str]) -> tuple[report.Jobs, int]:
    """Return the jobs done on all consumer hosts, by tenant and job, and how many were done twice."""

    def one(host: str) -> dict[str, Any]:
        answer = ssh(lab, host, _in_release(apps[host], ["venv/bin/python", "report.py", "--json"]))
        if answer.returncode != 0:
            raise LabError(f"{host}: report.py failed: {engine.last_line(answer.stderr)}")
        try:
            return json.loads(answer.stdout)
        except ValueError:
            raise LabError(f"{host}: report.py printed no JSON: {answer.stdout[:200]!r}") from None

    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(one, apps))
    totals: report.Jobs = {}
    for answer in answers:
        report.add(totals, answer.get("done", {}))
    return totals, sum(int(answer.get("duplicates", 0)) for answer in answers)


def _jobs(run: Run, apps: Mapping[str, str], releases: Mapping[str, str]) -> report.Jobs:
    """Enqueue a few jobs once per release, wait until they are done; return all that bin/up ever enqueued."""
    note = run.lab.state / "jobs.json"
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {"releases": {}, "enqueued": {}}
    if noted["releases"] == dict(releases) or not apps:
        return noted["enqueued"]
    host = next(iter(apps))
    wanted = sum(count for jobs in WANTED_JOBS.values() for count in jobs.values())
    with step(f"Jobs: {wanted} for {', '.join(WANTED_JOBS)}") as at:
        before, _ = _done(run.lab, apps)
        for tenant, jobs in WANTED_JOBS.items():
            for job, count in jobs.items():
                _enqueue(run.lab, host, apps[host], tenant, job, count)
        enqueued = report.add(noted["enqueued"], WANTED_JOBS)
        _wait_for_jobs(run.lab, apps, before, at)
        at.result = f"{wanted} enqueued on {host}, {wanted} done"
    hosts.write(note, json.dumps({"releases": dict(releases), "enqueued": enqueued}) + "\n")
    run.changes.append(f"{wanted} jobs done")
    return enqueued


def _pages(
    lab: Lab, addresses: Mapping[str, str], variables: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return the address of every web host's page, each of which has answered with a page."""
    found = []
    for host in lab.groups.get("web", ()):
        address = f"http://{addresses[host]}:{variables[host].get('web_port', 8080)}/"
        try:
            with urllib.request.urlopen(address, timeout=PAGE_SECONDS):
                pass
        except OSError as error:
            raise LabError(
                f"{host}: the application's page {address} does not answer ({error}); see: "
                f"ssh -F {_shown(lab.ssh_config)} {host} \"sudo journalctl --unit 'kestrel-stack-*'\""
            ) from None
        found.append((host, address))
    return found


def _monitors(
    lab: Lab, addresses: Mapping[str, str], variables: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return where every kestrel-web is, each of which answers, and how to log in."""
    found = []
    for host in lab.groups.get("kestrel_web", ()):
        port = int(variables[host].get("kestrel_web_port", 8090))
        prefix = variables[host].get("kestrel_web_prefix", "")
        own = "kestrel_web_listen_address" not in variables[host]
        address = "127.0.0.1" if own else addresses[host]
        if why := _silence(lab, host, own, f"http://{address}:{port}{prefix}/healthz"):
            raise LabError(
                f"{host}: kestrel-web at {address}:{port} does not answer ({why}); see: "
                f"ssh -F {_shown(lab.ssh_config)} {host} sudo journalctl --unit kestrel-web"
            )
        shown = f"http://{address}:{port}{prefix}/"
        if own:
            shown += _from_there(lab, host, port)
        if variables[host].get("kestrel_web_generate_login"):
            shown += f" (user {login.read(lab.login)['name']}, password in {_shown(lab.login)})"
        found.append((host, shown))
    return found


def _errors(
    lab: Lab, addresses: Mapping[str, str], variables: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return what takes the errors of jobs, which answers, and where it is; or that nothing does."""
    found = []
    for host in lab.groups.get("sentry", ()):
        backend = str(variables[host].get("sentry_backend"))
        if backend not in SENTRIES:
            continue
        name, variable, usual, healthy = SENTRIES[backend]
        port = int(variables[host].get(variable, usual))
        own = "sentry_listen_address" not in variables[host]
        address = "127.0.0.1" if own else addresses[host]
        if why := _silence(lab, host, own, f"http://{address}:{port}{healthy}", strict=True):
            raise LabError(
                f"{host}: {name} at {address}:{port} does not answer ({why}); see: "
                f"ssh -F {_shown(lab.ssh_config)} {host} \"sudo journalctl --unit '{name.lower()}*'\""
            )
        shown = str(variables[host].get("sentry_url") or f"http://{address}:{port}/")
        if own:
            shown += _from_there(lab, host, port)
        if variables[host].get("sentry_generate_login"):
            file = lab.sentry_login
            shown += f" (user {login.read(file, login.SENTRY_KEYS)['email']}, password in {_shown(file)})"
        found.append((f"{name} on {host}", shown))
    if found:
        return found
    backends = sorted({str(each.get("sentry_backend")) for each in variables.values()})
    if backends == ["external"]:
        return [("errors of jobs", "sent to the project of app_host_sentry_dsn (sentry_backend: external)")]
    return [("errors of jobs", f"in the workers' logs only (sentry_backend: {', '.join(backends)})")]


def _silence(lab: Lab, host: str, own: bool, address: str, *, strict: bool = False) -> str:
    """Say why a page does not answer, or nothing; on loopback (`own`) only the host itself can ask.

    An error of the server's is an answer, unless `strict`.
    """
    if own:
        fail = "--fail " if strict else ""
        command = f"curl --silent --show-error {fail}--output /dev/null {shlex.quote(address)}"
        done = ssh(lab, host, command, user="admin")
        return "" if done.returncode == 0 else engine.last_line(done.stderr)
    try:
        with urllib.request.urlopen(address, timeout=PAGE_SECONDS):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return str(error) if strict else ""
    except OSError as error:
        return str(error)


def _from_there(lab: Lab, host: str, port: int) -> str:
    return f" there: ssh -F {_shown(lab.ssh_config)} -L {port}:127.0.0.1:{port} {host}"


def _enqueue(lab: Lab, host: str, app: str, tenant: str, job: str, count: int) -> None:
    command = ["venv/bin/python", "enqueue.py", "--tenant", tenant, "--job", job, "--count", str(count)]
    if (tenant, job) == (PHP_TENANT, "HelloWorld"):
        settings = ssh(lab, host, f"cat /etc/kestrel-stack/{shlex.quote(app)}.json")
        if f'"{PHP_QUEUE}"' in settings.stdout:
            command += ["--queue", PHP_QUEUE]
    done = ssh(lab, host, _in_release(app, command))
    if done.returncode != 0:
        raise LabError(
            f"{host}: enqueue.py {job} for {tenant} failed: {engine.last_line(done.stderr or done.stdout)}"
        )


def _wait_for_jobs(lab: Lab, apps: Mapping[str, str], before: report.Jobs, at: Step) -> None:
    end = time.monotonic() + JOBS_SECONDS
    shown = None
    while True:
        now, _ = _done(lab, apps)
        left = report.missing(WANTED_JOBS, before, now)
        if left == 0:
            return
        if left != shown:
            at.detail(f"{left} to go")
            shown = left
        if time.monotonic() >= end:
            raise LabError(
                f"{left} jobs are not done after {JOBS_SECONDS:.0f} s; see: ssh -F {_shown(lab.ssh_config)} "
                f"{next(iter(apps))} sudo tail /var/log/kestrel-stack/{next(iter(apps.values()))}/*.log"
            )
        time.sleep(0.2)


def _try_next(lab: Lab, apps: Mapping[str, str], errors: str) -> list[str]:
    config = _shown(lab.ssh_config)
    host = next(iter(apps), lab.hosts[0])
    app = apps.get(host, "shop")
    env = lab.inventory.name
    enqueue = "venv/bin/python enqueue.py --tenant acme --job HelloWorld --count 5"
    fails = "venv/bin/python enqueue.py --tenant acme --job PostToPartner"
    return [
        f"{_shown(Path(programs.tool('fab')))} status{'' if env == 'lab' else f' --env {env}'}",
        f"ssh -F {config} deploy@{host} 'cd /srv/{app}/current && {enqueue}'",
        f"ssh -F {config} deploy@{host} 'cd /srv/{app}/current && {fails}'   # it fails: see {errors}",
        f"ssh -F {config} {host}",
    ]


def down(env: str | None, *, everything: bool) -> int:
    """Remove one lab, or every lab of this checkout, then the engine if it is ours and idle."""
    labs = [lab_of(env)] if env else _labs_of_checkout()
    said = False
    if any(hosts.has_files(lab) for lab in labs) and not engine.answers():
        # Stopped containers are still there, and only an engine can remove them.
        with step("Docker engine") as at:
            daemon.ensure(ENGINE_STATE)
            at.result = "started, to remove what it holds"
    for lab in labs:
        with locks.held(
            lock_path(lab), busy=f"another bin/up or bin/down works on {lab.name}; wait for it to end"
        ):
            removed = hosts.down(lab)
            lock_path(lab).unlink(missing_ok=True)
        for name in (*removed.containers, *removed.networks):
            say(f"removed {name}")
        for name in removed.files:
            say(f"removed {_shown(Path(name))}")
        said = said or removed.changed
    if everything:
        if engine.answers():
            for name in image.remove_all():
                say(f"removed image {name}")
                said = True
        else:
            say("no Docker engine answers: host images that it may hold stay")
            said = True
    # The engine may be needed by the labs that were not asked for.
    about_engine = daemon.stop(ENGINE_STATE)
    if about_engine:
        say(about_engine)
        said = True
    if not said:
        say("nothing is there")
    return 0


def _labs_of_checkout() -> list[Lab]:
    """Return the labs that ``bin/up`` makes, and inventories with containers; not those of real hosts."""
    folder = CHECKOUT / "ansible" / "inventories"
    made = {path.parent.name for path in folder.glob(f"*/{inventory.GENERATED}")}
    return [
        lab_of(name) for name in sorted({"lab", "single"} | made) if (folder / name / "hosts.yml").is_file()
    ]
