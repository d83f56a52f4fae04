"""A real PostgreSQL on loopback for tests, of the programs that are on the machine."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.ports import reserve


def program(name: str) -> str:
    """Return a program's path; Debian keeps the server's off PATH."""
    found = shutil.which(name) or max(
        map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None
    )
    if not found:
        pytest.skip(f"there is no {name} on this machine: Debian's package postgresql has it")
    return found


class Postgresql:
    """A context manager: a server on a free port, whose user and database are `given`."""

    def __init__(self) -> None:
        self.programs = {
            name: program(name) for name in ("initdb", "pg_ctl", "psql", "pg_dump", "pg_restore")
        }
        # The server refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            try:
                pwd.getpwnam(self.user)
            except KeyError:
                pytest.skip("there is no user postgres on this machine, and PostgreSQL does not run as root")
        self.given = {
            "host": "127.0.0.1",
            "port": reserve(),
            "name": "bugsink",
            "user": "bugsink",
            "password": "only for tests",
        }

    def __enter__(self) -> Postgresql:
        self.folder = Path(tempfile.mkdtemp())
        if self.user:
            shutil.chown(self.folder, self.user)
        (self.folder / "password").write_text(self.given["password"])
        (self.folder / "password").chmod(0o644)
        data = self.folder / "data"
        self._run(
            *("initdb", f"--pgdata={data}", "--username=bugsink", "--auth=scram-sha-256", "--no-sync"),
            f"--pwfile={self.folder}/password",
        )
        options = f"-p {self.given['port']} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            *(
                "pg_ctl",
                f"--pgdata={data}",
                "--wait",
                f"--log={self.folder}/log",
                f"--options={options}",
                "start",
            )
        )
        self.psql("CREATE DATABASE bugsink", database="postgres")
        return self

    def __exit__(self, *exc: object) -> None:
        self._run("pg_ctl", f"--pgdata={self.folder}/data", "--wait", "--mode=immediate", "stop")
        shutil.rmtree(self.folder)

    def psql(self, query: str, database: str = "bugsink") -> str:
        """Run a query and return what it prints."""
        where = f"host=127.0.0.1 port={self.given['port']} user=bugsink dbname={database}"
        return self._run(
            "psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command={query}", where
        ).strip()

    def _run(self, name: str, *arguments: str) -> str:
        # What a server inherits must not be a pipe that is read to its end.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [self.programs[name], *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=60,
                cwd="/",
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGPASSWORD": self.given["password"]},
                **({"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}),
            )
            said.seek(0)
            text = said.read()
        assert done.returncode == 0, text
        return text
