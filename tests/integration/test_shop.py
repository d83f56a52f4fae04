"""The shop as it runs on a host: enqueue.py, workers of one user, report.py of another user of the group."""

import contextlib
import http.server
import json
import mailbox
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from support.broker import BrokerProcess, wait_until

ROOT = Path(__file__).parents[2]
WORKER, DEPLOY, GROUP = 60001, 60002, 60003
"""Numbers nobody has; root may become them without an entry in /etc/passwd."""


def runs_for_others(python):
    """Say whether the other users may run this interpreter, and it is new enough."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        as_other = {"user": DEPLOY, "group": GROUP, "extra_groups": []}
        return (
            subprocess.run([python, "-c", check], cwd="/", stderr=subprocess.DEVNULL, **as_other).returncode
            == 0
        )
    return False


# An interpreter in root's home is closed to others; the system's may be too old.
CANDIDATES = [str(Path(sys.executable).resolve()), "/usr/bin/python3"]
PYTHON = next(filter(runs_for_others, CANDIDATES), None) if os.geteuid() == 0 else None
TWO_USERS = PYTHON is not None
PYTHON = PYTHON or sys.executable
two_users = pytest.mark.skipif(not TWO_USERS, reason="needs root, and a Python 3.11 that other users may run")


def user(number):
    return {"user": number, "group": GROUP, "extra_groups": []} if TWO_USERS else {}


@pytest.fixture
def host():
    """The folders of a host: a release with its link to shared/var, and the settings file."""
    base = Path(tempfile.mkdtemp(prefix="kestrel-stack-shop-"))
    base.chmod(0o755)  # pytest's own folders are closed to other users
    try:
        shared = base / "shared" / "var"
        shared.mkdir(parents=True)
        if TWO_USERS:
            os.chown(shared, WORKER, GROUP)
        shared.chmod(0o2775)
        release = base / "release"
        shutil.copytree(
            ROOT / "examples" / "shop", release, ignore=shutil.ignore_patterns("__pycache__", "var", ".*")
        )
        (release / "var").symlink_to("../shared/var")
        (release / "release.json").write_text(json.dumps({"release": "20261121T011500Z-1a2b3c4d"}))
        # The package as the deploy sends it; copied, since another user may not enter the checkout.
        shutil.copytree(
            ROOT / "src" / "kestrel_stack",
            base / "lib" / "kestrel_stack",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copytree(
            ROOT / "php", release / "kestrel-stack" / "php", ignore=shutil.ignore_patterns("tests", ".*")
        )
        with BrokerProcess(base) as broker:
            queues = [{"name": name} for name in ("hello_world", "mail", "partner_api")]
            queues += [
                {"name": "hello_world_php", "language": "php"},
                {"name": "post_upload", "language": "php", "retry_delays": [5]},
            ]
            (base / "shop.json").write_text(
                json.dumps(
                    {
                        "app": "shop",
                        "namespace": "shop",
                        "environment": "lab",
                        "servers": [broker.address],
                        "queues": queues,
                    }
                )
            )
            yield Host(base, release, broker)
    finally:
        shutil.rmtree(base)


class Host:
    def __init__(self, base, release, broker):
        self.base, self.release, self.broker = base, release, broker
        self.var = base / "shared" / "var"
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(base / "lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KESTREL_STACK_CONFIG": str(base / "shop.json"),
            "KESTREL_STACK_RELEASE": "20261121T011500Z-1a2b3c4d",
        }

    def run(self, *arguments, as_user=DEPLOY, **environ):
        return subprocess.run(
            [PYTHON, *arguments],
            cwd=self.release,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            umask=0o022,
            **user(as_user),
        )

    def enqueue(self, job, count, *more):
        done = self.run("enqueue.py", "--tenant", "acme", "--job", job, "--count", str(count), *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def php(self, *arguments):
        return subprocess.run(
            ["php", *arguments],
            cwd=self.release,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            umask=0o022,
            **user(DEPLOY),
        )

    def put(self, queue, body):
        with self.broker.connect() as client:
            client.set(queue, body)

    def report(self):
        done = self.run("report.py", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def worker(self, queue, name="worker", language="python", **environ):
        log = self.base / f"{name}.log"
        command = {
            "python": [PYTHON, "-m", "kestrel_stack.consumer", "--app", "shop.jobs:registry"],
            "php": ["php", self.release / "kestrel-stack/php/bin/consumer", "--app", "php/jobs.php"],
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command[language], "--queue", queue],
                cwd=self.release,
                env={**self.environ, **environ},
                stdout=file,
                stderr=file,
                # Supervisor's own, under which files are not writable for the group.
                umask=0o022,
                **user(WORKER),
            )
        try:
            yield log
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def done(report, job):
    return report["done"].get("acme", {}).get(job, 0)


def test_two_workers_do_every_job_once_and_another_user_reads_the_report(host):
    sent = host.enqueue("HelloWorld", 60)
    assert (sent["enqueued"], len(set(sent["ids"]))) == (60, 60)
    with host.worker("hello_world", "a"), host.worker("hello_world", "b"):
        wait_until(lambda: done(host.report(), "HelloWorld") == 60, "60 jobs in the ledger")
    report = host.report()
    assert report["release"] == "20261121T011500Z-1a2b3c4d"
    assert report["done"] == {"acme": {"HelloWorld": 60}}
    assert report["by_release"] == {"20261121T011500Z-1a2b3c4d": 60}
    assert report["duplicates"] == 0
    assert "60  acme  HelloWorld" in host.run("report.py").stdout


def test_a_mail_is_in_the_maildir_where_the_group_may_read_it(host):
    host.enqueue("SendMail", 2)
    with host.worker("mail"):
        wait_until(lambda: done(host.report(), "SendMail") == 2, "two mails in the ledger")
    assert len(mailbox.Maildir(host.var / "mail", create=False)) == 2
    listed = host.run("-c", "import os; print(len(os.listdir('var/mail/new')))")
    assert listed.stdout == "2\n", listed.stderr


def test_a_job_without_a_partner_is_parked_saying_so(host):
    host.enqueue("PostToPartner", 1)
    errors = "shop_partner_api_errors"
    with host.worker("partner_api"):
        wait_until(lambda: host.broker.stats(errors).get("items"), "the parked job")
    (item,) = host.broker.drain(errors)
    error = json.loads(item)["error"]
    assert error["class"] == "shop.config.NotConfigured"
    assert "set SHOP_PARTNER_URL" in error["message"]


@pytest.fixture
def third_party():
    """An API that takes uploads; `received` are the requests, `status` is what it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append((dict(self.headers), body))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.status = [], 201
    server.url = f"http://127.0.0.1:{server.server_port}/uploads"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_jobs_that_either_language_enqueued_are_done_by_php_and_in_the_one_ledger(host):
    host.enqueue("HelloWorld", 5, "--queue", "hello_world_php")
    sent = host.php("php/enqueue.php", "--tenant", "acme", "--count", "5")
    assert (sent.returncode, json.loads(sent.stdout)["enqueued"]) == (0, 5), sent.stderr
    # A job in Python, too: the ledger's table is the same whoever makes it.
    host.enqueue("HelloWorld", 1)
    with host.worker("hello_world_php", language="php") as log, host.worker("hello_world", "b"):
        wait_until(lambda: done(host.report(), "HelloWorld") == 11, "11 jobs in the ledger")
    assert host.report()["by_release"] == {"20261121T011500Z-1a2b3c4d": 11}
    assert log.read_text().count("Hello, World!") == 10


def test_an_upload_is_posted_once_also_when_its_job_comes_twice(host, third_party):
    picture = host.base / "picture one.jpg"
    picture.write_bytes(bytes(range(256)) * 100)
    sent = json.loads(host.php("php/enqueue.php", "--tenant", "acme", "--file", str(picture)).stdout)
    [job] = host.broker.drain("shop_post_upload")
    for _ in range(2):
        host.put("shop_post_upload", job)
    with host.worker("post_upload", language="php", SHOP_UPLOAD_URL=third_party.url):
        wait_until(lambda: host.report()["duplicates"] == 1, "the second delivery is done")
    [(headers, body)] = third_party.received
    assert body == picture.read_bytes()
    assert headers["Idempotency-Key"] == sent["ids"][0]
    assert (headers["X-Tenant"], headers["X-File-Name"]) == ("acme", "picture%20one.jpg")


def test_an_order_is_posted_once_also_when_its_job_comes_twice(host, third_party):
    host.enqueue("PostToPartner", 1)
    [job] = host.broker.drain("shop_partner_api")
    for _ in range(2):
        host.put("shop_partner_api", job)
    with host.worker("partner_api", SHOP_PARTNER_URL=third_party.url):
        wait_until(lambda: host.report()["duplicates"] == 1, "the second delivery is done")
    assert len(third_party.received) == 1


def test_an_upload_is_tried_again_while_the_api_is_away_and_parked_when_it_refuses_the_file(
    host, third_party
):
    host.enqueue("PostUpload", 1)
    third_party.status = 503
    with host.worker("post_upload", language="php", SHOP_UPLOAD_URL=third_party.url):
        wait_until(lambda: host.broker.stats("shop_post_upload_retry_5").get("items"), "the job for later")
        [later] = host.broker.drain("shop_post_upload_retry_5")
        assert json.loads(later)["attempt"] == 2
        third_party.status = 422
        host.put("shop_post_upload", later)
        wait_until(lambda: host.broker.stats("shop_post_upload_errors").get("items"), "the parked job")
    [parked] = host.broker.drain("shop_post_upload_errors")
    assert "the API refuses the file: HTTP/1.0 422" in json.loads(parked)["reason"]
    assert len(third_party.received) == 2


def test_an_upload_that_nobody_takes_is_parked_saying_where_to_set_who_does(host):
    host.enqueue("PostUpload", 1)
    with host.worker("post_upload", language="php"):
        wait_until(lambda: host.broker.stats("shop_post_upload_errors").get("items"), "the parked job")
    [parked] = host.broker.drain("shop_post_upload_errors")
    assert "set SHOP_UPLOAD_URL, or upload_url in" in json.loads(parked)["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage: php php/enqueue.php --tenant NAME"),
        (("--tenant", "acme", "extra"), "usage: "),
        (("--tenant", "acme", "--count", "none"), "--count must be a whole number"),
        (("--tenant", "acme", "--file", "/nowhere"), "/nowhere cannot be read"),
        (("--tenant", "a b"), "tenant"),
        (("--tenant", "acme", "--config", "/nonexistent"), "/nonexistent does not exist"),
    ],
)
def test_what_php_cannot_enqueue_is_refused_with_one_line(host, arguments, said):
    failed = host.php("php/enqueue.php", *arguments)
    assert failed.returncode == 1
    assert said in failed.stderr
    assert failed.stderr.count("\n") == 1


@two_users
def test_the_other_user_reads_a_ledger_whose_writer_was_killed_in_the_middle(host):
    ledger = host.var / "ledger.sqlite"
    killed = """
import os
from shop import ledger
ledger.record("kept", "acme", "HelloWorld", "r1")
with ledger._opened(ledger.default_path()) as connection:
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(2000):
        row = ("x" * 500 + str(number),)
        connection.execute("INSERT INTO done VALUES (?, 'acme', 'HelloWorld', 'r1', 'now', 0)", row)
    os._exit(9)
"""
    assert host.run("-c", killed, as_user=WORKER).returncode == 9
    assert (host.var / "ledger.sqlite-journal").stat().st_size > 0
    assert host.report()["done"] == {"acme": {"HelloWorld": 1}}
    # And the worker's user can still write after the other user has cleaned up.
    more = "from shop import ledger; print(ledger.record('more', 'acme', 'HelloWorld', 'r1'))"
    assert host.run("-c", more, as_user=WORKER).stdout == "True\n"
    assert ledger.stat().st_uid == WORKER


@two_users
def test_workers_write_to_a_ledger_that_the_other_user_made(host):
    code = "from shop import ledger; print(ledger.record('{}', 'acme', 'HelloWorld', None))"
    assert host.run("-c", code.format("first"), as_user=DEPLOY).stdout == "True\n"
    done_by_worker = host.run("-c", code.format("second"), as_user=WORKER)
    assert done_by_worker.stdout == "True\n", done_by_worker.stderr


def test_a_host_that_has_done_nothing_reports_so(host):
    assert host.report()["done"] == {}
    assert "none" not in host.run("report.py").stdout


def test_a_ledger_that_is_no_database_is_named(host):
    (host.var / "ledger.sqlite").write_text("This is not a database. " * 100)
    failed = host.run("report.py")
    assert failed.returncode == 1
    assert failed.stderr.startswith("report: the ledger ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "a b"], "'tenant' is not a tenant name"),
        (["--tenant", "acme", "--job", "Nope"], "no queue of its own name"),
        (["--tenant", "acme", "--data", "[]"], "must be a dict"),
        (["--tenant", "acme", "--config", "/nonexistent"], "/nonexistent does not exist"),
    ],
)
def test_what_cannot_be_enqueued_is_refused_with_one_line(host, arguments, said):
    failed = host.run("enqueue.py", *arguments)
    assert failed.returncode == 1
    assert said in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_producer_without_its_server_ends_with_one_line(host):
    host.broker.kill()
    failed = host.run("enqueue.py", "--tenant", "acme")
    assert failed.returncode == 1
    assert "Connection refused" in failed.stderr
    assert failed.stderr.count("\n") == 1
    host.broker.start()


def test_the_ledger_stays_whole_under_many_writers(host):
    code = (
        "import sys; from shop import ledger\n"
        "for n in range(50): ledger.record(f'{sys.argv[1]}-{n}', 'acme', 'HelloWorld', 'r1')"
    )
    writers = [
        subprocess.Popen([PYTHON, "-c", code, str(number)], cwd=host.release, env=host.environ)
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert host.report()["done"] == {"acme": {"HelloWorld": 200}}
    with sqlite3.connect(host.var / "ledger.sqlite") as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
