"""Every fault happens under load: jobs go on being enqueued, and each that was acknowledged must be done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from support.deploy_lab import HOSTS, THREE, DeployLab, loaded_app

# With a file's name, a line of JSON is added to it for each fault: the table of docs/deploy.md.
TABLE = "KESTREL_STACK_FAULT_TABLE"


@pytest.fixture
def lab(made_lab: DeployLab) -> DeployLab:
    """The hosts as the test before left them."""
    made_lab.runs.clear()
    made_lab.place = ""
    return made_lab


@pytest.fixture
def app(tmp_path):
    """The application that is deployed in the test; another than the one that runs already."""
    app = loaded_app(tmp_path / "application")
    app.write("shop/more.py", "X = 1\n")
    app.commit()
    return app


@pytest.fixture
def first(lab, tmp_path_factory, request):
    """The one good release on two hosts, with jobs coming in until the test is over."""
    yield from _under_load(lab, HOSTS, lab.inventory, tmp_path_factory, request)


@pytest.fixture
def first_of_three(lab, tmp_path_factory, request):
    """The same on three hosts."""
    yield from _under_load(lab, THREE, lab.whole, tmp_path_factory, request)


def _under_load(lab, hosts, env, tmp_path_factory, request):
    release = lab.settled(hosts)
    if release is None:
        lab.reset()
        release = lab.deployed(loaded_app(tmp_path_factory.mktemp("first")), env=env)
    lab.runs.clear()
    load = lab.load()
    lab.current_load = load
    began = time.monotonic()
    try:
        yield release
    finally:
        seconds = time.monotonic() - began
        notes = lab.settle(load)
        missing = load.missing(notes)
        counts = {"jobs": len(load.acknowledged), "lost": len(missing), "doubled": load.doubled(notes)}
        _record(lab, hosts, release, request, seconds, counts)
    assert len(load.acknowledged) > 0
    assert not missing, f"{len(missing)} of {len(load.acknowledged)} jobs are lost"


def _record(lab, hosts, release, request, seconds, counts):
    if not os.environ.get(TABLE):
        return
    runs = [run for run in lab.runs if run.process.returncode is not None]
    said = [line for run in runs for line in run.lines if line.startswith("fab: ")]
    row = {
        "row": " ".join((request.function.__doc__ or "").split()),
        "test": request.node.name,
        "exit": [run.process.returncode for run in runs],
        "hosts": {host: _place(lab, host, release) for host in hosts},
        "place": lab.place,
        "says": said[0] if said else "",
        "seconds": round(seconds, 1),
        **counts,
    }
    with Path(os.environ[TABLE]).open("a") as table:
        table.write(json.dumps(row) + "\n")


def _place(lab, host, release):
    current = lab.current(host)
    return "old" if current == release else "new" if current else "none"
