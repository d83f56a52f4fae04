"""Filters that check which Kestrel release and which Java the inventory asks for.

Like the ones beside them they run on the controller, touch nothing, and return lists of one-line sentences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# The release that this role was tried with. Older ones are pinned and nothing more.
TESTED = (2, 4, 1)
OLDEST_JAVA = 11

_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)+\Z")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}\Z")
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://")


def release_problems(
    release: Any, sha256: Any, allow_untested: Any, pins: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Say why `release` is not installed; `pins` are those that the role knows."""
    release, sha256 = str(release), str(sha256)
    known = ", ".join(pins)
    where = f"kestrel_release {release}"
    if release == "master" or "SNAPSHOT" in release.upper():
        return [f"{where} is no release: master and snapshots were unstable; choose one of {known}"]
    if not _RELEASE.match(release):
        return [f"{where} is not a release's number: choose one of {known}"]
    if sha256 and not _SHA256.match(sha256):
        return [f"kestrel_archive_sha256 {sha256} is not a SHA-256: give 64 hexadecimal digits, or none"]
    if not sha256 and release not in pins:
        return [
            f"{where} is not known here: choose one of {known}, or give the SHA-256 of its archive in"
            " kestrel_archive_sha256"
        ]
    if tuple(int(part) for part in release.split(".")) < TESTED and not allow_untested:
        tested = ".".join(str(part) for part in TESTED)
        return [
            f"{where} was never tried with this role: use {tested},"
            " or set kestrel_allow_untested_release: true"
        ]
    return []


def archive_problems(archive: Any) -> list[str]:
    """Say why `archive` can be neither fetched nor read; whether it is there shows later."""
    text = str(archive)
    if not text.strip():
        return ["kestrel_archive is empty: give the URL of the release's zip, or its path on the controller"]
    if _URL.match(text):
        if re.match(r"[^/]*//[^/]*@", text):
            # It would be on the command line, where everybody can read it.
            return [
                "kestrel_archive has a name or password in its address: fetch the zip yourself, give its path"
            ]
        if re.match(r"(?i)https?://[^/]+/.", text):
            return []
        return [f"kestrel_archive {text}: give an http:// or https:// address, or a path on the controller"]
    if not text.startswith(("/", "~/")):
        return [f"kestrel_archive {text} is not an absolute path: start it with / (a path on the controller)"]
    return []


def java_problems(
    version: Any, home: Any, shipped: Mapping[str, Sequence[str]], debian: Any, host: str
) -> list[str]:
    """Say why no Java comes of kestrel_java_version and kestrel_java_home on a host with this Debian."""
    version, home = str(version), str(home)
    if home and version:
        return ["kestrel_java_home and kestrel_java_version are both set: leave one of them empty"]
    if home:
        if not home.startswith("/"):
            return [f"kestrel_java_home {home} is not an absolute path: give a JDK's folder on the host"]
        if re.match(r"/(home|root|run/user|tmp|var/tmp)(/|\Z)", home):
            return [
                f"kestrel_java_home {home} is hidden from the server by its sandbox: put the JDK elsewhere,"
                " like /opt"
            ]
        return []
    there = shipped.get(str(debian), [])
    if version and version not in there:
        if version.isdigit() and int(version) < OLDEST_JAVA:
            return [f"kestrel_java_version {version}: Kestrel runs here on Java {OLDEST_JAVA} and later"]
        return [
            f"kestrel_java_version {version} is not in Debian {debian} ({host}): use {' or '.join(there)},"
            " or install a JDK yourself and name its folder in kestrel_java_home"
        ]
    return []


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_release_problems": release_problems,
            "kestrel_stack_archive_problems": archive_problems,
            "kestrel_stack_java_problems": java_problems,
        }
