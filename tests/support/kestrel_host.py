"""A host of role kestrel in a folder: the tool and the embedded broker are real, systemd is a stand-in.

The stand-in runs the unit's program as a child that outlives it, starts it again when it ends by itself,
calls `started` before each start as the unit does, and keeps its output as journald would.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
TOOL = CHECKOUT / "templates/usr/local/sbin/kestrel-stack-kestrel"

# The tool in the host's folder; TOOL_DIES_AT is the step after which it is killed.
DRIVER = """
import importlib.machinery, importlib.util, os, pathlib, signal, sys
loader = importlib.machinery.SourceFileLoader("tool", {tool!r})
spec = importlib.util.spec_from_loader("tool", loader)
tool = importlib.util.module_from_spec(spec)
sys.dont_write_bytecode = True
loader.exec_module(tool)
root = pathlib.Path({root!r})
tool.ROOT, tool.GROUP = root, None
tool.SYSTEMCTL, tool.JOURNALCTL = str(root / "bin/systemctl"), str(root / "bin/journalctl")
tool.LOG_SECONDS = 5.0
def step(name):
    with (root / "steps").open("a") as file:
        file.write(name + "\\n")
    if name == os.environ.get("TOOL_DIES_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
tool.step = step
sys.exit(tool.main())
"""

SYSTEMCTL = """
import fcntl, json, os, pathlib, signal, subprocess, sys, time, uuid
root = pathlib.Path({root!r})
state = root / "systemd"
def get(name, default=""):
    try: return (state / name).read_text()
    except FileNotFoundError: return default
def put(name, text): (state / name).write_text(str(text))
def alive():
    pid = int(get("pid", "0"))
    if not pid: return 0
    try: stat = pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError: return 0
    return 0 if stat == "Z" else pid
def spawn():
    unit = (root / "etc/systemd/system/kestrel.service").read_text()
    put("loaded", unit)
    invocation = uuid.uuid4().hex
    put("invocation", invocation)
    environment = {{**os.environ, "INVOCATION_ID": invocation, "TOOL_DIES_AT": ""}}
    subprocess.run([sys.executable, str(root / "bin/tool"), "started"], check=False, env=environment,
                   stdout=subprocess.DEVNULL)
    log = (root / "journal").open("a")
    put("pid", subprocess.Popen(
        [sys.executable, str(root / "opt/kestrel/current/kestrel-embedded.pyz"),
         "--config", str(root / "etc/kestrel/embedded.json")],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid)
words = sys.argv[1:]
with (root / "calls").open("a") as file: file.write(" ".join(words) + "\\n")
command = words[0]
lock = (state / "lock").open("w"); fcntl.flock(lock, fcntl.LOCK_EX)
os.set_inheritable(lock.fileno(), False)
wanted = get("wanted") == "yes"
if wanted and not alive() and command != "stop":
    # Restart=always
    put("restarts", int(get("restarts", "0")) + 1)
    spawn()
if command == "show":
    unit = root / "etc/systemd/system/kestrel.service"
    changed = unit.exists() and unit.read_text() != get("loaded")
    running = alive()
    print(f"LoadState={{'loaded' if unit.exists() else 'not-found'}}")
    print(f"ActiveState={{'active' if running else 'activating' if wanted else 'inactive'}}")
    print(f"SubState={{'running' if running else 'dead'}}")
    print(f"InvocationID={{get('invocation')}}")
    print(f"NeedDaemonReload={{'yes' if changed and running else 'no'}}")
    print(f"NRestarts={{get('restarts', '0')}}")
    print("TimeoutStopUSec=20s")
elif command == "start":
    put("wanted", "yes"); put("restarts", 0)
    if not alive(): spawn()
elif command == "stop":
    put("wanted", "no")
    pid = alive()
    if pid:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while alive() and time.monotonic() < deadline: time.sleep(0.02)
        if alive(): os.kill(pid, signal.SIGKILL)
elif command == "is-enabled":
    sys.exit(0 if get("enabled") else 1)
elif command == "enable":
    put("enabled", "yes")
elif command == "daemon-reload":
    unit = root / "etc/systemd/system/kestrel.service"
    put("loaded", unit.read_text() if unit.exists() else "")
"""

JOURNALCTL = """
import json, pathlib, sys
journal = pathlib.Path({root!r}) / "journal"
data = journal.read_bytes() if journal.exists() else b""
words = sys.argv[1:]
if "json" in words:
    print(json.dumps({{"__CURSOR": str(len(data))}}))
else:
    if "--after-cursor" in words:
        data = data[int(words[words.index("--after-cursor") + 1]):]
    sys.stdout.write(data.decode())
"""

PROGRAM = """
import runpy, sys
sys.path.insert(0, {source!r})
sys.argv[0] = "kestrel-embedded"
runpy.run_module("kestrel_stack.broker", run_name="__main__")
"""


def free_port() -> int:
    """Return a port that nobody has just now, and that the kernel gives to no connection meanwhile."""
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest_given)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class KestrelHost:
    """The folder, and what a play does to it."""

    def __init__(self, root: Path):
        self.root = root
        for folder in (
            *("bin", "systemd", "etc/kestrel/next", "etc/systemd/system", "opt/kestrel/releases"),
            *("run/kestrel", "var/lib/kestrel", "var/spool/kestrel", "var/log/kestrel"),
        ):
            (root / folder).mkdir(parents=True)
        for name, text in (("tool", DRIVER), ("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
            file = root / "bin" / name
            file.write_text(f"#!{sys.executable}\n" + text.format(root=str(root), tool=str(TOOL)))
            file.chmod(0o755)
        self.port = free_port()
        self.config: dict[str, Any] = {
            "listen_address": "127.0.0.1",
            "port": self.port,
            "admin_port": None,
            "queue_path": str(root / "var/spool/kestrel"),
            "status_file": str(root / "var/lib/kestrel/status"),
            "log_level": "info",
            "default": {},
            "queues": {"shop_mail": {"max_items": 3}},
            "aliases": {},
        }
        self.add_release("embedded-1-a")

    def add_release(self, name: str, text: str | None = None) -> None:
        """Unpack a version; `text` is a program instead of the broker."""
        folder = self.root / "opt/kestrel/releases" / name
        folder.mkdir()
        (folder / "kestrel-embedded.pyz").write_text(text or PROGRAM.format(source=str(CHECKOUT / "src")))

    def stage(self, release: str = "embedded-1-a", unit: str = "unit", **config: Any) -> None:
        """Stage what a play would."""
        folder = self.root / "etc/kestrel/next"
        (folder / "embedded.json").write_text(json.dumps({**self.config, **config}))
        (folder / "kestrel.service").write_text(unit)
        next_one = self.root / "opt/kestrel/next"
        next_one.unlink(missing_ok=True)
        next_one.symlink_to(f"releases/{release}")

    def start_tool(self, *words: str, dies_at: str = "", **options: Any) -> subprocess.Popen[str]:
        """Start the tool."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "bin/tool"), "--start-seconds", "60", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "TOOL_DIES_AT": dies_at},
            **options,
        )

    def tool(
        self, *words: str, dies_at: str = "", stdin: str | None = None
    ) -> tuple[int, dict[str, Any], str]:
        """Run the tool; return its exit code, its JSON and its standard error."""
        process = self.start_tool(*words, dies_at=dies_at, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=120)
        return process.returncode, json.loads(out or "{}"), err

    def apply(self) -> dict[str, Any]:
        """Run `apply`, which must succeed."""
        code, said, err = self.tool("apply")
        assert code == 0, err + str(said)
        return said

    def ask(self, text: str, ends: bytes = b"\r\n") -> str:
        """Talk to the server until the answer ends so."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(text.encode())
            while not answer.endswith(ends):
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        return answer.decode().removesuffix("\r\n")

    def set(self, queue: str, body: str = "x") -> str:
        """Put one item into a queue."""
        return self.ask(f"set {queue} 0 0 {len(body)}\r\n{body}\r\n")

    def items(self, queue: str) -> int:
        """Return how many items a queue has."""
        for line in self.ask("stats\r\n", b"END\r\n").splitlines():
            if line.startswith(f"STAT queue_{queue}_items "):
                return int(line.split()[2])
        return 0

    @property
    def pid(self) -> int:
        """The server's process, or the one it had."""
        return int((self.root / "systemd/pid").read_text())

    def alive(self) -> bool:
        """Tell whether the server's process runs."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    def steps(self) -> list[str]:
        """Return the steps that the tool has passed so far, and forget them."""
        file = self.root / "steps"
        found = file.read_text().split("\n")[:-1] if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def close(self) -> None:
        """End the server."""
        (self.root / "systemd/wanted").write_text("no")
        if (self.root / "systemd/pid").exists() and self.alive():
            os.kill(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
