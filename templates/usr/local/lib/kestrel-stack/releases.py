"""What the host's programs for kestrel-web and for Bugsink share: releases out of wheels, and a way back.

A service has a folder: `releases/KEY/venv`, and `current`, which names the one that runs.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

KEY = re.compile(r"py[0-9]+-[a-z0-9_]+-[0-9a-f]{12}\Z")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for pip, and for systemctl beyond what the unit itself may take.
INSTALL, SYSTEMCTL = 300, 60
LOG_LINES = 8


class Failed(Exception):  # noqa: N818
    """What was asked for was not reached; `log` is the end of the service's own log."""

    def __init__(self, text, log=()):
        super().__init__(text)
        self.log = list(log)


def run(*command, seconds=SYSTEMCTL, check=True, called=None, env=None, **options):
    """Run a program and return what it prints; `env` is added to an environment that says nothing else.

    `called` is what it is called when it fails.
    """
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": "/dev/null", **(env or {})},
        **options,
    )
    if check and done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise Failed(f"{called or ' '.join(command[:3])} failed: {said[-400:]}")
    return done.stdout


# --- releases ------------------------------------------------------------------------------------------


def install(root, packed, sha256, key):
    """Make a release out of a tar of wheels; the marker comes last, so that half a one is never believed."""
    if not KEY.match(key):
        raise Failed(f"{key} is not the name of a release")
    folder = root / "releases" / key
    if (folder / ".complete").exists():
        return {"changed": False, "release": key}
    data = Path(packed).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Failed(f"{packed} arrived damaged: its SHA-256 is not {sha256}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as name:
        with tarfile.open(packed) as tar:
            for member in tar:
                # Our own tar; Debian 12's Python has no filters yet.
                if not re.fullmatch(r"requirements\.txt|wheels/[A-Za-z0-9_.+-]+\.whl", member.name):
                    raise Failed(f"{packed} holds {member.name}, which is no wheel")
                target = Path(name, member.name)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
        shutil.rmtree(folder, ignore_errors=True)
        try:
            build(folder, Path(name))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    (folder / ".complete").touch()
    return {"changed": True, "release": key}


def build(folder, unpacked):
    """Make the virtual environment: of the wheels that were sent alone, each with its hash."""
    venv = folder / "venv"
    # Debian has pip as a wheel, which runs as it is: installing it takes longer than all the rest.
    pips = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    run("/usr/bin/python3", "-m", "venv", *(["--without-pip"] if pips else []), str(venv), seconds=INSTALL)
    pip = [f"{pips[-1]}/pip"] if pips else ["-m", "pip"]
    run(
        str(venv / "bin/python"), *pip,
        *("--isolated", "--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "install"),
        *("--no-index", "--only-binary", ":all:", "--find-links", str(unpacked / "wheels")),
        *("--require-hashes", "-r", str(unpacked / "requirements.txt")),
        seconds=INSTALL,
    )  # fmt: skip


def is_complete(root, release):
    """Say whether a release is there, whole."""
    return (root / "releases" / release / ".complete").exists()


def current(root):
    """Return the release that `current` names, or None."""
    try:
        return (root / "current").readlink().name
    except OSError:
        return None


def switch(root, release):
    """Let `current` name a release, in one step; return whether it did not."""
    if current(root) == release:
        return False
    new = root / ".current.new"
    new.unlink(missing_ok=True)
    new.symlink_to(Path("releases", release))
    new.replace(root / "current")
    return True


def prune(root, keep, needed):
    """Remove the oldest releases but for `keep` and those that are needed; return their names."""
    found = sorted((root / "releases").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    old = [path for path in found if path.name not in needed]
    gone = old[max(0, keep - len(needed & {path.name for path in found})) :]
    for path in gone:
        shutil.rmtree(path)
    return [path.name for path in gone]


# --- what stands, and what stood before ----------------------------------------------------------------


def contents(paths):
    """Return those files that are there, each with its content."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[str(path)] = path.read_bytes()
    return found


def digest(release, files):
    """Name everything that decides what runs: a release, and files as `contents` returns them."""
    total = hashlib.sha256(f"{release}\n".encode())
    for name, content in files.items():
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()


def keep(former, release, files):
    """Put aside what runs, in a folder for root alone, so that a failing change can be taken back."""
    shutil.rmtree(former, ignore_errors=True)
    former.mkdir(mode=0o700)
    kept = {"release": release, "files": {}}
    for number, (name, content) in enumerate(files.items()):
        status = Path(name).stat()
        copy = former / str(number)
        copy.touch(mode=0o600)
        copy.write_bytes(content)
        kept["files"][name] = [str(number), status.st_mode & 0o777, status.st_uid, status.st_gid]
    # Written last, so that half of it is never put back.
    index = former / "kept.json"
    index.touch(mode=0o600)
    index.write_text(json.dumps(kept), encoding="utf-8")


def what_was_kept(former, root):
    """Return the release and the files that were put aside; None without them, or without that release."""
    try:
        kept = json.loads((former / "kept.json").read_bytes())
    except (OSError, ValueError):
        return None
    return kept if is_complete(root, kept["release"] or "-") else None


def put_back(former, kept, standing):
    """Let the files be what was kept, in place of those that stand."""
    for name in standing:
        if name not in kept["files"]:
            Path(name).unlink()
    for name, (copy, mode, uid, gid) in kept["files"].items():
        new = Path(f"{name}.new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_bytes((former / copy).read_bytes())
        os.chown(new, uid, gid)
        new.chmod(mode)
        new.replace(name)


# --- the service's log, and this program's answer ------------------------------------------------------


def last_lines(since, *units):
    """Return the end of what units themselves have logged since a moment."""
    run("journalctl", "--sync", check=False)
    said = run(
        *("journalctl", *(f"--unit={unit}" for unit in units)),
        *(f"--since=@{int(since)}", "--output=cat", "--no-pager"),
        check=False,
    ).splitlines()
    # systemd's own lines say that it failed, which is known.
    own = [line.rstrip() for line in said if line.strip() and not any(unit in line for unit in units)]
    return own[-LOG_LINES:]


def answer(program, do, *, lock=None, silent=False):
    """Do something and print one JSON object: what `do` returns, or why not; return the exit code.

    Who comes while another holds the lock waits for it.
    """
    try:
        with contextlib.ExitStack() as stack:
            if lock is not None:
                held = stack.enter_context(open(lock, "w", encoding="ascii"))  # noqa: PTH123
                fcntl.flock(held, fcntl.LOCK_EX)
            done = do()
    except Failed as failed:
        done = {"changed": True, "failed": str(failed), "log": failed.log}
    except (OSError, subprocess.SubprocessError, tarfile.TarError, ValueError) as error:
        done = {"changed": True, "failed": " ".join(str(error).split()) or type(error).__name__, "log": []}
    if "failed" in done:
        sys.stderr.write(f"{program}: {done['failed']}\n")
    if not silent:
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()
    return 1 if "failed" in done else 0
