"""The lab's logins: ``python -m kestrel_stack.lab.login --file FILE [--email ADDRESS]``, for the roles.

The file holds a name, its password and the password's hash, readable for its owner alone; it is made once.
Printed is what kestrel-web is told, which has the hash and not the password. With ``--email`` it is a login
to Bugsink or Sentry: address and password, and both are printed, since neither takes a hash.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from argon2 import PasswordHasher

from kestrel_stack.lab.errors import LabError

NAME = "operator"
ROLE = "operator"
KEYS = frozenset({"name", "password", "password_hash"})
SENTRY_KEYS = frozenset({"email", "password"})


def read(path: Path, keys: Collection[str] = KEYS) -> dict[str, str]:
    """Return the login that a file holds; LabError where it holds none, FileNotFoundError without one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: cannot be read ({error}): remove it for a new login") from None
    if not isinstance(found, dict) or set(keys) - set(found):
        raise LabError(f"{path}: holds no login: remove it for a new one")
    return {key: str(found[key]) for key in keys}


def ensure(path: Path, email: str | None = None) -> dict[str, str]:
    """Return the login of a file, which is made with a new password where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return read(path, SENTRY_KEYS if email else KEYS)
        except FileNotFoundError:
            pass
        made = _new(email)
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(made, indent=2) + "\n")
        new.replace(path)
        return made


def _new(email: str | None) -> dict[str, str]:
    if email:
        return {"email": email, "password": secrets.token_urlsafe(15)}
    password = secrets.token_urlsafe(12)
    return {"name": NAME, "password": password, "password_hash": PasswordHasher().hash(password)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the login as its program's role wants it; 1 with one line when that is not possible."""
    parser = argparse.ArgumentParser(prog="login", description="Make a login of the lab's, once.")
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument(
        "--email", metavar="ADDRESS", help="a login to Bugsink or Sentry, with this address when it is made"
    )
    parser.add_argument(
        "--check", action="store_true", help="make none; where there is none, say another one"
    )
    options = parser.parse_args(argv)
    path = options.file.expanduser()
    try:
        try:
            login = read(path, SENTRY_KEYS if options.email else KEYS)
        except FileNotFoundError:
            # In a check one that nobody knows the password of.
            login = _new(options.email) if options.check else ensure(path, options.email)
    except (LabError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    said = (
        {"email": login["email"], "password": login["password"]}
        if options.email
        else {"name": login["name"], "role": ROLE, "password_hash": login["password_hash"]}
    )
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
