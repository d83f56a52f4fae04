"""A worker that supervisor gives up becomes an issue of a real Bugsink: real supervisord and alarm.

supervisord is installed into .build/supervisor at the first use.
"""

import fcntl
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support.broker import wait_until
from support.bugsink import Bugsink
from support.worker import ROOT, settings

SUPERVISOR = "supervisor==4.3.0"
FOLDER = ROOT / ".build" / "supervisor"

CONF = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

[program:shop_mail]
command=/bin/sh -c 'exit 3'
process_name=%(program_name)s_%(process_num)02d
numprocs=2
startsecs=1
startretries=1
exitcodes=78

[program:other_mail]
command=/bin/sh -c 'exit 3'
startsecs=1
startretries=0

[eventlistener:shop_alarm]
command={python} -P -m kestrel_stack.consumer.alarm --config {folder}/shop.json --groups shop_mail --supervisord-log {folder}/supervisord.log
environment=PYTHONPATH="{source}"
events=PROCESS_STATE_FATAL,PROCESS_STATE_EXITED,PROCESS_STATE_BACKOFF
stderr_logfile={folder}/alarm.log
"""  # noqa: E501


@pytest.fixture(scope="module")
def supervisord():
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stamp = FOLDER / "installed"
        if not stamp.exists() or stamp.read_text() != SUPERVISOR:
            venv.create(FOLDER / "venv", with_pip=True, clear=True)
            command = [str(FOLDER / "venv/bin/python"), "-m", "pip", "install", "-qq", SUPERVISOR]
            subprocess.run(command, check=True, timeout=300)
            stamp.write_text(SUPERVISOR)
    return FOLDER / "venv/bin/supervisord"


@pytest.mark.long
def test_a_worker_that_goes_fatal_is_one_issue_and_strangers_are_none(supervisord, tmp_path):
    with Bugsink(tmp_path / "bugsink") as bugsink:
        config = settings("127.0.0.1:1", {"name": "mail"}) | {"sentry_dsn": bugsink.dsn, "host": "worker9"}
        (tmp_path / "shop.json").write_text(json.dumps(config))
        conf = tmp_path / "supervisord.conf"
        conf.write_text(CONF.format(folder=tmp_path, python=sys.executable, source=ROOT / "src"))
        environ = {key: value for key, value in os.environ.items() if not key.startswith("SENTRY_")}
        running = subprocess.Popen([supervisord, "-c", conf], env=environ, stdout=subprocess.DEVNULL)
        try:
            bugsink.wait_for_events(1)
            # Both processes are given up; the second is in the alarm's log and not a second event.
            wait_until(lambda: fatal(tmp_path) == 2, "both to be FATAL")
        finally:
            running.terminate()
            running.wait(60)
        (issue,) = bugsink.issues()
        (event,) = [found["data"] for found in bugsink.events(issue["id"])]
    assert "shop_mail_0" in event["logentry"]["formatted"]
    assert event["logentry"]["formatted"].endswith("is FATAL: supervisor has given it up")
    assert event["tags"]["kind"] == "fatal" and event["tags"]["group"] == "shop_mail"
    assert (event["level"], event["environment"], event["server_name"]) == ("fatal", "test", "worker9")
    assert "other_mail" not in (tmp_path / "alarm.log").read_text()


def fatal(folder: Path) -> int:
    log = folder / "alarm.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(json.loads(line).get("kind") == "fatal" for line in lines)
