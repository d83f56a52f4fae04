from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel_stack.lab import cli, php_syntax, stages
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.stages import Stage

ROOT = Path(__file__).resolve().parents[3]


def use(monkeypatch: pytest.MonkeyPatch, *chosen: Stage) -> None:
    monkeypatch.setattr(
        stages,
        "stages",
        lambda *, long, only=(): [stage for stage in chosen if long or not stage.long or stage.name in only],
    )


def run(*only: str, long: bool = False) -> int:
    return stages.run(long=long, only=only, list_only=False)


def test_every_stage_runs_although_the_first_fails_and_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(
        monkeypatch,
        Stage("bad", "fails", [["false"], ["touch", str(tmp_path / "same-stage")]]),
        Stage("good", "passes", [["touch", str(tmp_path / "next-stage")]]),
    )
    assert run() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["next-stage", "same-stage"]
    out = capsys.readouterr().out
    assert "=== bad: FAILED" in out
    assert "false: exit 1" in out
    assert "=== good: passed" in out


def test_all_stages_passing_is_success(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Stage("good", "passes", [["true"]]))
    assert run() == 0


def test_a_program_that_is_missing_fails_its_stage_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Stage("bad", "missing", [["/no/such/linter"]]), Stage("good", "passes", [["true"]]))
    assert run() == 1
    assert "linter: No such file" in capsys.readouterr().out


def test_a_stage_that_hangs_is_ended_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "LEAST_MINUTES", 0.005)
    after = tmp_path / "after"
    commands = [["sleep", "600"], ["touch", str(after)]]
    use(
        monkeypatch,
        Stage("hangs", "never ends", commands, minutes=0),
        Stage("good", "passes", [["true"]]),
    )
    assert run() == 1
    said = capsys.readouterr().out
    assert "=== hangs: FAILED in " in said
    assert "sleep 600: ended after 0.3 s, it hangs" in said
    assert "=== good: passed" in said
    assert not after.exists()


def test_only_runs_what_it_names_even_a_long_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(
        monkeypatch,
        Stage("one", "", [["touch", str(tmp_path / "one")]]),
        Stage("two", "", [["touch", str(tmp_path / "two")]], long=True),
    )
    assert run("two") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_long_stages_run_with_long_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(
        monkeypatch,
        Stage("one", "", [["true"]]),
        Stage("two", "", [["touch", str(tmp_path / "two")]], long=True),
    )
    assert run() == 0
    assert not (tmp_path / "two").exists()
    assert run(long=True) == 0
    assert (tmp_path / "two").exists()


def test_an_unknown_stage_is_refused_naming_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Stage("lint", ""), Stage("unit", ""))
    with pytest.raises(LabError, match="lnt: no such stage; there are: lint, unit"):
        run("lnt")


@pytest.mark.parametrize("named", [["two"], ["--only", "two"], ["two", "--only", "one"]])
def test_stages_are_named_with_and_without_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: list[str]
) -> None:
    names = ["one", "two", "three"]
    use(monkeypatch, *(Stage(name, "", [["touch", str(tmp_path / name)]]) for name in names))
    assert cli.main(["test", *named]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(named) - {"--only"}


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kestrel_stack.lab", "test", "--list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_stage_that_is_named_leaves_out_its_long_tests_unless_long_is_said() -> None:
    [short] = [stage for stage in stages.stages(long=False, only=["unit"]) if stage.name == "unit"]
    [long] = [stage for stage in stages.stages(long=True, only=["unit"]) if stage.name == "unit"]
    assert "not docker and not long" in short.commands[0]
    assert "not docker" in long.commands[0]


def test_the_labs_for_long_only_have_stages_of_their_own_and_no_other_collects_them() -> None:
    known = {stage.name: stage for stage in stages.stages(long=True)}
    assert set(stages.LONG_LABS) == {"faults", "operations", "upgrades"}
    for name, (folder, _) in stages.LONG_LABS.items():
        assert known[name].long
        assert known[name].docker
        assert folder in known[name].commands[0]
        for other in ("docker", "processes"):
            assert f"--ignore={folder}" in known[other].commands[0]


def test_the_stage_of_faults_ends_with_the_table() -> None:
    [faults] = [stage for stage in stages.stages(long=True) if stage.name == "faults"]
    assert list(faults.commands[-1][1:]) == ["-m", "support.proof", "--print"]


def test_a_folder_without_tests_of_a_kind_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "test_nothing.py").write_text("")
    use(monkeypatch, Stage("unit", "", [stages.pytest("--rootdir", str(tmp_path), str(tmp_path))]))
    assert run() == 0


def test_files_run_side_by_side_and_the_tests_of_one_share_what_it_set_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"test_{one}.py").write_text(f"""
import pathlib, time
before = []

def test_it_meets_the_other():
    before.append("ran here")
    pathlib.Path({str(tmp_path)!r}, "{one}").touch()
    until = time.monotonic() + 60
    while not pathlib.Path({str(tmp_path)!r}, "{other}").exists():
        assert time.monotonic() < until
        time.sleep(0.01)

def test_it_is_where_the_one_before_was():
    assert before == ["ran here"]
""")
    use(monkeypatch, Stage("unit", "", [stages.side_by_side("--rootdir", str(tmp_path), str(tmp_path))]))
    assert run() == 0


def fails_at_first(folder: Path, name: str, times: int) -> None:
    (folder / f"test_{name}.py").write_text(f"""
import pathlib

def test_{name}():
    tries = pathlib.Path({str(folder)!r}, "{name}.tries")
    with tries.open("a") as file:
        file.write("x")
    assert len(tries.read_text()) > {times}, "a busy machine"
""")


def test_what_fails_is_tried_once_more_and_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fails_at_first(tmp_path, "race", 1)
    command = stages.side_by_side(*stages.SECOND_TRY, "--rootdir", str(tmp_path), str(tmp_path))
    use(monkeypatch, Stage("unit", "", [command]))
    assert run() == 0
    out = capfd.readouterr().out
    assert "1 passed, 1 rerun" in out
    assert "test_race" in out
    assert "a busy machine" in out


def test_what_fails_twice_or_too_often_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "defect").mkdir()
    fails_at_first(tmp_path / "defect", "defect", 2)
    (tmp_path / "races").mkdir()
    for number in range(4):
        fails_at_first(tmp_path / "races", f"race{number}", 1)
    for name in ("defect", "races"):
        folder = str(tmp_path / name)
        command = stages.side_by_side(*stages.SECOND_TRY, "--rootdir", folder, folder)
        use(monkeypatch, Stage("unit", "", [command]))
        assert run() == 1


def test_under_long_nothing_is_tried_again() -> None:
    def trying_again(long: bool) -> set[str]:
        return {
            stage.name
            for stage in stages.stages(long=long)
            if any(set(stages.SECOND_TRY) <= set(command) for command in stage.commands)
            or set(stages.SECOND_TRY) <= set(stage.environment.get("PYTEST_ADDOPTS", "").split())
        }

    pytests = {"unit", "processes", "browser", "docker", "molecule-default", "molecule-kestrel"}
    assert trying_again(False) == pytests
    assert trying_again(True) == set()


def test_the_real_stages_have_each_molecule_scenario_and_debian_13_only_under_long() -> None:
    scenarios = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")}
    short = [stage.name for stage in stages.stages(long=False)]
    long = {stage.name: stage for stage in stages.stages(long=True)}
    assert len(set(short)) == len(short)
    assert {f"molecule-{name}" for name in scenarios} <= set(long)
    left = {name for name in scenarios if f"molecule-{name}" not in short}
    assert left == set(stages.LONG_SCENARIOS)
    assert not any(name.startswith("trixie-") for name in short)
    for name in scenarios:
        assert long[f"trixie-{name}"].environment["KESTREL_STACK_SUITE"] == "trixie"
    assert long["trixie-kestrel-release-java25"].environment["KESTREL_STACK_JAVA"] == "25"


def test_every_php_file_of_the_checkout_is_read_by_php() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout
    scripts = {
        name
        for name in listed.splitlines()
        if (ROOT / name).is_file()
        and (name.endswith(".php") or (ROOT / name).read_bytes()[:40].startswith(b"#!/usr/bin/env php"))
    }
    assert {"php/autoload.php", "php/bin/consumer", "examples/shop/php/jobs.php"} <= scripts
    assert scripts <= set(php_syntax.files())


def test_every_shell_script_of_the_checkout_is_linted() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout
    scripts = {
        name
        for name in listed.splitlines()
        if (ROOT / name).is_file()
        and (ROOT / name).read_bytes()[:80].splitlines()[:1]
        in ([b"#!/usr/bin/env bash"], [b"#!/bin/bash"], [b"#!/bin/sh"])
    }
    assert {"bin/up", "bin/down", "bin/test", ".ci/run"} <= scripts
    assert {name for name in scripts if not name.startswith(("templates/", "src/", "tests/"))} <= set(
        stages.SHELL_SCRIPTS
    )


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stages with containers, without an engine to prepare."""
    monkeypatch.setattr(stages, "_prepare", lambda chosen, results: False)
    monkeypatch.setattr(stages, "LOGS", tmp_path / "logs")


def waits_for(path: Path) -> list[str]:
    return ["timeout", "30", "sh", "-c", f"until [ -e {path} ]; do sleep 0.01; done"]


@pytest.mark.usefixtures("no_engine")
def test_stages_with_containers_run_beside_the_others_and_are_shown_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    use(
        monkeypatch,
        Stage("cheap", "", [["echo", "cheap says"], waits_for(tmp_path / "met"), ["echo", "cheap said"]]),
        Stage("both", "", [["false"]]),
        Stage("boxes", "", [["echo", "boxes say"], ["touch", str(tmp_path / "met")]], docker=True),
        Stage("molecule-x", "", [["sh", "-c", "echo more says >&2"]], docker=True, scenario="x"),
    )
    assert run() == 1
    out = capfd.readouterr().out
    shown = [
        *("=== cheap:", "cheap says", "cheap said", "=== cheap: passed", "=== both:", "=== both: FAILED"),
        *(
            "=== boxes:",
            "boxes say",
            "=== boxes: passed",
            "=== molecule-x:",
            "more says",
            "=== molecule-x: passed",
        ),
    ]
    places = [out.index(text) for text in shown]
    assert places == sorted(places)


def test_this_machine_has_a_lane_and_containers_share_two_that_begin_with_the_longest() -> None:
    here, boxes, same = stages.lanes(stages.stages(long=False))
    assert here[0].name == "lint"
    assert not any(stage.docker for stage in here)
    assert boxes is same
    assert [stage.name for stage in boxes[:3]] == ["docker", "molecule-default", "molecule-kestrel"]
    assert {stage.name for stage in here + boxes} == {stage.name for stage in stages.stages(long=False)}


def test_one_stage_with_containers_has_one_lane_and_prints_at_once() -> None:
    [lane] = stages.lanes([Stage("boxes", "", docker=True)])
    assert [stage.name for stage in lane] == ["boxes"]


@pytest.mark.usefixtures("no_engine")
def test_two_stages_with_containers_run_at_once_and_each_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    met = tmp_path / "met"
    use(
        monkeypatch,
        Stage("short", "", [["touch", str(met)], ["mkdir", str(tmp_path / "short")]], docker=True, minutes=1),
        Stage("long", "", [waits_for(met), ["mkdir", str(tmp_path / "long")]], docker=True, minutes=2),
        Stage("other", "", [["mkdir", str(tmp_path / "other")]], docker=True, minutes=1),
    )
    assert run() == 0
    assert sorted(path.name for path in tmp_path.glob("[los]*[gtr]")) == ["long", "other", "short"]


@pytest.mark.usefixtures("no_engine")
def test_no_process_of_a_stage_compiles_again_what_another_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import sys; sys.exit(sys.dont_write_bytecode)"
    use(monkeypatch, Stage("one", "", [[sys.executable, "-c", code]]))
    assert run() == 0


@pytest.mark.usefixtures("no_engine")
def test_a_lane_that_has_done_its_own_takes_a_scenario_of_molecules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(
        monkeypatch,
        Stage("cheap", "", [["true"]]),
        Stage("molecule-x", "", [waits_for(tmp_path / "met")], docker=True, scenario="x"),
        Stage("molecule-y", "", [["touch", str(tmp_path / "met")]], docker=True, scenario="y"),
    )
    assert run() == 0


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("kind", ["a scenario", "this machine's"])
def test_one_scenario_is_never_run_twice_at_once_and_this_machines_stages_are_not_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    busy = tmp_path / "busy"
    # Either fails when the other has the folder; the lane of boxes is free for them from the beginning.
    alone = [["mkdir", str(busy)], ["sleep", "0.3"], ["rmdir", str(busy)]]
    words = {"docker": True, "scenario": "x"} if kind == "a scenario" else {}
    use(
        monkeypatch,
        Stage("molecule-x", "", alone, **words),
        Stage("trixie-x", "", alone, **words),
        Stage("boxes", "", [["true"]], docker=True),
    )
    assert run() == 0


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_interrupt_lets_every_stage_clean_up_and_ends_with_130_and_a_table(
    tmp_path: Path, lanes: int
) -> None:
    script = """
import sys
from kestrel_stack.lab import stages
lanes, folder = int(sys.argv[1]), stages.Path(sys.argv[2])
ready = folder / "ready"
wait = f"until [ -e {ready} ]; do sleep 0.01; done; " if lanes == 2 else ""
slow = ["bash", "-c", f"trap 'echo cleaned up; exit 1' INT; {wait}echo started; sleep 300 >&- & wait"]
other = ["bash", "-c", f"trap 'echo cleaned up, too; exit 1' INT; touch {ready}; sleep 300 >&- & wait"]
chosen = [stages.Stage("good", "", [["true"]]), stages.Stage("slow", "", [slow])]
chosen += [stages.Stage("boxes", "", [other], docker=True)] * (lanes == 2)
stages._prepare = lambda chosen, results: False
stages.LOGS = folder / "logs"
stages.stages = lambda *, long, only=(): chosen
sys.exit(stages.run(long=False, only=(), list_only=False))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(lanes), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
    )
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if line == "started\n":
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    after = seen.partition("started\n")[2]
    assert "cleaned up\n" in after
    assert ("cleaned up, too" in after) == (lanes == 2)
    assert "good" in after


@pytest.mark.parametrize(
    ("name", "suites"),
    [("faults", ["bookworm"]), ("trixie-default", ["bookworm", "trixie"])],
)
def test_host_images_are_made_of_the_debians_that_the_stages_ask_for(
    monkeypatch: pytest.MonkeyPatch, name: str, suites: list[str]
) -> None:
    made: list[str] = []
    monkeypatch.setattr(stages.daemon, "ensure", lambda state: False)
    monkeypatch.setattr(stages.image, "ensure", lambda suite, **_: made.append(suite) or (suite, False))
    stages._prepare([stage for stage in stages.stages(long=True) if stage.name == name], [])
    assert made == suites
