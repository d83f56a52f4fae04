"""Which release, archive and Java the role takes, and what it says of the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from support import host_programs

CHECKOUT = Path(__file__).resolve().parents[3]
filters = host_programs.load(CHECKOUT / "ansible/roles/common/filter_plugins/kestrel_stack_release.py")
VARS = yaml.safe_load((CHECKOUT / "ansible/roles/kestrel/vars/main.yml").read_text())
PINS, JAVAS = VARS["_kestrel_pins"], VARS["_kestrel_distribution_javas"]
SHA = "ab" * 32


def test_every_known_release_has_a_pin_of_the_right_length():
    assert list(PINS) == ["2.4.1", "2.3.4", "2.3.2", "2.3.1", "2.2.0", "2.1.5", "2.1.4"]
    for pins in PINS.values():
        assert re.fullmatch(r"[0-9a-f]{40}", pins["blob"])
    assert re.fullmatch(r"[0-9a-f]{64}", PINS["2.4.1"]["sha256"])


def test_the_tested_release_needs_nothing_more():
    assert filters.release_problems("2.4.1", "", False, PINS) == []


@pytest.mark.parametrize(
    ("release", "sha256", "allowed", "says"),
    [
        ("master", "", True, "is no release: master and snapshots were unstable"),
        ("master", SHA, True, "is no release"),
        ("2.4.8-SNAPSHOT", SHA, True, "is no release"),
        ("2.4.8-snapshot", SHA, True, "is no release"),
        ("latest", "", False, "is not a release's number: choose one of 2.4.1, 2.3.4"),
        ("2.4.2", "", False, "is not known here: choose one of 2.4.1"),
        ("2.4.2", "", False, "kestrel_archive_sha256"),
        ("2.4.1", "abc", False, "kestrel_archive_sha256 abc is not a SHA-256"),
        (
            "2.3.4",
            "",
            False,
            "was never tried with this role: use 2.4.1, or set kestrel_allow_untested_release",
        ),
        ("../../etc", SHA, True, "is not a release's number"),
    ],
)
def test_a_release_that_is_not_installed_is_refused_with_the_reason(release, sha256, allowed, says):
    (problem,) = filters.release_problems(release, sha256, allowed, PINS)
    assert says in problem


@pytest.mark.parametrize(
    ("release", "sha256", "allowed"), [("2.4.2", SHA, False), ("2.3.4", "", True), ("2.0", SHA, True)]
)
def test_an_own_pin_or_permission_makes_others_possible(release, sha256, allowed):
    assert filters.release_problems(release, sha256, allowed, PINS) == []


@pytest.mark.parametrize(
    "archive", ["http://mirror/kestrel.zip", "HTTPS://a/b", "/srv/kestrel.zip", "~/kestrel-2.4.1.zip"]
)
def test_an_archive_is_an_address_or_an_absolute_path(archive):
    assert filters.archive_problems(archive) == []


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        ("", "kestrel_archive is empty"),
        ("kestrel.zip", "is not an absolute path"),
        ("ftp://mirror/kestrel.zip", "give an http:// or https:// address"),
        ("file:///kestrel.zip", "give an http:// or https:// address"),
        ("https://", "give an http:// or https:// address"),
        ("https://me:secret@mirror/kestrel.zip", "name or password"),
    ],
)
def test_another_archive_is_refused(archive, says):
    (problem,) = filters.archive_problems(archive)
    assert says in problem
    assert "kestrel_archive" in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("version", "home", "debian", "says"),
    [
        ("", "", "12", None),
        ("", "", "13", None),
        ("25", "", "13", None),
        ("", "/opt/jdk", "12", None),
        ("25", "", "12", "is not in Debian 12 (q1): use 17, or install a JDK yourself"),
        ("24", "", "13", "use 21 or 25"),
        ("8", "", "12", "Java 11 and later"),
        ("17", "/opt/jdk", "12", "both set"),
        ("", "jdk", "12", "not an absolute path"),
        ("", "/home/me/jdk", "12", "hidden from the server by its sandbox"),
        ("", "/root", "12", "hidden from the server by its sandbox"),
        ("", "/homes/jdk", "12", None),
    ],
)
def test_java_is_the_distributions_or_the_one_that_is_named(version, home, debian, says):
    problems = filters.java_problems(version, home, JAVAS, debian, "q1")
    assert len(problems) == (0 if says is None else 1)
    assert says is None or says in problems[0]
