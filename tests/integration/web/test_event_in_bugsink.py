"""From a parked job on a page of kestrel-web to its event in a real Bugsink, as somebody clicks it."""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

import pytest

from support.broker import BrokerProcess, wait_until
from support.bugsink import EMAIL, PASSWORD, Bugsink
from support.kestrel_web import KestrelWeb, servers
from support.web_forms import form
from support.worker import App, WorkerProcess, producer, settings

RELEASE = "20261121T011500Z-1a2b3c4d"
LINK = re.compile(r'<a href="([^"]+)" rel="noopener">')


@pytest.fixture(scope="module")
def bugsink(tmp_path_factory):
    with Bugsink(tmp_path_factory.mktemp("bugsink")) as running:
        yield running


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path / "broker") as running:
        yield running


def visit(opener, address: str, fields: list[tuple[str, str]] | None = None):
    """Follow an address as a browser with cookies does; return where that led to, and the page."""
    body = None if fields is None else urllib.parse.urlencode(fields).encode()
    request = urllib.request.Request(address, body, {"Referer": address})
    with opener.open(request, timeout=60) as answer:
        return answer.url, answer.read().decode()


@pytest.mark.parametrize("language", ["python", "php"])
def test_the_link_of_a_parked_job_leads_to_its_event_after_the_login(bugsink, broker, tmp_path, language):
    said = f"broken in {language}"
    config = settings(broker.address, {"name": "work", "language": language, "retry_delays": []})
    config |= {"sentry_dsn": bugsink.dsn, "host": "worker1"}
    app = App(tmp_path / "app")
    about = {"KESTREL_STACK_RELEASE": RELEASE}
    worker = WorkerProcess(app, broker.address, language=language, settings=config, environ=about)
    with worker, producer(broker) as send:
        send.enqueue("Raise", {"message": said}, queue="work")
        wait_until(lambda: broker.stats("shop_work_errors").get("items") == 1, "the job to be parked")
        wait_until(lambda: any(said in str(issue) for issue in bugsink.issues()), "the event in Bugsink")
    template = f"{bugsink.url}/issues/event/{{event_uuid}}/"
    with KestrelWeb(tmp_path / "web", **servers(broker), event_url=template, interval_s=0.2) as web:
        wait_until(lambda: web.get("/api/v1/queues/shop_work_errors").status == 200, "the queue to be seen")
        page = web.get("/queues/shop_work_errors/peek").data.decode()
    [link] = LINK.findall(page)
    assert link.startswith(f"{bugsink.url}/issues/event/")

    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    there, page = visit(browser, link)
    assert urllib.parse.urlsplit(there).path == "/accounts/login/"
    assert said not in page
    login = form(page, "").filled({"username": EMAIL, "password": PASSWORD})
    there, page = visit(browser, there, login)
    assert re.search(r"/issues/issue/[0-9a-f-]{36}/event/[0-9a-f-]{36}/$", there)
    assert said in page

    [issue] = [issue for issue in bugsink.issues() if said in str(issue)]
    [event] = bugsink.events(issue["id"])
    data = event["data"]
    # What fab deploy has set: the name of the release that the worker runs from, and the environment.
    assert (data["release"], data["environment"]) == (RELEASE, "test")
    assert (data["tags"]["release"], data["server_name"]) == (RELEASE, "worker1")
