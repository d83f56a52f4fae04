"""The two JSON contracts on the queues: the job envelope and the parked record, both version 1.

``schemas/envelope-v1.json`` and ``schemas/parked-v1.json`` are the source. The checks here are written by
hand because their sentences become the reason of a parked job; a test holds them to the schemas.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kestrel_stack.queue.errors import InvalidEnvelope, InvalidJob, InvalidParkedRecord

VERSION = 1
MAX_DEPTH = 128
"""Deepest nesting of an envelope; every language's JSON parser has a limit, and they differ."""
MAX_TIME = 2**53 - 1
"""Largest time in milliseconds, and the largest whole number that every JSON parser keeps."""
MAX_ATTEMPT = 1_000_000
MAX_NAME = 100

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JOB = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SPACE = re.compile(r"[ \t\r\n]*")
_JSON = json.JSONDecoder()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")

_REQUIRED = ("v", "id", "job", "tenant", "data", "attempt", "enqueued_at")
_OPTIONAL = ("due_at", "trace")


@dataclass(frozen=True)
class Envelope:
    """One job as it travels; the fields are those of the contract, times are Unix milliseconds."""

    job: str
    tenant: str
    data: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    attempt: int = 1
    enqueued_at: int = field(default_factory=lambda: now_ms())
    due_at: int | None = None
    trace: dict[str, str] | None = None

    def encode(self) -> bytes:
        """Return the envelope as bytes; raise `InvalidJob` when it breaks the contract or JSON."""
        content: dict[str, Any] = {
            "v": VERSION,
            "id": self.id,
            "job": self.job,
            "tenant": self.tenant,
            "data": self.data,
            "attempt": self.attempt,
            "enqueued_at": self.enqueued_at,
        }
        if self.due_at is not None:
            content["due_at"] = self.due_at
        if self.trace is not None:
            content["trace"] = self.trace
        found = faults(content)
        if found:
            raise InvalidJob(" ".join(found))
        _refuse_what_json_changes(self.data, "data", 2)
        return _dump(content)

    @classmethod
    def decode(cls, body: bytes) -> Envelope:
        """Return the envelope in `body`; raise `InvalidEnvelope` with a sentence for every fault."""
        content = _load(body, InvalidEnvelope)
        found = faults(content)
        if found:
            raise InvalidEnvelope(found)
        return cls(
            job=content["job"],
            tenant=content["tenant"],
            data=content["data"],
            id=content["id"],
            attempt=int(content["attempt"]),
            enqueued_at=int(content["enqueued_at"]),
            due_at=int(content["due_at"]) if "due_at" in content else None,
            trace=content.get("trace"),
        )


@dataclass(frozen=True)
class ParkedRecord:
    """One item that no worker could do: why, and the item's own bytes. `parked_at` is Unix milliseconds."""

    reason: str
    body: bytes
    attempts: int = 0
    error: Mapping[str, str] | None = None
    sentry_event: str | None = None
    parked_at: int = field(default_factory=lambda: now_ms())

    def encode(self) -> bytes:
        """Return the record as bytes; text of a job that is not Unicode is escaped, so this never fails."""
        return _dump(
            {
                "v": VERSION,
                "parked_at": self.parked_at,
                "reason": clean_text(self.reason),
                "error": None
                if self.error is None
                else {key: clean_text(self.error[key]) for key in ("class", "message", "stack")},
                "sentry_event": self.sentry_event,
                "attempts": self.attempts,
                "body_b64": base64.b64encode(self.body).decode("ascii"),
            }
        )

    @classmethod
    def decode(cls, record: bytes) -> ParkedRecord:
        """Return the record in `record`; raise `InvalidParkedRecord` with a sentence for every fault."""
        content = _load(record, InvalidParkedRecord)
        found = parked_faults(content)
        if found:
            raise InvalidParkedRecord(found)
        return cls(
            reason=content["reason"],
            body=base64.b64decode(content["body_b64"], validate=True),
            attempts=int(content["attempts"]),
            error=content["error"],
            sentry_event=content["sentry_event"],
            parked_at=int(content["parked_at"]),
        )


def again(body: bytes, due_at: int) -> bytes:
    """Return the envelope in `body` for another try at `due_at` (Unix ms): `attempt` is one higher.

    Everything else keeps its very bytes, so that no number of the data is rounded on its way through a
    language that does not have it. Raises `InvalidEnvelope` as `Envelope.decode` does, and `InvalidJob` when
    `attempt` cannot go any higher or `due_at` is not a time.
    """
    envelope = Envelope.decode(body)
    if envelope.attempt >= MAX_ATTEMPT:
        raise InvalidJob(f"The field 'attempt' is at its limit of {MAX_ATTEMPT}.")
    if not _whole(due_at, 0, MAX_TIME):
        raise InvalidJob("The field 'due_at' is not a time in milliseconds since 1970.")
    return _with(body, {"attempt": envelope.attempt + 1, "due_at": due_at})


def afresh(body: bytes) -> bytes:
    """Return the envelope in `body` for a new first try, due now; raise `InvalidEnvelope` if it is none."""
    Envelope.decode(body)
    return _with(body, {"attempt": 1, "due_at": now_ms()})


def faults(content: object) -> list[str]:
    """Return a sentence for everything in which `content` breaks the contract of envelopes."""
    if not isinstance(content, dict):
        return [f"The envelope is {_kind(content)}, not an object."]
    if "v" in content and not _equals(content["v"], VERSION):
        # Another version may mean anything by its other fields, so nothing else is said about them.
        return [f"The field 'v' is {_show(content['v'])}; this worker knows version 1."]
    found = _key_faults(content, _REQUIRED, _OPTIONAL)
    if "id" in content and not _matches(_UUID, content["id"]):
        found.append("The field 'id' is not a UUID in lower case.")
    if "job" in content and not _matches(_JOB, content["job"], MAX_NAME):
        found.append(
            "The field 'job' is not a job name: a letter, then letters, digits and '_', "
            f"at most {MAX_NAME} characters."
        )
    if "tenant" in content and not _matches(_TENANT, content["tenant"], MAX_NAME):
        found.append(
            "The field 'tenant' is not a tenant name: a letter or digit, then letters, digits, '.', '_' and "
            f"'-', at most {MAX_NAME} characters."
        )
    if "data" in content and not isinstance(content["data"], dict):
        found.append(f"The field 'data' is {_kind(content['data'])}, not an object.")
    if "attempt" in content and not _whole(content["attempt"], 1, MAX_ATTEMPT):
        found.append(f"The field 'attempt' is not a whole number from 1 to {MAX_ATTEMPT}.")
    found += [
        f"The field '{key}' is not a time in milliseconds since 1970."
        for key in ("enqueued_at", "due_at")
        if key in content and not _whole(content[key], 0, MAX_TIME)
    ]
    if "trace" in content and not (
        isinstance(content["trace"], dict)
        and all(isinstance(value, str) for value in content["trace"].values())
    ):
        found.append("The field 'trace' is not an object of texts.")
    return found


def parked_faults(content: object) -> list[str]:
    """Return a sentence for everything in which `content` breaks the contract of parked records."""
    if not isinstance(content, dict):
        return [f"The parked record is {_kind(content)}, not an object."]
    if "v" in content and not _equals(content["v"], VERSION):
        return [f"The field 'v' is {_show(content['v'])}; only version 1 is known."]
    found = _key_faults(
        content, ("v", "parked_at", "reason", "error", "sentry_event", "attempts", "body_b64"), ()
    )
    if "parked_at" in content and not _whole(content["parked_at"], 0, MAX_TIME):
        found.append("The field 'parked_at' is not a time in milliseconds since 1970.")
    if "reason" in content and not (isinstance(content["reason"], str) and content["reason"]):
        found.append("The field 'reason' is not a text, or empty.")
    if "error" in content and not _is_error(content["error"]):
        found.append("The field 'error' is neither null nor an object of the texts class, message and stack.")
    if "sentry_event" in content and not isinstance(content["sentry_event"], str | None):
        found.append("The field 'sentry_event' is neither null nor a text.")
    if "attempts" in content and not _whole(content["attempts"], 0, MAX_ATTEMPT):
        found.append(f"The field 'attempts' is not a whole number from 0 to {MAX_ATTEMPT}.")
    if "body_b64" in content and not _matches(_BASE64, content["body_b64"]):
        found.append("The field 'body_b64' is not base64.")
    return found


def now_ms() -> int:
    """Return the time as Unix milliseconds."""
    return time.time_ns() // 1_000_000


def clean_text(text: str) -> str:
    r"""Return `text` with what UTF-8 cannot hold (lone surrogates) written as ``\udXXX``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_job_name(name: object) -> bool:
    """Say whether `name` may name a job."""
    return _matches(_JOB, name, MAX_NAME)


def _dump(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _load(body: bytes, error: type[InvalidEnvelope]) -> Any:
    if not body:
        raise error(["The item is empty."])
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise error([f"The item is not UTF-8: byte {exc.start} is 0x{body[exc.start]:02x}."]) from None
    # Counting is cheap and nearly always enough; only a suspicious item is measured.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise error([f"The item is nested more than {MAX_DEPTH} levels deep."])
    try:
        content = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise error([f"The item is not JSON: {exc.msg} at character {exc.pos}."]) from None
    except (ValueError, RecursionError) as exc:
        raise error([f"The item is not JSON: {exc}."]) from None
    if _SURROGATE.search(body):
        try:
            _dump(content)
        except UnicodeEncodeError:
            raise error(["The item is not JSON: it holds half of a surrogate pair."]) from None
    return content


def _with(body: bytes, changes: Mapping[str, int]) -> bytes:
    """Return the JSON object in `body` with other values for some keys, the rest as it is written there."""
    text = body.decode("utf-8")
    fields: dict[str, str] = {}
    at = text.index("{") + 1
    while True:
        key, at = _JSON.raw_decode(text, _SPACE.match(text, at).end())  # type: ignore[union-attr]
        start = _SPACE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        _, end = _JSON.raw_decode(text, start)
        fields[key] = text[start:end]
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[at] == "}":
            break
        at += 1
    fields.update((key, str(value)) for key, value in changes.items())
    return ("{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}").encode("utf-8")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number there")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


# Made once: making one costs more than its use.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _depth(text: str) -> int:
    """Return how deep the brackets outside of strings nest; the text need not be valid."""
    deepest = depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', text, re.DOTALL):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _refuse_what_json_changes(value: object, where: str, depth: int) -> None:
    """Raise `InvalidJob` for data that would arrive differently, or not at all."""
    if depth > MAX_DEPTH and isinstance(value, dict | list | tuple):
        raise InvalidJob(f"The job's data is nested more than {MAX_DEPTH} levels deep.")
    if value is None or isinstance(value, bool | int):
        return
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidJob(f"{where} holds text that is not Unicode (half of a surrogate pair).") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidJob(f"{where} is {value}, which JSON cannot hold.")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidJob(f"{where} has the key {_show(key)}, which is not text.")
            _refuse_what_json_changes(key, f"a key of {where}", depth)
            _refuse_what_json_changes(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_what_json_changes(item, f"{where}[{index}]", depth + 1)
    else:
        raise InvalidJob(
            f"{where} is a {type(value).__name__}, which JSON cannot hold; use text, numbers, lists, dicts."
        )


def _key_faults(content: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    if content.keys() == set(required):
        return []
    found = [f"The field '{key}' is missing." for key in required if key not in content]
    unknown = sorted(set(content) - set(required) - set(optional))
    found += [f"The field {_show(key)} is unknown." for key in unknown]
    return found


def _is_error(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == {"class", "message", "stack"}
        and all(isinstance(text, str) for text in value.values())
        and value["class"] != ""
    )


def _matches(pattern: re.Pattern[str], value: object, longest: int | None = None) -> bool:
    return (
        isinstance(value, str)
        and (longest is None or len(value) <= longest)
        and pattern.fullmatch(value) is not None
    )


def _equals(value: object, number: int) -> bool:
    """Compare as JSON does: 1.0 is 1, true is not."""
    return not isinstance(value, bool) and value == number


def _whole(value: object, low: int, high: int) -> bool:
    if isinstance(value, float):
        return value.is_integer() and low <= value <= high
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    for types, name in (
        (str, "a text"),
        (int | float, "a number"),
        (list | tuple, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):
            return name
    return f"a {type(value).__name__}"


def _show(value: object, longest: int = 60) -> str:
    """Return `value` as short JSON for a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"
