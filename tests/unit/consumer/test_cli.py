import json
import signal

import pytest

from kestrel_stack.consumer.cli import main, plan, process_number
from kestrel_stack.consumer.worker import Limits, Rules

DIRECT = ["--queue", "mail", "--app", "shop.jobs:registry", "--servers", "127.0.0.1:1", "--namespace", "shop"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "shop.json"
    mail = {"name": "mail", "max_jobs": 7, "job_timeout": 9, "rate_limit": "5/s", "retry_delays": [10, 60]}
    mail |= {"max_time": "1h", "max_memory": "256MB"}
    bulk = {"name": "bulk", "job_timeout": 600, "also": ["mail"]}
    path.write_text(
        json.dumps(
            {
                "app": "shop",
                "namespace": "shop",
                "environment": "lab",
                "servers": ["10.0.0.1:22133"],
                "queues": [mail, bulk, {"name": "legacy", "language": "php"}],
            }
        )
    )
    return path


def test_the_settings_file_says_what_the_flags_do_not(config):
    planned = plan(["--queue", "mail", "--app", "a.b:c", "--config", str(config)], {})
    assert (planned.queues, planned.servers, planned.environment) == (
        ("shop_mail",),
        "10.0.0.1:22133",
        "lab",
    )
    assert planned.rules == {"shop_mail": Rules(job_timeout=9, retry_delays=(10, 60))}
    assert planned.limits == Limits(jobs=7, rate=5.0, time=3600, memory=256 * 1024**2)


def test_flags_override_the_settings_file(config):
    flags = (
        "--servers a:1,b:2 --namespace other --env test --max-jobs 3 --job-timeout 2.5 "
        "--rate 0.5/s --max-time 30 --max-memory 200 --once --debug"
    )
    planned = plan(["--queue", "mail", "--app", "a:b", "--config", str(config), *flags.split()], {})
    assert (planned.queues, planned.environment, planned.debug) == (("other_mail",), "test", True)
    assert planned.rules["other_mail"].job_timeout == 2.5
    assert planned.servers == "a:1,b:2"
    assert planned.limits == Limits(jobs=3, rate=0.5, time=30, memory=200_000_000, once=True)


@pytest.mark.parametrize(
    ("flag", "queues"),
    [
        ("bulk", ("shop_bulk", "shop_mail")),
        ("mail,bulk", ("shop_mail", "shop_bulk")),
        ("mail", ("shop_mail",)),
    ],
)
def test_several_queues_come_by_priority_each_with_its_own_rules(config, flag, queues):
    planned = plan(["--queue", flag, "--app", "a:b", "--config", str(config)], {})
    assert planned.queues == queues
    of_each = {"shop_bulk": Rules(600, ()), "shop_mail": Rules(9, (10, 60))}
    assert planned.rules == {name: of_each[name] for name in queues}
    assert planned.limits.jobs == {"shop_bulk": 1000, "shop_mail": 7}[queues[0]]


def test_no_settings_file_is_needed_when_the_flags_say_all():
    planned = plan(DIRECT, {})
    assert planned.rules == {"shop_mail": Rules(job_timeout=60, retry_delays=())}
    assert planned.limits == Limits(jobs=1000)


def test_supervisors_process_name_gives_the_number():
    assert process_number({"SUPERVISOR_PROCESS_NAME": "shop_mail_03"}) == 3
    assert process_number({"SUPERVISOR_PROCESS_NAME": "shop"}) == 0
    assert process_number({}) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--queue, --app"),
        ([*DIRECT, "--max-job", "5"], "unrecognized arguments: --max-job"),
        ([*DIRECT, "--max-jobs", "0"], "--max-jobs: '0' is not a whole number from 1 on"),
        ([*DIRECT, "--max-jobs", "many"], "--max-jobs: 'many'"),
        ([*DIRECT, "--max-jobs"], "--max-jobs: expected one argument"),
        ([*DIRECT, "--max-memory", "1.5"], "--max-memory: '1.5'"),
        ([*DIRECT, "--max-time", "-1"], "--max-time"),
        ([*DIRECT, "--max-time", "nan"], "--max-time: 'nan'"),
        ([*DIRECT, "--job-timeout", "0"], "--job-timeout: '0' is not a number of seconds above 0"),
        (
            [*DIRECT, "--rate", "5"],
            "--rate: '5' is not a rate; write jobs per second above 0, for example 50/s",
        ),
        ([*DIRECT, "--queue", "a/b"], "queue name 'a/b' may hold only"),
        ([*DIRECT, "--queue", "mail,mail"], "--queue names mail twice"),
        ([*DIRECT, "--queue", "mail,"], "queue name is empty"),
        ([*DIRECT, "--log-file", "/nonexistent/log"], "--log-file /nonexistent/log: No such file"),
        ([*DIRECT, "--queue", "a_errors"], "that the stack makes itself"),
        ([*DIRECT, "--namespace", "a b"], "namespace 'a b' may hold only"),
        ([*DIRECT, "--servers", "x:y"], "'x:y' is not a server"),
        ([*DIRECT, "--servers", "memory://x"], "memory:// is inside of one process"),
        ([*DIRECT, "--servers", "redis://x"], "unknown scheme; known: kestrel://, beanstalkd://"),
        ([*DIRECT, "--app", "shop.jobs"], "--app 'shop.jobs' is not MODULE:REGISTRY"),
        ([*DIRECT, "--app", "../shop:x"], "--app '../shop:x' is not MODULE:REGISTRY"),
        ([*DIRECT, "--app", "shop.jobs:a.b"], "is not MODULE:REGISTRY"),
        ([*DIRECT, "--config", "/nonexistent.json"], "/nonexistent.json does not exist"),
        (
            ["--queue", "mail", "--app", "a:b", "--config", "/nonexistent.json"],
            "/nonexistent.json does not exist",
        ),
    ],
)
def test_wrong_flags_end_with_one_line_and_status_78(arguments, said, capsys):
    assert main(arguments, {}) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("consumer: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_queue_that_is_not_configured_is_refused_with_those_that_are(config, capsys):
    assert main(["--queue", "nope", "--app", "a:b", "--config", str(config)], {}) == 78
    assert "'nope' is not configured" in (err := capsys.readouterr().err)
    assert "configured: bulk, legacy, mail" in err


def test_a_queue_of_another_language_is_refused(config, capsys):
    assert main(["--queue", "legacy", "--app", "a:b", "--config", str(config)], {}) == 78
    assert "legacy is for php workers" in capsys.readouterr().err


def test_help_names_the_signals_and_hides_what_only_tests_need(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "HUP" in text
    assert "min-uptime" not in text


@pytest.fixture
def signals_as_they_were():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_defect_of_the_worker_is_one_line_and_status_1(monkeypatch, capfd, signals_as_they_were):
    def broken(self):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("kestrel_stack.consumer.worker.Worker.run", broken)
    assert main([*DIRECT], {}) == 1
    _, last = capfd.readouterr().err.splitlines()
    record = json.loads(last)
    assert (record["level"], record["event"]) == ("error", "the worker has a defect")
    assert "two" in record["error"]
    assert "test_cli.py" in record["where"]
