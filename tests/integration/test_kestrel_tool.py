"""kestrel-stack-kestrel starts, reloads and restarts a real broker, and finishes what was interrupted."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from support.kestrel_host import KestrelHost, free_port

DIES = "import sys; print('kestrel-embedded: no queue for you'); sys.exit(3)"
# Ends as soon as it is asked anything: it runs, and never answers.
MUTE = "import time\nwhile True: time.sleep(1)"


@pytest.fixture
def host(tmp_path):
    made = KestrelHost(tmp_path)
    yield made
    made.close()


@pytest.fixture
def running(host):
    host.stage()
    assert host.apply()["did"] == "start"
    host.steps()
    return host


def test_a_fresh_host_gets_a_running_server_that_is_started_at_boot(host):
    host.stage()
    said = host.apply()
    assert (said["did"], said["changed"], said["status"], said["version"]) == ("start", True, "UP", "2.4.1")
    assert (host.root / "systemd/enabled").exists()
    assert (host.root / "opt/kestrel/current").readlink().name == "embedded-1-a"


def test_a_second_run_does_nothing(running):
    before = running.pid
    assert running.apply() | {"reasons": 0} == {
        "changed": False,
        "did": "nothing",
        "reasons": 0,
        "release": "embedded-1-a",
        "version": "2.4.1",
        "status": "UP",
    }
    assert running.pid == before


def test_a_queues_limit_is_reloaded_and_the_process_stays(running):
    before = running.pid
    running.stage(queues={"shop_mail": {"max_items": 1}})
    assert running.apply()["did"] == "reload"
    assert running.pid == before
    assert [running.set("shop_mail") for _ in range(2)] == ["STORED", "NOT_STORED"]
    assert running.apply()["did"] == "nothing"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_open_transactions": 7}, "settings of the server changed"),
        ({"unit": "another unit"}, "the unit changed"),
        ({"release": "embedded-2-b"}, "version embedded-2-b instead of embedded-1-a"),
    ],
)
def test_what_a_reload_cannot_change_restarts_in_order_and_keeps_the_items(running, change, reason):
    running.add_release("embedded-2-b")
    running.set("shop_mail", "stays")
    before = running.pid
    running.stage(**change)
    said = running.apply()
    assert (said["did"], said["reasons"], said["status"]) == ("restart", [reason], "UP")
    assert running.pid != before
    assert "stays" in running.ask("get shop_mail\r\n", b"END\r\n")
    steps = running.steps()
    assert steps.index("readonly") < steps.index("stopped") < steps.index("config installed")
    assert steps.index("installed") < steps.index("started") < steps.index("status put back")
    assert running.apply()["did"] == "nothing"


def test_a_server_that_moves_to_another_port_is_found_there(running):
    running.port = other = free_port()
    running.stage(port=other)
    assert running.apply()["did"] == "restart"
    assert running.ask("status\r\n") == "UP"


@pytest.mark.parametrize("status", ["readonly", "quiescent"])
def test_a_restart_puts_back_the_status_that_it_found(running, status):
    running.ask(f"status {status}\r\n")
    running.stage(unit="another unit")
    assert running.apply()["status"] == status.upper()
    assert not (running.root / "var/lib/kestrel/planned-stop").exists()


def test_a_pipe_in_place_of_a_note_is_nobodys_note_and_is_not_waited_for(running):
    os.mkfifo(running.root / "var/lib/kestrel/planned-stop")
    running.stage(unit="another unit")
    assert running.apply()["did"] == "restart"
    assert not (running.root / "var/lib/kestrel/planned-stop").exists()


STEPS = [
    *("kept", "noted", "readonly", "stopped", "config installed", "program installed", "installed"),
    *("started", "remembered", "status put back"),
]


@pytest.mark.parametrize("step", STEPS)
def test_a_restart_that_is_killed_at_any_step_is_finished_by_the_next_run(running, step):
    running.add_release("embedded-2-b")
    running.set("shop_mail", "stays")
    running.stage(release="embedded-2-b", max_open_transactions=7)
    assert running.tool("apply", dies_at=step)[0] == -9
    said = running.apply()
    assert (said["release"], said["status"]) == ("embedded-2-b", "UP")
    assert (running.root / "opt/kestrel/current").readlink().name == "embedded-2-b"
    assert json.loads((running.root / "etc/kestrel/embedded.json").read_text())["max_open_transactions"] == 7
    assert running.items("shop_mail") == 1
    assert running.apply()["did"] == "nothing"


def test_those_are_the_steps_of_a_restart(running):
    running.stage(unit="another unit")
    running.apply()
    assert running.steps() == STEPS


@pytest.mark.parametrize("step", ["reload installed", "before reload"])
def test_a_reload_that_is_killed_is_finished_by_the_next_run(running, step):
    before = running.pid
    running.stage(queues={"shop_mail": {"max_items": 1}})
    assert running.tool("apply", dies_at=step)[0] == -9
    assert running.apply()["did"] == "reload"
    assert running.pid == before
    assert [running.set("shop_mail") for _ in range(2)] == ["STORED", "NOT_STORED"]


def test_a_server_that_ends_while_a_change_is_staged_starts_again_as_it_was(running):
    running.stage(queues={"shop_mail": {"max_items": 1}}, max_open_transactions=7)
    installed = (running.root / "etc/kestrel/embedded.json").read_text()
    assert json.loads(installed)["queues"] == {"shop_mail": {"max_items": 3}}
    running.tool("apply", dies_at="readonly")
    assert (running.root / "etc/kestrel/embedded.json").read_text() == installed


@pytest.mark.parametrize(
    ("program", "why"), [(DIES, "ends again and again"), (MUTE, "does not answer version")]
)
def test_a_new_version_that_does_not_start_leaves_the_old_one_running(running, program, why):
    running.add_release("embedded-2-b", program)
    running.set("shop_mail", "stays")
    running.stage(release="embedded-2-b", unit="another unit", max_open_transactions=7)
    code, said, err = running.tool("--start-seconds", "20", "apply")
    assert code == 1
    assert why in said["failed"]
    assert said["failed"].endswith("embedded-1-a runs again with its configuration from before")
    assert err == f"kestrel-stack-kestrel: {said['failed']}\n"
    assert running.ask("status\r\n") == "UP"
    assert running.items("shop_mail") == 1
    assert (running.root / "etc/systemd/system/kestrel.service").read_text() == "unit"
    running.stage()
    assert running.apply()["did"] == "nothing"


def test_the_log_of_a_server_that_does_not_start_is_shown(running):
    running.add_release("embedded-2-b", DIES)
    running.stage(release="embedded-2-b")
    said = running.tool("--start-seconds", "20", "apply")[1]
    assert "kestrel-embedded: no queue for you" in said["log"]


def test_the_first_version_of_a_host_that_does_not_start_is_said_to_be_down(host):
    host.add_release("embedded-2-b", DIES)
    host.stage(release="embedded-2-b")
    code, said, _ = host.tool("--start-seconds", "20", "apply")
    assert code == 1
    assert said["failed"].endswith("; Kestrel is DOWN")


def test_a_first_version_that_runs_and_never_answers_is_replaced_by_the_next_run(host):
    host.add_release("embedded-2-b", MUTE)
    host.stage(release="embedded-2-b")
    code, said, _ = host.tool("--start-seconds", "1", "apply")
    assert code == 1
    assert "does not answer version" in said["failed"]
    host.stage()
    said = host.apply()
    assert (said["did"], said["release"], said["status"]) == ("restart", "embedded-1-a", "UP")


def test_a_reload_that_the_log_does_not_prove_becomes_a_restart(running):
    # A program that cannot read a configuration again.
    deaf = (
        "import logging\n"
        + (running.root / "opt/kestrel/releases/embedded-1-a/kestrel-embedded.pyz").read_text()
    )
    deaf = deaf.replace(
        "runpy.run_module", "from kestrel_stack.broker import server\nserver.load = None\nrunpy.run_module"
    )
    running.add_release("embedded-2-b", deaf)
    running.stage(release="embedded-2-b")
    running.apply()
    before = running.pid
    running.stage(release="embedded-2-b", queues={"shop_mail": {"max_items": 1}})
    said = running.apply()
    assert said["did"] == "restart"
    assert said["reasons"][1].startswith("the reload was not proven: ")
    assert running.pid != before
    assert said["status"] == "UP"
    assert [running.set("shop_mail") for _ in range(2)] == ["STORED", "NOT_STORED"]


def test_a_file_that_somebody_changed_is_put_back_without_a_restart(running):
    before = running.pid
    (running.root / "etc/kestrel/embedded.json").write_text(json.dumps({**running.config, "port": 1}))
    said = running.apply()
    assert (said["did"], running.pid) == ("files", before)
    assert json.loads((running.root / "etc/kestrel/embedded.json").read_text()) == running.config


def test_two_runs_at_once_do_it_once(running):
    running.stage(unit="another unit")
    runs = [running.start_tool("apply") for _ in range(2)]
    said = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sorted(one["did"] for one in said) == ["nothing", "restart"]


def test_a_lock_that_is_never_given_up_ends_the_wait(running):
    with (running.root / "run/kestrel-stack-kestrel.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = running.tool("--lock-seconds", "0.3", "apply")
    assert code == 1
    assert "another program has held" in err


def test_nothing_is_done_when_nothing_complete_is_staged(running):
    (running.root / "etc/kestrel/next/kestrel.service").unlink()
    code, _, err = running.tool("apply")
    assert (code, err.count("\n")) == (1, 1)
    assert "nothing complete is staged" in err
    assert running.ask("status\r\n") == "UP"


def plan(host, **change):
    setup = {"release": change.pop("release", "embedded-1-a"), "unit": change.pop("unit", "unit\n")}
    text = json.dumps({**setup, "config": json.dumps({**host.config, **change})})
    code, said, err = host.tool("plan", stdin=text)
    assert code == 0, err
    return said["would"]


def test_a_plan_says_what_would_happen_and_does_nothing(running):
    before = running.pid
    assert plan(running) == "nothing"
    assert plan(running, queues={}) == "reload"
    assert plan(running, unit="another") == "restart"
    assert plan(running, release="embedded-9-z") == "restart"
    assert running.pid == before
    assert running.apply()["did"] == "nothing"


def test_a_plan_for_a_host_without_a_server_is_a_start(host):
    assert plan(host) == "start"


def test_the_status_is_said_and_set(running):
    assert running.tool("status")[1] == {"changed": False, "status": "UP"}
    assert running.tool("status", "readonly")[1] == {"changed": True, "status": "READONLY"}
    assert running.tool("status")[1] == {"changed": False, "status": "READONLY"}


def test_a_status_that_somebody_set_is_not_lifted_by_a_run_that_has_nothing_to_do(running):
    running.tool("status", "readonly")
    assert running.apply()["did"] == "nothing"
    assert running.ask("status\r\n") == "READONLY"


def test_a_status_that_somebody_set_after_an_interrupted_restart_stays(running):
    running.stage(unit="another unit")
    running.tool("apply", dies_at="readonly")
    running.tool("status", "readonly")
    assert running.apply()["status"] == "READONLY"


def test_a_restart_and_a_reload_that_are_asked_for_are_done(running):
    before = running.pid
    assert running.tool("reload")[1]["did"] == "reload"
    assert running.pid == before
    assert running.tool("restart")[1]["status"] == "UP"
    assert running.pid != before
    assert running.tool("wait")[1]["version"] == "2.4.1"


def test_a_wrong_word_is_refused_in_one_line(running):
    code, _, err = running.tool("status", "sideways")
    assert (code, err.count("\n")) == (2, 1)
