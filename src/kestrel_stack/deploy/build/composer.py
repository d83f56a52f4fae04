"""The libraries of an application in PHP: vendor/ from composer.lock, made here: hosts have no Composer.

No script and no plug-in of a package runs: what is built depends on the lock and the commit alone. Packages
are kept by lock, composer.json and the versions of Composer and PHP; the autoloader, whose class map has the
application's own classes as well, is made for every commit that changes one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DeployError, Failed, Refused
from .cache import in_use, keep_folder
from .tree import File, Tree

SECONDS = 600
"""For one run of Composer, which may have to fetch everything."""
INSTALL = (
    "--no-dev",
    "--no-scripts",
    "--no-plugins",
    "--no-interaction",
    "--no-progress",
    "--no-ansi",
    "--prefer-dist",
    # Which extensions this machine has proves nothing about the hosts.
    "--ignore-platform-req=ext-*",
)
DUMP = ("--optimize", "--no-dev", "--no-scripts", "--no-plugins", "--no-interaction", "--no-ansi")


def add_vendor(tree: Tree, folders: Sequence[str], cache: Path) -> dict[str, File]:
    """Return the tree with vendor/ in each folder; ``.`` is the application's own.

    Same tree, same Composer and PHP: same bytes. Raises Refused when composer.json or composer.lock is
    missing, when the lock does not fit composer.json, when vendor/ is in the commit, and when Composer or PHP
    is not installed; Failed when Composer does.
    """
    made = dict(tree)
    if not folders:
        return made
    tools = _tools()
    for folder in folders:
        made.update(_vendor(made, _Project(made, folder), tools, cache / "composer"))
    return made


def require_tools(folders: Sequence[str]) -> None:
    """Refuse what this machine has no Composer or PHP for: asked before anything is built."""
    if folders:
        _tools()


class _Project:
    """One folder with a composer.json."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self.prefix = "" if folder == "." else f"{folder}/"
        for name in ("composer.json", "composer.lock"):
            if not self._data(tree, name):
                fix = (
                    "run composer update and commit it" if name == "composer.lock" else "correct php.composer"
                )
                raise Refused(
                    f"php.composer: {self.prefix}{name} is not in the commit: {fix}, or set php.composer: []"
                )
        self.json = self._object(tree, "composer.json")
        self.lock = self._object(tree, "composer.lock")
        config = self.json.get("config")
        vendor = config.get("vendor-dir", "vendor") if isinstance(config, Mapping) else "vendor"
        path = PurePosixPath(vendor) if isinstance(vendor, str) else None
        if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "$" in vendor:
            raise Refused(
                f"{self.prefix}composer.json: config.vendor-dir {vendor!r} is not inside the application"
            )
        self.vendor = str(path)
        place = PurePosixPath(self.prefix, self.vendor)
        for taken in (place, *place.parents):
            if str(taken) in tree:
                raise Refused(
                    f"{taken} is a file or a link in the commit, and Composer would write"
                    f" {place} there: remove it from git"
                )
        if any(name.startswith(f"{place}/") for name in tree):
            raise Refused(
                f"{self.prefix}{self.vendor} is in the commit, and Composer would write there: remove it from"
                " git, or set php.composer: [] to deploy it as it is"
            )

    def key(self, tree: Tree, versions: str) -> str:
        """Name what `composer install` makes: by lock, composer.json, versions, packages in the tree."""
        digest = hashlib.sha256(versions.encode())
        for name in ("composer.json", "composer.lock"):
            digest.update(_line(name, self._data(tree, name)))
        for name in sorted(set(self._local(tree))):
            digest.update(_line(name, _told(tree[name])))
        return digest.hexdigest()[:20]

    def suffix(self, packages: str) -> str:
        """Return what the autoloader's class is called after; two folders may be loaded by one process."""
        return hashlib.sha256(f"{self.prefix}\n{packages}".encode()).hexdigest()[:32]

    def code_key(self, tree: Tree, packages: str) -> str:
        """Name the autoloader: by the packages and every file that may have a class."""
        digest = hashlib.sha256(packages.encode())
        for name in sorted(tree):
            if name.endswith((".php", ".inc", ".hh")) or tree[name].link is not None:
                digest.update(_line(name, _told(tree[name])))
        return digest.hexdigest()[:20]

    def _local(self, tree: Tree) -> Iterator[str]:
        """Yield the files of packages that come from the tree: of repositories of type path and artifact."""
        for package in self.lock.get("packages") or ():
            dist = package.get("dist") if isinstance(package, Mapping) else None
            url = dist.get("url") if isinstance(dist, Mapping) else None
            if isinstance(url, str) and "://" not in url:
                place = os.path.normpath(f"{self.prefix}{url}")
                yield from (name for name in tree if name == place or name.startswith(f"{place}/"))

    def _data(self, tree: Tree, name: str) -> bytes:
        file = tree.get(self.prefix + name)
        return file.data if file is not None else b""

    def _object(self, tree: Tree, name: str) -> Mapping[str, Any]:
        try:
            value = json.loads(self._data(tree, name))
        except ValueError as error:
            raise Refused(f"{self.prefix}{name} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refused(f"{self.prefix}{name} is not a JSON object")
        return value


def _vendor(tree: Tree, project: _Project, versions: str, cache: Path) -> dict[str, File]:
    packages = project.key(tree, versions)
    whole = project.code_key(tree, packages)
    # As if it were the application's: Composer finds no repository around it and no path of this machine.
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-composer-") as name:
        top = Path(name)
        if not in_use(cache / "vendor" / whole):
            _write(tree, top)
            work = top / project.prefix
            if in_use(cache / "packages" / packages):
                _write(_read(cache / "packages" / packages), work / project.vendor)
            else:
                _check_lock(project, work)
                _composer(project, work, "install", "--no-autoloader", *INSTALL)
                (work / project.vendor).mkdir(parents=True, exist_ok=True)
                keep_folder(work / project.vendor, cache / "packages" / packages)
            # Composer keeps the class name of an autoloader that is there; some versions draw one by lot.
            (work / project.vendor / "autoload.php").write_text(
                f"<?php\n\nreturn ComposerAutoloaderInit{project.suffix(packages)}::getLoader();\n"
            )
            _composer(project, work, "dump-autoload", *DUMP)
            keep_folder(work / project.vendor, cache / "vendor" / whole)
        vendor = _read(cache / "vendor" / whole)
    return {f"{project.prefix}{project.vendor}/{path}": file for path, file in vendor.items()}


def _check_lock(project: _Project, work: Path) -> None:
    done = _run(work, "validate", "--no-check-publish", "--no-check-all", "--no-plugins", "--no-interaction")
    said = done.stdout + done.stderr
    if re.search(r"lock file is not up to date|not present in the lock file", said):
        raise Refused(
            f"{project.prefix}composer.lock does not fit {project.prefix}composer.json: run composer update"
            " --lock (or composer update) and commit it"
        )
    if done.returncode >= 2:
        raise Refused(f"{project.prefix}composer.json: {_last_words(said)}")


def _composer(project: _Project, work: Path, *words: str) -> None:
    done = _run(work, *words)
    if done.returncode != 0:
        raise _explained(project, words[0], done.stdout + done.stderr)


def _explained(project: _Project, command: str, said: str) -> DeployError:
    where = f"{project.prefix}composer.lock"
    if "zip extension and unzip" in said:
        return Refused("php.composer: packages cannot be unpacked on this machine: apt install unzip")
    if "requires PHP's zip extension" in said:
        return Refused("php.composer: a repository of artifacts needs PHP's zip here: apt install php-zip")
    if re.search(r"lock file does not contain a compatible set|not present in the lock file", said):
        return Refused(f"{where}: {_last_words(said)}")
    return Failed(f"{where}: composer {command} failed: {_last_words(said)}")


def _last_words(said: str) -> str:
    """Return what Composer complains of, in one line without credentials."""
    lines = [line.strip(" ->") for line in said.splitlines()]
    lines = [
        line for line in lines if line and not line.startswith(("Warning", "Deprecat", "install [", "#"))
    ]
    # The complaint stands below the exception's name; what is above are the steps that went well.
    starts = [index for index, line in enumerate(lines) if re.match(r"In \S+ line \d+:|Problem \d+", line)]
    told = lines[starts[0] + 1 :] if starts else lines[-3:]
    text = " ".join(told) or "it said nothing"
    return re.sub(r"//[^/@\s]*@", "//", text)[:400]


def _tools() -> str:
    """Return the versions of Composer and PHP. Raises Refused naming what to install."""
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-composer-") as name:
        folder = Path(name)
        try:
            php = subprocess.run(
                ["php", "-r", "echo PHP_VERSION;"], capture_output=True, text=True, check=False
            ).stdout.strip()
        except FileNotFoundError:
            raise Refused("php.composer: php is not installed on this machine: apt install php-cli") from None
        done = _run(folder, "--version", "--no-ansi")
    found = re.search(r"Composer (?:version )?(\d[\w.+-]*)", done.stdout)
    if not php or done.returncode != 0 or not found:
        raise Refused(f"php.composer: composer does not run here: {_last_words(done.stdout + done.stderr)}")
    if int(found[1].split(".")[0]) < 2:
        raise Refused(f"php.composer: Composer 2 is needed, found {found[1]}: apt install composer")
    return f"composer {found[1]} php {php}\n"


def _run(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    environment |= {
        "COMPOSER_ALLOW_SUPERUSER": "1",
        "COMPOSER_MIRROR_PATH_REPOS": "1",  # copies: a link would lead out of the release
        "COMPOSER_NO_AUDIT": "1",
        "COMPOSER_DISABLE_XDEBUG_WARN": "1",
        # Else the version of the root package is taken from a git checkout around the folder.
        "GIT_CEILING_DIRECTORIES": str(work.resolve().parent),
    }
    try:
        return subprocess.run(
            ["composer", *words],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise Refused(
            "php.composer: composer is not installed on this machine: apt install composer unzip"
        ) from None
    except subprocess.TimeoutExpired:
        raise Failed(f"composer {words[0]} was not done within {SECONDS} s") from None


_UNSET = ("COMPOSER", "COMPOSER_VENDOR_DIR", "COMPOSER_BIN_DIR", "COMPOSER_ROOT_VERSION", "COMPOSER_NO_DEV")
"""Settings of a person's own work with Composer, which would change what is built."""


# --- files -----------------------------------------------------------------------------------------------


def _write(tree: Tree, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link is not None:
            path.symlink_to(file.link)
        else:
            path.write_bytes(file.data)
            path.chmod(0o755 if file.executable else 0o644)


def _read(folder: Path) -> dict[str, File]:
    """Read a folder; without the history of packages that Composer cloned."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if ".git" in name.parts:
            continue
        if path.is_symlink():
            found[name.as_posix()] = File(link=str(path.readlink()))
        elif path.is_file():
            found[name.as_posix()] = File(path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def _line(name: str, data: bytes) -> bytes:
    return f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode("utf-8", "surrogateescape")


def _told(file: File) -> bytes:
    return file.data if file.link is None else f"-> {file.link}".encode("utf-8", "surrogateescape")
