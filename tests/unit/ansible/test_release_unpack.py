"""An archive is verified, unpacked beside its place and checked there; a wrong one changes nothing."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile

import pytest

from support import host_programs, kestrel_standin

PROGRAM = host_programs.LIBRARY / "kestrel-release-unpack"
GOOD = kestrel_standin.build(b"\xca\xfe\xba\xbe not compiled")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "releases").mkdir()
    return tmp_path / "releases"


@pytest.fixture
def unpack(tmp_path, root):
    def run(content, *more, release="2.4.1", sha256=None):
        archive = tmp_path / "kestrel.zip"
        archive.write_bytes(content)
        wanted = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
        pins = ["--sha256", wanted] if wanted else []
        return host_programs.run(PROGRAM, archive, release, "--root", root, *pins, *more)

    return run


def state(root):
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*")}


def changed(change):
    """Return the good archive with its entries changed by `change(entries)`."""
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in change(entries):
            archive.writestr(entry, content)
    return buffer.getvalue()


def with_spoilt_data():
    """Return an archive whose directory is whole, and whose first deflated bytes mean nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kestrel-2.4.1/NOTES", b"text " * 1000)
    content = bytearray(buffer.getvalue())
    start = content.index(b"NOTES") + len(b"NOTES")
    content[start : start + 10] = b"\xff" * 10
    return bytes(content)


def with_entry(name, content=b"x", mode=stat.S_IFREG | 0o644):
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return changed(lambda entries: [*entries, (entry, content)])


def test_a_release_is_unpacked_whole_and_nobody_else_may_write_it(unpack, root):
    assert unpack(GOOD).returncode == 0
    assert sorted(path.name for path in root.iterdir()) == ["2.4.1"]
    assert sorted(path.name for path in (root / "2.4.1").iterdir()) == [
        ".archive.json",
        "config",
        "kestrel_2.9.2-2.4.1.jar",
        "libs",
        "scripts",
    ]
    for path in [root / "2.4.1", *root.rglob("2.4.1/**/*")]:
        assert path.stat().st_mode & 0o022 == 0, path


def test_another_archive_of_the_same_release_takes_its_place(unpack, root):
    unpack(GOOD)
    other = kestrel_standin.build(b"\xca\xfe\xba\xbe another")
    assert unpack(other).returncode == 0
    assert hashlib.sha256(other).hexdigest() in (root / "2.4.1/.archive.json").read_text()
    assert [path.name for path in root.iterdir()] == ["2.4.1"]


def test_what_an_interrupted_run_left_is_cleared_or_put_back(unpack, root):
    (root / ".new-2.4.1-abc").mkdir()
    (root / ".old-2.4.1-abc").mkdir()
    (root / ".old-2.4.1-abc/the-former-one").write_text("")
    done = unpack(with_entry("kestrel-2.4.1/../../x"))
    assert done.returncode == 1
    # The former one is where it was.
    assert state(root).keys() == {"2.4.1", "2.4.1/the-former-one"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (with_entry("kestrel-2.4.1/../../escape"), "leads out of it"),
        (with_entry("/etc/escape"), "leads out of it"),
        (with_entry("kestrel-2.4.1/a\\..\\b"), "leads out of it"),
        (with_entry("kestrel-2.4.1/link", b"/etc/passwd", stat.S_IFLNK | 0o777), "a link or a special file"),
        (with_entry("other/file"), "is not laid out as release 2.4.1"),
        (kestrel_standin.build(b"", release="2.3.4"), "is not laid out as release 2.4.1"),
        (
            changed(lambda entries: [e for e in entries if ".jar" not in e[0].filename]),
            "no kestrel_SCALA-2.4.1.jar",
        ),
        (
            changed(lambda entries: [e for e in entries if "/libs/s" not in e[0].filename]),
            "needs libs/standin.pyz",
        ),
        (b"PK\x03\x04 this is no zip", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (with_spoilt_data(), "cannot be unpacked"),
    ],
    ids=[
        *("up", "absolute", "backslash", "link", "strange", "older"),
        *("no-jar", "no-libs", "no-zip", "empty", "spoilt"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["fresh", "installed"])
def test_a_wrong_archive_leaves_everything_as_it_was(unpack, root, tmp_path, content, says, before):
    if before:
        unpack(GOOD)
    found = state(tmp_path) if before else {"releases": root.stat().st_size}
    found.pop("kestrel.zip", None)
    done = unpack(content)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    after = state(tmp_path)
    after.pop("kestrel.zip")
    assert after == found


@pytest.mark.parametrize("pin", [("--sha256", "0" * 64), ("--blob", "0" * 40)])
def test_a_wrong_pin_is_found_before_a_byte_is_unpacked(unpack, root, pin):
    done = unpack(GOOD, *pin, sha256="")
    assert done.returncode == 1
    assert f"not {pin[1]}: it is not unpacked" in done.stderr
    assert state(root) == {}


def test_a_second_pin_is_not_enough_when_the_first_is_wrong(unpack, root):
    done = unpack(GOOD, "--blob", "0" * 40)
    assert done.returncode == 1
    assert "git blob id" in done.stderr
    assert state(root) == {}


def test_nothing_is_unpacked_without_a_pin(unpack, root):
    done = unpack(GOOD, sha256="")
    assert done.returncode == 1
    assert "nothing is unpacked that is not pinned" in done.stderr
    assert state(root) == {}


def test_a_release_is_no_path(unpack, root):
    done = unpack(GOOD, release="../2.4.1")
    assert done.returncode == 2
    assert state(root) == {}


def test_no_room_is_one_line(tmp_path, unpack):
    done = unpack(GOOD, "--root", tmp_path / "missing")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
