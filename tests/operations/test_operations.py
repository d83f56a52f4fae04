"""docs/operations.md is followed word by word, on hosts in containers, while jobs come and go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from operations import runbook
from operations.follow import follow, tell
from operations.stage import Stage

pytestmark = [pytest.mark.docker, pytest.mark.long]


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    """The hosts; a chapter leaves them to the next as the document does."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.fail("no Docker engine answers; run bin/test, or leave these out with -m 'not docker'")
    # The folder's name is in the containers' names; pytest's own counts from 0 in every run.
    made = Stage(tmp_path_factory.mktemp(f"operations{os.getpid()}-", numbered=False))
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("name", [chapter.name for chapter in runbook.document()])
def test_chapter(stage: Stage, name: str):
    chapter = next(chapter for chapter in runbook.document() if chapter.name == name)
    tell(follow(stage, chapter, tell))
