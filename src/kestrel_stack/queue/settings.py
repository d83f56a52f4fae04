"""The settings file of one application on one host, as the playbook writes it.

Consumers and producers read ``/etc/kestrel-stack/<app>.json``. ``KESTREL_STACK_CONFIG`` names another file;
``KESTREL_STACK_SERVERS``, ``KESTREL_STACK_NAMESPACE`` and ``KESTREL_STACK_ENVIRONMENT`` override its content.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kestrel_stack.queue import names
from kestrel_stack.queue.errors import InvalidQueueName, InvalidServer, SettingsError
from kestrel_stack.queue.servers import Server, parse_servers

FOLDER = Path("/etc/kestrel-stack")
LANGUAGES = ("python", "php")

_SIZE = re.compile(r"([0-9]+)(KB|MB|GB)?")
_SIZE_UNITS = {None: 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
_AGE = re.compile(r"([1-9][0-9]*)(s|m|h)")
_AGE_UNITS = {"s": 1, "m": 60, "h": 3600}
_FANOUT = re.compile(r"[A-Za-z0-9_-]+")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/s")
_KEYS = ("app", "namespace", "environment", "host", "servers", "queues", "sentry_dsn")


@dataclass(frozen=True)
class QueueSettings:
    """One queue: `job_timeout` and `retry_delays` in seconds, `rate_limit` in jobs per second and worker.

    A worker ends after `max_jobs` jobs or `max_time` seconds, and replaces the process that runs jobs when it
    has more than `max_memory` bytes. When it has no job of this queue it takes one of the queues in `also`,
    the first of them first.

    What only its server heeds: `max_size`, `max_item_size` and `max_memory_size` in bytes, `max_age` in
    seconds (None: the server's own choice), and its `fanouts`, queues called NAME+FANOUT that get a copy of
    every item.
    """

    name: str
    language: str = "python"
    processes: int = 1
    max_jobs: int = 1000
    max_time: int | None = None
    max_memory: int | None = None
    job_timeout: int = 60
    retry_delays: tuple[int, ...] = ()
    max_items: int | None = None
    rate_limit: float | None = None
    also: tuple[str, ...] = ()
    alert: Mapping[str, Any] = field(default_factory=dict)
    max_size: int | None = None
    max_item_size: int | None = None
    max_memory_size: int | None = None
    max_age: int | None = None
    discard_old_when_full: bool = False
    fanouts: tuple[str, ...] = ()
    fanout_only: bool = False


@dataclass(frozen=True)
class Settings:
    """What an application's producers and consumers must know about their stack."""

    app: str
    namespace: str
    environment: str
    servers: tuple[Server, ...]
    queues: Mapping[str, QueueSettings]
    host: str = field(default_factory=socket.gethostname)
    sentry_dsn: str | None = None
    path: Path | None = None

    def queue(self, name: str) -> QueueSettings:
        """Return the queue called `name`; raise `SettingsError` listing the configured ones."""
        if name not in self.queues:
            known = ", ".join(sorted(self.queues)) or "none"
            raise SettingsError(f"The queue {name!r} is not configured in {self.path}; configured: {known}.")
        return self.queues[name]


def load(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings file; raise `SettingsError` naming the file and what is wrong with it.

    Without `path` it is ``$KESTREL_STACK_CONFIG``, else the only ``*.json`` file in ``/etc/kestrel-stack``.
    """
    environ = os.environ if environ is None else environ
    file = find(path, environ)
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise SettingsError(f"The settings file {file} does not exist.") from None
    except PermissionError:
        raise SettingsError(
            f"The settings file {file} may not be read by this user; it is for the application's group."
        ) from None
    except OSError as exc:
        raise SettingsError(f"The settings file {file} cannot be read: {exc.strerror}.") from None
    except (ValueError, RecursionError) as exc:
        raise SettingsError(f"The settings file {file} is not JSON: {exc}.") from None
    try:
        return override(_settings(content, file), environ)
    except (SettingsError, InvalidQueueName, InvalidServer) as exc:
        raise SettingsError(f"{file}: {exc}") from None


def override(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Return `settings` with what the environment variables say instead."""
    changes: dict[str, Any] = {}
    if environ.get("KESTREL_STACK_SERVERS"):
        changes["servers"] = parse_servers(environ["KESTREL_STACK_SERVERS"])
    if environ.get("KESTREL_STACK_NAMESPACE"):
        changes["namespace"] = names.check(environ["KESTREL_STACK_NAMESPACE"], "namespace")
    if environ.get("KESTREL_STACK_ENVIRONMENT"):
        changes["environment"] = environ["KESTREL_STACK_ENVIRONMENT"]
    return replace(settings, **changes) if changes else settings


def find(path: str | os.PathLike[str] | None, environ: Mapping[str, str], folder: Path = FOLDER) -> Path:
    """Return the settings file to read; raise `SettingsError` when none or several could be meant."""
    given = path or environ.get("KESTREL_STACK_CONFIG")
    if given:
        return Path(given)
    try:
        found = sorted(folder.glob("*.json"))
    except OSError as exc:
        raise SettingsError(f"The folder {folder} cannot be read: {exc.strerror}.") from None
    if not found:
        raise SettingsError(
            f"No settings file in {folder}; name one with --config or KESTREL_STACK_CONFIG, "
            "or run site.yml for this host."
        )
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise SettingsError(
            f"Several settings files in {folder} ({listed}); say which with --config or KESTREL_STACK_CONFIG."
        )
    return found[0]


def describe_queue(queue: str | Mapping[str, Any] | QueueSettings, namespace: str) -> QueueSettings:
    """Return a queue's description from its name or its entry of the settings file, checked."""
    if isinstance(queue, QueueSettings):
        names.make(namespace, queue.name)
        return queue
    return _queue({"name": queue} if isinstance(queue, str) else queue, "a queue", namespace)


def parse_rate(text: object) -> float:
    """Return the jobs per second of ``"50/s"``; raise `SettingsError` when it is not a rate above zero."""
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None or float(match[1]) <= 0:
        raise SettingsError(f"{text!r} is not a rate; write jobs per second above 0, for example 50/s.")
    return float(match[1])


def parse_size(value: object, what: str = "A size") -> int:
    """Return the bytes of ``"1MB"`` (KB, MB, GB: powers of 1024) or of a number, else `SettingsError`."""
    match = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) and value is not True else None
    size = int(match[1]) * _SIZE_UNITS[match[2]] if match else 0
    if not 0 < size < 2**63:
        raise SettingsError(f"{what} {value!r} is not a size; write it like 1MB, or in bytes.")
    return size


def parse_age(value: object, what: str = "A time") -> int:
    """Return the seconds of ``"30s"``, ``"5m"`` or ``"1h"``; raise `SettingsError` when it is none."""
    match = _AGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise SettingsError(f"{what} must look like 30s, 5m or 1h.")
    return int(match[1]) * _AGE_UNITS[match[2]]


def _settings(content: object, file: Path) -> Settings:
    if not isinstance(content, dict):
        raise SettingsError("The file must hold one JSON object.")
    _refuse_unknown(content, _KEYS, "")
    for key in ("app", "namespace", "environment"):
        if not isinstance(content.get(key), str) or not content[key]:
            raise SettingsError(f"'{key}' must be a text that is not empty.")
    for key in ("host", "sentry_dsn"):
        if not isinstance(content.get(key), str | None):
            raise SettingsError(f"'{key}' must be a text or null.")
    for key in ("servers", "queues"):
        if not isinstance(content.get(key), list) or not content[key]:
            raise SettingsError(f"'{key}' must be a list with at least one entry.")
    namespace = names.check(content["namespace"], "namespace")
    queues: dict[str, QueueSettings] = {}
    for number, entry in enumerate(content["queues"]):
        queue = _queue(entry, f"queues[{number}]", namespace)
        if queue.name in queues:
            raise SettingsError(f"The queue {queue.name!r} is described twice.")
        queues[queue.name] = queue
    for queue in queues.values():
        _check_also(queue, queues)
    return Settings(
        app=content["app"],
        namespace=namespace,
        environment=content["environment"],
        servers=parse_servers(content["servers"]),
        queues=queues,
        host=content.get("host") or socket.gethostname(),
        sentry_dsn=content.get("sentry_dsn"),
        path=file,
    )


def _queue(entry: object, what: str, namespace: str) -> QueueSettings:
    if not isinstance(entry, dict) or "name" not in entry:
        raise SettingsError(f"{what} must be an object with a 'name'.")
    name = entry["name"]
    on_server = names.make(namespace, name)
    where = f"queue '{name}': "
    _refuse_unknown(entry, QueueSettings.__dataclass_fields__, where)
    checked: dict[str, Any] = {"name": name}
    if "language" in entry:
        if entry["language"] not in LANGUAGES:
            raise SettingsError(f"{where}'language' must be one of {', '.join(LANGUAGES)}.")
        checked["language"] = entry["language"]
    for key in ("processes", "max_jobs", "job_timeout"):
        if key in entry:
            checked[key] = _count(entry[key], f"{where}'{key}'")
    if entry.get("max_items") is not None:
        checked["max_items"] = _count(entry["max_items"], f"{where}'max_items'")
    if "retry_delays" in entry:
        if not isinstance(entry["retry_delays"], list):
            raise SettingsError(f"{where}'retry_delays' must be a list of seconds.")
        delays = tuple(_count(delay, f"{where}each of 'retry_delays'") for delay in entry["retry_delays"])
        for delay in delays:
            names.retry(on_server, delay)
        checked["retry_delays"] = delays
    if entry.get("rate_limit") is not None:
        try:
            checked["rate_limit"] = parse_rate(entry["rate_limit"])
        except SettingsError as exc:
            raise SettingsError(f"{where}'rate_limit': {exc}") from None
    if entry.get("max_time") is not None:
        checked["max_time"] = parse_age(entry["max_time"], f"{where}'max_time'")
    if entry.get("max_memory") is not None:
        checked["max_memory"] = parse_size(entry["max_memory"], f"{where}'max_memory'")
    if "also" in entry:
        also = entry["also"]
        if not isinstance(also, list) or not all(isinstance(other, str) for other in also):
            raise SettingsError(f"{where}'also' must be a list of names of queues.")
        checked["also"] = tuple(also)
    if "alert" in entry:
        if not isinstance(entry["alert"], dict):
            raise SettingsError(f"{where}'alert' must be an object.")
        checked["alert"] = entry["alert"]
    _server_side(entry, where, checked)
    return QueueSettings(**checked)


def _check_also(queue: QueueSettings, queues: Mapping[str, QueueSettings]) -> None:
    where = f"queue '{queue.name}': 'also'"
    for other in queue.also:
        if other == queue.name or queue.also.count(other) > 1:
            raise SettingsError(f"{where} names the queue {other!r} once more.")
        if other not in queues:
            raise SettingsError(f"{where} names {other!r}, which is not one of the queues described here.")
        if queues[other].language != queue.language:
            raise SettingsError(
                f"{where} names {other!r}, a queue for {queues[other].language} workers; "
                f"these are for {queue.language}."
            )


def _server_side(entry: Mapping[str, Any], where: str, checked: dict[str, Any]) -> None:
    """Check what is the server's; the playbook has done so in more depth."""
    for key in ("max_size", "max_item_size", "max_memory_size"):
        if entry.get(key) is not None:
            checked[key] = parse_size(entry[key], f"{where}'{key}'")
    if entry.get("max_age") is not None:
        checked["max_age"] = parse_age(entry["max_age"], f"{where}'max_age'")
    for key in ("discard_old_when_full", "fanout_only"):
        if key in entry:
            if not isinstance(entry[key], bool):
                raise SettingsError(f"{where}'{key}' must be true or false.")
            checked[key] = entry[key]
    if "fanouts" in entry:
        fanouts = entry["fanouts"]
        if not isinstance(fanouts, list) or not all(
            isinstance(name, str) and _FANOUT.fullmatch(name) for name in fanouts
        ):
            raise SettingsError(f"{where}'fanouts' must be a list of names of A-Z, a-z, 0-9, '_' and '-'.")
        checked["fanouts"] = tuple(fanouts)


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"{what} must be a whole number from 1 on.")
    return value


def _refuse_unknown(content: Mapping[str, Any], known: Any, where: str) -> None:
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise SettingsError(f"{where}unknown key {', '.join(map(repr, unknown))}; known: {', '.join(known)}.")
