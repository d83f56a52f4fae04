"""Layer one: an inventory as Ansible reads it, remembered while nothing that it is read from has changed.

``ansible-inventory`` takes most of a second to start, each time. What it says of an inventory of plain files
follows from these files, Ansible's configuration and its version alone; where anything else may have a say
(a program, a plugin, a vault, a link, an environment variable) it is asked every time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import Refused

KEPT = 20
"""How many inventories are remembered."""
_LARGEST = 2**20
# A file that is encrypted as a whole has to be opened; a single value stays as it is without a password.
_ASKS_OTHERS = re.compile(rb"plugin[\"']?\s*:|\A\s*\$ANSIBLE_VAULT")
_CONFIGURES_OTHERS = re.compile(
    rb"plugin|vault|playbook_dir|collections|^\s*\[inventory\]|home", re.MULTILINE
)
# A strategy says how tasks run, and has no say in an inventory. Nor has a section of this one option: what it
# ends is never remembered.
_HAS_NO_SAY = re.compile(
    rb"^strategy_plugins\s*=.*$|^\[inventory\]\n(?:#.*\n)*any_unparsed_is_failed\s*=.*\n(?=\n*(?:\[|\Z))",
    re.MULTILINE,
)


def list_inventory(
    path: Path, root: Path, keep: Callable[[dict[str, Any]], dict[str, Any]], kept: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what ``ansible-inventory --list`` says of an inventory, as far as ``keep`` leaves it.

    Nothing else of it is written to disk: an inventory may hold secrets. ``kept`` names what is: another
    version of fab may need more than this one remembers. Raises Refused.
    """
    key = fingerprint(path, root)
    remembered = root / ".build" / "inventories" / f"{_digest(key, *kept)}.json"
    if key is not None:
        try:
            data = json.loads(remembered.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            data = None
        if isinstance(data, dict):
            return data
    data = keep(ask_ansible(path, root))
    # Only if nobody wrote to the files while Ansible was reading them.
    if key is not None and key == fingerprint(path, root):
        _remember(remembered, data)
    return data


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _remember(path: Path, data: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps(data, sort_keys=True), encoding="utf-8")
        new.replace(path)
        known = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in known[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        # The next command asks again.
        return


def fingerprint(path: Path, root: Path) -> str | None:
    """Return a hash of all that Ansible's answer follows from; None when that cannot be told."""
    program = Path(sys.executable).with_name("ansible-inventory")
    home = Path.home()
    added = [home / ".ansible/plugins", Path("/usr/share/ansible/plugins")]
    if (
        not program.exists()
        or "," in str(path)
        or any(name.startswith("ANSIBLE_") for name in os.environ)
        or any(place.exists() for place in added)
    ):
        return None
    digest = hashlib.sha256()

    def add(*parts: bytes | str) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "big") + data)

    try:
        add(
            "1", sys.version, sys.executable, importlib.metadata.version("ansible-core"), str(path), str(root)
        )
        add(str(stat.S_IMODE(root.stat().st_mode)))
        for config in (root / "ansible.cfg", home / ".ansible.cfg", Path("/etc/ansible/ansible.cfg")):
            content = config.read_bytes() if config.exists() else b""
            if _CONFIGURES_OTHERS.search(_HAS_NO_SAY.sub(b"", content)):
                return None
            add(str(config), content)
        size = 0
        for name, file in _files(path):
            facts = file.lstat()
            size += facts.st_size
            if stat.S_ISDIR(facts.st_mode):
                add(name, "folder")
                continue
            if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o111 or size > _LARGEST:
                return None
            content = file.read_bytes()
            if _ASKS_OTHERS.search(content):
                return None
            add(name, content)
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file and folder that Ansible may look at, with its name from there, in a fixed order."""
    places = [path] if path.is_dir() else [path, path.parent / "group_vars", path.parent / "host_vars"]
    for place in places:
        # Not exists(): a link to nowhere has to be seen.
        if os.path.lexists(place):
            for file in [place, *sorted(place.rglob("*"))]:
                yield str(file.relative_to(path.parent)), file


def ask_ansible(path: Path, root: Path) -> dict[str, Any]:
    """Run ``ansible-inventory --list``. Raises Refused."""
    # The program beside this Python, so that `.venv/bin/fab` works without an activated environment.
    program = Path(sys.executable).with_name("ansible-inventory")
    command = [str(program) if program.exists() else "ansible-inventory", "-i", str(path), "--list"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=root,
            # Ansible refuses a locale that is not UTF-8, and one that this machine does not have.
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        raise Refused(
            "ansible-inventory is not installed beside fab: install requirements/controller.txt"
        ) from None
    except subprocess.TimeoutExpired:
        raise Refused(f"ansible-inventory -i {path} did not end within 120 s") from None
    said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    # A file that cannot be parsed is only a warning to ansible-inventory, which then prints an empty
    # inventory.
    broken = re.search(r"(?:Failed to parse|Unable to parse|failed to parse)[^.]*(?:\.[^.]*)?", said)
    if done.returncode != 0 or broken:
        reason = broken.group(0) if broken else said or f"exit code {done.returncode}"
        raise Refused(f"ansible-inventory cannot read {path}: {reason[:500]}")
    return json.loads(done.stdout)
