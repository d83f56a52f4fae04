"""A Sentry that is away, slow or refuses: no job waits for it, and every failure is accounted for.

The servers are stand-ins; tests/faults/test_sentry_bugsink.py has the real one. That no job waits is asserted
by what happened before what, never by how long it took: all jobs are through while Sentry still has every
answer in front of it.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from kestrel_stack.consumer import sentry
from kestrel_stack.queue import Producer
from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.ports import reserve
from support.sentry import KEY, SentryServer, make_certificate
from support.worker import LANGUAGES, App, WorkerProcess, settings

QUEUE, ERRORS = "shop_work", "shop_work_errors"
JOBS = 150
"""More than may wait to be sent."""

# Every job fails with an error of its own, so that none is held back as a repetition.
PYTHON = """
import sys
sys.modules["sentry_sdk"] = None
from kestrel_stack.consumer import Registry

registry = Registry()


@registry.job("Fail")
def fail(data, context):
    if data["name"] == "large":
        for number in range(100):
            context.log.info("step", **{f"field{field}": "\\0" * 1000 for field in range(20)})
    raise ValueError(f"broken {data['name']}")
"""
PHP = """<?php

use KestrelStack\\Consumer\\{Context, Registry};

return (new Registry())->job('Fail', function (array $data, Context $context): void {
    for ($number = 0; $data['name'] === 'large' && $number < 100; $number++) {
        $fields = array_map(static fn (int $field): string => "field$field", range(0, 19));
        $context->log->info('step', array_fill_keys($fields, str_repeat("\\0", 1000)));
    }
    throw new RuntimeException("broken {$data['name']}");
});
"""


def names(count):
    """Words that are other words without their digits as well."""
    return ["".join(chr(ord("g") + int(digit)) for digit in str(number)) for number in range(count)]


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def broker(shared_broker):
    for queue in (QUEUE, ERRORS):
        shared_broker.raw(b"flush %b\r\n" % queue.encode())
    return shared_broker


@pytest.fixture
def server():
    with SentryServer() as started:
        yield started


@pytest.fixture
def start(tmp_path, broker, language):
    """Start a worker of the language that reports to this DSN; its parked records come from `parked`."""
    app = App(tmp_path / "app")
    (app.folder / "failing.py").write_text(PYTHON)
    (app.folder / "failing.php").write_text(PHP)

    def started(dsn, *flags, **environ):
        # By default a worker ends after 1,000 jobs.
        queue = {"name": "work", "language": language, "job_timeout": 20, "max_jobs": 1_000_000}
        config = settings(broker.address, queue)
        return WorkerProcess(
            *(app, broker.address, *flags),
            language=language,
            app_name="failing.php" if language == "php" else "failing:registry",
            settings=config | {"sentry_dsn": dsn, "host": "worker1"},
            debug=False,
            environ=environ,
        )

    return started


def enqueue(broker, found):
    with Producer("shop", "acme", servers=[broker.address], queues=["work"]) as send:
        for name in found:
            send.enqueue("Fail", {"name": name}, queue="work")


def parked(broker, count):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) >= count, f"{count} parked jobs", 60)
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def counts(worker):
    """What the worker says at its end became of its errors."""
    (told,) = worker.events("errors")
    return {key: told[key] for key in ("reported", "repeated", "not_reported")}


@contextlib.contextmanager
def listening(answer=None):
    """A port that takes connections; `answer` does something with each, else nothing ever happens on it."""
    held, over = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        server.settimeout(0.1)

        def accept():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    held.append(server.accept()[0])
                    if answer is not None:
                        threading.Thread(target=answer, args=(held[-1], over), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], held
        finally:
            over.set()
            thread.join()
            for connection in held:
                connection.close()


def drip(connection, over):
    """Answer, a byte now and then, and never to the end."""
    with contextlib.suppress(OSError):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while not over.wait(0.2):
            connection.sendall(b"x")


@contextlib.contextmanager
def full_backlog():
    """A port whose queue of connections is full: the kernel drops every further SYN, as a firewall would."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(server.getsockname())
        with socket.socket() as probe:
            probe.settimeout(0.3)
            with pytest.raises(TimeoutError):
                probe.connect(server.getsockname())
        yield server.getsockname()[1], []


@contextlib.contextmanager
def nobody():
    yield reserve(), []


@contextlib.contextmanager
def unknown_name():
    yield None, []


AWAY = {
    "refuses": (nobody, "http://{key}@127.0.0.1:{port}/1", "is not reachable"),
    "black hole": (listening, "http://{key}@127.0.0.1:{port}/1", "gave no answer in 2 s"),
    "drops SYN": (full_backlog, "http://{key}@127.0.0.1:{port}/1", "gave no answer in 2 s"),
    "handshake hangs": (listening, "https://{key}@127.0.0.1:{port}/1", "gave no answer|not reachable"),
    "answer drips": (
        lambda: listening(drip),
        "http://{key}@127.0.0.1:{port}/1",
        "no whole answer|gave no answer",
    ),
    "unknown name": (unknown_name, "http://{key}@errors.invalid/1", "is not reachable"),
}


# What these show beside the others takes their time limits of two seconds, again and again.
SLOW = ("drops SYN", "handshake hangs", "unknown name")


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=pytest.mark.long) if fault in SLOW else fault for fault in AWAY]
)
def test_no_job_waits_for_a_sentry_that_is_away_and_what_is_dropped_is_counted(start, broker, fault):
    make, dsn, told = AWAY[fault]
    with make() as (port, held):
        enqueue(broker, names(JOBS))
        with start(dsn.format(key=KEY, port=port)) as worker:
            records = parked(broker, JOBS)
            assert len(records) == JOBS
            # Were a job to wait for one time limit, most of these would not have been asked for yet.
            assert len(held) <= 5
            if fault != "answer drips":
                worker.wait_for("sentry is away")
            assert worker.end(signal.SIGTERM) == 0
        assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": JOBS}
        (lost,) = worker.events("errors were not reported")
        assert lost["count"] == JOBS
        away = worker.events("sentry is away")
        assert len(away) <= 1
        if away:
            assert re.search(told, away[0]["error"]), away
        assert KEY not in worker.log
        if fault in ("black hole", "drops SYN"):
            # Most were dropped at once: no record names an event that nobody has.
            named = sum(record.sentry_event is not None for record in records)
            assert 0 < named <= sentry.MAX_WAITING + 5


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_one_that_refuses_each_event_is_told_once_and_every_event_is_counted(start, broker, server, status):
    server.status = status
    enqueue(broker, names(20))
    with start(server.dsn, "--max-jobs", "20") as worker:
        assert worker.end() == 0
    assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": 20}
    assert [line["error"] for line in worker.events("sentry is away")] == [
        f"http://127.0.0.1:{server.port} answered with status {status}."
    ]
    assert len(server.requests) == 20


def test_a_login_page_is_not_taken_for_sentry(start, broker, server):
    server.headers, server.body = {"Content-Type": "text/html"}, b"<form>Log in"
    enqueue(broker, names(3))
    with start(server.dsn, "--max-jobs", "3") as worker:
        assert worker.end() == 0
    assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": 3}
    assert "answered with a web page: that is not Sentry." in worker.log


@pytest.mark.parametrize(
    ("status", "headers", "taken"),
    [
        (429, {}, 0),
        (429, {"Retry-After": "300"}, 0),
        (429, {"X-Sentry-Rate-Limits": "300:error;transaction:organization:quota"}, 0),
        (429, {"X-Sentry-Rate-Limits": "300::key", "Retry-After": "0"}, 0),
        # It has taken this one, and says that it takes no other for now.
        (200, {"X-Sentry-Rate-Limits": "300:error:project"}, 1),
    ],
)
def test_one_that_has_enough_is_left_alone_and_what_it_did_not_get_is_counted(
    start, broker, server, status, headers, taken
):
    server.status, server.headers = status, headers
    enqueue(broker, names(20))
    with start(server.dsn, "--max-jobs", "20") as worker:
        assert worker.end() == 0
    assert len(server.requests) == 1
    assert counts(worker) == {"reported": taken, "repeated": 0, "not_reported": 20 - taken}


def test_limits_on_what_is_not_an_error_are_none(start, broker, server):
    server.headers = {"X-Sentry-Rate-Limits": "300:transaction;session:organization"}
    enqueue(broker, names(5))
    with start(server.dsn, "--max-jobs", "5") as worker:
        assert worker.end() == 0
    assert counts(worker) == {"reported": 5, "repeated": 0, "not_reported": 0}


def test_it_is_told_when_sentry_is_back_with_how_many_it_missed(start, broker, server):
    server.status = 503
    enqueue(broker, names(4))
    with start(server.dsn) as worker:
        worker.wait_for("sentry is away")
        wait_until(lambda: len(server.requests) == 4, "four refusals")
        parked(broker, 4)
        server.status = 200
        enqueue(broker, ["another"])
        worker.wait_for("sentry is back")
        assert worker.end(signal.SIGTERM) == 0
    (back,) = worker.events("sentry is back")
    assert back["not_reported"] == 4
    assert counts(worker) == {"reported": 1, "repeated": 0, "not_reported": 4}


def test_of_one_error_again_and_again_the_first_are_sent_and_other_errors_still_are(start, broker, server):
    enqueue(broker, [str(number) for number in range(100)] + ["otherwise"])
    with start(server.dsn, "--max-jobs", "101") as worker:
        assert worker.end() == 0
    values = [event["exception"]["values"][-1]["value"] for event in server.events]
    same = [value for value in values if value != "broken otherwise"]
    assert values[-1] == "broken otherwise"
    # One more with every half minute that this took.
    assert sentry.BURST <= len(same) < sentry.BURST + 5
    assert counts(worker) == {"reported": len(values), "repeated": 100 - len(same), "not_reported": 0}
    records = parked(broker, 101)
    sent = [event["event_id"] for event in server.events]
    # Each record has an event to look at: its own, or the last one that says the same.
    assert [record.sentry_event for record in records[: sentry.BURST]] == sent[: sentry.BURST]
    assert {record.sentry_event for record in records} == set(sent)


def test_an_event_that_would_be_too_large_is_sent_smaller_and_its_job_is_parked_as_any_other(
    start, broker, server
):
    enqueue(broker, ["large"])
    with start(server.dsn, "--max-jobs", "1") as worker:
        assert worker.end() == 0
    (record,) = parked(broker, 1)
    assert record.error["message"] == "broken large"
    (event,) = server.events
    assert event["event_id"] == record.sentry_event
    assert len(json.dumps(event)) <= sentry.MAX_EVENT
    assert len(event["breadcrumbs"]["values"]) >= 10


def test_the_memory_of_a_worker_is_bounded_while_sentry_is_away(start, broker, language):
    with listening() as (port, _):
        with start(f"http://{KEY}@127.0.0.1:{port}/1") as worker:
            found = names(1500)
            enqueue(broker, found[:500])
            parked(broker, 500)
            before = resident_mb(worker.process.pid)
            enqueue(broker, found[500:])
            parked(broker, 1000)
            # 1,000 events, each with its stack, lines and list of modules, would be 10 MB and more.
            assert resident_mb(worker.process.pid) - before < 8
            assert worker.end(signal.SIGTERM) == 0
        assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": 1500}


def resident_mb(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


def test_a_certificate_that_is_not_accepted_loses_no_job(start, broker, tmp_path):
    with SentryServer(tls=make_certificate(tmp_path, "DNS:errors.example")) as server:
        enqueue(broker, names(5))
        with start(server.dsn, "--max-jobs", "5") as worker:
            assert worker.end() == 0
        assert server.requests == []
    assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": 5}
    assert len(worker.events("sentry is away")) == 1


@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php here")
def test_a_sender_of_php_that_is_killed_is_told_and_what_it_had_is_counted(shared_broker, tmp_path, server):
    server.hang.clear()
    app = App(tmp_path / "php")
    (app.folder / "failing.php").write_text(PHP)
    shared_broker.raw(b"flush shop_work\r\n")
    shared_broker.raw(b"flush shop_work_errors\r\n")
    queue = {"name": "work", "language": "php"}
    config = settings(shared_broker.address, queue) | {"sentry_dsn": server.dsn, "host": "worker1"}
    with WorkerProcess(
        *(app, shared_broker.address), language="php", app_name="failing.php", settings=config, debug=False
    ) as worker:
        enqueue(shared_broker, names(5))
        parked(shared_broker, 5)
        wait_until(lambda: server.requests, "the first event to be sent")
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(worker.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (sender,) = [line.split()[0] for line in listed.splitlines() if "consumer-sentry" in line]
        subprocess.run(["kill", "-KILL", sender], check=True)
        worker.wait_for("the process for it has ended")
        server.hang.set()
        assert worker.end(signal.SIGTERM) == 0
    assert counts(worker) == {"reported": 0, "repeated": 0, "not_reported": 5}
    assert json.dumps(worker.records).count("errors are not reported") == 1
