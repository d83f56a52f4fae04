"""The host's program for Bugsink with real Bugsinks: what it makes, keeps, refuses and brings back."""

from __future__ import annotations

import contextlib
import json
import socket
import tarfile
import threading
import urllib.error
import uuid
from pathlib import Path

import pytest

from support.bugsink import EMAIL
from support.bugsink_host import BugsinkHost
from support.small_disk import small_disk


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host where Bugsink runs and has a project; tests leave it running."""
    with BugsinkHost(tmp_path_factory.mktemp("host") / "host") as host:
        host.key = host.release()
        host.first = host.do("apply", "--release", host.key)
        host.made = host.do("project")
        host.do("keep")
        yield host


def apply(host):
    return host.do("apply", "--release", host.key)


def test_a_first_run_makes_everything_and_a_second_one_changes_nothing(host):
    assert host.first == {"did": "started", "release": host.key, "removed": [], "changed": True}
    assert host.made == {
        "changed": True,
        "did": ["user made", "token made", "team", "project", "dsn"],
    }
    assert apply(host) == {"did": "nothing", "release": host.key, "removed": [], "changed": False}
    assert host.do("project") == {"changed": False, "did": []}
    assert host.do("project", "--check") == {"changed": False, "did": []}
    told = host.told_of()
    assert told["url"] == host.url
    assert told["event_url"] == f"{host.url}/issues/event/{{event_uuid}}/"
    assert told["dsn"].endswith(f"@127.0.0.1:{host.port}/1")
    modes = {path: path.stat().st_mode & 0o777 for path in (host.told / "shop.json", host.etc / "token")}
    assert set(modes.values()) == {0o600}
    assert host.told.stat().st_mode & 0o777 == 0o700
    assert (host.etc / "secret_key").stat().st_mode & 0o777 == 0o640


def test_an_event_is_seen_when_it_is_there_and_not_before(host):
    event = host.send()
    seen = host.do("seen", event)
    assert seen["seen"] is True
    assert seen["url"] == host.told_of()["event_url"].replace("{event_uuid}", str(uuid.UUID(event)))
    code, answer, err = host.run("seen", "0" * 32, "--seconds", 0)
    assert (code, answer["seen"]) == (1, False)
    assert "has not arrived" in err
    assert "is no event's id" in host.refuse("seen", "../../etc/passwd")


def test_what_does_not_come_up_is_replaced_by_what_ran_and_no_event_is_lost(host):
    host.do("keep")
    sent = [host.send(f"before {number}") for number in range(3)]
    host.configure("raise RuntimeError('a mistake')")
    why = host.refuse("apply", "--release", host.key)
    assert "a mistake" in why
    assert why.endswith(f"; release {host.key} goes on as it was configured before")
    assert "a mistake" not in (host.etc / "bugsink_conf.py").read_text()
    assert apply(host)["changed"] is False
    assert not host.lost(sent)
    host.configure("TIME_ZONE = 'UTC'")
    assert apply(host)["did"] == "restarted"
    assert apply(host)["did"] == "nothing"
    host.do("keep")


def test_a_port_that_another_program_has_is_named_and_what_ran_goes_on(host):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        host.configure("TIME_ZONE = 'UTC'", port=port)
        why = host.refuse("apply", "--release", host.key)
    assert f"127.0.0.1:{port} is taken by another program" in why
    assert "sentry_bugsink_port" in why
    assert why.endswith("goes on as it was configured before")
    assert host.are_active()
    assert apply(host)["did"] == "nothing"


@pytest.mark.long
def test_a_password_that_changed_is_changed_and_a_lost_token_is_replaced_by_one(host):
    host.write("admin.json", {"email": EMAIL, "password": "another one, of kestrels"})
    assert host.do("project", "--check") == {"changed": True, "did": ["user changed"]}
    assert host.do("project") == {"changed": True, "did": ["user changed"]}
    assert host.do("project")["changed"] is False
    login = f"authenticate(username={EMAIL!r}, password='another one, of kestrels')"
    assert host.inside(f"from django.contrib.auth import authenticate; print({login})") == EMAIL
    lost = (host.etc / "token").read_text().strip()
    (host.etc / "token").unlink()
    assert host.do("project", "--check")["did"] == ["token made"]
    assert host.do("project")["did"] == ["token made"]
    tokens = host.inside(
        "from bsmain.models import AuthToken as T; print(*T.objects.values_list('token', flat=True))"
    )
    assert tokens == (host.etc / "token").read_text().strip() != lost


def test_two_at_once_make_one_of_everything(host):
    about = {"app": "depot", "team": "depot", "project": "depot", "url": host.url, "max_events": 500}
    host.write("project.json", about)
    both = [host.begin("project"), host.begin("project")]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    names = "print(*sorted(M.objects.values_list('name', flat=True)))"
    for model in ("teams.models import Team", "projects.models import Project"):
        assert host.inside(f"from {model} as M; {names}") == "depot shop"
    host.write(
        "project.json", {**about, "app": "shop", "team": "shop", "project": "shop", "max_events": None}
    )


@pytest.mark.long
def test_a_project_gets_what_it_may_keep_and_its_administrator(host):
    about = {"app": "mill", "team": "mill", "project": "mill", "url": host.url, "max_events": 500}
    host.write("project.json", about)
    assert host.do("project")["did"] == ["team", "project", "dsn"]
    host.write("project.json", {**about, "max_events": 600})
    assert host.do("project")["did"] == ["max_events"]
    assert host.do("project")["changed"] is False
    members = (
        "from projects.models import ProjectMembership as M;"
        " print(*M.objects.filter(project__name='mill').values_list('user__username', flat=True))"
    )
    assert host.inside(members) == EMAIL
    host.write("project.json", {**PROJECT, "url": host.url})
    host.do("project")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.long)


PROJECT = {"app": "shop", "team": "shop", "project": "shop", "url": "http://127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        slow("project.json", "{", "project.json cannot be read: run the play again"),
        slow("project.json", {**PROJECT, "app": "../x"}, "an app that cannot be"),
        slow("project.json", {**PROJECT, "team": 7}, "project.json has no team"),
        ("admin.json", None, "admin.json is missing: set sentry_admin_email"),
        slow("admin.json", {"email": EMAIL}, "admin.json has no password: set sentry_admin_email"),
        ("database.json", '{"host": ', "database.json cannot be read: set sentry_bugsink_postgresql"),
        slow("database.json", {"host": "db"}, "database.json has no name: set sentry_bugsink_postgresql"),
        ("secret_key", "short", "secret_key is too short: set sentry_secret_key"),
    ],
)
def test_a_file_that_cannot_be_meant_is_named_with_the_fix_and_what_runs_goes_on(host, name, content, said):
    path = host.etc / name
    before = path.read_text() if path.exists() else None
    host.do("keep")
    try:
        path.unlink(missing_ok=True)
        if content is not None:
            host.write(name, content)
        is_run = name in ("database.json", "secret_key")
        assert said in host.refuse(*(("apply", "--release", host.key) if is_run else ("project",)))
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_text(before)
            path.chmod(0o640 if name == "secret_key" else 0o600)
    assert host.are_active()
    assert apply(host)["did"] == "nothing"


def test_a_backup_made_while_events_come_has_all_that_were_taken_before_and_brings_them_back(host):
    before = [host.send(f"early {number}") for number in range(8)]
    more, stop = [], threading.Event()

    def go_on():
        # No faster than they are digested: what waits for that is waited for below.
        while not stop.wait(0.05):
            more.append(host.send("while it is copied"))

    sender = threading.Thread(target=go_on)
    sender.start()
    try:
        made = host.do("backup", "--keep", 2)
    finally:
        stop.set()
        sender.join()
    path = Path(made["file"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    restored = host.do("restore", path, "--yes")
    assert restored["events"] == made["events"]
    assert restored["project"] == {"changed": False, "did": []}
    # What was there before is not lost either.
    assert Path(restored["before"], "db.sqlite3").exists()
    assert apply(host)["did"] == "nothing"
    assert not host.lost([*before, host.send("afterwards")])


@pytest.mark.long
def test_a_damaged_backup_is_refused_before_anything_is_touched(host, tmp_path):
    made = Path(host.do("backup")["file"])
    data, count = made.read_bytes(), host.count()
    short, bent, other = (tmp_path / name for name in ("short.tar.gz", "bent.tar.gz", "other.tar.gz"))
    short.write_bytes(data[: len(data) // 2])
    middle = len(data) // 2
    bent.write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
    unpacked = tmp_path / "unpacked"
    with tarfile.open(made) as tar:
        tar.extractall(unpacked)
    (unpacked / "db.sqlite3").write_bytes(b"another one")
    with tarfile.open(other, "w:gz") as tar:
        for name in ("about.json", "db.sqlite3", "snappea.sqlite3"):
            tar.add(unpacked / name, name)
    for path in (short, bent, other):
        assert f"{path} is damaged" in host.refuse("restore", path, "--yes")
    assert "is missing" in host.refuse("restore", tmp_path / "none.tar.gz", "--yes")
    with tarfile.open(other, "w:gz") as tar:
        tar.add(unpacked / "db.sqlite3", "../db.sqlite3")
    assert "is no backup of Bugsink" in host.refuse("restore", other, "--yes")
    assert host.are_active()
    assert host.count() == count
    assert not [path for path in host.state.iterdir() if path.name.startswith(".")]


@pytest.mark.long
def test_backups_are_removed_by_age(host, tmp_path):
    folder = tmp_path / "more"
    made = [Path(host.do("backup", "--to", folder, "--keep", 2)["file"]) for _ in range(3)]
    assert sorted(folder.iterdir()) == sorted(made[1:])


def test_a_full_disk_leaves_no_backup_that_is_half(host, tmp_path):
    with small_disk(tmp_path / "small", "1m") as small:
        why = host.refuse("backup", "--to", small / "backups")
        assert f"{small} has 1 MB free, and a backup of Bugsink needs" in why
        # Space that was there when it was asked for, and was taken by another meanwhile.
        host.set(SPARE=-(10**12))
        try:
            with contextlib.suppress(OSError), (small / "rest").open("wb", buffering=0) as rest:
                while True:
                    rest.write(b"x" * 1024)
            assert "No space left" in host.refuse("backup", "--to", small)
            assert sorted(path.name for path in small.iterdir()) == ["rest"]
        finally:
            host.set(SPARE=32 * 1024 * 1024)
    assert host.are_active()


def test_on_a_host_that_has_nothing_there_is_nothing_to_keep_or_to_go_back_to(tmp_path):
    host = BugsinkHost(tmp_path / "host")
    for path in host.etc.iterdir():
        path.unlink()
    host.etc.rmdir()
    assert host.do("keep") == {"kept": False}
    for command in (["backup"], ["restore", "any.tar.gz"], ["seen", "0" * 32]):
        assert host.refuse(*command) == "Bugsink is not set up here: run the play"


@pytest.mark.long
@pytest.mark.parametrize(
    "kill",
    [
        *(("Path.rename", number) for number in (1, 2, 3, 4, 5, 6)),
        ("stop", 1),
        *(("ask", number) for number in (1, 2, 3)),
        *((name, 1) for name in ("exchange", "migrate", "start", "report_again")),
    ],
)
def test_a_restore_that_is_cut_short_anywhere_loses_nothing(host, kill):
    old = host.send("in the backup")
    host.do("seen", old)
    made = host.do("backup")["file"]
    new = host.send("not in the backup")
    host.do("seen", new)
    host.run("restore", made, "--yes", kill=kill)
    apply(host)
    assert host.are_active()
    assert apply(host)["did"] == "nothing"
    assert not host.lost([old, host.send("afterwards")])
    if host.lost([new], seconds=0):
        # It came so far that the backup is what there is: the rest was kept.
        before = max(host.state.glob("before-restore-*"), key=lambda path: path.stat().st_mtime)
        assert (before / "db.sqlite3").exists()
        assert kill[0] in ("start", "report_again")
    else:
        assert kill[0] not in ("start", "report_again")


@pytest.mark.long
def test_what_is_sent_while_bugsink_is_away_is_refused_and_not_half_taken(host):
    host.systemctl("stop", "bugsink.service")
    with pytest.raises(urllib.error.URLError):
        host.send()
    assert apply(host)["did"] == "started"
    host.systemctl("stop", "bugsink-snappea.service")
    waiting = host.send("waits for the second one")
    assert host.lost([waiting], seconds=0) == [waiting]
    assert apply(host)["did"] == "restarted"
    assert not host.lost([waiting])
