"""From an envelope to a job that is done and confirmed; signals and limits in between."""

import base64
import os
import signal
from pathlib import Path

import pytest

from support.broker import wait_until
from support.jobs import cases, now_ms
from support.worker import is_running

TERM = signal.SIGTERM


def test_each_job_is_done_and_confirmed_and_has_one_line(stage):
    ids = [stage.send("Slow") for _ in range(5)]
    with stage.worker() as worker:
        worker.jobs(5)
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    assert stage.app.noted("done") == ids
    assert [record["event"] for record in worker.records] == ["worker begins", *["job"] * 5, "worker ends"]
    for record, job in zip(worker.events("job"), ids, strict=True):
        assert record["id"] == job
        assert (record["queue"], record["job"], record["tenant"]) == ("shop_work", "Slow", "acme")
        assert (record["attempt"], record["outcome"]) == (1, "done")
        assert record["run_ms"] >= 20


def test_the_wait_is_counted_from_when_the_job_was_due(stage):
    now = now_ms()
    stage.send("Note", enqueued_at=now - 5_000)
    stage.send("Note", enqueued_at=now - 500_000_000, due_at=now - 5_000)
    stage.send("Note", enqueued_at=now - 5_000, due_at=now + 500_000_000)
    with stage.worker("--max-jobs", "3") as worker:
        assert worker.end() == 0
    first, second, early = (record["wait_ms"] for record in worker.events("job"))
    assert 5_000 <= first < 500_000_000
    assert 5_000 <= second < 500_000_000
    assert early == 0


def test_every_valid_envelope_is_taken_for_a_job_and_every_other_item_is_parked_as_it_is(stage):
    valid, invalid = cases("envelopes.json", "valid"), cases("envelopes.json", "invalid")
    bodies = [base64.b64decode(case["body_b64"]) for case in valid + invalid]
    for body in bodies:
        stage.put(body)
    with stage.worker() as worker:
        records = stage.parked(len(bodies))
        lines = worker.jobs(len(bodies))
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    assert [record.body for record in records] == bodies
    for record, case in zip(records[: len(valid)], valid, strict=True):
        assert " has no job of this name; it has: " in record.reason
        assert record.attempts == case["attempt"]
    for record, line, case in zip(records[len(valid) :], lines[len(valid) :], invalid, strict=True):
        assert (record.attempts, record.error) == (0, None)
        assert line["reason"] == record.reason
        if case["faults"] is None:
            assert record.reason.startswith("The item is not ")
        else:
            assert record.reason == " ".join(case["faults"])


@pytest.mark.parametrize("number", [TERM, signal.SIGINT])
def test_told_to_stop_it_finishes_the_job_in_hand_and_leaves_the_next(stage, number):
    with stage.worker() as worker:
        job, following = stage.send("Wait"), stage.send("Wait")
        stage.app.wait_for("begun")
        worker.send(number)
        stage.app.go()
        assert worker.end() == 0
    assert stage.app.noted("done") == [job]
    wait_until(lambda: (stage.count(), stage.held()) == (1, 0), f"{following} to be left")
    assert [record["id"] for record in worker.events("job")] == [job]
    assert worker.events("worker ends")[0]["reason"] == signal.Signals(number).name


def test_a_job_that_arrives_together_with_term_is_left_for_the_next_worker(stage):
    stage.send("Note")
    with stage.worker() as worker:
        worker.jobs(1)
        waits = stage.broker.stats
        wait_until(lambda: waits("shop_work").get("waiters") == 1, "the worker to wait for an item")
        # Held still, so that it sees both when it goes on.
        worker.send(signal.SIGSTOP)
        stage.send("Note")
        worker.send(TERM)
        worker.send(signal.SIGCONT)
        assert worker.end() == 0
    assert len(stage.app.noted("done")) == 1
    wait_until(lambda: (stage.count(), stage.held()) == (1, 0), "the job to be back")


def test_programs_that_a_job_starts_can_be_terminated(stage):
    stage.send("TermProgram")
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert stage.app.noted("done") == [str(-TERM)]


def test_a_job_knows_its_environment_and_release(stage):
    stage.send("Say", {"text": "hello"})
    environ = {"KESTREL_STACK_RELEASE": "20261121T011500Z-1a2b3c4d"}
    with stage.worker("--env", "lab", "--max-jobs", "1", environ=environ) as worker:
        assert worker.end() == 0
    (said,) = worker.events("said")
    assert (said["environment"], said["release"]) == ("lab", environ["KESTREL_STACK_RELEASE"])
    (printed,) = worker.events("output")
    assert printed["text"] == "printed hello"


def test_an_idle_worker_ends_with_its_child_when_told(stage):
    stage.send("Pid")
    with stage.worker() as worker:
        child = int(stage.app.wait_for("done")[0].split()[0])
        stage.wait_until_settled()
        assert worker.end(TERM) == 0
    assert not is_running(child)


def test_hup_replaces_the_child_after_the_job_in_hand(stage):
    with stage.worker() as worker:
        stage.send("Pid")
        first, parent = stage.app.wait_for("done")[0].split()
        assert int(parent) == worker.process.pid
        job = stage.send("Wait")
        stage.app.wait_for("begun")
        worker.send(signal.SIGHUP)
        stage.app.go()
        stage.send("Pid")
        second, parent = stage.app.wait_for("done", 3)[2].split()
        assert second != first
        assert int(parent) == worker.process.pid
        assert stage.app.noted("done")[1] == job
        assert not is_running(int(first))
        assert worker.end(TERM) == 0
    (replaced,) = worker.events("child is replaced")
    assert (replaced["reason"], replaced["child"]) == ("SIGHUP", int(first))


def test_hup_while_the_worker_waits_holds_for_the_very_next_job(stage):
    with stage.worker() as worker:
        stage.send("Pid")
        first, _ = stage.app.wait_for("done")[0].split()
        stage.wait_until_settled()
        wait_until(lambda: stage.broker.stats("shop_work").get("waiters") == 1, "the worker to wait")
        worker.send(signal.SIGHUP)
        stage.send("Pid")
        second, _ = stage.app.wait_for("done", 2)[1].split()
        assert second != first
        assert worker.end(TERM) == 0


def test_usr1_reopens_the_log_file(stage):
    current, rotated = stage.app.folder / "shop.log", stage.app.folder / "shop.log.1"
    with stage.worker("--log-file", str(current)) as worker:
        first = stage.send("Note")
        wait_until(lambda: current.exists() and first in current.read_text(), "the first line")
        current.rename(rotated)
        worker.send(signal.SIGUSR1)
        wait_until(current.exists, "a new file")
        second = stage.send("Note")
        wait_until(lambda: second in current.read_text(), "the second line")
        assert worker.end(TERM) == 0
    assert first in rotated.read_text()
    assert second not in rotated.read_text()
    assert first not in current.read_text()


def test_usr1_without_a_log_file_changes_nothing(stage):
    with stage.worker() as worker:
        stage.send("Note")
        worker.jobs(1)
        worker.send(signal.SIGUSR1)
        stage.send("Note")
        worker.jobs(2)
        assert worker.end(TERM) == 0


def test_after_max_jobs_the_worker_ends_and_the_rest_stays(stage):
    for _ in range(5):
        stage.send("Note")
    with stage.worker("--max-jobs", "3") as worker:
        assert worker.end() == 0
    wait_until(lambda: (stage.count(), stage.held()) == (2, 0), "two jobs to be left")
    assert len(stage.app.noted("done")) == len(worker.events("job")) == 3
    assert worker.events("worker ends")[0]["reason"] == "max-jobs"


def test_a_failed_job_counts_for_max_jobs(stage):
    stage.send("Raise", {"message": "no"})
    stage.send("Note")
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert len(stage.parked()) == 1
    wait_until(lambda: (stage.count(), stage.held()) == (1, 0), "the other to be left")


def test_an_unasked_end_waits_for_the_minimal_uptime_and_takes_no_more_jobs(stage):
    stage.send("Note")
    stage.send("Note")
    with stage.worker("--max-jobs", "1", "--min-uptime", "600") as worker:
        worker.wait_until(lambda: worker.events("worker ends"), "the end of its work")
        wait_until(lambda: (stage.count(), stage.held()) == (1, 0), "the acknowledgement")
        assert worker.process.poll() is None
        assert worker.end(TERM) == 0
    assert len(stage.app.noted("done")) == 1


def test_max_time_ends_an_idle_worker(stage):
    with stage.worker("--max-time", "0.2") as worker:
        assert worker.end() == 0
    assert worker.events("worker ends")[0]["reason"] == "max-time"


@pytest.mark.parametrize("jobs", [0, 2])
def test_once_does_at_most_one_job(stage, jobs):
    for _ in range(jobs):
        stage.send("Note")
    with stage.worker("--once", "--min-uptime", "600") as worker:
        assert worker.end() == 0
    assert len(stage.app.noted("done")) == min(jobs, 1)
    wait_until(lambda: (stage.count(), stage.held()) == (max(jobs - 1, 0), 0), "the rest to be left")


def test_rate_confirms_before_it_pauses(stage):
    stage.send("Note")
    stage.send("Note")
    with stage.worker("--rate", "0.001/s") as worker:
        worker.jobs(1)
        wait_until(lambda: (stage.count(), stage.held()) == (1, 0), "the acknowledgement")
        assert worker.end(TERM) == 0
    assert len(stage.app.noted("done")) == 1


def test_a_child_above_max_memory_is_replaced_between_jobs(stage):
    with stage.worker("--max-memory", "100") as worker:
        for megabytes in (1, 150, 1):
            stage.send("Memory", {"megabytes": megabytes})
        first, second, third = stage.app.wait_for("done", 3)
        assert worker.end(TERM) == 0
    assert first == second != third
    (replaced,) = worker.events("child is replaced")
    assert replaced["reason"] == "max-memory"
    assert int(replaced["size"].removesuffix("MB")) >= 150
    assert [record["outcome"] for record in worker.events("job")] == ["done"] * 3


def test_a_worker_killed_with_a_job_leaves_it_to_the_next_and_no_child_behind(stage):
    stage.send("Pid")
    job = stage.send("Wait")
    with stage.worker() as first:
        stage.app.wait_for("begun")
        child = int(stage.app.noted("done")[0].split()[0])
        first.end(signal.SIGKILL)
        wait_until(lambda: not is_running(child), "the child to end with its parent")
        stage.app.go()
        with stage.worker() as second:
            (record,) = second.jobs(1)
            stage.wait_until_settled()
            assert second.end(TERM) == 0
    assert (record["id"], record["attempt"], record["outcome"]) == (job, 1, "done")


def test_signals_to_the_whole_group_do_not_reach_the_job(stage):
    stage.send("Pid")
    job = stage.send("Wait")
    with stage.worker() as worker:
        stage.app.wait_for("begun")
        child = int(stage.app.noted("done")[0].split()[0])
        os.killpg(worker.process.pid, TERM)
        os.kill(child, TERM)
        os.kill(child, signal.SIGINT)
        stage.app.go()
        assert worker.end() == 0
    assert stage.app.noted("done")[1:] == [job]
    assert [record["outcome"] for record in worker.events("job")] == ["done", "done"]


def test_queues_are_worked_off_in_their_order(stage):
    later = [stage.send("Note", queue="work2") for _ in range(3)]
    first = [stage.send("Note", queue="work1") for _ in range(3)]
    queues = [{"name": "work1"}, {"name": "work2"}]
    with stage.worker("--max-jobs", "6", queue="work1,work2", queues=queues) as worker:
        assert worker.end() == 0
    assert stage.app.noted("done") == first + later
    assert [record["queue"] for record in worker.events("job")] == ["shop_work1"] * 3 + ["shop_work2"] * 3
    stage.wait_until_settled("work1")
    stage.wait_until_settled("work2")


def test_the_tenant_is_set_around_every_job_and_always_cleared(stage):
    stage.send("Tenant", tenant="one")
    stage.send("Tenant", {"fail": True}, tenant="two")
    stage.send("Tenant", tenant="three")
    with stage.worker("--max-jobs", "3", environ={"TEST_AROUND": "1"}) as worker:
        assert worker.end() == 0
    assert stage.app.noted("tenant") == ["one one", "two two", "three three"]
    assert stage.app.noted("around") == [
        f"{what} {tenant}{after}"
        for tenant in ("one", "two", "three")
        for what, after in (("enters", " after None"), ("leaves", ""))
    ]
    assert [record["outcome"] for record in worker.events("job")] == ["done", "parked", "done"]


def test_no_child_has_a_connection_to_the_server(stage):
    """Not even one that is started while the worker has a job in its hands, as after a death."""

    def sockets(pid):
        links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
        return {link for link in links if link.startswith("socket:")}

    stage.send("KillSelf", {"times": 1})
    stage.send("Pid")
    stage.send("Wait")
    with stage.worker() as worker:
        stage.app.wait_for("begun", 3)
        child = int(stage.app.noted("done")[1].split()[0])
        parents = sockets(worker.process.pid)
        assert parents
        assert not sockets(child) & parents
        stage.app.go()
        worker.jobs(3)
        assert worker.end(TERM) == 0
