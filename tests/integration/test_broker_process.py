"""The broker as a program: start, refusals, admin HTTP, stop, and the one-file bundle."""

import contextlib
import http.client
import json
import os
import resource
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
        timeout=60,
    )


def write_config(tmp_path: Path, **config) -> str:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    file = tmp_path / "broker.json"
    file.write_text(json.dumps({"port": 0, "admin_port": None, "queue_path": str(spool), **config}))
    return str(file)


def admin(broker: BrokerProcess, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(broker.host, broker.admin_port, timeout=60)
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


def counters(broker: BrokerProcess, query: str = "") -> dict[str, int]:
    return json.loads(admin(broker, f"/stats.json{query}")[2])["counters"]


def test_a_namespace_sees_what_came_since_it_last_asked(broker):
    broker.raw(b"set jobs 0 0 1\r\n1\r\n")
    assert counters(broker, "?namespace=page")["cmd_set"] == 1
    broker.raw(b"set jobs 0 0 1\r\n1\r\n" * 2)
    assert counters(broker, "?namespace=other")["cmd_set"] == 3
    assert counters(broker, "?namespace=page")["q/jobs/put_items"] == 2
    assert counters(broker, "?namespace=page")["cmd_set"] == 0


def test_a_period_sees_the_last_whole_period_and_nothing_at_first(broker):
    with broker.connect() as client:
        client.set("jobs", b"1")
        assert counters(broker, "?period=1")["cmd_set"] == 0
        # In one piece, so that both are in one period.
        client.ask(b"set jobs 0 0 1\r\n1\r\n" * 2, b"STORED\r\n" * 2)
        seen = []

        def over() -> bool:
            seen.append(counters(broker, "?period=1")["cmd_set"])
            return 2 in seen and seen[-1] == 0

        wait_until(over, "the period with two sets to be over")
    assert set(seen) == {0, 2}


@pytest.mark.parametrize("period", ["0", "-1", "x", "1.5", "999999999999", "%B2"])
def test_a_period_that_is_none_is_refused(broker, period):
    assert admin(broker, f"/stats.json?period={period}") == (
        400,
        "text/plain",
        "period must be seconds from 1 to 86400\n",
    )


def test_times_are_measured_for_the_server_and_each_queue(broker):
    with broker.connect() as client:
        client.set("jobs", b"1")
        client.get("jobs/open")
        client.get("jobs/close/open")
        client.get("jobs/t=1")
        client.get("other/t=1/peek")
    metrics = json.loads(admin(broker, "/stats.json")[2])["metrics"]
    for prefix, waits in (("", 2), ("q/jobs/", 1)):
        assert {
            name.removeprefix(prefix): metric["count"]
            for name, metric in metrics.items()
            if name.startswith(prefix) and name.count("/") == prefix.count("/")
        } == {
            "set_latency_usec": 1,
            "get_hit_latency_usec": 1,
            "get_miss_latency_usec": 1,
            "get_timeout_msec": waits,
            "delivery_latency_msec": 1,
        }
    assert "\n  q/other/get_timeout_msec: (average=" in admin(broker, "/stats.txt")[2]
    broker.raw(b"delete jobs\r\n")
    metrics = json.loads(admin(broker, "/stats.json")[2])["metrics"]
    assert metrics["set_latency_usec"]["count"] == 1
    assert not [name for name in metrics if name.startswith("q/jobs/")]


def test_threads_and_gc_answer(broker):
    threads = json.loads(admin(broker, "/threads")[2])["threads"].values()
    assert "MainThread" in {thread["thread"] for thread in threads}
    assert admin(broker, "/gc.txt") == (200, "text/plain", "ok\n")


def test_log_levels_are_shown_and_changed_and_nonsense_is_refused(broker):
    assert json.loads(admin(broker, "/logging")[2])["kestrel.session"] == "INFO"
    assert admin(broker, "/logging?name=kestrel.session&level=debug")[0] == 200
    broker.raw(b"nonsense\r\n")
    wait_until(lambda: "closing a connection: unknown command 'nonsense'" in broker.log, "the debug line")
    assert "level must be one of FATAL" in admin(broker, "/logging?level=loud")[2]
    status, _, text = admin(broker, "/logging?name=nobody&level=info")
    assert (status, "known are kestrel" in text) == (400, True)


@pytest.mark.parametrize(
    "path", ["/report/", "/graph/", "/graph_data/counter:x", "/static/x.js", "/pprof/heap"]
)
def test_kestrels_pages_that_are_not_there_say_so(broker, path):
    status, kind, text = admin(broker, path)
    assert (status, kind) == (404, "text/plain")
    assert "the embedded broker has no graphs and no profiler; see /stats.json" in text


@pytest.mark.parametrize("path", ["/", "/nonsense", "/ping.xml", "/../ping", "/favicon.ico"])
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


# Reload


def reload_by_command(broker):
    assert broker.raw(b"reload\r\n") == b"Reloaded config.\r\n"


def reload_by_admin(broker):
    assert admin(broker, "/reload.txt") == (200, "text/plain", "ok\n")


def reload_by_signal(broker):
    broker.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("reload", [reload_by_command, reload_by_admin, reload_by_signal])
def test_every_way_to_reload_changes_live_queues_and_aliases_and_is_seen_in_the_log(tmp_path, reload):
    made = BrokerProcess(tmp_path, log_level="error")
    made.holds_ports = False
    with made as broker:
        with broker.connect() as client:
            client.set("jobs", b"1")
            broker.config |= {"port": 0, "admin_port": 0}  # as it was started with
            broker.config |= {"queues": {"jobs": {"max_items": 1}}, "aliases": {"all": ["a", "b"]}}
            broker.command()  # writes the file
            reload(broker)
            wait_until(lambda: "Reloaded config: 1 queues, 1 aliases\n" in broker.log, "the reload")
            client.ask(b"set jobs 0 0 1\r\n2\r\n", b"NOT_STORED\r\n")
            client.set("all", b"3")
            assert client.get("b") == b"3"
        assert "needs a restart" not in broker.log


def test_a_read_of_a_queue_that_a_new_alias_hides_is_confirmed_with_the_next_get(broker):
    with broker.connect() as client, broker.connect() as other:
        client.set("jobs", b"1")
        assert client.get("jobs/open") == b"1"
        broker.config |= {"port": 0, "admin_port": 0, "aliases": {"jobs": ["other"]}}
        broker.command()
        other.ask(b"reload\r\n", b"Reloaded config.\r\n")
        assert client.get("jobs/close/open") is None
    # Nothing was open any more, so nothing comes back.
    broker.config["aliases"] = {}
    broker.command()
    with broker.connect() as client:
        client.ask(b"reload\r\n", b"Reloaded config.\r\n")
        assert client.get("jobs") is None


def test_what_a_reload_cannot_change_is_named_and_stays(broker):
    broker.config |= {
        "port": 1,
        "admin_port": 0,
        "max_open_transactions": 7,
        "expiration_timer_ms": 5,
        "log_level": "warning",
    }
    before = broker.port
    broker.command()
    reload_by_command(broker)
    wait_until(lambda: "Reloaded config: 0 queues, 0 aliases" in broker.log, "the reload")
    assert "port, max_open_transactions, expiration_timer_ms: needs a restart" in broker.log
    assert broker.port == before
    assert broker.raw(b"version\r\n") == b"VERSION 2.4.1\r\n"


@pytest.mark.parametrize(
    "content", ['{"queues": {"jobs": {"max_itms": 9}}}', "{", "", pytest.param("[" * 100_000, id="deep")]
)
def test_a_wrong_file_changes_nothing_and_is_in_the_log(tmp_path, content):
    with BrokerProcess(tmp_path, queues={"jobs": {"max_items": 1}}) as broker:
        broker.config_file.write_text(content)
        reload_by_command(broker)
        wait_until(lambda: "everything stays as it was" in broker.log, "the refusal")
        assert f"reload (the reload command): {broker.config_file}: " in broker.log
        assert "Reloaded config" not in broker.log
        put = b"set jobs 0 0 1\r\n1\r\n"
        assert broker.raw(put * 2) == b"STORED\r\nNOT_STORED\r\n"


# Status


def test_a_status_outlives_a_crash_and_a_damaged_file_does_not_keep_the_broker_down(tmp_path):
    file = tmp_path / "status"
    with BrokerProcess(tmp_path, status_file=str(file)) as broker:
        assert broker.raw(b"status ReadOnly\r\nstatus\r\n") == b"END\r\nREADONLY\r\n"
        broker.kill()
        assert file.read_text() == "ReadOnly\n"
        broker.start()
        assert broker.raw(b"status\r\n") == b"READONLY\r\n"
        assert broker.raw(b"set jobs 0 0 1\r\n1\r\n") == b"SERVER_ERROR\r\n"
        broker.kill()
        file.write_bytes(b"\0\xff")
        broker.start()
        assert broker.raw(b"status\r\nset jobs 0 0 1\r\n1\r\n") == b"UP\r\nSTORED\r\n"
        assert f"{file}: no status in it" in broker.log


# Timers, files


def test_a_silent_client_is_dropped_also_while_it_waits_and_its_open_read_returns(tmp_path):
    with BrokerProcess(tmp_path, client_timeout_ms=300) as broker, broker.connect() as waiting:
        with broker.connect() as client:
            client.set("jobs", b"1")
            assert client.get("jobs/open") == b"1"
            waiting.send(b"get empty/t=60000\r\n")
            assert client.read_all() == b""
        assert waiting.read_all() == b""
        assert broker.drain("jobs") == [b"1"]


def test_a_client_that_says_something_stays(tmp_path):
    with (
        BrokerProcess(tmp_path, client_timeout_ms=4000) as broker,
        broker.connect() as silent,
        broker.connect() as busy,
    ):
        silent.sock.settimeout(0.05)
        dropped = False
        while not dropped:
            busy.ask(b"version\r\n", b"VERSION 2.4.1\r\n")
            with contextlib.suppress(TimeoutError):
                dropped = silent.sock.recv(1) == b""
        busy.ask(b"version\r\n", b"VERSION 2.4.1\r\n")


def test_the_timer_takes_expired_items_and_old_queues_away(tmp_path):
    settings = {"old": {"max_queue_age": 0.2}, "slow": {"max_expire_sweep": 2}}
    with BrokerProcess(tmp_path, expiration_timer_ms=50, queues=settings) as broker:
        broker.raw(b"get old\r\nset jobs 0 -1 1\r\n1\r\n" + b"set slow 0 -1 1\r\n1\r\n" * 5)
        wait_until(lambda: broker.stats("jobs")["expired_items"] == 1, "the item to expire")
        wait_until(lambda: broker.stats("slow")["items"] == 0, "all of them to expire")
        wait_until(lambda: b"STAT queue_expires 1\r\n" in broker.raw(b"stats\r\n"), "the queue to go")
        assert not (broker.spool / "old").exists()


def test_without_room_for_more_connections_they_are_refused_until_there_is(tmp_path):
    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    broker = BrokerProcess(tmp_path).start(preexec_fn=few_files)
    with broker, contextlib.ExitStack() as stack:
        served, refused = [], 0
        while refused < 3:
            client = stack.enter_context(broker.connect())
            client.send(b"version\r\n")
            if client.read_some() == b"":
                refused += 1
            else:
                served.append(client)
        assert 20 < len(served) < 64
        # There is still room for new journals.
        served[0].set("jobs", b"1")
        assert served[1].get("jobs") == b"1"
        assert broker.log.count("no room for more connections") == 1
        for client in served:
            client.close()

        def again() -> bool:
            with broker.connect() as client:
                client.send(b"version\r\n")
                return client.read_some() != b""

        wait_until(again, "room for a connection")
        assert "Traceback" not in broker.log


# Stop


def stop_by_sigterm(broker):
    broker.process.send_signal(signal.SIGTERM)


def stop_by_sigint(broker):
    broker.process.send_signal(signal.SIGINT)


def stop_by_command(broker):
    assert broker.raw(b"shutdown\r\n") == b""


def stop_by_admin(broker):
    assert admin(broker, "/shutdown.txt") == (200, "text/plain", "ok\n")


def stop_by_quiesce(broker):
    assert admin(broker, "/quiesce", "POST")[0] == 200


@pytest.mark.parametrize(
    "stop", [stop_by_sigterm, stop_by_sigint, stop_by_command, stop_by_admin, stop_by_quiesce]
)
def test_every_way_to_stop_ends_0_and_keeps_everything(broker, stop):
    with broker.connect() as client:
        for item in (b"1", b"2", b"3"):
            client.set("jobs", item)
        assert client.get("jobs/open") == b"1"
        assert client.get("jobs/open") == b"2"
        stop(broker)
        assert broker.process.wait(60) == 0
    assert broker.log.endswith("stopped; every journal is synced and closed\n")
    broker.start()
    assert broker.drain("jobs") == [b"1", b"2", b"3"]


def test_a_stop_while_somebody_is_silent_on_the_admin_port_is_an_orderly_one(broker):
    with socket.create_connection((broker.host, broker.admin_port)) as client:
        client.sendall(b"GET /ping")
        assert admin(broker, "/ping")[0] == 200
        stop_by_sigterm(broker)
        assert broker.process.wait(60) == 0
    assert "unexpected error" not in broker.log
    assert broker.log.endswith("stopped; every journal is synced and closed\n")


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
        process.communicate(timeout=60)
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
