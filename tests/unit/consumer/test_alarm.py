"""The alarm as supervisor runs it: its real process, events on its input, reports to a real HTTP server."""

from __future__ import annotations

import http.server
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kestrel_stack.consumer import alarm

ROOT = Path(__file__).resolve().parents[3]
LOG_LINES = """\
2026-11-21 08:00:00,000 INFO spawned: 'shop_mail_00' with pid 41
2026-11-21 08:00:05,000 WARN exited: shop_mail_00 (exit status 0; not expected)
2026-11-21 08:00:09,000 WARN exited: shop_mail_00 (terminated by SIGKILL; not expected)
2026-11-21 08:00:09,100 WARN exited: shop_mail_001 (exit status 3; not expected)
2026-11-21 08:00:10,000 WARN exited: shop_news_00 (exit status 0; not expected)
2026-11-21 08:00:11,000 INFO exited: shop_bulk_00 (exit status 78; expected)
2026-11-21 08:00:12,000 WARN exited: shop_dump_00 (terminated by SIGSEGV (core dumped); not expected)
"""


@pytest.fixture
def supervisord_log(tmp_path):
    file = tmp_path / "supervisord.log"
    file.write_text(LOG_LINES)
    return file


class Hook:
    """An HTTP server that keeps what it is told; while `held` is clear it answers nobody."""

    def __init__(self):
        self.heard = queue.Queue()
        self.held = threading.Event()
        self.held.set()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                # An envelope of Sentry's is three lines of JSON.
                said = [json.loads(line) for line in body.splitlines()]
                hook.heard.put((self.path, said[-1]))
                hook.held.wait(60)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"

    def close(self):
        self.held.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook():
    made = Hook()
    yield made
    made.close()


class Listener:
    """The alarm's process, and supervisor's end of its pipes."""

    def __init__(self, folder, log, webhook="", dsn=None):
        config = folder / "shop.json"
        config.write_text(
            json.dumps(
                {
                    "app": "shop",
                    "namespace": "shop",
                    "environment": "test",
                    "host": "worker9",
                    "servers": ["127.0.0.1:1"],
                    "queues": [{"name": "mail"}],
                    "sentry_dsn": dsn,
                }
            )
        )
        self.stderr = folder / "alarm.log"
        command = [sys.executable, "-m", "kestrel_stack.consumer.alarm", "--config", config]
        self.current = folder / "current"
        self.current.mkdir()
        command += ["--current", self.current]
        command += ["--groups", "shop_mail,shop_news,shop_bulk,shop_mover", "--supervisord-log", log]
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "KESTREL_STACK_ALARM_WEBHOOK": webhook},
            )

    def tell(self, event, **payload):
        """Hand over one event as supervisor does, and take the answer that it waits for."""
        body = " ".join(f"{key}:{value}" for key, value in payload.items()).encode()
        header = (
            f"ver:3.0 server:supervisor serial:21 pool:x poolserial:10 eventname:{event} len:{len(body)}\n"
        )
        assert self.process.stdout.readline() == b"READY\n"
        self.process.stdin.write(header.encode() + body)
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"RESULT 2\n"
        assert self.process.stdout.read(2) == b"OK"

    def exited(self, process, expected=0):
        group = process.rpartition("_")[0]
        self.tell(
            "PROCESS_STATE_EXITED",
            processname=process,
            groupname=group,
            from_state="RUNNING",
            expected=expected,
            pid=41,
        )

    def ready(self):
        """Wait until what was told has been understood."""
        assert self.process.stdout.readline() == b"READY\n"

    def logged(self):
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def listener(tmp_path, supervisord_log):
    made = []

    def start(webhook="", dsn=None):
        made.append(Listener(tmp_path, supervisord_log, webhook, dsn))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_worker_that_was_killed_is_reported_to_the_webhook_with_how_it_ended(listener, hook):
    listener(hook.url).exited("shop_mail_00")
    path, said = hook.heard.get(timeout=60)
    assert path == "/hook?token=secret"
    assert said == {
        "text": "[test] worker9: shop_mail_00 ended unasked (terminated by SIGKILL) and is started again",
        "kind": "crashed",
        "group": "shop_mail",
        "process": "shop_mail_00",
        "app": "shop",
        "environment": "test",
        "host": "worker9",
    }


def test_a_worker_that_reached_its_limits_and_strangers_are_no_trouble_and_one_that_stays_down_is(
    listener, hook
):
    ours = listener(hook.url)
    ours.exited("shop_news_00")
    ours.exited("other_thing_00")
    ours.exited("shop_bulk_00", expected=1)
    assert hook.heard.get(timeout=60)[1]["text"] == (
        "[test] worker9: shop_bulk_00 stays down: it cannot run as configured (exit status 78)"
    )
    ours.close()
    assert hook.heard.empty()
    assert [line["process"] for line in ours.logged()] == ["shop_bulk_00"]


def test_workers_that_stay_down_before_the_first_deploy_are_no_trouble(listener, hook):
    ours = listener(hook.url)
    ours.current.rmdir()
    ours.exited("shop_bulk_00", expected=1)
    ours.exited("shop_mail_00")
    ours.close()
    assert hook.heard.get(timeout=60)[1]["kind"] == "crashed"
    assert hook.heard.empty()


def test_a_start_that_fails_again_and_again_is_reported_the_fifth_time(listener, hook):
    ours = listener(hook.url)
    for tries in range(1, 8):
        ours.tell(
            "PROCESS_STATE_BACKOFF",
            processname="shop_mail_00",
            groupname="shop_mail",
            from_state="STARTING",
            tries=tries,
        )
    assert "has failed to start 5 times in a row" in hook.heard.get(timeout=60)[1]["text"]
    ours.close()
    assert len(ours.logged()) == 1


def test_a_receiver_that_hangs_holds_up_neither_supervisor_nor_the_next_report(listener, hook):
    hook.held.clear()
    ours = listener(hook.url)
    ours.exited("shop_mail_00")
    hook.heard.get(timeout=60)
    # The report is under way and gets no answer; each of these is answered all the same.
    for _ in range(300):
        ours.exited("shop_mail_00")
    ours.exited("shop_bulk_00", expected=1)
    ours.ready()
    hook.held.set()
    assert hook.heard.get(timeout=60)[1]["kind"] == "down"


def test_sentry_is_told_as_well_and_neither_keeps_the_other_from_it(listener, hook):
    dsn = f"http://key@127.0.0.1:{hook.server.server_port}/7"
    ours = listener("http://127.0.0.1:1/nobody", dsn)
    ours.exited("shop_mail_00")
    path, event = hook.heard.get(timeout=60)
    assert path == "/api/7/envelope/"
    assert (
        event["logentry"]["formatted"]
        == "shop_mail_00 ended unasked (terminated by SIGKILL) and is started again"
    )
    assert event["tags"] == {"group": "shop_mail", "process": "shop_mail_00", "kind": "crashed"}
    assert (event["environment"], event["server_name"], event["level"]) == ("test", "worker9", "error")
    ours.close()
    assert [line["to"] for line in ours.logged() if line["event"] == "report not sent"] == ["webhook"]


def test_the_same_trouble_of_the_same_group_is_sent_once_and_logged_each_time(listener, hook):
    ours = listener(hook.url)
    for _ in range(5):
        ours.exited("shop_mail_00")
    ours.close()
    assert hook.heard.qsize() == 1
    assert len(ours.logged()) == 5


def test_a_webhook_that_nobody_answers_is_logged_without_its_address(listener):
    ours = listener("http://127.0.0.1:1/hook?token=secret")
    ours.exited("shop_mail_00")
    ours.close()
    [trouble, failure] = ours.logged()
    assert trouble["event"].startswith("shop_mail_00 ended unasked")
    assert (failure["event"], failure["to"], failure["error"]) == ("report not sent", "webhook", "URLError")
    assert "secret" not in ours.stderr.read_text()


def test_it_goes_on_after_an_event_that_nobody_foresaw(listener, hook):
    ours = listener(hook.url)
    ours.tell("PROCESS_STATE_BACKOFF", processname="shop_mail_00", groupname="shop_mail", tries="many")
    ours.exited("shop_mail_00")
    assert hook.heard.get(timeout=60)[1]["kind"] == "crashed"
    assert ours.logged()[0]["event"] == "event not understood"


@pytest.mark.parametrize("end", ["TERM", "closed"])
def test_it_ends_with_0_when_supervisor_asks_or_is_gone_and_sends_what_waits_first(listener, hook, end):
    ours = listener(hook.url)
    ours.exited("shop_mail_00")
    ours.ready()
    if end == "TERM":
        ours.process.send_signal(signal.SIGTERM)
    else:
        ours.process.stdin.close()
    assert ours.process.wait(60) == 0
    assert hook.heard.qsize() == 1


def test_settings_that_cannot_be_read_do_not_keep_the_webhook_from_being_told(listener, hook, tmp_path):
    ours = listener(hook.url)
    (tmp_path / "shop.json").write_text("not JSON")
    ours.exited("shop_mail_00")
    said = hook.heard.get(timeout=60)[1]
    assert said["group"] == "shop_mail"
    assert said["host"]


@pytest.mark.parametrize(
    ("process", "ended"),
    [
        ("shop_mail_00", "terminated by SIGKILL"),
        ("shop_mail_001", "exit status 3"),
        ("shop_news_00", "exit status 0"),
        ("shop_bulk_00", "exit status 78"),
        ("shop_dump_00", "terminated by SIGSEGV"),
        ("shop_mail", None),
    ],
)
def test_supervisors_log_says_how_a_process_last_ended(supervisord_log, process, ended):
    assert alarm.read_exit_status(process, supervisord_log) == ended


def test_a_log_that_was_just_rotated_is_read_on_in_the_one_before(supervisord_log):
    supervisord_log.rename(f"{supervisord_log}.1")
    supervisord_log.write_text("2026-11-21 08:00:13,000 INFO spawned: 'shop_mail_00' with pid 43\n")
    assert alarm.read_exit_status("shop_mail_00", supervisord_log) == "terminated by SIGKILL"
    assert alarm.read_exit_status("shop_mail_00", supervisord_log.with_name("none")) is None


def test_trouble_is_not_missed_when_the_log_does_not_say_how_a_worker_ended():
    said = {"groupname": "shop_mail", "processname": "shop_mail_00", "expected": "0"}
    trouble = alarm.judge("PROCESS_STATE_EXITED", said, lambda process: None)
    assert trouble.kind == "crashed"
    assert "supervisor's log does not say how" in trouble.text
