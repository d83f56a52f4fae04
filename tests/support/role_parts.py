"""Playbooks and parts of roles, run again on hosts that stand, with other variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def ansible(
    playbook: Path, inventory: str | Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a playbook as a user runs it, with the settings of ansible.cfg, and return how it ended."""
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", f"--inventory={inventory}", *arguments, playbook],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(CHECKOUT / "ansible/roles"),
            "ANSIBLE_FILTER_PLUGINS": str(CHECKOUT / "ansible/roles/common/filter_plugins"),
            # molecule forces colours, which wins over NOCOLOR.
            "ANSIBLE_FORCE_COLOR": "0",
            **environment,
        },
    )


def run(folder: Path, play: list[dict[str, Any]], inventory: str | Path, variables: dict[str, Any]) -> str:
    """Run the play, which is written into `folder`; return what it printed. AssertionError if it fails."""
    (folder / "play.yml").write_text(json.dumps(play))
    done = ansible(folder / "play.yml", inventory, "--extra-vars", json.dumps(variables))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
