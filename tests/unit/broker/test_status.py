"""The server's status and the file that keeps it."""

import logging
import os

import pytest

from kestrel_stack.broker.status import ServerStatus, Status


def after_restart(file) -> ServerStatus:
    status = ServerStatus(file)
    status.load()
    return status


@pytest.mark.parametrize(
    ("name", "stored", "blocks_writes", "blocks_reads"),
    [
        ("UP", "Up\n", False, False),
        ("readonly", "ReadOnly\n", True, False),
        ("Quiescent", "Quiescent\n", True, True),
    ],
)
def test_a_status_is_stored_as_kestrel_stores_it_and_kept(
    tmp_path, name, stored, blocks_writes, blocks_reads
):
    status = ServerStatus(tmp_path / "status")
    assert status.set(name)
    assert (tmp_path / "status").read_text() == stored
    for each in (status, after_restart(tmp_path / "status")):
        assert each.current.name == name.upper()
        assert (each.blocks_writes, each.blocks_reads) == (blocks_writes, blocks_reads)
    assert [path.name for path in tmp_path.iterdir()] == ["status"]


@pytest.mark.parametrize("name", ["down", "DOWN", "", "x", "read only", "up "])
def test_what_is_no_status_changes_nothing(tmp_path, name):
    status = ServerStatus(tmp_path / "status")
    assert not status.set(name)
    assert (status.current, status.was_set) == (Status.UP, False)
    assert not (tmp_path / "status").exists()


@pytest.mark.parametrize("text", [b"readonly", b"READONLY\r\n", b"ReadOnly\nsomething else\n"])
def test_the_first_line_counts_in_any_case(tmp_path, text):
    (tmp_path / "status").write_bytes(text)
    assert after_restart(tmp_path / "status").current is Status.READONLY


@pytest.mark.parametrize("text", [b"", b"\n", b"Down\n", b" ReadOnly\n", b"\xff\x00" * 1000, b"x" * 100_000])
def test_a_damaged_file_is_logged_and_the_status_is_up(tmp_path, caplog, text):
    (tmp_path / "status").write_bytes(text)
    status = after_restart(tmp_path / "status")
    assert (status.current, status.was_set) == (Status.UP, False)
    [record] = caplog.records
    assert f"{tmp_path}/status: no status in it" in record.getMessage()
    assert len(record.getMessage()) < 500
    assert status.set("readonly")
    assert after_restart(tmp_path / "status").current is Status.READONLY


def test_a_file_that_cannot_be_read_is_logged_and_the_status_is_up(tmp_path, caplog):
    (tmp_path / "status").mkdir()
    assert after_restart(tmp_path / "status").current is Status.UP
    assert "cannot read the status: Is a directory" in caplog.text


def test_without_a_file_nothing_is_kept_and_a_missing_one_is_nothing_to_talk_about(tmp_path, caplog):
    status = ServerStatus(None)
    status.load()
    assert status.set("readonly")
    assert after_restart(tmp_path / "new" / "status").current is Status.UP
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_folder_is_made_as_kestrel_does(tmp_path):
    status = after_restart(tmp_path / "a" / "b" / "status")
    assert status.set("quiescent")
    assert (tmp_path / "a" / "b" / "status").read_text() == "Quiescent\n"


def test_a_status_that_cannot_be_stored_holds_until_the_restart_and_the_log_says_so(tmp_path, caplog):
    status = ServerStatus(tmp_path / "missing" / "status")
    assert status.set("readonly")
    assert status.blocks_writes
    assert "cannot store the status: No such file or directory; it is READONLY until the next" in caplog.text


def test_a_file_is_never_half_written(tmp_path, monkeypatch, caplog):
    status = ServerStatus(tmp_path / "status")
    status.set("quiescent")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status.set("readonly")
    assert (tmp_path / "status").read_text() == "Quiescent\n"
    assert "No space left on device" in caplog.text
