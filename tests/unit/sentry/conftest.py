"""A host of self-hosted Sentry: real git; stand-ins for docker, the release's scripts and Sentry's API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from support.host_programs import CHECKOUT, load
from support.ports import reserve

PROGRAM = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-sentry"
STANDIN = CHECKOUT / "tests/support/sentry_standin"
BLOCK = "# BEGIN KESTREL STACK\nSENTRY_BEACON = False\n# END KESTREL STACK\n"


class Host:
    """The folders that the program knows, with stand-ins on its PATH."""

    def __init__(self, tool, folder, repository, monkeypatch, capfd):
        self.tool, self.capfd, self.folder = tool, capfd, folder
        self.standin, self.state_folder = folder / "stand-in", folder / "stand-in/state"
        self.root, self.etc, self.backups = folder / "opt", folder / "etc", folder / "backups"
        shutil.copytree(STANDIN, self.standin)
        self.root.mkdir()
        (self.root / "wanted").mkdir()
        self.places = {
            "ROOT": self.root,
            "WANTED": self.root / "wanted",
            "TREE": self.root / "self-hosted",
            "STATE": self.root / "state.json",
            "SECRET_KEY": self.root / "secret_key",
            "ADMIN": self.root / "admin.json",
            "TOKEN": self.root / "token",
            "LOG": self.root / "install.log",
            "RESULT": self.root / "result.json",
            "LOCK": self.root / ".lock",
            "SHARED": self.etc,
            "BACKUPS": self.backups,
            "DISK_STATE": folder / "disk.json",
            "PATH": f"{self.standin}:{os.environ['PATH']}",
        }
        for name, value in self.places.items():
            monkeypatch.setattr(tool, name, value)
        self.repository, self.commits = repository
        self.port = reserve()
        self.tree = self.root / "self-hosted"
        (self.root / "admin.json").write_text(
            json.dumps({"email": "a@example.com", "password": "p4ssw0rd's \\n"})
        )
        self.want("26.7.0")

    def asks(self, version, **changes):
        """What the preflight is told."""
        return {
            "version": version,
            "commit": self.commits.get(version, "a" * 40),
            "profile": "errors-only",
            "address": "127.0.0.1",
            "port": self.port,
            "organization": "sentry",
            "team": "shop",
            "project": "shop",
        } | changes

    def want(self, version, env="COMPOSE_PROFILES=errors-only", block=BLOCK, **changes):
        """What the role would write."""
        wanted = self.root / "wanted"
        settings = self.asks(version) | {
            "app": "shop",
            "url": "https://errors.example.com",
            "repository": str(self.repository),
            "install_seconds": 60,
            "start_seconds": 30,
            "disk_floor_gb": 1,
            "webhook": "",
            "secrets": ["mail-s3cret"],
        }
        (wanted / "sentry.json").write_text(json.dumps(settings | changes))
        (wanted / "env.custom").write_text(f"{env}\nSENTRY_BIND=127.0.0.1:{self.port}\n")
        (wanted / "config.yml").write_text(
            "mail.host: x\nmail.password: mail-s3cret\nsystem.internal-url-prefix: http://web:9000\n"
            "filestore.backend: filesystem\n"
        )
        (wanted / "docker-compose.override.yml").write_text("services: {}\n")
        (wanted / "sentry.conf.block.py").write_text(block)

    def do(self, *arguments):
        """Run the program's command; return its exit code, its answer and what it complained of."""
        self.capfd.readouterr()
        code = self.tool.main([str(argument) for argument in arguments])
        out, err = self.capfd.readouterr()
        return code, json.loads(out), err

    def process(self, *arguments):
        """Begin the program as a process of its own, as on a host but for its folders."""
        code = (
            "import json, sys\nfrom pathlib import Path\nfrom support.host_programs import load\n"
            "tool = load(Path(sys.argv[1]))\n"
            "for name, value in json.loads(sys.argv[2]).items():\n"
            "    setattr(tool, name, value if name == 'PATH' else Path(value))\n"
            "sys.exit(tool.program(sys.argv[3:]))\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, PROGRAM, json.dumps(self.places, default=str), *arguments],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "tests")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, name):
        """Wait until a stand-in has written a file; return what is in it."""
        path = self.state_folder / name
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text().strip()):
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)
        return path.read_text().strip()

    def done(self, *arguments):
        """Run a command that has to succeed."""
        code, answer, err = self.do(*arguments)
        assert code == 0, err
        return answer

    def refused(self, *arguments):
        """Run a command that has to fail; return its one line."""
        code, answer, err = self.do(*arguments)
        assert code == 1, answer
        assert err.splitlines()[0] == answer["failed"]
        return answer["failed"]

    def calls(self, since=0):
        """What the stand-ins were called with, but for questions that change nothing."""
        path = self.state_folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        quiet = {"version", "info", "volume", "ps"}
        return [one for one in found[since:] if not quiet & set(one["call"][1:3])]

    def called(self, since=0):
        return [" ".join(one["call"]) for one in self.calls(since)]

    def flag(self, name, text=""):
        self.state_folder.mkdir(exist_ok=True)
        (self.state_folder / name).write_text(text)

    def no_flag(self, name):
        (self.state_folder / name).unlink()

    def state(self):
        return json.loads((self.root / "state.json").read_text())

    def stop(self):
        path = self.state_folder / "proxy.pid"
        if path.exists():
            os.kill(int(path.read_text()), signal.SIGTERM)
            path.unlink()


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "repository"
    done = subprocess.run([sys.executable, STANDIN / "release.py", folder], capture_output=True, check=True)
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="session")
def tool():
    """The program as a module: what is set in it goes back after each test."""
    return load(PROGRAM)


@pytest.fixture
def host(tool, tmp_path, repository, monkeypatch, capfd):
    host = Host(tool, tmp_path, repository, monkeypatch, capfd)
    yield host
    host.stop()


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """What a first installation leaves behind: it is made once, and copied."""
    return {"folder": tmp_path_factory.mktemp("installed") / "host", "port": None}


@pytest.fixture
def resting(host, kept):
    """A host on which Sentry 26.7.0 is installed and, for once, does not run."""
    if kept["port"] is None:
        host.done("apply")
        host.stop()
        shutil.copytree(host.folder, kept["folder"], symlinks=True)
        kept["port"] = host.port
        return host
    host.port = kept["port"]
    for path in host.folder.iterdir():
        shutil.rmtree(path)
    shutil.copytree(kept["folder"], host.folder, symlinks=True, dirs_exist_ok=True)
    return host


@pytest.fixture
def installed(resting):
    """A host on which Sentry 26.7.0 runs."""
    resting.tool.up(resting.tool.settings())
    return resting
