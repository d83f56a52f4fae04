"""The lab's logins: made once, their owner's alone; of kestrel-web's only the hash leaves the file."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from kestrel_stack.lab import login


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "PasswordHasher", lambda: PasswordHasher(1, 8, 1))


def test_it_is_made_once_and_readable_for_its_owner_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "state" / "login.json"
    assert login.main(["--file", str(file)]) == 0
    first = capsys.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = json.loads(file.read_text())
    assert PasswordHasher().verify(kept["password_hash"], kept["password"])
    assert json.loads(first) == {
        "name": "operator",
        "role": "operator",
        "password_hash": kept["password_hash"],
    }
    assert kept["password"] not in first
    assert login.main(["--file", str(file)]) == 0
    assert capsys.readouterr().out == first


def test_a_check_makes_none_and_another_one_has_another_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "login.json"
    assert login.main(["--file", str(file), "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "operator"
    assert list(tmp_path.iterdir()) == []
    assert login.ensure(file)["password"] != login.ensure(tmp_path / "other.json")["password"]


def test_hosts_that_ask_at_the_same_time_get_the_same_login(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(login.ensure(tmp_path / "login.json")["password"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_login_to_sentry_is_an_address_and_a_password_and_keeps_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "state" / "sentry-login.json"
    assert login.main(["--file", str(file), "--email", "ada@lab.invalid", "--check"]) == 0
    tried = json.loads(capsys.readouterr().out)
    assert not file.exists()
    assert login.main(["--file", str(file), "--email", "ada@lab.invalid"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first == json.loads(file.read_text())
    assert first["email"] == tried["email"] == "ada@lab.invalid"
    assert first["password"] != tried["password"]
    for more in (["--email", "ben@lab.invalid"], ["--email", "ada@lab.invalid", "--check"]):
        assert login.main(["--file", str(file), *more]) == 0
        assert json.loads(capsys.readouterr().out) == first


def test_one_kind_of_login_is_not_taken_for_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "login.json"
    login.ensure(file)
    assert login.main(["--file", str(file), "--email", "ada@lab.invalid"]) == 1
    assert "holds no login" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "operator"}', "\0"])
def test_a_file_that_is_no_login_is_refused_by_its_path_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "login.json"
    file.write_text(text)
    assert login.main(["--file", str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f"{file}: ")
    assert "remove it for a new" in said.err
    assert file.read_text() == text
