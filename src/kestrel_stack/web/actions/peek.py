"""The head of a queue on one server, as people read it: JSON, text or hex; jobs and parked jobs understood.

Only the head: Kestrel shows no other item without taking those before it.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

from kestrel_stack.queue.envelope import MAX_DEPTH, Envelope, ParkedRecord
from kestrel_stack.queue.errors import InvalidEnvelope, InvalidParkedRecord
from kestrel_stack.web import keys
from kestrel_stack.web.actions.server_client import WHOLE_BYTES, ServerClient, ServerError
from kestrel_stack.web.config import Config

FORMS = ("json", "text", "hex")
MAX_HEX = 16 * 1024
"""As much is shown in hexadecimal, where a byte takes four characters."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@dataclass(frozen=True)
class Head:
    """What a look at the head of a queue has found."""

    key: str
    server: str
    error: str | None = None
    empty: bool = False
    """The queue has nothing that is ready there, or there is no such queue."""
    body: bytes = b""
    """As much of the item as may be shown."""
    size: int = 0
    """All of it."""
    pretty: str | None = None
    """The item as indented JSON with its very numbers and texts, if it is JSON; perhaps cut, too."""
    envelope: Envelope | None = None
    record: ParkedRecord | None = None
    inner: Envelope | None = None
    """The job in a parked record."""
    faults: tuple[str, ...] = ()
    """In what it breaks the contract of jobs, or of parked jobs in an error queue."""

    @property
    def truncated(self) -> bool:
        """Whether the item is larger than what is shown."""
        return self.size > len(self.body)

    @property
    def text(self) -> str:
        """Return the bytes as text."""
        return as_text(self.body)

    @property
    def hex(self) -> str:
        """Return the first bytes as lines of a hex dump."""
        return hex_lines(self.body[:MAX_HEX])

    @property
    def best(self) -> str:
        """Return the form that suits it."""
        if self.pretty is not None:
            return "json"
        return "text" if is_text(self.body) else "hex"

    def shown(self, form: str) -> str:
        """Return it in a form; JSON that is none is shown as text."""
        if form == "hex":
            return self.hex
        return self.pretty if form == "json" and self.pretty is not None else self.text

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine to read."""
        content: dict[str, Any] = {
            "key": self.key,
            "name": keys.show(self.key),
            "server": self.server,
            "error": self.error,
            "empty": self.empty,
            "size": self.size,
            "truncated": self.truncated,
            "kind": "parked" if self.record else "job" if self.envelope else "item",
            "faults": list(self.faults),
            "job": _job(self.envelope or self.inner),
            "parked": None,
        }
        if self.record is not None:
            content["parked"] = {
                "parked_at": self.record.parked_at,
                "reason": self.record.reason,
                "error": dict(self.record.error) if self.record.error else None,
                "sentry_event": self.record.sentry_event,
                "attempts": self.record.attempts,
            }
        if is_text(self.body):
            content["body"] = self.body.decode("utf-8")
        else:
            content["body_b64"] = base64.b64encode(self.body).decode("ascii")
        return content


def look(config: Config, key: str, address: str) -> Head:
    """Look at the head of a queue on one of the configured servers; nothing is changed, no queue is made."""
    server = next((server for server in config.servers if str(server) == address), None)
    if server is None:
        raise LookupError(f"{address[:100]!r} is not one of the servers.")
    try:
        with ServerClient(server, min(max(config.timeout_s, 1.0), 10.0)) as client:
            item = client.head(key)
    except ServerError as exc:
        said = str(exc).removesuffix(" Nothing was sent to it.")
        return Head(key, address, error=said.removesuffix(" It may have been done all the same; look again."))
    if item is None:
        return Head(key, address, empty=True)
    return examine(key, address, item.body, item.size, config.peek_bytes)


def examine(key: str, address: str, body: bytes, size: int, keep: int) -> Head:
    """Return what an item is; `size` is larger than `body` when only its beginning was read."""
    if size > len(body):
        said = f"It is larger than {WHOLE_BYTES >> 20} MB, so that only its beginning was read."
        return Head(key, address, body=body[:keep], size=size, faults=(said,))
    envelope = record = inner = None
    faults: list[str] = []
    in_errors = key.endswith("_errors")
    try:
        record = ParkedRecord.decode(body)
    except InvalidParkedRecord as exc:
        if in_errors:
            faults = exc.faults
    if record is not None:
        try:
            inner = Envelope.decode(record.body)
        except InvalidEnvelope as exc:
            faults = [f"The parked item is no job: {fault}" for fault in exc.faults]
    else:
        try:
            envelope = Envelope.decode(body)
            faults = []
        except InvalidEnvelope as exc:
            faults = faults or exc.faults
    pretty = indented(body, keep)
    return Head(
        key,
        address,
        body=body[:keep],
        size=size,
        pretty=pretty,
        envelope=envelope,
        record=record,
        inner=inner,
        faults=tuple(faults),
    )


def indented(body: bytes, keep: int = WHOLE_BYTES) -> str | None:
    """Return JSON with line ends and indents and otherwise as it is written; None when it is no JSON.

    It is not read and written again: a large number or a key that is there twice would not be the same. It
    ends after about `keep` characters.
    """
    try:
        source = body.decode("utf-8")
        json.loads(source, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    lines: list[str] = []
    line, before = "", ""
    depth = length = 0
    for match in _TOKEN.finditer(source):
        part = match[0]
        closes = part in ("]", "}")
        depth -= closes
        if (before in ("[", "{", ",") and not closes) or (closes and before not in ("[", "{")):
            lines.append(line)
            length += len(line)
            line = "  " * min(depth, MAX_DEPTH)
            if length > keep:
                line += "…"
                break
        line += ": " if part == ":" else part
        depth += part in ("[", "{")
        before = part
    lines.append(line)
    return visible("\n".join(lines))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def as_text(body: bytes) -> str:
    r"""Return bytes as text; what is not UTF-8, and what would turn or hide text, as ``\xNN``."""
    return visible(body.decode("utf-8", "backslashreplace"))


def is_text(body: bytes) -> bool:
    """Say whether bytes are text that people can read."""
    try:
        found = body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", found)


def visible(text: str) -> str:
    """Return text with everything escaped that is not printable, but for line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def hex_lines(body: bytes) -> str:
    """Return a hex dump: offset, 16 bytes, and what of them is ASCII."""
    lines = []
    for at in range(0, len(body), 16):
        row = body[at : at + 16]
        halves = row[:8].hex(" "), row[8:].hex(" ")
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {halves[0]:23}  {halves[1]:23}  {letters}")
    return "\n".join(lines)


def _job(envelope: Envelope | None) -> dict[str, Any] | None:
    if envelope is None:
        return None
    return {
        "job": envelope.job,
        "tenant": envelope.tenant,
        "id": envelope.id,
        "attempt": envelope.attempt,
        "enqueued_at": envelope.enqueued_at,
        "due_at": envelope.due_at,
    }
