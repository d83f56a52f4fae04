"""The broker's configuration: one JSON file, unknown keys refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")

SERVERS_SYNC = -1
"""Value of a queue's ``sync_journal_ms`` that does not set its own: the server's holds."""

MAX_NAME = 230
"""Bytes of a queue's name in the configuration: with what is added to it, it must be a file name."""


MOST = 10**15
"""The greatest whole number, which nobody needs: what is made of it must fit into a journal and a timer."""

MOST_SECONDS = 10**11
"""The greatest age, about 3000 years."""


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line that names the key and the fix."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Settings of one queue, by Kestrel's names and with its defaults; None is no limit, or off.

    ``max_items`` counts queued items without open reads; ``max_size``, ``max_item_size``,
    ``max_memory_size`` (items kept in memory, and the size at which a journal file is full),
    ``default_journal_size`` (an empty queue's file is rewritten from here on) and ``max_journal_size``
    (current file and archives) are bytes; ``max_age`` and ``max_queue_age`` (of the queue itself) are
    seconds. A full queue refuses a set, or with ``discard_old_when_full`` drops its oldest items for good.
    Expired items go to the queue ``expire_to_queue``; one sweep of the timer takes at most
    ``max_expire_sweep``.
    ``fanout_only``: the queue keeps nothing, only its fanouts get copies.
    """

    max_items: int | None = None
    max_size: int | None = None
    max_item_size: int | None = None
    max_age: float | None = None
    discard_old_when_full: bool = False
    keep_journal: bool = True
    sync_journal_ms: int | None = SERVERS_SYNC
    expire_to_queue: str | None = None
    max_expire_sweep: int | None = None
    fanout_only: bool = False
    max_queue_age: float | None = None
    max_memory_size: int = 128 * 1024 * 1024
    default_journal_size: int = 16 * 1024 * 1024
    max_journal_size: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; ports 0 are any free port, ``admin_port`` None is no admin HTTP.

    ``sync_journal_ms``: 0 syncs before every reply, N syncs unsynced records N ms later, None at close only.
    ``max_open_transactions`` holds for one connection and one queue. ``client_timeout_ms``: a connection
    that sends nothing for so long is closed. ``expiration_timer_ms``: time between two sweeps for expired
    items. ``status_file`` keeps READONLY and QUIESCENT over restarts. ``aliases``: name to the queues that a
    set goes to.
    """

    listen_address: str = "127.0.0.1"
    port: int = 22133
    admin_address: str = "127.0.0.1"
    admin_port: int | None = 2223
    queue_path: Path = Path("/var/spool/kestrel")
    status_file: Path | None = None
    max_open_transactions: int = 100
    client_timeout_ms: int | None = None
    expiration_timer_ms: int | None = None
    sync_journal_ms: int | None = 100
    log_level: str = "info"
    default: QueueSettings = QueueSettings()
    queues: dict[str, QueueSettings] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def settings_for(self, queue: str) -> QueueSettings:
        """Return the settings of the named queue; a fanout without own ones has its parent's."""
        own = self.queues.get(queue)
        if own is None and "+" in queue:
            own = self.queues.get(queue.partition("+")[0])
        return self.default if own is None else own

    def sync_ms_for(self, settings: QueueSettings) -> int | None:
        """Return after how many ms a queue with these settings is synced (0 at once, None at close)."""
        own = settings.sync_journal_ms
        return self.sync_journal_ms if own == SERVERS_SYNC else own


def load(path: Path) -> Config:
    """Read and check a configuration file; ConfigError names what is wrong in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
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
        if key in given and not (isinstance(given[key], str) and given[key] and given[key].isprintable()):
            raise ConfigError(f'"{key}" must be an address such as "127.0.0.1"')
    for key in ("queue_path", "status_file"):
        if key in given and not (key == "status_file" and given[key] is None):
            if not isinstance(given[key], str) or not given[key].startswith("/") or "\0" in given[key]:
                raise ConfigError(f'"{key}" must be an absolute path')
            given[key] = Path(given[key])
    if given.get("status_file") is not None:
        folder = given.get("queue_path", Config.__dataclass_fields__["queue_path"].default)
        if given["status_file"].parent == folder:
            raise ConfigError(
                '"status_file" must not be in "queue_path": every file there is taken for a queue'
            )
    for key, least in (("client_timeout_ms", 1), ("expiration_timer_ms", 1), ("sync_journal_ms", 0)):
        if given.get(key) is not None:
            _whole(given, key, least=least)
    if "max_open_transactions" in given:
        _whole(given, "max_open_transactions", least=1)
    if given.get("log_level", "info") not in LOG_LEVELS:
        raise ConfigError(f'"log_level" must be one of {", ".join(LOG_LEVELS)}')
    default = _queue_settings(given.pop("default", {}), '"default"', QueueSettings())
    queues = given.pop("queues", {})
    if not isinstance(queues, dict):
        raise ConfigError('"queues" must be an object of queue names')
    aliases = _aliases(given.pop("aliases", {}), queues)
    own: dict[str, QueueSettings] = {}
    # A queue's own block states what differs from "default", a fanout's what differs from its parent, as in
    # Kestrel's configuration since 2.3.4. Parents first.
    for name in sorted(queues, key=lambda name: "+" in name):
        check_queue_name(name)
        base = own.get(name.partition("+")[0], default)
        own[name] = _queue_settings(queues[name], f'queue "{name}"', base)
    for name, settings in {"default": default, **own}.items():
        target = settings.expire_to_queue
        if target is not None and target == name:
            raise ConfigError(f'queue "{name}": "expire_to_queue" is the queue itself')
        if target in aliases:
            # Kestrel would make a queue of that name, which no client can read.
            raise ConfigError(f'queue "{name}": "expire_to_queue" {target} is an alias; name a queue')
    config = Config(**given, default=default, queues=own, aliases=aliases)
    for settings in (default, *own.values()):
        target = settings.expire_to_queue
        if target is not None and config.settings_for(target).expire_to_queue == target:
            # By inheritance. What expires there would wait at its head for ever, and all else behind it.
            raise ConfigError(
                f'"expire_to_queue" {target}: that queue would have itself as its own; give it a block of'
                ' its own with "expire_to_queue": null'
            )
    return config


def check_queue_name(name: str) -> None:
    """Raise ConfigError for a name that no queue can have; ``parent+child`` names a fanout."""
    if (
        not name
        or name.startswith("+")
        or any(character in name for character in "./~ ")
        or not name.isprintable()
        or any(ord(character) > 0xFF for character in name)
    ):
        raise ConfigError(
            f'queue "{name}": a name must not be empty, begin with +, or hold a space or any of . / ~'
        )
    if len(name) > MAX_NAME:
        raise ConfigError(f'queue "{name[:40]}...": a name must not be longer than {MAX_NAME} bytes')


def _aliases(data: Any, queues: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    if not isinstance(data, dict):
        raise ConfigError('"aliases" must be an object: alias to a list of queue names')
    for name, targets in data.items():
        check_queue_name(name)
        if "+" in name:
            # An older queue of this name, as a fanout of one of the targets, would go round for ever.
            raise ConfigError(f'alias "{name}": a name with + is a fanout; choose another')
        if name in queues:
            raise ConfigError(f'alias "{name}": a queue has this name, too; it could not be reached')
        if not isinstance(targets, list) or not targets or not all(isinstance(to, str) for to in targets):
            raise ConfigError(f'alias "{name}": must be a list of at least one queue name')
        for target in targets:
            try:
                check_queue_name(target)
            except ConfigError as error:
                raise ConfigError(f'alias "{name}": {error}') from None
            if target in data:
                raise ConfigError(f'alias "{name}": {target} is an alias, too; name queues')
        if len(set(targets)) < len(targets):
            raise ConfigError(f'alias "{name}": it names a queue twice')
    return {name: tuple(targets) for name, targets in data.items()}


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
        for key in ("max_items", "max_size", "max_item_size", "max_expire_sweep"):
            if given.get(key) is not None:
                _whole(given, key, least=1)
        for key in ("max_memory_size", "default_journal_size", "max_journal_size"):
            if key in given:
                _whole(given, key, least=1)
        if given.get("sync_journal_ms") is not None:
            _whole(given, "sync_journal_ms", least=0)
        for key in ("max_age", "max_queue_age"):
            age = given.get(key)
            if age is not None and (
                isinstance(age, bool) or not isinstance(age, int | float) or not 0 < age <= MOST_SECONDS
            ):
                raise ConfigError(f'"{key}" must be seconds above 0 and up to {MOST_SECONDS}, or null')
        for key in ("discard_old_when_full", "keep_journal", "fanout_only"):
            if not isinstance(given.get(key, False), bool):
                raise ConfigError(f'"{key}" must be true or false')
        target = given.get("expire_to_queue")
        if target is not None:
            if not isinstance(target, str):
                raise ConfigError('"expire_to_queue" must be the name of a queue, or null')
            check_queue_name(target)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return replace(base, **given)


def _whole(given: dict[str, Any], key: str, least: int, most: int = MOST) -> None:
    value = given[key]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f'"{key}" must be a whole number from {least} to {most}, not {json.dumps(value)[:40]}'
        )
