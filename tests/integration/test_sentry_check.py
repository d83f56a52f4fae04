"""The program that says whether a host can report errors, beside a stand-in for Sentry and a real Bugsink."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from kestrel_stack.consumer import sentry, sentry_check
from support.bugsink import Bugsink
from support.ports import reserve
from support.sentry import KEY, SentryServer, make_certificate
from support.worker import ROOT, settings

HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture
def server():
    with SentryServer() as started:
        yield started


@pytest.fixture
def run(tmp_path):
    """Run the program on settings with this DSN, as root's Ansible does on a host."""

    def started(dsn, **environ):
        file = tmp_path / "shop.json"
        file.write_text(
            json.dumps(settings("127.0.0.1:1", {"name": "work"}) | {"sentry_dsn": dsn, "host": "worker1"})
        )
        return subprocess.run(
            [sys.executable, "-m", "kestrel_stack.consumer.sentry_check", "--config", str(file)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return started


def refused(result):
    """The one line that is all that the program said."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert KEY not in line
    return line.removeprefix("sentry_check: ")


def test_an_event_that_is_taken_is_named(run, server):
    result = run(server.dsn)
    assert (result.returncode, result.stderr) == (0, "")
    (event,) = server.events
    assert json.loads(result.stdout) == {"event_id": event["event_id"], "status": 200}
    assert re.fullmatch("[0-9a-f]{32}", event["event_id"])
    assert event["logentry"]["formatted"] == "Kestrel Stack can report errors from worker1"
    assert (event["level"], event["environment"], event["server_name"]) == ("info", "test", "worker1")


def test_a_real_bugsink_shows_it_as_one_issue_however_often_it_is_sent(run, tmp_path):
    with Bugsink(tmp_path / "bugsink") as bugsink:
        sent = [json.loads(run(bugsink.dsn).stdout)["event_id"] for _ in range(2)]
        bugsink.wait_for_events(2)
        (issue,) = bugsink.issues()
        found = {event["event_id"].replace("-", "") for event in bugsink.events(issue["id"])}
        assert found == set(sent)
        assert "Kestrel Stack can report errors from worker1" in json.dumps(issue)
        key, _, rest = bugsink.dsn.partition("://")[2].partition("@")
        wrong = refused(run(f"http://{'0' * len(key)}@{rest}"))
        assert "does not know the DSN's key or its project" in wrong
        assert "copy it anew from the project's settings" in wrong
        no_project = refused(run(f"http://{key}@{rest.rpartition('/')[0]}/999"))
        assert "does not know the DSN's key or its project" in no_project
        assert key not in wrong + no_project


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (400, {}, b'{"message": "no\\nevent"}', "(no event): it does not understand an event"),
        (400, HTML, b"The plain HTTP request was sent to HTTPS port", "begin the DSN with https://"),
        (401, {}, None, "it does not know the DSN's key or its project"),
        (403, {}, f'{{"detail": "bad key {KEY}"}}'.encode(), "(bad key …): it does not know the DSN's key"),
        (404, HTML, b"not found", "there is no such project, or no Sentry below that path"),
        (405, HTML, b"", "what listens there takes no events"),
        (413, HTML, b"too large", "raise its client_max_body_size"),
        (429, {"Retry-After": "7"}, b"", "it has enough events for now; wait 7 s, or raise the quota"),
        (429, {"X-Sentry-Rate-Limits": "90:error:key"}, b"", "wait 90 s"),
        (301, {"Location": "https://errors.example/login?a=b"}, b"", "leads to https://errors.example: put"),
        (500, HTML, b"Traceback", "look into the log of Sentry"),
        (502, HTML, b"Bad Gateway", "there is a proxy, and no Sentry behind it"),
        (200, HTML, b"<form>Log in", "a page for people, such as a login"),
        (200, {"Content-Type": "text/plain"}, b"ok", "not with the event's id"),
        (200, {}, b'{"id": "0123"}', "not with the event's id"),
    ],
)
def test_each_wrong_answer_is_one_line_with_what_mends_it(run, server, status, headers, body, told):
    server.status, server.headers, server.body = status, headers, body
    line = refused(run(server.dsn))
    assert told in line
    assert f"127.0.0.1:{server.port} answered with status {status}" in line


def test_a_name_that_nobody_knows_is_told_with_where_to_look(run):
    line = refused(run(f"https://{KEY}@errors.invalid/1"))
    assert "The name errors.invalid cannot be looked up on this host" in line
    assert "/etc/hosts" in line


def test_a_port_where_nobody_listens_is_told(run):
    port = reserve()
    line = refused(run(f"http://{KEY}@127.0.0.1:{port}/1"))
    assert f"127.0.0.1:{port} refuses connections: start Sentry there" in line
    assert "sentry_listen_address" in line


def test_certificates_for_another_name_or_of_strangers_are_told_apart(run, tmp_path):
    other = make_certificate(tmp_path, "DNS:errors.example")
    right = make_certificate(tmp_path, "IP:127.0.0.1")
    with SentryServer(tls=other) as server:
        line = refused(run(server.dsn, SSL_CERT_FILE=str(other)))
        assert "use one of the names in the certificate" in line
    with SentryServer(tls=right) as server:
        line = refused(run(server.dsn))
        assert "update-ca-certificates" in line
        assert run(server.dsn, SSL_CERT_FILE=str(right)).returncode == 0


def test_a_port_without_tls_is_told(run, server):
    line = refused(run(server.dsn.replace("http://", "https://")))
    assert "does not speak TLS as it should" in line
    assert "begin the DSN with http://" in line


def test_one_that_never_answers_is_told_in_bounded_time(server):
    server.hang.clear()
    event = sentry_check.make_event("worker1", None)
    with pytest.raises(sentry_check.Wrong, match=r"gave no answer in 0\.2 s: it hangs, or a firewall"):
        sentry_check.check(server.dsn, event, 0.2)


def test_one_that_sends_a_byte_now_and_then_is_cut_off():
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        dsn = sentry.Dsn.parse(f"http://{KEY}@127.0.0.1:{listening.getsockname()[1]}/1")
        with pytest.raises(sentry.Unreachable, match=r"gave no whole answer in 1 s"):
            sentry.exchange(dsn, b"", 0.2)
        over.set()


@pytest.mark.parametrize("dsn", [None, "", "https://errors.example/1", f"ftp://{KEY}@errors.example/1"])
def test_settings_without_a_dsn_or_with_a_wrong_one_are_one_line(run, dsn):
    line = refused(run(dsn))
    assert (
        "has no sentry_dsn: choose a sentry_backend" if not dsn else "is not like https://KEY@HOST"
    ) in line


def test_no_settings_file_is_one_line(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "kestrel_stack.consumer.sentry_check",
            "--config",
            str(tmp_path / "none.json"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "none.json" in refused(result)
