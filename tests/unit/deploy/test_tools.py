"""The one file with the programs of an application's hosts: the same bytes each time, and it runs alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from kestrel_stack.deploy import tools


def made(folder, capsys):
    assert tools.main(["--output", str(folder)]) == 0
    return capsys.readouterr().out.strip()


def test_the_same_sources_give_the_same_bytes_under_a_name_of_their_own(tmp_path, capsys):
    first, second = made(tmp_path / "a", capsys), made(tmp_path / "b", capsys)
    assert first.rpartition("/")[2] == second.rpartition("/")[2]
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_it_has_queue_and_consumer_and_nothing_of_the_controllers(tmp_path, capsys):
    names = zipfile.ZipFile(made(tmp_path, capsys)).namelist()
    tops = {"/".join(name.split("/")[:2]) for name in names}
    assert tops == {
        "__main__.py",
        "kestrel_stack/__init__.py",
        "kestrel_stack/queue",
        "kestrel_stack/consumer",
    }
    assert "kestrel_stack/queue/schemas/envelope-v1.json" in names
    assert not [name for name in names if "__pycache__" in name]


def test_each_program_in_it_runs_with_nothing_else_of_ours(tmp_path, capsys):
    bundle = made(tmp_path, capsys)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Without site-packages, where this checkout may be installed.
    python = [sys.executable, "-S", "-P"]
    for command in (
        [*python, bundle, "--help"],
        [*python, "-m", "kestrel_stack.consumer.mover", "--help"],
        [*python, "-m", "kestrel_stack.consumer.alarm", "--help"],
    ):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": bundle},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "usage: " in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tools.main(["--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith(f"tools: cannot write to {tmp_path / 'file'}: ")
