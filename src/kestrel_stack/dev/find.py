"""Where an application has its jobs: found by reading its files, none of which is run."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kestrel_stack.dev.errors import DevError

SKIPPED = frozenset(
    ["__pycache__", "node_modules", "vendor", "var", "venv", "site-packages", "build", "dist", "cache"]
)
"""Folders that hold no code of one's own; those whose name begins with a dot are not looked at either."""
_PYTHON_TESTS = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")
_MADE = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?Registry\(\s*\)", re.MULTILINE)
_PHP_MADE = re.compile(r"^\s*return\b.*?\bnew\s+\\?(?:[\w\\]+\\)?Registry\b", re.MULTILINE | re.DOTALL)
_LARGEST = 1024 * 1024
MOST_FOLDERS = 5000


def folders(app: Path) -> Iterator[Path]:
    """Yield the folders of an application that may hold code of its own, itself first."""
    for number, (folder, inner, _) in enumerate(os.walk(app)):
        if number == MOST_FOLDERS:
            raise DevError(f"{app} has over {MOST_FOLDERS} folders; name the application's own with --app")
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".")
            and name not in SKIPPED
            and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield Path(folder)


def files(app: Path, suffix: str) -> Iterator[Path]:
    """Yield the files of an application's own with this suffix."""
    for folder in folders(app):
        for file in sorted(folder.glob(f"*{suffix}")):
            if file.is_file() and file.stat().st_size <= _LARGEST:
                yield file


def python_registries(app: Path) -> list[str]:
    """Return every ``MODULE:REGISTRY`` that is made at the top of a module."""
    found = []
    for file in files(app, ".py"):
        parts = file.relative_to(app).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts or not all(part.isidentifier() for part in parts):
            continue
        if _PYTHON_TESTS.fullmatch(file.name) or parts[0] in ("tests", "test"):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if "kestrel_stack" in text and "Registry" in text:
            found += [f"{'.'.join(parts)}:{name}" for name in _registries(text)]
    return found


def _registries(text: str) -> list[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        # It is being edited: good enough to know which file is meant.
        return _MADE.findall(text)
    names = []
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            made = ast.unparse(node.value.func).rpartition(".")[2]
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if made == "Registry":
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def php_registries(app: Path) -> list[str]:
    """Return every PHP file, by its path in the application, that seems to return a registry."""
    found = []
    for file in files(app, ".php"):
        relative = file.relative_to(app)
        text = file.read_text(encoding="utf-8", errors="replace")
        if relative.parts[0] not in ("tests", "test") and "KestrelStack" in text and _PHP_MADE.search(text):
            found.append(str(relative))
    return found


def only(found: list[str], flag: str) -> str | None:
    """Return the one that was found; None when there is none, `DevError` when several could be meant."""
    if len(found) > 1:
        raise DevError(f"several registries of jobs: {', '.join(found)}; say which: {flag} {found[0]}")
    return found[0] if found else None


def python_of(app: Path, environ: Mapping[str, str]) -> str:
    """Return the Python that has what the application needs: its own environment's, else the active one's.

    Raises `DevError` for one that cannot run jobs.
    """
    places = [app / ".venv", app / "venv"]
    if environ.get("VIRTUAL_ENV"):
        places.append(Path(environ["VIRTUAL_ENV"]))
    for place in places:
        python = place / "bin" / "python"
        if not python.exists():
            continue
        look = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            said = subprocess.run(
                look, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
            )
            version = tuple(int(part) for part in said.stdout.strip().split("."))
        except (OSError, ValueError, subprocess.TimeoutExpired):
            raise DevError(f"{python} does not run; make that virtual environment anew") from None
        if version < (3, 11):
            raise DevError(f"{python} is Python {said.stdout.strip()}; jobs need 3.11 or later: make it anew")
        return str(python)
    return sys.executable


def php() -> str:
    """Return PHP's program."""
    return shutil.which("php") or "php"
