"""Pings: a worker says between two jobs, and while it has none, which release it runs."""

import base64
import json
import re
import signal
import socket
import uuid

import pytest

from kestrel_stack.queue import names
from kestrel_stack.queue.pings import Ping, PingAnswer
from support.broker import BrokerProcess, wait_until
from support.jobs import Stage, cases, now_ms
from support.ports import nobody
from support.worker import App

TERM = signal.SIGTERM
HOST = socket.gethostname()


def ping_queue(queue="work", host=HOST):
    return names.ping(f"shop_{queue}", host)


def put(broker, body, queue="work", expires=0, host=HOST):
    name = ping_queue(queue, host).encode()
    with broker.connect() as raw:
        raw.ask(b"set %b 0 %d %d\r\n%b\r\n" % (name, expires, len(body), body), b"STORED\r\n")


def ping(broker, queue="work", deploy=None, **more):
    """Put a ping on its queue and return its id."""
    made = Ping(deploy=deploy)
    put(broker, made.encode(), queue, **more)
    return made.id


def waiting(broker, queue="work", host=HOST):
    """How many pings no worker has taken."""
    return broker.stats(ping_queue(queue, host)).get("items", 0)


def answers(broker, count=1, queue="work", host=HOST):
    """Wait for so many answers; return all that are there."""
    name = names.ping_answers(ping_queue(queue, host))
    wait_until(lambda: broker.stats(name).get("items", 0) >= count, f"{count} answers on {name}")
    return [PingAnswer.decode(body) for body in broker.drain(name)]


def ping_queues(broker):
    """The queues for pings that the server has, also empty ones."""
    text = broker.raw(b"stats\r\n").decode("latin-1")
    return re.findall(r"^STAT queue_(shop_work\S*_ping_\S+)_logsize ", text, re.MULTILINE)


def number(broker, key):
    """One of the server's own numbers."""
    text = broker.raw(b"stats\r\n").decode("latin-1")
    return int(re.search(rf"^STAT {key} ([0-9]+)\r$", text, re.MULTILINE)[1])


def look_has_passed(broker):
    """Wait until an idle worker has asked often enough for an item to have looked for pings meanwhile."""

    before = number(broker, "cmd_get")
    wait_until(lambda: number(broker, "cmd_get") >= before + 6, "the worker to look")


@pytest.fixture
def two(own_stage, tmp_path):
    """Two servers: the stage's own, and a second one."""
    with BrokerProcess(tmp_path / "second") as second:
        yield own_stage, second


@pytest.fixture
def down():
    """The address of a server that is not there."""
    return nobody()


def test_an_idle_worker_answers_with_what_it_is(stage):
    with stage.worker() as worker:
        asked = ping(stage.broker, deploy="20261121-101500")
        [answer] = answers(stage.broker)
        assert worker.end(TERM) == 0
    assert answer == PingAnswer(
        id=asked,
        release=stage.app.folder.name,
        pid=worker.process.pid,
        language=stage.language,
        queue="work",
        host=HOST,
        deploy="20261121-101500",
    )


def test_the_host_is_called_as_in_the_settings_file(stage):
    host = "worker7.example.com"
    config = {
        "app": "shop",
        "namespace": "shop",
        "environment": "test",
        "host": host,
        "servers": [stage.broker.address],
        "queues": [{"name": "work", "language": stage.language}],
    }
    with stage.worker(settings=config) as worker:
        asked = ping(stage.broker, host=host)
        [answer] = answers(stage.broker, host=host)
        assert worker.end(TERM) == 0
    assert (answer.id, answer.host, answer.deploy) == (asked, host, None)


def test_the_release_is_the_folder_the_worker_was_started_in_whatever_current_is_by_then(
    language, contract_broker, tmp_path
):
    for release in ("R1", "R2"):
        (tmp_path / "releases" / release).mkdir(parents=True)
    current = tmp_path / "current"
    current.symlink_to("releases/R1")
    stage = Stage(language, App(current), contract_broker)
    stage.clear()
    with stage.worker(environ={"KESTREL_STACK_RELEASE": "what-the-environment-says"}) as worker:
        worker.wait_until(lambda: worker.events("worker begins"), "it to begin")
        current.unlink()
        current.symlink_to("releases/R2")
        ping(stage.broker)
        [answer] = answers(stage.broker)
        worker.process.send_signal(TERM)
        assert worker.process.wait() == 0
    assert answer.release == "R1"


def test_a_ping_is_answered_before_a_backlog_of_a_hundred_thousand_jobs_is_worked_off(own_stage):
    stage = own_stage
    body = json.dumps(
        {
            "v": 1,
            "id": str(uuid.uuid4()),
            "job": "Slow",
            "tenant": "acme",
            "data": {},
            "attempt": 1,
            "enqueued_at": 1,
        }
    ).encode()
    count, batch = 100_000, 1_000
    with stage.broker.connect() as raw:
        for _ in range(count // batch):
            raw.ask(b"set shop_work 0 0 %d\r\n%b\r\n" % (len(body), body) * batch, b"STORED\r\n" * batch)
    with stage.worker() as worker:
        worker.jobs(5)
        before = stage.count()
        asked = ping(stage.broker)
        [answer] = answers(stage.broker)
        left = stage.count()
        assert worker.end(TERM) == 0
    assert answer.id == asked
    # Each job takes 20 ms, so these are the jobs of a few seconds; a busy machine only does fewer of them.
    assert before - left < 250


def test_a_ping_waits_for_the_job_in_hand_and_no_longer(stage):
    with stage.worker(debug=True) as worker:
        stage.send("Wait")
        after = stage.send("Wait")
        stage.app.wait_for("begun")
        ping(stage.broker)
        stage.app.go()
        answers(stage.broker)
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    lines = worker.log.splitlines()
    first = next(number for number, line in enumerate(lines) if " info job " in line)
    answered = next(number for number, line in enumerate(lines) if " ping answered " in line)
    second = next(number for number, line in enumerate(lines) if " info job " in line and after in line)
    assert first < answered
    # At most this one job was in between: its look comes once a second.
    assert answered < second + 2


def test_a_worker_with_a_rate_limit_answers_while_it_waits(stage):
    for _ in range(2):
        stage.send("Note")
    with stage.worker("--rate", "0.01/s") as worker:
        worker.jobs(1)
        ping(stage.broker)
        assert len(answers(stage.broker)) == 1
        assert (stage.count(), len(stage.app.noted("done"))) == (1, 1)
        assert worker.end(TERM) == 0


def test_pings_are_answered_on_the_server_they_are_on(two):
    stage, second = two
    with stage.worker(servers=f"{stage.broker.address},{second.address}") as worker:
        asked = [ping(stage.broker), ping(second)]
        assert [answers(stage.broker)[0].id, answers(second)[0].id] == asked
        # And again, since each server has a time of its own for the next look.
        asked = [ping(stage.broker), ping(second)]
        assert [answers(stage.broker)[0].id, answers(second)[0].id] == asked
        assert worker.end(TERM) == 0


def test_a_server_that_is_down_does_not_keep_a_worker_from_answering_on_the_other(stage, down):
    with stage.worker(servers=f"{down},{stage.broker.address}") as worker:
        asked = ping(stage.broker)
        assert [answer.id for answer in answers(stage.broker)] == [asked]
        assert worker.end(TERM) == 0


def test_a_worker_answers_again_when_its_server_is_back(own_stage):
    stage = own_stage
    with stage.worker() as worker:
        ping(stage.broker)
        answers(stage.broker)
        stage.broker.kill()
        worker.wait_until(lambda: worker.events("server is away"), "it to notice")
        stage.broker.start()
        asked = ping(stage.broker)
        assert [answer.id for answer in answers(stage.broker)] == [asked]
        assert worker.end(TERM) == 0


def test_a_worker_of_several_queues_answers_for_its_own(stage):
    queues = [{"name": "work", "also": ["work2"]}, {"name": "work2"}]
    for _ in range(3):
        stage.send("Note", queue="work2")
    with stage.worker(queues=queues) as worker:
        not_its_own = ping(stage.broker, "work2")
        worker.jobs(3)
        for _ in range(2):
            ping(stage.broker)
            assert [answer.queue for answer in answers(stage.broker)] == ["work"]
        assert waiting(stage.broker, "work2") == 1
        assert worker.end(TERM) == 0
    with stage.worker(queues=queues, queue="work2") as worker:
        [answer] = answers(stage.broker, queue="work2")
        assert worker.end(TERM) == 0
    assert (answer.id, answer.queue) == (not_its_own, "work2")


def test_a_worker_whose_first_queue_has_no_end_of_work_answers(stage):
    with stage.worker(queues=[{"name": "work", "also": ["work2"]}, {"name": "work2"}]) as worker:
        for _ in range(200):
            stage.send("Slow", queue="work2")
        stage.app.wait_for("done")
        asked = ping(stage.broker)
        assert [answer.id for answer in answers(stage.broker)] == [asked]
        assert stage.count("work2") > 0
        assert worker.end(TERM) == 0


def test_garbage_is_dropped_and_harms_nobody(stage):
    with stage.worker() as worker:
        job = stage.send("Note")
        worker.jobs(1)
        for case in cases("pings.json", "invalid"):
            put(stage.broker, base64.b64decode(case["body_b64"]))
        put(stage.broker, b"x" * 1_000_000)
        put(stage.broker, b'{"v":1,"id":"' + b"6" * 1_000_000 + b'"}')
        put(stage.broker, bytes(range(256)) * 4096)
        asked = ping(stage.broker)
        [answer] = answers(stage.broker)
        assert (answer.id, answer.pid) == (asked, worker.process.pid)
        assert waiting(stage.broker) == 0
        jobs = [job, stage.send("Note")]
        assert [line["id"] for line in worker.jobs(2)] == jobs
        assert worker.end(TERM) == 0
    assert {record["level"] for record in worker.records} == {"info"}


def test_a_flood_of_pings_does_not_hold_up_the_jobs(stage):
    count = 5_000
    body = Ping().encode()
    one = b"set %b 0 60 %d\r\n%b\r\n" % (ping_queue().encode(), len(body), body)
    with stage.broker.connect() as raw:
        raw.ask(one * count, b"STORED\r\n" * count)
    ids = [stage.send("Note") for _ in range(5)]
    with stage.worker() as worker:
        assert [line["id"] for line in worker.jobs(5)] == ids
        assert waiting(stage.broker) > 0
        assert worker.end(TERM) == 0


def test_pings_that_nobody_answered_expire_and_leave_nothing(stage):
    count = 2_000
    body = Ping().encode()
    one = b"set %b 0 1 %d\r\n%b\r\n" % (ping_queue().encode(), len(body), body)
    with stage.broker.connect() as raw:
        raw.ask(one * count, b"STORED\r\n" * count)
    expired = now_ms() + 1_100
    wait_until(lambda: now_ms() > expired, "them to expire")
    assert waiting(stage.broker) == count, "somebody else has looked at them"
    with stage.worker() as worker:
        wait_until(
            lambda: ping_queue() not in ping_queues(stage.broker), "the worker to remove what they were in"
        )
        asked = ping(stage.broker)
        assert [answer.id for answer in answers(stage.broker)] == [asked]
        assert worker.end(TERM) == 0


def test_a_worker_makes_no_queue_for_pings_that_were_never_there(stage):
    with stage.worker() as worker:
        # A first one, so that it is known to look.
        ping(stage.broker)
        answers(stage.broker)
        for queue in ping_queues(stage.broker):
            stage.broker.raw(b"delete %b\r\n" % queue.encode())
        made = number(stage.broker, "queue_creates")
        look_has_passed(stage.broker)
        assert ping_queues(stage.broker) == []
        assert number(stage.broker, "queue_creates") == made
        assert worker.end(TERM) == 0


def test_a_server_that_takes_no_answer_costs_no_job(own_stage):
    stage = own_stage
    ids = [stage.send("Slow") for _ in range(100)]
    ping(stage.broker)
    assert stage.broker.raw(b"status readonly\r\n").startswith(b"END")
    with stage.worker() as worker:
        wait_until(lambda: waiting(stage.broker) == 0, "it to take the ping")
        assert [line["id"] for line in worker.jobs(100)] == ids
        stage.wait_until_settled()
        assert stage.broker.raw(b"status up\r\n").startswith(b"END")
        asked = ping(stage.broker)
        assert [answer.id for answer in answers(stage.broker)] == [asked]
        assert worker.end(TERM) == 0
    assert stage.app.noted("done") == ids
    assert {line["outcome"] for line in worker.events("job")} == {"done"}
    assert not worker.events("job may be delivered again")


def test_a_worker_whose_queue_has_a_very_long_name_works_without_pings(stage):
    name = "work" + "7" * 180
    with stage.worker(queue=name) as worker:
        job = stage.send("Note", queue=name)
        assert worker.jobs(1)[0]["id"] == job
        [said] = worker.events("pings are not answered")
        assert "200" in said["error"]
        assert worker.end(TERM) == 0


def test_a_worker_for_one_job_takes_no_ping(stage):
    ping(stage.broker)
    stage.send("Note")
    with stage.worker("--once") as worker:
        assert worker.end() == 0
    assert waiting(stage.broker) == 1
