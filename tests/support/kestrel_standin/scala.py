"""The part of Scala that a Kestrel configuration is written in, read strictly: what is not known is an error.

Names, kinds and units are those of Kestrel 2.4.1's own configuration classes. Source: Kestrel 2.4.1's code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMPORTS = {
    "com.twitter.conversions.storage._",
    "com.twitter.conversions.time._",
    "com.twitter.logging.config._",
    "com.twitter.ostrich.admin.config._",
    "net.lag.kestrel.config._",
}
DURATIONS = {"milliseconds": 1, "seconds": 1000, "minutes": 60_000, "hours": 3_600_000, "days": 86_400_000}
SIZES = {"bytes": 1, "kilobytes": 1024, "megabytes": 1024**2, "gigabytes": 1024**3}
LEVELS = {
    "ALL": "debug",
    "TRACE": "debug",
    "DEBUG": "debug",
    "INFO": "info",
    "WARNING": "warning",
    "ERROR": "error",
    "CRITICAL": "error",
    "FATAL": "error",
    "OFF": "error",
}
POLICIES = {"Never", "Hourly", "Daily", "SigHup"}
INT_LIMIT = 2**31 - 1

# Kinds: "Int", "String", ... as in Scala; "?X" may be None; "[X]" is a list, for which one X will do.
QUEUE = {
    "name": "String",
    "maxItems": "Int",
    "maxSize": "StorageUnit",
    "maxItemSize": "StorageUnit",
    "maxAge": "?Duration",
    "defaultJournalSize": "StorageUnit",
    "maxMemorySize": "StorageUnit",
    "maxJournalSize": "StorageUnit",
    "discardOldWhenFull": "Boolean",
    "keepJournal": "Boolean",
    "syncJournal": "Duration",
    "expireToQueue": "?String",
    "maxExpireSweep": "Int",
    "fanoutOnly": "Boolean",
    "maxQueueAge": "?Duration",
}
CLASSES: dict[str, dict[str, str]] = {
    "KestrelConfig": {
        "listenAddress": "String",
        "memcacheListenPort": "?Int",
        "textListenPort": "?Int",
        "thriftListenPort": "?Int",
        "queuePath": "String",
        "expirationTimerFrequency": "?Duration",
        "clientTimeout": "?Duration",
        "maxOpenTransactions": "Int",
        "connectionBacklog": "?Int",
        "statusFile": "String",
        "queues": "[QueueBuilder]",
        "aliases": "[AliasBuilder]",
        "loggers": "[LoggerConfig]",
        "admin.httpPort": "?Int",
        "admin.statsNodes": "[StatsConfig]",
        **{f"default.{name}": kind for name, kind in QUEUE.items() if name != "name"},
    },
    "QueueBuilder": QUEUE,
    "AliasBuilder": {"name": "String", "destinationQueues": "[String]"},
    "LoggerConfig": {
        "node": "String",
        "level": "?Level",
        "handlers": "[FileHandlerConfig]",
        "useParents": "Boolean",
    },
    "FileHandlerConfig": {
        "filename": "String",
        "roll": "Policy",
        "append": "Boolean",
        "rotateCount": "Int",
        "level": "?Level",
    },
    "StatsConfig": {"reporters": "[TimeSeriesCollectorConfig]"},
    "TimeSeriesCollectorConfig": {},
}
# Kestrel's setting, and the broker's with a function from Scala's value.
TO_QUEUE = {
    "maxItems": "max_items",
    "maxSize": "max_size",
    "maxItemSize": "max_item_size",
    "maxAge": "max_age",
    "defaultJournalSize": "default_journal_size",
    "maxMemorySize": "max_memory_size",
    "maxJournalSize": "max_journal_size",
    "discardOldWhenFull": "discard_old_when_full",
    "keepJournal": "keep_journal",
    "syncJournal": "sync_journal_ms",
    "expireToQueue": "expire_to_queue",
    "maxExpireSweep": "max_expire_sweep",
    "fanoutOnly": "fanout_only",
    "maxQueueAge": "max_queue_age",
}
TOKEN = re.compile(
    r'(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<number>\d+L?)'
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>::|[{}()=.,;])",
    re.DOTALL,
)


class ScalaError(Exception):
    """The file does not compile; the text has line and reason, as the compiler's has."""


@dataclass
class Value:
    """A value and its kind."""

    kind: str
    value: Any


@dataclass
class Configuration:
    """What a file says: the broker's own settings, and the files to log to."""

    broker: dict[str, Any]
    log_files: list[str] = field(default_factory=list)


class Reader:
    """Reads one file."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if not match:
                self.fail(at, f"illegal character {text[at]!r}")
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match.group(), at))
            at = match.end()
        self.tokens.append(("end", "", len(text)))
        self.index = 0

    def fail(self, at: int, why: str) -> Any:
        """Raise ScalaError for the place."""
        line = self.text.count("\n", 0, at) + 1
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        shown = self.text[start : end if end >= 0 else len(self.text)]
        raise ScalaError(f"line {line}: error: {why}\n  {shown}\n  {' ' * (at - start)}^")

    @property
    def place(self) -> int:
        """Where the next token begins."""
        return self.tokens[self.index][2]

    def peek(self, text: str) -> bool:
        """Tell whether the next token is this one."""
        return self.tokens[self.index][1] == text and self.tokens[self.index][0] != "string"

    def take(self, text: str) -> bool:
        """Go past the next token if it is this one."""
        if self.peek(text):
            self.index += 1
            return True
        return False

    def need(self, text: str) -> None:
        """Go past the next token, which must be this one."""
        if not self.take(text):
            found = self.tokens[self.index][1] or "the end of the file"
            self.fail(self.place, f"'{text}' expected but {found} found.")

    def word(self, group: str) -> str:
        """Go past a token of this group and return it."""
        kind, text, at = self.tokens[self.index]
        if kind != group:
            self.fail(at, f"{group} expected but {text or 'the end of the file'} found.")
        self.index += 1
        return text

    def path(self) -> str:
        """Read a name, or several with dots between."""
        names = [self.word("name")]
        while self.take("."):
            names.append(self.word("name"))
        return ".".join(names)

    def file(self) -> dict[str, Value]:
        """Read the whole file: imports, and one `new KestrelConfig { ... }`."""
        imported = set()
        while self.take("import"):
            at = self.place
            name = self.path()
            if name not in IMPORTS:
                self.fail(at, f"not found: {name}")
            imported.add(name)
        at = self.place
        value = self.expression()
        if value.kind != "KestrelConfig":
            self.fail(at, f"type mismatch; found: {value.kind}, required: KestrelConfig")
        if self.tokens[self.index][0] != "end":
            self.fail(self.place, "end of file expected.")
        missing = IMPORTS - imported
        if missing:
            self.fail(0, f"not found: what {sorted(missing)[0]} brings")
        return value.value

    def expression(self) -> Value:
        """Read a value, or several with `::` between, which are a list."""
        found = [self.primary()]
        while self.take("::"):
            found.append(self.primary())
        if len(found) == 1:
            return found[0]
        if found[-1].kind == "List":
            found[-1:] = found[-1].value
        return Value("List", found)

    def primary(self) -> Value:
        """Read one value."""
        kind, text, at = self.tokens[self.index]
        if kind == "string":
            self.index += 1
            if re.search(r"\\[^btnfr\"'\\]", text):
                self.fail(at, "invalid escape character")
            return Value(
                "String", re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text[1:-1])
            )
        if kind == "number":
            return self.number()
        if self.take("new"):
            return self.instance()
        name = self.path()
        if name in ("true", "false"):
            return Value("Boolean", name == "true")
        if name == "None":
            return Value("None", None)
        if name == "Nil":
            return Value("List", [])
        if name == "Duration.MaxValue":
            return Value("Duration", None)
        if name in ("Int.MaxValue", "Long.MaxValue.bytes"):
            return Value("Int" if name.startswith("Int") else "StorageUnit", None)
        if name == "Some":
            self.need("(")
            inner = self.expression()
            self.need(")")
            return Value("Some", inner)
        if name == "List":
            return Value("List", self.arguments())
        if name.startswith("Level.") and name[6:] in LEVELS:
            return Value("Level", LEVELS[name[6:]])
        if name.startswith("Policy.") and name[7:] in POLICIES:
            return Value("Policy", name[7:])
        return self.fail(at, f"not found: value {name}")

    def arguments(self) -> list[Value]:
        """Read values in parentheses."""
        self.need("(")
        found: list[Value] = []
        while not self.take(")"):
            if found:
                self.need(",")
            found.append(self.expression())
        return found

    def number(self) -> Value:
        """Read a number with or without a unit."""
        at = self.place
        text = self.word("number")
        number = int(text.removesuffix("L"))
        if number > (2**63 - 1 if text.endswith("L") else INT_LIMIT):
            self.fail(at, "integer number too large")
        if not self.take("."):
            return Value("Long" if text.endswith("L") else "Int", number)
        at = self.place
        unit = self.word("name")
        for kind, units in (("Duration", DURATIONS), ("StorageUnit", SIZES)):
            for name, factor in units.items():
                # 1.second and 1.seconds are the same.
                if unit in (name, name.removesuffix("s")):
                    return Value(kind, number * factor)
        return self.fail(at, f"value {unit} is not a member of Int")

    def instance(self) -> Value:
        """Read the rest of `new Class { settings }`."""
        at = self.place
        name = self.word("name")
        if name not in CLASSES:
            self.fail(at, f"not found: type {name}")
        if self.take("("):
            self.need(")")
        settings: dict[str, Value] = {}
        if self.take("{"):
            while not self.take("}"):
                self.setting(name, settings)
                self.take(";")
        return Value(name, settings)

    def setting(self, of: str, settings: dict[str, Value]) -> None:
        """Read `name = value`."""
        at = self.place
        name = self.path()
        if name not in CLASSES[of]:
            self.fail(at, f"not found: value {name}")
        self.need("=")
        at = self.place
        settings[name] = self.fit(self.expression(), CLASSES[of][name], at)

    def fit(self, value: Value, kind: str, at: int) -> Value:
        """Return a value as the kind that is required; one value will do for a list."""
        if kind.startswith("["):
            inner = value.value if value.kind == "List" else [value]
            return Value("List", [self.fit(one, kind[1:-1], at) for one in inner])
        if kind.startswith("?"):
            if value.kind == "None":
                return value
            return self.fit(value.value if value.kind == "Some" else value, kind[1:], at)
        if value.kind != kind:
            self.fail(at, f"type mismatch;\n found   : {value.kind}\n required: {kind}")
        return value


def _queue(settings: dict[str, Value], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for scala, ours in TO_QUEUE.items():
        if (given := settings.get(prefix + scala)) is None:
            continue
        value = given.value
        if scala in ("maxAge", "maxQueueAge") and value is not None:
            value = value / 1000
        found[ours] = value
    return found


def read(path: Path) -> Configuration:
    """Read a configuration file; ScalaError says why it does not compile."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScalaError(f"{path}: {error.strerror}") from None
    given = Reader(text).file()

    def value(name: str, default: Any = None) -> Any:
        return given[name].value if name in given else default

    default = _queue(given, "default.")
    broker: dict[str, Any] = {
        "listen_address": value("listenAddress", "0.0.0.0"),
        "port": value("memcacheListenPort", 22133),
        # Whatever listenAddress says.
        "admin_address": "0.0.0.0",
        "admin_port": value("admin.httpPort", 2223),
        "queue_path": value("queuePath", "/tmp"),
        "status_file": value("statusFile", "/tmp/.kestrel-status"),
        "max_open_transactions": value("maxOpenTransactions", 1),
        "client_timeout_ms": value("clientTimeout"),
        "expiration_timer_ms": value("expirationTimerFrequency"),
        "sync_journal_ms": default.pop("sync_journal_ms", None),
        "default": default,
        "queues": {queue.value["name"].value: _queue(queue.value) for queue in value("queues", [])},
        "aliases": {
            alias.value["name"].value: [to.value for to in alias.value["destinationQueues"].value]
            for alias in value("aliases", [])
        },
    }
    files = []
    for logger in value("loggers", []):
        handlers = logger.value.get("handlers", Value("List", [])).value
        files += [handler.value["filename"].value for handler in handlers]
        if "node" not in logger.value and "level" in logger.value:
            broker["log_level"] = logger.value["level"].value
    return Configuration(broker, files)
