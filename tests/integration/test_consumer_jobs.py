"""What a worker does around its jobs: other tries, lines kept back, tenants, several queues, its log file."""

import json
import re
import signal

import pytest

from kestrel_stack.queue import Producer, Queue
from kestrel_stack.queue.envelope import Envelope, ParkedRecord, now_ms
from kestrel_stack.queue.interface import Counts
from support.beanstalkd import BeanstalkdProcess
from support.broker import BrokerProcess, wait_until
from support.worker import App, WorkerProcess, settings

QUEUE, ERRORS, LATER = "shop_work", "shop_work_errors", "shop_work_retry_10"

APPLICATION = """
import os, signal
from jobs_app import FOLDER, note, registry as _, wait_for
from kestrel_stack.consumer import Park, Registry, Retry

registry = Registry()
current = None


@registry.around
def tenant(context):
    global current
    if context.tenant == "unknown":
        raise Park("There is no such tenant.")
    note("around", f"{context.tenant} after {current}")
    current = context.tenant
    try:
        yield
    finally:
        if context.tenant == "sticky":
            raise RuntimeError("cannot let go")
        current = None


class Forgiving:
    def __init__(self, context):
        pass

    def __enter__(self):
        note("around", "inner")

    def __exit__(self, *_):
        return True


registry.around(Forgiving)


@registry.job("Note")
def note_it(data, context):
    note("done", f"{current} {context.queue} {os.getpid()}")


@registry.job("Fail")
def fail(data, context):
    context.log.debug("a detail", number=1, id="forged", queue="forged")
    context.log.info("going on")
    context.log.debug("another", time="noon")
    raise ValueError("broken")


@registry.job("Good")
def good(data, context):
    context.log.debug("a detail")
    note("done", context.id)


@registry.job("Flood")
def flood(data, context):
    for number in range(1500):
        context.log.debug("line", number=number)
    raise ValueError("broken")


@registry.job("Die")
def die(data, context):
    context.log.debug("before the end", attempt=context.attempt)
    note("begun", context.id)
    os.kill(os.getpid(), signal.SIGKILL)


@registry.job("Ask")
def ask(data, context):
    raise Retry(data.get("delay"), reason="the other side is busy")


@registry.job("Big")
def big(data, context):
    context.log.info("big", text="x" * 20_000_000)
    note("done", context.id)


@registry.job("Hang")
def hang(data, context):
    note("begun", context.id)
    wait_for("never")
"""


@pytest.fixture
def app(tmp_path):
    made = App(tmp_path / "app")
    (made.folder / "special.py").write_text(APPLICATION)
    return made


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
def broker(shared_broker):
    for queue in (QUEUE, ERRORS, LATER, "shop_work_retry_60", "shop_slow", "shop_slow_errors"):
        shared_broker.raw(b"flush %b\r\n" % queue.encode())
    return shared_broker


def start(app, servers, *flags, **options):
    """A worker of the application above, with JSON lines unless told otherwise."""
    queue = {"name": "work", "retry_delays": [10, 60], "job_timeout": 20}
    config = settings(servers, queue, {"name": "slow", "job_timeout": 20})
    return WorkerProcess(
        *(app, servers, *flags),
        **{"app_name": "special:registry", "settings": config, "debug": False, **options},
    )


def enqueue(broker, job, data=None, tenant="acme", queue="work"):
    with Producer("shop", tenant, servers=[broker.address], queues=["work", "slow"]) as send:
        return send.enqueue(job, data, queue=queue)


def parked(broker, count=1):
    wait_until(lambda: broker.stats(ERRORS).get("items", 0) >= count, f"{count} parked items")
    return [ParkedRecord.decode(item) for item in broker.drain(ERRORS)]


def settled(broker, queue=QUEUE):
    stats = broker.stats(queue)
    return (stats["items"], stats["open_transactions"]) == (0, 0)


def test_a_job_that_fails_is_written_for_another_try_and_then_confirmed(app, broker):
    before = now_ms()
    job = enqueue(broker, "Fail", {"n": 1})
    with start(app, broker.address) as worker:
        (line,) = worker.jobs(1)
        wait_until(lambda: settled(broker), "the confirmation")
        assert worker.end(signal.SIGTERM) == 0
    (again,) = map(Envelope.decode, broker.drain(LATER))
    assert (again.id, again.attempt, again.data, again.tenant) == (job, 2, {"n": 1}, "acme")
    assert before + 10_000 <= again.due_at <= now_ms() + 10_000
    assert again.enqueued_at <= again.due_at - 10_000
    assert (line["level"], line["outcome"], line["delay"]) == ("warning", "retry", 10)
    assert (line["reason"], line["error"]) == ("The job raised ValueError.", "broken")
    assert broker.drain(ERRORS) == []


@pytest.mark.parametrize(
    ("delay", "queue", "reason"),
    [
        (None, LATER, "The job asked for another try."),
        (60, "shop_work_retry_60", "The job asked for another try."),
        (
            5,
            LATER,
            "The job asked for another try after 5 s, which is not one of the queue's retry_delays: 10, 60.",
        ),
        (True, LATER, "The job asked for another try after True s, which is not"),
        ("60", LATER, "The job asked for another try after 60 s, which is not"),
    ],
)
def test_a_job_may_choose_among_the_delays_of_its_queue(app, broker, delay, queue, reason):
    enqueue(broker, "Ask", {"delay": delay})
    with start(app, broker.address) as worker:
        (line,) = worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    assert len(broker.drain(queue)) == 1
    assert reason in line["reason"]
    assert line["error"] == "the other side is busy"


def test_a_full_delay_queue_keeps_the_job_open_until_there_is_room(app, tmp_path):
    with BrokerProcess(tmp_path, queues={LATER: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(LATER, b"already here")
        job = enqueue(broker, "Fail")
        with start(app, broker.address) as worker:
            worker.wait_for("cannot put off, trying until it works")
            assert broker.stats(QUEUE)["open_transactions"] == 1
            assert broker.drain(LATER) == [b"already here"]
            worker.jobs(1)
            wait_until(lambda: settled(broker), "the confirmation")
            assert worker.end(signal.SIGTERM) == 0
        assert [Envelope.decode(item).id for item in broker.drain(LATER)] == [job]


def test_term_while_a_job_cannot_be_put_off_gives_it_back_with_its_attempt(app, tmp_path):
    with BrokerProcess(tmp_path, queues={LATER: {"max_items": 1}}) as broker:
        with broker.connect() as raw:
            raw.set(LATER, b"already here")
        enqueue(broker, "Fail")
        with start(app, broker.address) as worker:
            worker.wait_for("cannot put off")
            assert worker.end(signal.SIGTERM) == 0
            (line,) = worker.jobs(1)
        wait_until(lambda: broker.stats(QUEUE)["items"] == 1, "the job to come back")
        assert Envelope.decode(broker.drain(QUEUE)[0]).attempt == 1
        assert (line["outcome"], line["level"]) == ("lost", "warning")
        assert "SIGTERM" in line["reason"]


def test_a_job_that_kills_its_process_twice_is_parked_whatever_the_delays_and_others_flow(app, broker):
    deadly = enqueue(broker, "Die")
    enqueue(broker, "Note")
    with start(app, broker.address) as worker:
        first, second = worker.jobs(2)
        assert worker.end(signal.SIGTERM) == 0
    assert app.noted("begun") == [deadly, deadly]
    assert (first["id"], first["outcome"], first["attempt"]) == (deadly, "parked", 1)
    assert second["outcome"] == "done"
    (record,) = parked(broker)
    assert (record.attempts, record.error["class"]) == (1, "ChildDied")
    assert broker.drain(LATER) == []


def test_the_lines_that_a_dying_job_logged_are_written_for_both_of_its_runs(app, broker):
    job = enqueue(broker, "Die")
    with start(app, broker.address) as worker:
        worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    kept = worker.events("before the end")
    assert [(line["id"], line["level"]) for line in kept] == [(job, "debug")] * 2


def test_a_job_that_takes_too_long_is_tried_again(app, broker):
    enqueue(broker, "Hang")
    with start(app, broker.address, "--job-timeout", "0.3") as worker:
        (line,) = worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    assert (line["outcome"], line["reason"]) == ("retry", "The job took longer than 0.3 s and was killed.")
    assert Envelope.decode(broker.drain(LATER)[0]).attempt == 2


def test_debug_lines_are_written_before_the_line_of_a_job_that_fails_and_only_then(app, broker):
    enqueue(broker, "Good")
    failing = enqueue(broker, "Fail")
    with start(app, broker.address) as worker:
        worker.jobs(2)
        assert worker.end(signal.SIGTERM) == 0
    records = [record for record in worker.records if "id" in record]
    assert [record["event"] for record in records] == ["job", "going on", "a detail", "another", "job"]
    of_job = {"queue": QUEUE, "job": "Fail", "id": failing, "tenant": "acme", "attempt": 1}
    for record in records[1:]:
        assert record.items() >= of_job.items()
    _, going_on, detail, another, _ = records
    assert (detail["level"], detail["number"], detail["id_"], detail["queue_"]) == (
        "debug",
        1,
        "forged",
        "forged",
    )
    assert another["time_"] == "noon"
    assert detail["time"] <= going_on["time"] <= another["time"]


def test_with_debug_every_line_is_written_once_when_it_is_logged(app, broker):
    enqueue(broker, "Fail")
    with start(app, broker.address, "--max-jobs", "1", debug=True) as worker:
        assert worker.end() == 0
    order = re.findall(r" (?:debug|info|warning) (a detail|going on|another|job) queue=", worker.log)
    assert order == ["a detail", "going on", "another", "job"]


def test_of_a_flood_of_debug_lines_the_newest_thousand_are_written(app, broker):
    enqueue(broker, "Flood")
    with start(app, broker.address) as worker:
        worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    assert [line["number"] for line in worker.events("line")] == list(range(500, 1500))
    (dropped,) = worker.events("lines dropped")
    assert dropped["count"] == 500


def test_a_line_of_many_megabytes_is_cut_and_the_job_goes_on(app, broker):
    job = enqueue(broker, "Big")
    with start(app, broker.address) as worker:
        (line,) = worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    assert line["outcome"] == "done"
    assert app.noted("done") == [job]
    (big,) = worker.events("big")
    assert len(big["text"]) == 64 * 1024


def test_a_tenant_is_set_for_each_job_and_cleared_after_it_also_when_it_failed(app, broker):
    enqueue(broker, "Note", tenant="a")
    enqueue(broker, "Fail", tenant="b")
    enqueue(broker, "Note", tenant="c")
    with start(app, broker.address) as worker:
        lines = worker.jobs(3)
        assert worker.end(signal.SIGTERM) == 0
    assert [line["outcome"] for line in lines] == ["done", "retry", "done"]
    assert app.noted("around") == ["a after None", "inner", "b after None", "inner", "c after None", "inner"]
    assert [text.split()[:2] for text in app.noted("done")] == [["a", QUEUE], ["c", QUEUE]]


def test_a_tenant_that_cannot_be_cleared_fails_the_job_and_never_meets_the_next_one(app, broker):
    enqueue(broker, "Note", tenant="sticky")
    enqueue(broker, "Note", tenant="b")
    with start(app, broker.address) as worker:
        lines = worker.jobs(2)
        assert worker.end(signal.SIGTERM) == 0
    assert [(line["outcome"], line.get("error")) for line in lines] == [
        ("retry", "cannot let go"),
        ("done", None),
    ]
    assert app.noted("around") == ["sticky after None", "inner", "b after None", "inner"]
    first, second = (text.split()[2] for text in app.noted("done"))
    assert first != second


def test_what_is_set_up_around_a_job_may_park_it(app, broker):
    enqueue(broker, "Note", tenant="unknown")
    with start(app, broker.address) as worker:
        (line,) = worker.jobs(1)
        assert worker.end(signal.SIGTERM) == 0
    assert (line["outcome"], line["reason"]) == ("parked", "There is no such tenant.")
    assert app.noted("done") == []
    assert len(parked(broker)) == 1


def test_jobs_of_the_first_queue_come_before_those_of_the_others(app, broker):
    for number in range(6):
        enqueue(broker, "Note", {"n": number}, queue="slow" if number < 3 else "work")
    with start(app, broker.address, "--max-jobs", "6", queue="work,slow") as worker:
        lines = worker.jobs(6)
        assert worker.end() == 0
    assert [line["queue"] for line in lines] == [QUEUE] * 3 + ["shop_slow"] * 3
    assert settled(broker)
    assert settled(broker, "shop_slow")


def test_a_job_of_an_earlier_queue_is_taken_between_two_of_a_later_one(app, broker):
    enqueue(broker, "Note", queue="slow")
    enqueue(broker, "Note", queue="slow")
    with start(app, broker.address, "--max-jobs", "3", "--rate", "4/s", queue="work,slow") as worker:
        worker.jobs(1)
        enqueue(broker, "Note", queue="work")
        assert [line["queue"] for line in worker.jobs(3)] == ["shop_slow", QUEUE, "shop_slow"]
        assert worker.end() == 0


def test_a_failed_job_goes_to_the_error_queue_of_its_own_queue(app, broker):
    enqueue(broker, "Fail", queue="slow")
    with start(app, broker.address, "--max-jobs", "1", queue="work,slow") as worker:
        assert worker.end() == 0
    assert broker.drain(ERRORS) == []
    assert len(broker.drain("shop_slow_errors")) == 1


def test_several_queues_on_several_servers_are_all_worked_on(app, tmp_path):
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        for broker in (a, b):
            for queue in ("slow", "work"):
                enqueue(broker, "Note", queue=queue)
        with start(app, f"{a.address},{b.address}", "--max-jobs", "4", queue="slow,work") as worker:
            assert worker.end() == 0
            assert sorted(line["queue"] for line in worker.jobs(4)) == ["shop_slow"] * 2 + [QUEUE] * 2
        assert all(settled(broker, queue) for broker in (a, b) for queue in (QUEUE, "shop_slow"))


def test_several_queues_survive_a_broker_that_restarts(app, tmp_path):
    with BrokerProcess(tmp_path) as broker, start(app, broker.address, queue="slow,work") as worker:
        enqueue(broker, "Note", queue="work")
        worker.jobs(1)
        broker.kill()
        worker.wait_for("server is away")
        broker.start()
        enqueue(broker, "Note", queue="work")
        enqueue(broker, "Note", queue="slow")
        worker.jobs(3)
        worker.wait_until(lambda: worker.events("server is back"), "the server to be back")
        assert worker.end(signal.SIGTERM) == 0
    assert len(worker.events("server is away")) == 1


def test_usr1_opens_the_log_file_again_and_nothing_goes_to_stderr(app, broker, tmp_path):
    file = tmp_path / "worker.log"
    with start(app, broker.address, "--log-file", str(file)) as worker:
        wait_until(lambda: file.exists() and "worker begins" in file.read_text(), "the log file")
        file.rename(tmp_path / "worker.log.1")
        worker.send(signal.SIGUSR1)
        wait_until(file.exists, "the new log file")
        job = enqueue(broker, "Note")
        wait_until(lambda: job in file.read_text(), "the line of the job")
        assert worker.end(signal.SIGTERM) == 0
    assert [json.loads(text)["event"] for text in file.read_text().splitlines()] == ["job", "worker ends"]
    assert worker.log == ""
    assert file.stat().st_mode & 0o007 == 0


def test_a_worker_on_beanstalkd_does_retries_and_parks_as_on_kestrel(app, tmp_path):
    (tmp_path / "beanstalkd").mkdir()
    queues = [{"name": "work", "retry_delays": [1]}]
    with BeanstalkdProcess(tmp_path / "beanstalkd") as server:
        url = f"beanstalkd://{server.address}"
        store = Queue.open(f"{url}/shop", queues=queues)
        with Producer.on(store, "acme") as send:
            good = send.enqueue("Note", queue="work")
            bad = send.enqueue("Fail", queue="work")
        config = settings("127.0.0.1:1", *queues)
        with start(app, url, settings=config) as worker:
            lines = worker.jobs(3)
            wait_until(lambda: store.count("work").reserved == 0, "the last confirmation")
            assert worker.end(signal.SIGTERM) == 0
        assert [(line["id"], line["attempt"], line["outcome"]) for line in lines] == [
            *((good, 1, "done"), (bad, 1, "retry"), (bad, 2, "parked")),
        ]
        assert store.count("work") == Counts(ready=0, reserved=0, delayed={1: 0}, parked=1)
