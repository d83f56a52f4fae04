"""The poller with real brokers, and with servers that hang, drip, refuse or are something else."""

import contextlib
import socket
import threading
import time

import pytest

from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys
from kestrel_stack.web.config import Config
from kestrel_stack.web.polling import poller
from kestrel_stack.web.polling.poll import PollError, Probe
from kestrel_stack.web.polling.poller import Poller
from support.broker import DEADLINE_S, BrokerProcess, wait_until
from support.ports import reserve
from support.tcp_proxy import TcpProxy

EVERY_LEGAL_BYTE = [b"byte" + bytes([byte]) for byte in range(256) if byte not in b"./~ \n\0"]


def server(broker) -> Server:
    return Server(broker.host, broker.port)


def config(*brokers, admin=True, **more) -> Config:
    return Config(
        servers=tuple(server(broker) for broker in brokers),
        admin_ports={
            server(broker): getattr(broker, "admin_port", None) if admin else None for broker in brokers
        },
        **{"interval_s": 0.05, "timeout_s": 5.0, **more},
    )


@contextlib.contextmanager
def polling(made: Config, **clocks):
    running = Poller(made, **clocks)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def until(running: Poller, condition, what: str):
    """The first view for which the condition holds."""
    view = running.view()
    deadline = time.monotonic() + DEADLINE_S
    while not condition(view):
        assert time.monotonic() < deadline, f"waited in vain for {what}; the last view: {view}"
        view = running.wait(view.serial, 1.0)
    return view


def answers(view, number=0) -> bool:
    return view.servers[number].reachable


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A broker for tests that leave it as it was."""
    with BrokerProcess(tmp_path_factory.mktemp("shared")) as started:
        yield started


class OddServer:
    """Listens on a free port and gives each connection to `serve`, in a thread."""

    host = "127.0.0.1"

    def __init__(self, serve=None):
        self._serve = serve
        self._listening = socket.create_server((self.host, 0))
        self.port = self._listening.getsockname()[1]
        self._held = []
        if serve is not None:
            threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._held.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with contextlib.suppress(OSError):
            self._serve(connection)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listening.close()
        for connection in self._held:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


# What a broker says


def test_both_ports_tell_the_same_of_every_queue_whatever_bytes_its_name_has(broker):
    with broker.connect() as client:
        for name in (*EVERY_LEGAL_BYTE, b"a_mem", b"a", b"a_total_items"):
            client.ask(b"set %b 0 0 3\r\nabc\r\n" % name, b"STORED\r\n")
    with polling(config(broker)) as by_admin, polling(config(broker, admin=False)) as by_memcache:
        one, other = until(by_admin, answers, "the admin port"), until(by_memcache, answers, "stats")
    assert (one.servers[0].source, other.servers[0].source) == ("admin", "memcache")
    queues, others = one.servers[0].queues, other.servers[0].queues
    assert {keys.parse(key) for key in queues} == {*EVERY_LEGAL_BYTE, b"a_mem", b"a", b"a_total_items"}
    assert queues.keys() == others.keys()
    for key, numbers in queues.items():
        for field in (
            "items",
            "bytes",
            "total_items",
            "mem_items",
            "journal_bytes",
            "waiters",
            "total_flushes",
        ):
            assert getattr(numbers, field) == getattr(others[key], field), (key, field)
    assert one.servers[0].numbers.version == other.servers[0].numbers.version == "2.4.1"
    assert one.servers[0].numbers.cmd_set == other.servers[0].numbers.cmd_set == len(queues)
    assert abs(one.servers[0].numbers.time - time.time()) < 60


@pytest.mark.parametrize("admin", [True, False])
def test_rates_are_measured_and_survive_nothing_wrong(shared, admin):
    queue = f"rates_{admin}"
    with polling(config(shared, admin=admin)) as running, shared.connect() as client:
        first = until(running, answers, "an answer")
        assert first.servers[0].rate_in is None
        for _ in range(20):
            client.set(queue, b"x")
        for _ in range(5):
            client.get(queue)
        view = until(running, lambda view: view.row(queue) and view.row(queue).numbers.rate_out, queue)
        assert view.row(queue).numbers.rate_in > view.row(queue).numbers.rate_out > 0


@pytest.mark.parametrize("status", ["READONLY", "QUIESCENT", "UP"])
@pytest.mark.parametrize("admin", [True, False])
def test_a_servers_status_is_seen(shared, status, admin):
    with shared.connect() as client:
        client.ask(b"status %b\r\n" % status.encode(), b"END\r\n")
    with polling(config(shared, admin=admin)) as running:
        assert until(running, answers, "an answer").servers[0].status == status
    with shared.connect() as client:
        client.ask(b"status up\r\n", b"END\r\n")


def test_many_polls_are_one_connection(broker):
    with polling(config(broker, admin=False)) as running:
        until(running, lambda view: running.counters()[broker.address].polls >= 5, "five polls")
        state = until(running, answers, "an answer").servers[0]
    assert (state.numbers.curr_connections, state.numbers.total_connections) == (1, 1)


# The admin port


def test_without_an_admin_port_stats_are_read_and_the_row_says_why(shared):
    free = reserve()
    made = config(shared)
    made.admin_ports[server(shared)] = free
    with polling(made) as running:
        state = until(running, answers, "an answer").servers[0]
    assert (state.source, state.reachable) == ("memcache", True)
    assert f"127.0.0.1:{free} is not used: connection refused" in state.error


def test_another_servers_admin_port_is_not_believed(tmp_path):
    with BrokerProcess(tmp_path / "a") as one, BrokerProcess(tmp_path / "b") as other:
        with other.connect() as client:
            client.set("others", b"x")
        made = config(one)
        made.admin_ports[server(one)] = other.admin_port
        with polling(made) as running:
            view = until(running, answers, "an answer")
    assert view.servers[0].source == "memcache" and view.row("others") is None
    assert "belongs to another server" in view.servers[0].error


def test_an_admin_port_that_hangs_costs_a_part_of_the_time_only(shared):
    with OddServer() as hole:
        made = config(shared, timeout_s=0.6)
        made.admin_ports[server(shared)] = hole.port
        with polling(made) as running:
            state = until(running, answers, "an answer").servers[0]
    assert state.source == "memcache" and "no answer in time" in state.error


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.0 404 Not Found\r\n\r\nno such command",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_an_admin_port_of_something_else_is_not_believed(shared, reply):
    def serve(connection):
        connection.recv(65536)
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_WR)

    with OddServer(serve) as odd:
        made = config(shared)
        made.admin_ports[server(shared)] = odd.port
        with polling(made) as running:
            state = until(running, answers, "an answer").servers[0]
    assert state.source == "memcache" and f"The admin port {odd.address} " in state.error


def test_an_admin_port_that_falls_silent_is_done_without_and_asked_again_later(shared):
    ahead = 0.0
    with TcpProxy("127.0.0.1", shared.admin_port) as proxy:
        probe = Probe(server(shared), Server("127.0.0.1", proxy.port), 3.0, lambda: time.monotonic() + ahead)
        assert probe.poll().source == "admin"
        proxy.fall_silent()
        reading = probe.poll()
        assert reading.source == "memcache" and reading.note and not reading.again
        proxy.speak()
        assert probe.poll().source == "memcache", "it is left alone for a while"
        ahead = 120.0
        reading = probe.poll()
        assert (reading.source, reading.note) == ("admin", None)
        probe.close()


# Servers that do not answer


def test_a_server_that_hangs_is_a_row_with_its_error_and_the_others_stay_fresh(shared):
    with OddServer() as hole, polling(config(shared, hole, admin=False, timeout_s=3.0)) as running:
        view = until(running, lambda view: view.servers[1].error, "the one that hangs to be found out")
        hung = view.servers[1]
        assert hung.error == "no answer within 3 s"
        assert not hung.reachable and hung.stale and hung.polled_at is None and hung.attempted_at
        polls = running.counters()[shared.address].polls
        until(
            running, lambda view: running.counters()[shared.address].polls > polls + 2, "polls of the other"
        )
        assert answers(running.view()) and not running.view().servers[0].stale
        assert running.trouble() is None


def test_a_server_that_drips_is_cut_off(broker):
    over = threading.Event()

    def drip(connection):
        while not over.wait(0.02):
            connection.sendall(b"V")

    with OddServer(drip) as dripping:
        probe = Probe(server(dripping), None, 0.4)
        with pytest.raises(PollError, match=r"no answer within 0\.4 s"):
            probe.poll()
        over.set()


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_an_answer_in_pieces_is_read_whole(shared, piece):
    stats = shared.raw(b"stats\r\n")

    def serve(connection):
        for request, reply in ((b"status\r\n", b"VERSION 2.4.1\r\nREADONLY\r\n"), (b"stats\r\n", stats)):
            asked = b""
            while not asked.endswith(request):
                asked += connection.recv(1024)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(reply), piece):
                connection.sendall(reply[at : at + piece])

    with OddServer(serve) as odd:
        probe = Probe(server(odd), None, DEADLINE_S)
        reading = probe.poll()
        probe.close()
    assert reading.status == "READONLY"
    assert reading.numbers.total_connections > 0
    assert reading.numbers.queue_expires == 0


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Kestrel"),
        (b"VERSION 1.6.18\r\nERROR\r\n", "to `status`"),
        (b"\x00\xff<script>\r\n", "no Kestrel"),
        (b"", "closed the connection"),
    ],
)
def test_another_protocol_on_the_port_is_named(greeting, said):
    def serve(connection):
        connection.recv(1024)
        connection.sendall(greeting)
        connection.shutdown(socket.SHUT_WR)

    with OddServer(serve) as odd:
        probe = Probe(server(odd), None, 5.0)
        with pytest.raises(PollError, match=said) as caught:
            probe.poll()
        probe.close()
    assert str(caught.value).isprintable()


def test_a_name_that_does_not_resolve_is_an_error_of_its_row():
    with polling(Config(servers=(Server("nowhere.invalid", 1),), interval_s=0.05)) as running:
        view = until(running, lambda view: view.servers[0].attempted_at, "the first try")
    assert view.servers[0].error and not view.servers[0].reachable


def test_a_broker_that_dies_and_comes_back(broker):
    with broker.connect() as client:
        for _ in range(50):
            client.set("q", b"x")
    with polling(config(broker, stale_after_s=0.3)) as running:
        before = until(running, lambda view: answers(view) and view.totals.rate_in is not None, "rates")
        broker.kill()
        view = until(running, lambda view: view.servers[0].stale, "stale numbers")
        state = view.servers[0]
        assert state.error and not state.reachable
        assert state.since >= before.servers[0].since and state.polled_at <= view.at - 0.3
        assert (view.row("q").numbers.items, view.row("q").stale) == (50, True), "as it was last seen"
        assert view.row("q").numbers.rate_in is None and state.rate_in is None
        broker.start()
        running.poke(broker.address)
        until(running, answers, "the broker to be back")
        until(running, lambda view: view.servers[0].source == "admin", "its admin port to be asked again")
        view = until(
            running, lambda view: view.row("q").numbers.rate_in is not None, "rates after the restart"
        )
        assert view.row("q").numbers.rate_in == view.row("q").numbers.rate_out == 0, "counters began anew"


# Views


def test_a_poke_polls_now_and_every_server_when_none_is_named(shared):
    with polling(config(shared, interval_s=60.0)) as running:
        until(running, answers, "the first poll")
        with shared.connect() as client:
            client.set("poke_1", b"x")
        running.poke(shared.address)
        until(running, lambda view: view.row("poke_1"), "the queue")
        with shared.connect() as client:
            client.set("poke_2", b"x")
        running.poke()
        until(running, lambda view: view.row("poke_2"), "the other queue")


def test_waiting_for_a_view_ends_with_a_newer_one_or_with_the_time(shared):
    with polling(config(shared, interval_s=60.0)) as running:
        view = until(running, answers, "the first poll")
        assert running.wait(view.serial, 0.01).serial == view.serial
        assert running.wait(view.serial - 1, DEADLINE_S) is running.view()


def test_who_heeds_views_gets_the_latest_and_may_fail(shared, caplog):
    seen, other = [], []

    def fail(view):
        seen.append(view.serial)
        raise RuntimeError("no luck")

    running = Poller(config(shared))
    running.on_view(fail)
    running.on_view(other.append)
    running.start()
    try:
        wait_until(lambda: len(seen) >= 2 and len(other) >= 2, "two views for each")
    finally:
        running.stop()
    assert seen == sorted(set(seen)) and "could not be heeded" in caplog.text


def test_nothing_of_a_poller_is_left_when_it_has_stopped(shared):
    before = set(threading.enumerate())
    with polling(config(shared)) as running:
        until(running, answers, "an answer")
    wait_until(lambda: set(threading.enumerate()) <= before, "all threads to end")


def test_setting_the_clock_changes_no_age_and_makes_nothing_stale(shared):
    jump = 0.0
    with polling(config(shared), clock=lambda: time.time() + jump) as running:
        before = until(running, answers, "an answer")
        jump = 1e6
        view = until(running, lambda view: view.at > before.at + 1e5, "the new time")
        state = view.servers[0]
        assert not state.stale and 0 <= view.at - state.polled_at < 60
        assert view.at - state.since == pytest.approx(before.at - before.servers[0].since, abs=60)


def test_a_poll_that_is_stuck_in_a_name_server_is_said_and_does_not_hold_up_the_end(monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(poller, "STUCK_AFTER", 0.0)
    monkeypatch.setattr(poller, "STOP_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: go_on.wait(DEADLINE_S) and [])
    try:
        with polling(Config(servers=(Server("slow.example", 1),), timeout_s=0.1)) as running:
            wait_until(running.trouble, "the trouble to be seen")
            assert "slow.example:1 has not ended" in running.trouble()
    finally:
        go_on.set()


def test_a_stray_file_whose_name_no_client_can_say_is_left_out(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        broker.terminate()
        (broker.spool / "copy of q").touch()
        broker.start()
        with broker.connect() as client:
            client.set("q", b"x")
        with polling(config(broker)) as running:
            view = until(running, answers, "an answer")
    assert [row.key for row in view.queues] == ["q"]


def test_views_that_take_long_are_made_less_often_unless_somebody_has_acted(tmp_path, monkeypatch):
    monkeypatch.setattr(poller, "VIEW_SHARE", 1e9)
    with (
        BrokerProcess(tmp_path) as broker,
        polling(config(broker, interval_s=60.0, timeout_s=60.0)) as running,
    ):
        seen = until(running, answers, "an answer")
        running._changed.set()
        assert running.wait(seen.serial, 1.0) is seen, "the next one is due in a minute"
        for number in range(1, 3):
            with broker.connect() as raw:
                raw.ask(b"set q 0 0 1\r\nx\r\n", b"STORED\r\n")
            running.poke()
            until(running, lambda view, items=number: view.totals.items == items, "what came of it")
