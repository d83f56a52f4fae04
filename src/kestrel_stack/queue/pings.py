"""Pings and their answers: proof that a worker of a host, on a release, takes from its queue and answers.

Whoever asks writes a ping to ``<queue>_ping_<host>``, and a worker writes the answer to
``<queue>_ping_<host>_answer`` on the same server. ``schemas/ping-v1.json`` and
``schemas/ping-answer-v1.json`` are the source; a test holds these checks to them. What is no ping is dropped:
nobody would read a complaint.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1
EXPIRES = 60
"""Seconds after which a ping or an answer that nobody took is gone."""
MAX_BYTES = 4096
"""Longest ping or answer; a longer item is neither."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DEPLOY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")


@dataclass(frozen=True)
class Ping:
    """One question; `deploy` is the id of the deploy that asks, if it was one."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    deploy: str | None = None

    def encode(self) -> bytes:
        """Return the ping as bytes; raise `ValueError` when its fields break the contract."""
        content = {"v": VERSION, "id": self.id}
        if self.deploy is not None:
            content["deploy"] = self.deploy
        if not _is_ping(content):
            raise ValueError(
                "a ping's id is a UUID in lower case; a deploy's id has letters, digits and ._:+-"
            )
        return _dump(content)

    @classmethod
    def decode(cls, body: bytes) -> Ping | None:
        """Return the ping in `body`, None when it is none."""
        content = _load(body)
        return cls(content["id"], content.get("deploy")) if _is_ping(content) else None


@dataclass(frozen=True)
class PingAnswer:
    """What a worker says of itself: `release` is the name of the folder it runs in, `pid` its process id.

    `queue` is named as in the settings file, and `id` and `deploy` are those of the ping.
    """

    id: str
    release: str
    pid: int
    language: str
    queue: str
    host: str
    deploy: str | None = None

    def encode(self) -> bytes:
        """Return the answer as bytes."""
        content = {"v": VERSION, **asdict(self)}
        if self.deploy is None:
            del content["deploy"]
        return _dump(content)

    @classmethod
    def decode(cls, body: bytes) -> PingAnswer | None:
        """Return the answer in `body`, None when it is none."""
        content = _load(body)
        if not _is_answer(content):
            return None
        return cls(
            **{key: value for key, value in content.items() if key != "v"} | {"pid": int(content["pid"])}
        )


def _is_ping(content: Any) -> bool:
    return _has(content, {"v", "id"}, {"deploy"}) and _ids_hold(content)


def _is_answer(content: Any) -> bool:
    texts = {"release", "language", "queue", "host"}
    return (
        _has(content, {"v", "id", "pid", *texts}, {"deploy"})
        and _ids_hold(content)
        and all(isinstance(content[key], str) and content[key] for key in texts)
        and _whole(content["pid"])
        and content["pid"] >= 1
    )


def _has(content: Any, required: set[str], optional: set[str]) -> bool:
    return isinstance(content, dict) and required <= content.keys() <= required | optional


def _ids_hold(content: dict[str, Any]) -> bool:
    return (
        _whole(content["v"])
        and content["v"] == VERSION
        and _matches(_UUID, content["id"])
        and ("deploy" not in content or _matches(_DEPLOY, content["deploy"]))
    )


def _whole(value: object) -> bool:
    """Say whether JSON takes it for a whole number: 1.0 is one, true is not."""
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _load(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8")) if len(body) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        return None


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")
