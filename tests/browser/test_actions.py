"""Looking into queues and changing them by hand, and who may not."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from browser.stage import SCRIPT_NAME, fill, parked, put
from kestrel_stack.web import keys
from support.broker import wait_until
from support.web_visitor import PASSWORD

SCRIPT_KEY = keys.make(SCRIPT_NAME)


def test_a_peek_shows_the_item_and_runs_nothing_of_it(visit):
    page = visit.go(f"/queues/{SCRIPT_KEY}")
    title = page.title()
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)<script>")
    page.locator("#peek-form").get_by_role("button", name="Peek").click()
    shown = page.locator("#peek-panel pre").first
    expect(shown).to_contain_text("<script>document.title='taken'</script>")
    expect(shown).to_contain_text("<img src=x onerror=alert(1)>")
    page.locator("#peek-as").select_option("hex")
    page.locator("#peek-form").get_by_role("button", name="Peek").click()
    expect(shown).to_contain_text("7b 22")
    assert page.title() == title
    assert page.locator("main script, main img").count() == 0


def test_an_update_leaves_the_peeked_item(visit, played):
    page = visit.go(f"/queues/{SCRIPT_KEY}")
    page.locator("#peek-form").get_by_role("button", name="Peek").click()
    expect(page.locator("#peek-panel pre").first).to_be_visible()
    serial = page.locator("main").get_attribute("data-serial")
    page.keyboard.press("r")
    expect(page.locator("main")).not_to_have_attribute("data-serial", serial)
    expect(page.locator("#peek-panel pre").first).to_be_visible()


def test_a_big_queue_is_flushed_when_its_name_was_typed(visit, played):
    fill(played.first, "to_flush", 150)
    page = visit.go("/queues?f=name=to_flush")
    expect(page.locator("#q-to_flush td[data-label=Items]")).to_have_text("150")
    page.get_by_role("link", name="to_flush", exact=True).click()
    page.get_by_role("link", name="Flush…", exact=True).click()
    expect(page.locator("#present")).to_have_text("150 items")
    page.locator("#f-confirm").fill("to_flus")
    page.get_by_role("button", name=re.compile("^Flush")).click()
    expect(page.locator("#e-confirm")).to_be_visible()
    assert played.first.stats("to_flush")["items"] == 150
    page.locator("#f-confirm").fill("to_flush")
    page.get_by_role("button", name=re.compile("^Flush")).click()
    expect(page).to_have_url(re.compile("/tasks/"))
    wait_until(lambda: played.first.stats("to_flush")["items"] == 0, "the flush")
    visit.go("/audit?target=to_flush")
    expect(page.locator("table.audit tbody tr").first).to_contain_text("flush")
    expect(page.locator("table.audit tbody tr").first).to_contain_text("done")
    visit.complaints[:] = [each for each in visit.complaints if "status of 4" not in each]


def test_several_are_flushed_by_ticks(visit, played):
    for queue in ("bulk_one", "bulk_two"):
        fill(played.first, queue, 4)
    page = visit.go("/queues?f=^bulk_")
    flush = page.locator("#bulk").get_by_role("button", name="Flush")
    expect(flush).to_be_disabled()
    page.get_by_label("Select bulk_one").check()
    page.get_by_label("Select bulk_two").check()
    flush.click()
    expect(page.locator("#present")).to_have_text("8 items")
    expect(page.locator("#confirm-form")).to_contain_text("bulk_one")
    expect(page.locator("#confirm-form")).to_contain_text("bulk_two")
    if page.locator("#f-confirm").count():
        page.locator("#f-confirm").fill(page.locator("#f-confirm").get_attribute("data-typed"))
    page.locator("#confirm-form").get_by_role("button").first.click()
    for queue in ("bulk_one", "bulk_two"):
        wait_until(lambda queue=queue: played.first.stats(queue)["items"] == 0, "the flush")


def test_parked_jobs_go_back_to_their_queue(visit, played):
    fill(played.first, "back", 1)
    for number in range(3):
        fill(played.first, "back_errors", 1, parked("SendMail", str(number)))
    page = visit.go("/queues?f=name=back")
    expect(page.locator("#q-back td[data-label=Parked]")).to_have_text("3")
    page.get_by_role("link", name="back", exact=True).click()
    page.get_by_role("link", name="Requeue…").click()
    page.get_by_label("all of them").check()
    page.get_by_role("button", name=re.compile("^Requeue")).click()
    wait_until(lambda: played.first.stats("back")["items"] == 4, "the jobs to be back")
    assert played.first.stats("back_errors")["items"] == 0
    expect(page.get_by_role("heading", level=1)).to_contain_text("done")


def test_read_only_buttons_say_why_and_the_server_refuses_too(visiting, read_only, played):
    fill(played.first, "kept", 2)
    with visiting(read_only) as visit:
        visit.go("/queues/kept/do/flush")
        visit.forgive("403")
        page = visit.go("/queues?f=name=kept")
        expect(page.locator("#q-kept td[data-label=Items]")).to_have_text("2")
        page.get_by_role("link", name="kept", exact=True).click()
        flush = page.get_by_role("button", name="Flush… (not possible: kestrel-web is read-only)")
        expect(flush).to_be_disabled()
        assert page.locator(".badge", has_text="Read-only").is_visible()
        status = page.evaluate(
            "fetch(location.pathname + '/do/flush', {method: 'POST'}).then((answer) => answer.status)"
        )
        assert status in (400, 403)
        assert played.first.stats("kept")["items"] == 2
        visit.forgive("status of 40")


def test_a_viewer_logs_in_and_sees_but_cannot_change(visiting, guarded):
    with visiting(guarded) as visit:
        page = visit.go("/queues?f=items>0")
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        page.get_by_label("Name").fill("vera")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        page.get_by_label("Name").fill("vera")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_label("Filter queues")).to_have_value("items>0")
        page.get_by_role("link", name="shop_mail", exact=True).click()
        expect(page.get_by_role("button", name="only an operator may do this").first).to_be_disabled()
        page.locator(".user summary").click()
        page.get_by_role("button", name="Log out").click()
        visit.go("/queues")
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        visit.complaints[:] = [each for each in visit.complaints if "status of 40" not in each]


def test_an_operator_may(visiting, guarded):
    with visiting(guarded) as visit:
        page = visit.go("/login")
        page.get_by_label("Name").fill("olaf")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        visit.go("/queues/shop_mail")
        expect(page.get_by_role("link", name="Flush…", exact=True)).to_be_visible()


def test_a_session_that_ends_leads_to_the_login_page(visiting, guarded):
    with visiting(guarded) as visit:
        page = visit.go("/login")
        page.get_by_label("Name").fill("olaf")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#totals")).to_be_visible()
        visit.context.clear_cookies()
        page.keyboard.press("r")
        expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        visit.complaints[:] = [each for each in visit.complaints if "status of 401" not in each]


def test_a_dead_server_is_a_row_with_its_error_and_its_last_numbers_are_marked(visit, played):
    broker = played.brokers[2]
    page = visit.go("/servers")
    row = page.locator("tr[data-row]", has_text=broker.address)
    expect(row).to_contain_text("up")
    version = row.locator("td").nth(1).inner_text()
    broker.kill()
    try:
        expect(row).to_contain_text("down")
        expect(row).to_have_class(re.compile("dead"))
        expect(row).to_contain_text("since")
        expect(row.locator("td").nth(1)).to_have_text(version)
        visit.go("/")
        expect(page.locator("#alerts")).to_contain_text(broker.address)
        expect(page.locator("#attention-card")).to_have_class(re.compile("grave"))
    finally:
        broker.start()


def test_a_task_is_followed_to_its_end_without_loading_its_page_anew(visit, played):
    with played.first.connect() as client:
        for number in range(2500):
            put(client, b"followed_errors", parked("SendMail", f"try {number}"))
    page = visit.go("/queues/followed/do/requeue")
    page.get_by_label("all of them").check()
    page.get_by_role("button", name="Requeue", exact=True).click()
    expect(page).to_have_url(re.compile("/tasks/"))
    page.evaluate("window.loaded = 1")
    expect(page.locator("#task-text")).to_have_text("2,500 parked jobs put back.")
    expect(page.locator("#task-title")).to_contain_text("done")
    assert page.evaluate("window.loaded") == 1
    # The other tests know how large the queues of this stage are.
    for queue in (b"followed", b"followed_errors"):
        played.first.raw(b"delete %s\r\n" % queue)
