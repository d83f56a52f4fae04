"""A lock as one file for a kind of host: the same bytes for the same inputs, each wheel by its hash."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from kestrel_stack.deploy.build import Wheels, wheelhouse
from kestrel_stack.deploy.build.lock import Lock, read_lock
from kestrel_stack.deploy.errors import Refused

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    files = (tmp_path / "one-1-py3-none-any.whl", tmp_path / "own-2-py3-none-any.whl")
    for number, path in enumerate(files):
        path.write_bytes(b"wheel" * (number + 1))
    return Wheels("one==1 --hash=sha256:aa\n", files, "py311-x86_64-0123456789ab")


def test_it_holds_the_requirements_and_the_wheels_and_nothing_of_this_moment(wheels: Wheels) -> None:
    packed = wheelhouse.pack(wheels)
    for path in wheels.files:
        path.touch()
    assert wheelhouse.pack(wheels) == packed
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == [
            "requirements.txt",
            "wheels/one-1-py3-none-any.whl",
            "wheels/own-2-py3-none-any.whl",
        ]
        assert tar.extractfile("requirements.txt").read().decode() == wheels.requirements
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}


def test_the_file_is_named_by_what_is_in_it_and_made_whole_again_where_it_is_damaged(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheelhouse, "build_wheels", lambda *_: wheels)
    monkeypatch.setattr(wheelhouse, "build_checkout_wheel", lambda **_: wheels.files[-1])
    target = wheelhouse.Target("3.11", "x86_64", "2.36")
    made = wheelhouse.build(target, cache=tmp_path / "cache")
    path = Path(made["path"])
    assert path.name == f"{wheels.key}.tar"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made["sha256"]
    path.write_bytes(b"half")
    assert wheelhouse.build(target, cache=tmp_path / "cache") == made
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made["sha256"]
    monkeypatch.setattr(wheelhouse, "build", lambda *_, **__: made)
    assert wheelhouse.main(["--python=3.11", "--arch=x86_64", "--glibc=2.36"]) == 0
    assert json.loads(capsys.readouterr().out) == made


def test_a_package_without_a_wheel_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Refused("requirements/web.txt: no wheel of x==1 for Python 3.13")

    monkeypatch.setattr(wheelhouse, "build", refuse)
    assert wheelhouse.main(["--python=3.13", "--arch=aarch64", "--glibc=2.41"]) == 1
    assert capsys.readouterr().err == "requirements/web.txt: no wheel of x==1 for Python 3.13\n"


def test_what_is_not_ours_is_packed_without_the_stack_from_any_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "other.txt"
    lock.write_text("one==1 --hash=sha256:aa\n")
    wheel = tmp_path / "one-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")

    def build_wheels(packages: Lock, _: object, own: Path | None, where: str, cache: Path) -> Wheels:
        assert own is None
        assert where == str(lock)
        assert [package.requirement.name for package in packages.packages] == ["one"]
        return Wheels("one==1 --hash=sha256:aa\n", (wheel,), "py311-x86_64-0123456789ab")

    def never(**_: object) -> None:
        raise AssertionError("the stack's wheel is not wanted")

    monkeypatch.setattr(wheelhouse, "build_wheels", build_wheels)
    monkeypatch.setattr(wheelhouse, "build_checkout_wheel", never)
    made = wheelhouse.build(
        wheelhouse.Target("3.11", "x86_64", "2.36"), str(lock), with_stack=False, cache=tmp_path / "cache"
    )
    assert Path(made["path"]) == tmp_path / "cache/wheelhouse/py311-x86_64-0123456789ab.tar"
    missing = str(tmp_path / "missing.txt")
    flags = ["--python=3.11", "--arch=x86_64", "--glibc=2.36", "--without-stack", f"--lock={missing}"]
    assert wheelhouse.main(flags) == 1
    assert capsys.readouterr().err == f"{missing}: No such file or directory\n"


BUGSINK = {"bugsink", "gunicorn", "django", "symbolic", "psycopg", "psycopg-binary"}
WEB = {"flask", "waitress", "argon2-cffi", "flask-wtf", "prometheus-client", "jinja2"}


@pytest.mark.parametrize(("file", "wanted"), [("web.txt", WEB), ("bugsink.txt", BUGSINK)])
@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_lock_has_everything_for_every_kind_of_host_by_hash(
    python: str, arch: str, file: str, wanted: set[str]
) -> None:
    text = (ROOT / "requirements" / file).read_text()
    lines = read_lock(text, file).for_target(wheelhouse.Target(python, arch, "2.36")).splitlines()
    assert wanted <= {line.split("==")[0].partition("[")[0] for line in lines}
    assert all("--hash=sha256:" in line for line in lines)
    assert "://" not in text
