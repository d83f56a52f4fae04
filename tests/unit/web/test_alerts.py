"""What is told to a webhook, once, in order, over restarts; the receiver is a real HTTP server."""

import json
import logging
import socket
import threading
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.alerting import webhook
from kestrel_stack.web.alerting.alerts import KEY, Alerting, remembered
from kestrel_stack.web.alerting.judge import judge
from kestrel_stack.web.config import Config, Webhook
from kestrel_stack.web.model import Limits, View
from kestrel_stack.web.record import store as store_module
from kestrel_stack.web.record.store import Store
from support.broker import wait_until
from support.receiver import Receiver
from support.web_views import START, row, server, view

SECRET = "T0PSECRET"
SCHEMA = json.loads((files("kestrel_stack.web") / "schemas" / "alert-v1.json").read_text())
MESSAGE = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(webhook, "BACKOFF_S", (0.01, 0.03))
    monkeypatch.setattr(store_module, "RETRY_S", 0.05)


@pytest.fixture
def receiver():
    with Receiver() as process:
        yield process


class Site:
    """Judge, alerting and store of one process after another; views come from the test."""

    def __init__(self, folder, url, timeout_s=5.0):
        hook = None if url is None else Webhook(url, timeout_s)
        self.config = Config(servers=(Server("a", 1),), webhook=hook, environment="production")
        self.folder = folder
        self.at = START
        self.start()

    def start(self):
        self.store = Store(self.folder)
        self.view = remembered(self.store)
        self.alerting = Alerting(self.config, self.store)
        self.alerting.start()

    def stop(self):
        self.alerting.stop()
        self.store.close()

    def restart(self):
        self.stop()
        self.start()

    def see(self, *rows, after=11.0, servers=None):
        self.at += after
        self.view = judge(view(self.at, *rows, servers=servers), self.config, self.view)
        self.alerting.on_view(self.view)

    def sent(self, count):
        """Wait until so many messages were taken."""
        wait_until(lambda: self.alerting.counters().sent >= count, f"{count} messages")
        assert self.alerting.counters().sent == count


@pytest.fixture
def site(tmp_path, receiver):
    made = Site(tmp_path / "state", f"{receiver.url}/hooks/{SECRET}?token={SECRET}")
    yield made
    made.stop()


def queue(items, key="shop_mail"):
    return row(key, Limits(backlog=100), items=items, waiters=1)


def told(receiver):
    return [(request.json["event"], request.json["subject"]) for request in receiver.requests]


class TestTold:
    """One message when it begins, one when it is over."""

    def test_a_crossing_and_its_end_are_told_once_each(self, site, receiver):
        for items in (5, 500, 600, 700, 95, 500, 5, 5, 5, 5):
            site.see(queue(items))
        site.sent(2)
        assert told(receiver) == [("raised", "shop_mail"), ("recovered", "shop_mail")]
        raised, over = (request.json for request in receiver.requests)
        assert raised["text"] == "shop_mail has 500 items; its limit is 100"
        assert over["text"] == "shop_mail is below its limit of items again"
        assert (raised["kind"], raised["value"], raised["limit"]) == ("backlog", 500, 100)
        assert raised["environment"] == "production" and raised["since"] == over["since"] < over["at"]
        assert receiver.requests[0].path == f"/hooks/{SECRET}?token={SECRET}"
        assert receiver.requests[0].headers["Content-Type"] == "application/json"

    def test_every_message_is_what_the_schema_says(self, site, receiver):
        odd = row("a~FFb~3Cscript~3E", Limits(backlog=1, age_s=1), items=3, age_ms=9000)
        two = (server("a:1", status="READONLY"), server("b:1", fresh=False))
        for _ in range(8):
            site.see(odd, servers=two)
        for _ in range(3):
            site.see(queue(0), servers=(server("a:1"), server("b:1")))
        site.sent(10)
        for request in receiver.requests:
            MESSAGE.validate(request.json)
        kinds = {request.json["kind"] for request in receiver.requests}
        assert kinds == set(SCHEMA["properties"]["kind"]["enum"])
        assert {request.json["queue"] for request in receiver.requests} == {None, "a\\xffb<script>"}
        texts = {
            request.json["text"] for request in receiver.requests if request.json["event"] == "recovered"
        }
        assert {"a:1 is UP again", "b:1 answers again", "a\\xffb<script> is not there any more"} <= texts

    def test_the_schema_refuses_what_it_does_not_know(self):
        message = dict.fromkeys(SCHEMA["required"])
        assert not MESSAGE.is_valid(message)

    def test_without_a_webhook_nothing_is_sent_and_it_is_remembered_all_the_same(self, tmp_path):
        site = Site(tmp_path / "state", None)
        site.see(queue(500))
        site.stop()
        site.start()
        assert [alert.subject for alert in site.view.alerts] == ["shop_mail"]
        assert site.alerting.trouble() is None and site.alerting.counters().sent == 0
        site.stop()

    def test_one_that_is_raised_when_a_webhook_is_first_configured_is_told(self, tmp_path, receiver):
        site = Site(tmp_path / "state", None)
        site.see(queue(500))
        site.config = replace(site.config, webhook=Webhook(receiver.url))
        site.restart()
        site.see(queue(500))
        site.sent(1)
        site.stop()

    def test_what_was_never_told_is_not_told_as_over(self, tmp_path, receiver):
        site = Site(tmp_path / "state", None)
        site.see(queue(500))
        site.config = replace(site.config, webhook=Webhook(receiver.url))
        site.restart()
        site.see()
        site.see(queue(500, "other"))
        site.sent(1)
        assert told(receiver) == [("raised", "other")]
        site.stop()

    def test_a_webhook_that_is_no_longer_configured_leaves_nothing_waiting(self, site, receiver):
        receiver.status = 500
        site.see(queue(500))
        site.config = replace(site.config, webhook=None)
        site.restart()
        site.see(queue(500))
        site.see(queue(500, "other"))
        assert site.store.get(KEY)["waiting"] == []


class TestRestarts:
    """Another process goes on."""

    def test_what_was_told_is_not_told_again(self, site, receiver):
        site.see(queue(500))
        site.sent(1)
        for _ in range(3):
            site.restart()
            site.see(queue(500))
            site.see(queue(500))
        assert told(receiver) == [("raised", "shop_mail")]
        assert site.alerting.counters().sent == 0

    def test_what_ended_meanwhile_is_told(self, site, receiver):
        site.see(queue(500))
        site.sent(1)
        site.restart()
        site.see(queue(0))
        site.see(queue(0))
        site.sent(1)
        assert told(receiver) == [("raised", "shop_mail"), ("recovered", "shop_mail")]

    def test_a_server_that_was_not_asked_yet_ends_nothing(self, site, receiver):
        site.see(queue(500))
        site.sent(1)
        site.restart()
        unasked = (server("a:1", fresh=False, polled_at=None, attempted_at=None),)
        for _ in range(5):
            site.see(servers=unasked)
        site.see(queue(500))
        assert told(receiver) == [("raised", "shop_mail")]

    def test_what_was_not_delivered_is_delivered_by_the_next_one_in_order(self, site, receiver):
        receiver.status = 500
        site.see(queue(500))
        site.see(queue(0))
        site.see(queue(0))
        wait_until(lambda: receiver.requests, "an attempt")
        ids = [message["id"] for message in site.alerting._delivery.waiting()]
        assert len(ids) == 2
        site.stop()
        receiver.requests.clear()
        receiver.status = 204
        site.start()
        site.see(queue(0))
        site.sent(2)
        assert [request.json["id"] for request in receiver.requests] == ids

    def test_a_store_that_cannot_be_read_yet_is_waited_for(self, site, receiver, monkeypatch):
        site.see(queue(500))
        site.sent(1)
        site.restart()
        with monkeypatch.context() as patch:
            patch.setattr(site.store, "fetch", unreadable)
            site.see(queue(500))
        site.see(queue(500))
        assert told(receiver) == [("raised", "shop_mail")]

    def test_a_store_that_stays_unreadable_does_not_silence_it(self, site, receiver, monkeypatch):
        monkeypatch.setattr("kestrel_stack.web.alerting.alerts.GIVE_UP_LOADING_S", 0.0)
        monkeypatch.setattr(site.store, "fetch", unreadable)
        site.see(queue(500))
        site.sent(1)

    @pytest.mark.parametrize("content", ["text", [1], {"raised": [{}]}, {"raised": 5}, {"told": [[1]]}])
    def test_nonsense_in_the_store_is_left_out(self, site, receiver, content):
        site.store.put(KEY, content)
        site.restart()
        assert remembered(site.store) == View()
        site.see(queue(500))
        site.sent(1)


def unreadable(_):
    raise store_module.StoreTrouble("locked")


class TestReceivers:
    """Receivers that do not do what they should."""

    def test_one_that_fails_gets_it_again_until_it_takes_it(self, site, receiver, caplog):
        receiver.status = 500
        site.see(queue(500))
        wait_until(lambda: site.alerting.counters().failed >= 3, "three attempts")
        assert f"{receiver.url} answered 500; 1 message wait" in site.alerting.trouble()
        receiver.status = 200
        site.sent(1)
        assert site.alerting.trouble() is None
        assert len({request.json["id"] for request in receiver.requests}) == 1

    @pytest.mark.parametrize("how", ["hang", "trickle"])
    def test_one_that_hangs_holds_up_nobody_and_is_left(self, tmp_path, receiver, how):
        site = Site(tmp_path / "state", receiver.url, timeout_s=0.1)
        setattr(receiver, how, True)
        for items in (500, 0, 0, 500):
            site.see(queue(items))
        if how == "hang":
            wait_until(lambda: site.alerting.counters().failed >= 2, "two attempts")
            assert "did not answer in 0.1 s; 3 messages wait" in site.alerting.trouble()
        else:
            # Its status is all that counts.
            site.sent(3)
        receiver.hang = receiver.trickle = False
        site.stop()

    def test_one_that_sends_its_headers_a_byte_at_a_time_is_left_in_time(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            over = threading.Event()

            def serve():
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                    try:
                        while not over.wait(0.02):
                            connection.sendall(b"x")
                    except OSError:
                        pass

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(webhook.DeliveryError, match=r"did not answer in 0\.2 s$"):
                webhook.post(url, {}, 0.2)
            over.set()
            thread.join()

    def test_redirects_are_not_followed(self, site, receiver):
        with Receiver() as other:
            receiver.status = 302
            receiver.headers = {"Location": other.url}
            site.see(queue(500))
            wait_until(lambda: site.alerting.counters().failed, "an attempt")
            assert "302, and redirects are not followed" in site.alerting.trouble()
            assert other.requests == []

    def test_a_message_that_is_called_wrong_is_given_up_and_the_next_one_sent(self, site, receiver):
        receiver.status = 400
        site.see(queue(500))
        wait_until(lambda: site.alerting.counters().dropped == 1, "it to be given up")
        receiver.status = 200
        site.see(queue(0))
        site.see(queue(0))
        site.sent(1)
        assert told(receiver) == [
            *[("raised", "shop_mail")] * webhook.MAX_REFUSED,
            ("recovered", "shop_mail"),
        ]

    @pytest.mark.parametrize("status", [408, 425, 429])
    def test_one_that_asks_to_wait_loses_nothing(self, site, receiver, status):
        receiver.status = status
        site.see(queue(500))
        wait_until(lambda: len(receiver.requests) > 2 * webhook.MAX_REFUSED, "many attempts")
        receiver.status = 200
        site.sent(1)
        assert site.alerting.counters().dropped == 0

    def test_what_waits_is_bounded_and_the_newest_stay(self, site, receiver, monkeypatch):
        monkeypatch.setattr(webhook, "MAX_WAITING", 5)
        receiver.status = 500
        site.see(queue(500))
        wait_until(lambda: receiver.requests, "an attempt")
        site.see(queue(500), *(queue(500, f"q{n}") for n in range(20)))
        waiting = [message["subject"] for message in site.alerting._delivery.waiting()]
        assert waiting == ["shop_mail", *sorted(f"q{n}" for n in range(20))[-4:]]
        assert site.alerting.counters().dropped == 16

    def test_nothing_listens(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}"
        site = Site(tmp_path / "state", url)
        site.see(queue(500))
        wait_until(lambda: site.alerting.counters().failed, "an attempt")
        assert "Connection refused; 1 message" in site.alerting.trouble()
        site.stop()

    def test_name_and_password_in_the_address_are_sent_as_such(self, receiver):
        webhook.post(receiver.url.replace("//", f"//ann:{SECRET}%21@"), {}, 5)
        assert receiver.requests[0].headers["Authorization"] == "Basic YW5uOlQwUFNFQ1JFVCE="

    @pytest.mark.parametrize(
        "url",
        [
            f"http://ann:{SECRET}@127.0.0.1:1/{SECRET}?{SECRET}",
            f"https://127.0.0.1:1/{SECRET}",
            f"http://no.invalid/{SECRET}",
            f"http://127.0.0.1:1/{SECRET} with\nspaces",
        ],
    )
    def test_no_message_or_log_line_has_the_secret_in_it(self, tmp_path, caplog, url):
        caplog.set_level(logging.DEBUG)
        site = Site(tmp_path / "state", url)
        site.see(queue(500))
        wait_until(lambda: site.alerting.counters().failed, "an attempt")
        assert SECRET not in site.alerting.trouble() and SECRET not in caplog.text
        site.stop()
        for file in (tmp_path / "state").iterdir():
            assert SECRET.encode() not in file.read_bytes()

    def test_one_that_speaks_no_tls_is_never_sent_anything_in_clear(self, receiver):
        with pytest.raises(webhook.DeliveryError, match=r"^https://127\.0\.0\.1:\d+: TLS failed: "):
            webhook.post(receiver.url.replace("http:", "https:"), {}, 5)
        assert receiver.requests == []
