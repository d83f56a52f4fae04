"""The frame of the fault matrix: what it writes and undoes when a test in it fails. No hosts here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from support import fault_lab, proof
from support.fault_lab import FaultLab, Run
from support.load import Load, Note


class Hostless(FaultLab):
    """A lab whose hosts are only said to be there."""

    def __init__(self) -> None:
        self.whole = Path("nowhere/whole")
        self.addresses = dict.fromkeys(self.queue_hosts, "127.0.0.1")
        self.broken = ""
        self._undo = []
        self.runs = []
        self.well = True
        self.settled = 0
        self.found = [Note("a", 0, 0, 1, "release", "worker1")]

    def notes(self, load: Load) -> list[Note]:
        return self.found

    def settle(self, load: Load, seconds: float = 120) -> list[Note]:
        self.settled += 1
        return self.found

    def wait_for_health(self, seconds: float = 120) -> None:
        assert self.well, "not well"

    def container(self, host: str) -> str:
        raise AssertionError(f"{host} is gone")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def start(load: Load) -> Load:
        load.acknowledged["a"] = 1.0
        return load

    monkeypatch.setattr(fault_lab.Load, "start", start)
    monkeypatch.setattr(Run, "goes_on", lambda *words: None)
    monkeypatch.setattr(Hostless, "undo", lambda lab: None)
    monkeypatch.setenv(proof.VARIABLE, str(tmp_path / "rows.jsonl"))
    return tmp_path / "rows.jsonl"


def test_what_holds_is_a_row(rows: Path) -> None:
    with Hostless().under_load("broker", "a fault"):
        pass
    (row,) = proof.read([rows])
    assert (row.acknowledged, row.lost, row.doubled, row.failed) == (1, 0, 0, "")


@pytest.mark.parametrize("what", ["body", "health", "lost", "doubled"])
def test_what_does_not_hold_is_a_row_that_says_so_and_takes_an_earlier_ones_place(
    rows: Path, what: str
) -> None:
    lab = Hostless()
    with lab.under_load("broker", "a fault"):
        pass
    lab.well = what != "health"
    with pytest.raises(AssertionError), lab.under_load("broker", "a fault"):
        lab.found = {"lost": [], "doubled": 2 * lab.found}.get(what, lab.found)
        assert what != "body", "the fault did not take place"
    (row,) = proof.read([rows])
    assert row.failed
    assert (row.lost, row.doubled) == (int(what == "lost"), int(what == "doubled"))
    assert "a fault" in lab.broken


def test_the_load_ends_and_everything_is_undone_whatever_cannot_be(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hostless, "undo", FaultLab.undo)
    lab, undone = Hostless(), []
    deploy = SimpleNamespace(process=subprocess.Popen(["sleep", "600"]))
    lab.runs.append(deploy)
    with pytest.raises(AssertionError, match="is gone"), lab.under_load("broker", "a fault"):
        lab.finally_(lambda: undone.append("first"))
        lab.finally_(lambda: 1 / 0)
    assert undone == ["first"]
    assert lab.settled == 1
    assert deploy.process.poll() is not None


def test_hosts_that_were_kept_give_rows_of_the_commit_that_they_were_set_up_from(
    rows: Path, tmp_path: Path
) -> None:
    lab = Hostless()
    lab.whole = tmp_path / "whole"
    (tmp_path / "ready").write_text("embedded\n0123456789ab")
    with lab.under_load("broker", "a fault"):
        pass
    (row,) = proof.read([rows])
    assert row.commit == "0123456789ab"
