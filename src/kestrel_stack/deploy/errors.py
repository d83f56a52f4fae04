"""Errors a person is meant to read, each with the exit code that tells a script the same."""

from __future__ import annotations

DONE = 0
REFUSED = 1
"""Refused or wrong usage; nothing was changed."""
FAILED = 2
"""Failed; every host is as before."""
LOCKED = 3
"""Another deploy holds the lock of a host."""
CHANGED = 4
"""Failed, and some host, named in the message, is not as before."""


class DeployError(Exception):
    """An expected end of a command: one clear message, and the exit code that goes with it."""

    code = REFUSED

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class Refused(DeployError):  # noqa: N818 - named after the outcome
    """Wrong input or an unmet condition, found before anything was changed."""


class Failed(DeployError):  # noqa: N818
    """Something broke; every host is as it was before."""

    code = FAILED


class Locked(DeployError):  # noqa: N818
    """Somebody else is deploying to one of these hosts."""

    code = LOCKED


class HostError(Failed):
    """A step failed on one host.

    ``host`` is its inventory name. ``lost`` says that the connection broke, so that what the host did last is
    unknown.
    """

    def __init__(self, host: str, message: str, *, lost: bool = False, code: int | None = None) -> None:
        super().__init__(f"{host}: {message}", code)
        self.host = host
        self.lost = lost


class Cancelled(Failed):
    """A person pressed Ctrl-C, or the process was asked to end."""
