"""From a parked job to its event: linked where the id is an event's, and shown as text otherwise."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.web.access.security import CONTENT_SECURITY_POLICY
from support.broker import wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_forms import forms, submit
from support.web_visitor import Visitor

ERRORS = "https://errors.example.org/issues/event/{event_uuid}/"
PLAIN = "fc6d8c0c43fc4630ad850ee518f1b9d0"
LINK = "https://errors.example.org/issues/event/fc6d8c0c-43fc-4630-ad85-0ee518f1b9d0/"

HOSTILE = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "quotes": f'{PLAIN}" onmouseover="alert(1)" x="\'',
    "javascript": "javascript:alert(document.domain)",
    "elsewhere": "https://evil.example.org/",
    "placeholder": "{event_uuid}",
    "path": f"{PLAIN}/../../../accounts/logout",
    "line end": f"{PLAIN}\nx",
    "turned": f"\u202e{PLAIN}",
    "long": PLAIN * 313,
    # Not of letters and digits that a job's own id may have.
    "another form": "xyz",
}


class _Page(HTMLParser):
    """What a browser would make of a page: every link with its text, every element, all that is read."""

    def __init__(self, html: str):
        super().__init__()
        self.links: list[dict[str, str]] = []
        self.elements: set[str] = set()
        self.scripts: list[dict[str, str]] = []
        self.handlers: list[str] = []
        self.read = ""
        self._open: dict[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        self.elements.add(tag)
        self.handlers += [key for key in given if key.startswith("on")]
        if tag == "script":
            self.scripts.append(given)
        if tag == "a":
            self._open = {**given, "text": ""}
            self.links.append(self._open)

    def handle_endtag(self, tag):
        if tag == "a":
            self._open = None

    def handle_data(self, data):
        self.read += data
        if self._open is not None:
            self._open["text"] += data

    @property
    def leading_away(self) -> list[dict[str, str]]:
        return [link for link in self.links if link["href"] and link["href"][0] not in "/?#"]


@pytest.fixture(scope="module")
def web(brokers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    with KestrelWeb(folder, **servers(*brokers), event_url=ERRORS, interval_s=0.2) as running:
        yield running


@pytest.fixture
def parked(brokers, web):
    """Parks a job whose record names an event; returns the address of its queue's pages."""
    made = []

    def park(event: str | None, queue: str = "linked") -> str:
        record = ParkedRecord("Boom", Envelope("SendMail", "acme").encode(), 3, None, event)
        with brokers[0].connect() as client:
            client.set(f"{queue}_errors", record.encode())
        made.append(queue)
        wait_until(lambda: web.get(f"/api/v1/queues/{queue}_errors").status == 200, "the queue to be seen")
        return f"/queues/{queue}"

    yield park
    for queue in set(made):
        brokers[0].drain(f"{queue}_errors")


def looked_at(web, place: str) -> _Page:
    """The page of parked jobs after a look at them."""
    visitor = Visitor(web)
    found = forms(visitor.get(f"{place}/parked").data.decode())
    [look] = [each for each in found if each.method == "POST" and each.action.endswith("/parked")]
    assert submit(visitor, look).status == 303
    return shown(web, f"{place}/parked")


def shown(web, path: str) -> _Page:
    answer = web.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    return _Page(answer.data.decode())


def peeked(web, place: str) -> dict:
    return json.loads(web.get(f"/api/v1{place}_errors/peek").data)["parked"]


@pytest.mark.parametrize("event", [PLAIN, LINK[-37:-1], PLAIN.upper()])
def test_a_parked_job_is_linked_to_its_event(web, parked, event):
    place = parked(event)
    for page in (looked_at(web, place), shown(web, f"{place}_errors/peek")):
        [link] = page.leading_away
        assert (link["href"], link["text"], link["rel"]) == (LINK, event, "noopener")
        assert "target" not in link
    assert peeked(web, place)["sentry_url"] == LINK


def test_a_job_that_was_never_reported_has_no_link(web, parked):
    place = parked(None)
    for page in (looked_at(web, place), shown(web, f"{place}_errors/peek")):
        assert page.leading_away == []
    assert peeked(web, place)["sentry_url"] is None


@pytest.mark.parametrize("event", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_events_id_is_text_wherever_it_is_shown(web, parked, event):
    place = parked(event)
    for page in (looked_at(web, place), shown(web, f"{place}_errors/peek")):
        assert page.leading_away == []
        assert page.handlers == []
        assert "img" not in page.elements
        assert all(script["src"].startswith("/static/") for script in page.scripts)
        assert "\u202e" not in page.read
        for link in page.links:
            assert event[:30] not in link["text"]
            assert quote(event[:30]) not in link["href"]
    found = peeked(web, place)
    assert (found["sentry_event"], found["sentry_url"]) == (event, None)


def test_a_long_one_is_cut_where_it_is_a_fact_and_whole_in_the_api(web, parked):
    place = parked(HOSTILE["long"])
    assert HOSTILE["long"][:200] not in looked_at(web, place).read
    assert peeked(web, place)["sentry_event"] == HOSTILE["long"]


def test_without_an_address_the_id_is_text(brokers, tmp_path):
    record = ParkedRecord("Boom", Envelope("SendMail", "acme").encode(), 3, None, PLAIN)
    with brokers[0].connect() as client:
        client.set("unlinked_errors", record.encode())
    with KestrelWeb(tmp_path, **servers(*brokers), interval_s=0.2) as web:
        wait_until(lambda: web.get("/api/v1/queues/unlinked_errors").status == 200, "the queue to be seen")
        page = looked_at(web, "/queues/unlinked")
        assert page.leading_away == []
        assert PLAIN in page.read
        assert peeked(web, "/queues/unlinked")["sentry_url"] is None
    brokers[0].drain("unlinked_errors")
