"""One run of bin/dev: broker, mover, kestrel-web and workers, from the first line to the last."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kestrel_stack import processes
from kestrel_stack.dev import describe, ports, watch
from kestrel_stack.dev.crew import Crew, Member
from kestrel_stack.dev.describe import Description
from kestrel_stack.dev.errors import DevError
from kestrel_stack.dev.folder import MARK, Folder, end_leftovers
from kestrel_stack.dev.lines import DIM, GREEN, RED, YELLOW, Screen
from kestrel_stack.dev.side import LOOK_SECONDS, Side
from kestrel_stack.processes import SOURCE
from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import SettingsError

BROKER_PORT = 22133
END_SECONDS = 5.0
"""That a job in hand gets to finish when bin/dev ends."""
FIRST_SCREEN_SECONDS = 20.0
"""After so long the first screen is shown, whatever has not answered."""
BROKER, MOVER, WEB = "kestrel", "mover", "kestrel-web"
_LISTENING = re.compile(rb"listening at (http://\S+)")


class Session:
    """Everything that runs for one application. `web_port` None: the default, or a free one."""

    def __init__(
        self,
        folder: Folder,
        description: Description,
        sides: Mapping[str, Side],
        screen: Screen,
        web_port: int | None,
        default_web_port: int,
        only: tuple[str, ...] | None = None,
    ):
        self._folder = folder
        self._description = description
        self._sides = dict(sides)
        self._screen = screen
        self._given_port = web_port
        self._web_port = default_web_port if web_port is None else web_port
        self._default_port = default_web_port
        self._only = only
        self._server: str | None = None
        self._ports: dict[str, int] = {}
        self._web_at: str | None = None
        self._settings_file = folder.path / f"{description.app}.json"
        self._settings: dict[str, Any] | None = None
        self._applied = self._welcomed = False
        self._stops = 0
        self._changed: list[str] = []
        self._lock = threading.Lock()
        environ = {
            **processes.clean_environment(),
            "PYTHONPATH": str(SOURCE),
            "PYTHONUNBUFFERED": "1",
            "KESTREL_STACK_CONFIG": str(self._settings_file),
            MARK: str(folder.app),
        }
        self._crew = Crew(folder.app, environ, screen)
        self._broker = self._crew.add(BROKER, Member(BROKER, self._broker_command))
        self._mover = self._crew.add(MOVER, Member(MOVER, self._mover_command))
        self._web = self._crew.add(WEB, Member(WEB, self._web_command, on_line=self._web_said))
        for member in (self._broker, self._mover, self._web):
            screen.know(member.name)
        self._watcher = watch.Watcher(folder.app, self._on_change, self._on_trouble)

    # --- the run -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until somebody says stop; return the exit status."""
        self._listen_for_signals()
        self._settings_file.unlink(missing_ok=True)
        began = time.monotonic()
        try:
            self._crew.start(self._broker)
            for side in self._sides.values():
                self._look(side)
            self._watcher.start()
            while not self._stops and not self._screen.gone:
                self._crew.turn(1.0 if self._welcomed else 0.05)
                self._progress()
                self._screen.look()
                late = time.monotonic() - began > FIRST_SCREEN_SECONDS
                if self._applied and not self._welcomed and (self._web_at or late):
                    self._welcome()
        finally:
            self._end()
        return 0

    def _listen_for_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Who had it ignored, such as nohup, meant it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_stop)
        self._crew.listen_for_signals()

    def _on_stop(self, *_: object) -> None:
        self._stops += 1

    def _progress(self) -> None:
        """Do what has become possible, or due."""
        if not self._ports and (self._folder.path / "broker.port").exists():
            self._ports = json.loads((self._folder.path / "broker.port").read_text())
            self._server = f"127.0.0.1:{self._ports['port']}"
        with self._lock:
            changed, self._changed = self._changed, []
        if changed:
            self._reload(changed)
        for side in self._sides.values():
            if side.looking_since is not None and time.monotonic() - side.looking_since > LOOK_SECONDS:
                self._crew.members[f"look {side.language}"].process.kill()  # type: ignore[union-attr]
        if self._server and not self._applied and all(side.looked for side in self._sides.values()):
            self._applied = True
            self._apply()

    def _end(self) -> None:
        """End all processes in order: who talks to the broker first."""
        self._watcher.stop()
        running = [one for key, one in self._crew.members.items() if one.running and one is not self._broker]
        if running and not self._screen.gone:
            self._screen.say("ending; once more to end at once", DIM)
        stops = self._stops
        for member in running:
            self._crew.stop(member, 0.0 if member.once else END_SECONDS)
        self._until_ended(running, stops)
        self._crew.stop(self._broker, END_SECONDS)
        self._until_ended([self._broker], stops)
        end_leftovers(self._folder.app)
        self._crew.close()
        self._screen.say("every process has ended; what is queued is kept until bin/dev --fresh", DIM)

    def _until_ended(self, members: list[Member], stops: int) -> None:
        while any(member.running for member in members):
            self._crew.turn(0.5)
            if self._stops > stops:
                self._crew.kill()

    # --- what changes ------------------------------------------------------------------------------------

    def _on_change(self, files: list[str]) -> None:
        """Note what has changed; called in the watcher's thread."""
        with self._lock:
            self._changed += files
        self._crew.wake()

    def _on_trouble(self, text: str) -> None:
        self._screen.say(text, YELLOW)

    def _reload(self, files: list[str]) -> None:
        languages = set().union(*(watch.language(file) for file in files)) & set(self._sides)
        if not languages:
            return
        shown = [str(Path(file).relative_to(self._folder.app)) for file in sorted(set(files))]
        rest = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        self._screen.say(f"changed: {', '.join(shown[:3])}{rest}")
        for language in sorted(languages):
            self._sides[language].doubted = False
            self._look(self._sides[language])

    def _look(self, side: Side) -> None:
        """Find out which jobs there are now; only then their workers are told."""
        if side.looking_since is not None:
            side.stale = True
            return
        side.stale, side.looking_since = False, time.monotonic()
        answer = self._folder.path / f"look-{side.language}.json"
        answer.unlink(missing_ok=True)

        def ended(_: Member, code: int) -> None:
            late = time.monotonic() - (side.looking_since or 0.0) > LOOK_SECONDS
            side.looking_since = None
            if side.stale:
                self._look(side)
                return
            why = f"took longer than {LOOK_SECONDS:g} s" if late else processes.describe(code)
            first = not side.looked
            side.read(answer, f"importing {side.app} {why}")
            answer.unlink(missing_ok=True)
            self._looked(side, first)

        member = Member(
            f"look {side.language}",
            lambda: side.look(answer),
            {"PYTHONDONTWRITEBYTECODE": "1"},
            # Its workers say the same again.
            on_line=lambda *_: False,
            on_end=ended,
            once=True,
        )
        self._crew.start(self._crew.add(member.name, member))

    def _looked(self, side: Side, first: bool) -> None:
        if side.error is not None:
            self._screen.say(f"{side.app} cannot be imported:", RED)
            for line in side.error.splitlines():
                self._screen.say(line, RED)
            stands = "are not started" if first else "stop after the job in hand"
            self._screen.say(f"its consumers {stands}; jobs wait for the next save", RED)
        if self._applied:
            self._apply(side)
            if side.error is None:
                self._screen.say(f"{side.language} consumers take the new code after the job in hand", GREEN)

    def _apply(self, changed: Side | None = None) -> None:
        """Have the settings, and the processes that there are to be, as the jobs say."""
        queues = self._queues()
        if self._write_settings(queues):
            self._crew.restart(self._mover, END_SECONDS)
            self._crew.restart(self._web, END_SECONDS)
        elif not self._web.wanted:
            self._crew.start(self._web)
        wanted = {}
        for queue in queues:
            side = self._sides.get(queue.get("language", "python"))
            if side is not None and side.usable and (self._only is None or queue["name"] in self._only):
                wanted[f"consumer {queue['name']}"] = (queue["name"], side)
        for key, member in self._crew.members.items():
            if key.startswith("consumer ") and key not in wanted and member.wanted:
                # As long as the job in hand takes, which the worker itself limits.
                self._crew.stop(member)
        for key, (name, side) in wanted.items():
            self._have_consumer(key, name, side, reload=side is changed)

    def _have_consumer(self, key: str, queue: str, side: Side, *, reload: bool) -> None:
        member = self._crew.members.get(key)
        if member is None:
            self._screen.know(queue)
            member = Member(
                queue,
                lambda: side.worker(queue, self._settings_file),
                side.environ,
                on_line=self._consumer_said,
                on_unusable=lambda member: self._unusable(side, member),
            )
            self._crew.add(key, member)
        if reload and member.running and member.wanted:
            if member.begun:
                self._crew.send(member, signal.SIGHUP)
            else:
                # It has no handler yet, so that the signal would end it.
                member.reload = True
        else:
            self._crew.start(member)

    def _consumer_said(self, member: Member, line: bytes) -> bool:
        if not member.begun and b'"event":' in line and b'"worker begins"' in line:
            member.begun = True
            if member.reload:
                member.reload = False
                self._crew.send(member, signal.SIGHUP)
        if b'"event":"application cannot be used"' in line:
            # A look tells it once, for all of them.
            member.trouble = line
            return False
        # It was told to end while its child began.
        return member.wanted or b'"event":"child did not start"' not in line

    def _unusable(self, side: Side, member: Member) -> None:
        """Look why a worker cannot use its application; a worker may see a file before the watcher does."""
        if side.looking_since is not None or side.error is not None:
            return
        if not side.doubted:
            side.doubted = True
            self._look(side)
            return
        if member.trouble:
            self._screen.line(member.name, member.trouble)
        self._screen.say(f"{member.name} cannot run, see above; tried again after the next change", RED)

    def _queues(self) -> list[dict[str, Any]]:
        if self._description.queues is not None:
            return [dict(queue) for queue in self._description.queues]
        return describe.derived({language: list(side.jobs) for language, side in self._sides.items()})

    def _write_settings(self, queues: list[dict[str, Any]]) -> bool:
        """Write the settings file if it is to be another one; say whether it was."""
        if not queues:
            return False
        assert self._server is not None
        content = describe.settings(self._description, queues, self._server)
        if content == self._settings:
            return False
        new = self._settings_file.with_suffix(".new")
        new.write_text(json.dumps(content, indent=2) + "\n")
        try:
            settings.load(new, {})
        except SettingsError as exc:
            # A job's name may make a queue's that is not legal; those before go on.
            why = str(exc).removeprefix(f"{new}: ")
            if self._settings is None:
                raise DevError(f"{self._description.source}: {why}") from None
            self._screen.say(why, RED)
            return False
        new.rename(self._settings_file)
        self._settings = content
        return True

    # --- what is started ---------------------------------------------------------------------------------

    def _broker_command(self) -> list[str]:
        port = self._ports.get("port")
        if port is None:
            port = BROKER_PORT if ports.is_free(BROKER_PORT) else 0
        config = {
            "port": port,
            "admin_port": self._ports.get("admin_port", 0),
            "queue_path": str(self._folder.spool),
            "log_level": "warning",
        }
        file, port_file = self._folder.path / "broker.json", self._folder.path / "broker.port"
        file.write_text(json.dumps(config))
        if not self._ports:
            port_file.unlink(missing_ok=True)
        flags = ["--config", str(file), "--port-file", str(port_file)]
        return [sys.executable, "-m", "kestrel_stack.broker", *flags]

    def _mover_command(self) -> list[str]:
        return [sys.executable, "-m", "kestrel_stack.consumer.mover", "--config", str(self._settings_file)]

    def _web_command(self) -> list[str]:
        if self._given_port is None:
            self._web_port = ports.free_from(self._web_port)
        self._web_at = None
        config = {
            "servers": [self._server],
            "admin_ports": {self._server: self._ports["admin_port"]},
            "listen": "127.0.0.1",
            "port": self._web_port,
            "state": str(self._folder.web),
            "environment": describe.ENVIRONMENT,
            "settings": [str(self._settings_file)] if self._settings is not None else [],
        }
        file = self._folder.path / "kestrel-web.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))
        return [sys.executable, "-m", "kestrel_stack.web", "--config", str(file)]

    def _web_said(self, _: Member, line: bytes) -> bool:
        found = _LISTENING.search(line)
        if found is None:
            return b": INFO " not in line
        moved = self._web_at != found[1].decode()
        self._web_at = found[1].decode()
        self._folder.tell({"pid": os.getpid(), "web": self._web_at})
        if self._welcomed and moved:
            self._screen.say(f"kestrel-web is at {self._web_at}")
        return False

    # --- the first screen --------------------------------------------------------------------------------

    def _welcome(self) -> None:
        self._welcomed = True
        for line in self._first_screen():
            self._screen.plain(line)

    def _first_screen(self) -> list[str]:
        paint = self._screen.paint
        queues = self._queues()
        taken = "" if self._ports["port"] == BROKER_PORT else f" (port {BROKER_PORT} is taken)"
        web = self._web_at or "has not answered yet, see its lines"
        if self._given_port is None and self._web_port != self._default_port:
            web += f" (port {self._default_port} is taken)"
        admin = f"admin {self._ports['admin_port']}"
        rows = [
            ("kestrel-web", web),
            ("kestrel", f"{self._server}{taken}, {admin}; what is queued is in {self._folder.spool}"),
            ("mover", f"retry delays of {self._delays(queues)}"),
        ]
        for language, side in self._sides.items():
            names = [
                queue["name"]
                for queue in queues
                if queue.get("language", "python") == language
                and (self._only is None or queue["name"] in self._only)
            ]
            state = ", ".join(names) if side.usable else "none: see above"
            rows.append((f"{language} jobs", f"{side.app}; one consumer for each of: {state}"))
        lines = ["", paint(f"  {self._folder.app}: queues from {self._description.source}", "1")]
        lines += [f"    {name:<12} {about}" for name, about in rows]
        if self._settings is not None:
            lines += [
                "  Your application finds its queues by",
                f"    export KESTREL_STACK_CONFIG={shlex.quote(str(self._settings_file))}",
            ]
            if command := self._example(queues):
                lines += ["  Enqueue a test job", f"    {command}"]
        watched = "Files are watched: save, and consumers take the new code. " if self._sides else ""
        return [*lines, f"  {watched}Stop with Ctrl-C.", ""]

    @staticmethod
    def _delays(queues: list[dict[str, Any]]) -> str:
        delays = sorted({delay for queue in queues for delay in queue.get("retry_delays", ())})
        return f"{', '.join(map(str, delays))} s" if delays else "none"

    def _example(self, queues: list[dict[str, Any]]) -> str | None:
        """Return a command that enqueues one of the jobs."""
        names = [queue["name"] for queue in queues if self._only is None or queue["name"] in self._only]
        for language, side in self._sides.items():
            for job, keys in side.jobs.items():
                queue = describe.snake_case(job)
                language_of = {one["name"]: one.get("language", "python") for one in queues}
                if queue not in names or language_of[queue] != language or not side.usable:
                    continue
                data = json.dumps(dict.fromkeys(keys, "test"))
                command = [
                    *([] if _importable() else ["env", f"PYTHONPATH={SOURCE}"]),
                    *(sys.executable, "-m", "kestrel_stack.queue.jobs", "enqueue", job),
                    *(("--data", data) if keys else ()),
                    *("--tenant", "acme", "--config", str(self._settings_file)),
                ]
                return shlex.join(command)
        return None


def _importable() -> bool:
    """Say whether this Python finds the stack by itself."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import kestrel_stack.queue"], capture_output=True, check=False
    )
    return done.returncode == 0
