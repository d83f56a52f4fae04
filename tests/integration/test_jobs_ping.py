"""The command `jobs ping`, with real workers and brokers: whom it believes, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from kestrel_stack.queue import names
from kestrel_stack.queue.jobs import cli, ping
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.pings import Ping, PingAnswer
from support.broker import DEADLINE_S, BrokerProcess, wait_until
from support.ports import nobody
from support.worker import App, WorkerProcess

SRC = Path(__file__).parents[2] / "src"
HOST = "worker1.example.com"
ASKED = names.ping("shop_work", HOST)
ANSWERS = names.ping_answers(ASKED)


@pytest.fixture(autouse=True)
def empty(brokers):
    yield
    for broker in brokers:
        for queue in queues(broker):
            broker.raw(b"delete %b\r\n" % queue.encode())


@pytest.fixture
def down():
    return nobody()


def queues(broker):
    text = broker.raw(b"stats\r\n").decode("latin-1")
    return sorted(re.findall(r"^STAT queue_(\S+)_logsize ", text, re.MULTILINE))


def content(servers, *names_of_queues):
    described = [{"name": name, "job_timeout": 30 + len(name)} for name in names_of_queues or ("work",)]
    return {
        "app": "shop",
        "namespace": "shop",
        "environment": "test",
        "host": HOST,
        "servers": [getattr(server, "address", server) for server in servers],
        "queues": described,
    }


@contextmanager
def worker(tmp_path, config, release="R2", queue="work", server=None):
    """A worker on a release."""
    app = App(tmp_path / "releases" / release)
    servers = ",".join(config["servers"]) if server is None else server.address
    with WorkerProcess(app, servers, queue=queue, name=queue, debug=False, settings=config) as started:
        yield started


class Asking:
    """The command, as a program of its own."""

    def __init__(self, folder, config, *arguments):
        file = folder / "asks.json"
        file.write_text(json.dumps(config))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("KESTREL_STACK_")}
        self.errors = folder / f"stderr-{len(list(folder.iterdir()))}"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "kestrel_stack.queue.jobs", "ping", "--config", str(file)),
                    *map(str, arguments),
                ],
                env=clean | {"PYTHONPATH": str(SRC)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def end(self, status):
        """Wait for the end; return the lines of stdout."""
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == status, said + self.errors.read_text()
        assert "Traceback" not in self.errors.read_text()
        return said.splitlines()

    def wait_for(self, text):
        wait_until(lambda: text in self.errors.read_text(), f"{text!r} on stderr")


def ask(folder, config, *arguments, status=0):
    """Run the command with --json; return its objects."""
    return [json.loads(line) for line in Asking(folder, config, "--json", *arguments).end(status)]


def test_a_worker_of_the_release_answers_and_nothing_is_left(brokers, tmp_path):
    config = content(brokers[:1])
    with worker(tmp_path, config) as process:
        [said] = ask(tmp_path, config, "--release", "R2", "--deploy", "D-1")
        pid = process.process.pid
        assert queues(brokers[0]) == ["shop_work"]
    assert 0 < said.pop("seconds") < DEADLINE_S
    assert said == {
        "queue": "work",
        "answered": True,
        "release": "R2",
        "pid": pid,
        "language": "python",
        "server": brokers[0].address,
        "reason": None,
    }


def test_every_queue_is_asked_and_has_a_line_for_people(brokers, tmp_path):
    config = content(brokers, "mail", "work")
    with worker(tmp_path, config, queue="mail") as mail, worker(tmp_path, config) as work:
        lines = Asking(tmp_path, config, "--release", "R2").end(0)
        assert sorted(line.split(",")[0] for line in lines) == [
            "mail  answered by release R2",
            "work  answered by release R2",
        ]
        assert f"pid {mail.process.pid} (python) on {HOST}" in min(lines)
        [said] = ask(tmp_path, config, "--release", "R2", "--queue", "work")
        assert said["pid"] == work.process.pid
        assert [name for broker in brokers for name in queues(broker) if "ping" in name] == []


def test_another_release_is_reported_and_is_no_proof(brokers, tmp_path):
    config = content(brokers[:1])
    with worker(tmp_path, config, "R1") as process:
        asking = Asking(tmp_path, config, "--json", "--release", "R2", "--timeout", "2")
        [said] = map(json.loads, asking.end(1))
    assert (said["answered"], said["release"], said["pid"]) == (False, "R1", process.process.pid)
    assert re.match(
        r"no answer from release R2 in 2\.\d s; the last that answered was release R1", said["reason"]
    )
    # Once, though it was asked more often.
    assert asking.errors.read_text().count("answered by release R1") == 1


def test_an_old_worker_answers_first_and_the_new_one_is_waited_for(brokers, tmp_path):
    config = content(brokers[:1])
    with worker(tmp_path, config, "R1") as old:
        asking = Asking(tmp_path, config, "--json", "--release", "R2")
        asking.wait_for("work: answered by release R1")
        assert old.end(signal.SIGTERM) == 0
    with worker(tmp_path, config, "R2") as new:
        [said] = map(json.loads, asking.end(0))
    assert (said["release"], said["pid"]) == ("R2", new.process.pid)


def test_a_ping_that_was_taken_by_a_worker_that_ended_is_written_again(brokers, tmp_path):
    config = content(brokers[:1])
    asking = Asking(tmp_path, config, "--json", "--release", "R2")
    with brokers[0].connect() as raw:
        wait_until(lambda: brokers[0].stats(ASKED).get("items"), "the ping")
        assert Ping.decode(raw.get(ASKED)) is not None
    with worker(tmp_path, config):
        assert asking.end(0)


def test_nobody_answers_and_nothing_is_left(brokers, tmp_path):
    [said] = ask(tmp_path, content(brokers), "--release", "R2", "--timeout", "1.5", status=1)
    assert (said["answered"], said["release"], said["server"]) == (False, None, None)
    assert said["reason"].startswith("no answer from release R2 in 1.5 s; no worker took the ping")
    assert [queues(broker) for broker in brokers] == [[], []]


def test_a_taken_ping_without_an_answer_is_told_from_one_that_nobody_took(brokers, tmp_path):
    asking = Asking(tmp_path, content(brokers[:1]), "--json", "--release", "R2", "--timeout", "4")
    with brokers[0].connect() as raw:
        wait_until(lambda: raw.get(ASKED) is not None, "the ping")
        wait_until(lambda: brokers[0].stats(ASKED).get("items"), "the next ping")
    [said] = map(json.loads, asking.end(1))
    assert "a worker took the ping and did not answer" in said["reason"]


def test_one_server_that_is_down_does_not_matter(brokers, tmp_path, down):
    config = content([down, brokers[0]])
    with worker(tmp_path, config):
        [said] = ask(tmp_path, config, "--release", "R2")
    assert said["server"] == brokers[0].address


def test_the_answer_may_come_by_any_of_the_servers(brokers, tmp_path):
    config = content(brokers)
    with worker(tmp_path, config, server=brokers[1]):
        [said] = ask(tmp_path, config, "--release", "R2")
    assert said["server"] == brokers[1].address
    assert queues(brokers[0]) == []


def test_all_servers_down_is_said(tmp_path, down):
    [said] = ask(tmp_path, content([down]), "--release", "R2", "--timeout", "1", status=1)
    assert f"{down} is not reachable: Connection refused" in said["reason"]
    assert "took" not in said["reason"]


def test_a_server_that_comes_back_in_time_is_asked(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        broker.kill()
        config = content([broker])
        with worker(tmp_path, config) as process:
            asking = Asking(tmp_path, config, "--json", "--release", "R2")
            process.wait_until(lambda: process.events("server is away"), "it to notice")
            broker.start()
            assert asking.end(0)


def test_a_server_that_takes_nothing_is_named(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        assert broker.raw(b"status readonly\r\n").startswith(b"END")
        [said] = ask(tmp_path, content([broker]), "--release", "R2", "--timeout", "1", status=1)
        assert "its status is not UP" in said["reason"]
        assert queues(broker) == []


def test_two_that_ask_at_once_both_get_their_answers(brokers, tmp_path):
    config = content(brokers[:1])
    both = [Asking(tmp_path, config, "--release", "R2") for _ in range(2)]
    wait_until(lambda: brokers[0].stats(ASKED).get("items") == 2, "both pings")
    with worker(tmp_path, config):
        for asking in both:
            assert len(asking.end(0)) == 1


def test_what_others_and_strangers_put_among_the_answers_is_no_answer(brokers, tmp_path):
    config = content(brokers[:1])
    fields = {"release": "R2", "pid": 1, "language": "python", "queue": "work", "host": HOST}
    foreign = PingAnswer(id=Ping().id, **fields)
    asking = Asking(tmp_path, config, "--json", "--release", "R2")
    with brokers[0].connect() as raw:
        wait_until(lambda: brokers[0].stats(ASKED).get("items"), "the ping")
        own = Ping.decode(raw.get(f"{ASKED}/peek"))
        elsewhere = PingAnswer(id=own.id, **{**fields, "host": "worker1-example-com"})
        for body in (b"\xff", b"x" * 1_000_000, b"[]", foreign.encode(), elsewhere.encode()):
            raw.set(ANSWERS, body)
    asking.wait_for("on worker1-example-com; waiting for release R2")
    with worker(tmp_path, config) as process:
        [said] = map(json.loads, asking.end(0))
    assert said["pid"] == process.process.pid


def test_a_hostile_answer_does_not_reach_the_terminal_as_it_is(brokers, tmp_path):
    asking = Asking(tmp_path, content(brokers[:1]), "--release", "R2", "--timeout", "2")
    with brokers[0].connect() as raw:
        wait_until(lambda: brokers[0].stats(ASKED).get("items"), "the ping")
        own = Ping.decode(raw.get(f"{ASKED}/peek"))
        raw.set(
            ANSWERS,
            PingAnswer(own.id, "\x1b[2J\nwork  answered", 1, "python", "work", HOST).encode(),
        )
    [line] = asking.end(1)
    assert line.isprintable()
    assert "\x1b" not in asking.errors.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_ping_that_is_interrupted_removes_what_it_wrote(brokers, tmp_path, number):
    asking = Asking(tmp_path, content(brokers), "--release", "R2")
    wait_until(lambda: all(broker.stats(ASKED).get("items") for broker in brokers), "the pings")
    asking.process.send_signal(number)
    asking.end(130)
    assert [queues(broker) for broker in brokers] == [[], []]


def test_one_that_is_interrupted_while_it_still_begins_removes_what_it_wrote(brokers, tmp_path, monkeypatch):
    started = []

    class Interrupted(threading.Thread):
        def start(self):
            super().start()
            started.append(self)
            if len(started) == len(brokers):
                wait_until(lambda: all(broker.stats(ASKED).get("items") for broker in brokers), "the pings")
                raise KeyboardInterrupt

    monkeypatch.setattr(ping.threading, "Thread", Interrupted)
    store = KestrelStore("shop", [broker.address for broker in brokers], ["work"])
    with store, pytest.raises(KeyboardInterrupt):
        ping.ask(store, ["work"], HOST, "R2", DEADLINE_S, tell=print, warn=print)
    assert [queues(broker) for broker in brokers] == [[], []]


def test_the_queues_of_pings_are_not_counted_as_jobs(brokers, tmp_path, capsys):
    config = tmp_path / "shop.json"
    config.write_text(json.dumps(content(brokers[:1])))
    with brokers[0].connect() as raw:
        for queue in (ASKED, ANSWERS):
            raw.set(queue, b"ping")
    assert cli.main(["count", "--config", str(config)], {}) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["work", "0", "0", "0", "0"]


def test_without_a_limit_it_is_the_longest_job_and_a_margin(tmp_path, monkeypatch):
    seen = []

    def asked(store, queues, host, release, timeout, *_):
        seen.append((queues, host, release, timeout))
        return []

    monkeypatch.setattr(ping, "ask", asked)
    config = tmp_path / "shop.json"
    config.write_text(json.dumps(content(["127.0.0.1:1"], "work", "import", "a")))
    for more in ([], ["--queue", "a", "work", "--queue", "a"], ["--timeout", "0.5"]):
        assert cli.main(["ping", "--release", "R2", "--config", str(config), *more], {}) == 0
    assert seen == [
        (["work", "import", "a"], HOST, "R2", 36 + ping.MARGIN),
        (["a", "work"], HOST, "R2", 34 + ping.MARGIN),
        (["work", "import", "a"], HOST, "R2", 0.5),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--release"),
        (["--release", "R2", "--queue", "mail"], "The queue 'mail' is not configured; configured: work."),
        (["--release", "R2", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["--release", "R2", "--deploy", "a b"], "--deploy 'a b'"),
        (["--release", ""], "--release is empty"),
    ],
)
def test_what_is_asked_wrongly_is_refused(tmp_path, capsys, arguments, said):
    config = tmp_path / "shop.json"
    config.write_text(json.dumps(content(["127.0.0.1:1"])))
    assert cli.main(["ping", "--config", str(config), *arguments], {}) == cli.EX_CONFIG
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_only_kestrel_knows_pings(capsys):
    assert cli.main(["ping", "--release", "R", "--url", "memory://tests/shop"], {}) == cli.EX_CONFIG
    assert "only queues that are kept by Kestrel" in capsys.readouterr().err
    assert cli.main(["ping", "--release", "R", "--servers", "h:1", "--namespace", "s"], {}) == cli.EX_CONFIG
    assert "name the queues with --queue" in capsys.readouterr().err
