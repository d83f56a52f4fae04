"""The command line of ``bin/dev``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kestrel_stack.dev import describe, find, ports
from kestrel_stack.dev.describe import Description
from kestrel_stack.dev.errors import DevError
from kestrel_stack.dev.folder import Folder
from kestrel_stack.dev.lines import Screen
from kestrel_stack.dev.session import Session
from kestrel_stack.dev.side import Side
from kestrel_stack.processes import PHP, SOURCE, no_php

CHECKOUT = SOURCE.parent
WEB_PORT = 8090
PHP_EXTENSIONS = ("pcntl", "posix")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="bin/dev",
        description="A queue stack for the application in this folder, in one terminal: embedded broker, "
        "delay mover, kestrel-web, and a consumer for each queue that takes new code when a file is saved.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--app", type=Path, metavar="FOLDER", help="the application (default: this folder)")
    add("--env", metavar="INVENTORY", help="take the queues from this inventory")
    add("--python", metavar="MODULE:REGISTRY", help="the jobs in Python (default: the only registry found)")
    add("--php", metavar="FILE", help="the jobs in PHP (default: the only file found that returns one)")
    add(
        "--queues",
        metavar="NAME,…",
        help="only these have consumers; where nobody describes them, NAME:php for PHP",
    )
    add("--port", type=_port, metavar="N", help=f"of kestrel-web (default: {WEB_PORT}, or the next free one)")
    add("--no-php", action="store_true", help="no PHP consumers")
    add("--fresh", action="store_true", help="empty the queues first")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 0 ended when told to, 1 could not begin, 2 wrong usage."""
    given = parser().parse_args(arguments)
    screen = Screen()
    try:
        return run(given, screen)
    except DevError as exc:
        print(f"bin/dev: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bin/dev: interrupted", file=sys.stderr)
        return 130
    finally:
        if screen.gone:
            # Nobody is there to be told at the end, either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(given: argparse.Namespace, screen: Screen) -> int:
    """Find everything out, then run it."""
    app = _app(given.app)
    found = description(given, app)
    sides = {side.language: side for side in _sides(given, app, found, screen)}
    only = tuple(name.strip() for name in given.queues.split(",")) if given.queues else None
    found = describe.chosen(found, only)
    only = _checked(only, found)
    if given.port is not None and not ports.is_free(given.port):
        raise DevError(f"port {given.port} is taken; give another with --port, or none for the next free one")
    shared = describe.shared_folders(app)
    with Folder(app) as folder:
        for name in shared:
            (app / name).mkdir(parents=True, exist_ok=True)
        if given.fresh:
            folder.empty()
        folder.make()
        return Session(folder, found, sides, screen, given.port, WEB_PORT, only).run()


def description(given: argparse.Namespace, app: Path) -> Description:
    """Return what is known of the queues and of where the jobs are."""
    if given.env is not None:
        return describe.of_inventory(given.env, CHECKOUT)
    if app.is_relative_to(CHECKOUT) and (CHECKOUT / "ansible" / "inventories" / "lab").exists():
        lab = describe.of_inventory("lab", CHECKOUT)
        # The lab's application; another one in the checkout is described nowhere.
        if all(_there(app, where) for where in (lab.python, lab.php) if where):
            return lab
    return describe.of_folder(app)


def _there(app: Path, where: str) -> bool:
    module = Path(*where.partition(":")[0].split("."))
    return any((app / path).exists() for path in (where, f"{module}.py", module / "__init__.py"))


def _app(given: Path | None) -> Path:
    app = (given or Path.cwd()).resolve()
    if given is None and app == CHECKOUT:
        app = CHECKOUT / "examples" / "shop"
    if not app.is_dir():
        raise DevError(f"--app: {app} is not a folder")
    return app


def _sides(given: argparse.Namespace, app: Path, known: Description, screen: Screen) -> list[Side]:
    sides = []
    python = given.python or (known.python if known.python and _there(app, known.python) else None)
    if python is None:
        python = find.only(find.python_registries(app), "--python")
    if python is not None:
        sides.append(Side("python", python, find.python_of(app, os.environ)))
    file = given.php or (known.php if known.php and (app / known.php).is_file() else None)
    if file is None and not given.no_php:
        file = find.only(find.php_registries(app), "--php")
    if file is not None and not given.no_php:
        if not (app / file).is_file():
            raise DevError(f"--php: {app / file} is not a file")
        missing = no_php(PHP, PHP_EXTENSIONS, "php-cli")
        if missing is None:
            sides.append(Side("php", file, find.php()))
        else:
            screen.plain(f"bin/dev: no PHP consumers: {missing}")
    if not sides:
        raise DevError(
            f"no jobs found in {app}: a Python module with `registry = Registry()`, or a PHP file that"
            " returns one; name it with --python MODULE:REGISTRY or --php FILE (see docs/jobs.md)"
        )
    return sides


def _checked(only: tuple[str, ...] | None, found: Description) -> tuple[str, ...] | None:
    if only is None or found.queues is None:
        return None
    known = [queue["name"] for queue in found.queues if "name" in queue]
    names = tuple(name.partition(":")[0] for name in only)
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise DevError(f"--queues: {name!r} is not described in {found.source}; there are {listed}")
    return names


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return int(text)
