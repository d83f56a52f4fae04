"""bin/dev: everything for someone who writes jobs, on real processes; what it does when things go wrong."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import urllib.request
from pathlib import Path

import pytest

from kestrel_stack.dev.cli import PHP_EXTENSIONS
from kestrel_stack.processes import PHP, no_php
from kestrel_stack.queue import Producer
from support.broker import wait_until
from support.dev import JOBS, ROOT, Dev, environment, processes_of, write


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """A bin/dev for an application that knows nothing of the checkout, in a folder with a space."""
    app = make_app(tmp_path_factory.mktemp("dev") / "my app")
    with Dev(app) as running:
        yield running.ready()


def make_app(folder: Path) -> Path:
    folder.mkdir()
    (folder / "jobs.py").write_text(JOBS)
    return folder


def have_terminal() -> None:
    """In a new session: make stdin its terminal, so that Ctrl-C and closing it mean this process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def listens(address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def healthz(url: str) -> int:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"{url}/healthz", timeout=5).status
    return 0


class TestOneApplication:
    def test_the_first_screen_says_what_runs_and_its_command_enqueues_a_job(self, dev):
        assert healthz(dev.web) == 200
        assert listens(dev.broker)
        queues = "fail_once, hello_world, leave_behind, wait_for"
        assert f"jobs:registry; one consumer for each of: {queues}\n" in dev.out
        command = re.search(r"Enqueue a test job\n +(.*)", dev.out)[1]
        dev.enqueue("HelloWorld", name="nobody")
        assert "enqueue FailOnce" in command
        subprocess.run(["/bin/sh", "-c", command], env=environment(), check=True, capture_output=True)
        dev.until(r"fail_once +FailOnce done in \d+ ms  \(acme ")

    def test_a_job_that_fails_shows_its_stack_and_comes_again_after_its_delay(self, dev):
        since = dev.mark
        job = dev.enqueue("FailOnce")
        dev.until(rf'fail_once +File "{re.escape(str(dev.app))}/jobs.py", line \d+, in fail_once', since)
        dev.until(r"fail_once +ZeroDivisionError: no luck at first", since)
        dev.until(r"fail_once +about to fail tried=1", since)
        dev.until(rf"FailOnce failed at attempt 1, again in 1 s: .*ZeroDivisionError.*\(acme {job}\)", since)
        dev.until(rf"FailOnce done in .*\(acme {job}\)", since)

    def test_the_applications_own_producer_finds_the_queues_by_the_variable_that_is_printed(self, dev):
        code = (
            "from kestrel_stack.queue import Producer\n"
            "Producer.from_settings(tenant='acme').enqueue('HelloWorld', {'name': 'Grace'})"
        )
        variables = environment(KESTREL_STACK_CONFIG=str(dev.settings))
        subprocess.run([sys.executable, "-c", code], env=variables, check=True, cwd=dev.app)
        dev.until("hello_world +hello Grace from version")

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("kestrel", "kestrel_stack.broker"),
            ("mover", "kestrel_stack.consumer.mover"),
            ("kestrel-web", "kestrel_stack.web"),
            ("hello_world", "kestrel_stack.consumer --queue hello_world"),
        ],
    )
    def test_a_process_that_dies_is_started_again_and_said_so(self, dev, name, command):
        since, pid = dev.mark, dev.pid(command)
        os.kill(pid, signal.SIGKILL)
        dev.until(rf"bin/dev +{name} was killed by SIGKILL; started again in [\d.]+ s", since)
        assert dev.pid(command) != pid
        wait_until(lambda: listens(dev.broker) and healthz(dev.web) == 200, "broker and kestrel-web")
        job = dev.enqueue("FailOnce")
        dev.until(rf"FailOnce done in .*\(acme {job}\)", since)
        dev.enqueue("HelloWorld", name=name)
        dev.until(rf"hello {name} from version", since)

    def test_saved_code_is_taken_after_the_job_in_hand_by_the_same_worker(self, dev, tmp_path):
        web, worker = dev.pid("kestrel_stack.web"), dev.pid("--queue wait_for")
        jobs = dev.app / "jobs.py"
        dev.enqueue("WaitFor", begun=str(tmp_path / "begun"), file=str(tmp_path / "go"))
        wait_until((tmp_path / "begun").exists, "the job to begin")
        since = dev.mark
        write(jobs, jobs.read_text().replace("VERSION = 1", "VERSION = 2"))
        dev.until("changed: jobs.py", since)
        dev.until("python consumers take the new code after the job in hand", since)
        (tmp_path / "go").touch()
        dev.until("wait_for +waited in version 1", since)
        dev.enqueue("WaitFor", begun=str(tmp_path / "begun"), file=str(tmp_path / "go"))
        dev.until("wait_for +waited in version 2", since)
        assert dev.pid("--queue wait_for") == worker
        assert dev.pid("kestrel_stack.web") == web
        # Saved twice within the same second, with the same size: no bytecode of the first may be taken.
        for version in (3, 4):
            since = dev.mark
            write(jobs, re.sub(r"VERSION = \d", f"VERSION = {version}", jobs.read_text()))
            dev.until("python consumers take the new code", since)
        dev.enqueue("WaitFor", begun=str(tmp_path / "begun"), file=str(tmp_path / "go"))
        dev.until("wait_for +waited in version 4", since)

    def test_a_syntax_error_is_shown_once_and_the_next_save_goes_on_with_what_waited(self, dev):
        jobs, since = dev.app / "jobs.py", dev.mark
        good = jobs.read_text()
        write(jobs, good + "\ndef broken(:\n")
        dev.until("jobs:registry cannot be imported:", since)
        dev.until(r"bin/dev +def broken\(:", since)
        dev.until("SyntaxError: ", since)
        dev.until("its consumers stop after the job in hand; jobs wait for the next save", since)
        wait_until(lambda: not any("--queue" in line for line in dev.processes().values()), "consumers' end")
        dev.enqueue("HelloWorld", name="Patience")
        assert "Patience" not in dev.out
        # Nothing is tried meanwhile that cannot work.
        assert dev.out[since:].count("SyntaxError") == 1
        assert "started again" not in dev.out[since:]
        write(jobs, good)
        dev.until("hello Patience from version", since)

    def test_a_new_job_gets_a_queue_and_a_consumer_and_one_that_goes_loses_its(self, dev):
        jobs, since, web = dev.app / "jobs.py", dev.mark, dev.pid("kestrel_stack.web")
        good = jobs.read_text()
        new = '\n\n@registry.job("BrandNew")\ndef brand_new(data, context):\n    print("brand", "new")\n'
        write(jobs, good + new)
        dev.until("python consumers take the new code", since)
        dev.enqueue("BrandNew")
        dev.until("brand_new +brand new", since)
        wait_until(
            lambda: dev.pid("kestrel_stack.web") != web, "kestrel-web with a queue more in its settings"
        )
        write(jobs, good)
        wait_until(lambda: not any("brand_new" in line for line in dev.processes().values()), "its end")
        wait_until(lambda: healthz(dev.web) == 200, "kestrel-web")

    def test_a_new_folder_is_watched_and_what_is_no_code_of_ones_own_is_not(self, dev):
        since = dev.mark
        for place in ("var", "node_modules", "__pycache__", ".cache"):
            (dev.app / place).mkdir()
            (dev.app / place / "noise.py").write_text("pass\n")
        (dev.app / "data.json").write_text("{}")
        (dev.app / "mine").mkdir()
        (dev.app / "mine" / "first.py").write_text("pass\n")
        dev.until(r"changed: mine/first\.py$", since)
        since = dev.mark
        (dev.app / "mine" / "second.py").write_text("pass\n")
        dev.until(r"changed: mine/second\.py$", since)
        since = dev.mark
        shutil.rmtree(dev.app / "mine")
        dev.until(r"changed: mine/first\.py, mine/second\.py$", since)
        assert "noise" not in dev.out
        assert "data.json" not in dev.out
        dev.until("python consumers take the new code", since)
        for place in ("var", "node_modules", "__pycache__", ".cache"):
            shutil.rmtree(dev.app / place)
        (dev.app / "data.json").unlink()

    def test_a_second_one_in_the_same_folder_is_refused_by_name(self, dev):
        with Dev(dev.app.parent / "link", "--queues", "hello_world") as second:
            assert second.process.wait(60) == 1
            assert "link is not a folder" in second.out
        (dev.app.parent / "link").symlink_to(dev.app)
        done = subprocess.run(
            [sys.executable, "-m", "kestrel_stack.dev", "--app", str(dev.app.parent / "link")],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        said = f"it already runs for {dev.app} (pid {dev.process.pid}, kestrel-web at {dev.web}/)"
        assert (done.returncode, done.stdout, done.stderr) == (
            1,
            "",
            f"bin/dev: {said}; end that one first\n",
        )
        assert healthz(dev.web) == 200, "the first one goes on"

    def test_another_folder_gets_ports_of_its_own_and_says_so(self, dev, tmp_path):
        with Dev(make_app(tmp_path / "other"), "--queues", "hello_world") as other:
            other.ready()
            assert "(port 22133 is taken)" in other.out
            assert "(port 8090 is taken)" in other.out
            assert other.broker != dev.broker
            other.enqueue("HelloWorld", name="Other")
            other.until("hello Other from")
            assert healthz(other.web) == healthz(dev.web) == 200
            web, broker = other.web, other.broker
            assert other.end() == 0
            assert other.processes() == {}
            assert not listens(broker)
            assert healthz(web) == 0
        assert "hello Other" not in dev.out

    def test_nothing_of_it_is_seen_by_git(self, dev):
        subprocess.run(["git", "init", "-q"], cwd=dev.app, check=True)
        status = subprocess.run(["git", "status", "--short"], cwd=dev.app, capture_output=True, text=True)
        shutil.rmtree(dev.app / ".git")
        assert status.stdout == "?? jobs.py\n"


class TestItsEnd:
    def test_ctrl_c_on_a_terminal_ends_everything_and_a_job_in_hand_is_done_again(self, tmp_path):
        app = make_app(tmp_path / "app")
        master, terminal = pty.openpty()
        reader = subprocess.Popen(
            ["cat"], stdin=master, stdout=(tmp_path / "app.tty").open("wb"), stderr=subprocess.DEVNULL
        )

        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kestrel_stack.dev",
                "--app",
                str(app),
                "--queues",
                "wait_for,leave_behind",
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment() | {"TERM": "xterm"},
            start_new_session=True,
            preexec_fn=have_terminal,
        )
        os.close(terminal)
        seen = Seen(tmp_path / "app.tty", app, process)
        try:
            wait_until(lambda: "Stop with Ctrl-C" in seen.out, "the first screen")
            assert ("\033[" in seen.out) == ("NO_COLOR" not in os.environ)
            seen.enqueue("LeaveBehind")
            wait_until(lambda: "LeaveBehind done" in seen.out, "a job that leaves a program behind")
            seen.enqueue("WaitFor", begun=str(tmp_path / "begun"), file=str(tmp_path / "go"))
            wait_until((tmp_path / "begun").exists, "the job to begin")
            broker, web = seen.broker, seen.web
            os.write(master, b"\x03")
            wait_until(lambda: "once more to end at once" in seen.out, "its answer")
            os.write(master, b"\x03")
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            reader.kill()
            reader.wait()
            os.close(master)
        assert processes_of(app) == {}
        assert not listens(broker)
        assert healthz(web) == 0
        assert "every process has ended" in seen.out
        (tmp_path / "go").touch()
        with Dev(app, "--queues", "wait_for") as again:
            again.until("waited in version 1")
            again.ready()
            assert again.end(signal.SIGTERM) == 0
            assert again.processes() == {}

    def test_a_terminal_that_is_closed_ends_everything(self, tmp_path):
        app = make_app(tmp_path / "app")
        master, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "kestrel_stack.dev", "--app", str(app), "--queues", "hello_world"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(),
            start_new_session=True,
            preexec_fn=have_terminal,
        )
        os.close(terminal)
        try:
            said = b""
            while b"Stop with Ctrl-C" not in said:
                said += os.read(master, 65536)
            os.close(master)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        assert processes_of(app) == {}

    def test_one_that_nobody_reads_any_more_ends(self, tmp_path):
        app = make_app(tmp_path / "app")
        read, write = os.pipe()
        with Dev(app, "--queues", "hello_world", stdout=write) as dev:
            os.close(write)
            said = b""
            while b"Stop with Ctrl-C" not in said:
                said += os.read(read, 65536)
            os.close(read)
            assert dev.process.wait(60) == 0
            assert dev.processes() == {}

    def test_nothing_outlives_one_that_is_killed_and_nothing_queued_is_lost(self, tmp_path):
        app = make_app(tmp_path / "app")
        with Dev(app, "--queues", "wait_for,leave_behind") as first:
            first.ready()
            first.enqueue("LeaveBehind")
            first.until("LeaveBehind done")
            first.enqueue("WaitFor", begun=str(tmp_path / "begun"), file=str(tmp_path / "go"))
            wait_until((tmp_path / "begun").exists, "the job to begin")
            first.process.kill()
            first.process.wait()
            # What a job has left in the background is found by the next one.
            wait_until(lambda: set(first.processes().values()) == {"sleep 300 "}, "everything else to end")
        (tmp_path / "go").touch()
        with Dev(app, "--queues", "wait_for") as second:
            second.until("waited in version 1")
            assert not any("sleep" in line for line in second.processes().values())
            second.ready()
            assert second.end() == 0

    def test_fresh_empties_the_queues_and_the_next_starts_with_them(self, tmp_path):
        app = make_app(tmp_path / "app")
        never = {"begun": str(tmp_path / "begun"), "file": str(tmp_path / "never")}
        with Dev(app, "--queues", "wait_for") as first:
            first.ready()
            first.enqueue("WaitFor", **never)
            wait_until((tmp_path / "begun").exists, "the job to begin")
            first.process.send_signal(signal.SIGINT)
            first.until("ending; once more to end at once")
            assert first.end() == 0, "the second one kills what is in hand"
        (tmp_path / "begun").unlink()
        with Dev(app, "--queues", "hello_world,wait_for", "--fresh") as second:
            second.ready()
            second.enqueue("HelloWorld", name="Fresh")
            second.until("hello Fresh")
            assert not (tmp_path / "begun").exists()
            assert second.end() == 0


class Seen(Dev):
    """A bin/dev whose terminal is read by somebody else."""

    def __init__(self, file: Path, app: Path, process):
        self.file, self.app, self.process = file, app, process

    @property
    def out(self) -> str:
        return self.file.read_text().replace("\r\n", "\n")


class TestWhatCannotBegin:
    @pytest.mark.parametrize(
        ("files", "flags", "says"),
        [
            ({}, [], r"no jobs found in .*--python MODULE:REGISTRY or --php FILE .*"),
            (
                {"a.py": JOBS, "b/c.py": JOBS, "b/__init__.py": "", "test_x.py": JOBS},
                [],
                r"several registries of jobs: a:registry, b\.c:registry; say which: --python a:registry",
            ),
            ({"a.py": JOBS}, ["--env", "nowhere"], r"--env: unknown environment 'nowhere'.*"),
            ({"a.py": JOBS}, ["--queues", "not.legal"], r".*'not\.legal' may hold only .*"),
            ({"a.py": JOBS, "deploy.yml": "kep: 5"}, [], r".*deploy\.yml: .*kep.*keep.*"),
        ],
    )
    def test_one_line_says_why_and_nothing_is_left(self, tmp_path, files, flags, says):
        app = tmp_path / "app"
        app.mkdir()
        for name, text in files.items():
            (app / name).parent.mkdir(exist_ok=True)
            (app / name).write_text(text)
        with Dev(app, *flags) as failed:
            assert failed.process.wait(60) == 1
            last = failed.out.strip().splitlines()[-1]
            assert re.fullmatch(f"bin/dev: {says}", last), failed.out
            assert failed.processes() == {}

    def test_a_port_that_was_asked_for_and_is_taken(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with Dev(make_app(tmp_path / "app"), "--port", str(port)) as failed:
                assert failed.process.wait(60) == 1
                assert failed.out.startswith(f"bin/dev: port {port} is taken; ")
                assert not (failed.app / ".kestrel-dev").exists()


def test_an_application_that_is_broken_at_first_begins_with_the_save_that_mends_it(tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "jobs.py").write_text(
        "from kestrel_stack.consumer import Registry\nregistry = Registry()\nimport nowhere\n"
    )
    with Dev(app) as dev:
        dev.until("ModuleNotFoundError: No module named 'nowhere'")
        dev.ready()
        assert healthz(dev.web) == 200
        write(app / "jobs.py", JOBS)
        dev.until("python consumers take the new code")
        with Producer.from_settings("acme", app / ".kestrel-dev" / "app.json") as producer:
            producer.enqueue("HelloWorld", {"name": "Mended"})
        dev.until("hello Mended from version 1")
        assert dev.end() == 0


def test_the_shop_runs_with_the_queues_of_an_inventory_in_both_languages(tmp_path):
    app = tmp_path / "examples" / "shop"
    shutil.copytree(ROOT / "examples" / "shop", app, ignore=shutil.ignore_patterns("var", ".kestrel-dev"))
    (tmp_path / "php").symlink_to(PHP)
    missing = no_php(PHP, (*PHP_EXTENSIONS, "pdo_sqlite"), "php-cli")
    with Dev(app, "--env", "lab", *(["--no-php"] if missing else [])) as dev:
        dev.ready()
        assert "queues from inventory lab" in dev.out
        described = json.loads(dev.settings.read_text())
        assert described["namespace"] == "shop"
        assert described["queues"][0]["retry_delays"] == [10, 60, 600]
        dev.enqueue("HelloWorld", name="Ada")
        dev.until(r"hello_world +Hello, Ada!")
        dev.until(r"HelloWorld done")
        if not missing:
            php = dev.pid("bin/consumer --queue hello_world_php")
            greet = app / "php" / "src" / "HelloWorld.php"
            since = dev.mark
            write(greet, greet.read_text().replace("Hello, ", "Salut, "))
            dev.until("php consumers take the new code", since)
            dev.enqueue("HelloWorld", queue="hello_world_php")
            dev.until("Salut, World!", since)
            assert dev.pid("bin/consumer --queue hello_world_php") == php
            since = dev.mark
            write(greet, greet.read_text().replace("final class", "final klass"))
            dev.until("php/jobs.php cannot be imported", since)
            dev.until("ParseError: ", since)
        assert dev.end() == 0
        assert dev.processes() == {}
