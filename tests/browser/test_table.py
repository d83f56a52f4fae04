"""The table of queues as somebody uses it: sort, filter, open, look while it changes."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from browser.stage import fill


def names(page: Page) -> list[str]:
    return page.locator("#queues tr[data-row]:not(.child) .name-cell a:not(.toggle)").all_inner_texts()


def test_a_click_on_a_header_sorts_by_size_and_another_turns_it_round(visit):
    page = visit.go("/queues")
    page.get_by_role("link", name="Items").click()
    expect(page).to_have_url(re.compile("sort=items&dir=desc"))
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Items")
    assert names(page)[0] == "shop_thumbnails"
    page.get_by_role("link", name="Items").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Items")
    assert names(page)[-1] == "shop_thumbnails"
    page.go_back()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Items")


def test_a_filter_stays_over_reload_and_back(visit):
    page = visit.go("/queues")
    field = page.get_by_label("Filter queues")
    field.fill("items>100 name~^shop_t")
    field.press("Enter")
    expect(page).to_have_url(re.compile(r"f=items%3E100"))
    expect(page.locator("#queues tr[data-row]")).to_have_count(1)
    page.reload()
    expect(field).to_have_value("items>100 name~^shop_t")
    assert names(page) == ["shop_thumbnails"]
    page.get_by_role("link", name="shop_thumbnails", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("shop_thumbnails")
    page.go_back()
    expect(field).to_have_value("items>100 name~^shop_t")
    assert names(page) == ["shop_thumbnails"]
    page.get_by_role("link", name="Remove items>100").click()
    expect(field).to_have_value("name~^shop_t")
    page.get_by_role("link", name="Clear").click()
    expect(page).to_have_url(re.compile(r"/queues$"))
    expect(page.locator("#queues tr[data-row]").nth(3)).to_be_visible()


def test_a_filter_works_while_it_is_typed_and_half_a_term_is_no_error(visit):
    page = visit.go("/queues")
    field = page.get_by_label("Filter queues")
    field.press_sequentially("items>100,shop_th")
    expect(page.locator("#queues tr[data-row]")).to_have_count(1)
    expect(page.locator("#filter-problem")).to_have_count(0)
    expect(field).to_be_focused()


def test_a_wrong_filter_is_told_in_one_line(visit):
    page = visit.go("/queues")
    page.get_by_label("Filter queues").fill("itms>3")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("alert")).to_have_text(
        " 'itms>3': there is no field 'itms'; did you mean items?", use_inner_text=True
    )
    expect(page.get_by_label("Filter queues")).to_have_attribute("aria-invalid", "true")


def test_nothing_matches_is_a_page_with_a_way_out(visit):
    page = visit.go("/queues?f=nosuchqueue")
    expect(page.get_by_role("heading", name="No queue matches")).to_be_visible()
    page.get_by_role("link", name="Show all").click()
    expect(page.locator("#queues tr[data-row]").first).to_be_visible()


def test_groups_of_columns_are_kept_in_the_address(visit):
    page = visit.go("/queues")
    page.locator("#cols-journal").click()
    expect(page.get_by_role("columnheader", name="Rewrites")).to_be_visible()
    page.reload()
    expect(page.get_by_role("columnheader", name="Rewrites")).to_be_visible()
    page.locator("#cols-journal").click()
    expect(page.get_by_role("columnheader", name="Rewrites")).to_have_count(0)


def test_a_row_opens_to_its_servers_and_related_queues_and_stays_open(visit, played):
    page = visit.go("/queues")
    toggle = page.locator("#o-shop_mail")
    expect(toggle).to_have_attribute("aria-expanded", "false")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(toggle).to_be_focused()
    for broker in played.brokers:
        expect(page.locator("tr.part", has_text=broker.address)).to_be_visible()
    for child in ("shop_mail_errors", "shop_mail_retry_60", "shop_mail+audit"):
        expect(page.get_by_role("link", name=child, exact=True)).to_be_visible()
    serial = page.locator("main").get_attribute("data-serial")
    page.keyboard.press("r")
    expect(page.locator("main")).not_to_have_attribute("data-serial", serial)
    expect(toggle).to_have_attribute("aria-expanded", "true")


def test_an_update_keeps_focus_ticks_typed_text_and_what_is_open(visit, played):
    page = visit.go("/queues")
    page.locator("#filter-help summary").click()
    page.locator("#t-reports_weekly").check()
    link = page.get_by_role("link", name="reports_weekly", exact=True)
    link.focus()
    page.evaluate("document.activeElement.witness = true")
    cell = page.locator("#q-reports_weekly td[data-label=Items]")
    before = int(cell.inner_text().replace(",", ""))
    fill(played.first, "reports_weekly", 2)
    expect(cell).to_have_text(f"{before + 2:,}")
    expect(link).to_be_focused()
    assert page.evaluate("document.activeElement.witness === true")
    expect(page.locator("#t-reports_weekly")).to_be_checked()
    expect(page.locator("#filter-help dl").first).to_be_visible()
    expect(page.locator("#bulk-count")).to_have_text("1 selected:")


def asked(page: Page) -> list[str]:
    """The updates that a page asks for from now on."""
    found: list[str] = []
    page.on(
        "request",
        lambda request: found.append(request.url) if "x-kestrel-fragment" in request.headers else None,
    )
    return found


def test_a_hidden_tab_asks_for_nothing_and_one_that_is_shown_again_at_once(visit):
    visit.context.add_init_script(
        "Object.defineProperty(document, 'hidden', {get: () => Boolean(window.hideIt)})"
    )
    visit.page.clock.install()
    page = visit.go("/queues")
    found = asked(page)
    page.clock.run_for(2100)
    expect(page.locator("#live-text")).to_contain_text("updated")
    page.evaluate("fetch('/healthz')")  # the browser has told of all requests before this one
    assert len(found) == 1
    page.evaluate("window.hideIt = true; document.dispatchEvent(new Event('visibilitychange'))")
    page.clock.run_for(120_000)
    page.evaluate("fetch('/healthz')")
    assert len(found) == 1
    with page.expect_request(lambda request: "x-kestrel-fragment" in request.headers):
        page.evaluate("window.hideIt = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_pause_holds_until_it_is_ended(visit):
    visit.page.clock.install()
    page = visit.go("/queues")
    page.get_by_role("button", name="Pause").click()
    found = asked(page)
    page.clock.run_for(120_000)
    page.evaluate("fetch('/healthz')")
    assert found == []
    expect(page.locator("#live-text")).to_contain_text("paused, as of")
    page.reload()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "true")
    with page.expect_request(lambda request: "x-kestrel-fragment" in request.headers):
        page.get_by_role("button", name="Paused").click()


def test_when_kestrel_web_does_not_answer_the_page_says_since_when(visit):
    page = visit.go("/queues")
    page.route("**/queues", lambda route: route.abort())
    page.keyboard.press("r")
    expect(page.locator("#live-text")).to_contain_text("not updated since")
    expect(page.locator("#queues tr[data-row]").first).to_be_visible()
    page.unroute("**/queues")
    page.keyboard.press("r")
    expect(page.locator("#live-text")).to_contain_text("updated")
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    visit.forgive("ERR_FAILED")


def test_without_javascript_everything_is_there(visiting, played):
    with visiting(played.web, java_script_enabled=False) as visit:
        page = visit.go("/queues")
        page.get_by_role("link", name="Items").click()
        assert names(page)[0] == "shop_thumbnails"
        page.locator("#o-shop_mail").click()
        expect(page.get_by_role("link", name="shop_mail_errors", exact=True)).to_be_visible()
        page.get_by_label("Filter queues").fill("name=shop_mail")
        page.get_by_role("button", name="Filter").click()
        assert names(page) == ["shop_mail"]
        expect(page.get_by_role("link", name="Reload")).to_be_visible()
        page.get_by_role("link", name="shop_mail", exact=True).click()
        page.locator("#peek-form").get_by_role("button", name="Peek").click()
        expect(page.locator("#peek-result")).to_contain_text('"job": ')


def test_charts_of_a_queue_are_read_by_pointing_and_as_a_table(visit):
    page = visit.go("/queues/shop_thumbnails")
    page.locator("#range-15m").click()
    expect(page).to_have_url(re.compile("range=15m"))
    expect(page.locator("#range-15m")).to_have_attribute("aria-current", "true")
    chart = page.locator("#chart-1 svg.chart")
    expect(chart).to_have_attribute("aria-label", re.compile("^Backlog: items now "))
    chart.hover()
    expect(page.locator("#chart-1 .readout")).to_have_text(re.compile(r"\d\d:\d\d:\d\d\s+[0-9.]+"))
    page.get_by_text("The same as a table").click()
    rows = page.locator("#history-table tbody tr")
    expect(rows.first.locator("td").first).to_have_text(re.compile(r"[0-9.]+"))
