"""For everybody: keys only, a small phone, both themes, screen readers, a strict policy."""

from __future__ import annotations

import re

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser.stage import SCRIPT_NAME
from kestrel_stack.web import keys

PAGES = (
    "/",
    "/queues",
    "/queues?open=shop_mail&cols=size,counters,gets,journal,about&f=name~mail",
    "/queues?f=itms>3",
    "/queues?f=nothing",
    "/queues/shop_mail",
    f"/queues/{keys.make(SCRIPT_NAME)}",
    "/queues/shop_mail/peek",
    "/queues/shop_mail/parked",
    "/queues/shop_mail/do/flush",
    "/queues/shop_mail/do/requeue",
    "/queues/shop_mail/do/enqueue",
    "/bulk/flush?key=shop_mail&key=shop_orders",
    "/servers",
    "/servers/{server}",
    "/servers/{server}/do/status",
    "/audit",
    "/nothing-here",
)

COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
"""What of axe's rules looks at colours."""


def test_axe_finds_nothing_serious_and_the_browser_nothing_to_complain_about(visiting, played):
    axe = Axe()
    found = []
    with visiting(played.web, every=60) as visit:
        for path in PAGES:
            page = visit.go(path.format(server=played.first.address))
            assert page.locator("h1").count() == 1, path
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                # A theme changes colours and nothing else.
                options = {"resultTypes": ["violations"], **(COLOURS if theme == "dark" else {})}
                for violation in axe.run(page, options=options).response["violations"]:
                    if violation["impact"] in ("serious", "critical"):
                        targets = [node["target"] for node in violation["nodes"][:4]]
                        found.append(f"{path} {theme}: {violation['id']}: {violation['help']} {targets}")
        visit.forgive("404")
    assert found == []


def test_the_login_page_is_for_everybody_too(visiting, guarded):
    with visiting(guarded) as visit:
        page = visit.go("/login")
        bad = [each["id"] for each in Axe().run(page).response["violations"] if each["impact"] != "minor"]
        assert bad == []


def test_no_page_is_wider_than_a_small_phone(visiting, played):
    wide = []
    with visiting(played.web, viewport={"width": 360, "height": 740}, has_touch=True, every=60) as visit:
        for path in PAGES:
            page = visit.go(path.format(server=played.first.address))
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > 360:
                wide.append((path, width))
        visit.forgive("404")
        page = visit.go("/queues")
        name = page.get_by_role("link", name="shop_mail", exact=True)
        expect(name).to_be_in_viewport(ratio=0)
        assert page.locator("#queues").bounding_box()["width"] <= 360
    assert wide == []


def test_the_keyboard_is_enough(visit):
    page = visit.go("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    page.keyboard.press("g")
    page.keyboard.press("q")
    expect(page).to_have_url(re.compile("/queues$"))
    page.keyboard.press("/")
    expect(page.get_by_label("Filter queues")).to_be_focused()
    page.keyboard.type("name~^shop_(mail|orders)")
    page.keyboard.press("Enter")
    expect(page.locator("#queues tr[data-row]")).to_have_count(2)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="shop_mail", exact=True)).to_be_focused()
    page.keyboard.press("x")
    expect(page.locator("#t-shop_mail")).to_be_checked()
    page.keyboard.press("e")
    expect(page.locator("#o-shop_mail")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.locator("#sort-items").focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Items")
    expect(page.locator("#sort-items")).to_be_focused()


def test_focus_can_be_seen_on_everything_that_takes_it(visit):
    page = visit.go("/queues")
    seen = 0
    for _ in range(30):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
        seen += 1
    assert seen == 30


def test_the_theme_follows_the_system_until_it_is_chosen_and_then_stays(visiting, played):
    ground = "getComputedStyle(document.body).backgroundColor"
    with visiting(played.web, color_scheme="light") as visit:
        page = visit.go("/")
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(ground)
        assert light != dark
        page.emulate_media(color_scheme="light")
        page.get_by_role("button", name="Colours: as the system has them").click()
        assert page.evaluate(ground) == dark
        # It is there before anything is painted.
        early = "window.early = document.documentElement.dataset.theme"
        visit.context.add_init_script(f"addEventListener('DOMContentLoaded', () => {{ {early} }})")
        page.reload()
        assert page.evaluate("window.early") == "dark"
        assert page.evaluate(ground) == dark


def test_an_alert_that_comes_is_read_out_and_numbers_are_not(visit, played):
    page = visit.go("/")
    assert page.locator("[aria-live=polite]").count() == 1
    page.evaluate("document.querySelectorAll('[data-alert]').forEach((item) => item.remove())")
    page.evaluate("document.getElementById('main').dataset.alerts = '99'")
    page.keyboard.press("r")
    expect(page.locator("#say")).to_contain_text("reports_weekly")
