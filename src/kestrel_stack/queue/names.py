"""The names that queues have on a server.

A queue ``mail`` of the namespace ``shop`` is ``shop_mail`` on the server; what could not be done is parked
in ``shop_mail_errors``. Kestrel itself forbids ``.``, ``/`` and ``~`` by closing the connection, and makes
a fanout queue of a name with ``+`` (source: observed on Kestrel 2.4.1): only a narrow set of characters
gets there. Pings for the workers of a host are in ``shop_mail_ping_<host>``.
"""

from __future__ import annotations

import re

from kestrel_stack.queue.errors import InvalidQueueName

MAX_BYTES = 200
"""Longest name on a server, in bytes: it becomes a file's name there, which with its suffixes ends at 255."""

HOST_CHARACTERS = 64
"""As much of a host's name is in that of a ping queue; role kestrel gives limits to the same names."""

_CHARACTERS = re.compile(r"[A-Za-z0-9_-]+")
_RESERVED = re.compile(r".*_(?:errors|retry_[0-9]+|ping_.*)")


def check(name: object, what: str = "queue name") -> str:
    """Return `name` when a server may see it; otherwise raise `InvalidQueueName` saying why."""
    if not isinstance(name, str):
        raise InvalidQueueName(f"The {what} must be text, not {type(name).__name__}.")
    if not name:
        raise InvalidQueueName(f"The {what} is empty.")
    if not _CHARACTERS.fullmatch(name):
        raise InvalidQueueName(f"The {what} {name!r} may hold only A-Z, a-z, 0-9, '_' and '-'.")
    if len(name) > MAX_BYTES:
        raise InvalidQueueName(
            f"The {what} {name[:20] + '…'!r} has {len(name)} bytes; at most {MAX_BYTES} fit."
        )
    return name


def make(namespace: object, queue: object) -> str:
    """Return the server's name of a namespace's queue.

    The name of its error queue must fit as well: a job that could not be parked could never be acknowledged.
    """
    check(namespace, "namespace")
    check(queue, "queue name")
    if _RESERVED.fullmatch(str(queue)):
        raise InvalidQueueName(
            f"The queue name {queue!r} is like those that the stack makes itself: "
            "_errors, _retry_<seconds>, _ping_<host>."
        )
    name = f"{namespace}_{queue}"
    errors(name)
    return name


def errors(name: str) -> str:
    """Return the queue where the failed jobs of the server's queue `name` are parked."""
    return check(f"{name}_errors")


def retry(name: str, seconds: int) -> str:
    """Return the queue where jobs of the server's queue `name` wait for `seconds` before another try."""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
        raise InvalidQueueName(f"A retry delay is a whole number of seconds from 1 on, not {seconds!r}.")
    return check(f"{name}_retry_{seconds}")


def ping(name: str, host: str) -> str:
    """Return the queue where the workers of the server's queue `name` on `host` look for pings."""
    made = check(f"{name}_ping_{re.sub('[^A-Za-z0-9_-]', '-', host)[:HOST_CHARACTERS]}")
    ping_answers(made)
    return made


def ping_answers(ping_queue: str) -> str:
    """Return the queue where pings of `ping_queue` are answered."""
    return check(f"{ping_queue}_answer")
