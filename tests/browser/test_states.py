"""What is shown when there is nothing to show, or when something went wrong."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from browser.stage import fill
from support.broker import BrokerProcess
from support.kestrel_web import KestrelWeb, servers


def test_from_no_server_over_no_queue_to_the_first_item(visiting, tmp_path):
    with BrokerProcess(tmp_path) as broker:
        broker.kill()
        with KestrelWeb(tmp_path / "web", **servers(broker)) as web, visiting(web) as visit:
            page = visit.go("/queues")
            expect(page.get_by_role("heading", name="No server has answered yet")).to_be_visible()
            broker.start()
            expect(page.get_by_role("heading", name="No queue yet")).to_be_visible()
            fill(broker, "first", 1)
            expect(page.get_by_role("link", name="first", exact=True)).to_be_visible()


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nothing", 404, "There is nothing here"),
        ("GET", "/queues/a.b", 404, "not the key of a queue"),
        ("GET", "/queues/never_was", 404, "No server has a queue never_was now"),
        ("GET", "/servers/elsewhere:22133", 404, "not in the configuration"),
        ("POST", "/queues", 0, "error-page"),
        ("POST", "/queues/shop_mail/do/flush", 0, "error-page"),
    ],
)
def test_an_error_is_a_page_that_says_what_is_wrong_and_leads_on(played, method, path, status, says):
    answer = played.web.request(method, path, b"" if method == "POST" else None)
    text = answer.data.decode()
    assert answer.status == status or (not status and answer.status in (400, 403, 405))
    assert says in text
    assert "error-page" in text
    assert 'href="/queues"' in text
    assert "Traceback" not in text


def test_a_fragment_is_the_content_only_and_comes_once_per_view(played):
    head = {"X-Kestrel-Fragment": "main"}
    answer = played.web.get("/queues", head)
    assert answer.data.decode().lstrip().startswith("<main")
    assert "<script" not in answer.data.decode()
    tag = answer.headers["ETag"]
    other = played.web.get("/queues?sort=items", {**head, "If-None-Match": tag})
    assert other.status == 200, "another order is another page"
    page = played.web.get("/queues", {"If-None-Match": tag})
    assert page.status == 200, "a whole page is never left out: a message may wait for it"


def test_what_has_not_changed_is_not_sent_again(tmp_path, played):
    with KestrelWeb(tmp_path, **servers(played.first), interval_s=60) as web:
        head = {"X-Kestrel-Fragment": "main"}
        for _ in range(20):  # its first poll may come in between, no other
            tag = web.get("/queues", head).headers["ETag"]
            answer = web.get("/queues", {**head, "If-None-Match": tag})
            if answer.status == 304:
                break
        assert answer.status == 304
        assert answer.data == b""
