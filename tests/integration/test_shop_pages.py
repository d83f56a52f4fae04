"""The shop's pages in both languages, behind a plain HTTP server, with a real broker."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from support.broker import BrokerProcess, wait_until
from support.ports import reserve

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "examples/shop"
WSGI = (
    "import sys, wsgiref.simple_server as server; from shop.web import application;"
    " server.make_server('127.0.0.1', int(sys.argv[1]), application).serve_forever()"
)


class Pages:
    """The pages on a port of loopback."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, form=None, **headers):
        """Return status, headers and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = None if form is None else urlencode(form)
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(
            method, path, body, {key.replace("_", "-"): value for key, value in headers.items()}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path / "broker") as made:
        yield made


@pytest.fixture(params=["python", "php"])
def pages(request, tmp_path, broker):
    if request.param == "php" and shutil.which("php") is None:
        pytest.skip("needs php")
    settings = tmp_path / "shop.json"
    queues = [{"name": "hello_world"}, {"name": "hello_world_php", "language": "php"}, {"name": "unknown"}]
    settings.write_text(
        json.dumps(
            {
                "app": "shop",
                "namespace": "shop",
                "environment": "test",
                "servers": [broker.address],
                "queues": queues,
            }
        )
    )
    port = reserve()
    command = {
        "python": [sys.executable, "-c", WSGI, str(port)],
        "php": ["php", "-S", f"127.0.0.1:{port}", "public/index.php"],
    }[request.param]
    environment = {
        **os.environ,
        "KESTREL_STACK_CONFIG": str(settings),
        "SHOP_VAR": str(tmp_path),
        "PYTHONPATH": f"{ROOT / 'src'}:{SHOP}",
    }
    with subprocess.Popen(
        command, cwd=SHOP, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        made = Pages(port)

        def answers():
            try:
                return made.ask("GET", "/health")[0] == 200
            except OSError:
                return False

        try:
            wait_until(answers, "the pages to answer")
            yield made
        finally:
            server.terminate()


def test_the_front_page_has_each_queue_and_a_form_for_those_it_knows(pages):
    status, headers, text = pages.ask("GET", "/")
    assert status == 200
    assert headers["Content-Type"].lower() == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    for queue in ("hello_world", "hello_world_php", "unknown"):
        assert f'data-queue="{queue}"' in text
    assert text.count('<form method="post" action="/enqueue">') == 2
    assert "css/shop.css" in text
    # Everything is the shop's own.
    assert "http://" not in text
    assert "https://" not in text


def test_a_form_puts_jobs_on_its_queue_and_the_page_says_so_without_repeating_it(pages, broker):
    status, headers, _ = pages.ask("POST", "/enqueue", {"queue": "hello_world", "count": 3})
    assert status == 303
    assert urlsplit(headers["Location"]).path == "/"
    assert "3 enqueued on hello_world in " in pages.ask("GET", headers["Location"])[2]
    # And once more below, where it stays.
    assert re.search(
        r"<td>hello_world</td><td>3</td><td>in [0-9.]+ ms</td>", pages.ask("GET", "/")[2].replace("\n", "")
    )
    jobs = [json.loads(item) for item in broker.drain("shop_hello_world")]
    assert [(job["job"], job["tenant"], job["data"]) for job in jobs] == [
        ("HelloWorld", "acme", {"name": "World"})
    ] * 3


def test_the_numbers_are_those_of_the_queues(pages):
    pages.ask("POST", "/enqueue", {"queue": "hello_world_php", "count": 2})
    status, headers, text = pages.ask("GET", "/queues")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    numbers = json.loads(text)["queues"]
    assert numbers["hello_world_php"] == {"ready": 2, "reserved": 0, "delayed": 0, "parked": 0}
    assert numbers["hello_world"]["ready"] == 0


def test_a_form_that_nobody_made_is_refused_and_enqueues_nothing(pages, broker):
    for form in (
        {"queue": "nobodys", "count": 1},
        {"count": 1},
        *({"queue": "hello_world", "count": count} for count in (0, -1, 101, "1e2", "x", "9" * 5000)),
    ):
        assert pages.ask("POST", "/enqueue", form)[0] == 400, form
    assert broker.drain("shop_hello_world") == []


def test_another_site_cannot_make_a_browser_enqueue(pages, broker):
    form = {"queue": "hello_world", "count": 1}
    assert pages.ask("POST", "/enqueue", form, Sec_Fetch_Site="cross-site")[0] == 403
    for origin in (
        "null",
        "http://elsewhere.example",
        "http://127.0.0.1:1",
        f"http://127.0.0.1:{pages.port}0",
    ):
        assert pages.ask("POST", "/enqueue", form, Origin=origin)[0] == 403, origin
    assert broker.drain("shop_hello_world") == []
    assert pages.ask("POST", "/enqueue", form, Origin=f"http://127.0.0.1:{pages.port}")[0] == 303
    assert len(broker.drain("shop_hello_world")) == 1


def test_a_body_that_is_no_text_is_refused(pages, broker):
    assert pages.ask("POST", "/enqueue", {"queue": b"\xff", "count": b"\xfe"})[0] == 400
    assert broker.drain("shop_hello_world") == []


def test_what_somebody_writes_into_the_address_is_shown_as_text(pages):
    text = pages.ask("GET", "/?" + urlencode({"failed": "<script>x</script>", "done": "<b>"}))[2]
    assert "<script>x" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text


def test_while_the_queue_is_away_the_page_is_there_and_says_what_did_not_work(pages, broker):
    broker.terminate()
    began = time.monotonic()
    assert pages.ask("GET", "/")[0] == 200
    assert pages.ask("GET", "/health")[0] == 200
    status, headers, _ = pages.ask("POST", "/enqueue", {"queue": "hello_world", "count": 5})
    assert status == 303
    assert "0 enqueued, then: " in pages.ask("GET", headers["Location"])[2]
    assert "error" in json.loads(pages.ask("GET", "/queues")[2])
    assert time.monotonic() - began < 60


def test_other_pages_are_not_there(pages):
    for path in ("/nothing", "/release.json", "/deploy.yml", "/shop/web.py"):
        assert pages.ask("GET", path)[0] == 404, path
