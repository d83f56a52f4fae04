"""What can go wrong between an application, its settings and the queue servers."""

# ruff: noqa: N818 - the names say what is the matter, as in `except QueueFull`.
from __future__ import annotations


class QueueError(Exception):
    """The base of every error that `kestrel_stack.queue` raises on purpose."""


class InvalidQueueName(QueueError, ValueError):
    """A namespace or queue name that must not reach a server."""


class InvalidServer(QueueError, ValueError):
    """A server that is not written as ``host:port``."""


class SettingsError(QueueError):
    """A settings file that is missing, unreadable or wrong; the message names the file and the key."""


class InvalidJob(QueueError, ValueError):
    """A job that a producer refuses before anything is sent."""


class InvalidEnvelope(QueueError, ValueError):
    """Bytes that are not a job envelope.

    ``faults`` holds one sentence per fault; the message is all of them.
    """

    def __init__(self, faults: list[str]):
        super().__init__(" ".join(faults))
        self.faults = faults


class InvalidParkedRecord(InvalidEnvelope):
    """Bytes that are not a parked record."""


class ServerUnavailable(QueueError):
    """No usable answer: refused, timed out, disconnected, or the server said that it may not do this now."""


class QueueFull(QueueError):
    """The server refused the item: the queue is at its limit, or the item is too large for it."""


class ProtocolError(QueueError):
    """An answer that this client does not understand; the connection was dropped."""


class ReservationLost(QueueError):
    """The connection that held a reserved item is gone: the server delivers the item again."""
