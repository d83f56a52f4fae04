"""The broker's configuration: one JSON file, unknown keys refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line that names the key and the fix."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Limits of one queue; None is no limit.

    ``max_items`` counts queued items without open reads; ``max_size`` and ``max_item_size`` are bytes;
    ``max_age`` is seconds; ``default_journal_size`` is the bytes from which the journal file is rewritten.
    A full queue refuses a set, or with ``discard_old_when_full`` drops its oldest items for good.
    """

    max_items: int | None = None
    max_size: int | None = None
    max_item_size: int | None = None
    max_age: float | None = None
    discard_old_when_full: bool = False
    default_journal_size: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; ports 0 are any free port, ``admin_port`` None is no admin HTTP.

    ``sync_journal_ms``: 0 syncs before every reply, N syncs unsynced records N ms later, None at close only.
    ``max_open_transactions`` holds for one connection and one queue.
    """

    listen_address: str = "127.0.0.1"
    port: int = 22133
    admin_address: str = "127.0.0.1"
    admin_port: int | None = 2223
    queue_path: Path = Path("/var/spool/kestrel")
    max_open_transactions: int = 100
    sync_journal_ms: int | None = 100
    log_level: str = "info"
    default: QueueSettings = QueueSettings()
    queues: dict[str, QueueSettings] = field(default_factory=dict)

    def settings_for(self, queue: str) -> QueueSettings:
        """Return the settings of the named queue."""
        return self.queues.get(queue, self.default)


def load(path: Path) -> Config:
    """Read and check a configuration file; ConfigError names what is wrong in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(data: Any) -> Config:
    """Make a Config of decoded JSON; ConfigError names the key."""
    given = _known(data, Config, "the file")
    for key in ("port", "admin_port"):
        if key in given and not (key == "admin_port" and given[key] is None):
            _whole(given, key, least=0, most=65535)
    for key in ("listen_address", "admin_address"):
        if key in given and not (isinstance(given[key], str) and given[key]):
            raise ConfigError(f'"{key}" must be an address such as "127.0.0.1"')
    if "queue_path" in given:
        if not isinstance(given["queue_path"], str) or not given["queue_path"].startswith("/"):
            raise ConfigError('"queue_path" must be an absolute path')
        given["queue_path"] = Path(given["queue_path"])
    if "max_open_transactions" in given:
        _whole(given, "max_open_transactions", least=1)
    if given.get("sync_journal_ms") is not None:
        _whole(given, "sync_journal_ms", least=0)
    if given.get("log_level", "info") not in LOG_LEVELS:
        raise ConfigError(f'"log_level" must be one of {", ".join(LOG_LEVELS)}')
    default = _queue_settings(given.pop("default", {}), '"default"', QueueSettings())
    queues = given.pop("queues", {})
    if not isinstance(queues, dict):
        raise ConfigError('"queues" must be an object of queue names')
    for name in queues:
        check_queue_name(name)
    # A queue's own block states what differs from "default", as in Kestrel's configuration.
    own = {name: _queue_settings(block, f'queue "{name}"', default) for name, block in queues.items()}
    return Config(**given, default=default, queues=own)


def check_queue_name(name: str) -> None:
    """Raise ConfigError for a name that no queue can have."""
    if not name or any(character in name for character in "./~+ ") or not name.isprintable():
        raise ConfigError(f'queue "{name}": a name must not be empty or hold a space or any of . / ~ +')


def _known(data: Any, of: type, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be a JSON object")
    known = [entry.name for entry in fields(of)]
    for key in data:
        if key not in known:
            raise ConfigError(f'unknown key "{key}" in {where}; known are {", ".join(known)}')
    return dict(data)


def _queue_settings(data: Any, where: str, base: QueueSettings) -> QueueSettings:
    given = _known(data, QueueSettings, where)
    try:
        for key in ("max_items", "max_size", "max_item_size"):
            if given.get(key) is not None:
                _whole(given, key, least=1)
        if "default_journal_size" in given:
            _whole(given, "default_journal_size", least=1)
        age = given.get("max_age")
        if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or age <= 0):
            raise ConfigError('"max_age" must be seconds above 0, or null')
        if not isinstance(given.get("discard_old_when_full", False), bool):
            raise ConfigError('"discard_old_when_full" must be true or false')
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return replace(base, **given)


def _whole(given: dict[str, Any], key: str, least: int, most: int | None = None) -> None:
    value = given[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
        limits = f"from {least} to {most}" if most else f"of at least {least}"
        raise ConfigError(f'"{key}" must be a whole number {limits}, not {json.dumps(value)}')
