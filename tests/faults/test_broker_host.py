"""What a host does to the broker: its clock, its files, its operator, a machine that stops for a while."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from support.broker import BrokerProcess, wait_until
from support.traffic import Ledger, fill, running

ROTATES = {"default_journal_size": 2_000, "max_memory_size": 6_000, "max_journal_size": 20_000}


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path, status_file=str(tmp_path / "status")) as process:
        yield process
        assert "Traceback" not in process.log


# The clock


LIBFAKETIME = [
    *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
    *Path("/usr/lib/faketime").glob("libfaketime.so.1"),
]


class Clock:
    """A clock for processes that we start, which can be set while they run; their timers go on as ever."""

    def __init__(self, folder: Path):
        self._file = folder / "clock"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(LIBFAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Put it so many seconds before (or after) the real one."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}s\n")
        temporary.replace(self._file)


@pytest.fixture
def clock(tmp_path, monkeypatch):
    if not LIBFAKETIME:
        pytest.skip("needs libfaketime: apt-get install faketime")
    clock = Clock(tmp_path)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    return clock


def time_of(broker) -> int:
    line = next(line for line in broker.raw(b"stats\r\n").split(b"\r\n") if line.startswith(b"STAT time "))
    return int(line.split()[2])


def test_the_clock_of_these_tests_can_be_set_while_the_broker_runs(clock, tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        assert abs(time_of(broker) - time.time()) < 60
        clock.set(-7200)
        assert abs(time_of(broker) - time.time() + 7200) < 60


def test_journals_that_rotate_while_the_clock_is_set_back_keep_their_order(clock, tmp_path):
    """An archive's name is the time of its rotation, and archives are replayed by their names."""
    items = [b"%05d" % number + b"x" * 300 for number in range(400)]
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES) as broker:
        with broker.connect() as client:
            fill(client, "jobs", items[:100])
            clock.set(-3600)
            fill(client, "jobs", items[100:200])
            clock.set(-7200)
            fill(client, "jobs", items[200:300])
            assert [client.get("jobs") for _ in range(50)] == items[:50]
        broker.kill()
        broker.start()
        with broker.connect() as client:
            fill(client, "jobs", items[300:])
            assert [client.get("jobs") for _ in range(100)] == items[50:150]
        broker.kill()
        broker.start()
        assert broker.drain("jobs") == items[150:]


def test_traffic_goes_on_while_the_clock_jumps(clock, tmp_path):
    ledger = Ledger()
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES, expiration_timer_ms=50) as broker:
        with running(ledger, broker, producers=3, consumers=2):
            for number, jump in enumerate((-86400, 86400, -3600, 0), start=1):
                clock.set(jump)
                wait_until(
                    lambda number=number: len(ledger.confirmed) >= 100 * number,
                    f"items to be confirmed after the clock is {jump} s off",
                )
        broker.kill()
        broker.start()
        ledger.check(broker.drain("jobs"))
        assert "Traceback" not in broker.log


def test_waiting_reads_wait_by_a_clock_that_nobody_sets(clock, tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as broker, broker.connect() as a, broker.connect() as b:
        a.send(b"get jobs/t=600000\r\n")
        b.send(b"get other/t=200\r\n")
        wait_until(lambda: broker.stats("jobs")["waiters"] == 1, "the read to wait")
        clock.set(86400)
        b.expect(b"END\r\n")
        assert broker.stats("jobs")["waiters"] == 1
        clock.set(-86400)
        b.set("jobs", b"1")
        a.expect(b"VALUE jobs 0 1\r\n1\r\nEND\r\n")


def test_the_age_of_an_item_is_never_negative(clock, tmp_path):
    with BrokerProcess(tmp_path) as broker, broker.connect() as client:
        fill(client, "jobs", [b"1", b"2", b"3"])
        clock.set(-3600)
        assert client.get("jobs") == b"1"
        assert broker.stats("jobs")["age"] >= 0
        assert client.get("jobs/open") == b"2"
        assert b"-" not in broker.raw(b"dump_stats jobs\r\n")


# The status file


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"sideways\n", b"\xff\xfe\x00" * 5000, b"Down\n", b"readonly extra\n"],
    ids=["empty", "an empty line", "no status", "bytes", "Down", "words"],
)
def test_a_damaged_status_file_is_named_in_the_log_and_the_server_is_up(tmp_path, content):
    file = tmp_path / "status"
    file.write_bytes(content)
    with BrokerProcess(tmp_path, status_file=str(file), admin_port=None) as broker:
        assert broker.raw(b"status\r\n") == b"UP\r\n"
        assert str(file) in broker.log
        assert broker.raw(b"status readonly\r\n") == b"END\r\n"
        broker.restart()
        assert broker.raw(b"status\r\n") == b"READONLY\r\n"
        assert "Traceback" not in broker.log


def test_a_status_that_cannot_be_kept_is_in_force_and_the_log_says_so(tmp_path):
    """Kestrel refuses the change then; ours obeys, since a full disk is when READONLY is needed."""
    folder = tmp_path / "a folder where the file should be"
    folder.mkdir()
    with BrokerProcess(tmp_path, status_file=str(folder), admin_port=None) as broker:
        assert broker.raw(b"status readonly\r\nstatus\r\n") == b"END\r\nREADONLY\r\n"
        assert f"{folder}: cannot store the status" in broker.log
        assert "Traceback" not in broker.log


def test_a_kill_while_the_status_changes_leaves_one_or_the_other(tmp_path):
    file = tmp_path / "status"
    with BrokerProcess(tmp_path, status_file=str(file), admin_port=None) as broker:
        for _ in range(5):
            with broker.connect() as client:
                client.send(b"status readonly\r\nstatus up\r\n" * 200)
                client.expect(b"END\r\n" * 30)
                broker.kill()
            broker.start()
            assert broker.raw(b"status\r\n") in (b"UP\r\n", b"READONLY\r\n")
        assert "no status in it" not in broker.log


# Strangers in the folder of the journals


def test_what_is_no_journal_neither_stops_the_start_nor_is_touched(tmp_path):
    """Kestrel does not start at all with the first three in its folder."""
    spool = tmp_path / "broker" / "spool"
    spool.mkdir(parents=True)
    strangers = {
        "jobs.bak": b"backup",
        ".hidden": b"x",
        "jobs~": b"editor",
        "lost+found~": b"",
        "a.b.c": b"?",
    }
    for name, content in strangers.items():
        (spool / name).write_bytes(content)
    (spool / "folder").mkdir()
    (spool / "folder" / "file").write_bytes(b"inside")
    os.mkfifo(spool / "pipe")
    (spool / "dangling").symlink_to(spool / "nowhere")
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        with broker.connect() as client:
            client.set("jobs", b"1")
            client.set("real", b"2")
        broker.restart()
        assert broker.drain("jobs") == [b"1"]
        assert {name: (spool / name).read_bytes() for name in strangers} == strangers
        assert (spool / "folder" / "file").read_bytes() == b"inside"
        for name in strangers:
            assert f"{spool / name}: not a journal" in broker.log
        assert broker.raw(b"dump_stats folder pipe\r\n").count(b"{\r\n  \r\n}") == 2


def test_a_file_whose_name_another_encoding_made_is_a_queue_by_its_bytes(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        with broker.connect() as client:
            client.ask(b"set jobs\xff\xe9 0 0 1\r\n1\r\n", b"STORED\r\n")
        assert [os.fsencode(path.name) for path in broker.spool.iterdir()] == [b"jobs\xff\xe9"]
        broker.restart()
        assert broker.raw(b"get jobs\xff\xe9\r\n") == b"VALUE jobs\xff\xe9 0 1\r\n1\r\nEND\r\n"


def test_a_queue_whose_file_cannot_be_made_closes_its_client_and_no_other(broker):
    (broker.spool / "taken").mkdir()
    with broker.connect() as bystander, broker.connect() as client:
        client.send(b"set taken 0 0 1\r\n1\r\n")
        assert client.read_all() == b""
        bystander.set("jobs", b"1")
    assert "taken" in broker.log


# Reload


BROKEN = [
    pytest.param("{", "not JSON", id="not JSON"),
    pytest.param("[]", "must be a JSON object", id="no object"),
    pytest.param(None, "cannot read it", id="gone"),
    pytest.param('{"nonsense": 1}', 'unknown key "nonsense"', id="unknown key"),
    pytest.param('{"queues": {"jobs": {"max_itms": 1}}}', 'unknown key "max_itms"', id="unknown setting"),
    pytest.param('{"queues": {"a.b": {}}}', 'queue "a.b"', id="impossible name"),
    pytest.param('{"default": {"max_items": "many"}}', '"max_items"', id="no number"),
]


def reload_by_command(broker):
    assert broker.raw(b"reload\r\n") == b"Reloaded config.\r\n"


def reload_by_signal(broker):
    broker.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize(("text", "reason"), BROKEN)
@pytest.mark.parametrize("reload", [reload_by_command, reload_by_signal])
def test_a_broken_configuration_is_named_and_the_old_one_stays(tmp_path, text, reason, reload):
    limit = {"jobs": {"max_items": 1}}
    with BrokerProcess(tmp_path, admin_port=None, queues=limit) as broker, broker.connect() as client:
        client.set("jobs", b"1")
        if text is None:
            broker.config_file.unlink()
        else:
            broker.config_file.write_text(text)
        reload(broker)
        wait_until(lambda: reason in broker.log, "the log to say what is wrong")
        client.ask(b"set jobs 0 0 1\r\n2\r\n", b"NOT_STORED\r\n")
        assert "Reloaded config:" not in broker.log
        broker.reconfigure(queues={"jobs": {"max_items": 2}})
        reload(broker)
        wait_until(lambda: "Reloaded config: 1 queues, 0 aliases" in broker.log, "the reload")
        client.set("jobs", b"2")
        assert "Traceback" not in broker.log


def test_reloads_under_load_lose_nothing(broker):
    ledger = Ledger()
    with running(ledger, broker, producers=2, consumers=2):
        for number in range(30):
            broker.reconfigure(queues={"jobs": {"max_items": 10_000 + number}, f"q{number}": {}})
            broker.process.send_signal(signal.SIGHUP)
            enough = len(ledger.stored) + 20
            wait_until(lambda enough=enough: len(ledger.stored) >= enough, "items to be stored")
    ledger.check(broker.drain("jobs"))


# A machine that stops


def test_a_broker_that_was_stopped_for_a_while_goes_on_where_it_was(tmp_path):
    """SIGSTOP and SIGCONT, as a busy or suspended machine: everybody waits, nobody loses anything."""
    ledger = Ledger()
    with BrokerProcess(tmp_path, admin_port=None, default=ROTATES) as broker:
        with running(ledger, broker, producers=3, consumers=2):
            for _ in range(3):
                enough = len(ledger.stored) + 100
                wait_until(lambda enough=enough: len(ledger.stored) >= enough, "items to be stored")
                with stopped(broker):
                    with broker.connect() as client:  # the kernel takes what nobody answers yet
                        client.send(b"get late/t=50\r\n")
                    time.sleep(0.3)  # longer than the waits of the consumers
        broker.kill()
        broker.start()
        ledger.check(broker.drain("jobs"))
        assert "Traceback" not in broker.log


@contextlib.contextmanager
def stopped(broker):
    state = Path(f"/proc/{broker.pid}/stat")
    os.kill(broker.pid, signal.SIGSTOP)
    wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "T", "the broker to hold")
    yield
    os.kill(broker.pid, signal.SIGCONT)


def test_a_stopped_broker_is_refused_its_folder_by_nobody_else(broker, tmp_path):
    """A broker that stands still still owns its folder."""
    with stopped(broker):
        second = BrokerProcess(tmp_path / "second", queue_path=broker.spool, admin_port=None)
        with pytest.raises(RuntimeError, match="another broker uses this queue folder"):
            second.start()
    assert broker.raw(b"version\r\n") == b"VERSION 2.4.1\r\n"
