"""Lines of a worker's log: tests/contract/jobs/log.json, with real workers."""

import base64
import signal

import pytest

from support.jobs import LOG, check_record

TERM = signal.SIGTERM
OF_JOB = ("queue", "job", "id", "tenant", "attempt")


def test_every_outcome_has_its_fields(stage):
    """What the fields are is checked for every line of every test; here each outcome is there."""
    stage.send("Note")
    stage.send("Raise", {"message": "no"})
    stage.send("Raise", {"message": "no"}, attempt=2)
    stage.put(b"nothing of the kind")
    with stage.worker("--max-jobs", "4", queues=[{"name": "work", "retry_delays": [10]}]) as worker:
        assert worker.end() == 0
    assert [line["outcome"] for line in worker.events("job")] == ["done", "retry", "parked", "parked"]
    begins, ends = worker.records[0], worker.records[-1]
    assert (begins["event"], begins["queue"], begins["environment"]) == ("worker begins", "shop_work", "test")
    assert begins["pid"] == worker.process.pid
    assert (ends["event"], ends["reason"], ends["jobs"]) == ("worker ends", "max-jobs", 4)


@pytest.mark.parametrize("debug", [False, True], ids=["json", "text"])
def test_what_a_job_logs_is_one_line_whatever_it_is(stage, debug):
    lines = [line for line in LOG["lines"] if not set(line["fields"]) & set(OF_JOB)]
    for line in lines:
        stage.send("Log", {key: line[key] for key in ("level", "event", "fields")})
    with stage.worker("--max-jobs", str(len(lines)), debug=debug) as worker:
        assert worker.end() == 0
    if debug:
        # Their exact text is compared without a worker, where time and fields are given.
        assert worker.log.count(" job=Log ") == 3 * len(lines)
        return
    of_worker = ("worker begins", "job", "worker ends")
    logged = [record for record in worker.records if record["event"] not in of_worker]
    assert len(logged) == len(lines)
    for record, line in zip(logged, lines, strict=True):
        assert all(key in record for key in OF_JOB)
        wanted = {key: text(value) for key, value in line["record"].items() if key != "time"}
        assert {key: text(record.get(key)) for key in wanted} == wanted, line["name"]


def text(value):
    """A job's fields may become text on their way to the log."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_what_a_job_prints_is_logged_line_by_line(stage):
    jobs = [(stage.send("Print", {"bytes": case["bytes_b64"]}), case) for case in LOG["outputs"]]
    most = LOG["max_line"]
    long = base64.b64encode(b"x" * most + b"yz\n").decode()
    jobs.append((stage.send("Print", {"bytes": long, "descriptor": 2}), {"texts": ["x" * most, "yz"]}))
    with stage.worker("--max-jobs", str(len(jobs))) as worker:
        assert worker.end() == 0
    for job, case in jobs:
        printed = [record for record in worker.events("output") if record["id"] == job]
        assert [record["text"] for record in printed] == case["texts"]
        assert {record["stream"] for record in printed} == {"stderr" if case == jobs[-1][1] else "stdout"}


def test_any_bytes_may_be_printed(stage):
    jobs = [stage.send("Garbage") for _ in range(3)]
    with stage.worker("--max-jobs", "3") as worker:
        assert worker.end() == 0
    assert stage.app.noted("done") == jobs
    assert [record["outcome"] for record in worker.events("job")] == ["done"] * 3


def test_lines_for_debugging_are_kept_back_and_written_only_if_the_job_fails(stage):
    good = stage.send("Debug", {"lines": 3})
    bad = stage.send("Debug", {"lines": 3, "fail": True})
    after = stage.send("Debug", {"lines": 0, "fail": True})
    with stage.worker("--max-jobs", "3") as worker:
        assert worker.end() == 0
    events = {
        job: [record["event"] for record in worker.records if record.get("id") == job]
        for job in (good, bad, after)
    }
    assert events[good] == ["now", "job"]
    assert sorted(events[bad][:-1]) == ["now", "step", "step", "step"]
    assert events[bad][-1] == "job"
    assert events[after] == ["now", "job"]
    steps = worker.events("step")
    assert [(record["level"], text(record["number"])) for record in steps] == [
        ("debug", str(number)) for number in range(3)
    ]


@pytest.mark.parametrize(("count", "size"), [(1500, 0), (400, 2000)], ids=["many", "large"])
def test_what_is_kept_back_is_bounded_and_the_newest_lines_are_kept(stage, count, size):
    stage.send("Debug", {"lines": count, "bytes": size, "fail": True})
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    steps = [int(record["number"]) for record in worker.events("step")]
    assert steps == list(range(count - len(steps), count))
    (dropped,) = worker.events("lines dropped")
    assert dropped["count"] == count - len(steps)
    assert len(steps) <= LOG["kept_back"]["max_lines"]
    assert sum(len(record["text"]) for record in worker.events("step")) <= LOG["kept_back"]["max_bytes"]
    assert len(steps) >= (1000 if size == 0 else 100)


def test_lines_of_a_job_that_killed_its_process_are_not_lost(stage):
    """Poison: both runs, then parked."""
    stage.send("KillSelf")
    stage.send("Note")
    with stage.worker("--max-jobs", "2") as worker:
        assert worker.end() == 0
    assert [line["outcome"] for line in worker.events("job")] == ["parked", "done"]


def test_debug_shows_every_action_as_text(stage):
    job = stage.send("Debug", {"lines": 1})
    with stage.worker("--max-jobs", "1", debug=True) as worker:
        assert worker.end() == 0
    of_job = [line for line in worker.log.splitlines() if job in line]
    assert [line.split(" ")[1:3] for line in of_job] == [
        ["debug", "job"],
        ["debug", "step"],
        ["info", "now"],
        ["info", "job"],
    ]
    assert f"queue=shop_work job=Debug id={job} tenant=acme attempt=1 wait_ms=" in of_job[-1]
    assert of_job[-1].endswith(" outcome=done")


def test_the_check_of_a_line_finds_faults():
    good = {
        "time": "2026-11-21T01:15:00.123Z",
        "level": "info",
        "event": "job",
        "queue": "shop_work",
        "job": "Note",
        "id": "6f9f9f9e-3a55-4a8e-9a54-0c9a8f5b7d10",
        "tenant": "acme",
        "attempt": 1,
        "wait_ms": 0,
        "run_ms": 1,
        "outcome": "done",
    }
    check_record(good)
    for change in (
        {"time": "2026-11-21 01:15:00"},
        {"level": "error"},
        {"attempt": "1"},
        {"wait_ms": -1},
        {"outcome": "retry"},
        {"surprise": 1},
        {"reason": None},
    ):
        with pytest.raises(AssertionError):
            check_record({**good, **change})
