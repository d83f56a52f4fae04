"""The worker's flags and exit statuses: tests/contract/jobs/cli.json."""

import json
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.broker import DEADLINE_S
from support.jobs import CASES, cases
from support.worker import APPLICATIONS, LANGUAGES, clean_environment, consumer

CONTRACT = json.loads((CASES / "cli.json").read_text())


class CommandLine:
    """Runs a worker with the arguments of a case, in the folder of the application."""

    def __init__(self, stage):
        self.stage = stage

    def config(self, case: dict) -> Path:
        return self.stage.app.folder / f"settings{case.get('number', '')}.json"

    def fill(self, text: str, case: dict) -> str:
        (other,) = {*LANGUAGES} - {self.stage.language}
        for name, value in (
            ("app", APPLICATIONS[self.stage.language]),
            ("servers", self.stage.broker.address),
            ("config", str(self.config(case))),
            ("language", self.stage.language),
            ("other", other),
        ):
            text = text.replace(f"{{{name}}}", value)
        return text

    def run_all(self, part: str) -> list[tuple[dict, subprocess.CompletedProcess]]:
        """Run every case of a part, some at a time."""
        found = [{**case, "number": number} for number, case in enumerate(cases("cli.json", part))]
        with ThreadPoolExecutor(4) as pool:
            return list(zip(found, pool.map(self.run, found), strict=True))

    def run(self, case: dict) -> subprocess.CompletedProcess:
        config = self.config(case)
        if "config" in case:
            content = case["config"]
            config.write_text(
                content if isinstance(content, str) else self.fill(json.dumps(content, indent=1), case)
            )
        environ = {key: self.fill(value, case) for key, value in case.get("environ", {}).items()}
        return subprocess.run(
            [*consumer(self.stage.language), *(self.fill(text, case) for text in case["arguments"])],
            cwd=self.stage.app.folder,
            env=clean_environment(self.stage.app, environ),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


@pytest.fixture
def command_line(stage):
    return CommandLine(stage)


def test_wrong_flags_and_settings_end_with_one_line_and_78_and_nothing_is_taken(command_line):
    command_line.stage.send("Note")
    for case, result in command_line.run_all("refused"):
        assert (result.returncode, result.stdout) == (78, ""), (case["name"], result.stderr)
        assert re.fullmatch("consumer: [^\n]+\n", result.stderr), (case["name"], result.stderr)
        missing = [said for said in case["said"] if command_line.fill(said, case) not in result.stderr]
        assert not missing, (case["name"], missing, result.stderr)
    assert command_line.stage.count() == 1


def test_flags_environment_and_settings_say_the_same_in_every_language(command_line):
    for case, result in command_line.run_all("accepted"):
        assert result.returncode == 0, (case["name"], result.stderr)
        begins = json.loads(result.stderr.splitlines()[0])
        assert begins["event"] == "worker begins"
        assert begins.items() >= case["begins"].items(), (case["name"], begins)
        assert begins["servers"] == command_line.stage.broker.address


def test_help_names_every_flag(command_line):
    result = command_line.run({"arguments": ["--help"]})
    assert (result.returncode, result.stderr) == (0, "")
    assert [flag for flag in CONTRACT["flags"] if not re.search(rf"(?m)^\s*{flag}\b", result.stdout)] == []
    assert "--min-uptime" not in result.stdout


BROKEN = {
    "python": {
        "missing:registry": None,
        "jobs_app:nothing": None,
        "broken:registry": "def (:\n",
        "raises:registry": "raise RuntimeError('at the start')\n",
        "ends:registry": "import sys\nsys.exit(3)\n",
        "empty:registry": "from kestrel_stack.consumer import Registry\nregistry = Registry()\n",
    },
    "php": {
        "missing.php": None,
        "nothing.php": "<?php\nreturn null;\n",
        "broken.php": "<?php\nfunction (\n",
        "raises.php": "<?php\nthrow new RuntimeException('at the start');\n",
        "ends.php": "<?php\nexit(3);\n",
        "empty.php": "<?php\nreturn new KestrelStack\\Consumer\\Registry();\n",
    },
}


def test_an_application_that_cannot_be_used_ends_the_worker_with_78_and_no_job_is_touched(stage):
    stage.send("Note")
    for number, (name, content) in enumerate(BROKEN[stage.language].items()):
        if content is not None:
            suffix = ".php" if stage.language == "php" else ".py"
            file = stage.app.folder / (name.partition(":")[0].removesuffix(suffix) + suffix)
            file.write_text(content)
        with stage.worker(app_name=name, name=f"unusable{number}") as worker:
            assert worker.end() == 78, (name, worker.log)
        (record,) = worker.events("application cannot be used")
        assert record["app"] == name
        assert "\n" not in record["error"]
        assert "Stack trace" not in worker.log and "Traceback" not in worker.log
    assert stage.count() == 1


def test_under_supervisor_a_hopeless_worker_stays_until_its_end_counts(stage):
    name = "missing:registry" if stage.language == "python" else "missing.php"
    with stage.worker(app_name=name, environ={"SUPERVISOR_ENABLED": "1"}) as worker:
        worker.wait_until(lambda: worker.events("application cannot be used"), "its complaint")
        assert worker.process.poll() is None
        assert worker.end(signal.SIGTERM) == 78
