"""What becomes of a job that was not done: tests/contract/jobs/retries.json, with real workers."""

import json
import signal
import subprocess
import sys

import pytest

from kestrel_stack.queue.envelope import Envelope
from support.broker import DEADLINE_S, wait_until
from support.jobs import cases, now_ms
from support.worker import clean_environment

TERM = signal.SIGTERM
RAISED = {"python": "ValueError", "php": "InvalidArgumentException"}
RULES = [case for case in cases("retries.json", "rules") if case["failure"] != "child_died"]


def failing(case):
    """The job, and its data, that fails as a case wants."""
    return {
        "raises": ("Raise", {"message": "no"}),
        "timeout": ("Wait", {}),
        "asks_retry": ("AskRetry", {} if case.get("delay") is None else {"delay": case["delay"]}),
        "asks_park": ("AskPark", {"reason": "The account is closed."}),
        "unknown_job": ("Nobody", {}),
    }[case["failure"]]


def test_every_rule_holds(stage):
    """Each list of delays is that of a queue of its own; one worker works on all of them."""
    lists = []
    for case in RULES:
        if case["retry_delays"] not in lists:
            lists.append(case["retry_delays"])
    queues = [{"name": f"work{number}", "retry_delays": delays} for number, delays in enumerate(lists)]
    began = now_ms()
    bodies = {}
    for number, case in enumerate(RULES):
        queue = f"work{lists.index(case['retry_delays'])}"
        if case["failure"] == "bad_envelope":
            body = b"no envelope %d" % number
            stage.put(body, queue)
        else:
            job, data = failing(case)
            envelope = Envelope(job, "acme", {**data, "case": number}, attempt=case["attempt"])
            body = envelope.encode()
            stage.put(body, queue)
        bodies[case["name"]] = (queue, body)
    names = ",".join(queue["name"] for queue in queues)
    with stage.worker("--job-timeout", "2", queue=names, queues=queues) as worker:
        lines = worker.jobs(len(RULES))
        for queue in queues:
            stage.wait_until_settled(queue["name"])
        assert worker.end(TERM) == 0

    waiting, parked = {}, {}
    for queue in queues:
        for delay in set(queue["retry_delays"]):
            name = f"{queue['name']}_retry_{delay}"
            waiting[queue["name"], delay] = [json.loads(item) for item in stage.take(name, 0)]
        if stage.count(f"{queue['name']}_errors"):
            parked[queue["name"]] = {record.body: record for record in stage.parked(1, queue["name"])}
    outcomes = {line.get("id"): line for line in lines}
    for case in RULES:
        queue, body = bodies[case["name"]]
        if "park" in case["outcome"]:
            record = parked[queue].pop(body)
            assert record.attempts == (case["attempt"] or 0), case["name"]
            continue
        envelope, delay = json.loads(body), case["outcome"]["retry_after"]
        (again,) = (item for item in waiting[queue, delay] if item["id"] == envelope["id"])
        waiting[queue, delay].remove(again)
        assert began + delay * 1000 <= again["due_at"] <= now_ms() + delay * 1000, case["name"]
        assert again == {**envelope, "attempt": case["attempt"] + 1, "due_at": again["due_at"]}, case["name"]
        line = outcomes[envelope["id"]]
        assert (line["outcome"], line["delay"], line["attempt"]) == ("retry", delay, case["attempt"])
    assert not any(waiting.values()) and not any(parked.values())


def test_the_reasons_are_those_of_the_contract(stage):
    raised = RAISED[stage.language]
    stage.send("Raise", {"message": "Zoë said\nno"})
    stage.send("AskPark", {"reason": "The account is closed."})
    stage.send("Nobody")
    stage.send("AskRetry", {"delay": 11}, attempt=3)
    stage.send("Wait")
    queues = [{"name": "work", "retry_delays": [10, 60]}]
    with stage.worker("--job-timeout", "2", "--max-jobs", "5", queues=queues) as worker:
        assert worker.end() == 0
    failed, closed, nobody, asked, slow = worker.events("job")
    assert failed["reason"] == slow["reason"].replace(slow["reason"], f"The job raised {raised}.")
    assert failed["outcome"] == slow["outcome"] == "retry"
    assert slow["reason"] == "The job took longer than 2 s and was killed."
    assert closed["reason"] == "The account is closed."
    assert " has no job of this name; it has: AllDescriptors, " in nobody["reason"]
    assert "11" in asked["reason"] and "10, 60" in asked["reason"]
    assert [record.reason for record in stage.parked(3)] == [
        line["reason"] for line in (closed, nobody, asked)
    ]


def test_what_a_retry_does_not_understand_it_keeps(stage):
    """The envelope of the next try is written by the worker: its data must not lose anything."""
    data = (
        '{"a":18446744073709551616,"b":{},"c":[],"d":{"0":[{}]},"e":1.0,"f":1E2,"g":"\\u0000\\ud83e\\udd8a/",'
        '"attempt":1,"due_at":2,"":null}'
    )
    body = Envelope("Nobody", "acme").encode().replace(b'"data":{}', b'"data":%b' % data.encode())
    body = body.replace(b'"Nobody"', b'"Raise"')
    stage.put(body)
    with stage.worker("--max-jobs", "1", queues=[{"name": "work", "retry_delays": [10]}]) as worker:
        assert worker.end() == 0
    (again,) = map(json.loads, stage.take("work_retry_10"))
    assert again == {**json.loads(body), "attempt": 2, "due_at": again["due_at"]}
    assert json.dumps(again["data"]) == json.dumps(json.loads(data))


def test_a_job_that_failed_comes_back_when_it_is_due_and_is_done(stage):
    queues = [{"name": "work", "retry_delays": [1, 1], "language": stage.language}]
    with stage.worker(queues=queues) as worker:
        began = now_ms()
        job = stage.send("Attempt", {"until": 3})
        command = [sys.executable, "-m", "kestrel_stack.consumer.mover"]
        settings = stage.app.folder / f"{worker.log_file.stem}.json"
        log = (stage.app.folder / "mover.log").open("wb")
        mover = subprocess.Popen(
            [*command, "--config", str(settings)], env=clean_environment(stage.app), stderr=log, stdout=log
        )
        try:
            stage.app.wait_for("done")
            done = now_ms()
            assert mover.poll() is None
        finally:
            mover.send_signal(TERM)
            assert mover.wait(DEADLINE_S) == 0
        stage.wait_until_settled()
        lines = worker.jobs(3)
        assert worker.end(TERM) == 0
    assert stage.app.noted("begun") == [f"{job} 1", f"{job} 2", f"{job} 3"]
    assert [line["outcome"] for line in lines] == ["retry", "retry", "done"]
    assert done - began >= 2_000
    assert stage.count("work_errors") == stage.count("work_retry_1") == 0


@pytest.mark.parametrize("delays", [[], [10]])
def test_a_job_that_kills_its_process_is_run_once_more_and_then_parked(stage, delays):
    poison, good = stage.send("KillSelf"), stage.send("Note")
    queues = [{"name": "work", "retry_delays": delays}]
    with stage.worker("--max-jobs", "2", queues=queues) as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert record.reason == "The process that ran the job died: it was killed by SIGKILL."
    assert (record.attempts, json.loads(record.body)["id"]) == (1, poison)
    assert stage.app.noted("begun") == [f"{poison} 1"] * 2
    assert stage.app.noted("done") == [good]
    lines = worker.events("job")
    assert [(line["id"], line["outcome"]) for line in lines] == [(poison, "parked"), (good, "done")]
    assert stage.count("work_retry_10") == 0


def test_a_job_whose_process_died_once_is_done_by_the_next_with_the_same_attempt(stage):
    job = stage.send("KillSelf", {"times": 1}, attempt=2)
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert stage.app.noted("begun") == [f"{job} 2"] * 2
    assert stage.app.noted("done") == [job]
    (line,) = worker.events("job")
    assert (line["outcome"], line["attempt"]) == ("done", 2)
    stage.wait_until_settled()
    assert stage.count("work_errors") == 0


def test_a_job_that_cannot_be_written_for_later_stays_open(own_stage):
    """First it is written, then confirmed; while no server takes it, nobody else gets it, and it is kept."""
    stage = own_stage
    stage.broker.terminate()
    stage.broker.config["queues"] = {"shop_work_retry_10": {"max_items": 1}}
    stage.broker.start()
    stage.put(b"in the way", "work_retry_10")
    job = stage.send("Raise", {"message": "no"})
    with stage.worker(queues=[{"name": "work", "retry_delays": [10]}], debug=True) as worker:
        worker.wait_for("trying until it works", 2)
        assert (stage.count(), stage.held()) == (0, 1)
        assert stage.take("work_retry_10") == [b"in the way"]
        wait_until(lambda: stage.count("work_retry_10") == 1, "the job to be written")
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    (again,) = map(json.loads, stage.take("work_retry_10"))
    assert (again["id"], again["attempt"]) == (job, 2)


def test_term_while_a_job_cannot_be_written_gives_it_back(own_stage):
    stage = own_stage
    stage.broker.terminate()
    stage.broker.config["queues"] = {"shop_work_errors": {"max_items": 1}}
    stage.broker.start()
    stage.put(b"in the way", "work_errors")
    job = stage.send("Raise", {"message": "no"})
    with stage.worker(debug=True) as worker:
        worker.wait_for("trying until it works")
        assert worker.end(TERM) == 0
    (back,) = map(json.loads, stage.take("work"))
    assert (back["id"], back["attempt"]) == (job, 1)
