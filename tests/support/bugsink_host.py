"""A host's folders for kestrel-stack-bugsink, with real Bugsinks; its systemd is a stand-in."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.bugsink import EMAIL, PASSWORD, send, venv
from support.host_programs import CHECKOUT
from support.ports import reserve

PROGRAM = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-bugsink"
UNITS = ("bugsink.service", "bugsink-snappea.service")

# Runs the program with a test's folders; `kill` is where it dies as if the power went: [function, nth call].
WRAPPER = """
import importlib.machinery, importlib.util, json, os, pathlib, signal, sys
given = json.load(open(sys.argv[1]))
loader = importlib.machinery.SourceFileLoader("program", given["program"])
program = importlib.util.module_from_spec(importlib.util.spec_from_loader("program", loader))
sys.dont_write_bytecode = True
loader.exec_module(program)
for name, value in given["constants"].items():
    old = getattr(program, name)
    setattr(program, name, pathlib.Path(value) if isinstance(old, pathlib.Path) else value)
program.releases.PATH = given["path"]
where, number = json.loads(os.environ.get("KILL", "[null, 0]"))
if where:
    owner, _, name = where.rpartition(".")
    owner = {"": program, "releases": program.releases, "Path": pathlib.Path}[owner]
    real, calls = getattr(owner, name), []
    def dying(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(owner, name, dying)
sys.exit(program.main(sys.argv[2:]))
"""

# A stand-in for systemctl: it starts and stops the units' real processes, and starts none again.
SYSTEMCTL = """#!{python} -I
import os, re, shlex, signal, socket, subprocess, sys, time
from pathlib import Path
FOLDER, UNITS = Path({folder!r}), Path({units!r})
command, units = sys.argv[1], sys.argv[2:]

def state(unit):
    try:
        pid = int((FOLDER / f"{{unit}}.pid").read_text())
        return pid if Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "Z" else None
    except OSError:
        return None

def start(unit):
    if state(unit):
        return
    said = dict(re.findall(r"^([A-Za-z]+)=(.*)$", (UNITS / unit).read_text(), re.MULTILINE))
    subprocess.run(shlex.split(said["ExecStartPre"].lstrip("-+")), stdin=subprocess.DEVNULL)
    environment = dict(os.environ, **dict(pair.split("=", 1) for pair in said["Environment"].split()))
    ready = None
    if said["Type"] == "notify":
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.settimeout(0.1)
        (FOLDER / "notify").unlink(missing_ok=True)
        ready.bind(str(FOLDER / "notify"))
        environment["NOTIFY_SOCKET"] = str(FOLDER / "notify")
    with (FOLDER / f"{{unit}}.log").open("wb") as log:
        process = subprocess.Popen(shlex.split(said["ExecStart"]), env=environment, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, start_new_session=True, cwd="/")
    (FOLDER / f"{{unit}}.pid").write_text(str(process.pid))
    deadline = time.monotonic() + 60
    while ready is not None:
        try:
            if b"READY=1" in ready.recv(4096):
                break
        except TimeoutError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"Job for {{unit}} failed because the service did not say that it is ready.")

def stop(unit):
    pid = state(unit)
    if pid:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while state(unit):
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)

for unit in units:
    if command == "is-active":
        print("active" if state(unit) else "inactive")
    elif command == "is-enabled":
        print("enabled" if (FOLDER / f"{{unit}}.enabled").exists() else "disabled")
    elif command == "enable":
        (FOLDER / f"{{unit}}.enabled").touch()
    elif command in ("start", "stop"):
        {{"start": start, "stop": stop}}[command](unit)
"""

JOURNALCTL = """#!/bin/sh
# A stand-in for journalctl: what the units' processes wrote since their last start.
[ "$1" = --sync ] || cat {folder}/*.log
"""

CONF = """
import json
from pathlib import Path
from bugsink.settings.default import *
ETC, STATE = Path({etc!r}), {state!r}
SECRET_KEY = (ETC / "secret_key").read_text().strip()
ALLOWED_HOSTS = ["*"]
if (ETC / "database.json").exists():
    given = json.loads((ETC / "database.json").read_bytes())
    DATABASES["default"] = {{"ENGINE": "django.db.backends.postgresql",
        **{{name.upper(): value for name, value in given.items()}}}}
else:
    DATABASES["default"]["NAME"] = f"{{STATE}}/db.sqlite3"
DATABASES["snappea"]["NAME"] = f"{{STATE}}/snappea.sqlite3"
SNAPPEA = {{"TASK_ALWAYS_EAGER": False, "NUM_WORKERS": 2, "WAKEUP_CALLS_DIR": f"{{STATE}}/wakeup"}}
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
# A password is looked at in every other call here; how slowly is not what is tested.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
BUGSINK = {{"BASE_URL": {url!r}, "PHONEHOME": False, "INGEST_STORE_BASE_DIR": f"{{STATE}}/ingestion",
    "MAX_EVENTS_PER_5_MINUTES": 100_000, "MAX_EVENTS_PER_PROJECT_PER_5_MINUTES": 100_000,
    "MAX_EVENTS_PER_HOUR": 100_000, "MAX_EVENTS_PER_PROJECT_PER_HOUR": 100_000}}
{more}
"""


class BugsinkHost:
    """A context manager; `run` calls the program as a process, like ``run("apply", "--release", key)``."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("opt/releases", "etc", "units", "bin", "systemd", "var"):
            (folder / name).mkdir(parents=True)
        self.root, self.etc, self.units = folder / "opt", folder / "etc", folder / "units"
        self.state, self.backups, self.told = folder / "var/state", folder / "var/backups", folder / "told"
        self.port = reserve()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "wrapper.py").write_text(WRAPPER)
        self.given = {
            "program": str(PROGRAM),
            "path": f"{folder}/bin:{os.environ['PATH']}",
            "constants": {
                "ROOT": str(self.root), "CONFIGURATION": str(self.etc), "UNIT_FOLDER": str(self.units),
                "STATE": str(self.state), "BACKUPS": str(self.backups), "TOLD": str(self.told),
                "USER": getpass.getuser(),
            },
        }  # fmt: skip
        self.set(IN_HAND=5)
        self.program(
            "systemctl",
            SYSTEMCTL.format(python=sys.executable, folder=str(folder / "systemd"), units=str(self.units)),
        )
        self.program("journalctl", JOURNALCTL.format(folder=folder / "systemd"))
        self.configure()
        self.write("admin.json", {"email": EMAIL, "password": PASSWORD})
        self.write("project.json", {"app": "shop", "team": "shop", "project": "shop", "url": self.url})

    def __enter__(self) -> BugsinkHost:
        return self

    def __exit__(self, *exc: object) -> None:
        self.systemctl("stop", *UNITS)

    # --- its files ---

    def set(self, **constants: object) -> None:
        """Give constants of the program other values."""
        self.given["constants"] |= constants
        (self.folder / "given.json").write_text(json.dumps(self.given))

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def configure(self, more: str = "", port: int | None = None) -> None:
        """Write what role sentry writes: configuration and units."""
        (self.etc / "bugsink_conf.py").write_text(
            CONF.format(etc=str(self.etc), state=str(self.state), url=self.url, more=more)
        )
        run = self.root / "current/venv/bin"
        commands = (
            (
                "notify",
                f"{run}/gunicorn --bind 127.0.0.1:{port or self.port} --no-control-socket bugsink.wsgi",
            ),
            ("exec", f"{run}/bugsink-runsnappea"),
        )
        wrapper = f"{sys.executable} {self.folder}/wrapper.py {self.folder}/given.json"
        for unit, (kind, command) in zip(UNITS, commands, strict=True):
            environment = (
                f"PYTHONPATH={self.etc} DJANGO_SETTINGS_MODULE=bugsink_conf PYTHONDONTWRITEBYTECODE=1"
            )
            (self.units / unit).write_text(
                f"[Service]\nType={kind}\nExecStartPre=-+{wrapper} started {unit}\n"
                f"ExecStart={command}\nEnvironment={environment}\n"
            )

    def write(self, name: str, content: object) -> None:
        (self.etc / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def release(self, lock: str | None = None) -> str:
        """Install a release, whose virtual environment is that of other tests; return its name."""
        made = venv(lock) if lock else venv()
        folder = self.root / "releases" / made.parent.name
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "venv").symlink_to(made)
        (folder / ".complete").touch()
        return folder.name

    # --- what runs ---

    def run(self, *arguments: object, kill: tuple[str, int] | None = None) -> tuple[int, dict, str]:
        """Call the program; return its exit code, its answer, and what it said on stderr."""
        process = self.begin(*arguments, kill=kill)
        out, err = process.communicate(timeout=120)
        if kill:
            assert process.returncode == -signal.SIGKILL, f"it was not killed at {kill}: {out}{err}"
        return process.returncode, json.loads(out) if out.strip() else {}, err

    def begin(self, *arguments: object, kill: tuple[str, int] | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable,
                "-I",
                self.folder / "wrapper.py",
                self.folder / "given.json",
                *map(str, arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **({"KILL": json.dumps(kill)} if kill else {})},
        )

    def do(self, *arguments: object) -> dict:
        """Call the program, which must say that it was done; return its answer."""
        code, answer, err = self.run(*arguments)
        assert code == 0, (answer, err)
        return answer

    def refuse(self, *arguments: object) -> str:
        """Call the program, which must say why not in one line; return that."""
        code, answer, err = self.run(*arguments)
        assert code == 1, answer
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return answer["failed"]

    def systemctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.folder / "bin/systemctl", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def are_active(self) -> bool:
        return self.systemctl("is-active", *UNITS).split() == ["active", "active"]

    # --- what it holds ---

    def told_of(self, app: str = "shop") -> dict:
        return json.loads((self.told / f"{app}.json").read_text())

    def send(self, message: str = "out of stock", dsn: str | None = None) -> str:
        """Send an event as the protocol has it; return its id."""
        return send(dsn or self.told_of()["dsn"], message)

    def lost(self, events: list[str], seconds: int = 20) -> list[str]:
        """Return those of some events that are not there, nor come."""
        return json.loads(
            self.inside(
                "import json, time, uuid\nfrom events.models import Event\n"
                f"wanted, deadline = {events!r}, time.monotonic() + {seconds}\n"
                "while True:\n"
                "    here = {event.hex for event in Event.objects.values_list('event_id', flat=True)}\n"
                "    lost = [event for event in wanted if event not in here]\n"
                "    if not lost or time.monotonic() >= deadline: break\n"
                "    time.sleep(0.1)\n"
                "print(json.dumps(lost))"
            )
        )

    def inside(self, script: str) -> str:
        """Run Python in the current release; return what it prints."""
        done = subprocess.run(
            [self.root / "current/venv/bin/python", "-c", f"import django; django.setup()\n{script}"],
            env={**os.environ, "PYTHONPATH": str(self.etc), "DJANGO_SETTINGS_MODULE": "bugsink_conf"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def count(self) -> int:
        return int(self.inside("from events.models import Event; print(Event.objects.count())"))
