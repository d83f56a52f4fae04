"""Labs of upgrades: one at a time, at most three hosts each."""

from __future__ import annotations

import os
import sys

import pytest

from support.upgrade_lab import UpgradeLab


def pytest_collection_modifyitems(items):
    """Everything here needs containers and minutes."""
    for item in items:
        item.add_marker(pytest.mark.docker)
        item.add_marker(pytest.mark.long)


@pytest.fixture
def lab(tmp_path_factory, request):
    """A lab that is removed at the end, unless KESTREL_STACK_KEEP is set."""

    def say(line: str) -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"  {request.node.name}: {line}", file=sys.stderr, flush=True)  # noqa: T201

    made = UpgradeLab(tmp_path_factory.mktemp("upgrade"), say)
    try:
        yield made
    finally:
        if not os.environ.get("KESTREL_STACK_KEEP") and (made.inventory / "hosts.yml").exists():
            made.remove()
