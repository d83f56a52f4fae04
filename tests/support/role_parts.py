"""Running parts of a role again on hosts that stand, with other variables, as testinfra's tests do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def run(folder: Path, play: list[dict[str, Any]], inventory: str | Path, variables: dict[str, Any]) -> str:
    """Run the play, which is written into `folder`; return what it printed. AssertionError if it fails."""
    (folder / "play.yml").write_text(json.dumps(play))
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            *("-i", inventory, "-e", json.dumps(variables), folder / "play.yml"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env={
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(CHECKOUT / "ansible/roles"),
            "ANSIBLE_FILTER_PLUGINS": str(CHECKOUT / "ansible/roles/common/filter_plugins"),
            # molecule forces colours, which wins over NOCOLOR.
            "ANSIBLE_FORCE_COLOR": "0",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
