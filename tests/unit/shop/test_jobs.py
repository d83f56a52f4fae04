import http.server
import json
import mailbox
import threading
import uuid

import pytest

from kestrel_stack.consumer import Context
from kestrel_stack.consumer.log import Log


@pytest.fixture
def said():
    return []


@pytest.fixture
def context(said):
    def make(job):
        return Context(
            job=job,
            id=str(uuid.uuid4()),
            tenant="acme",
            attempt=1,
            enqueued_at=0,
            trace=None,
            environment="lab",
            release="r1",
            log=Log(lambda level, event, fields: said.append(event)),
        )

    return make


@pytest.fixture
def partner():
    """A partner's API; `received` are the requests, `status` is what it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append((self.headers, json.loads(body)))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.status = [], 202
    server.url = f"http://127.0.0.1:{server.server_port}/orders"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_hello_world_greets_and_is_in_the_ledger(shop, context, said):
    shop("jobs").hello_world({"name": "Ada"}, context("HelloWorld"))
    assert said == ["Hello, Ada!"]
    assert shop("ledger").report()["done"] == {"acme": {"HelloWorld": 1}}


MAIL = {"to": "ada@example.org", "subject": "Żółć", "text": "Grüße\n"}


def test_a_mail_is_written_once_even_if_its_job_comes_twice(shop, context, tmp_path):
    once = context("SendMail")
    shop("jobs").send_mail(MAIL, once)
    shop("jobs").send_mail(MAIL, once)
    (mail,) = mailbox.Maildir(tmp_path / "mail", create=False)
    assert mail["To"] == "ada@example.org"
    assert once.id in mail["Message-ID"]
    assert mail.get_payload(decode=True).decode() == "Grüße\n"
    assert shop("ledger").report()["duplicates"] == 1


@pytest.mark.parametrize("to", ["a@example.org\nBcc: all@example.org", "a@example.org\r\n\r\nbody"])
def test_a_mail_cannot_get_headers_from_its_data(shop, context, to):
    with pytest.raises(ValueError, match=r"header|linefeed"):
        shop("jobs").send_mail({**MAIL, "to": to}, context("SendMail"))


def test_the_partner_gets_the_data_and_a_key_that_tells_repetitions(shop, context, partner, monkeypatch):
    monkeypatch.setenv("SHOP_PARTNER_URL", partner.url)
    job = context("PostToPartner")
    shop("jobs").post_to_partner({"order": 1}, job)
    ((headers, body),) = partner.received
    assert headers["Idempotency-Key"] == job.id
    assert body == {"tenant": "acme", "data": {"order": 1}}


def test_a_partner_that_refuses_fails_the_job(shop, context, partner, monkeypatch):
    monkeypatch.setenv("SHOP_PARTNER_URL", partner.url)
    partner.status = 503
    with pytest.raises(shop("jobs").PartnerRefused, match="503"):
        shop("jobs").post_to_partner({}, context("PostToPartner"))
    assert shop("ledger").report()["done"] == {}


def test_without_a_partner_the_job_says_where_to_set_it(shop, context):
    with pytest.raises(shop("config").NotConfigured, match="SHOP_PARTNER_URL, or partner_url in"):
        shop("jobs").post_to_partner({}, context("PostToPartner"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "partner", 5])
def test_only_web_addresses_are_called(shop, tmp_path, url):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"partner_url": url}))
    with pytest.raises(shop("config").NotConfigured, match="does not begin with http"):
        shop("config").partner_url(file)


def test_the_partner_may_be_named_in_the_shared_file(shop, tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"partner_url": "https://partner.example/api"}')
    assert shop("config").partner_url(file) == "https://partner.example/api"
    file.write_text("{")
    with pytest.raises(shop("config").NotConfigured, match="not a JSON object"):
        shop("config").partner_url(file)
