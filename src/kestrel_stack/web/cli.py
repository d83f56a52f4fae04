"""The command line ``kestrel-web``."""

from __future__ import annotations

import getpass
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence

from kestrel_stack.web.config import ConfigError

PROGRAM = "kestrel-web"
EX_OK = 0
EX_FAILED = 1
EX_CONFIG = 78
"""Exit status for what trying again would not mend: a wrong flag or configuration."""

_NEEDED = ("argon2", "flask", "flask_wtf", "prometheus_client", "regex", "waitress")
"""Modules of the extra ``web``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run kestrel-web; return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            f"Python has no {missing[0]} here; install kestrel-stack[web], pinned in requirements/web.txt.",
            EX_FAILED,
        )
    try:
        if arguments[:1] == ["hash-password"]:
            return _hash_password(arguments[1:])
        return _run(arguments)
    except ConfigError as error:
        return _fail(str(error), EX_CONFIG)
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    from kestrel_stack.web import loading

    options = loading.parse(arguments)
    config = loading.settle(options, os.environ)
    if options.check:
        print(f"{PROGRAM}: {options.config or 'all'} is in order")
        return EX_OK
    from kestrel_stack.web.access.security import LogFormatter
    from kestrel_stack.web.service import StartError, serve

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(f"{PROGRAM}: %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # One line each time that all threads are busy would say nothing else.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        serve(config)
    except StartError as error:
        return _fail(str(error), EX_FAILED)
    return EX_OK


def _hash_password(arguments: Sequence[str]) -> int:
    from kestrel_stack.web.access import passwords

    if arguments:
        # Not as an argument: everybody on this machine could read it there.
        if arguments[0] in ("-h", "--help"):
            print(f"usage: {PROGRAM} hash-password   (asks for the password, or reads one line from stdin)")
            return EX_OK
        return _fail(
            "hash-password takes no arguments; it asks for the password, or reads it from stdin.", EX_CONFIG
        )
    try:
        if sys.stdin.isatty():
            password = getpass.getpass("Password: ")
            if getpass.getpass("Once more: ") != password:
                return _fail("These were two different passwords; nothing was done.", EX_FAILED)
        else:
            password = sys.stdin.readline().rstrip("\r\n")
        print(passwords.make(password))
    except EOFError:
        return _fail("No password was given; nothing was done.", EX_FAILED)
    except UnicodeError:
        # What it says of itself has a part of the password in it.
        return _fail("The password is not text in this terminal's encoding; nothing was done.", EX_FAILED)
    except ValueError as error:
        return _fail(str(error), EX_FAILED)
    return EX_OK


def _fail(message: str, status: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status
