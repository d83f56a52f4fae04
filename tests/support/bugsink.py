"""A real Bugsink for tests: the release that role sentry installs, as processes on loopback."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from kestrel_stack.deploy.build.wheelhouse import build
from kestrel_stack.deploy.hoststate import Target
from support.ports import reserve

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".build" / "bugsink"
LOCK = "requirements/bugsink.txt"
GUNICORNS = 2
EMAIL, PASSWORD = "admin@example.com", "only for tests, kestrel"

CONF = """
import json
from pathlib import Path
from bugsink.settings.default import *
from bugsink.conf_utils import deduce_script_name


HERE = Path(__file__).parent
GIVEN = json.loads((HERE / "given.json").read_text())
SECRET_KEY = GIVEN["secret_key"]
ALLOWED_HOSTS = ["*"]
DATABASES["default"]["NAME"] = str(HERE / "db.sqlite3")
DATABASES["snappea"]["NAME"] = str(HERE / "snappea.sqlite3")
SNAPPEA = {"TASK_ALWAYS_EAGER": False, "NUM_WORKERS": 2, "WAKEUP_CALLS_DIR": str(HERE / "wakeup")}
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
TIME_ZONE = "UTC"
BUGSINK = {
    "BASE_URL": GIVEN["url"],
    "PHONEHOME": False,
    "INGEST_STORE_BASE_DIR": str(HERE / "ingestion"),
    **GIVEN["settings"],
}
FORCE_SCRIPT_NAME = deduce_script_name(BUGSINK["BASE_URL"])
"""

# Makes what a test needs to ask for anything; printed for the next ones, which copy the database.
FIRST = """
import json, sys
import django
django.setup()
from django.contrib.auth import get_user_model
from bsmain.models import AuthToken
from projects.models import Project
from teams.models import Team
email, password = json.load(sys.stdin)
get_user_model().objects.create_superuser(username=email, email=email, password=password)
project = Project.objects.create(name="shop", team=Team.objects.create(name="shop"))
token = AuthToken.create_full_access().token
print(json.dumps({"project": project.pk, "key": project.sentry_key.hex, "token": token}))
"""


def this_machine() -> Target:
    """The kind of host that this machine is."""
    return Target(
        f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine(), platform.libc_ver()[1]
    )


def clean_environment(**more: str) -> dict[str, str]:
    """An environment in which nothing but `more` tells Python and Bugsink what to do."""
    ours = (
        "PYTHON",
        "DJANGO",
        "BUGSINK",
        "DATABASE",
        "SECRET_KEY",
        "SENTRY",
        "PORT",
        "VIRTUAL_ENV",
        "GUNICORN",
    )
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | more


def venv(lock: str = LOCK) -> Path:
    """Return a virtual environment of a lock, made by the wheelhouse at its first use and kept."""
    # Who comes while another fetches the wheels waits, and finds them.
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = build(this_machine(), lock, with_stack=False)
    folder = CACHE / made["key"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder / "venv", ignore_errors=True)
            _install(Path(made["path"]), folder / "venv")
            (folder / ".complete").touch()
    return folder / "venv"


def _install(packed: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(packed) as tar:
            for member in tar:
                target = Path(name, member.name)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
        _run(sys.executable, "-m", "venv", folder)
        _run(
            *(folder / "bin/python", "-m", "pip", "--isolated", "--quiet", "--disable-pip-version-check"),
            *("install", "--no-cache-dir", "--no-index", "--find-links", f"{name}/wheels"),
            *("--require-hashes", "-r", f"{name}/requirements.txt"),
        )
        _run(folder / "bin/python", "-m", "compileall", "-q", "-j", "0", folder / "lib", check=False)


def _run(*command: object, check: bool = True, **options: object) -> str:
    options.setdefault("env", clean_environment())
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert not check or done.returncode == 0, f"{command[0]} {command[1:3]}: {done.stderr or done.stdout}"
    return done.stdout


def send(dsn: str, message: str = "out of stock") -> str:
    """Send one event as the protocol has it; return its id."""
    parts, event = urlsplit(dsn), uuid.uuid4().hex
    payload = json.dumps({"event_id": event, "message": message, "level": "error", "platform": "python"})
    body = f'{{"event_id":"{event}"}}\n{{"type":"event","length":{len(payload)}}}\n{payload}\n'
    request = urllib.request.Request(
        f"http://{parts.hostname}:{parts.port}/api{parts.path}/envelope/",
        body.encode(),
        {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_client=test/1, sentry_key={parts.username}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    return event


class Bugsink:
    """Gunicorn and snappea of a Bugsink with one team and project, on a free port; a context manager.

    ``settings`` are keys of Bugsink's own settings (``BUGSINK``). ``url`` ends without a slash. ``log`` is
    what both processes wrote. `stop` and `start` are a Bugsink that is away: port, DSN and events stay.
    """

    def __init__(self, folder: Path, *, lock: str = LOCK, **settings: object):
        self.folder = folder
        self.settings = settings
        self.port = reserve()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = folder / "log"
        self._lock = lock
        self._processes: list[subprocess.Popen] = []
        self._made = False

    @property
    def dsn(self) -> str:
        return f"http://{self._key}@127.0.0.1:{self.port}/{self.project}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # --- its life ---

    def __enter__(self) -> Bugsink:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self, seconds: float = 60) -> Bugsink:
        if not self._made:
            self._make()
        with self.log_file.open("ab") as log:
            for command in (
                [
                    "gunicorn",
                    "--bind",
                    f"127.0.0.1:{self.port}",
                    "--workers",
                    str(GUNICORNS),
                    "--no-control-socket",
                    "bugsink.wsgi",
                ],
                ["bugsink-runsnappea"],
            ):
                self._processes.append(
                    subprocess.Popen(
                        [self._venv / "bin" / command[0], *command[1:]],
                        cwd=self.folder,
                        env=self._environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        self._await(self._is_ready, "to answer", seconds)
        # Each of gunicorn's processes loads the most with its first request. On a busy machine that takes
        # longer than a worker waits for the answer to an event: it is done for all before there is one.
        with ThreadPoolExecutor(4 * GUNICORNS) as pool:
            assert all(pool.map(lambda _: self._is_ready(30), range(4 * GUNICORNS)))
        return self

    def stop(self) -> None:
        """End both processes as systemd does; what was taken and not digested is, after the next start."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)
        self._processes = []

    def quota(self, *, per_5_minutes: int, per_hour: int = 1_000_000, per_month: int = 1_000_000) -> None:
        """Set how many events it takes, for the project and in sum; restarts it when it runs."""
        for name in ("MAX_EVENTS_PER", "MAX_EVENTS_PER_PROJECT_PER"):
            self.settings |= {
                f"{name}_5_MINUTES": per_5_minutes,
                f"{name}_HOUR": per_hour,
                f"{name}_MONTH": per_month,
            }
        if self._made:
            self._give()
        if self._processes:
            self.stop()
            self.start()

    def manage(self, *arguments: str, given: str = "") -> str:
        """Run bugsink-manage and return what it prints."""
        return _run(
            self._venv / "bin/bugsink-manage",
            *arguments,
            env=self._environment(),
            cwd=self.folder,
            input=given,
        )

    def _environment(self) -> dict[str, str]:
        return clean_environment(
            PYTHONPATH=str(self.folder), DJANGO_SETTINGS_MODULE="bugsink_conf", HOME=str(self.folder)
        )

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._venv = venv(self._lock)
        self.secret_key = secrets.token_hex(32)
        self._give()
        (self.folder / "bugsink_conf.py").write_text(CONF)
        # Migrating takes longer than all the rest: it is done once for a release.
        name = hashlib.sha256((CONF + FIRST + PASSWORD).encode()).hexdigest()[:12]
        first = self._venv.parent / f"first-{name}"
        with (self._venv.parent / ".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not (first / "made.json").exists():
                self._make_first(first)
        for database in first.glob("*.sqlite3"):
            shutil.copy(database, self.folder)
        made = json.loads((first / "made.json").read_text())
        self.project, self._key, self.token = made["project"], made["key"], made["token"]
        self._made = True

    def _make_first(self, first: Path) -> None:
        self.manage("migrate")
        self.manage("migrate", "snappea", "--database=snappea")
        made = _run(
            self._venv / "bin/python", "-c", FIRST,
            env=self._environment(), cwd=self.folder, input=json.dumps([EMAIL, PASSWORD]),
        )  # fmt: skip
        shutil.rmtree(first, ignore_errors=True)
        first.mkdir()
        for database in self.folder.glob("*.sqlite3"):
            shutil.copy(database, first)
        (first / "made.json").write_text(made.strip().splitlines()[-1])

    def _give(self) -> None:
        given = {"secret_key": self.secret_key, "url": self.url, "settings": self.settings}
        (self.folder / "given.json").write_text(json.dumps(given))

    # --- what it says ---

    def get(self, path: str, **query: object) -> dict:
        """Ask the API, like ``get("issues/", project=1)``."""
        return self._ask(f"{self.url}/api/canonical/0/{path}?{urllib.parse.urlencode(query)}")

    def issues(self) -> list[dict]:
        """All issues, the first one first: id, calculated_type, calculated_value, digested_event_count, …"""
        return self._pages("issues/", project=self.project)

    def events(self, issue_id: str) -> list[dict]:
        """All events of an issue, the oldest first, each with its ``data`` as it was sent."""
        listed = self._pages("events/", issue=issue_id, order="asc")
        return [self.get(f"events/{event['id']}/") for event in listed]

    def count(self) -> int:
        """How many events were digested."""
        return sum(issue["digested_event_count"] for issue in self.issues())

    def wait_for_events(self, n: int, seconds: float = 60) -> list[dict]:
        """Wait until at least `n` events were digested; return the issues."""
        self._await(lambda: self.count() >= n, f"to digest {n} events (it has {{}})", seconds)
        return self.issues()

    def _pages(self, path: str, **query: object) -> list[dict]:
        page = self.get(path, **query)
        found = page["results"]
        while page["next"]:
            page = self._ask(page["next"])
            found += page["results"]
        return found

    def _ask(self, url: str) -> dict:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def _is_ready(self, seconds: float = 5) -> bool:
        for process in self._processes:
            assert process.poll() is None, f"a process of Bugsink ended: {self.log[-2000:]}"
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=seconds) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def _await(self, condition, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline:
                has = self.count() if "{}" in what else ""
                raise AssertionError(f"waited {seconds} s for Bugsink {what.format(has)}: {self.log[-2000:]}")
            time.sleep(0.05)
