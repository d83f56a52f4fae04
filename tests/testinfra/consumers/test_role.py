"""Role consumers before any deploy, and with a release made by hand: wrapper, helper, mover, alarm."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from support import role_parts

CHECKOUT = Path(__file__).resolve().parents[3]
INVENTORY = CHECKOUT / "molecule/consumers/inventory"

HOST = "worker1"
HELPER = "sudo -n /usr/local/sbin/kestrel-stack-workers"
ROOT = "/srv/news-letter"

# A release as the deploy leaves one, whose consumer says how it was called and then waits for TERM; where the
# release has a file `exit`, it leaves with that exit code; with a file `job` it finishes 3 s of work first.
CONSUMER = """
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parents[2]
print("called", here.name, os.environ["KESTREL_STACK_RELEASE"], os.getcwd(), *sys.argv[1:], flush=True)
def finish(*_):
    if (here / "job").exists():
        time.sleep(3)
    print("drained", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
if (here / "exit").exists():
    time.sleep(2.5)
    sys.exit(int((here / "exit").read_text()))
while True:
    signal.pause()
"""

# The same in PHP; with a file `flood` it fills its log first.
PHP_CONSUMER = """<?php
$here = dirname(__DIR__, 3);
echo 'called ', basename($here), ' ', getenv('KESTREL_STACK_RELEASE'), ' ', getcwd(), ' ',
    implode(' ', array_slice($argv, 1)), PHP_EOL;
pcntl_async_signals(true);
pcntl_signal(SIGTERM, function () { echo 'drained', PHP_EOL; exit(0); });
if (file_exists("$here/flood")) {
    for ($line = 0; $line < 45000; $line++) { echo str_repeat('x', 99), PHP_EOL; }
}
while (true) { sleep(60); }
"""
GROUPS = ("news_digest", "news_bounces", "news_archive")


@pytest.fixture(scope="module")
def ship(stack):
    """The deploy user of this inventory."""
    return stack.host(HOST, "ship")


@pytest.fixture
def release(ship, root, helper):
    """Make releases by hand, and remove them afterwards."""

    def make(name, exit_code=None):
        folder = f"{ROOT}/releases/{name}"
        done = ship.run(
            f"set -e; mkdir -p {folder}/kestrel_stack/consumer {ROOT}/venvs;"
            f" [ -e {ROOT}/venvs/one ] || python3 -m venv --without-pip {ROOT}/venvs/one;"
            f" ln -sfn ../../venvs/one {folder}/venv; touch {folder}/kestrel_stack/__init__.py;"
            f" cat >{folder}/kestrel_stack/consumer/__main__.py <<'CODE'\n{CONSUMER}\nCODE\n"
            f" mkdir -p {folder}/kestrel-stack/php/bin;"
            f" cat >{folder}/kestrel-stack/php/bin/consumer <<'CODE'\n{PHP_CONSUMER}\nCODE\n"
            + (f"echo {exit_code} >{folder}/exit;" if exit_code is not None else "")
            + f" ln -sfn releases/{name} {ROOT}/current.new && mv -T {ROOT}/current.new {ROOT}/current"
        )
        assert done.rc == 0, done.stderr

    yield make
    for group in GROUPS:
        helper("drain", group)
    ship.run(f"rm -rf {ROOT}/current {ROOT}/releases/* {ROOT}/venvs/one")


@pytest.fixture(scope="module")
def helper(ship):
    def run(action, group):
        done = ship.run(f"{HELPER} {action} {group}")
        return done.rc, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr.strip()

    return run


def states(report):
    """Return each process's state; none while supervisor does not answer."""
    return [process["state"] for process in report["processes"]] if report else []


@pytest.fixture
def stopped(helper, eventually):
    """The programs as they are before the first deploy."""
    for group in GROUPS:
        eventually(
            lambda group=group: (
                (seen := states(helper("status", group)[1])) and set(seen) <= {"EXITED", "STOPPED"}
            ),
            f"{group} down",
        )


def test_every_queue_is_a_group_of_its_own_size_and_stays_down_without_a_release(helper, stopped):
    code, report, _ = helper("status", "news_digest")
    assert code == 0
    assert [process["name"] for process in report["processes"]] == [f"news_digest_0{n}" for n in range(3)]
    code, report, _ = helper("status", "news_bounces")
    assert code == 0
    assert [process["name"] for process in report["processes"]] == ["news_bounces_00"]


def test_php_comes_with_the_first_queue_of_that_language(root):
    found = root(HOST, "php -m").split()
    assert {"memcached", "pcntl", "posix", "pdo_sqlite"} <= set(found)
    # And nothing of a web server's.
    assert "apache" not in root(HOST, "dpkg-query -W -f '${Package} '")


def test_a_php_worker_runs_from_the_current_release_and_finishes_when_it_is_drained(
    helper, release, root, stopped
):
    name = "20260101T000000Z-aaaaaaaa"
    release(name)
    code, report, error = helper("start", "news_archive")
    assert (code, error) == (0, "")
    assert states(report) == ["RUNNING"] * 2
    assert {process["release"] for process in report["processes"]} == {name}
    [pid, _] = [process["pid"] for process in report["processes"]]
    assert root(HOST, f"ps -o user= -p {pid}").strip() == "worker"
    assert root(HOST, f"cat /proc/{pid}/cmdline | tr '\\0' ' '").split()[:2] == [
        "/usr/bin/php",
        f"{ROOT}/releases/{name}/kestrel-stack/php/bin/consumer",
    ]
    log = "/var/log/kestrel-stack/news-letter/news_archive_00.log"
    assert (
        f"called {name} {name} {ROOT}/releases/{name} --queue archive --app work/jobs.php"
        " --config /etc/kestrel-stack/news-letter.json"
    ) in root(HOST, f"cat {log}")
    assert helper("drain", "news_archive")[0] == 0
    assert root(HOST, f"cat {log}").rstrip().endswith("drained")


def test_a_workers_log_is_rotated_at_its_size_and_only_so_many_are_kept(
    helper, release, ship, root, eventually, stopped
):
    release("20260101T000000Z-aaaaaaaa")
    assert ship.run(f"touch {ROOT}/releases/20260101T000000Z-aaaaaaaa/flood").rc == 0
    assert helper("start", "news_archive")[0] == 0
    log = "/var/log/kestrel-stack/news-letter/news_archive_01.log"
    # 4.5 MB, of which the inventory keeps three files of 1 MB.
    eventually(lambda: root(HOST, f"ls {log}*").split() == [log, f"{log}.1", f"{log}.2"], "two old logs")
    # supervisor rotates when a file has passed its size, by at most what one read brings.
    sizes = [int(size) for size in root(HOST, f"stat -c %s {log}*").split()]
    assert all(size <= 1_048_576 + 262_144 for size in sizes), sizes


def test_the_log_says_why_nothing_runs_and_what_to_do(root, stopped):
    log = root(HOST, "cat /var/log/kestrel-stack/news-letter/news_digest_00.log")
    assert "no release of news-letter yet: run fab deploy" in log


def test_starting_without_a_release_fails_with_one_line_that_names_the_fix(helper, stopped):
    code, report, error = helper("start", "news_bounces")
    assert code == 1
    assert error == "kestrel-stack-workers: news_bounces_00 runs from no release: run fab deploy"
    assert report["processes"][0]["release"] is None


def test_start_runs_every_worker_from_the_current_release_with_its_arguments(helper, release, root, stopped):
    release("20260101T000000Z-aaaaaaaa")
    code, report, error = helper("start", "news_digest")
    assert (code, error) == (0, "")
    assert states(report) == ["RUNNING"] * 3
    assert {process["release"] for process in report["processes"]} == {"20260101T000000Z-aaaaaaaa"}
    log = root(HOST, "cat /var/log/kestrel-stack/news-letter/news_digest_02.log")
    name = "20260101T000000Z-aaaaaaaa"
    assert (
        f"called {name} {name} {ROOT}/releases/{name} --queue digest --app newsletter.work.jobs:registry"
        " --config /etc/kestrel-stack/news-letter.json"
    ) in log
    for process in report["processes"]:
        assert root(HOST, f"ps -o user= -p {process['pid']}").strip() == "worker"


def test_a_worker_that_runs_stays_on_its_release_when_current_moves_and_start_leaves_it_alone(
    helper, release, stopped
):
    release("20260101T000000Z-aaaaaaaa")
    _, before, _ = helper("start", "news_bounces")
    release("20260102T000000Z-bbbbbbbb")
    code, after, _ = helper("start", "news_bounces")
    assert code == 0
    assert after["processes"][0]["pid"] == before["processes"][0]["pid"]
    assert after["processes"][0]["release"] == "20260101T000000Z-aaaaaaaa"
    assert helper("drain", "news_bounces")[0] == 0
    _, restarted, _ = helper("start", "news_bounces")
    assert restarted["processes"][0]["release"] == "20260102T000000Z-bbbbbbbb"


@pytest.mark.parametrize("action", ["drain", "stop"])
def test_workers_are_asked_to_finish_and_are_gone_afterwards(helper, release, root, stopped, action):
    release("20260101T000000Z-aaaaaaaa")
    _, running, _ = helper("start", "news_digest")
    code, report, error = helper(action, "news_digest")
    assert (code, error) == (0, "")
    assert states(report) == ["STOPPED"] * 3
    assert [process["pid"] for process in report["processes"]] == [None] * 3
    for number, process in enumerate(running["processes"]):
        assert root(HOST, f"test ! -e /proc/{process['pid']} && echo gone").strip() == "gone"
        log = root(HOST, f"cat /var/log/kestrel-stack/news-letter/news_digest_0{number}.log")
        assert log.rstrip().endswith("drained")


def test_a_worker_that_reached_its_limits_is_started_again(helper, release, eventually, stopped):
    release("20260101T000000Z-aaaaaaaa", exit_code=0)
    _, first, _ = helper("start", "news_bounces")
    pid = first["processes"][0]["pid"]
    again = eventually(
        lambda: (
            (seen := helper("status", "news_bounces")[1]["processes"][0])["pid"] not in (None, pid) and seen
        ),
        "another process",
    )
    assert again["state"] in ("STARTING", "RUNNING")


def test_a_worker_that_cannot_run_as_configured_stays_down(helper, release, eventually, root, stopped):
    release("20260101T000000Z-aaaaaaaa", exit_code=78)
    helper("start", "news_bounces")
    eventually(lambda: states(helper("status", "news_bounces")[1]) == ["EXITED"], "EXITED")
    log = root(HOST, "grep -c called /var/log/kestrel-stack/news-letter/news_bounces_00.log")
    before = int(log)
    root(HOST, "supervisorctl pid >/dev/null")
    assert states(helper("status", "news_bounces")[1]) == ["EXITED"]
    assert int(root(HOST, "grep -c called /var/log/kestrel-stack/news-letter/news_bounces_00.log")) == before


def test_a_release_without_its_venv_is_named_in_the_log(helper, release, ship, root, eventually, stopped):
    release("20260101T000000Z-aaaaaaaa")
    assert ship.run(f"rm {ROOT}/releases/20260101T000000Z-aaaaaaaa/venv").rc == 0
    helper("start", "news_bounces")
    eventually(lambda: states(helper("status", "news_bounces")[1]) == ["EXITED"], "EXITED")
    log = root(HOST, "cat /var/log/kestrel-stack/news-letter/news_bounces_00.log")
    assert "release 20260101T000000Z-aaaaaaaa has no venv: run fab deploy" in log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "usage: kestrel-stack-workers status|start|stop|drain GROUP"),
        ("restart news_digest", "usage: kestrel-stack-workers status|start|stop|drain GROUP"),
        ("status news_digest extra", "usage: kestrel-stack-workers status|start|stop|drain GROUP"),
        ("status news:digest", "is not a legal name"),
        ("status '../x'", "is not a legal name"),
        (
            "drain nothing",
            "no group nothing under supervisor: known are"
            " news_alarm, news_archive, news_bounces, news_digest, news_mover",
        ),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(admin, arguments, says):
    done = admin(HOST).run(f"sudo /usr/local/sbin/kestrel-stack-workers {arguments}")
    assert done.rc == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_stop_of_supervisor_leaves_every_worker_the_time_to_finish_its_job(
    helper, release, ship, root, eventually, stopped
):
    release("20260101T000000Z-aaaaaaaa")
    assert ship.run(f"touch {ROOT}/releases/20260101T000000Z-aaaaaaaa/job").rc == 0
    pids = []
    for group in ("news_digest", "news_bounces"):
        code, report, error = helper("start", group)
        assert code == 0, error
        pids += [str(process["pid"]) for process in report["processes"]]
    root(HOST, "systemctl stop supervisor")
    try:
        for log in ("news_digest_00", "news_digest_02", "news_bounces_00"):
            text = root(HOST, f"cat /var/log/kestrel-stack/news-letter/{log}.log")
            assert text.rstrip().endswith("drained"), log
        left = root(HOST, "ps -e -o pid= | tr -d ' '").split()
        assert not set(pids) & set(left)
        assert "killing" not in root(HOST, "journalctl --unit supervisor --output cat").lower()
    finally:
        root(HOST, "systemctl start supervisor")
    eventually(lambda: set(states(helper("status", "news_digest")[1])) == {"RUNNING"}, "workers are back")


def test_the_helper_says_so_when_supervisor_is_down(root, admin, eventually, helper):
    root(HOST, "systemctl stop supervisor")
    try:
        done = admin(HOST).run("sudo /usr/local/sbin/kestrel-stack-workers status news_digest")
        assert done.rc == 1
        assert "supervisor does not answer on /run/supervisor.sock" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    finally:
        root(HOST, "systemctl start supervisor")
    eventually(lambda: helper("status", "news_digest")[0] == 0, "supervisor answers")


def test_the_deploy_user_may_run_exactly_its_groups(ship):
    rules = [line.strip() for line in ship.run("sudo -n -l").stdout.splitlines() if "NOPASSWD:" in line]
    assert rules == [
        f"(root) NOPASSWD: /usr/local/sbin/kestrel-stack-workers {action} news_{queue}"
        for queue in ("digest", "bounces", "archive")
        for action in ("status", "start", "stop", "drain")
    ]


def test_the_limits_of_the_inventory_reach_supervisor(root):
    digest = root(HOST, "cat /etc/supervisor/conf.d/kestrel-stack.news-letter.news_digest.conf")
    for line in [
        "numprocs=3",
        "stopwaitsecs=30",
        "stdout_logfile_maxbytes=1MB",
        "stdout_logfile_backups=2",
    ]:
        assert line in digest.splitlines()
    # A worker of bounces may have a job of digest in hand.
    bounces = root(HOST, "cat /etc/supervisor/conf.d/kestrel-stack.news-letter.news_bounces.conf")
    assert "stopwaitsecs=30" in bounces.splitlines()
    # supervisord stops one program after the other: (20+10) + (20+10) + (5+10) for the queues, 10 each for
    # mover and alarm, and 30 more.
    shown = root(HOST, "systemctl show supervisor --property TimeoutStopUSec --value")
    assert shown.strip() == "2min 5s"


def test_the_command_for_jobs_runs_without_a_release_and_for_whoever_may_read_the_settings(ship, run_as):
    assert "usage: " in ship.run("kestrel-stack-jobs --help").stdout
    # Its Python is the host's, and nothing in the caller's folder or environment is imported.
    assert ship.run("cd /tmp && PYTHONPATH=/nowhere PYTHONHOME=/nowhere kestrel-stack-jobs --help").rc == 0
    refused = run_as(HOST, "nobody", "kestrel-stack-jobs count")
    assert refused.rc != 0
    assert "Traceback" not in refused.stderr


def test_the_mover_runs_without_a_release_and_waits_while_there_is_no_kestrel(root, eventually):
    eventually(lambda: state(root, "news_mover:news_mover_00") == "RUNNING", "the mover runs")
    pid = root(HOST, "supervisorctl pid news_mover:news_mover_00").strip()
    assert root(HOST, f"ps -o user= -p {pid}").strip() == "worker"
    log = root(HOST, "cat /var/log/kestrel-stack/news-letter/news_mover_00.log")
    assert "Traceback" not in log


def state(root, name):
    """Return supervisor's state of one process. supervisorctl ends with 3 when it is not running."""
    return root(HOST, f"supervisorctl status {name} || true").split()[1]


# Writes each body that is posted to it as a line.
RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("/tmp/alarms", "ab") as file:
            file.write(self.path.encode() + b" " + body + b"\\n")
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""


@pytest.fixture
def alarms(root, eventually):
    """A receiver at the inventory's webhook; what it was told so far, when called."""
    root(HOST, f"rm -f /tmp/alarms; systemd-run --quiet --unit alarm-receiver python3 -c '{RECEIVER}'")
    probe = (
        "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8099), 3)' && echo yes || true"
    )
    eventually(lambda: root(HOST, probe), "the receiver listens")

    def told():
        lines = [
            line.partition(" ") for line in root(HOST, "cat /tmp/alarms 2>/dev/null || true").splitlines()
        ]
        return [path for path, _, _ in lines], [json.loads(body) for _, _, body in lines]

    yield told
    root(HOST, "systemctl stop alarm-receiver; rm -f /tmp/alarms")


def test_a_worker_that_is_killed_or_stays_down_raises_an_alarm_and_one_that_reached_its_limits_does_not(
    alarms, helper, release, root, eventually, stopped
):
    # Begins anew, for it sends the same trouble of the same group once in five minutes only.
    root(HOST, "supervisorctl restart news_alarm:news_alarm; rm -f /tmp/alarms")
    release("20260101T000000Z-aaaaaaaa", exit_code=0)
    _, report, _ = helper("start", "news_bounces")
    limits = report["processes"][0]["pid"]
    eventually(
        lambda: helper("status", "news_bounces")[1]["processes"][0]["pid"] not in (None, limits),
        "a worker that reached its limits is started again",
    )
    release("20260102T000000Z-bbbbbbbb")
    _, report, _ = helper("start", "news_digest")
    root(HOST, f"kill -9 {report['processes'][1]['pid']}")
    [path], [said] = eventually(lambda: (seen := alarms())[1] and seen, "the alarm of the killed one")
    assert path == "/hooks/a%20b?token=s3cr%25et"
    assert (said["kind"], said["process"], said["host"]) == ("crashed", "news_digest_01", HOST)
    assert "terminated by SIGKILL" in said["text"]
    eventually(lambda: states(helper("status", "news_digest")[1]) == ["RUNNING"] * 3, "it is started again")
    helper("drain", "news_bounces")
    release("20260103T000000Z-cccccccc", exit_code=78)
    helper("start", "news_bounces")
    [_, said] = eventually(lambda: (seen := alarms()[1])[1:] and seen, "the alarm of the one that stays down")
    assert (said["kind"], said["process"]) == ("down", "news_bounces_00")
    assert "exit status 78" in said["text"]
    log = root(HOST, "cat /var/log/kestrel-stack/news-letter/news_alarm.log")
    assert "s3cr" not in log
    assert "Traceback" not in log


def test_the_webhook_is_for_roots_eyes_only(root, ship):
    program = "/etc/supervisor/conf.d/kestrel-stack.news-letter.news_alarm.conf"
    assert root(HOST, f"stat -c '%a %U' {program}").split() == ["600", "root"]
    assert "s3cr" not in ship.run("ps -e -o args=").stdout


PLAY = [
    {
        "name": "Run what writes settings and programs",
        "hosts": HOST,
        "become": True,
        "gather_facts": False,
        "tasks": [
            {
                "name": "Run a part of a role",
                "ansible.builtin.include_role": {"name": "{{ part[0] }}", "tasks_from": "{{ part[1] }}"},
                "loop": [["app_host", "configure"], ["consumers", "configure"], ["consumers", "run"]],
                "loop_control": {"loop_var": "part"},
            }
        ],
    }
]


@pytest.fixture
def play(tmp_path):
    """Run the roles' parts with this change to one queue; return the names of the tasks that changed."""

    def run(**change):
        now = yaml.safe_load((INVENTORY / "group_vars/all.yml").read_text())["kestrel_stack_queues"]
        queues = [{**queue, **(change if queue["name"] == "archive" else {})} for queue in now]
        inventory = os.environ.get("KESTREL_STACK_INVENTORY", str(INVENTORY))
        said = role_parts.run(tmp_path, PLAY, inventory, {"kestrel_stack_queues": queues})
        assert re.search(rf"^{HOST} .* failed=0", said, re.MULTILINE)

    return run


def all_pids(root):
    """Return the pid of each running process, by its name."""
    lines = root(HOST, "supervisorctl status || true").splitlines()
    return {words[0]: words[3].rstrip(",") for words in map(str.split, lines) if words[1] == "RUNNING"}


def test_other_processes_for_one_queue_leave_all_others_running(
    play, helper, release, root, eventually, stopped
):
    release("20260101T000000Z-aaaaaaaa")
    for group in GROUPS:
        assert helper("start", group)[0] == 0
    before = all_pids(root)
    assert len(before) == 3 + 1 + 2 + len(["alarm", "mover"])
    # Limits that are the server's are in the settings as well, and are no business of any worker's.
    play(processes=3, max_items=5000, alert={"backlog": 5})
    try:
        eventually(lambda: states(helper("status", "news_archive")[1]) == ["RUNNING"] * 3, "three of them")
        others = {name: pid for name, pid in before.items() if not name.startswith("news_archive:")}
        assert others.items() <= all_pids(root).items()
        assert '"max_items": 5000' in root(HOST, "cat /etc/kestrel-stack/news-letter.json")
    finally:
        play()
    eventually(lambda: states(helper("status", "news_archive")[1]) == ["RUNNING"] * 2, "two of them")
    assert others.items() <= all_pids(root).items()


@pytest.mark.skipif(not os.environ.get("KESTREL_STACK_LONG"), reason="runs under bin/test --long")
def test_a_queues_own_limits_start_its_workers_again_and_no_others(
    play, helper, release, root, eventually, stopped
):
    release("20260101T000000Z-aaaaaaaa")
    for group in GROUPS:
        assert helper("start", group)[0] == 0
    before = all_pids(root)
    play(max_jobs=7)
    try:
        eventually(lambda: states(helper("status", "news_archive")[1]) == ["RUNNING"] * 2, "both run again")
        after = all_pids(root)
        assert {name for name in before if before[name] != after.get(name)} == {
            "news_archive:news_archive_00",
            "news_archive:news_archive_01",
        }
    finally:
        play()
