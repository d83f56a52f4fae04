"""The broker as a program: start, refusals, admin HTTP, stop, and the one-file bundle."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.broker import BrokerProcess, wait_until

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as process:
        yield process


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kestrel_stack.broker", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=20,
    )


def write_config(tmp_path: Path, **config) -> str:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"port": 0, "admin_port": None, "queue_path": str(spool), **config}))
    return str(file)


def admin(broker: BrokerProcess, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(broker.host, broker.admin_port, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.headers["Content-Type"].split(";")[0], body


# Refusals: one line, named, nothing half-done


def one_line(result: subprocess.CompletedProcess) -> str:
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_check_says_that_a_configuration_is_in_order_and_starts_nothing(tmp_path):
    config = write_config(tmp_path, queue_path="/does/not/exist")
    result = run("--config", config, "--check")
    assert (result.returncode, result.stdout) == (0, f"kestrel-embedded: {config} is in order\n")


@pytest.mark.parametrize("check", [["--check"], []])
def test_an_unknown_key_is_refused_by_name(tmp_path, check):
    result = run("--config", write_config(tmp_path, queus={}), *check)
    assert result.returncode == 78
    assert 'unknown key "queus"' in one_line(result)


def test_a_taken_port_is_named_with_its_fix_and_no_queue_file_is_touched(tmp_path):
    write_config(tmp_path)
    torn = tmp_path / "spool" / "jobs"
    torn.write_bytes(b"\x02\x15")  # a start would cut it back
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--config", write_config(tmp_path, port=port))
        assert result.returncode == 1
        assert one_line(result) == (
            f"kestrel-embedded: cannot listen on 127.0.0.1:{port}: the port is taken; "
            'stop what listens there, or set "port" to another\n'
        )
        result = run("--config", write_config(tmp_path, admin_port=port))
        assert (result.returncode, 'set "admin_port"' in one_line(result)) == (1, True)
    assert torn.read_bytes() == b"\x02\x15"


def test_an_address_of_another_host_is_named(tmp_path):
    result = run("--config", write_config(tmp_path, listen_address="192.0.2.1"))
    assert result.returncode == 1
    assert '192.0.2.1:0: this host has no such address; set "listen_address"' in one_line(result)


def test_a_missing_queue_folder_is_named(tmp_path):
    result = run("--config", write_config(tmp_path, queue_path=str(tmp_path / "missing")))
    assert result.returncode == 1
    assert f"{tmp_path}/missing: cannot open the queue folder: No such file" in one_line(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_queue_folder_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "spool").mkdir(mode=0o500)
    result = run("--config", write_config(tmp_path))
    assert result.returncode == 1
    assert "this user may not write" in one_line(result)


# Running


def test_it_listens_on_loopback_only(broker):
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    for port in (broker.port, broker.admin_port):
        addresses = {
            line.split()[1] for line in listening.splitlines() if f":{port:04X} 00000000:0000" in line
        }
        assert addresses == {f"0100007F:{port:04X}"}


def test_an_unknown_name_or_a_get_makes_an_empty_journal_and_nothing_else_does(broker):
    broker.raw(b"delete a\r\nflush b\r\nflush_expired c\r\nget d/close\r\nget e/abort\r\ndump_stats f\r\n")
    assert [path.name for path in broker.spool.iterdir()] == []
    broker.raw(b"get g\r\nget h/peek\r\n")
    assert sorted((path.name, path.stat().st_size) for path in broker.spool.iterdir()) == [("g", 0), ("h", 0)]


def test_stray_files_are_named_in_the_log_and_left_alone(broker):
    broker.terminate()
    strays = [broker.spool / name for name in ("notes.txt", ".hidden", "q~")]
    for stray in strays:
        stray.write_text("x")
    (broker.spool / "folder").mkdir()
    broker.start()
    for stray in strays:
        assert f"{stray}: not a journal, left alone" in broker.log
        assert stray.read_text() == "x"


def test_a_fanout_that_kestrel_left_is_served_and_named_in_the_log(broker):
    broker.raw(b"set fan 0 0 1\r\n1\r\n")
    broker.terminate()
    (broker.spool / "fan").rename(broker.spool / "fan+copy")
    broker.start()
    assert "fan+copy: gets copies of what is set to fan from now on" in broker.log
    assert broker.drain("fan+copy") == [b"1"]


def test_journals_are_readable_by_owner_and_group_only(broker):
    broker.raw(b"get jobs\r\n")
    assert (broker.spool / "jobs").stat().st_mode & 0o777 & ~0o640 == 0


def test_it_tells_systemd_when_it_is_ready(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        with BrokerProcess(tmp_path):
            assert listener.recv(100) == b"READY=1"


def test_a_journal_that_cannot_be_deleted_is_not_reported_as_deleted(broker):
    with broker.connect() as client:
        client.set("jobs", b"1")
        (broker.spool / "jobs").unlink()
        (broker.spool / "jobs").mkdir()
        client.ask(b"delete jobs\r\n", b"SERVER_ERROR\r\n")
        assert client.read_all() == b""
    assert f"{broker.spool}/jobs: cannot delete" in broker.log


# stats


def test_stats_has_kestrels_keys_in_kestrels_order(broker):
    with broker.connect() as client:
        client.set("shop_mail", b"abc")
        client.set("shop_mail", b"de")
        assert client.get("shop_mail/open") == b"abc"
    lines = broker.raw(b"stats\r\n").decode().split("\r\n")
    assert lines[-2:] == ["END", ""]
    assert [line.split(" ")[1] for line in lines[:-2]] == [
        *("uptime", "time", "version", "curr_items", "total_items", "bytes", "reserved_memory_ratio"),
        *(
            "curr_connections",
            "total_connections",
            "cmd_get",
            "cmd_set",
            "cmd_peek",
            "get_hits",
            "get_misses",
        ),
        *("bytes_read", "bytes_written", "queue_creates", "queue_deletes", "queue_expires"),
        *(
            f"queue_shop_mail_{key}"
            for key in (
                *(
                    "items",
                    "bytes",
                    "total_items",
                    "logsize",
                    "expired_items",
                    "mem_items",
                    "mem_bytes",
                    "age",
                ),
                *("discarded", "waiters", "open_transactions", "transactions", "canceled_transactions"),
                "total_flushes",
            )
        ),
    ]


def test_stats_counts_what_happened(broker):
    with broker.connect() as client:
        client.set("jobs", b"abc")
        client.set("jobs", b"de")
        assert client.get("jobs/open") == b"abc"
        numbers = broker.stats("jobs")
        assert (numbers["items"], numbers["bytes"], numbers["open_transactions"]) == (1, 2, 1)
        assert numbers["logsize"] == (broker.spool / "jobs").stat().st_size
        client.ask(b"get jobs/abort\r\n", b"END\r\n")
    numbers = broker.stats("jobs")
    assert (numbers["items"], numbers["total_items"], numbers["transactions"]) == (2, 2, 1)
    assert numbers["canceled_transactions"] == 1
    dump = broker.raw(b"dump_stats jobs\r\n").decode()
    assert dump.startswith("queue 'jobs' {\r\n  items=2\r\n  bytes=5\r\n")
    assert dump.endswith("\r\n  total_flushes=0\r\n}\r\nEND\r\n")


# Admin HTTP


def test_ping_in_every_form_and_by_post(broker):
    assert admin(broker, "/ping") == (200, "application/json", '{"response":"pong"}\n')
    assert admin(broker, "/ping.json", "POST") == (200, "application/json", '{"response":"pong"}\n')
    assert admin(broker, "/ping.txt") == (200, "text/plain", "pong\n")


def test_admin_stats_has_counters_and_gauges_per_queue(broker):
    with broker.connect() as client:
        client.set("jobs", b"abc")
    status, kind, body = admin(broker, "/stats.json?filtered=1")
    stats = json.loads(body)
    assert (status, kind, set(stats)) == (
        200,
        "application/json",
        {"counters", "gauges", "labels", "metrics"},
    )
    assert stats["counters"]["q/jobs/put_items"] == 1
    assert stats["gauges"]["q/jobs/items"] == 1
    assert stats["gauges"]["q/jobs/journal_size"] == 24
    assert stats["gauges"]["status/writeable"] == 1
    assert "\n  q/jobs/items: 1\n" in admin(broker, "/stats.txt")[2]


def test_server_info_names_the_version(broker):
    assert json.loads(admin(broker, "/server_info")[2])["version"] == "2.4.1"


@pytest.mark.parametrize("path", ["/", "/nonsense", "/ping.xml", "/../ping", "/report/"])
def test_what_the_admin_does_not_know_is_404(broker, path):
    assert admin(broker, path)[0] == 404


@pytest.mark.parametrize(
    "garbage", [b"\r\n\r\n", b"x" * 100_000, b"GET\r\n\r\n", b"DELETE / HTTP/1.1\r\n\r\n"]
)
def test_garbage_on_the_admin_port_harms_nothing(broker, garbage):
    with socket.create_connection((broker.host, broker.admin_port), 20) as sock:
        try:
            sock.sendall(garbage)
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass
    assert admin(broker, "/ping")[0] == 200
    assert "Traceback" not in broker.log


def test_no_admin_port_when_it_is_null(tmp_path):
    with BrokerProcess(tmp_path, admin_port=None) as broker:
        assert broker.admin_port is None
        assert "admin off" in broker.log


# Stop


def stop_by_sigterm(broker):
    broker.process.send_signal(signal.SIGTERM)


def stop_by_sigint(broker):
    broker.process.send_signal(signal.SIGINT)


def stop_by_command(broker):
    assert broker.raw(b"shutdown\r\n") == b""


def stop_by_admin(broker):
    assert admin(broker, "/shutdown.txt") == (200, "text/plain", "ok\n")


@pytest.mark.parametrize("stop", [stop_by_sigterm, stop_by_sigint, stop_by_command, stop_by_admin])
def test_every_way_to_stop_ends_0_and_keeps_everything(broker, stop):
    with broker.connect() as client:
        for item in (b"1", b"2", b"3"):
            client.set("jobs", item)
        assert client.get("jobs/open") == b"1"
        assert client.get("jobs/open") == b"2"
        stop(broker)
        assert broker.process.wait(20) == 0
    assert broker.log.endswith("stopped; every journal is synced and closed\n")
    broker.start()
    assert broker.drain("jobs") == [b"1", b"2", b"3"]


# The bundle


def bundle(folder: Path) -> Path:
    result = subprocess.run(
        [sys.executable, "-m", "kestrel_stack.broker.bundle", "--output", str(folder)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(result.stdout.strip())


def test_the_bundle_is_the_same_bytes_every_time_and_its_name_says_so(tmp_path):
    first, second = bundle(tmp_path / "a"), bundle(tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert bundle(tmp_path / "a") == first
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


def test_the_bundle_runs_alone(tmp_path):
    file = bundle(tmp_path)
    ports = tmp_path / "ports.json"
    process = subprocess.Popen(
        [sys.executable, "-I", str(file), "--config", write_config(tmp_path), "--port-file", str(ports)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: ports.exists() or process.poll() is not None, "the bundle to start")
        with socket.create_connection(("127.0.0.1", json.loads(ports.read_text())["port"]), 20) as sock:
            sock.sendall(b"version\r\n")
            assert sock.recv(100) == b"VERSION 2.4.1\r\n"
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_broker_imports_nothing_but_the_standard_library_and_itself(tmp_path):
    code = (
        "import sys, kestrel_stack.broker.__main__, kestrel_stack.broker.bundle\n"
        "names = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "ours = {name for name in sys.modules if name.startswith('kestrel_stack.')}\n"
        "print(sorted(names), sorted(n for n in ours if not n.startswith('kestrel_stack.broker')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "['__main__', 'kestrel_stack'] []\n"
