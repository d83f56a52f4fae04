"""Role consumers before any deploy, and with a release made by hand: wrapper, helper, sudoers."""

from __future__ import annotations

import json

import pytest

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
            + (f"echo {exit_code} >{folder}/exit;" if exit_code is not None else "")
            + f" ln -sfn releases/{name} {ROOT}/current.new && mv -T {ROOT}/current.new {ROOT}/current"
        )
        assert done.rc == 0, done.stderr

    yield make
    for group in ("news_digest", "news_bounces"):
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
    for group in ("news_digest", "news_bounces"):
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
        ("drain nothing", "no group nothing under supervisor: known are news_bounces, news_digest"),
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
        for queue in ("digest", "bounces")
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
    # (20+10) + (5+10) + 30: supervisord stops one program after the other.
    shown = root(HOST, "systemctl show supervisor --property TimeoutStopUSec --value")
    assert shown.strip() == "1min 15s"


def test_a_changed_setting_is_another_program_to_supervisor(root, helper, release, stopped):
    """The program carries the settings' checksum, so that `update` restarts it when they change."""
    settings = root(HOST, "sha1sum /etc/kestrel-stack/news-letter.json").split()[0]
    program = root(HOST, "cat /etc/supervisor/conf.d/kestrel-stack.news-letter.news_digest.conf")
    assert f'KESTREL_STACK_SETTINGS_SHA1="{settings}"' in program
