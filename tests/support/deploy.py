"""What the tests of the deploy need: little applications in git, and a machine made of a folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAB = Path(sys.executable).with_name("fab")

# Two releases, the older one first.
OLD = "20260101T000000Z-aaaaaaaa"
NEW = "20260102T000000Z-bbbbbbbb"

JOBS = """
from pathlib import Path

from kestrel_stack.consumer.registry import Registry

registry = Registry()


@registry.job("HelloWorld")
def hello(data, context):
    Path("var", "done").write_text("VERSION")
"""
DEPLOY_YML = """
python: {requirements: requirements.txt}
shared: {files: [], directories: [var]}
keep: 5
"""


def git(folder: Path, *words: str) -> str:
    """Run git with an identity and a clock of its own."""
    environment = {
        **os.environ,
        "GIT_AUTHOR_NAME": "T",
        "GIT_AUTHOR_EMAIL": "t@example.com",
        "GIT_COMMITTER_NAME": "T",
        "GIT_COMMITTER_EMAIL": "t@example.com",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class GitApp:
    """An application in a repository of its own."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.repository = folder
        self.path = folder / prefix
        self.path.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "-q", "-b", "main")
        self.write("deploy.yml", DEPLOY_YML)
        self.write("requirements.txt", "# nothing but the stack's own package\n")
        self.write("shop/__init__.py", "")
        self.write("shop/jobs.py", JOBS)
        self.commit("first")

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @property
    def commit_id(self) -> str:
        return git(self.repository, "rev-parse", "HEAD")

    def commit(self, message: str = "change") -> str:
        git(self.repository, "add", "-A")
        git(self.repository, "commit", "-q", "--allow-empty", "-m", message)
        return git(self.repository, "rev-parse", "HEAD")


def make_wheel(folder: Path, name: str, version: str = "1.0", *, requires: tuple[str, ...] = ()) -> Path:
    """Write a small pure wheel, valid for pip."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {text}\n" for text in requires)
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inner, text in files.items():
            wheel.writestr(zipfile.ZipInfo(inner), text)
    return path


def wait_for(condition, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def fab(*words: str, cwd: Path = ROOT, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run fab to its end."""
    return subprocess.run(
        [str(FAB), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
        **kwargs,
    )


# A stand-in for /usr/local/sbin/kestrel-stack-workers: the same words, a folder instead of supervisor.
HELPER = (
    f"""#!/usr/bin/python3
NEW = {NEW!r}
"""
    + """
import json, os, sys, time
from pathlib import Path

action, group = sys.argv[1:]
base = Path(os.environ["TREE"])
state = base / "state" / group
(base / "calls").open("a").write(f"{action} {group}\\n")
if (base / f"slow-{action}-{group}").exists():
    (base / f"in-{action}-{group}").touch()
    deadline = time.monotonic() + 60
    while (base / f"slow-{action}-{group}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
current = base / "srv" / "current"
release = os.path.basename(os.readlink(current)) if current.is_symlink() else None
failing = base / f"fail-{action}-{group}"
failed = failing.exists() and failing.read_text() in ("", release or "")
if not failed:
    if action in ("drain", "stop"):
        state.unlink(missing_ok=True)
    elif action == "start" and release is not None:
        state.write_text(release)
running = state.exists()
seen = base / f"seen-{group}"
word = seen.read_text() if seen.exists() and state.exists() and state.read_text() == NEW else "RUNNING"
print(json.dumps({"group": group, "processes": [{
    "name": f"{group}_00",
    "state": word if running else "STOPPED",
    "pid": 1 if running else None,
    "uptime": 9 if running else 0,
    "release": state.read_text() if running else None,
}]}))
if failed:
    print(f"{group}_00 would not {action}", file=sys.stderr)
    sys.exit(1)
"""
)

# As `kestrel-stack-web`: what serves pages runs from the release that it was last told to reload from.
WEB_HELPER = """#!/usr/bin/python3
import json, os, sys
from pathlib import Path

action, app = sys.argv[1:]
base = Path(os.environ["TREE"])
state = base / "state" / "web"
(base / "calls").open("a").write(f"{action} web\\n")
current = base / "srv" / "current"
release = os.path.basename(os.readlink(current)) if current.is_symlink() else None
failing = base / "fail-reload-web"
failed = action == "reload" and failing.exists() and failing.read_text() in ("", release or "")
if action == "reload" and not failed:
    state.write_text(release or "")
serving = state.read_text() if state.exists() else ""
word = "RUNNING" if serving else "STOPPED"
print(json.dumps({"group": "web", "processes": [
    {"name": "web", "state": word, "pid": 1, "uptime": 0, "release": serving or None}]}))
if failed:
    print("the new release does not answer", file=sys.stderr)
    sys.exit(1)
"""

# As a release's own Python, asked to ping or to count.
PYTHON = """#!/usr/bin/python3
import json, os, sys, time
from pathlib import Path

base = Path(os.environ["TREE"])
words = sys.argv[1:]
assert words[:3] == ["-P", "-m", "kestrel_stack.queue.jobs"], words
assert words[words.index("--config") + 1] == "/etc/kestrel-stack/srv.json", words
if words[3] == "count":
    count = base / "count"
    print(count.read_text() if count.exists() else '{"queues": {}, "failed_servers": []}')
    sys.exit(0)
(base / "calls").open("a").write("ping\\n")
if (base / "slow-ping").exists():
    (base / "in-ping").write_text(str(os.getpid()))
    time.sleep(60)
bad = (base / "fail-ping").exists()
for queue in [words[i + 1] for i, word in enumerate(words) if word == "--queue"]:
    print(json.dumps({"queue": queue, "answered": not bad, "release": words[words.index("--release") + 1],
                      "seconds": 0.4, "reason": "no answer within 70 s" if bad else ""}))
sys.exit(bad)
"""


def _outside() -> dict[str, str]:
    """Return this process's environment without what bin/* have set in it: a host has none of that."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KESTREL_STACK_")}


class Tree:
    """A host made of a folder: srv/ is the application's folder, workers are files, scripts run for real."""

    def __init__(self, folder: Path, groups: tuple[str, ...] = ("shop_a", "shop_b")) -> None:
        self.base = folder
        self.srv = folder / "srv"
        self.groups = groups
        self.logs = folder / "logs" / "srv"
        for name in ("srv/releases", "srv/venvs", "srv/shared/var", "state", "logs/srv"):
            (folder / name).mkdir(parents=True)
        self.helper = self._program(folder / "helper", HELPER)
        self.web_helper = self._program(folder / "web-helper", WEB_HELPER)

    def _program(self, path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script as sshd would: leading its own session, standard input held by the caller."""
        # The script sets its own PATH; a function stands in for sudo, which a test machine may lack.
        script = 'sudo() { [ "$1" = -n ] && shift && "$@"; }\n' + script
        return subprocess.Popen(
            ["/bin/bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**_outside(), "TREE": str(self.base)},
            start_new_session=True,
        )

    def run(self, script: str, data: bytes = b"\n") -> tuple[int, list[str], str]:
        """Run a script to its end; return exit code, lines of standard output, standard error."""
        process = self.start(script)
        # Standard input stays open meanwhile: its end would mean that the connection is lost. A script that
        # refuses may have ended before it is given anything.
        with suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.flush()
        out, err = process.stdout.read(), process.stderr.read()
        code = process.wait(60)
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.stderr.close()
        return code, out.decode().splitlines(), err.decode()

    def release(self, name: str, *, venv: str = "v1", verified: bool = True, **about: str) -> Path:
        """Put a finished release there."""
        (self.srv / "venvs" / venv / "bin").mkdir(parents=True, exist_ok=True)
        (self.srv / "venvs" / venv / ".complete").touch()
        self._program(self.srv / "venvs" / venv / "bin" / "python", PYTHON)
        folder = self.srv / "releases" / name
        folder.mkdir()
        (folder / "venv").symlink_to(f"../../venvs/{venv}")
        (folder / "release.json").write_text(json.dumps({"release": name, "venv": venv, **about}))
        if verified:
            (folder / ".verified").touch()
        return folder

    def run_from(self, name: str) -> None:
        """Make a release current, with all workers running from it."""
        current = self.srv / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(f"releases/{name}")
        for group in (*self.groups, "web"):
            (self.base / "state" / group).write_text(name)

    @property
    def current(self) -> str | None:
        current = self.srv / "current"
        return current.readlink().name if current.is_symlink() else None

    @property
    def workers(self) -> dict[str, str | None]:
        """The release each group's worker runs from; None when it is stopped."""
        states = {group: self.base / "state" / group for group in self.groups}
        return {group: path.read_text() if path.exists() else None for group, path in states.items()}

    @property
    def calls(self) -> list[str]:
        """What the helpers were asked, but for how the workers stand."""
        path = self.base / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("status ")]

    @property
    def pages(self) -> str:
        """The release that pages are served from; empty: none."""
        return (self.base / "state" / "web").read_text()

    def log(self, worker: str, *lines: str) -> None:
        """Add lines to a worker's log."""
        with (self.logs / f"{worker}.log").open("a") as log:
            log.writelines(f"{line}\n" for line in lines)

    def mark(self, name: str, text: str = "") -> Path:
        """Make a helper misbehave: fail-ACTION-GROUP, slow-ACTION-GROUP, seen-GROUP, fail-ping, slow-ping.

        ``seen-GROUP`` holds the state that the group's worker is seen in when it runs from NEW.
        """
        path = self.base / name
        path.write_text(text)
        return path
