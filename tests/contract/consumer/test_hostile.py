"""Items and jobs that mean harm are parked or cut with their reason; the worker and its other jobs live."""

import json
import pickle
import signal

import pytest

from kestrel_stack.queue.envelope import Envelope
from support.broker import wait_until
from support.worker import is_running

TERM = signal.SIGTERM


class Harm:
    """What a pickle can be made of: a call of any function, when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def with_field(**fields):
    """Return an envelope, well made but for some fields."""
    content = json.loads(Envelope("Note", "acme").encode())
    return json.dumps({**content, **fields}).encode()


def test_items_that_mean_harm_are_parked_as_they_are_and_the_next_job_is_done(stage):
    harmed = stage.app.folder / "harmed"
    serialised = b'O:8:"SplStack":1:{i:0;O:13:"Some\\Gadget\\X":1:{s:4:"file";s:%d:"%b";}}' % (
        len(str(harmed)),
        str(harmed).encode(),
    )
    items = {
        "a pickle": (pickle.dumps(Harm(harmed)), "The item is not UTF-8"),
        "a pickle of texts": (pickle.dumps(Harm(harmed), 0), "The item is not JSON"),
        "a serialised object of PHP": (serialised, "The item is not JSON"),
        "a serialised array of PHP": (b'a:1:{s:8:"instance";s:4:"acme";}', "The item is not JSON"),
        "another version": (with_field(v=2), "The field 'v' is 2; this worker knows version 1."),
        "a tenant that is a path": (with_field(tenant="../../x"), "The field 'tenant' is not a tenant name"),
        "a tenant with a line end": (with_field(tenant="acme\n"), "The field 'tenant' is not a tenant name"),
        "a job that is a path": (with_field(job="../../etc/passwd"), "The field 'job' is not a job name"),
        "a job that is a class": (with_field(job="App\\Admin::drop"), "The field 'job' is not a job name"),
        "a job that is an attribute": (with_field(job="__class__"), "The field 'job' is not a job name"),
        "an id that forges a log line": (with_field(id="x\n2026 error"), "The field 'id' is not a UUID"),
        "deep brackets": (b"[" * 100_000, "nested more than 128 levels deep"),
        "a number without end": (with_field()[:-1] + b',"attempt":' + b"9" * 5_000 + b"}", "The "),
        "nothing": (b"", "The item is empty."),
        "zeros": (b"\0" * 1000, "The item is not JSON"),
        "10 MB of nothing in particular": (b"x" * 10_000_000, "The item is not JSON"),
    }
    for body, _ in items.values():
        stage.put(body)
    last = stage.send("Note")
    with stage.worker("--max-jobs", str(len(items) + 1)) as worker:
        assert worker.end() == 0, worker.log
    records = stage.parked(len(items))
    for record, (name, (body, reason)) in zip(records, items.items(), strict=True):
        assert record.body == body, name
        assert reason in record.reason, (name, record.reason)
        assert (record.attempts, record.error) == (0, None), name
    assert stage.app.noted("done") == [last]
    assert not harmed.exists()


def test_ten_megabytes_of_data_are_done_as_any_job(stage):
    text = "x" * 10_000_000
    stage.send("Note", {"text": text})
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    assert stage.app.noted("done") == [text]


def test_names_of_functions_and_of_inherited_things_are_unknown_jobs(stage):
    """A name from a queue is looked up among the registered ones and nowhere else."""
    names = ["phpinfo", "system", "eval", "exit", "registry", "note", "Registry", "names", "job", "stdClass"]
    for name in names:
        stage.send(name)
    with stage.worker("--max-jobs", str(len(names))) as worker:
        assert worker.end() == 0
    assert all(" has no job of this name; it has: " in record.reason for record in stage.parked(len(names)))
    assert len(worker.events("child died")) == 0


@pytest.mark.parametrize("job", ["Loop", "Program"])
def test_a_job_without_end_is_killed_with_what_it_started(stage, job):
    bad, good = stage.send(job), stage.send("Note")
    with stage.worker("--job-timeout", "3", "--max-jobs", "2") as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert record.reason == "The job took longer than 3 s and was killed."
    assert record.error["class"] == "JobTimeout"
    assert json.loads(record.body)["id"] == bad
    assert stage.app.noted("done") == [good]
    for program in stage.app.noted("program"):
        wait_until(lambda program=program: not is_running(int(program)), "the program to be killed")


def test_a_job_that_leaks_costs_its_child_and_nothing_else(stage):
    ids = [stage.send("Memory", {"megabytes": 120}) for _ in range(3)]
    with stage.worker("--max-memory", "100", "--max-jobs", "3") as worker:
        assert worker.end() == 0
    assert len(set(stage.app.noted("done"))) == 3
    assert [(line["id"], line["outcome"]) for line in worker.events("job")] == [(job, "done") for job in ids]
    assert [line["reason"] for line in worker.events("child is replaced")] == ["max-memory"] * 3


def test_a_job_that_forks_is_done_once_and_its_copy_ends(stage):
    job, last = stage.send("Fork"), stage.send("Note")
    with stage.worker("--max-jobs", "2") as worker:
        assert worker.end() == 0
    assert [(line["id"], line["outcome"]) for line in worker.events("job")] == [(job, "done"), (last, "done")]
    copies = [int(pid) for pid in stage.app.noted("forked")]
    assert len(copies) == 2
    wait_until(lambda: not any(map(is_running, copies)), "the copy to end")
    assert stage.app.noted("done") == [last]


def test_a_daemon_that_a_job_left_holds_up_neither_the_job_nor_the_worker(stage):
    stage.send("Daemonise")
    with stage.worker() as worker:
        assert [line["outcome"] for line in worker.jobs(1)] == ["done"]
        stage.wait_until_settled()
        worker.send(signal.SIGHUP)
        stage.send("Note")
        worker.jobs(2)
        stage.app.go()
        assert stage.app.wait_for("daemon") == ["still here"]
        worker.wait_until(lambda: worker.events("output"), "what the daemon prints")
        assert worker.end(TERM) == 0
    assert worker.events("output")[0]["text"] == "from the daemon"


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_its_process_is_parked_with_its_last_words(stage, status):
    """However it is ended, the job was not done: nothing came back. It is run twice, then parked."""
    bad, good = stage.send("Vanish", {"status": status}), stage.send("Note")
    with stage.worker("--max-jobs", "2") as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert record.reason == f"The process that ran the job died: it exited with status {status}."
    assert (record.error["class"], record.error["stack"]) == ("ChildDied", "last words\n")
    assert json.loads(record.body)["id"] == bad
    assert stage.app.noted("done") == [good]


def test_a_job_that_asks_to_exit_fails_as_one_that_raises_or_dies(stage):
    bad, good = stage.send("Exit", {"status": 0}), stage.send("Note")
    with stage.worker("--max-jobs", "2") as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert json.loads(record.body)["id"] == bad
    assert stage.app.noted("done") == [good]


@pytest.mark.parametrize("job", ["AllDescriptors", "CloseDescriptors"])
def test_a_job_that_breaks_the_pipe_to_its_worker_is_parked_and_a_new_child_goes_on(stage, job):
    bad, good = stage.send(job), stage.send("Note")
    with stage.worker("--max-jobs", "2") as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert record.error["class"] in ("BrokenChild", "ChildDied")
    assert json.loads(record.body)["id"] == bad
    assert stage.app.noted("done") == [good]


def test_an_error_of_any_text_is_parked_as_valid_json(stage):
    messages = ["", "one\ntwo", "Zoë \ud83e\udd8a", "\x00\x1b[31m", "x" * 100_000, '"}{"']
    messages = [message.encode("utf-16", "surrogatepass").decode("utf-16") for message in messages]
    for message in messages:
        stage.send("Raise", {"message": message})
    with stage.worker("--max-jobs", str(len(messages))) as worker:
        assert worker.end() == 0
    records = stage.parked(len(messages))
    for record, message in zip(records, messages, strict=True):
        assert record.error["message"] == message[:4096]
        assert record.error["stack"]


def test_what_is_not_text_in_an_error_is_escaped(stage):
    stage.send("RaiseOddly")
    with stage.worker("--max-jobs", "1") as worker:
        assert worker.end() == 0
    (record,) = stage.parked()
    assert record.error["class"]
