"""The link from a parked job to its event, in a real browser: both themes, a phone, keys, hostile ids."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser.stage import fill
from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from support.broker import BrokerProcess
from support.kestrel_web import KestrelWeb, servers

EVENT = "fc6d8c0c43fc4630ad850ee518f1b9d0"
HYPHENS = "fc6d8c0c-43fc-4630-ad85-0ee518f1b9d0"
TAKEN = "document.title = 'taken'"
HOSTILE = (
    f'<script>{TAKEN}</script><img src=x onerror="{TAKEN}">',
    f"javascript:{TAKEN}",
    f'{EVENT}" onfocus="{TAKEN}" autofocus x="',
    EVENT * 313,
)


def parked(event: str | None) -> bytes:
    return ParkedRecord("Boom", Envelope("SendMail", "acme").encode(), 3, None, event).encode()


@pytest.mark.parametrize(("theme", "width"), [("light", 360), ("dark", 1280)])
def test_an_event_is_a_link_and_what_is_no_event_is_text(visiting, tmp_path, theme, width):
    with BrokerProcess(tmp_path / "broker") as broker:
        for event in (EVENT, *HOSTILE):
            fill(broker, "shop_mail_errors", 1, parked(event))
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
        url = "https://errors.example.org/issues/event/{event_uuid}/"
        # A visit fails when the browser had anything to say of the content security policy.
        config = {**servers(broker), "event_url": url, "interval_s": 0.2}
        window = {"color_scheme": theme, "viewport": {"width": width, "height": 800}}
        with KestrelWeb(tmp_path / "web", **config) as web, visiting(web, **window) as visit:
            page = visit.go("/queues/shop_mail/parked")
            page.get_by_role("button", name="Look at the first").click()
            expect(page.get_by_role("article")).to_have_count(1 + len(HOSTILE))
            link = page.get_by_role("link", name=EVENT, exact=True)
            expect(link).to_have_attribute("href", f"https://errors.example.org/issues/event/{HYPHENS}/")
            expect(page.locator("a[href*='errors.example.org'], a[href^='javascript']")).to_have_count(1)
            link.focus()
            assert link.evaluate("each => each.matches(':focus-visible')")
            assert Axe().run(page, options=options).response["violations"] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            visit.go("/queues/shop_mail_errors/peek")
            expect(page.get_by_role("link", name=EVENT, exact=True)).to_have_attribute("rel", "noopener")
            assert Axe().run(page, options=options).response["violations"] == []
            assert "taken" not in page.title()
