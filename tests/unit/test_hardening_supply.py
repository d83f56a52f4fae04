"""What is installed is what was locked: every file by its hash, and nothing that is not needed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.deploy import make_wheel

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements/controller.txt", "requirements/web.txt", "requirements/bugsink.txt")


def entries(text):
    """Return each requirement of a lock with its hashes."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def all_locks():
    """Every lock file that git knows, so that a new one is not forgotten."""
    listed = subprocess.run(
        ["git", "ls-files", "*requirements*.txt", "requirements/*.txt"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [name for name in listed if not name.startswith(("tests/", "bench/"))]


def test_every_lock_pins_each_file_by_its_hash():
    locks = all_locks()
    assert set(LOCKS) <= set(locks)
    for name in locks:
        for line in entries((ROOT / name).read_text()):
            assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", line), f"{name}: {line[:80]}"
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{name}: {line[:80]}"


def test_no_lock_says_where_packages_come_from():
    """An address in a lock would be asked beside the index that the operator has chosen."""
    for name in all_locks():
        assert not re.search(
            r"--(index-url|extra-index-url|find-links|trusted-host)|https?://", (ROOT / name).read_text()
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{right}", None),
        ("sha256:" + 64 * "0", "DO NOT MATCH THE HASHES"),
        ("", "Hashes are required"),
    ],
    ids=["right", "another", "none"],
)
def test_pip_takes_a_file_with_the_hash_of_the_lock_and_no_other(tmp_path, given, said):
    """Every program that installs from a lock says --require-hashes; this is what that does."""
    wheel = make_wheel(tmp_path / "index", "library")
    digest = given.format(right=f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    (tmp_path / "lock.txt").write_text(f"library==1.0 {f'--hash={digest}' if digest else ''}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "--require-hashes",
         "--find-links", wheel.parent, "-r", tmp_path / "lock.txt"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert (done.returncode == 0) == (said is None), done.stderr
    assert said is None or said in done.stderr


def test_whoever_installs_from_a_lock_requires_its_hashes():
    wanted = {
        "bin/lib/bootstrap.sh",
        "src/kestrel_stack/deploy",
        "templates/usr/local/lib/kestrel-stack/releases.py",
    }
    for name in wanted:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        text = "\n".join(one.read_text() for one in files)
        assert "--require-hashes" in text, name


def test_php_needs_nothing_but_php():
    composer = json.loads((ROOT / "php/composer.json").read_text())
    assert set(composer["require"]) == {"php", "ext-json"}
    assert "require-dev" not in composer
    assert "repositories" not in composer
    assert "scripts" not in composer


def test_the_library_needs_nothing_but_python():
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert dependencies is None or dependencies[1].strip() == ""


def test_neither_inventory_nor_configuration_turns_host_keys_off():
    for name in ("ansible.cfg", "ansible/ansible.cfg"):
        assert re.search(r"^host_key_checking = True$", (ROOT / name).read_text(), re.MULTILINE), name
    found = subprocess.run(
        ["git", "grep", "-nIiE",
         "StrictHostKeyChecking[ =]+(no|off|accept-new|ask)|host_key_checking[ =:]+(false|no|0)"
         "|AutoAddPolicy|WarningPolicy|HOST_KEY_CHECKING=(false|0|no)", "--", ":!tests"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (1, "")


@pytest.mark.long
@pytest.mark.parametrize("lock", LOCKS)
def test_no_known_vulnerability_is_in_what_is_locked(lock):
    """pip-audit asks the package index what is known of each version; where it cannot, this is not run."""
    program = shutil.which(
        "pip-audit", path=f"{Path(sys.executable).parent}:{Path.home()}/.local/bin:/usr/bin"
    )
    if program is None:
        pytest.skip("not run: pip-audit is not installed (pipx install pip-audit)")
    done = subprocess.run(
        [program, "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--requirement", lock],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    if re.search(r"ServiceError|ConnectionError|Failed to connect|Max retries|Name or service", done.stderr):
        pytest.skip(f"not run: the service cannot be reached: {done.stderr.strip().splitlines()[-1][:200]}")
    # An index that is a mirror knows of no vulnerability, and pip-audit says "none found" with exit code 0.
    if "could not be audited" in done.stdout + done.stderr:
        pytest.skip("not run: the index that this machine asks does not answer for vulnerabilities")
    assert done.returncode == 0, done.stdout + done.stderr
