"""fab status, releases, check, workers, logs, unlock on hosts made of folders; every script runs for real."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from kestrel_stack.deploy import commands, description, scripts, session, survey, workerlogs
from kestrel_stack.deploy.commands.check import problems_of
from kestrel_stack.deploy.description import Environment, Host, Queue
from kestrel_stack.deploy.errors import DONE, Cancelled, DeployError, HostError, Refused
from kestrel_stack.deploy.report import Report
from kestrel_stack.deploy.ssh import Result
from kestrel_stack.queue.envelope import Envelope, now_ms
from kestrel_stack.queue.interface import Queue as JobsQueue
from support.broker import BrokerProcess
from support.deploy import NEW, OLD, ROOT, GitApp, Tree, wait_for
from support.ports import nobody

# The package's attribute of this name is the command.
logs_module = importlib.import_module("kestrel_stack.deploy.commands.logs")

QUEUES = ("a", "b")
GROUPS = tuple(f"shop_{name}" for name in QUEUES)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as process:
        yield process


@pytest.fixture(autouse=True)
def no_items(broker):
    yield
    broker.raw(b"flush_all\r\n")


class Machine:
    """A host made of a folder, with what the roles put beside the application's own folder."""

    def __init__(self, folder: Path, servers: list[str]) -> None:
        folder.mkdir()
        self.tree = Tree(folder, GROUPS)
        self.away = False
        self.refused = ""
        for name in ("etc", "log/shop"):
            (folder / name).mkdir(parents=True)
        self.settings = folder / "etc" / "shop.json"
        self.serve(servers)
        self.jobs = folder / "jobs"
        source = f"export PYTHONPATH={ROOT / 'src'}\nexec {sys.executable} -m kestrel_stack.queue.jobs"
        self.jobs.write_text(f'#!/bin/sh\n{source} "$@"\n')
        self.jobs.chmod(0o755)
        self.running: subprocess.Popen[bytes] | None = None

    def serve(self, servers: list[str], dsn: str | None = None) -> None:
        """Write the settings file."""
        content = {"app": "shop", "namespace": "shop", "environment": "lab", "servers": servers}
        content["queues"] = [{"name": name, "retry_delays": [10]} for name in QUEUES]
        content["sentry_dsn"] = dsn
        self.settings.write_text(json.dumps(content))

    def log(self, name: str) -> Path:
        return self.tree.base / "log" / "shop" / f"{name}.log"

    def here(self, script: str) -> str:
        """Have a script find on this machine's folder what it looks for at the host's fixed places."""
        places = {
            "/srv/shop": self.tree.srv,
            scripts.HELPER: self.tree.helper,
            scripts.JOBS: self.jobs,
            scripts.SETTINGS: self.tree.base / "etc",
            scripts.LOGS: self.tree.base / "log",
        }
        for place, mine in places.items():
            script = script.replace(place, str(mine))
        return script


class Line:
    """Stands in for ssh.Remote: scripts run on a Machine, and the connection to it can be cut."""

    machines: ClassVar[dict[str, Machine]] = {}

    def __init__(self, host: Host, cancel: threading.Event, *_: object, **__: object) -> None:
        self.name = host.name
        self.machine = self.machines[host.name]
        self.cancel = cancel

    def close(self) -> None:
        pass

    def run(self, script, *, what, timeout, on_line=None, keep_lines=True, **_) -> Result:
        if self.machine.refused:
            raise Refused(self.machine.refused)
        if self.machine.away:
            raise Refused(f"{self.name} does not answer")
        process = self.machine.tree.start(self.machine.here(script))
        self.machine.running = process
        # One that ends by itself may have done so.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        watch = threading.Thread(target=self._watch, args=(process,), daemon=True)
        watch.start()
        lines = []
        for raw in process.stdout:
            line = raw.decode().rstrip("\n")
            if on_line is not None:
                on_line(line)
            if keep_lines:
                lines.append(line)
        errors = process.stderr.read().decode().splitlines()
        code = process.wait(60)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        for stream in (process.stdout, process.stderr):
            stream.close()
        if self.cancel.is_set():
            raise Cancelled("stopped")
        if self.machine.away:
            raise HostError(self.name, f"{what}: the connection was lost (cut)", lost=True)
        return Result(code, tuple(lines), tuple(errors))

    def _watch(self, process) -> None:
        """End the script's lifeline when a person cancels or the connection is cut."""
        while process.poll() is None:
            if self.cancel.wait(0.02) or self.machine.away:
                process.stdin.close()
                return


@pytest.fixture
def machines(tmp_path, broker, monkeypatch):
    """Two hosts with a queue server that both reach."""
    made = {name: Machine(tmp_path / name, [broker.address]) for name in ("worker1", "worker2")}
    monkeypatch.setattr(Line, "machines", made)
    monkeypatch.setattr(session, "Remote", Line)
    queues = tuple(Queue(name, f"shop_{name}", 1, 20) for name in QUEUES)
    hosts = tuple(Host(name, name, None, "deploy", None, queues) for name in made)
    environment = Environment("lab", "shop", "shop", hosts)
    monkeypatch.setattr(description, "load_environment", lambda env, limit=None: environment)
    return made


@pytest.fixture
def out():
    return Report(
        Console(file=io.StringIO(), highlight=False, soft_wrap=True, width=400),
        Console(file=io.StringIO()),
    )


def said(out: Report) -> str:
    return out.console.file.getvalue()


def deployed(machine: Machine, name: str = NEW, **about: str) -> None:
    """A release, with all workers running from it."""
    machine.tree.release(name, rev="1a2b3c4d" + "0" * 32, ref="main", **about)
    machine.tree.run_from(name)


def noted(machine: Machine, **record: object) -> None:
    about = {"at": "2026-11-21T01:15:00+00:00", "action": "deploy", "release": NEW, "by": "ann@laptop"}
    with (machine.tree.srv / "deploys.jsonl").open("a") as file:
        file.write(json.dumps({**about, "id": "1", "result": "ok", **record}) + "\n")


# --- the scripts --------------------------------------------------------------------------------------

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


@pytest.mark.parametrize(
    "script",
    [
        scripts.look("/srv/shop", GROUPS, [".env"], web="shop"),
        scripts.look("/srv/shop", []),
        scripts.logs("/srv/shop", GROUPS, lines=5, follow=True, at={"shop_a_00": (1, 2)}),
    ],
    ids=["look", "look, no workers", "logs"],
)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    assert checker, "shellcheck is missing: install requirements/controller.txt"
    done = subprocess.run(
        [checker, "--shell=bash", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_value_is_quoted(tmp_path):
    places = dict.fromkeys(("helper", "web_helper", "jobs", "settings", "logs"), HOSTILE)
    look = scripts.look(HOSTILE, [HOSTILE], [HOSTILE], web=HOSTILE, **places)
    logs = scripts.logs(HOSTILE, [HOSTILE], lines=1, follow=False, at={HOSTILE: (1, 1)}, folder=HOSTILE)
    for script in (look, logs):
        subprocess.run(
            ["/bin/bash", "-c", script], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True
        )
    assert not list(tmp_path.rglob("pwned"))


# --- status -------------------------------------------------------------------------------------------


def test_status_shows_hosts_queues_and_the_last_deploy(machines, broker, out):
    for machine in machines.values():
        deployed(machine, created_at=datetime.now(UTC).isoformat())
        noted(machine, id="0", at="2026-11-20T01:15:00+00:00", release=OLD)
        noted(machine, ref="main")
    with JobsQueue.open(
        f"kestrel://{broker.address}/shop", queues=[{"name": "a", "retry_delays": [10]}]
    ) as jobs:
        for _ in range(2):
            jobs.put("a", Envelope(job="A", tenant="t", enqueued_at=now_ms() - 90_000).encode())
        jobs.put("a", Envelope(job="A", tenant="t").encode(), delay=10)
        jobs.park("a", b"{}")
    assert commands.status("lab", None, False, out) == DONE
    text = said(out)
    for name in machines:
        assert re.search(rf"^{name} +{NEW} +main +\d+ s +shop_a 1/1, shop_b 1/1 +free", text, re.MULTILINE)
    assert re.search(r"^queue +backlog +open +oldest +retrying +parked", text, re.MULTILINE)
    assert re.search(r"^a +2 +0 +1 min +1 +1", text, re.MULTILINE)
    assert re.search(r"^b +0 +0 +0 +0", text, re.MULTILINE)
    assert re.search(rf"^Last: deploy of {NEW} \(main\) by ann@laptop, .* ago: ok$", text, re.MULTILINE)


def test_on_a_narrow_terminal_no_name_is_folded(machines):
    for machine in machines.values():
        deployed(machine)
    terminal = Report(Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))
    assert commands.status("lab", None, False, terminal) == DONE
    text = said(terminal)
    assert [text.count(f"{group} 1/1") for group in GROUPS] == [2, 2]
    assert text.count(NEW) == 2


def test_status_as_json_has_it_all(machines, out):
    deployed(machines["worker1"])
    noted(machines["worker1"], result="failed", reason="boom")
    noted(machines["worker2"])
    machines["worker2"].away = True
    with pytest.raises(Refused, match="worker2 does not answer"):
        commands.status("lab", None, True, out)
    data = json.loads(said(out))
    one, other = data["hosts"]
    assert (one["release"], one["answers"], one["web"]) == (NEW, True, None)
    assert [group["running"] for group in one["groups"]] == [1, 1]
    assert (other["answers"], other["error"]) == (False, "worker2 does not answer")
    assert one["errors_to"] is None
    assert [queue["name"] for queue in data["queues"]] == ["a", "b"]
    assert data["queues"][0] == {
        "name": "a", "items": 0, "open": 0, "errors": 0, "retries": 0, "oldest_s": None,
    }  # fmt: skip
    assert data["queues_seen_from"] == "worker1"
    assert (data["last_deploy"]["result"], data["last_deploy"]["results"]) == (
        "failed",
        {"worker1": "failed"},
    )


def test_a_host_that_does_not_answer_is_shown_among_the_others(machines, out):
    deployed(machines["worker2"])
    machines["worker1"].away = True
    with pytest.raises(Refused, match="worker1 does not answer"):
        commands.status("lab", None, False, out)
    assert re.search(r"^worker1 +does not answer", said(out), re.MULTILINE)
    assert re.search(rf"^worker2 +{NEW}", said(out), re.MULTILINE)
    assert re.search(r"^a +0 ", said(out), re.MULTILINE)


def test_a_queue_server_that_does_not_answer_is_shown_and_is_not_fatal(machines, broker, out):
    gone = nobody()
    machines["worker1"].serve([gone])
    machines["worker2"].serve([gone, broker.address])
    broker.raw(b"set shop_a 0 0 1\r\nx\r\n")
    assert commands.status("lab", None, False, out) == DONE
    # The numbers are those of the host that reached more.
    assert re.search(r"^a +1 +0", said(out), re.MULTILINE)
    for name in machines:
        assert re.search(rf"{name} +gets no answer from queue server {gone}: .*refused", said(out))


def test_without_any_queue_server_there_are_no_numbers_and_the_rest_is_shown(machines, out):
    for machine in machines.values():
        deployed(machine)
        machine.serve([nobody()])
    assert commands.status("lab", None, False, out) == DONE
    assert said(out).count(NEW) == 2
    assert "backlog" not in said(out)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "kestrel-stack-jobs is missing"),
        ('echo \'{"a": {"ready": 1}}\'', "kestrel-stack-jobs is older than fab"),
        ("echo 'jobs: no settings' >&2; exit 78", "no settings"),
        ("exit 3", "kestrel-stack-jobs said nothing"),
    ],
)
def test_a_host_without_numbers_says_why(machines, out, program, reason):
    for machine in machines.values():
        machine.jobs.unlink()
        if program:
            machine.jobs.write_text(f"#!/bin/sh\n{program}\n")
            machine.jobs.chmod(0o755)
    assert commands.status("lab", None, False, out) == DONE
    assert said(out).count(f"has no numbers of the queues: {reason}\n") == 2


def test_one_look_is_one_script(machines, out, monkeypatch):
    ran = []
    real = Line.run
    monkeypatch.setattr(Line, "run", lambda self, *a, **k: ran.append(self.name) or real(self, *a, **k))
    commands.status("lab", None, False, out)
    assert sorted(ran) == ["worker1", "worker2"]


def test_of_several_deploys_the_newest_counts_with_what_each_host_noted():
    def host(name, *records):
        return survey.Survey(survey.HostState(name), deploys=records)

    old = {"at": "2026-11-20T00:00:00+00:00", "id": "1", "release": OLD, "result": "ok"}
    new = {"at": "2026-11-21T00:00:00+00:00", "id": "2", "release": NEW, "result": "ok"}
    found = survey.last_deploy([host("h1", old, new), host("h2", old, {**new, "result": "failed"})])
    assert found.record["release"] == NEW
    assert dict(found.results) == {"h1": "ok", "h2": "failed"}
    assert found.result == "failed"
    assert survey.last_deploy([host("h1")]) is None
    assert survey.last_deploy([host("h1", {"at": 5})]) is None


def test_a_garbled_record_or_number_is_left_out():
    lines = ['@ deploy {"at": "2026', "@ deploy nonsense", '@ count 0 {"queues": {"a": {"items": "x"']
    found = survey.parse_survey("h", lines)
    assert found.deploys == ()
    assert found.queues == ()
    assert found.trouble


# --- releases -----------------------------------------------------------------------------------------


def test_releases_show_failed_ones_and_the_commits_that_git_knows(machines, out, tmp_path):
    app = GitApp(tmp_path / "application")
    rev = app.commit("Send mail later")
    for machine in machines.values():
        machine.tree.release(OLD, rev="f" * 40, ref="v1", by="ann@laptop")
        machine.tree.run_from(OLD)
    new = machines["worker1"].tree.release(NEW, rev=rev, ref="main", verified=False)
    (new / ".failed").touch()
    assert commands.releases("lab", str(app.path), None, out) == DONE
    newest, oldest = said(out).splitlines()[1:3]
    assert re.search(rf"^{NEW} +main .* worker1 +failed on worker1 +Send mail later", newest)
    assert re.search(rf"^{OLD} +v1 .*ann@laptop +worker1, worker2 +worker1, worker2 *$", oldest)


def test_releases_need_no_git(machines, out, tmp_path):
    machines["worker1"].tree.release(NEW, rev="--output=pwned", verified=False)
    assert commands.releases("lab", str(tmp_path / "nowhere"), None, out) == DONE
    assert "never verified on worker1" in said(out)
    assert not list(tmp_path.rglob("pwned"))


# --- check --------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path):
    return GitApp(tmp_path / "application")


def checked(app: GitApp, out: Report) -> str:
    """Run the check, expect it to find something, and return what it printed."""
    with pytest.raises(Refused) as refused:
        commands.check("lab", str(app.path), None, out)
    assert refused.value.code == 1
    assert re.fullmatch(r"\d+ problems? on the way to a deploy of shop to lab", str(refused.value))
    return said(out)


def test_a_good_host_is_ready(machines, app, out):
    assert commands.check("lab", str(app.path), None, out) == DONE
    assert said(out).count("ready: Python 3.") == 2
    assert said(out).count("1 queue server answers") == 2
    assert "2 hosts of lab can be deployed to" in said(out)


KEY = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        (f"https://{KEY}@errors.example.com/3", "errors.example.com"),
        (f"http://{KEY}:{KEY}@10.0.0.5:8765/sub/path/3", "10.0.0.5:8765"),
        (f"http://{KEY}@[2001:db8::1]:8765/3", "[2001:db8::1]:8765"),
        (None, "the logs only"),
        (f"https://{KEY}", "the logs only"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_where_errors_go_is_said_and_never_the_key(machines, broker, app, out, dsn, shown, indent):
    for machine in machines.values():
        machine.serve([broker.address], dsn)
        content = json.loads(machine.settings.read_text())
        machine.settings.write_text(json.dumps(content, indent=indent))
    assert commands.check("lab", str(app.path), None, out) == DONE
    assert said(out).count(f"errors go to {shown}\n") == 2
    assert commands.status("lab", None, False, out) == DONE
    assert f"\nErrors go to {shown}\n" in said(out)
    assert KEY not in said(out)


def test_a_host_that_reports_to_none_while_others_do_is_a_problem(machines, broker, app, out):
    machines["worker2"].serve([broker.address], f"https://{KEY}@errors.example.com/3")
    text = checked(app, out)
    assert re.search(
        r"worker1 +its errors are in its logs only, while others .* errors\.example\.com: run", text
    )
    assert re.search(r"worker2 +ready: .*errors go to errors\.example\.com", text)
    assert commands.status("lab", None, False, out) == DONE
    assert "Errors go to errors.example.com, the logs only" in said(out)


def test_every_problem_is_named_with_its_fix(machines, app, out):
    bad = machines["worker2"]
    bad.tree.helper.unlink()
    bad.settings.unlink()
    app.write("deploy.yml", "shared: {files: [.env], directories: [var]}\nafter: {webhook: $NO_SUCH_HOOK}\n")
    (machines["worker1"].tree.srv / "shared" / ".env").touch()
    text = checked(app, out)
    assert "worker1  ready" in text
    for problem in (
        "kestrel-stack-workers is missing: run ansible-playbook site.yml",
        "cannot read /etc/kestrel-stack/shop.json: run ansible-playbook site.yml",
        "the shared file .env is missing: put it into",
        "set NO_SUCH_HOOK in the environment",
    ):
        assert problem in text


def test_what_only_another_environment_needs_is_no_problem_here(machines, app, out):
    hook = "after: {webhook: $NO_SUCH_HOOK, environments: [%s]}\n"
    app.write("deploy.yml", hook % "production")
    assert commands.check("lab", str(app.path), None, out) == DONE
    app.write("deploy.yml", hook % "lab")
    assert "set NO_SUCH_HOOK in the environment" in checked(app, out)


def test_what_this_machine_lacks_is_a_problem_too(machines, app, out, monkeypatch, tmp_path):
    app.write("deploy.yml", "assets: {folders: [public], cdn: {rsync: 'cdn.example.com:/srv/static/'}}\n")
    app.write("composer.lock", "{}")
    monkeypatch.setenv("PATH", str(tmp_path))
    text = checked(app, out)
    assert "rsync is not installed on this machine: apt install rsync" in text
    assert "php is not installed on this machine: apt install php-cli" in text


def test_a_queue_server_that_a_host_does_not_reach_is_a_problem(machines, app, out):
    gone = nobody()
    machines["worker1"].serve([gone])
    assert f"queue server {gone} gives no answer to this host" in checked(app, out)


def test_a_host_that_cannot_be_reached_is_a_problem_and_the_others_are_looked_at(machines, app, out):
    machines["worker1"].refused = "worker1: the host key has changed: find out who answers"
    text = checked(app, out)
    assert re.search(r"worker1 +the host key has changed: find out who answers", text)
    assert re.search(r"worker2 +ready", text)


def test_workers_that_are_down_are_a_problem_once_there_is_a_release(machines, app, out):
    deployed(machines["worker1"])
    (machines["worker1"].tree.base / "state" / "shop_a").unlink()
    assert "worker shop_a_00 is STOPPED: see fab logs --limit worker1" in checked(app, out)


def test_a_full_disk_and_a_wrong_clock_are_problems(machines):
    facts = {"root": "yes", "disk_kb": "1024", "settings": "yes", "logs": "yes"}
    state = survey.HostState("h", facts, clock_skew=-42.0)
    host = Host("h", "h", None, "deploy", None, (), web=True)
    found = problems_of("shop", host, survey.Survey(state, servers=1))
    assert any(problem.startswith("only 1 MB are free under /srv/shop") for problem in found)
    assert any("clock is 42 s behind this machine's" in problem for problem in found)
    assert any(problem.startswith("kestrel-stack-web is missing") for problem in found)


def test_an_application_that_is_not_there_is_refused(machines, out, tmp_path):
    with pytest.raises(Refused, match=r"there is no .*nowhere/deploy\.yml: --app names"):
        commands.check("lab", str(tmp_path / "nowhere"), None, out)


# --- workers ------------------------------------------------------------------------------------------


def test_workers_are_listed_process_by_process(machines, out):
    deployed(machines["worker1"])
    (machines["worker1"].tree.base / "state" / "shop_b").write_text(OLD)
    assert commands.workers(commands.AskWorkers(), out) == DONE
    text = said(out)
    assert re.search(rf"^worker1 +shop_a_00 +RUNNING +1 +9 s +{NEW}", text, re.MULTILINE)
    assert re.search(rf"^worker1 +shop_b_00 +RUNNING +1 +9 s +{OLD}", text, re.MULTILINE)
    assert re.search(r"^worker2 +shop_a_00 +STOPPED *$", text, re.MULTILINE)


def test_workers_of_one_queue(machines, out):
    assert commands.workers(commands.AskWorkers(queue="b"), out) == DONE
    assert said(out).count("shop_b_00") == 2
    assert "shop_a_00" not in said(out)


@pytest.mark.parametrize("restart", [False, True])
def test_a_queue_that_nobody_works_on_is_refused(machines, out, restart):
    with pytest.raises(Refused, match="no host of lab has workers for 'c'; there are a, b"):
        commands.workers(commands.AskWorkers(queue="c", restart=restart), out)


# --- logs: the host's program -------------------------------------------------------------------------


def line(text: str, second: int = 0) -> str:
    moment = datetime(2026, 11, 21, 1, 15, tzinfo=UTC) + timedelta(seconds=second)
    return json.dumps({"time": f"{moment:%Y-%m-%dT%H:%M:%S}.000Z", "level": "info", "event": text})


def sent(machine: Machine, *groups: str, **options) -> tuple[list[str], workerlogs.Stream]:
    """Run the program without following; return the events it sent and the state after that."""
    script = scripts.logs("/srv/shop", groups, **{"lines": 10, "follow": False, **options})
    code, lines, err = machine.tree.run(machine.here(script))
    assert code == 0, err
    stream = workerlogs.Stream("h")
    entries = [entry for text in lines if (entry := stream.take(text))]
    assert stream.caught_up
    return [(entry.record or {}).get("event", entry.text) for entry in entries], stream


def test_the_last_lines_of_every_log_are_sent(machines):
    machine = machines["worker1"]
    machine.log("shop_a_00").write_text("".join(line(f"a{n}") + "\n" for n in range(20)))
    machine.log("shop_b_00").write_text(line("b0") + "\nunfinished")
    assert sent(machine, lines=3)[0] == ["a17", "a18", "a19", "b0", "unfinished"]
    assert sent(machine, "shop_b", lines=3)[0] == ["b0", "unfinished"]
    assert sent(machine, lines=0)[0] == []


def test_what_was_rotated_is_part_of_the_last_lines(machines):
    log = machines["worker1"].log("shop_a_00")
    log.with_name(f"{log.name}.1").write_text("".join(line(f"old{n}") + "\n" for n in range(5)))
    log.write_text(line("new") + "\n")
    assert sent(machines["worker1"], lines=3)[0] == ["old3", "old4", "new"]


def test_a_long_log_is_read_from_its_end(machines):
    log = machines["worker1"].log("shop_a_00")
    log.write_text("".join(line(f"a{n} {'x' * 100}") + "\n" for n in range(5000)))
    found = sent(machines["worker1"], lines=2500)[0]
    assert len(found) == 2500
    assert found[0].startswith("a2500 ")
    assert found[-1].startswith("a4999 ")


@pytest.mark.parametrize("wanted", [599, 600, 601, 5000])
def test_a_log_that_has_fewer_lines_than_are_wanted_is_sent_once(machines, wanted):
    log = machines["worker1"].log("shop_a_00")
    # More than the program reads at a time, and no multiple of it.
    log.write_text("".join(line(f"a{n} {'x' * 100}") + "\n" for n in range(600)))
    found = sent(machines["worker1"], lines=wanted)[0]
    assert [text.split()[0] for text in found] == [f"a{n}" for n in range(600)][-wanted:]


def test_a_return_in_a_line_does_not_make_two_of_it(machines):
    log = machines["worker1"].log("shop_a_00")
    log.write_bytes(b"first\n10 %\r20 %\r30 %\n" + line("last").encode() + b"\n")
    assert sent(machines["worker1"], lines=2)[0] == ["10 % 20 % 30 %", "last"]


def test_one_run_goes_on_where_another_had_come_to_whatever_was_rotated_between(machines):
    machine = machines["worker1"]
    log = machine.log("shop_a_00")
    log.write_text(line("1") + "\n" + line("2") + "\n")
    at = sent(machine)[1].at
    assert sent(machine, at=at)[0] == []
    with log.open("a") as file:
        file.write(line("3") + "\n")
    log.rename(log.with_name(f"{log.name}.2"))
    log.with_name(f"{log.name}.1").write_text(line("4") + "\n")
    log.write_text(line("5") + "\n")
    assert sent(machine, at=at)[0] == ["3", "4", "5"]
    for number in (1, 2):
        log.with_name(f"{log.name}.{number}").unlink()
    assert sent(machine, at=at)[0] == ["5"]


def test_a_folder_that_is_not_there_is_named(machines):
    machine = machines["worker1"]
    machine.log("x").parent.rmdir()
    code, _, err = machine.tree.run(machine.here(scripts.logs("/srv/shop", lines=1, follow=False)))
    assert code == 1
    assert re.fullmatch(r"\S+/log/shop cannot be read: No such file or directory\n", err)


def test_what_was_begun_as_all_were_told_to_end_ends_too(machines):
    tree = machines["worker1"].tree
    process = tree.start(machines["worker1"].here(scripts.logs("/srv/shop", lines=1, follow=True)))
    with process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def program() -> str:
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    if b"python3" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                        return pid
            return ""

        wait_for(program)
        pid = program()
        # The signal for all of them had come before there was this one.
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        wait_for(lambda: gone(pid))


def gone(pid: str) -> bool:
    """Whether a process has ended; who ends it may not have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- logs: merged and readable ------------------------------------------------------------------------


def logs(out: Report, **ask) -> list[str]:
    assert commands.logs(commands.AskLogs(**ask), out) == DONE
    return said(out).splitlines()


def test_the_logs_of_all_hosts_are_merged_by_time(machines, out):
    machines["worker1"].log("shop_a_00").write_text(line("first", 1) + "\n" + line("third", 3) + "\n")
    machines["worker2"].log("shop_b_00").write_text(
        line("second", 2) + "\nno JSON\n" + line("last", 4) + "\n"
    )
    assert logs(out) == [
        "2026-11-21T01:15:01.000Z worker1 shop_a_00 info    first",
        "2026-11-21T01:15:02.000Z worker2 shop_b_00 info    second",
        "2026-11-21T01:15:02.000Z worker2 shop_b_00 no JSON",
        "2026-11-21T01:15:03.000Z worker1 shop_a_00 info    third",
        "2026-11-21T01:15:04.000Z worker2 shop_b_00 info    last",
    ]


def test_the_last_lines_are_those_of_all_hosts_together(machines, out):
    for second, machine in enumerate(machines.values()):
        machine.log("shop_a_00").write_text(
            "".join(line(f"{machine.tree.base.name} {n}", second + 2 * n) + "\n" for n in range(5))
        )
    found = logs(out, lines="3", queue="a")
    assert [words.split("info    ")[1] for words in found] == ["worker2 3", "worker1 4", "worker2 4"]


def test_fields_are_readable_and_cannot_draw_on_the_screen():
    record = {"time": "2026-11-21T01:15:01.000Z", "level": "error", "event": "job", "queue": "shop_a"}
    record |= {
        "reason": "The job raised Boom.",
        "attempt": 2,
        "last": True,
        "none": None,
        "odd": "a\n\x1b[2Jb",
    }
    entry = workerlogs.Stream("h").take("shop_a_00\t" + json.dumps(record))
    text = workerlogs.as_text(entry).plain
    assert text == (
        "2026-11-21T01:15:01.000Z h shop_a_00 error   job queue=shop_a"
        ' reason="The job raised Boom." attempt=2 last=true odd="a\\n\\u001b[2Jb"'
    )
    assert workerlogs.as_text(workerlogs.Stream("h").take("w\t\x1b[2Jx")).plain.endswith("?[2Jx")


def test_colours_are_for_a_terminal(machines):
    machines["worker1"].log("shop_a_00").write_text(line("first " + "x" * 90).replace("info", "error") + "\n")
    terminal = Report(
        Console(file=io.StringIO(), force_terminal=True, no_color=False, width=60, color_system="standard")
    )
    assert commands.logs(commands.AskLogs(), terminal) == DONE
    assert "\x1b[31m" in said(terminal)
    # One line stays one line, however narrow the terminal.
    assert said(terminal).count("\n") == 1


def test_as_json_every_line_says_whose_it_is(machines, out):
    machines["worker1"].log("shop_a_00").write_text(line("first") + "\nno JSON\n")
    found = [json.loads(text) for text in logs(out, as_json=True)]
    assert found == [
        {"host": "worker1", "worker": "shop_a_00", **json.loads(line("first"))},
        {"host": "worker1", "worker": "shop_a_00", "text": "no JSON"},
    ]


@pytest.mark.parametrize("lines", ["-1", "x", "1.5", "", "100001", "٣x"])
def test_a_number_of_lines_that_is_none_is_refused(out, lines):
    with pytest.raises(Refused, match=r"--lines is .*; it must be a whole number from 0 to 100000"):
        commands.logs(commands.AskLogs(lines=lines), out)


def test_logs_of_a_queue_that_is_not_there_are_refused(machines, out):
    with pytest.raises(Refused, match="no host of lab has workers for 'c'; there are a, b"):
        commands.logs(commands.AskLogs(queue="c"), out)


def test_one_host_whose_logs_cannot_be_read_does_not_hide_the_others(machines, out):
    machines["worker1"].away = True
    machines["worker2"].log("shop_a_00").write_text(line("first") + "\n")
    with pytest.raises(Refused, match="worker1 does not answer"):
        commands.logs(commands.AskLogs(), out)
    assert "first" in said(out)


def test_lines_that_come_once_more_after_a_cut_are_left_out():
    stream = workerlogs.Stream("h")
    first = ["a\t1", "@ at a 7 2", "a\t2", "b\tx", "a\t3"]
    taken = [entry.text for text in first if (entry := stream.take(text))]
    stream.resume()
    # Of b nothing was said: it is begun anew as well.
    again = ["a\t2", "a\t3", "a\t4", "@ at a 7 8", "b\ty"]
    taken += [entry.text for text in again if (entry := stream.take(text))]
    assert taken == ["1", "2", "x", "3", "4", "y"]
    stream.resume()
    assert stream.take("a\t5").text == "5"


# --- logs: followed -----------------------------------------------------------------------------------


class Following:
    """`fab logs --follow` in a thread of its own; what it prints is read as it comes."""

    def __init__(self, out: Report, monkeypatch, **ask) -> None:
        self.out = out
        self.session: session.Session | None = None
        real = session.Session

        def made(*args, **kwargs):
            self.session = real(*args, **kwargs)
            return self.session

        monkeypatch.setattr(logs_module, "Session", made)
        monkeypatch.setattr(logs_module, "RETRY_PAUSES", (0.05,))
        monkeypatch.setattr(logs_module, "ORDER", 0.05)
        self.result: object = None
        self._thread = threading.Thread(target=self._run, args=(commands.AskLogs(follow=True, **ask),))
        self._thread.start()

    def _run(self, ask) -> None:
        try:
            self.result = commands.logs(ask, self.out)
        except DeployError as error:
            self.result = error

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_for(lambda: said(self.out).count(text) >= times)

    def end(self) -> object:
        """What Ctrl-C does, which only the main thread hears."""
        if self.session is not None:
            self.session.cancel.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.result


@pytest.fixture
def follow(machines, out, monkeypatch):
    begun = []

    def begin(**ask) -> Following:
        begun.append(Following(out, monkeypatch, **ask))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def add(path: Path, *texts: str) -> None:
    with path.open("a") as file:
        file.write("".join(text + "\n" for text in texts))


def events_of(out: Report) -> list[str]:
    return re.findall(r"info    (\w+)", said(out))


def test_following_shows_what_was_there_and_what_comes(machines, out, follow):
    first = machines["worker1"].log("shop_a_00")
    add(first, line("old0", 1), line("old1", 2))
    run = follow(lines="1")
    run.wait_for("old1")
    add(first, line("new0", 3))
    run.wait_for("new0")
    # A log that was not there yet.
    add(machines["worker2"].log("shop_b_00"), line("new1", 4))
    run.wait_for("new1")
    processes = [machine.running for machine in machines.values()]
    assert run.end() == DONE
    assert events_of(out) == ["old1", "new0", "new1"]
    # Nothing is left running on the hosts.
    for process in processes:
        assert process.poll() is not None
        wait_for(lambda pid=process.pid: not group_exists(pid))


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_while_following_still_begins_is_a_good_end(machines, out, monkeypatch):
    class Interrupted(threading.Thread):
        def start(self):
            if self.name == "logs-worker1":
                raise KeyboardInterrupt
            super().start()

    monkeypatch.setattr(logs_module.threading, "Thread", Interrupted)
    assert commands.logs(commands.AskLogs(follow=True), out) == DONE


def test_following_without_old_lines_shows_none_and_misses_no_new_one(machines, out, follow, monkeypatch):
    log = machines["worker1"].log("shop_a_00")
    add(log, line("old"))
    streams, ready = {}, threading.Event()
    real = Line.run

    def run(self, *args, **kwargs):
        # The other host is slow, so that the first one's new line comes before what is shown first.
        if self.name == "worker2":
            ready.wait(60)
        return real(self, *args, **kwargs)

    def made(host):
        return streams.setdefault(host, workerlogs.Stream(host))

    monkeypatch.setattr(Line, "run", run)
    monkeypatch.setattr(logs_module, "Stream", made)
    running = follow(lines="0")
    wait_for(lambda: "worker1" in streams and streams["worker1"].caught_up)
    add(log, line("new"))
    wait_for(lambda: streams["worker1"].at["shop_a_00"][1] == log.stat().st_size)
    assert events_of(out) == []
    ready.set()
    running.wait_for("new")
    assert running.end() == DONE
    assert events_of(out) == ["new"]


def test_following_goes_on_when_a_log_is_rotated(machines, out, follow):
    log = machines["worker1"].log("shop_a_00")
    add(log, line("begin"))
    run = follow()
    run.wait_for("begin")
    wanted = ["begin"]
    for number in range(5):
        before, after = f"before{number}", f"after{number}"
        wanted += [before, after]
        add(log, line(before))
        log.rename(log.with_name(f"{log.name}.1"))
        add(log, line(after))
        run.wait_for(after)
    assert run.end() == DONE
    assert events_of(out) == wanted


def test_following_survives_a_host_that_goes_away_and_loses_and_doubles_nothing(machines, out, follow):
    log = machines["worker1"].log("shop_a_00")
    add(log, line("before"))
    run = follow()
    run.wait_for("before")
    machines["worker1"].away = True
    run.wait_for("tried again until it answers")
    # A log that was not there yet, and none of whose lines was ever sent.
    add(machines["worker1"].log("shop_b_00"), line("unheard"))
    add(log, line("meanwhile0"))
    log.rename(log.with_name(f"{log.name}.1"))
    add(log, line("meanwhile1"))
    # The other host is still listened to.
    add(machines["worker2"].log("shop_b_00"), line("elsewhere"))
    run.wait_for("elsewhere")
    machines["worker1"].away = False
    run.wait_for("is back")
    run.wait_for("meanwhile1")
    run.wait_for("unheard")
    add(log, line("after"))
    run.wait_for("after")
    assert run.end() == DONE
    assert [event for event in events_of(out) if event not in ("elsewhere", "unheard")] == [
        "before", "meanwhile0", "meanwhile1", "after",
    ]  # fmt: skip
    assert events_of(out).count("unheard") == 1


def test_following_an_empty_log_that_was_emptied_in_place_goes_on(machines, out, follow):
    log = machines["worker1"].log("shop_a_00")
    add(log, line("one"), line("two"))
    run = follow()
    run.wait_for("two")
    os.truncate(log, 0)
    add(log, line("three"))
    run.wait_for("three")
    assert run.end() == DONE
    assert events_of(out)[-1] == "three"


def test_following_hosts_whose_logs_cannot_be_read_is_an_error(machines, out, follow):
    for machine in machines.values():
        machine.log("x").parent.rmdir()
    run = follow()
    wait_for(lambda: run.result is not None)
    assert isinstance(run.result, Refused)
    assert str(run.result).count("cannot be read") == 2


# --- unlock -------------------------------------------------------------------------------------------


def locked(machine: Machine, id: str = "x", **about: object) -> Path:
    path = machine.tree.srv / ".deploy.lock"
    path.write_text(json.dumps({"id": id, "owner": "ann", "controller": "laptop", "pid": 5, **about}))
    return path


def test_unlock_shows_whose_it_was_and_removes_it(machines, out):
    lock = locked(machines["worker1"])
    assert commands.unlock("lab", None, False, out) == DONE
    assert not lock.exists()
    assert "unlocked; it was held by ann@laptop (pid 5)" in said(out)
    assert re.search(r"worker2 +is not locked", said(out))


@pytest.mark.parametrize("answer", [True, False])
def test_the_lock_of_a_running_deploy_is_asked_for(machines, out, monkeypatch, answer):
    locks = [locked(machine, lease=60) for machine in machines.values()]
    asked = []
    monkeypatch.setattr(out, "confirm", lambda question, unattended: asked.append(question) or answer)
    with contextlib.ExitStack() as holders:
        for lock in locks:
            # What the deploy's own process on the host does.
            fcntl.flock(holders.enter_context(lock.open()), fcntl.LOCK_EX)
        if answer:
            assert commands.unlock("lab", None, False, out) == DONE
        else:
            with pytest.raises(Refused, match=r"not confirmed .--yes.: nothing was changed"):
                commands.unlock("lab", None, False, out)
    assert asked == ["Take the lock of a running deploy away?"]
    assert "is locked by ann@laptop (pid 5), which is running" in said(out)
    assert [lock.exists() for lock in locks] == [not answer] * 2


def test_where_nobody_can_be_asked_the_lock_of_a_running_deploy_stays(machines, out):
    lock = locked(machines["worker1"], lease=60)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="not confirmed"):
            commands.unlock("lab", None, False, out)
        assert lock.exists()
        assert commands.unlock("lab", None, True, out) == DONE
    assert not lock.exists()


def test_a_dead_deploys_lock_is_taken_away_without_a_question(machines, out, monkeypatch):
    lock = locked(machines["worker1"], lease=60)
    os.utime(lock, (0, 0))
    monkeypatch.setattr(out, "confirm", lambda question: pytest.fail(question))
    assert commands.status("lab", None, False, out) == DONE
    assert "left behind by ann@laptop" in said(out)
    assert commands.unlock("lab", None, False, out) == DONE
    assert not lock.exists()


def test_a_host_that_does_not_answer_keeps_no_other_locked(machines, out):
    lock = locked(machines["worker2"])
    machines["worker1"].away = True
    with pytest.raises(Refused, match="worker1 does not answer"):
        commands.unlock("lab", None, True, out)
    assert not lock.exists()
