"""``bin/test`` after the bootstrap: stages, one summary line each, and a table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from kestrel_stack.lab import daemon, image, newcomer, programs, report
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import CHECKOUT
from kestrel_stack.lab.progress import clock, say, step
from kestrel_stack.lab.up import ENGINE_STATE

SHELL_SCRIPTS = (
    "bin/up",
    "bin/down",
    "bin/test",
    "bin/demo",
    "bin/lib/bootstrap.sh",
    ".ci/run",
    "requirements/lock",
)
PHP_FOLDERS = ("php", "examples", "src", "tests", "bench")
NO_TESTS_COLLECTED = 5


@dataclass(frozen=True)
class Stage:
    """One line of the table: commands, which all run in the checkout's root, or a function (exit code)."""

    name: str
    about: str
    commands: Sequence[Sequence[str]] = ()
    function: Callable[[], int] | None = None
    docker: bool = False
    long: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def pytest(*arguments: str) -> list[str]:
    """Return a pytest command that leaves no cache in the checkout."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]


def molecule(scenario: str) -> list[str]:
    """Return the command that runs one molecule scenario."""
    return [programs.tool("molecule"), "test", "--scenario-name", scenario]


def scenarios(folder: Path = CHECKOUT / "molecule") -> list[str]:
    """Return the names of the molecule scenarios, ``default`` first."""
    names = sorted(path.parent.name for path in folder.glob("*/molecule.yml"))
    return sorted(names, key=lambda name: name != "default")


def php_syntax() -> int:
    """Let PHP read every PHP file; print what it refuses. Return 0 when it refuses none."""
    bad = 0
    for path in php_files():
        # One file at a time: before PHP 8.3 it takes no more.
        try:
            done = subprocess.run(
                ["php", "-l", path], cwd=CHECKOUT, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise LabError("php is not installed: apt install php-cli") from None
        if done.returncode:
            bad += 1
            say((done.stderr or done.stdout).strip())
    return min(bad, 1)


def php_files(root: Path = CHECKOUT) -> list[str]:
    """Return the PHP files of the checkout: *.php, and the programs that PHP runs."""
    found = [path for folder in PHP_FOLDERS for path in (root / folder).rglob("*.php")]
    found += [path for path in (root / "php/bin").glob("*") if path.is_file()]
    return sorted({path.relative_to(root).as_posix() for path in found})


def stages(*, long: bool) -> list[Stage]:
    """Return every stage, in the order in which they run: cheap ones first."""
    tool = programs.tool
    plain = [] if sys.stdout.isatty() else ["--nocolor"]
    unlong = "" if long else " and not long"
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
        Stage("unit", "pytest tests/unit", [pytest("tests/unit", "-m", f"not docker{unlong}")]),
        Stage(
            "php",
            "php -l, phpunit -c php/phpunit.xml",
            [["phpunit", "-c", "php/phpunit.xml"]],
            php_syntax,
        ),
        Stage(
            "processes",
            "pytest contract, integration, faults: real processes and sockets on loopback",
            [pytest("tests/contract", "tests/integration", "tests/faults", "-m", f"not docker{unlong}")],
        ),
        Stage(
            "docker",
            "pytest marked docker: the lab's containers",
            [pytest("-m", f"docker{unlong}")],
            docker=True,
        ),
    ]
    thorough = {"KESTREL_STACK_LONG": "1"} if long else {}
    for name in scenarios():
        about = f"molecule test -s {name}"
        found.append(Stage(f"molecule-{name}", about, [molecule(name)], docker=True, environment=thorough))
    found.append(
        Stage("newcomer", "a fresh clone: bin/up twice, bin/down twice", function=newcomer.run, docker=True)
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
        )
    )
    return [stage for stage in found if long or not stage.long]


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


def run_stage(stage: Stage) -> Result:
    """Run a stage, its output let through, and return how it ended; a missing program is a failure too."""
    started = time.monotonic()
    failed = []
    say(f"=== {stage.name}: {stage.about}")
    if stage.function is not None:
        try:
            if stage.function() != 0:
                failed.append(stage.name)
        except LabError as error:
            failed.append(str(error))
        except Exception as error:
            # A defect of the stage itself: the other stages still run, and the table still comes.
            traceback.print_exc()
            failed.append(f"{type(error).__name__}: {error}")
    # In a pipe the runners' colours would be noise in a log.
    colours = {} if sys.stdout.isatty() else {"NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
    for command in stage.commands:
        name = " ".join([Path(command[0]).name, *command[1:]][:3])
        try:
            code = programs.run_through(
                command, environment={**os.environ, **colours, **stage.environment}, cwd=CHECKOUT
            )
        except OSError as error:
            failed.append(f"{name}: {error.strerror}")
            continue
        if code != 0 and not _nothing_to_run(command, code):
            failed.append(f"{name}: exit {code}")
    return Result(stage.name, not failed, time.monotonic() - started, "; ".join(failed))


def _nothing_to_run(command: Sequence[str], code: int) -> bool:
    return "pytest" in command and code == NO_TESTS_COLLECTED


def run(*, long: bool, only: Sequence[str], list_only: bool) -> int:
    """Run the stages; return 0 when all passed, 1 when any failed, 130 when interrupted."""
    known = stages(long=long or bool(only))
    if list_only:
        for stage in stages(long=True):
            say(f"{stage.name:<22} {stage.about}{' (--long)' if stage.long else ''}")
        return 0
    unknown = sorted(set(only) - {stage.name for stage in known})
    if unknown:
        raise LabError(
            f"--only {unknown[0]}: no such stage; there are: {', '.join(stage.name for stage in known)}"
        )
    chosen = [stage for stage in known if stage.name in only] if only else known
    programs.interrupts_on_term()
    results: list[Result] = []
    started_engine = False
    code = 0
    try:
        if any(stage.docker for stage in chosen):
            started_engine = _prepare(chosen, results)
        for stage in chosen:
            result = run_stage(stage)
            results.append(result)
            say(result.line() + "\n")
    except KeyboardInterrupt:
        say("\nbin/test: interrupted; what ran:", sys.stderr)
        code = 130
    finally:
        if started_engine:
            about_engine = daemon.stop(ENGINE_STATE)
            say(about_engine or "")
    _table(results)
    return code or (1 if any(not result.passed for result in results) else 0)


def _prepare(chosen: Sequence[Stage], results: list[Result]) -> bool:
    """Start an engine where none answers and make the host images, so that no stage's time includes that."""
    started = time.monotonic()
    with step("Docker engine") as at:
        started_engine = daemon.ensure(ENGINE_STATE)
        at.result = "started" if started_engine else "answers"
    suites = ["bookworm", *(["trixie"] if any(stage.long for stage in chosen) else [])]
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


def _table(results: Sequence[Result]) -> None:
    table = Table("stage", "result", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("time", justify="right")
    table.add_column("note")
    for result in results:
        table.add_row(
            result.name, "passed" if result.passed else "FAILED", clock(result.seconds), result.note
        )
    table.add_row("total", "", clock(sum(result.seconds for result in results)), "")
    width = None if sys.stdout.isatty() else report.PIPE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)
