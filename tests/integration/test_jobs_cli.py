"""The command line for jobs, on real brokers: what it does, what it refuses, and what a cut costs."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord, now_ms
from kestrel_stack.queue.interface import Queue
from kestrel_stack.queue.jobs.cli import main, one_line
from kestrel_stack.queue.jobs.parked import walk
from support.beanstalkd import BeanstalkdProcess
from support.broker import BrokerProcess, wait_until
from support.ports import nobody, reserve
from support.tcp_proxy import TcpProxy

SRC = Path(__file__).parents[2] / "src"
QUEUES = [{"name": "mail", "retry_delays": [10, 600]}, {"name": "hello_world"}]


@pytest.fixture(autouse=True)
def empty(brokers):
    yield
    for broker in brokers:
        broker.raw(b"flush_all\r\n")


@pytest.fixture
def config(brokers, tmp_path):
    return settings_file(tmp_path, [broker.address for broker in brokers])


@pytest.fixture
def store(brokers):
    with Queue.open(f"kestrel://{brokers[0].address},{brokers[1].address}/shop", queues=QUEUES) as opened:
        yield opened


def settings_file(folder, servers):
    path = folder / "shop.json"
    content = {"app": "shop", "namespace": "shop", "environment": "lab", "servers": servers, "queues": QUEUES}
    path.write_text(json.dumps(content))
    return path


def command(*arguments):
    return [sys.executable, "-m", "kestrel_stack.queue.jobs", *map(str, arguments)]


def environment(config=None):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KESTREL_STACK_")}
    clean["PYTHONPATH"] = os.pathsep.join([str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])])
    return clean | ({"KESTREL_STACK_CONFIG": str(config)} if config else {})


def jobs(*arguments, config=None, status=0, stdin=""):
    """Run the program; return its stdout, or its stderr when it must fail."""
    run = subprocess.run(
        command(*arguments), env=environment(config), input=stdin, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == status, run.stderr + run.stdout
    assert "Traceback" not in run.stderr
    return run.stdout if status == 0 else run.stderr


def envelope(job="SendMail", tenant="acme", **fields):
    return Envelope(job=job, tenant=tenant, **fields)


def park(store, reason="The job raised Boom.", attempts=3, **fields):
    """Park a job as a worker does; return its id."""
    made = envelope(attempt=attempts, **fields)
    error = {"class": "Boom", "message": "it\nwent", "stack": "line 1\nline 2"}
    store.park("mail", ParkedRecord(reason, made.encode(), attempts, error).encode())
    return made.id


def ready(brokers):
    return [Envelope.decode(body) for broker in brokers for body in broker.drain("shop_mail")]


def ids(brokers, queue="shop_mail"):
    return sorted(json.loads(body)["id"] for broker in brokers for body in broker.drain(queue))


def parked_ids(brokers):
    records = [body for broker in brokers for body in broker.drain("shop_mail_errors")]
    return sorted(Envelope.decode(ParkedRecord.decode(record).body).id for record in records)


def settled(store, ready=None, parked=None):
    """Wait until everything in hand is back, and that is as many as said."""

    def as_said():
        reserved = sum(
            part.stats(name).get("open_transactions", 0)
            for part in store
            for name in ("shop_mail", "shop_mail_errors")
        )
        counts = [(part.stats("shop_mail"), part.stats("shop_mail_errors")) for part in store]
        found = [sum(pair[side].get("items", 0) for pair in counts) for side in (0, 1)]
        return reserved == 0 and all(
            wanted in (None, number) for wanted, number in zip((ready, parked), found, strict=True)
        )

    wait_until(as_said, f"{ready} ready and {parked} parked items")


def test_enqueue_puts_a_job_and_prints_its_id(brokers, config):
    job = jobs(
        "enqueue", "SendMail", "--queue", "mail", "--tenant", "acme", "--data", '{"to":"Zoë"}', config=config
    )
    (found,) = ready(brokers)
    assert (found.id, found.job, found.tenant, found.data) == (job.strip(), "SendMail", "acme", {"to": "Zoë"})


def test_enqueue_reads_large_data_from_stdin_and_takes_a_delay_and_an_id(brokers, config):
    given = str(uuid.uuid4())
    flags = ("--queue", "mail", "--tenant", "acme", "--delay", "600", "--id", given, "--data", "-")
    jobs("enqueue", "SendMail", *flags, config=config, stdin=json.dumps({"text": "x" * 500_000}))
    (body,) = [body for broker in brokers for body in broker.drain("shop_mail_retry_600")]
    found = Envelope.decode(body)
    assert (found.id, len(found.data["text"])) == (given, 500_000)
    assert found.due_at == found.enqueued_at + 600_000


def test_count_shows_every_queue_of_the_settings_file(store, config):
    for _ in range(3):
        store.put("mail", envelope().encode())
    store.put("mail", envelope().encode(), delay=10)
    park(store)
    worker = store.worker("hello_world")
    store.put("hello_world", b"x")
    while worker.reserve(0) is None:
        pass
    lines = jobs("count", config=config).splitlines()
    assert [line.split() for line in lines] == [
        ["QUEUE", "READY", "RESERVED", "DELAYED", "PARKED"],
        ["mail", "3", "0", "1", "1", "10", "s:", "1"],
        ["hello_world", "0", "1", "0", "0"],
    ]
    worker.drop()


def test_count_as_json_has_ages_and_each_servers_numbers(store, brokers, config):
    start = now_ms()
    for late in (5000, 3000):
        store.put("mail", envelope(enqueued_at=start - late).encode())
    store.put("mail", envelope().encode(), delay=10)
    park(store)
    # What the stack makes for itself beside a queue is no backlog.
    for broker in brokers:
        broker.raw(b"set shop_mail_ping_worker1 0 0 2\r\n{}\r\n")
    found = json.loads(jobs("count", "mail", "hello_world", "--json", config=config))
    assert found["failed_servers"] == []
    mail = found["queues"]["mail"]
    assert set(mail.pop("servers")) == {broker.address for broker in brokers}
    assert 3 <= mail.pop("oldest_s") <= 5 + (now_ms() - start) / 1000
    assert mail == {"items": 2, "open": 0, "errors": 1, "retries": 1, "delayed": {"10": 1, "600": 0}}
    empty = found["queues"]["hello_world"]
    assert (empty["items"], empty["oldest_s"]) == (0, None)
    numbers = [server["items"] for server in empty["servers"].values()]
    assert numbers == [0] * len(brokers)


def test_count_as_json_takes_the_time_since_a_delayed_job_was_due(store, config):
    start = now_ms()
    store.put("mail", envelope(enqueued_at=start - 600_000, due_at=start - 1000).encode())
    found = json.loads(jobs("count", "mail", "--json", config=config))["queues"]["mail"]
    assert 1 <= found["oldest_s"] <= 1 + (now_ms() - start) / 1000


def test_count_as_json_knows_no_age_of_what_is_no_job(store, config):
    store.put("mail", b"no job")
    found = json.loads(jobs("count", "mail", "--json", config=config))["queues"]["mail"]
    assert (found["items"], found["oldest_s"]) == (1, None)


def test_count_as_json_has_what_the_other_servers_said_when_one_is_away(store, brokers, config):
    store.put("mail", envelope().encode())
    away = nobody()
    servers = ",".join([brokers[0].address, away, brokers[1].address])
    run = subprocess.run(
        command("count", "mail", "--json", "--servers", servers),
        env=environment(config),
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = json.loads(run.stdout)
    assert run.returncode == 1
    assert found["queues"]["mail"]["items"] == 1
    assert set(found["queues"]["mail"]["servers"]) == {brokers[0].address, brokers[1].address}
    assert [failed["server"] for failed in found["failed_servers"]] == [away]
    assert re.fullmatch(rf"jobs: {away} is not reachable: [^\n]+\n", run.stderr)


def test_peek_prints_the_next_job_and_leaves_it(store, brokers, config):
    assert "nothing that is ready" in jobs("peek", "mail", config=config, status=1)
    made = envelope()
    store.put("mail", made.encode())
    assert json.loads(jobs("peek", "mail", config=config))["id"] == made.id
    settled(brokers, ready=1)


def test_peek_escapes_what_would_break_the_line_or_move_the_cursor(store, config):
    store.put("mail", b"\xff\x1b[2J\nnext")
    assert jobs("peek", "mail", config=config) == "\\xff\\x1b[2J\\nnext\n"


def test_a_terminal_that_knows_only_ascii_is_no_reason_to_fail(store, config):
    store.put("mail", "Zoë".encode())
    run = subprocess.run(
        command("peek", "mail"),
        env={**environment(config), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (0, b"Zo\\xeb\n"), run.stderr


def test_parked_jobs_are_listed_by_filter_and_stay(store, brokers, config):
    park(store, reason="The job raised Boom.", tenant="acme")
    other = park(store, reason="The job took longer than 5 s\nand was killed.", tenant="other", job="Report")
    store.park("mail", b"no record at all")
    listed = jobs("parked", "list", "mail", config=config).splitlines()
    assert len(listed) == 3
    assert any("not a parked record" in line.lower() for line in listed)
    for flags in (["--tenant", "other"], ["--job", "Report"], ["--reason", "TOOK longer"], ["--id", other]):
        (line,) = jobs("parked", "list", "mail", *flags, config=config).splitlines()
        assert re.fullmatch(
            rf"....-..-..T..:..:..Z  {other}  Report  other  attempts=3  "
            r"The job took longer than 5 s\\nand was killed\.",
            line,
        )
    assert jobs("parked", "list", "mail", "--tenant", "other", "--job", "SendMail", config=config) == ""
    settled(brokers, parked=3)


def test_a_list_for_machines_has_everything(store, config):
    job = park(store, data={"n": 7})
    content = json.loads(jobs("parked", "list", "mail", "--json", config=config))
    assert (content["id"], content["job"], content["tenant"]) == (job, "SendMail", "acme")
    assert content["error"] == {"class": "Boom", "message": "it\nwent", "stack": "line 1\nline 2"}
    assert (content["reason"], content["attempts"]) == ("The job raised Boom.", 3)
    assert json.loads(content["body"])["data"] == {"n": 7}


def test_show_prints_the_error_with_its_stack(store, config):
    job = park(store)
    shown = jobs("parked", "show", "mail", "--id", job, config=config)
    assert re.search(r"error message: +it\\nwent\n", shown)
    assert "stack:\n    line 1\n    line 2\n" in shown
    assert "no such parked job" in jobs("parked", "show", "mail", "--id", "x", config=config, status=1)


def test_requeue_gives_a_job_a_new_first_attempt(store, brokers, config):
    job = park(store, data={"n": 12345678901234567890}, trace={"a": "b"})
    before = now_ms()
    jobs("requeue", "mail", "--all", config=config)
    (found,) = ready(brokers)
    assert (found.id, found.attempt, found.data) == (job, 1, {"n": 12345678901234567890})
    assert found.due_at >= before
    assert found.trace == {"a": "b"}
    settled(brokers, parked=0)


def test_requeue_takes_those_that_are_meant_and_no_other(store, brokers, config):
    wanted = sorted(park(store, tenant="acme") for _ in range(10))
    others = sorted(park(store, tenant="other") for _ in range(10))
    jobs("requeue", "mail", "--tenant", "acme", config=config)
    assert ids(brokers) == wanted
    settled(brokers, parked=10)
    jobs("requeue", "mail", "--count", "4", config=config)
    settled(brokers, ready=4, parked=6)
    assert sorted([*ids(brokers), *parked_ids(brokers)]) == others


def test_what_never_was_a_job_goes_back_as_it_is_and_what_is_no_record_stays(store, brokers, config):
    store.park("mail", ParkedRecord("not JSON", b"\xff not a job").encode())
    store.park("mail", b"no record at all")
    assert "1 items" in jobs("requeue", "mail", "--all", config=config, status=1)
    assert [body for broker in brokers for body in broker.drain("shop_mail")] == [b"\xff not a job"]
    settled(brokers, parked=1)


def test_drop_takes_away_only_when_it_may(store, brokers, config):
    gone, kept = park(store, tenant="acme"), park(store, tenant="other")
    assert "say --yes" in jobs("parked", "drop", "mail", "--all", config=config, status=78)
    assert "say which" in jobs("parked", "drop", "mail", "--yes", config=config, status=78)
    settled(brokers, parked=2)
    jobs("parked", "drop", "mail", "--id", gone, "--yes", config=config)
    settled(brokers, parked=1)
    assert parked_ids(brokers) == [kept]


@pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, 0), ("", 1, 2), ("no", 1, 2)])
def test_drop_asks_whom_it_can_ask(store, brokers, config, answer, status, left):
    park(store)
    park(store)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("parked", "drop", "mail", "--all"),
        env=environment(config),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, f"{answer}\n".encode())
    asked, said = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == status
    assert asked == "Drop parked jobs of mail for ever? There are 2. [y/N] "
    assert ("nothing was dropped" in said) == bool(left)
    settled(brokers, parked=left)


def test_a_walk_over_more_than_it_can_hold_sees_each_once_and_loses_none(store, brokers):
    made = sorted(park(store, tenant="acme" if number % 7 else "other") for number in range(60))
    seen = [found.envelope.id for found in walk(store, "mail", hold=5)]
    assert sorted(seen) == made
    settled(brokers, parked=60)
    for found in walk(store, "mail", hold=5):
        if found.envelope.tenant == "other":
            found.remove()
    settled(brokers, parked=51)
    assert set(parked_ids(brokers)) < set(made)


def test_a_walk_beside_another_that_holds_items_sees_none_twice(store, brokers):
    for _ in range(20):
        park(store)
    parts = store.parts()
    others = [parts[number % 2].parked("mail") for number in range(6)]
    held = [other.reserve(0) for other in others]
    seen = [found.envelope.id for found in walk(store, "mail", hold=3)]
    assert len(seen) == len(set(seen)) == 20 - sum(one is not None for one in held)
    for other in others:
        other.drop()
    settled(brokers, parked=20)


def test_a_walk_that_is_given_up_gives_everything_back_in_order(store, brokers, config):
    part = store.parts()[0]
    made = [park(part) for _ in range(5)]
    jobs("parked", "list", "mail", "--count", "3", config=config)
    settled(brokers, parked=5)
    assert sorted(parked_ids(brokers)) == sorted(made)


def test_dump_moves_a_queue_into_a_file_and_load_brings_it_back(store, brokers, config, tmp_path):
    bodies = [envelope(data={"n": n, "text": "a\nb\u2028"}).encode() for n in range(120)] + [
        b"\xff\xfe",
        b"x",
    ]
    for body in bodies:
        store.put("mail", body)
    file = tmp_path / "mail.jsonl"
    jobs("dump", "mail", file, config=config)
    settled(brokers, ready=0)
    assert len(file.read_bytes().splitlines()) == 122
    jobs("load", file, config=config)
    assert sorted(body for broker in brokers for body in broker.drain("shop_mail")) == sorted(bodies)
    assert "loaded already" in jobs("load", file, config=config, status=1)
    settled(brokers, ready=0)


def test_parked_jobs_are_dumped_and_loaded_as_parked(store, brokers, config, tmp_path):
    made = sorted(park(store) for _ in range(7))
    file = tmp_path / "parked.jsonl"
    jobs("dump", "mail", file, "--parked", "--count", "3", config=config)
    settled(brokers, parked=4)
    jobs("dump", "mail", file, "--parked", "--append", config=config)
    settled(brokers, parked=0)
    jobs("load", file, config=config)
    assert parked_ids(brokers) == made


def test_dump_never_writes_over_a_file(store, brokers, config, tmp_path):
    store.put("mail", b"x")
    file = tmp_path / "mail.jsonl"
    file.write_text("mine")
    assert "exists already" in jobs("dump", "mail", file, config=config, status=1)
    assert "cannot be written" in jobs("dump", "mail", tmp_path / "no" / "file", config=config, status=1)
    assert file.read_text() == "mine"
    settled(brokers, ready=1)


def test_a_dump_onto_a_full_disk_loses_nothing_and_its_file_stays_whole(store, brokers, config, tmp_path):
    made = [envelope(data={"n": n, "text": "x" * 1000}) for n in range(200)]
    for one in made:
        store.put("mail", one.encode())
    file = tmp_path / "mail.jsonl"
    # A limit on the size of files stands for the full disk.
    limited = ["bash", "-c", 'ulimit -f 100; trap "" XFSZ; exec "$@"', "-", *command("dump", "mail", file)]
    run = subprocess.run(limited, env=environment(config), capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "cannot be written" in run.stderr
    wait_until(lambda: store.count("mail").reserved == 0, "the items in hand to come back")
    in_file = [json.loads(json.loads(line)["body"])["id"] for line in file.read_bytes().splitlines()]
    assert 0 < len(in_file) < 200
    assert sorted([*in_file, *ids(brokers)]) == sorted(one.id for one in made)


@pytest.mark.parametrize(
    "line",
    [
        *("not json", "[]", '{"queue":"mail"}', '{"queue":"mail","place":"else","body":"x"}'),
        *('{"queue":"mail","place":"ready","body":7}', '{"queue":"mail","place":"ready","body_b64":"?"}'),
        '{"queue":"mail","place":"ready","body":"x","more":1}',
    ],
)
def test_a_file_that_is_no_dump_is_refused_before_anything_is_loaded(brokers, config, tmp_path, capsys, line):
    file = tmp_path / "mail.jsonl"
    file.write_text(f'{{"queue":"mail","place":"ready","body":"x"}}\n{line}\n')
    assert main(["load", str(file)], environment(config)) == 78
    said = capsys.readouterr().err
    assert f"{file}, line 2: this is not an item of a dump. Nothing was loaded." in said
    settled(brokers, ready=0)


def test_a_file_with_another_applications_queue_is_refused(brokers, config, tmp_path):
    file = tmp_path / "mail.jsonl"
    file.write_text(
        '{"queue":"mail","place":"ready","body":"x"}\n{"queue":"nope","place":"ready","body":"x"}\n'
    )
    assert "'nope' is not configured" in jobs("load", file, config=config, status=78)
    settled(brokers, ready=0)


def test_load_goes_on_after_a_full_queue(tmp_path):
    with BrokerProcess(tmp_path, queues={"shop_mail": {"max_items": 5}}) as broker:
        config = settings_file(tmp_path, [broker.address])
        file = tmp_path / "mail.jsonl"
        lines = [{"queue": "mail", "place": "ready", "body": str(number)} for number in range(12)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        got = []
        for said in ("loaded 5 of 12, then stopped", "loaded 5 of 7, then stopped"):
            assert said in jobs("load", file, config=config, status=1)
            got += broker.drain("shop_mail")
        jobs("load", file, config=config)
        got += broker.drain("shop_mail")
        assert got == [b"%d" % number for number in range(12)]


def test_requeue_onto_a_full_queue_says_how_many_and_keeps_the_rest(tmp_path):
    with BrokerProcess(tmp_path, queues={"shop_mail": {"max_items": 5}}) as broker:
        config = settings_file(tmp_path, [broker.address])
        with Queue.open(f"kestrel://{broker.address}/shop", queues=QUEUES) as store:
            made = sorted(park(store) for _ in range(9))
        said = jobs("requeue", "mail", "--all", config=config, status=1)
        assert "requeued 5, then stopped: Not enqueued: " in said
        assert "The others are still parked." in said
        settled([broker], ready=5, parked=4)
        assert sorted([*ids([broker]), *parked_ids([broker])]) == made


@contextmanager
def slow_line(broker):
    """The address of a broker far away: a command takes seconds, and is met in the middle of its work."""
    with TcpProxy("127.0.0.1", broker.port, delay=0.003) as proxy:
        yield f"127.0.0.1:{proxy.port}"


@pytest.mark.parametrize("what", ["requeue", "dump", "load", "parked list"])
def test_a_command_that_is_killed_loses_nothing_and_doubles_at_most_what_was_under_way(what, tmp_path):
    with (
        BrokerProcess(tmp_path) as broker,
        Queue.open(f"kestrel://{broker.address}/shop", queues=QUEUES) as store,
        slow_line(broker) as line,
    ):
        config = settings_file(tmp_path, [line])
        file = tmp_path / "dump.jsonl"
        if what == "load":
            made = [envelope() for _ in range(1500)]
            lines = [{"queue": "mail", "place": "ready", "body": one.encode().decode()} for one in made]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            made = sorted(one.id for one in made)
        elif what == "dump":
            made = []
            for _ in range(1500):
                one = envelope()
                store.put("mail", one.encode())
                made.append(one.id)
        else:
            made = [park(store) for _ in range(900)]
        arguments = {
            "requeue": ["requeue", "mail", "--all"],
            "dump": ["dump", "mail", file],
            "load": ["load", file],
            "parked list": ["parked", "list", "mail"],
        }[what]
        begun = {
            "requeue": lambda: broker.stats("shop_mail").get("items", 0) > 20,
            "dump": lambda: file.exists() and file.stat().st_size > 20_000,
            "load": lambda: broker.stats("shop_mail").get("items", 0) > 20,
            "parked list": lambda: broker.stats("shop_mail_errors")["total_items"] > 920,
        }[what]
        process = subprocess.Popen(
            command(*arguments), env=environment(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(begun, "the command to be at it")
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, "it was done before it could be killed"
        settled([broker])
        waiting, parked = ids([broker]), parked_ids([broker])
        in_file = []
        if what == "dump":
            whole = [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]
            in_file = [json.loads(json.loads(line)["body"])["id"] for line in whole]
        if what == "load":
            jobs("load", file, config=settings_file(tmp_path, [broker.address]))
            waiting += ids([broker])
        found = [*waiting, *parked, *in_file]
        assert set(found) == set(made)
        assert len(found) - len(made) <= (50 if what == "dump" else 1)


def test_a_server_that_goes_away_in_the_middle_costs_nothing(tmp_path):
    with (
        BrokerProcess(tmp_path) as broker,
        Queue.open(f"kestrel://{broker.address}/shop", queues=QUEUES) as store,
        slow_line(broker) as line,
    ):
        config = settings_file(tmp_path, [line])
        made = [park(store) for _ in range(1000)]
        process = subprocess.Popen(
            command("requeue", "mail", "--all"), env=environment(config), stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: broker.stats("shop_mail").get("items", 0) > 20, "the command to be at it")
        broker.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert re.search(r"jobs: requeued \d+, then stopped: .*127\.0\.0\.1", said)
        assert "Traceback" not in said
        broker.start()
        found = [*ids([broker]), *parked_ids([broker])]
        assert set(found) == set(made)
        assert len(found) <= len(made) + 1


def test_a_pipe_gets_lines_and_a_terminal_a_bar(store, config):
    for _ in range(30):
        park(store)
    run = subprocess.run(
        command("requeue", "mail", "--count", "10"), env=environment(config), capture_output=True, timeout=60
    )
    assert re.fullmatch(rb"requeued: 10 of 30 in \d+\.\d s \([\d,]+/s\)\n", run.stderr)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command("requeue", "mail", "--all"), env=environment(config), stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # how Linux says that the other side has closed
    os.close(ours)
    assert process.wait(60) == 0
    assert re.search(rb"\r\[#* *\] requeued \d+ of 20  [\d,]+/s", shown)
    assert b"requeued: 20 of 20" in shown.splitlines()[-1]


def test_an_interrupted_command_says_so_and_gives_everything_back(store, brokers, config):
    for _ in range(300):
        park(store, reason="more than a pipe takes, so that the command waits for its reader " * 8)
    process = subprocess.Popen(
        command("parked", "list", "mail"),
        env=environment(config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith(b"jobs: interrupted; what was in hand goes back to its queue\n")
    settled(brokers, parked=300)


def test_a_reader_that_has_seen_enough_is_no_error(store, brokers, config):
    for _ in range(300):
        park(store, reason="long " * 200)
    run = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "-", *command("parked", "list", "mail")],
        env=environment(config),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr and "BrokenPipe" not in run.stderr
    settled(brokers, parked=300)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["enqueue", "SendMail", "--queue", "mail"], "required: --tenant"),
        (["enqueue", "SendMail", "--queue", "mail", "--tenant", "a", "--data", "{"], "--data is not JSON"),
        (["enqueue", "SendMail", "--queue", "mail", "--tenant", "a", "--data", "[]"], "not a JSON object"),
        (["enqueue", "SendMail", "--queue", "mail", "--tenant", "a", "--delay", "5"], "seconds: 10, 600"),
        (["enqueue", "SendMail", "--queue", "mail", "--tenant", "../x"], "not a tenant name"),
        (["enqueue", "../x", "--queue", "mail", "--tenant", "a"], "not a job name"),
        (["enqueue", "SendMail", "--tenant", "a"], "has no queue of its own name"),
        (["count", "nope"], "'nope' is not configured; configured: hello_world, mail"),
        (["peek", "nope"], "'nope' is not configured"),
        (["parked", "list", "mail", "--count", "0"], "not a whole number from 1 on"),
        (["requeue", "mail"], "say which: --all, or"),
        (["requeue", "mail", "--all", "--job", "A"], "say which: --all, or"),
        (["count", "--url", "kestrel://h/shop", "--servers", "h"], "--url goes without --servers"),
        (["count", "--servers", "a b"], "'a b' is not a server"),
        (["load", "/nowhere/at/all"], "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(config, capsys, arguments, said):
    assert main(arguments, environment(config)) == 78
    error = capsys.readouterr().err
    assert said in error
    assert re.fullmatch(r"jobs: [^\n]+\n", error)


def test_a_missing_settings_file_is_named(tmp_path):
    assert f"{tmp_path}/no.json does not exist" in jobs("count", "--config", tmp_path / "no.json", status=78)


def test_a_server_that_is_away_is_named():
    port = reserve()
    for arguments in (["count", "mail"], ["peek", "mail"], ["parked", "list", "mail"]):
        said = jobs(*arguments, "--servers", f"127.0.0.1:{port}", "--namespace", "shop", status=1)
        assert re.fullmatch(rf"jobs: 127\.0\.0\.1:{port} is not reachable: [^\n]+\n", said)


def test_flags_are_understood_before_and_after_the_command(brokers, config):
    where = ("--servers", brokers[0].address, "--namespace", "other")
    jobs(*where, "enqueue", "A", "--queue", "free", "--tenant", "acme")
    assert re.search(r"^free +1 ", jobs("count", "free", *where), re.MULTILINE)
    assert len(brokers[0].drain("other_free")) == 1


def test_the_same_commands_work_on_beanstalkd(tmp_path):
    with BeanstalkdProcess(tmp_path) as server:
        where = ("--url", f"beanstalkd://{server.address}/shop")
        with Queue.open(where[1]) as store:
            made = sorted(park(store, tenant="acme") for _ in range(5))
            park(store, tenant="other")
            jobs("requeue", "mail", "--tenant", "acme", *where)
            wait_until(lambda: store.count("mail").parked == 1, "the other one to come back")
            assert store.count("mail").ready == 5
            file = tmp_path / "mail.jsonl"
            jobs("dump", "mail", file, *where)
            assert store.count("mail").ready == 0
            jobs("load", file, *where)
            assert store.count("mail").ready == 5
            bodies = [json.loads(line)["body"] for line in file.read_text().splitlines()]
            assert sorted(json.loads(body)["id"] for body in bodies) == made


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain Zoë", "plain Zoë"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[31m", r"\x1b[31m"), ("\u202e", r"\u202e")],
)
def test_no_text_breaks_a_line(text, shown):
    assert one_line(text) == shown
