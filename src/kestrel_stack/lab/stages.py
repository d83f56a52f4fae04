"""``bin/test`` after the bootstrap: stages, one summary line each, and a table at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rich import box
from rich.console import Console
from rich.table import Table

from kestrel_stack.lab import daemon, image, programs, report
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import CHECKOUT
from kestrel_stack.lab.progress import clock, say, step
from kestrel_stack.lab.up import ENGINE_STATE

SHELL_SCRIPTS = (
    "bin/up",
    "bin/down",
    "bin/dev",
    "bin/test",
    "bin/demo",
    "bin/lib/bootstrap.sh",
    "bench/run",
    ".ci/run",
    "requirements/lock",
)
NO_TESTS_COLLECTED = 5
TESTS_PATH = f"{CHECKOUT / 'src'}{os.pathsep}{CHECKOUT / 'tests'}"
"""For programs of tests/support that run by themselves."""
AT_ONCE = 3
"""How many of these tests run side by side: most of their time they wait for processes, and for clocks.

No more than that, since stages with containers run meanwhile, and two cores are to be enough for all.
"""
LONG_SCENARIOS = ("consumers", "kestrel-release", "kestrel_web", "sentry", "sentry-self-hosted", "web")
"""For ``--long`` only: ``default`` has these roles as well.

What it has not (a release of Kestrel on Java, PHP's pages, another Bugsink in the place of one, Sentry by
its own installer, every variable changed) has tests of its parts in the stages that need no containers.
"""
MINUTES = {"default": 18, "sentry": 9}
"""Scenarios that take longer than the others; see `Stage.minutes`."""
LONG_LABS = {
    "faults": ("tests/faults/lab", "faults on a lab under load, counted: the rows of docs/proof.md"),
    "operations": ("tests/operations", "docs/operations.md, step by step on a lab"),
    "upgrades": ("tests/upgrades", "from earlier commits, half runs and single roles to this one"),
}
"""Stages for ``--long`` only, each with labs of its own: the folder of their tests, and what they show."""
LOGS = CHECKOUT / ".lab" / "test"
"""What stages print while another one's turn to be shown has not come."""
SECOND_TRY = ("--reruns=1", "--reruns-delay=2", "--max-suite-reruns=3", "--rerun-show-tracebacks")
"""A test that fails is tried once more, three in a stage at most, and is shown with what it failed of.

Not under ``--long``: who looks for a race wants it to fail.
"""
OUTSIDE_LONG_LABS = tuple(f"--ignore={folder}" for folder, _ in LONG_LABS.values())
POLL_SECONDS = 0.1
CLEAN_UP_SECONDS = 60.0
"""What an interrupted stage gets to remove its containers."""
PATIENCE = 4
"""How many times as long as it says a stage may take, on whatever machine; then it is ended: it hangs."""
LEAST_MINUTES = 40
"""What every stage may take."""


@dataclass(frozen=True)
class Stage:
    """One line of the table: commands, which all run in the checkout's root."""

    name: str
    about: str
    commands: Sequence[Sequence[str]] = ()
    docker: bool = False
    long: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    scenario: str = ""
    """Molecule's; each has hosts, a network and a folder of its own."""
    minutes: int = 5
    """About how long it takes beside others: of those with containers the longest begins first."""

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return 60.0 * max(LEAST_MINUTES, PATIENCE * self.minutes)


def pytest(*arguments: str) -> list[str]:
    """Return a pytest command that leaves no cache in the checkout, and names the tests that take longest."""
    slowest = ["--durations=10", "--durations-min=5"]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *slowest, *arguments]


def side_by_side(*arguments: str) -> list[str]:
    """Return a pytest command that runs several files at once, each of them as a whole.

    What a file sets up once (a run of Ansible, brokers) is still made once then.
    """
    return pytest("--numprocesses", str(AT_ONCE), "--dist", "loadfile", *arguments)


def molecule(scenario: str) -> list[str]:
    """Return the command that runs one molecule scenario."""
    return [programs.tool("molecule"), "test", "--scenario-name", scenario]


def scenarios(folder: Path = CHECKOUT / "molecule") -> list[str]:
    """Return the names of the molecule scenarios, ``default`` first."""
    names = sorted(path.parent.name for path in folder.glob("*/molecule.yml"))
    return sorted(names, key=lambda name: name != "default")


def stages(*, long: bool, only: Sequence[str] = ()) -> list[Stage]:
    """Return every stage, in the order in which they run: cheap ones first.

    Those for ``--long`` come if it is given, or if they are named. Tests marked long run with it only.
    """
    tool = programs.tool
    plain = [] if sys.stdout.isatty() else ["--nocolor"]
    unlong = "" if long else " and not long"
    again = () if long else SECOND_TRY
    found = [
        Stage(
            "lint",
            "ruff, yamllint, ansible-lint (profile production), shellcheck",
            [
                [tool("ruff"), "check", "."],
                [tool("ruff"), "format", "--check", "."],
                [tool("yamllint"), "--strict", "."],
                [tool("ansible-lint"), "--offline", "--profile", "production", *plain],
                [tool("shellcheck"), "--external-sources", *SHELL_SCRIPTS],
            ],
        ),
        Stage(
            "unit",
            "pytest tests/unit",
            [side_by_side("tests/unit", *again, "-m", f"not docker{unlong}")],
        ),
        Stage(
            "php",
            "php -l, phpunit -c php/phpunit.xml",
            [
                [sys.executable, "-m", "kestrel_stack.lab.php_syntax"],
                ["phpunit", "-c", "php/phpunit.xml"],
            ],
        ),
        Stage(
            "processes",
            "pytest contract, integration, faults: real processes and sockets on loopback",
            [
                side_by_side(
                    *("tests/contract", "tests/integration", "tests/faults"),
                    *(*OUTSIDE_LONG_LABS, *again, "-m", f"not docker{unlong}"),
                )
            ],
        ),
        Stage(
            "browser",
            "pytest tests/browser: kestrel-web in a real browser",
            [pytest("tests/browser", *again, "-m", f"not docker{unlong}")],
        ),
        Stage(
            "docker",
            "pytest marked docker: the lab's containers",
            [pytest(*OUTSIDE_LONG_LABS, *again, "-m", f"docker{unlong}")],
            docker=True,
            minutes=120 if long else 20,
        ),
    ]
    thorough = {"KESTREL_STACK_LONG": "1"} if long else {}
    # molecule calls pytest itself.
    verified = thorough or {"PYTEST_ADDOPTS": " ".join(SECOND_TRY)}
    for name in scenarios():
        about = f"molecule test -s {name}"
        found.append(
            Stage(
                f"molecule-{name}",
                about,
                [molecule(name)],
                docker=True,
                long=name in LONG_SCENARIOS,
                environment=verified,
                scenario=name,
                minutes=MINUTES.get(name, 7),
            )
        )
    found.append(
        Stage(
            "newcomer",
            f"a fresh clone: bin/up{'' if long else ' --env single'} twice, bin/down twice",
            [[sys.executable, "-m", "kestrel_stack.lab.newcomer"]],
            docker=True,
            minutes=6,
            environment=thorough,
        )
    )
    for name, (folder, about) in LONG_LABS.items():
        commands = [pytest(folder, "-m", "docker")]
        if name == "faults":
            commands.append([sys.executable, "-m", "support.proof", "--print"])
        found.append(
            Stage(
                *(name, about, commands),
                docker=True,
                long=True,
                environment={"PYTHONPATH": TESTS_PATH, **thorough},
                minutes=60,
            )
        )
    found.append(
        Stage(
            "trixie-controller",
            "a fresh clone on a controller of Debian 13: bin/test unit newcomer",
            [[sys.executable, "-m", "kestrel_stack.lab.controller"]],
            docker=True,
            long=True,
            environment={"KESTREL_STACK_SUITE": "trixie"},
            minutes=20,
        )
    )
    for name in scenarios():
        found.append(
            Stage(
                f"trixie-{name}",
                f"molecule test -s {name} on Debian 13",
                [molecule(name)],
                docker=True,
                long=True,
                environment={"KESTREL_STACK_SUITE": "trixie", **thorough},
                scenario=name,
                minutes=MINUTES.get(name, 7),
            )
        )
    found.append(
        Stage(
            "trixie-kestrel-release-java25",
            "molecule test -s kestrel-release on Debian 13 with Java 25",
            [molecule("kestrel-release")],
            docker=True,
            long=True,
            environment={"KESTREL_STACK_SUITE": "trixie", "KESTREL_STACK_JAVA": "25"},
            scenario="kestrel-release",
        )
    )
    return [stage for stage in found if long or not stage.long or stage.name in only]


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    name: str
    passed: bool
    seconds: float
    note: str = ""

    def line(self) -> str:
        """Return the stage's one summary line."""
        word = "passed" if self.passed else "FAILED"
        return f"=== {self.name}: {word} in {clock(self.seconds)}{f' ({self.note})' if self.note else ''}"


class Run:
    """A stage that runs: one command after the other, a failing one does not stop the rest."""

    def __init__(self, stage: Stage, out: BinaryIO | None) -> None:
        """Output goes to ``out``, or is let through."""
        self.stage = stage
        self.result: Result | None = None
        self._out = out
        self._commands = iter(stage.commands)
        self._command: Sequence[str] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed: list[str] = []
        self._started = 0.0

    def poll(self) -> bool:
        """Begin, or go on where a command has ended; return whether the stage has."""
        if not self._started:
            self._started = time.monotonic()
            self._next()
        while self.result is None and self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            if code != 0 and not _nothing_to_run(self._command, code):
                self._failed.append(f"{self._name()}: exit {code}")
            self._next()
        if self.result is None and time.monotonic() - self._started > self.stage.limit:
            self._failed.append(f"{self._name()}: ended after {clock(self.stage.limit)}, it hangs")
            self._commands = iter(())
            self.end()
        return self.result is not None

    def end(self) -> None:
        """End the command that runs, with time to clean up."""
        if self._process is not None and self._process.poll() is None:
            programs.end(self._process, CLEAN_UP_SECONDS)

    def _next(self) -> None:
        for command in self._commands:
            self._command = command
            try:
                with programs.interrupts_held():
                    self._process = programs.start(
                        command, environment=_environment(self.stage), cwd=CHECKOUT, out=self._out
                    )
                return
            except OSError as error:
                self._failed.append(f"{self._name()}: {error.strerror}")
        took = time.monotonic() - self._started
        self.result = Result(self.stage.name, not self._failed, took, "; ".join(self._failed))

    def _name(self) -> str:
        return " ".join([Path(self._command[0]).name, *self._command[1:]][:3])


def _environment(stage: Stage) -> dict[str, str]:
    # In a pipe the runners' colours would be noise in a log; on a terminal they see a file and must be told.
    colours = {"NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
    if sys.stdout.isatty():
        colours = {"FORCE_COLOR": "1", "ANSIBLE_FORCE_COLOR": "1", "PY_COLORS": "1"}
    # Thousands of processes start in a run: none of them is to compile again what another one has.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **colours, **stage.environment}


def _nothing_to_run(command: Sequence[str], code: int) -> bool:
    return "pytest" in command and code == NO_TESTS_COLLECTED


def lanes(chosen: Sequence[Stage]) -> list[list[Stage]]:
    """Return what waits for each lane: stages go one after the other in a lane, lanes side by side.

    This machine's own stages have one lane; those with containers share two, the longest first, so that no
    lane ends long after the others. Each has containers and a network of its own.
    """
    here = [stage for stage in chosen if not stage.docker]
    boxes = sorted((stage for stage in chosen if stage.docker), key=lambda stage: -stage.minutes)
    # One list, from which both take.
    return [lane for lane in (here, boxes, boxes if len(boxes) > 1 else []) if lane]


def take(waiting: Sequence[list[Stage]], number: int, running: Sequence[Stage]) -> Stage | None:
    """Take a lane's next stage; a lane that has none left helps with the containers.

    Never a scenario that runs: on another Debian its hosts have the same names.
    """
    lane = waiting[number] or next((lane for lane in waiting if lane and lane[0].docker), [])
    busy = {stage.scenario for stage in running if stage.scenario}
    for stage in lane:
        if stage.scenario not in busy:
            lane.remove(stage)
            return stage
    return None


def run_stages(chosen: Sequence[Stage], results: list[Result]) -> None:
    """Run the stages in their lanes; what they print comes stage by stage, in order, as soon as it can.

    ``results`` gets each stage's as it ends. On an interrupt every stage gets time to clean up.
    """
    waiting = lanes(chosen)
    if len(waiting) == 1:
        for stage in chosen:
            _run_alone(stage, results)
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = {stage.name: stack.enter_context((LOGS / f"{stage.name}.log").open("wb")) for stage in chosen}
        logs = {stage.name: stack.enter_context((LOGS / f"{stage.name}.log").open("rb")) for stage in chosen}
        ended: dict[str, Result] = {}
        running: list[Run | None] = [None] * len(waiting)
        shown = list(chosen)
        begun = False
        try:
            while shown:
                for number, run in enumerate(running):
                    if run is not None and run.poll() and run.result is not None:
                        ended[run.stage.name] = run.result
                        results.append(run.result)
                        running[number] = run = None
                    busy = [other.stage for other in running if other is not None]
                    if run is None and (stage := take(waiting, number, busy)) is not None:
                        running[number] = Run(stage, files[stage.name])
                if not begun:
                    say(f"=== {shown[0].name}: {shown[0].about}")
                    begun = True
                # Whether it has ended is asked first: then all that it printed is there to be shown.
                result = ended.get(shown[0].name)
                news = _show(logs[shown[0].name])
                if result is not None:
                    say(result.line() + "\n")
                    shown.pop(0)
                    begun = False
                elif not news:
                    time.sleep(POLL_SECONDS)
        except BaseException:
            for run in running:
                if run is not None:
                    run.end()
            for stage in shown:
                _show(logs[stage.name])
            raise


def _run_alone(stage: Stage, results: list[Result]) -> None:
    say(f"=== {stage.name}: {stage.about}")
    run = Run(stage, None)
    try:
        while not run.poll():
            time.sleep(POLL_SECONDS)
    except BaseException:
        run.end()
        raise
    assert run.result is not None
    results.append(run.result)
    say(run.result.line() + "\n")


def _show(log: BinaryIO) -> bool:
    """Print what a stage has written since the last time; return whether that was anything."""
    data = log.read()
    if data:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return bool(data)


def run(*, long: bool, only: Sequence[str], list_only: bool) -> int:
    """Run the stages; return 0 when all passed, 1 when any failed, 130 when interrupted."""
    known = stages(long=True)
    if list_only:
        for stage in known:
            say(f"{stage.name:<22} {stage.about}{' (--long)' if stage.long else ''}")
        return 0
    unknown = sorted(set(only) - {stage.name for stage in known})
    if unknown:
        raise LabError(f"{unknown[0]}: no such stage; there are: {', '.join(stage.name for stage in known)}")
    chosen = [stage for stage in stages(long=long, only=only) if not only or stage.name in only]
    programs.interrupts_on_term()
    started = time.monotonic()
    results: list[Result] = []
    started_engine = False
    code = 0
    try:
        if any(stage.docker for stage in chosen):
            started_engine = _prepare(chosen, results)
        run_stages(chosen, results)
    except KeyboardInterrupt:
        say("\nbin/test: interrupted; what ran:", sys.stderr)
        code = 130
    finally:
        if started_engine:
            about_engine = daemon.stop(ENGINE_STATE)
            say(about_engine or "")
    order = ["prepare", *(stage.name for stage in chosen)]
    results.sort(key=lambda result: order.index(result.name))
    _table(results, time.monotonic() - started, side_by_side=len(lanes(chosen)) > 1)
    return code or (1 if any(not result.passed for result in results) else 0)


def _prepare(chosen: Sequence[Stage], results: list[Result]) -> bool:
    """Start an engine where none answers and make the host images, so that no stage's time includes that."""
    started = time.monotonic()
    with step("Docker engine") as at:
        started_engine = daemon.ensure(ENGINE_STATE)
        at.result = "started" if started_engine else "answers"
    named = [stage.environment.get("KESTREL_STACK_SUITE", "bookworm") for stage in chosen]
    suites = list(dict.fromkeys(["bookworm", *named]))
    try:
        for suite in suites:
            with step(f"Host image, {suite}") as at:
                name, built = image.ensure(
                    suite, log=CHECKOUT / ".lab" / "bootstrap" / "image.log", say=at.detail
                )
                at.result = f"built {name}" if built else name
    except BaseException:
        if started_engine:
            daemon.stop(ENGINE_STATE)
        raise
    results.append(Result("prepare", True, time.monotonic() - started))
    say("")
    return started_engine


def _table(results: Sequence[Result], seconds: float, *, side_by_side: bool) -> None:
    table = Table("stage", "result", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("time", justify="right")
    table.add_column("note")
    for result in results:
        table.add_row(
            result.name, "passed" if result.passed else "FAILED", clock(result.seconds), result.note
        )
    table.add_row("total", "", clock(seconds), "side by side" if side_by_side else "")
    width = None if sys.stdout.isatty() else report.PIPE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)
