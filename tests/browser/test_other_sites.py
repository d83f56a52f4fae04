"""A page of somebody else, open in the browser of one who may do everything in kestrel-web."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from support.broker import DEADLINE_S, wait_until
from support.web_visitor import PASSWORD

QUEUE = "other_sites"
ITEMS = 3
READING = "fetch(URL, {credentials: 'include'}).then((a) => a.text()).catch(() => 'refused')"
SENDING = """fetch(URL, {method: 'POST', mode: 'no-cors', credentials: 'include',
    body: '{"confirm": "NAME"}'}).then((answer) => answer.type).catch(() => 'refused')"""


@contextlib.contextmanager
def pages(documents: dict[str, str]):
    """A web server with these pages; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            document = documents.get(self.path)
            self.send_response(404 if document is None else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((document or "").encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(params=["localhost", "127.0.0.1"], ids=["another-site", "another-port-of-the-same-site"])
def elsewhere(request, guarded):
    """The address of a hostile page; cookies come along from the second, since they do not know of ports."""
    action = f"{guarded.url}/queues/{QUEUE}/do/flush"
    documents = {
        "/": "<title>elsewhere</title>",
        "/form": f"""<form method="post" action="{action}"><input name="confirm" value="{QUEUE}"></form>
            <script>document.forms[0].submit()</script>""",
        "/script": f"""<script>var got = []; function steal(it) {{ got.push(it) }}</script>
            <script src="{guarded.url}/api/v1/queues?callback=steal"></script>
            <img src="{action}?confirm={QUEUE}"><title>done</title>""",
        "/frame": f'<iframe src="{guarded.url}/queues"></iframe>',
    }
    with pages(documents) as port:
        yield f"http://{request.param}:{port}"


@pytest.fixture(scope="module")
def logged_in(browser, guarded):
    """The browser of an operator."""
    # Not `visiting`: what is tried here makes a browser complain, and should.
    context = browser.new_context()
    context.set_default_timeout(DEADLINE_S * 1000)
    page = context.new_page()
    page.goto(f"{guarded.url}/login")
    page.get_by_label("Name").fill("olaf")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{guarded.url}/")
    yield context
    context.close()


@pytest.fixture
def olaf(logged_in, played):
    """A page of an operator who is logged in, while a queue has something in it that stays."""
    with played.first.connect() as client:
        for number in range(ITEMS):
            client.set(QUEUE, b"%d" % number)
    page = logged_in.new_page()
    yield page
    page.close()
    assert len(played.first.drain(QUEUE)) == ITEMS


def test_its_form_changes_nothing(olaf, elsewhere):
    olaf.goto(f"{elsewhere}/form")
    olaf.wait_for_url("**/do/flush")
    expect(olaf.locator("main")).to_contain_text("This request came from another site.")


def test_its_script_sends_and_changes_nothing_and_reads_nothing(olaf, elsewhere, guarded):
    url = f"{guarded.url}/api/v1/queues/{QUEUE}"
    olaf.goto(f"{elsewhere}/")
    # It goes out, but the script does not even learn that there was an answer.
    with olaf.expect_request(f"{url}/flush"):
        sent = olaf.evaluate(SENDING.replace("URL", f"'{url}/flush'").replace("NAME", QUEUE))
    assert sent == "refused"
    assert olaf.evaluate(READING.replace("URL", f"'{url}'")) == "refused"


def test_its_script_elements_and_pictures_get_nothing(olaf, elsewhere):
    olaf.goto(f"{elsewhere}/script")
    expect(olaf).to_have_title("done")
    assert olaf.evaluate("got") == []


def test_it_cannot_frame_a_page(olaf, elsewhere):
    olaf.goto(f"{elsewhere}/frame")
    wait_until(lambda: len(olaf.frames) == 2, "the frame")
    olaf.wait_for_load_state("load")
    assert "kestrel-web" not in olaf.frames[1].content()


def test_a_link_from_elsewhere_finds_the_operator_logged_in(olaf, elsewhere, guarded):
    """Why the cookie is Lax: links in mails go to pages, and not to the login."""
    olaf.goto(f"{elsewhere}/")
    olaf.evaluate(f"location.href = '{guarded.url}/queues'")
    olaf.wait_for_url(f"{guarded.url}/queues")
