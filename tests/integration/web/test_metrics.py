"""/metrics and /healthz of a real kestrel-web with real brokers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sqlite3

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kestrel_stack.web import service
from kestrel_stack.web.app import create_app
from kestrel_stack.web.config import Webhook
from kestrel_stack.web.loading import load
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers

TOKEN = "a-token-of-prometheus-" + "0123456789" * 3


def scrape(web, query: str = "", **headers: str) -> dict[str, dict[frozenset, float]]:
    """Samples by name and labels."""
    answer = web.get(f"/metrics{query}", headers)
    assert answer.status == 200, answer.data
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[frozenset, float]] = {}
    for family in text_string_to_metric_families(answer.data.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def of(found, name: str, **labels: str) -> float | None:
    return found.get(name, {}).get(frozenset(labels.items()))


def put(broker, queue: str, count: int = 1) -> None:
    with broker.connect() as raw:
        for _ in range(count):
            raw.set(queue, b"0123456789")


@pytest.fixture
def site(tmp_path):
    """Two brokers and a kestrel-web that takes numbers for old after a moment."""
    with BrokerProcess(tmp_path / "a") as a, BrokerProcess(tmp_path / "b") as b:
        settings = tmp_path / "shop.json"
        queues = [{"name": "mail", "alert": {"backlog": 100, "age": "60s"}}]
        shop = {"app": "shop", "namespace": "shop", "environment": "test", "servers": [a.address, b.address]}
        settings.write_text(json.dumps({**shop, "queues": queues}))
        put(a, "shop_mail", 3)
        put(b, "shop_mail", 4)
        put(b, "shop_mail_errors", 2)
        with KestrelWeb(tmp_path / "web", **servers(a, b), settings=[str(settings)], stale_after_s=1) as web:
            web.brokers = a, b
            wait_until(lambda: sum(scrape(web).get("kestrel_queue_items", {}).values()) == 9, "both servers")
            yield web


def test_every_server_and_every_queue_on_it(site):
    a, b = (broker.address for broker in site.brokers)
    found = scrape(site)
    assert of(found, "kestrel_up", server=a) == of(found, "kestrel_up", server=b) == 1
    assert of(found, "kestrel_status", server=a, status="UP") == 1
    assert of(found, "kestrel_queue_items", queue="shop_mail", server=a) == 3
    assert of(found, "kestrel_queue_items", queue="shop_mail", server=b) == 4
    assert of(found, "kestrel_queue_items_added_total", queue="shop_mail", server=b) == 4
    assert of(found, "kestrel_queue_bytes", queue="shop_mail", server=b) == 40
    assert of(found, "kestrel_queue_parked_items", queue="shop_mail") == 2
    assert of(found, "kestrel_queue_backlog_limit", queue="shop_mail") == 100
    assert of(found, "kestrel_queue_age_limit_seconds", queue="shop_mail") == 60
    info = {"queue": "shop_mail_errors", "kind": "errors", "parent": "shop_mail", "app": "shop"}
    assert of(found, "kestrel_queue_info", **info) == 1
    assert of(found, "kestrel_items", server=b) == 6


def test_a_filter_keeps_queues_out(site):
    found = scrape(site, "?f=kind%3Derrors")
    assert {dict(labels)["queue"] for labels in found["kestrel_queue_items"]} == {"shop_mail_errors"}
    assert site.get("/metrics?f=colour%3Dred").status == 400


def test_openmetrics_for_who_asks_for_it(site):
    answer = site.get("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    samples = {sample.name for family in parse_openmetrics(answer.data.decode()) for sample in family.samples}
    assert {"kestrel_queue_items", "kestrel_queue_items_added_total"} <= samples


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=newest", "text/plain; version=0.0.4"),
        ("text/plain;version=", "text/plain; version=0.0.4"),
        (";;,=", "text/plain; version=0.0.4"),
    ],
)
def test_whatever_is_accepted_there_is_an_answer(parts, accept, type_):
    answer = create_app(parts).test_client().get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.content_type.startswith(type_)
    assert b"kestrel_up{" in answer.data
    assert answer.data.endswith(b"# EOF\n") == ("openmetrics" in type_)


def test_a_server_that_goes_and_comes_back_with_its_counters_at_0(site):
    a, b = site.brokers
    assert of(scrape(site), "kestrel_set_commands_total", server=b.address) == 6
    b.kill()
    wait_until(lambda: of(scrape(site), "kestrel_up", server=b.address) == 0, "the server to be seen as down")

    def gone():
        return not [
            labels for labels in scrape(site)["kestrel_queue_items"] if ("server", b.address) in labels
        ]

    wait_until(gone, "its queues to disappear")
    found = scrape(site)
    assert of(found, "kestrel_queue_items", queue="shop_mail", server=a.address) == 3
    assert of(found, "kestrel_queue_backlog_limit", queue="shop_mail") == 100
    assert of(found, "kestrel_web_poll_errors_total", server=b.address) >= 1
    assert of(found, "kestrel_web_data_age_seconds", server=b.address) >= 1
    assert json.loads(site.get("/healthz").data)["status"] == "ok"
    b.start()
    wait_until(lambda: not gone(), "its queues to be back")
    found = scrape(site)
    assert of(found, "kestrel_queue_items", queue="shop_mail", server=b.address) == 4
    # Its own counter, which began anew: a reset, as Prometheus expects it.
    assert of(found, "kestrel_set_commands_total", server=b.address) == 0


def test_its_token_opens_nothing_else(tmp_path):
    token = {"name": "prometheus", "role": "metrics", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
    proxy = {"header": "X-Remote-User", "addresses": ["192.0.2.1"]}
    with (
        BrokerProcess(tmp_path) as broker,
        KestrelWeb(tmp_path / "web", **servers(broker), tokens=[token], proxy=proxy) as web,
    ):
        sent = {"Authorization": f"Bearer {TOKEN}"}
        assert web.get("/metrics", sent).status == 200
        assert web.get("/metrics").status == 401
        assert [web.get(path, sent).status for path in ("/", "/api/v1/queues", "/queues.csv")] == [403] * 3
        healthy = json.loads(web.get("/healthz").data)
        assert broker.address not in json.dumps(healthy)


def test_who_looks_costs_the_servers_nothing(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        put(broker, "mail")
        with KestrelWeb(tmp_path / "web", **servers(broker), interval_s=60) as web:
            wait_until(lambda: of(scrape(web), "kestrel_up", server=broker.address) == 1, "the first poll")
            before = asked(broker)
            for path in (
                "/",
                "/queues",
                "/queues/mail",
                "/servers",
                "/metrics",
                "/queues.csv",
                "/api/v1/queues",
            ):
                assert [web.get(path).status for _ in range(10)] == [200] * 10
            # One more connection: the one that asks this.
            assert asked(broker) == before + 1


def asked(broker) -> int:
    """How often somebody has connected to a broker."""
    found = re.search(rb"STAT total_connections (\d+)", broker.raw(b"stats\r\n"))
    return int(found[1])


# Health


def test_it_is_well_also_when_no_server_is(tmp_path):
    with KestrelWeb(tmp_path, servers=["127.0.0.1:9"], timeout_s=0.5) as web:
        answer = web.get("/healthz")
        document = json.loads(answer.data)
        assert (answer.status, document["status"]) == (200, "ok")
        assert document["servers"]["reachable"] == 0


@pytest.mark.long
def test_a_database_that_is_locked_is_said(tmp_path):
    with KestrelWeb(tmp_path, servers=["127.0.0.1:9"], timeout_s=0.5) as web:
        database = sqlite3.connect(web.state / "kestrel-web.sqlite3", isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        wait_until(lambda: json.loads(web.get("/healthz").data)["status"] == "degraded", "it to be noticed")
        assert of(scrape(web), "kestrel_web_database_trouble") == 1
        database.execute("ROLLBACK")
        database.close()
        wait_until(lambda: json.loads(web.get("/healthz").data)["status"] == "ok", "all to be well again")


@pytest.fixture
def parts(tmp_path):
    """The parts of a site of which nothing runs."""
    made = service.build(load(["--servers", "127.0.0.1:9", "--state", str(tmp_path)], {}))
    yield made
    made.store.close()


def test_a_database_in_trouble_is_said_and_does_not_make_it_ill(parts, monkeypatch):
    monkeypatch.setattr(parts.store, "trouble", lambda: "The disk is full.")
    answer = create_app(parts).test_client().get("/healthz")
    assert answer.status_code == 200
    assert (answer.get_json()["status"], answer.get_json()["database"]) == ("degraded", "The disk is full.")


def test_a_webhook_that_fails_is_said_without_its_address(parts, monkeypatch):
    config = dataclasses.replace(parts.config, webhook=Webhook("https://example.org/secret"))
    monkeypatch.setattr(parts.alerting, "trouble", lambda: "https://example.org answered 500")
    answer = create_app(dataclasses.replace(parts, config=config)).test_client().get("/healthz")
    assert (answer.get_json()["status"], answer.get_json()["webhook"]) == ("degraded", "failing")
    assert "example.org" not in answer.get_data(as_text=True)


def test_it_is_not_well_when_it_does_not_poll_any_more(parts, monkeypatch):
    monkeypatch.setattr(parts.poller, "trouble", lambda: "The thread that polls 127.0.0.1:9 has ended.")
    answer = create_app(parts).test_client().get("/healthz")
    assert answer.status_code == 503
    assert answer.get_json()["status"] == "stuck"
    assert "has ended" in answer.get_json()["polling"]


def test_a_stranger_hears_no_name_of_a_server(parts, monkeypatch):
    monkeypatch.setattr(parts.poller, "trouble", lambda: "The thread that polls 127.0.0.1:9 has ended.")
    monkeypatch.setattr(parts.auth, "who", lambda: None)
    answer = create_app(parts).test_client().get("/healthz")
    assert answer.status_code == 503
    assert "127.0.0.1" not in answer.get_data(as_text=True)


def test_views_that_cannot_be_made_are_noticed(parts, monkeypatch):
    def fail(*_):
        raise RuntimeError("no view")

    monkeypatch.setattr(parts.poller, "_build", fail)
    parts.poller.start()
    try:
        wait_until(
            lambda: create_app(parts).test_client().get("/healthz").status_code == 503, "it to be said"
        )
    finally:
        parts.poller.stop()
