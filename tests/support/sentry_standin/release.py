#!/usr/bin/env python3
"""Make a stand-in for getsentry/self-hosted's repository: release.py FOLDER; prints each version's commit.

Its files have the real ones' names and, of their content, what kestrel-stack-sentry looks at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSIONS = ("24.8.0", "25.5.1", "26.7.0", "26.8.0", "26.9.0")
CONF = """from sentry.conf.server import *  # NOQA

# As of {version}.
DATABASES = {{"default": {{"HOST": "postgres"}}}}
"""
CONFIG = """mail.host: 'smtp'
system.internal-url-prefix: 'http://web:9000'
system.secret-key: '!!changeme!!'
filestore.backend: 'filesystem'
"""
IGNORED = """.env.custom
docker-compose.override.yml
sentry/sentry.conf.py
sentry/config.yml
sentry/backup.json
sentry_install_log*.txt
"""


def make(folder: Path) -> dict[str, str]:
    """Make the repository; return each version's commit."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    }

    def git(*arguments: str) -> str:
        told = ("-c", "user.name=stand-in", "-c", "user.email=stand-in@example.com")
        done = subprocess.run(
            ["git", *told, *arguments],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    (folder / "sentry").mkdir(parents=True)
    (folder / "scripts").mkdir()
    git("init", "--quiet", "--initial-branch=master")
    for name, target in {"install.sh": "", "backup.sh": "scripts/", "restore.sh": "scripts/"}.items():
        shutil.copy(HERE / name, folder / target / name)
        (folder / target / name).chmod(0o755)
    (folder / ".gitignore").write_text(IGNORED)
    (folder / "docker-compose.yml").write_text("services: {}\n")
    commits = {}
    for version in VERSIONS:
        (folder / ".env").write_text(f"SENTRY_IMAGE=stand-in:{version}\n")
        (folder / "sentry/sentry.conf.example.py").write_text(CONF.format(version=version))
        new = "brand.new-setting: 1\n" if version == "26.9.0" else ""
        (folder / "sentry/config.example.yml").write_text(CONFIG + new)
        git("add", "--all")
        git("commit", "--quiet", "--message", version)
        git("tag", version)
        commits[version] = git("rev-parse", "HEAD")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    return commits


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make(Path(sys.argv[1]))) + "\n")
