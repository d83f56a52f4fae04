"""The host's program for Bugsink with a real PostgreSQL: backup and restore are whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bugsink_host import BugsinkHost
from support.older_bugsink import older_lock
from support.postgresql import Postgresql

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def database():
    with Postgresql() as database:
        yield database


@pytest.fixture
def host(database, tmp_path):
    database.psql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with BugsinkHost(tmp_path / "host") as host:
        host.write("database.json", database.given)
        yield host


def test_an_upgrade_a_backup_and_a_restore_keep_every_event(host, database):
    old, new = host.release(str(older_lock())), host.release()
    host.do("apply", "--release", old)
    host.do("project")
    sent = [host.send(f"event {number}") for number in range(4)]
    assert not host.lost(sent)
    host.do("keep")
    done = host.do("apply", "--release", new)
    assert done["events"] == len(sent)
    assert not (host.state / "db.sqlite3").exists()
    host.do("keep")
    later = host.send("after the backup")
    assert not host.lost([later])
    # The tables are those of before, and the newer ones are gone until they are migrated again.
    restored = host.do("restore", done["backup"], "--yes")
    assert restored["events"] == len(sent)
    assert host.lost([later], seconds=0) == [later]
    assert Path(restored["before"], "postgresql/db.dump").exists()
    assert not host.lost([*sent, host.send("afterwards")])
    made = host.do("backup")
    assert made["events"] == len(sent) + 1
    assert host.do("apply", "--release", new)["did"] == "nothing"


@pytest.mark.parametrize("kill", [("ask", number) for number in (3, 4, 5)] + [("migrate", 1), ("start", 1)])
def test_a_restore_that_is_cut_short_leaves_what_was_or_what_was_asked_for(host, kill):
    key = host.release()
    host.do("apply", "--release", key)
    host.do("project")
    old = host.send("in the backup")
    assert not host.lost([old])
    made = host.do("backup")["file"]
    new = host.send("not in the backup")
    assert not host.lost([new])
    host.run("restore", made, "--yes", kill=kill)
    host.do("apply", "--release", key)
    assert host.are_active()
    assert not host.lost([old, host.send("afterwards")])
    assert host.lost([new], seconds=0) == ([new] if kill[0] == "start" else [])


def test_a_release_whose_start_fails_gives_the_tables_back(host):
    old, new = host.release(str(older_lock())), host.release()
    host.configure(
        "import sys, bugsink.version\n"
        "is_web = sys.argv[0].endswith('gunicorn')\n"
        "assert not is_web or bugsink.version.__version__ < '2.6', 'not this one'"
    )
    host.do("apply", "--release", old)
    host.do("project")
    sent = [host.send("before")]
    assert not host.lost(sent)
    host.do("keep")
    assert host.refuse("apply", "--release", new).endswith("goes on as it was configured before")
    assert not host.lost([*sent, host.send("afterwards")])


def test_a_database_that_does_not_answer_is_one_line_without_its_password(host, database):
    host.do("apply", "--release", host.release())
    host.write("database.json", {**database.given, "password": "a secret that is wrong"})
    why = host.refuse("backup")
    assert "password authentication failed" in why
    assert "a secret" not in why
