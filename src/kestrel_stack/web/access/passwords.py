"""Passwords: argon2id by argon2-cffi, few at a time, and just as much work for a name that nobody has."""

from __future__ import annotations

import binascii
import logging
import re
import secrets
import threading
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

MIN_CHARS = 8
"""A shorter password gets no hash."""
MAX_BYTES = 1024
"""A longer one is nobody's."""
MAX_MEMORY_KIB = 256 * 1024
MAX_ROUNDS = 16
AT_A_TIME = 2
"""Passwords that are looked at at once; each takes the memory that its hash names, 64 MiB as we make them."""
WAITING = 2
"""Further ones that wait for their turn; the next is turned away, so that logins never take every thread."""

log = logging.getLogger("kestrel-web")

_HASHER = PasswordHasher()
"""The library's defaults: the second choice of RFC 9106, 64 MiB and 3 rounds."""
_HASH = re.compile(
    r"(?P<parameters>\$argon2id\$v=19\$m=[0-9]{1,9},t=[0-9]{1,9},p=[0-9]{1,9})"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,86})\$(?P<digest>[A-Za-z0-9+/]{22,86})"
)
_NO_HASH = "is not an argon2id hash; make one with: kestrel-web hash-password"


class BusyError(Exception):
    """This password was not looked at, because others are, or because there is no memory for it."""


def make(password: str) -> str:
    """Return the hash to put into the configuration; raise `ValueError` when the password is no good one."""
    if len(password) < MIN_CHARS:
        raise ValueError(f"The password is too short; take at least {MIN_CHARS} characters.")
    if len(_encoded(password)) > MAX_BYTES:
        raise ValueError(f"The password is too long; take at most {MAX_BYTES} bytes.")
    return _HASHER.hash(_encoded(password))


def problem(password_hash: str) -> str | None:
    """Return what is wrong with a hash of the configuration, in one line that does not show it."""
    match = _HASH.fullmatch(password_hash)
    if match is None:
        return _NO_HASH
    try:
        for part in (match["salt"], match["digest"]):
            b64decode(part + "=" * (-len(part) % 4), validate=True)
        wants = extract_parameters(password_hash)
    except (binascii.Error, InvalidHashError):
        return _NO_HASH
    if not 8 * wants.parallelism <= wants.memory_cost <= MAX_MEMORY_KIB:
        return f"must take between 8 KiB for each lane and {MAX_MEMORY_KIB // 1024} MiB of memory"
    if not 1 <= wants.time_cost <= MAX_ROUNDS or not 1 <= wants.parallelism <= 16:
        return f"must take 1 to {MAX_ROUNDS} rounds and 1 to 16 lanes"
    return None


def outdated(password_hash: str) -> bool:
    """Return whether `make` would choose other parameters today."""
    return _HASHER.check_needs_rehash(password_hash)


class Passwords:
    """Looks at passwords. What a flood of logins can take of memory and threads is bounded."""

    def __init__(self, hashes: Iterable[str], at_a_time: int = AT_A_TIME, waiting: int = WAITING):
        self._decoy = _decoy(list(hashes))
        self._turn = threading.BoundedSemaphore(at_a_time)
        self._room = threading.BoundedSemaphore(at_a_time + waiting)

    def right(self, password_hash: str | None, password: str) -> bool:
        """Return whether this is the password; without a hash the same work is done for nothing.

        Raises `BusyError` when too many others ask at the same moment.
        """
        encoded = _encoded(password)
        too_long = len(encoded) > MAX_BYTES
        with self._place():
            try:
                right = _HASHER.verify(password_hash or self._decoy, b"" if too_long else encoded)
            except VerifyMismatchError:
                return False
            except (Argon2Error, MemoryError) as exc:
                log.warning("a password could not be looked at: %s", exc)
                raise BusyError from None
        return right and password_hash is not None and not too_long

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._room.acquire(blocking=False):
            raise BusyError
        try:
            with self._turn:
                yield
        finally:
            self._room.release()


def _encoded(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


def _decoy(hashes: list[str]) -> str:
    """Return a hash that no password has, and that takes as long to look at as most of the others."""
    found = Counter(match["parameters"] for text in hashes if (match := _HASH.fullmatch(text)))
    usual = found.most_common(1)[0][0] if found else _usual_parameters()
    salt, digest = (b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return f"{usual}${salt}${digest}"


def _usual_parameters() -> str:
    made = _HASHER
    return f"$argon2id$v=19$m={made.memory_cost},t={made.time_cost},p={made.parallelism}"
