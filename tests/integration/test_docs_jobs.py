"""The examples of docs/jobs.md, run as a reader would: files with these names, real workers and broker."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kestrel_stack.demo.outage import no_php
from kestrel_stack.queue import ParkedRecord
from support.broker import BrokerProcess

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "jobs.md").read_text()
FILES = dict(re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.search(r"^```sh run\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1].splitlines()
TABLE = "CREATE TABLE uploads (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT)"

LANGUAGES = [
    "python",
    pytest.param("php", marks=pytest.mark.skipif(no_php() is not None, reason=str(no_php()))),
]

PHP_STORE = """<?php
require $argv[1];
require 'uploads.php';
$producer = KestrelStack\\Queue\\Producer::fromSettings('acme');
$database = new PDO('sqlite:shop.sqlite', options: [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
echo store($producer, $database, 'a.png');
"""
PYTHON_STORE = """
import sqlite3, uploads
print(uploads.store(sqlite3.connect("shop.sqlite"), "a.png"))
"""


class Partner(HTTPServer):
    """A third party that notes what is posted; what is in `answers` is answered, once, instead of 201."""

    def __init__(self):
        self.posted, self.answers = [], {}
        super().__init__(("127.0.0.1", 0), Partner.Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.posted.append(self.path)
            self.send_response(self.server.answers.pop(self.path, 201))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass


@pytest.fixture
def partner():
    with Partner() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as process:
        yield process


class Shop:
    """A folder with the page's files, and a settings file for one language's workers."""

    def __init__(self, folder: Path, language: str, broker: BrokerProcess, partner: Partner):
        self.folder = folder
        self.language = language
        self.broker = broker
        folder.mkdir()
        for name, text in FILES.items():
            (folder / name).write_text(text)
        queues = [
            {"name": name, "language": language, "retry_delays": [10, 60, 600]}
            for name in ("post_upload", "hello_world")
        ]
        settings = {
            "app": "shop",
            "namespace": "shop",
            "environment": "test",
            "servers": [broker.address],
            "queues": queues,
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        ours = ("KESTREL_STACK_", "SUPERVISOR_", "SENTRY_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)} | {
            "PYTHONPATH": str(ROOT / "src"),
            "KESTREL_STACK_CONFIG": str(folder / "settings.json"),
            "PARTNER_URL": partner.url,
            "ONCE_FILE": str(folder / "once.sqlite"),
        }
        with sqlite3.connect(folder / "shop.sqlite") as database:
            database.execute(TABLE)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def store(self, check: bool = True) -> subprocess.CompletedProcess:
        """Have the page's own function store an upload; it prints the upload's number."""
        if self.language == "python":
            return self.run(sys.executable, "-c", PYTHON_STORE, check=check)
        (self.folder / "store.php").write_text(PHP_STORE)
        return self.run("php", "store.php", str(ROOT / "php" / "autoload.php"), check=check)

    def jobs(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "kestrel_stack.queue.jobs", *arguments).stdout

    def work(self, queue: str = "post_upload", app: str = "shop_jobs") -> dict:
        """Have a worker do one job, and return its line of the log, with those before it as ``lines``."""
        flags = ["--queue", queue, "--once", "--min-uptime", "0", "--app"]
        if self.language == "python":
            command = [sys.executable, "-m", "kestrel_stack.consumer", *flags, f"{app}:registry"]
        else:
            command = ["php", str(ROOT / "php" / "bin" / "consumer"), *flags, f"{app}.php"]
        lines = [json.loads(line) for line in self.run(*command).stderr.splitlines()]
        (job,) = (line for line in lines if line["event"] == "job")
        return {**job, "lines": lines}


@pytest.fixture(params=LANGUAGES)
def shop(request, tmp_path, broker, partner):
    return Shop(tmp_path / "shop", request.param, broker, partner)


def test_an_upload_is_enqueued_after_the_commit_and_posted(shop, partner):
    assert shop.store().stdout.strip() == "1"
    assert shop.work()["outcome"] == "done"
    assert partner.posted == ["/uploads/1"]


def test_an_upload_that_comes_again_is_posted_once(shop, partner):
    for _ in range(2):
        shop.jobs("enqueue", "PostUpload", "--data", '{"upload": 7}', "--tenant", "acme")
        assert shop.work()["outcome"] == "done"
    assert partner.posted == ["/uploads/7"]


def test_a_rollback_enqueues_nothing(shop):
    with sqlite3.connect(shop.folder / "shop.sqlite") as database:
        database.execute("DROP TABLE uploads")
    assert "no such table" in (failed := shop.store(check=False)).stderr + failed.stdout
    assert shop.broker.stats("shop_post_upload").get("items", 0) == 0


def test_a_partner_that_is_busy_is_asked_again_after_the_delay_that_the_job_chose(shop, partner):
    partner.answers["/uploads/8"] = 429
    shop.jobs("enqueue", "PostUpload", "--data", '{"upload": 8}', "--tenant", "acme")
    line = shop.work()
    assert (line["outcome"], line["delay"]) == ("retry", 60)
    assert shop.broker.stats("shop_post_upload_retry_60")["items"] == 1


def test_a_partner_that_fails_is_asked_again_and_the_lines_kept_back_are_written(shop, partner):
    partner.answers["/uploads/9"] = 500
    shop.jobs("enqueue", "PostUpload", "--data", '{"upload": 9}', "--tenant", "acme")
    line = shop.work()
    assert (line["outcome"], line["delay"]) == ("retry", 10)
    assert [
        (kept["upload"], kept["level"]) for kept in line["lines"] if kept["event"] == "about to post"
    ] == [(9, "debug")]


def test_an_upload_that_can_never_be_posted_is_parked_at_once(shop, partner):
    shop.jobs("enqueue", "PostUpload", "--data", '{"upload": "seven"}', "--tenant", "acme")
    assert shop.work()["outcome"] == "parked"
    (record,) = shop.broker.drain("shop_post_upload_errors")
    assert "is not a number" in ParkedRecord.decode(record).reason
    assert partner.posted == []


def test_the_tenant_is_set_around_a_job(shop):
    shop.jobs("enqueue", "HelloWorld", "--data", '{"name": "Ada"}', "--tenant", "acme")
    line = shop.work("hello_world", "tenants")
    assert line["outcome"] == "done"
    assert [said["tenant_set"] for said in line["lines"] if said["event"] == "hello"] == ["acme"]


def test_the_commands_of_the_page_work_one_after_the_other(tmp_path, broker, partner):
    shop = Shop(tmp_path / "shop", "python", broker, partner)
    program = tmp_path / "kestrel-stack-jobs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kestrel_stack.queue.jobs "$@"\n')
    program.chmod(0o755)
    shop.environment["PATH"] = f"{tmp_path}:{shop.environment['PATH']}"
    shop.jobs("enqueue", "PostUpload", "--data", '{"upload": "seven"}', "--tenant", "acme")
    assert shop.work()["outcome"] == "parked"
    said = {command: shop.run("sh", "-c", command).stdout for command in COMMANDS}
    assert re.search(r"post_upload\b.*\b1\b.*\b1\b", said["kestrel-stack-jobs count"])
    assert json.loads(said["kestrel-stack-jobs peek post_upload"])["data"] == {"upload": 8}
    assert "is not a number" in said["kestrel-stack-jobs parked list post_upload --tenant acme"]
    # Both are on the queue again: the one enqueued, and the one that was parked.
    bodies = [json.loads(body) for body in broker.drain("shop_post_upload")]
    assert sorted(str(body["data"]["upload"]) for body in bodies) == ["8", "seven"]
    assert {body["attempt"] for body in bodies} == {1}
    assert broker.drain("shop_post_upload_errors") == []


def test_the_test_without_a_server_passes():
    namespace = {}
    exec(compile(FILES["test_uploads.py"], "test_uploads.py", "exec"), namespace)
    namespace["test_an_upload_is_to_be_posted"]()


def test_both_languages_have_the_same_examples():
    stems = {
        suffix: {Path(name).stem for name in FILES if name.endswith(suffix)} for suffix in (".py", ".php")
    }
    assert stems[".py"] - {"test_uploads"} == stems[".php"] != set()
