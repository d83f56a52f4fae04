"""Stubs and launcher: made once, from the right entries of ct.sym; a Java that cannot work is refused.

The JDKs here are shell scripts and a small ct.sym; molecule kestrel-release runs real ones.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile

import pytest

from support import host_programs

PROGRAM = host_programs.LIBRARY / "kestrel-release-java"
program = host_programs.load(PROGRAM)
NEEDED = [name.removesuffix(".class") for name in program.NEEDED]


def class_file(major=61, constants=(b"\x01\x00\x01x", b"\x05" + b"\0" * 8, b"\x07\x00\x01")):
    """Return the head of a class file; the long takes two slots."""
    slots = 1 + sum(2 if constant[0] in (5, 6) else 1 for constant in constants)
    return b"\xca\xfe\xba\xbe" + struct.pack(">HHH", 0, major, slots) + b"".join(constants) + b"rest"


def ct_sym(home, entries=None, releases="789", module="java.base/"):
    entries = (
        {f"{releases}/{module}{name}.sig": class_file() for name in NEEDED} if entries is None else entries
    )
    with zipfile.ZipFile(home / "lib/ct.sym", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return home


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "KestrelLauncher.java"
    path.write_text("final class KestrelLauncher {}\n")
    return path


@pytest.fixture
def prepare(tmp_path, source):
    def run(home, *more):
        return host_programs.run(
            PROGRAM, "prepare", home, "--root", tmp_path / "java", "--source", source, *more
        )

    return run


def stubs_of(done):
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(json.loads(done.stdout)["stubs"]) as stubs:
        return {name: stubs.read(name) for name in stubs.namelist()}


@pytest.mark.parametrize(
    ("entry", "digit", "name"),
    [
        ("789A/java.base/java/lang/Object.sig", "7", "java/lang/Object.class"),
        ("87/jdk.sctp/com/sun/nio/sctp/Association.sig", "7", "com/sun/nio/sctp/Association.class"),
        ("7/java/lang/Object.sig", "7", "java/lang/Object.class"),
        ("89A/java.base/java/lang/Object.sig", "7", None),
        ("89A/java.base/java/lang/Object.sig", "8", "java/lang/Object.class"),
        ("9A/java.base/java/lang/Object.sig", "8", None),
        ("879/java.base/module-info.sig", "7", None),
        ("78-modules/java.base/module-info.sig", "7", None),
        ("7/java.base/META-INF/MANIFEST.MF", "7", None),
        ("7/Unnamed.sig", "7", "Unnamed.class"),
    ],
)
def test_an_entry_of_ct_sym_is_taken_when_it_is_of_that_java(entry, digit, name):
    assert program.stub_name(entry, digit) == name


def test_a_class_file_is_given_the_version_of_its_java_and_nothing_else_changes():
    before = class_file(major=69)
    assert program.as_old(before, 51) == before[:4] + b"\0\0\0\x33" + before[8:]


@pytest.mark.parametrize(
    "content",
    [
        b"not a class file",
        class_file(constants=(b"\x12\0\0\0\0",)),
        class_file(constants=(b"\x13\0\0",)),
        class_file()[:12],
    ],
    ids=["text", "tag-18", "tag-19", "cut"],
)
def test_what_the_old_compiler_cannot_read_is_refused(content):
    with pytest.raises(ValueError, match=r"kind|class file"):
        program.as_old(content, 51)


@pytest.mark.parametrize(("version", "releases", "major"), [("17.0.1", "78", 51), ("21.0.1", "89", 52)])
def test_the_stubs_are_java_7s_api_or_java_8s_where_that_is_gone(tmp_path, prepare, version, releases, major):
    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk", version), releases=releases)
    stubs = stubs_of(prepare(home))
    assert sorted(stubs) == sorted(program.NEEDED)
    assert {int.from_bytes(content[6:8], "big") for content in stubs.values()} == {major}


def test_the_same_java_is_prepared_once(tmp_path, prepare):
    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk"))
    first, second = (json.loads(prepare(home).stdout) for _ in range(2))
    assert (first.pop("changed"), second.pop("changed")) == (True, False)
    assert first == second


@pytest.mark.parametrize("change", ["java", "launcher", "damage"])
def test_another_java_another_launcher_or_a_damaged_file_make_it_again(tmp_path, prepare, source, change):
    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk"))
    first = json.loads(prepare(home).stdout)
    if change == "java":
        home = ct_sym(host_programs.fake_jdk(tmp_path / "other", "17.0.16"))
    elif change == "launcher":
        source.write_text("final class KestrelLauncher { int more; }\n")
    else:
        (
            tmp_path
            / "java"
            / os.path.relpath(first["launcher"], tmp_path / "java")
            / "KestrelLauncher.class"
        ).unlink()
    second = json.loads(prepare(home).stdout)
    assert second["changed"] is True
    assert (second["stubs"] == first["stubs"]) == (change == "damage")
    assert json.loads(prepare(home).stdout)["changed"] is False


def test_a_jre_works_with_what_its_jdk_has_made_and_not_without(tmp_path, prepare):
    def inspect(home):
        return host_programs.run(PROGRAM, "inspect", home, "--root", tmp_path / "java")

    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk"))
    (home / "bin/javac").rename(tmp_path / "javac")
    for done in (prepare(home), inspect(home)):
        assert done.returncode == 1
        assert "is a JRE: it lacks bin/javac or lib/ct.sym" in done.stderr
    (tmp_path / "javac").rename(home / "bin/javac")
    assert prepare(home).returncode == 0
    (home / "bin/javac").unlink()
    (home / "lib/ct.sym").unlink()
    assert json.loads(prepare(home).stdout)["changed"] is False
    assert inspect(home).returncode == 0


def test_a_check_makes_nothing(tmp_path, prepare):
    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk"))
    found = json.loads(prepare(home, "--check").stdout)
    assert found["changed"] is True
    assert not (tmp_path / "java").exists()
    assert found == json.loads(prepare(home).stdout)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "has no java/lang/Object.class of Java 7"),
        ({f"7/java.base/{name}.sig": b"text text text" for name in NEEDED}, "cannot read java/"),
        (None, "cannot be read"),
    ],
    ids=["other-release", "no-classes", "no-zip"],
)
def test_a_ct_sym_that_does_not_serve_leaves_nothing_behind(tmp_path, prepare, entries, says):
    home = host_programs.fake_jdk(tmp_path / "jdk")
    if entries is None:
        (home / "lib/ct.sym").write_text("no zip")
    else:
        ct_sym(home, entries)
    done = prepare(home)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "java").iterdir()) == []


def test_only_the_last_javas_are_kept(tmp_path, prepare):
    for number in range(5):
        home = ct_sym(host_programs.fake_jdk(tmp_path / f"jdk{number}", f"17.0.{number}"))
        folder = json.loads(prepare(home).stdout)["launcher"].rsplit("/", 1)[0]
        os.utime(folder, (number, number))
    assert len(list((tmp_path / "java").iterdir())) == program.KEEP
    assert os.path.isdir(folder)  # noqa: PTH112


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda at: at, "has no bin/java"),
        (
            lambda at: host_programs.fake_jdk(at, "1.8.0_452"),
            "is Java 1.8.0_452+1: Kestrel runs here on 11 and later",
        ),
        (lambda at: host_programs.fake_jdk(at, "10.0.2"), "Kestrel runs here on 11 and later"),
        (lambda at: (host_programs.fake_jdk(at) / "bin/java").chmod(0o644) or at, "is not executable"),
        (
            lambda at: (host_programs.fake_jdk(at) / "bin/java").write_text("#!/bin/sh\nexit 3") and at,
            "does not run",
        ),
        (lambda at: at.relative_to("/"), "is not an absolute path"),
    ],
    ids=["nothing", "8", "10", "not-executable", "broken", "relative"],
)
def test_a_java_that_cannot_work_is_refused_with_the_reason(tmp_path, make, says):
    done = host_programs.run(PROGRAM, "inspect", make(tmp_path / "jdk"))
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_java_is_described(tmp_path):
    home = ct_sym(host_programs.fake_jdk(tmp_path / "jdk", "25.0.1"))
    assert json.loads(host_programs.run(PROGRAM, "inspect", home).stdout) == {
        "java_home": str(home),
        "feature": 25,
        "version": "25.0.1+1",
        "vendor": "Test",
        "jdk": True,
    }
