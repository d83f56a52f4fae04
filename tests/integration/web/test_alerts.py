"""Alerts of a real kestrel-web about real brokers, told to a real receiver."""

import json

import pytest

from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers
from support.receiver import Receiver

SETTINGS = {
    "app": "shop",
    "namespace": "shop",
    "environment": "test",
    "queues": [{"name": "mail", "alert": {"backlog": 5}}],
}

HURRY = {"alerting.judge.CLEAR_AFTER_S": 0.5, "alerting.webhook.BACKOFF_S": (0.05, 0.2)}
"""How long it has to be right before it is over is proved with a clock of the tests' own."""


@pytest.fixture
def receiver():
    with Receiver() as process:
        yield process


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path) as process:
        yield process


@pytest.fixture
def web(broker, receiver, tmp_path):
    """A kestrel-web that is quick to call a server down."""
    settings = tmp_path / "shop.json"
    settings.write_text(json.dumps({**SETTINGS, "servers": [broker.address]}))
    with KestrelWeb(
        tmp_path / "web",
        settings=[str(settings)],
        webhook={"url": f"{receiver.url}/hook?token=s3cr3t", "timeout_s": 2},
        stale_after_s=1,
        no_consumers_after_s=3600,
        hurry=HURRY,
        **servers(broker),
    ) as process:
        yield process
        assert "Traceback" not in process.log and "s3cr3t" not in process.log


def fill(broker, count):
    with broker.connect() as client:
        for number in range(count):
            client.set("shop_mail", b"%d" % number)


def told(receiver):
    return [(request.json["event"], request.json["kind"]) for request in receiver.requests]


def raised(web):
    return sorted(alert["kind"] for alert in json.loads(web.get("/api/v1/alerts").data)["alerts"])


def test_a_backlog_without_consumers_is_told_and_that_it_is_over_survives_a_kill(web, broker, receiver):
    web.config["no_consumers_after_s"] = 1
    web.restart()
    fill(broker, 5)
    both = [("raised", "backlog"), ("raised", "no_consumers")]
    wait_until(lambda: sorted(told(receiver)) == both, "both to be told")
    page = web.get("/queues/shop_mail").data.decode()
    assert "shop_mail has 5 items; its limit is 5" in page
    # What the next process is to know is on disk a moment after it was told.
    wait_until(lambda: len(web.state.joinpath("kestrel-web.sqlite3-wal").read_bytes()) > 0, "the disk")
    wait_until(lambda: b'"waiting": []' in files(web) and b'"told": [["backlog"' in files(web), "the disk")
    web.kill()
    web.start()
    wait_until(lambda: raised(web) == ["backlog", "no_consumers"], "them to be remembered")
    assert len(receiver.requests) == 2
    web.kill()
    broker.drain("shop_mail")
    web.start()
    wait_until(lambda: len(receiver.requests) == 4, "the ends to be told")
    assert sorted(told(receiver)[2:]) == [("recovered", "backlog"), ("recovered", "no_consumers")]
    assert raised(web) == []


def files(web):
    return b"".join(path.read_bytes() for path in web.state.iterdir() if path.is_file())


def test_a_server_that_dies_with_a_backlog_is_told_and_its_backlog_does_not_end(web, broker, receiver):
    fill(broker, 5)
    wait_until(lambda: told(receiver) == [("raised", "backlog")], "the backlog to be told")
    broker.kill()
    wait_until(lambda: len(receiver.requests) == 2, "the server to be told")
    down = receiver.requests[1].json
    assert (down["kind"], down["server"]) == ("server_down", broker.address)
    assert raised(web) == ["backlog", "server_down"]
    web.restart()
    wait_until(lambda: raised(web) == ["backlog", "server_down"], "them to be remembered")
    broker.start()
    wait_until(lambda: len(receiver.requests) == 3, "the server's return to be told")
    assert told(receiver)[2] == ("recovered", "server_down")
    assert raised(web) == ["backlog"]


def test_a_receiver_that_hangs_or_fails_holds_up_neither_polls_nor_pages(web, broker, receiver):
    receiver.hang = True
    fill(broker, 5)
    wait_until(lambda: receiver.requests, "an attempt")
    before = json.loads(web.get("/healthz").data)["at"]
    wait_until(lambda: json.loads(web.get("/healthz").data)["at"] > before, "polls to go on")
    assert web.get("/").status == 200
    receiver.hang, receiver.status = False, 500
    wait_until(lambda: "answered 500" in web.log, "the failure to be in the log")
    receiver.status = 200
    wait_until(lambda: "takes messages again" in web.log, "it to be delivered")
    assert len({request.json["id"] for request in receiver.requests}) < len(receiver.requests)
