"""A deploy to the hosts of the fault matrix: a new commit, how it ended, and how each host stands."""

from __future__ import annotations

import json
import re

from support.deploy_lab import Fab
from support.fault_lab import PROCESSES, FaultLab


def start_deploy(lab: FaultLab, *words: str) -> Fab:
    """Start to deploy a new commit of the application."""
    lab.app.commit("another release")
    return lab.start("deploy", f"--app={lab.app.path}", *words)


def stands(lab: FaultLab, host: str) -> str:
    """The release that a host is wholly on: `current` and every worker's own folder."""
    release = lab.current(host)
    for group, count in PROCESSES.items():
        said = json.loads(lab.inside(host, f"/usr/local/sbin/kestrel-stack-workers status {group}"))
        found = [(process["state"], process["release"]) for process in said["processes"]]
        assert found == [("RUNNING", release)] * count, f"{host} is on {release}, but {group}: {found}"
    return release


def all_on(lab: FaultLab, *hosts: str) -> set[str]:
    """The releases that hosts (all) are wholly on."""
    return {stands(lab, host) for host in hosts or lab.worker_hosts}


def last_words(run: Fab) -> str:
    """What fab said last, without times and names that change."""
    text = run.text.strip().splitlines()[-1].strip()
    text = re.sub(r"-F \S+/config", "-F config", re.sub(r"^\d+\.\d s\s+", "", text))
    return re.sub(r"\d{8}T\d{6}Z-[0-9a-f]{8}", "R", text)
