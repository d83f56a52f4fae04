"""The record of an item that could not be done."""

from __future__ import annotations

from collections.abc import Mapping

from kestrel_stack.queue.envelope import Envelope, ParkedRecord


def record(
    body: bytes,
    reason: str,
    envelope: Envelope | None,
    error: Mapping[str, str] | None,
    sentry_event: str | None = None,
) -> bytes:
    """Return the parked record of `body` as bytes. Without an envelope the item never was a job."""
    attempts = 0 if envelope is None else envelope.attempt
    return ParkedRecord(
        reason=reason, body=body, attempts=attempts, error=error, sentry_event=sentry_event
    ).encode()
