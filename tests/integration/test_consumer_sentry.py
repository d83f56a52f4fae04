"""What workers report to Sentry, which is a stand-in here, and that jobs never wait for it."""

import importlib.util
import json
import signal

import pytest

from kestrel_stack.consumer import sentry
from kestrel_stack.consumer.log import Log
from kestrel_stack.queue import Producer
from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.ports import nobody
from support.sentry import KEY, SentryServer
from support.worker import App, WorkerProcess, settings

QUEUE, ERRORS = "shop_work", "shop_work_errors"

APPLICATION = """
import os, signal, sys, time
import jobs_app
from kestrel_stack.consumer import Park, Registry

registry = Registry()


@registry.job("Fail")
def fail(data, context):
    context.log.debug("a detail", number=1)
    context.log.info("going on", text="x" * 5000)
    raise ValueError("broken")


@registry.job("Give")
def give(data, context):
    raise Park("It will never work.")


@registry.job("Good")
def good(data, context):
    context.log.debug("from a good job")
    try:
        raise KeyError("dealt with")
    except KeyError:
        pass


@registry.job("Die")
def die(data, context):
    context.log.debug("before the end")
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@registry.job("Hang")
def hang(data, context):
    time.sleep(600)
"""

# Without the library, whether it is installed here or not: the module cannot be imported.
NO_SDK = "import sys\nsys.modules['sentry_sdk'] = None\n"
has_sdk = pytest.mark.skipif(
    importlib.util.find_spec("sentry_sdk") is None, reason="sentry_sdk is not installed"
)


@pytest.fixture
def app(tmp_path):
    made = App(tmp_path / "app")
    (made.folder / "special.py").write_text(APPLICATION)
    (made.folder / "without.py").write_text(NO_SDK + APPLICATION)
    return made


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def broker(shared_broker):
    for queue in (QUEUE, ERRORS, "shop_work_retry_10"):
        shared_broker.raw(b"flush %b\r\n" % queue.encode())
    return shared_broker


@pytest.fixture
def server():
    with SentryServer() as started:
        yield started


def start(app, broker, dsn, *flags, delays=(), app_name="without:registry", environ=None):
    config = settings(broker.address, {"name": "work", "retry_delays": list(delays), "job_timeout": 20})
    config |= {"sentry_dsn": dsn, "host": "worker1"}
    environ = {"KESTREL_STACK_RELEASE": "20261121T011500Z-1a2b3c4d", **(environ or {})}
    return WorkerProcess(
        *(app, broker.address, *flags), app_name=app_name, settings=config, debug=False, environ=environ
    )


def enqueue(broker, *jobs):
    with Producer("shop", "acme", servers=[broker.address], queues=["work"]) as send:
        return [send.enqueue(job, queue="work") for job in jobs]


def parked(broker, count=1):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) >= count, f"{count} parked items")
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def crumbs(event):
    found = event["breadcrumbs"]
    return [crumb["message"] for crumb in (found["values"] if isinstance(found, dict) else found)]


def check_failed_job(event, worker, level):
    """What an event must hold, whoever sent it."""
    tags = {
        "job": "Fail",
        "queue": QUEUE,
        "tenant": "acme",
        "attempt": "1",
        "release": "20261121T011500Z-1a2b3c4d",
    }
    assert event["level"] == level
    assert dict(event["tags"]).items() >= tags.items()
    assert (event["release"], event["environment"]) == ("20261121T011500Z-1a2b3c4d", "test")
    assert event["server_name"] == "worker1"
    error = event["exception"]["values"][-1]
    assert (error["type"], error["value"]) == ("ValueError", "broken")
    last = error["stacktrace"]["frames"][-1]
    assert (last["function"], last["context_line"].strip()) == ("fail", 'raise ValueError("broken")')
    detail, going_on = crumbs(event)
    assert detail == "a detail number=1"
    assert going_on == f"going on text={'x' * 5000}"[: sentry.MAX_CRUMB_TEXT]
    assert KEY not in worker.log


@pytest.mark.parametrize("app_name", ["without:registry", pytest.param("special:registry", marks=has_sdk)])
@pytest.mark.parametrize(("delays", "level"), [((), "error"), ((10,), "warning")])
def test_a_failed_job_is_reported_with_its_tags_stack_and_lines(app, broker, server, app_name, delays, level):
    enqueue(broker, "Good", "Fail", "Good")
    with start(app, broker, server.dsn, "--max-jobs", "3", delays=delays, app_name=app_name) as worker:
        assert worker.end() == 0
    wait_until(lambda: server.events, "the event")
    (event,) = server.events
    check_failed_job(event, worker, level)
    if not delays:
        (record,) = parked(broker)
        assert record.sentry_event == event["event_id"]


@has_sdk
def test_an_application_that_has_set_up_the_library_keeps_its_own(app, broker, server):
    (app.folder / "own.py").write_text(
        "import sentry_sdk\n"
        f"sentry_sdk.init({server.dsn!r}, release='mine', default_integrations=False)\n" + APPLICATION
    )
    enqueue(broker, "Fail")
    with start(app, broker, server.dsn, app_name="own:registry") as worker:
        (record,) = parked(broker)
        wait_until(lambda: server.events, "the event")
        assert worker.end(signal.SIGTERM) == 0
    (event,) = server.events
    assert event["release"] == "mine"
    assert record.sentry_event == event["event_id"]
    assert event["tags"]["tenant"] == "acme"


@pytest.mark.parametrize("app_name", ["without:registry", pytest.param("special:registry", marks=has_sdk)])
def test_what_no_child_can_report_is_reported_by_its_parent(app, broker, server, app_name):
    enqueue(broker, "Die", "Hang", "Nobody")
    with broker.connect() as raw:
        raw.set(QUEUE, b"not JSON")
    with start(app, broker, server.dsn, "--max-jobs", "4", "--job-timeout", "3", app_name=app_name) as worker:
        assert worker.end() == 0
    wait_until(lambda: len(server.events) == 4, "the events")
    died, hung, unknown, garbage = server.events
    assert [event["exception"]["values"][0]["type"] for event in server.events] == [
        *("ChildDied", "JobTimeout", "UnknownJob", "InvalidEnvelope"),
    ]
    assert crumbs(died) == ["before the end"] * 2
    assert died["extra"]["stderr"] == "last words\n"
    assert "in hang" in hung["extra"]["stderr"]
    assert crumbs(hung) == crumbs(unknown) == crumbs(garbage) == []
    assert died["tags"]["tenant"] == "acme"
    assert "tenant" not in garbage["tags"]
    assert {event["level"] for event in server.events} == {"error"}
    assert [record.sentry_event for record in parked(broker, 4)] == [
        event["event_id"] for event in server.events
    ]


def test_a_job_that_takes_too_long_is_a_warning_while_it_is_tried_again(app, broker, server):
    enqueue(broker, "Hang")
    flags = ("--max-jobs", "1", "--job-timeout", "0.3")
    with start(app, broker, server.dsn, *flags, delays=(10,)) as worker:
        assert worker.end() == 0
    assert [event["level"] for event in server.events] == ["warning"]


def test_without_a_dsn_nothing_is_sent_and_no_event_is_named(app, broker, server):
    enqueue(broker, "Fail", "Die")
    with start(app, broker, None, "--max-jobs", "2") as worker:
        assert worker.end() == 0
    assert [record.sentry_event for record in parked(broker, 2)] == [None, None]
    assert server.requests == []


def test_the_environment_variable_comes_before_the_settings_file(app, broker, server):
    enqueue(broker, "Give")
    with SentryServer() as other:
        with start(app, broker, other.dsn, "--max-jobs", "1", environ={"SENTRY_DSN": server.dsn}) as worker:
            assert worker.end() == 0
        assert other.requests == []
    assert [event["exception"]["values"][0]["value"] for event in server.events] == ["It will never work."]


def test_a_wrong_dsn_is_told_without_showing_it_and_jobs_are_done(app, broker):
    enqueue(broker, "Good", "Fail")
    with start(app, broker, f"https://{KEY}:secret@sentry.example", "--max-jobs", "2") as worker:
        assert worker.end() == 0
    (told,) = worker.events("errors are not reported")
    assert "copy it from the project's settings" in told["error"]
    assert KEY not in worker.log
    assert [line["outcome"] for line in worker.jobs(2)] == ["done", "parked"]


@pytest.mark.parametrize("app_name", ["without:registry", pytest.param("special:registry", marks=has_sdk)])
def test_a_sentry_that_hangs_holds_up_no_job(app, broker, server, app_name):
    server.hang.clear()
    jobs = ["Fail"] * 150
    enqueue(broker, *jobs)
    with start(app, broker, server.dsn, app_name=app_name) as worker:
        # Were each job to wait for it, this would take 150 times its time limit of 2 s.
        assert len(parked(broker, len(jobs))) == len(jobs)
        assert server.events == []
        assert worker.end(signal.SIGTERM) == 0
    server.hang.set()
    assert KEY not in worker.log


def test_a_sentry_that_is_down_is_told_once_and_when_it_is_back(app, broker, server):
    log = []
    reporter = sentry.Reporter(
        *(sentry.Dsn.parse(f"http://{KEY}@{nobody()}/1"), Log(lambda *line: log.append(line)), {})
    )
    for _ in range(3):
        reporter.report(sentry.make_event("A", "b", level="error", tags={}))
    reporter.close(10)
    assert [level for level, event, _ in log if event == "sentry is away"] == ["warning"]
    assert [level for level, event, _ in log if event == "sentry is still away"] == ["debug", "debug"]
    reporter._dsn = sentry.Dsn.parse(server.dsn)
    reporter.report(sentry.make_event("A", "b", level="error", tags={}))
    reporter.close(10)
    (back,) = [fields for _, event, fields in log if event == "sentry is back"]
    assert back["not_reported"] == 3
    assert log[-1] == ("info", "errors", {"reported": 1, "repeated": 0, "not_reported": 3})
    assert KEY not in repr(log)


def test_a_sentry_that_has_enough_gets_nothing_for_as_long_as_it_says(server):
    server.status, server.headers = 429, {"Retry-After": "3600"}
    reporter = sentry.Reporter(sentry.Dsn.parse(server.dsn), Log(lambda *_: None), {})
    for _ in range(5):
        reporter.report(sentry.make_event("A", "b", level="error", tags={}))
    reporter.close(10)
    assert len(server.requests) == 1


def test_what_waits_is_bounded_and_the_rest_is_counted(server):
    server.hang.clear()
    log = []
    reporter = sentry.Reporter(
        *(sentry.Dsn.parse(server.dsn), Log(lambda *line: log.append(line)), {}),
        timeout=30,
        waiting=5,
        repeats=sentry.Repeats(100),
    )
    reporter.report(sentry.make_event("A", "b", level="error", tags={}))
    wait_until(lambda: server.requests, "the first to be sent")
    for _ in range(20):
        reporter.report(sentry.make_event("A", "b", level="error", tags={}))
    reporter.close(0)
    assert log == [
        ("warning", "errors were not reported", {"count": 21}),
        ("info", "errors", {"reported": 0, "repeated": 0, "not_reported": 21}),
    ]
    server.hang.set()
    wait_until(lambda: len(server.events) == 6, "those that waited")


def test_an_envelope_is_sent_as_sentry_wants_it(server):
    event_id = sentry.send(server.dsn, {"message": "Zo\u00eb", "level": "info"})
    ((path, headers, body),) = server.requests
    assert path == "/sub/api/7/envelope/"
    assert headers["Content-Type"] == "application/x-sentry-envelope"
    assert f"sentry_key={KEY}" in headers["X-Sentry-Auth"]
    assert "sentry_version=7" in headers["X-Sentry-Auth"]
    head, item, data = body.removesuffix(b"\n").split(b"\n")
    assert json.loads(head)["event_id"] == event_id
    assert json.loads(item) == {"type": "event", "length": len(data)}
    assert json.loads(data) == {"message": "Zo\u00eb", "level": "info", "event_id": event_id}


@pytest.mark.parametrize("status", [400, 401, 403, 500, 302])
def test_an_event_that_is_not_taken_is_an_error_in_one_line_without_the_key(server, status):
    server.status = status
    with pytest.raises(OSError, match=f"answered with status {status}") as caught:
        sentry.send(server.dsn, {})
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sending_to_a_sentry_that_hangs_ends_in_bounded_time(server):
    server.hang.clear()
    with pytest.raises(OSError, match=r"gave no answer in 0\.2 s"):
        sentry.send(server.dsn, {}, timeout=0.2)


@pytest.mark.parametrize(
    ("dsn", "where", "path"),
    [
        ("https://abc@sentry.example/1", "https://sentry.example:443", "/api/1/envelope/"),
        ("http://abc:secret@10.0.0.1:9000/a/b/42", "http://10.0.0.1:9000", "/a/b/api/42/envelope/"),
        ("http://abc@[::1]:8765/2", "http://[::1]:8765", "/api/2/envelope/"),
    ],
)
def test_the_parts_of_a_dsn(dsn, where, path):
    found = sentry.Dsn.parse(dsn)
    assert (str(found), found.path, found.key) == (where, path, "abc")
    assert "abc" not in repr(found)


@pytest.mark.parametrize(
    "dsn",
    ["", "abc", "ftp://abc@h/1", "https://h/1", "https://abc@h", "https://abc@h:0/1", "https://abc@h/1?x\ny"],
)
def test_what_is_no_dsn_is_refused(dsn):
    with pytest.raises(ValueError, match="is not like https://KEY@HOST/PROJECT"):
        sentry.Dsn.parse(dsn)
