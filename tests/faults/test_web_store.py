"""kestrel-web's file is locked, its disk full, its clock set, its process killed: pages and polls go on."""

import hashlib
import json
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from kestrel_stack.web.record.store import FILE, Store
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, clean_environment, servers
from support.small_disk import small_disk

LIBFAKETIME = [
    *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
    *Path("/usr/lib/faketime").glob("libfaketime.so.1"),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as process:
        with process.connect() as client:
            for number in range(3):
                client.set("jobs", b"item %d" % number)
        yield process


HURRY = {"record.store.RETRY_S": 0.2, "record.database.WRITE_BUSY_S": 0.2}
TOKEN = "a token of the tests"
TOKENS = [{"name": "tests", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest(), "role": "operator"}]


@pytest.fixture
def web(broker, tmp_path):
    with KestrelWeb(tmp_path / "web", tokens=TOKENS, hurry=HURRY, **servers(broker)) as process:
        yield process
        assert "Traceback" not in process.log


def health(web):
    return json.loads(web.get("/healthz").data)


def answers(web):
    """Every page that reads the file, and what the servers say now."""
    for path in ("/", "/queues/jobs", "/audit"):
        assert web.get(path).status == 200, path
    before = health(web)["at"]
    wait_until(lambda: health(web)["at"] > before, "polls to go on")
    assert health(web)["servers"]["reachable"] == 1


def act(web):
    """Ask for something that must stand in the audit log before it is done."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return web.request("POST", "/api/v1/queues/jobs/flush_expired", b"{}", headers)


def latest(web):
    return json.loads(web.get("/api/v1/queues/jobs/history").data)["samples"][-1]["items"]


def file_of(web):
    return web.state / FILE


def trouble(web, text):
    assert act(web).status == 503
    wait_until(lambda: text in (health(web)["database"] or ""), f"{text!r} in /healthz")
    assert text in web.get("/").data.decode()


def over(web):
    wait_until(lambda: health(web)["database"] is None, "the trouble to end")
    assert b'id="trouble"' not in web.get("/").data
    assert act(web).status == 200


def test_a_file_that_another_program_locks_stops_nothing(web):
    answers(web)
    with closing(sqlite3.connect(file_of(web), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        trouble(web, "another program has locked")
        answers(web)
        other.execute("ROLLBACK")
    over(web)
    assert "another program has locked" in web.log


def test_a_file_that_is_locked_at_the_start_is_no_reason_not_to_start(web, tmp_path):
    web.terminate()
    with closing(sqlite3.connect(file_of(web), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        web.start()
        trouble(web, "another program has locked")
        assert web.get("/queues").status == 200
        other.execute("ROLLBACK")
    over(web)
    answers(web)


def test_files_that_may_not_grow_stop_nothing(web):
    """As on a full disk, without root: every write that would make a file longer fails."""
    unlimited = resource.prlimit(web.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(web.process.pid, resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        trouble(web, "History and audit cannot be")
        for path in ("/", "/queues", "/queues/jobs", "/audit"):
            assert web.get(path).status == 200, path
        # It is not called over before it is.
        until = health(web)["at"] + 5 * HURRY["record.store.RETRY_S"]
        wait_until(lambda: health(web)["at"] > until or health(web)["database"] is None, "some tries")
        assert health(web)["database"] is not None
    finally:
        resource.prlimit(web.process.pid, resource.RLIMIT_FSIZE, unlimited)
    over(web)
    answers(web)


@pytest.fixture(name="small_disk")
def a_small_disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_told_and_everything_goes_on_when_there_is_room(broker, small_disk, tmp_path):
    ballast = small_disk / "ballast"
    with KestrelWeb(
        tmp_path / "web", state=str(small_disk / "state"), tokens=TOKENS, hurry=HURRY, **servers(broker)
    ) as web:
        wait_until(lambda: file_of(web).exists(), "the file")
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while file.write(b"x" * 4096):
                pass
        trouble(web, "the disk of the state folder is full")
        for path in ("/", "/queues", "/queues/jobs", "/audit"):
            assert web.get(path).status == 200, path
        ballast.unlink()
        over(web)
        answers(web)
        assert web.terminate() == 0
    with closing(sqlite3.connect(small_disk / "state" / FILE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_damaged_file_is_moved_aside_by_name(web):
    web.terminate()
    file_of(web).write_bytes(b"not a database" * 1000)
    web.start()
    over(web)
    (aside,) = [path for path in web.state.glob(f"{FILE}.damaged-*") if path.name[-1] == "Z"]
    assert aside.read_bytes() == b"not a database" * 1000
    assert aside.name in web.log and aside.name in web.get("/audit").data.decode()
    answers(web)


def test_a_second_one_on_the_same_folder_says_so_and_ends(web, broker, tmp_path):
    second = KestrelWeb(tmp_path / "second", state=str(web.state), **servers(broker))
    process = second.launch()
    assert process.wait(60) == 1
    (line,) = [line for line in second.log.splitlines() if "state folder" in line]
    assert f"in use by another kestrel-web (process {web.process.pid})" in line
    assert "Traceback" not in second.log
    answers(web)
    assert health(web)["database"] is None


def test_a_database_of_a_newer_version_is_refused_in_one_line(web):
    web.terminate()
    with closing(sqlite3.connect(file_of(web))) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert web.launch().wait(60) == 1
    assert "was written by a newer kestrel-web (version 99" in web.log.splitlines()[-1]


WRITER = """
import signal, sys
from pathlib import Path
from kestrel_stack.web.record.store import Store

store = Store(Path(sys.argv[1]))
while True:
    entry = store.audit_begin("ann", "", "operator", "flush", "q", ["a:1"], {"pad": "x" * 2000})
    print("begun", entry, flush=True)
    if len(sys.argv) > 2:
        signal.pause()
    store.audit_end(entry, "done", {})
    print("done", entry, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_writing(tmp_path):
    state, said = tmp_path / "state", {"begun": set(), "done": set()}
    # The last one is held with an entry begun; where the kill finds the others is up to the machine.
    for count, *held in ((8,), (30,), (71,), (1, "held")):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(state), *held],
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )
        for number, line in enumerate(process.stdout, 1):
            what, entry = line.split()
            said[what].add(int(entry))
            if number == count:
                process.send_signal(signal.SIGKILL)
        process.wait(60)
    kept = Store(state)
    entries = {entry.id: entry.outcome for entry in kept.audit_list(limit=10_000)}
    kept.close()
    assert len(said["begun"]) > 50
    assert said["begun"] <= entries.keys()
    assert {entry for entry, outcome in entries.items() if outcome == "done"} >= said["done"]
    assert set(entries.values()) == {"done", "cut"}
    assert list(entries) == sorted(entries, reverse=True)
    with closing(sqlite3.connect(state / FILE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


class Clock:
    """A clock for a process, which can be set while it runs; its timers go on as ever."""

    def __init__(self, file):
        self.file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(LIBFAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds):
        temporary = self.file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}s\n")
        temporary.replace(self.file)


@pytest.mark.skipif(not LIBFAKETIME, reason="needs libfaketime: apt-get install faketime")
@pytest.mark.parametrize(
    "jump",
    [
        -7200,
        pytest.param(7200, marks=pytest.mark.long),
        pytest.param(-40 * 365 * 86_400, marks=pytest.mark.long),
        10 * 365 * 86_400,
    ],
)
def test_a_clock_that_is_set_forth_and_back_breaks_nothing(broker, tmp_path, jump):
    """Its polls, its pages, its log and its history go on; nothing is older than it is, and nobody down."""
    clock = Clock(tmp_path / "clock")
    web = KestrelWeb(
        tmp_path / "web", environment=clock.environment, no_consumers_after_s=3600, **servers(broker)
    )
    with web:
        for offset in (0, jump, 0):
            clock.set(offset)
            wait_until(
                lambda offset=offset: abs(health(web)["at"] - time.time() - offset) < 60,
                "the clock to be set",
            )
            answers(web)
            document = json.loads(web.get("/api/v1/queues/jobs").data)
            assert 0 <= document["queue"]["numbers"]["age_ms"] < 10 * 60 * 1000
            assert json.loads(web.get("/api/v1/alerts").data)["alerts"] == []
            wait_until(lambda: latest(web) == 3, "history to go on")
        assert web.terminate() == 0
        web.start()
        answers(web)
        assert "Traceback" not in web.log
    with closing(sqlite3.connect(file_of(web))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
