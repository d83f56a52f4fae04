"""The contract table of the broker: reads its cases, plays them against any server, compares every byte.

A case is data (tests/contract/kestrel/README.md says what it may hold). The player knows nothing that a
server knows: it sends what the case says and compares what comes back, bytes and connection state.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from support.broker import DEADLINE_S, BrokerProcess, RawClient, wait_until

FOLDER = Path(__file__).parents[1] / "contract" / "kestrel"
NAMES = ("$Q", "$R", "$S")
VERSION_REPLY = b"VERSION 2.4.1\r\n"

SERVERS: dict[str, dict[str, Any]] = {
    "shared": {"max_open_transactions": 100},
    "strict": {"max_open_transactions": 1, "client_timeout_ms": 2000, "expiration_timer_ms": 200},
}
"""What a server has to be started with, by the name that a case's ``server`` gives."""

CASE_KEYS = {"name", "queues", "aliases", "server", "process", "source", "steps"}
STEP_KEYS = {
    *("conn", "send", "recv", "lines", "closed", "hang_up", "until", "counts", "repeat", "pending"),
    *("put", "take", "queue", "eventually"),
    *("http", "status", "type", "text", "json", "json_has", "keys", "lacks"),
    *("restart", "stopped", "config"),
}


@dataclass(frozen=True)
class Case:
    """One case of the table."""

    file: str
    name: str
    steps: list[dict[str, Any]]
    queues: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    server: str = "shared"
    process: dict[str, Any] | None = None
    source: str = "observed"

    @property
    def id(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def needs_admin(self) -> bool:
        return any("http" in step for step in self.steps)

    @property
    def settings_of_its_own(self) -> bool:
        """It needs more than the server that its ``server`` names."""
        return self.process is not None or bool(self.queues or self.aliases)

    @property
    def has_fixed_names(self) -> bool:
        """A server that is shared must know the names of a case that brings settings."""
        return self.process is None and self.settings_of_its_own

    def names(self) -> dict[str, str]:
        """The names of the case's queues; no case sees another's items."""
        if self.has_fixed_names:
            stem = "contract_" + hashlib.sha256(self.id.encode()).hexdigest()[:12]
        else:
            stem = "c" + uuid.uuid4().hex[:12]
        return {placeholder: f"{stem}_{placeholder[1:].lower()}" for placeholder in NAMES}

    def settings(self) -> dict[str, Any]:
        """``queues`` and ``aliases`` of a server's configuration, under the case's fixed names."""
        names = self.names()
        return replaced({"queues": self.queues, "aliases": self.aliases}, names)


def replaced(value: Any, names: dict[str, str]) -> Any:
    """Put the names into every text and key."""
    if isinstance(value, str):
        for placeholder, name in names.items():
            value = value.replace(placeholder, name)
        return value
    if isinstance(value, dict):
        return {replaced(key, names): replaced(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry, names) for entry in value]
    return value


def load_cases() -> list[Case]:
    """Every case, in the order of the files; ValueError for one that is not understood."""
    cases = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for data in yaml.safe_load(path.read_text(encoding="utf-8")):
            unknown = set(data) - CASE_KEYS
            for step in data.get("steps", []):
                unknown |= set(step) - STEP_KEYS
            if unknown:
                raise ValueError(f"{path.name}: {data.get('name')}: unknown keys {sorted(unknown)}")
            if data.get("server", "shared") not in SERVERS or data.get("source", "code") != "code":
                raise ValueError(f"{path.name}: {data['name']}: unknown server or source")
            cases.append(Case(path.stem, **data))
    twice = {case.id for case in cases if [other.id for other in cases].count(case.id) > 1}
    if twice:
        raise ValueError(f"two cases of one name: {sorted(twice)}")
    return cases


def server_config(cases: list[Case], server: str) -> dict[str, Any]:
    """The embedded broker's settings with which all cases of one server can be played on it."""
    config: dict[str, Any] = {**SERVERS[server], "queues": {}, "aliases": {}}
    for case in cases:
        if case.has_fixed_names and case.server == server:
            for key, entries in case.settings().items():
                config[key] |= entries
    return config


# The same settings for a real Kestrel

_SCALA_NAMES = {
    "max_items": "maxItems",
    "max_size": "maxSize",
    "max_item_size": "maxItemSize",
    "max_age": "maxAge",
    "discard_old_when_full": "discardOldWhenFull",
    "keep_journal": "keepJournal",
    "sync_journal_ms": "syncJournal",
    "expire_to_queue": "expireToQueue",
    "max_expire_sweep": "maxExpireSweep",
    "fanout_only": "fanoutOnly",
    "max_queue_age": "maxQueueAge",
    "max_memory_size": "maxMemorySize",
    "default_journal_size": "defaultJournalSize",
    "max_journal_size": "maxJournalSize",
}


def _scala_setting(key: str, value: Any) -> str:
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = json.dumps(value)
    elif key.endswith("_size"):
        text = f"{value}.bytes"
    elif key.endswith("_age"):
        text = f"{round(value * 1000)}.milliseconds"
    elif key.endswith("_ms"):
        text = f"{value}.milliseconds"
    else:
        text = str(value)
    return f"{_SCALA_NAMES[key]} = {text}"


def kestrel_config(
    cases: list[Case],
    server: str,
    *,
    port: int = 22133,
    admin_port: int = 2223,
    folder: str = "/tmp/kestrel-contract",
) -> str:
    """A real Kestrel's configuration (Scala) with which all cases of one server can be played on it."""
    config = server_config(cases, server)

    def option_ms(key: str) -> str:
        return f"{config[key]}.milliseconds" if key in config else "None"

    def block(kind: str, name: str, lines: list[str]) -> str:
        body = "\n".join(f"    {line}" for line in [f"name = {json.dumps(name)}", *lines])
        return f"new {kind} {{\n{body}\n  }}"

    queues = [
        block("QueueBuilder", name, [_scala_setting(key, value) for key, value in settings.items()])
        for name, settings in config["queues"].items()
    ]
    aliases = [
        block("AliasBuilder", name, [f"destinationQueues = List({', '.join(map(json.dumps, targets))})"])
        for name, targets in config["aliases"].items()
    ]
    parts = [
        "import com.twitter.conversions.storage._",
        "import com.twitter.conversions.time._",
        "import com.twitter.logging.config._",
        "import com.twitter.ostrich.admin.config._",
        "import net.lag.kestrel.config._",
        "",
        "new KestrelConfig {",
        '  listenAddress = "127.0.0.1"',
        f"  memcacheListenPort = {port}",
        "  textListenPort = None",
        "  thriftListenPort = None",
        f'  queuePath = "{folder}/spool"',
        f'  statusFile = "{folder}/status"',
        f"  clientTimeout = {option_ms('client_timeout_ms')}",
        f"  expirationTimerFrequency = {option_ms('expiration_timer_ms')}",
        f"  maxOpenTransactions = {config['max_open_transactions']}",
        "  default.syncJournal = 100.milliseconds",
        f"  admin.httpPort = {admin_port}",
    ]
    if queues:
        parts += ["", "  queues = " + " :: ".join([*queues, "Nil"])]
    if aliases:
        parts += ["", "  aliases = " + " :: ".join([*aliases, "Nil"])]
    parts += [
        "",
        "  loggers = new LoggerConfig {",
        "    level = Level.INFO",
        "    handlers = new FileHandlerConfig {",
        f'      filename = "{folder}/kestrel.log"',
        "      roll = Policy.Never",
        "    }",
        "  }",
        "}",
    ]
    return "\n".join(parts) + "\n"


# Playing


@dataclass
class Target:
    """A server to play against: addresses, and the process if we may stop and start it."""

    host: str
    port: int
    admin: tuple[str, int] | None = None
    process: BrokerProcess | None = None
    deadline_s: float = DEADLINE_S

    @classmethod
    def of(cls, broker: BrokerProcess) -> Target:
        admin = (broker.host, broker.admin_port) if broker.admin_port else None
        return cls(broker.host, broker.port, admin, broker)


class Player:
    """Plays one case."""

    def __init__(self, target: Target, case: Case, names: dict[str, str] | None = None):
        self._target = target
        self._case = case
        self._names = names or case.names()
        self._clients: dict[str, RawClient] = {}
        self._pending: set[str] = set()
        self._counted: dict[str, int] = {}

    def play(self) -> None:
        """Play every step, then see that what should be open is open and has nothing more to say."""
        if self._case.has_fixed_names:
            self.clean_up()
        if any("counts" in step for step in self._case.steps):
            self._counted = self._stats("")
        try:
            for number, step in enumerate(self._case.steps):
                for _ in range(step.get("repeat", 1)):
                    try:
                        self._step(step)
                    except (AssertionError, OSError) as error:
                        raise AssertionError(f"step {number + 1}, {step}: {error}") from None
            for name in sorted(set(self._clients) - self._pending):
                try:
                    self._clients[name].ask(b"version\r\n", VERSION_REPLY)
                except (AssertionError, OSError) as error:
                    raise AssertionError(f"connection {name} should be open and silent: {error}") from None
        finally:
            for client in self._clients.values():
                client.close()

    def clean_up(self) -> None:
        """Delete what an earlier run left under the case's names, fanouts and all."""
        stem = self._names["$Q"].removesuffix("_q")
        with self._connect() as client:
            client.send(b"dump_stats\r\n")
            found = []
            while (line := client.line()) != b"END\r\n":
                match = re.fullmatch(rb"queue '(.*)' \{\r\n", line)
                if match and match[1].startswith(stem.encode()):
                    found.append(match[1])
            for name in found:
                client.ask(b"delete %b\r\n" % name, b"DELETED\r\n")

    def _connect(self) -> RawClient:
        return RawClient(self._target.host, self._target.port, self._target.deadline_s)

    def _step(self, step: dict[str, Any]) -> None:
        if "config" in step:
            self._target.process.reconfigure(**replaced(step["config"], self._names))
        if "http" in step:
            self._http(replaced(step, self._names))
        elif "restart" in step:
            self._restart(step["restart"])
        elif "stopped" in step:
            assert self._target.process.process.wait(DEADLINE_S) == 0
            for client in self._clients.values():
                client.close()
            self._clients.clear()
        elif "eventually" in step:
            self._ask_until(step)
        else:
            self._talk(step)
        for key, number in step.get("until", {}).items():
            wait_until(
                lambda key=key, number=number: self._stat(key) == number,
                f"{key} to be {number}, it is {self._stat(key)}",
                self._target.deadline_s,
            )
        if "counts" in step:
            now = self._stats("")
            counted = {key: now[key] - self._counted[key] for key in step["counts"]}
            assert counted == step["counts"], f"counted {counted}"

    def _talk(self, step: dict[str, Any]) -> None:
        name = step.get("conn", "a")
        if name not in self._clients:
            self._clients[name] = self._connect()
        client = self._clients[name]
        queue = self._bytes(step.get("queue", "$Q"))
        for item in step.get("put", ()):
            data = self._bytes(item)
            client.ask(b"set %b 0 0 %d\r\n%b\r\n" % (queue, len(data), data), b"STORED\r\n")
        client.send(self._bytes(step.get("send", "")))
        client.expect(self._bytes(step.get("recv", "")))
        for line in step.get("lines", ()):
            got = client.line()
            if line.startswith("~"):
                pattern = self._bytes(replaced(line[1:], {k: re.escape(v) for k, v in self._names.items()}))
                assert re.fullmatch(pattern + b"\r\n", got), f"expected {pattern!r}, got {got!r}"
            else:
                assert got == self._bytes(line) + b"\r\n", f"expected {self._bytes(line)!r}, got {got!r}"
        if "take" in step:
            for item in step["take"]:
                data = self._bytes(item)
                client.ask(
                    b"get %b\r\n" % queue, b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (queue, len(data), data)
                )
            if not step["take"]:
                client.ask(b"get %b\r\n" % queue, b"END\r\n")
        if step.get("closed"):
            rest = client.read_all()
            assert rest == b"", f"{rest!r} instead of a close without more bytes"
            self._clients.pop(name).close()
        if step.get("hang_up"):
            self._clients.pop(name).close()
        self._pending.discard(name)
        if step.get("pending"):
            self._pending.add(name)

    def _ask_until(self, step: dict[str, Any]) -> None:
        """Ask again and again, each time on a new connection, until the whole answer is the expected one."""
        expected = self._bytes(step["eventually"])

        def ask() -> bool:
            with self._connect() as client:
                client.send(self._bytes(step["send"]) + b"quit\r\n")
                return client.read_all() == expected

        wait_until(ask, f"{step['send']!r} to be answered by {expected!r}", self._target.deadline_s)

    def _restart(self, how: str) -> None:
        process = self._target.process
        if how == "kill":
            process.kill()
        elif how == "term":
            assert process.terminate() == 0
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        process.start()

    def _bytes(self, text: str) -> bytes:
        return str(replaced(text, self._names)).encode("latin-1")

    def _stats(self, prefix: str) -> dict[str, int]:
        with self._connect() as client:
            client.send(b"stats\r\nquit\r\n")
            lines = client.read_all().decode("latin-1").split("\r\n")
        pairs = [line.removeprefix(f"STAT {prefix}").split(" ") for line in lines if line.startswith("STAT ")]
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def _stat(self, key: str) -> int | None:
        """A number of ``$Q``, or of another queue as ``$R items``; None when there is no such queue."""
        queue, _, key = replaced(key, self._names).rpartition(" ")
        return self._stats("").get(f"queue_{queue or self._names['$Q']}_{key}")

    # Admin HTTP

    def _http(self, step: dict[str, Any]) -> None:
        if step.get("eventually"):
            last: list[AssertionError] = []

            def matches() -> bool:
                try:
                    self._ask_http(step)
                except AssertionError as error:
                    last[:] = [error]
                    return False
                return True

            wait_until(matches, f"{step['http']} to answer as expected ({last})", self._target.deadline_s)
        else:
            self._ask_http(step)

    def _ask_http(self, step: dict[str, Any]) -> None:
        method, path = step["http"].split(" ")
        connection = http.client.HTTPConnection(*self._target.admin, timeout=self._target.deadline_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode("utf-8")
        except (OSError, http.client.HTTPException) as error:
            raise AssertionError(f"no HTTP answer: {error!r}") from None
        finally:
            connection.close()
        assert response.status == step.get("status", 200), f"status {response.status}"
        if "type" in step:
            kind = (response.getheader("Content-Type") or "").partition(";")[0]
            assert kind == step["type"], f"content type {kind}"
        if "text" in step:
            assert body == step["text"], f"body {body!r}"
        if step.keys() & {"json", "json_has", "keys"}:
            try:
                answer = json.loads(body)
            except ValueError:
                raise AssertionError(f"not JSON: {body!r}") from None
            if "json" in step:
                assert answer == step["json"], f"body {answer}"
            if "keys" in step:
                assert set(answer) == set(step["keys"]), f"keys {sorted(answer)}"
            contains(answer, step.get("json_has", {}))
            for key, entry in step.get("lacks", {}).items():
                assert entry not in answer[key], f"{key} > {entry} is there"


_TYPES = {"$int": int, "$number": (int, float), "$string": str, "$list": list, "$object": dict}


def contains(got: Any, expected: Any, where: str = "") -> None:
    """Assert that ``got`` has at least what ``expected`` has; ``$int`` and such are any value of a type."""
    if isinstance(expected, dict):
        assert isinstance(got, dict), f"{where or 'the answer'} is no object: {got!r}"
        for key, entry in expected.items():
            assert key in got, f"{where}{key} is missing"
            contains(got[key], entry, f"{where}{key} > ")
    elif isinstance(expected, str) and expected in _TYPES:
        assert isinstance(got, _TYPES[expected]) and not isinstance(got, bool), f"{where}{got!r}"
    else:
        assert got == expected, f"{where}{got!r} instead of {expected!r}"
