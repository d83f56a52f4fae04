"""bin/demo outage: the story told in full on real processes, and what it does when something goes wrong."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel_stack.demo import outage
from kestrel_stack.demo.visitors import request
from support.broker import wait_until

ROOT = Path(__file__).parents[2]
PROCESSES = {"broker", "api", "direct", "queued", "mover", "python-1", "python-2"}


class Demo:
    """A running demo whose folder is below `tmp_path`, which is how its processes are found."""

    def __init__(self, tmp_path, *arguments):
        self.temp = tmp_path / "temp"
        self.temp.mkdir()
        self.picture = tmp_path / "outage.png"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kestrel_stack.demo", "outage", "--quick"),
                *("--png", str(self.picture), *arguments),
            ],
            env={**os.environ, "PYTHONPATH": _python_path(), "TMPDIR": str(self.temp), "PYTHONUTF8": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> dict[int, str]:
        """The command lines of everything that works in the demo's folder."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(self.temp):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, text: str) -> int:
        wait_until(lambda: any(text in line for line in self.processes().values()), text)
        return next(pid for pid, line in self.processes().items() if text in line)

    def read_until(self, text: str) -> None:
        """Read its output until a line has `text`."""
        for line in self.process.stdout:
            if text in line:
                return
        raise AssertionError(f"it never said {text!r}: {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def _python_path() -> str:
    return os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])


def row(output: str, name: str) -> list[int]:
    """The whole numbers of a table's row."""
    line = re.search(rf"^ *{re.escape(name)}  (.*)$", output, re.MULTILINE)
    assert line, f"no row {name!r} in:\n{output}"
    return [int(number) for number in re.findall(r"(?<![\d.])\d+(?![\d.]| m?s)", line[1])]


def test_every_order_is_done_once_while_the_api_is_down_and_a_worker_is_killed(tmp_path):
    no_php = outage.no_php()
    with Demo(tmp_path) as demo:
        code, out, err = demo.end()
    assert code == 0, out + err
    assert row(out, "queued") == [140, 140, 0, 0], "orders, arrived, never, twice"
    workers = "python-1, python-2" if no_php else "python-1, php-1, python-2, php-2"
    enqueued, done, retried, parked, lost, doubled = row(out, workers)
    # Every tenth order was sent twice; the worker that was killed may have had its job confirmed or not.
    assert enqueued == 154
    assert done >= enqueued
    assert retried > 0
    assert (parked, lost, doubled) == (0, 0, 0)
    assert row(out, "API down, queued")[1] == 0
    requests, failed = row(out, "API down, direct")
    assert 0 < failed <= requests
    assert row(out, "direct")[3] > 0, "a double click orders twice where nobody looks"
    assert "API down ─" in out
    assert ("No PHP workers" in out) == (no_php is not None)
    if demo.picture.exists():
        assert demo.picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    else:
        assert "No picture: Pillow is not installed" in out
    assert list(demo.temp.iterdir()) == [], "journals and logs of a good run are removed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_process_and_leaves_nothing(tmp_path, number):
    with Demo(tmp_path, "--no-php") as demo:
        demo.read_until("the API is down")
        assert len(demo.processes()) >= len(PROCESSES)
        demo.process.send_signal(number)
        code, _, err = demo.end()
    assert (code, err.strip()) == (130, "bin/demo: interrupted; every process of the demo has ended")
    assert demo.processes() == {}
    assert list(demo.temp.iterdir()) == []


def test_nothing_outlives_a_demo_that_is_killed(tmp_path):
    with Demo(tmp_path, "--no-php") as demo:
        demo.read_until("the API is down")
        demo.process.kill()
        demo.process.communicate()
        wait_until(lambda: not demo.processes(), "every process to end")


@pytest.mark.parametrize(
    ("name", "command"), [("broker", "kestrel_stack.broker"), ("api", "kestrel_stack.demo.api")]
)
def test_a_process_that_dies_ends_the_demo_with_its_name_and_keeps_the_logs(tmp_path, name, command):
    with Demo(tmp_path, "--no-php") as demo:
        demo.read_until("visitors come")
        os.kill(demo.pid_of(command), signal.SIGKILL)
        code, _, err = demo.end()
    assert code == 1
    assert re.fullmatch(rf"bin/demo: {name} ended with -9(: .*)? \(logs: .*\)\n", err), err
    assert (next(demo.temp.iterdir()) / "python-1.log").exists()
    assert demo.processes() == {}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "say which demo: bin/demo outage"),
        (["outrage"], 2, "unknown argument: outrage; see bin/demo --help"),
        (["outage", "--png"], 2, "--png needs a file; see bin/demo --help"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, says):
    done = subprocess.run([ROOT / "bin" / "demo", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, f"bin/demo: {says}\n")


def test_a_folder_as_the_picture_is_refused_before_anything_starts(tmp_path):
    command = [sys.executable, "-m", "kestrel_stack.demo", "outage", "--png", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"bin/demo: the picture's place {tmp_path} is a folder; name a file\n"


class TestThirdParty:
    @pytest.fixture
    def port(self, tmp_path):
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        command = [sys.executable, "-m", "kestrel_stack.demo.api", "api.port"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment)
        try:
            wait_until((tmp_path / "api.port").exists, "the API's port")
            yield json.loads((tmp_path / "api.port").read_text())["port"]
        finally:
            process.kill()
            process.wait()

    def test_it_takes_every_order_as_often_as_it_is_posted(self, port):
        async def story():
            answers = [await request(port, "POST", "/orders/a") for _ in range(2)]
            await request(port, "POST", "/orders/b")
            return [status for status, _ in answers], json.loads(
                (await request(port, "GET", "/control/orders"))[1]
            )

        assert asyncio.run(story()) == ([201, 201], {"a": 2, "b": 1})

    def test_down_it_answers_nobody_and_takes_nothing_not_even_when_it_is_back(self, port):
        async def story():
            await request(port, "POST", "/control/down")
            hanging = asyncio.create_task(request(port, "POST", "/orders/a"))
            done, _ = await asyncio.wait({hanging}, timeout=0.5)
            assert not done, "it answered"
            await request(port, "POST", "/control/up")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await hanging
            return json.loads((await request(port, "GET", "/control/orders"))[1])

        assert asyncio.run(story()) == {}

    def test_an_order_whose_sender_has_gone_is_not_taken(self, port):
        async def story():
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /orders/a HTTP/1.1\r\n\r\n")
            writer.close()
            # Two more one after the other: each takes as long as the first would have.
            for _ in range(2):
                await request(port, "POST", "/orders/b")
            return json.loads((await request(port, "GET", "/control/orders"))[1])

        assert asyncio.run(story()) == {"b": 2}


def test_without_php_the_reason_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(outage, "PHP", tmp_path)
    assert outage.no_php() == f"there is no {tmp_path / 'bin' / 'consumer'}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "consumer").touch()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert outage.no_php() == "php is not installed (apt-get install php-cli php-sqlite3)"
