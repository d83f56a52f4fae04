"""What only the PHP worker has to be held to; what every language has is in tests/contract/consumer."""

import signal
from pathlib import Path

import pytest

from kestrel_stack.consumer import sentry
from kestrel_stack.queue import ParkedRecord, Producer
from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.interface import Counts, Queue
from kestrel_stack.queue.servers import parse_servers
from support.beanstalkd import BeanstalkdProcess
from support.broker import BrokerProcess, wait_until
from support.sentry import SentryServer
from support.worker import App, WorkerProcess, is_running, settings

QUEUE = {"name": "work", "language": "php", "retry_delays": [1]}


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "app")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def store(broker):
    with Queue.open(f"kestrel://{broker.address}/shop", queues=[QUEUE]) as opened:
        broker.raw(b"flush shop_work\r\n")
        broker.raw(b"flush shop_work_errors\r\n")
        yield opened


def start(app, servers, *flags, **more):
    return WorkerProcess(app, str(servers), *flags, language="php", debug=False, **more)


def enqueue(store, job, data=None):
    return Producer.on(store, "acme").enqueue(job, data or {}, queue="work")


def take(broker, queue):
    client = KestrelClient(parse_servers(broker.address)[0])
    return [ParkedRecord.decode(item) for item in iter(lambda: client.get(queue), None)]


def children(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sockets(pid):
    targets = (str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir())
    return {target for target in targets if target.startswith("socket:")}


def test_what_a_killed_worker_held_is_free_at_once_although_what_its_jobs_started_lives_on(
    app, broker, store
):
    with start(app, broker.address) as worker:
        enqueue(store, "KillSelf", {"times": 1})  # its second child starts while the item is held
        enqueue(store, "Daemonise")
        app.wait_for("done", 2)
        held = enqueue(store, "Wait")
        app.wait_for("begun", 3)
        (child,) = children(worker.process.pid)
        assert not sockets(child) & sockets(worker.process.pid)
        worker.process.kill()
        worker.process.wait()
        wait_until(lambda: not is_running(child), "the child to die with its parent")
        with start(app, broker.address, name="next") as other:
            app.go()
            assert other.jobs(1)[0]["id"] == held
            assert other.end(signal.SIGTERM) == 0
        app.wait_for("daemon")


def test_errors_go_to_sentry_by_way_of_another_process(app, broker, store):
    with SentryServer() as server:
        with start(app, broker.address, "--max-jobs", "5", environ={"SENTRY_DSN": server.dsn}) as worker:
            for job in ("Debug", "Exit", "KillSelf", "Nobody", "Note"):
                enqueue(store, job, {"lines": 1, "fail": True, "status": 0})
            assert worker.end() == 0
        parked = take(broker, "shop_work_errors")
        assert [record.sentry_event for record in parked] == [event["event_id"] for event in server.events]
        kinds = [event["exception"]["values"][0]["type"] for event in server.events]
        assert kinds == ["RuntimeException", "Exit", "ChildDied", "UnknownJob"]
        first = server.events[0]
        assert first["tags"]["job"] == "Debug" and first["tags"]["tenant"] == "acme"
        assert [crumb["message"] for crumb in first["breadcrumbs"]["values"]] == [
            *('step number=0 text=""', "now"),
        ]
        last = first["exception"]["values"][0]["stacktrace"]["frames"][-1]
        assert (last["filename"], last["abs_path"]) == ("jobs_app.php", str(app.folder / "jobs_app.php"))
        assert server.dsn not in worker.log and "0123456789abcdef" not in worker.log


def test_a_sentry_that_hangs_holds_up_no_job(app, broker, store):
    with SentryServer() as server:
        server.hang.clear()
        with start(app, broker.address, environ={"SENTRY_DSN": server.dsn}) as worker:
            for _ in range(20):
                enqueue(store, "Raise", {"message": "as told"})
            enqueue(store, "Note")
            worker.jobs(21)
            # Not one request of Sentry has been answered, and the first has hung all the time.
            assert len(server.requests) <= 1
            assert server.events == []
            assert worker.end(signal.SIGTERM) == 0
        (told,) = worker.events("errors")
        counts = (told["reported"], told["repeated"], told["not_reported"])
        assert counts == (0, 20 - sentry.BURST, sentry.BURST)


def test_a_worker_on_beanstalkd_does_retries_and_parks_as_on_kestrel(app, tmp_path):
    (tmp_path / "beanstalkd").mkdir()
    with BeanstalkdProcess(tmp_path / "beanstalkd") as server:
        url = f"beanstalkd://{server.address}"
        with Queue.open(f"{url}/shop", queues=[QUEUE]) as store:
            good, bad = enqueue(store, "Note"), enqueue(store, "Raise", {"message": "no"})
            with start(app, url, settings=settings("127.0.0.1:1", QUEUE)) as worker:
                lines = worker.jobs(3)
                wait_until(lambda: store.count("work").reserved == 0, "the last confirmation")
                assert worker.end(signal.SIGTERM) == 0
            assert [(line["id"], line["attempt"], line["outcome"]) for line in lines] == [
                *((good, 1, "done"), (bad, 1, "retry"), (bad, 2, "parked")),
            ]
            assert store.count("work") == Counts(ready=0, reserved=0, delayed={1: 0}, parked=1)
