"""Both flavours' configurations, rendered by Ansible from one inventory, mean the same to a server."""

from __future__ import annotations

import json
import re

import pytest

from kestrel_stack.broker import config
from support import kestrel_config
from support.kestrel_standin import scala

EVERYTHING = {
    "kestrel_stack_queues": [
        {
            "name": "mail",
            "retry_delays": [10, 60],
            "max_items": 1000,
            "max_age": "5m",
            "max_size": "20MB",
            "max_item_size": "100KB",
            "max_memory_size": "24MB",
            "discard_old_when_full": True,
            "fanouts": ["audit", "copy"],
            "fanout_only": True,
        },
        {"name": "import"},
    ],
    "kestrel_aliases": {"shop_all": ["shop_mail", "shop_mail+audit", "elsewhere"]},
    "kestrel_listen_address": "10.0.0.1",
    "kestrel_port": 22144,
    "kestrel_admin_address": "0.0.0.0",
    "kestrel_admin_port": 2244,
    "kestrel_sync_journal_ms": 0,
    "kestrel_max_open_transactions": 7,
    "kestrel_client_timeout_seconds": 30,
    "kestrel_expiration_timer_seconds": 0,
    "kestrel_log_level": "warning",
    "kestrel_time_series": True,
}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    inventories = {
        "as-it-comes": {},
        "open-admin": {"kestrel_admin_address": "0.0.0.0"},
        "everything": EVERYTHING,
    }
    return folder, kestrel_config.render_all(folder, inventories, ("worker1", "worker2.example.com"))


# A release binds its admin port to every address whatever it is told.
@pytest.fixture(params=["open-admin", "everything"])
def rendered(request, every):
    return every[0] / request.param, every[1][request.param]


def test_a_release_and_the_embedded_one_get_the_same(rendered):
    folder, texts = rendered
    release = config.parse(scala.read(folder / "kestrel.scala").broker)
    embedded = config.parse(json.loads(texts["embedded.json"]))
    assert release == embedded


def test_a_queue_is_complete_whatever_it_would_inherit(rendered):
    _, texts = rendered
    blocks = re.findall(r"new QueueBuilder \{(.*?)\n    \}", texts["kestrel.scala"], re.DOTALL)
    assert len(blocks) == len(json.loads(texts["embedded.json"])["queues"])
    for block in blocks:
        assert {"name", "maxSize", "maxItemSize", "maxMemorySize", "discardOldWhenFull", "fanoutOnly"} <= set(
            re.findall(r"^ *(\w+) = ", block, re.MULTILINE)
        )


@pytest.fixture
def everything(every):
    return every[1]["everything"]


@pytest.mark.parametrize(
    "line",
    [
        'listenAddress = "10.0.0.1"',
        "memcacheListenPort = 22144",
        "textListenPort = None",
        "thriftListenPort = None",
        'queuePath = "/var/spool/kestrel"',
        'statusFile = "/var/lib/kestrel/status"',
        "clientTimeout = 30.seconds",
        "expirationTimerFrequency = None",
        "maxOpenTransactions = 7",
        "admin.httpPort = 2244",
        "reporters = new TimeSeriesCollectorConfig",
        "default.syncJournal = 0.milliseconds",
        'destinationQueues = List("shop_mail", "shop_mail+audit", "elsewhere")',
        "level = Level.WARNING",
        "roll = Policy.SigHup",
    ],
)
def test_every_variable_reaches_a_releases_configuration(everything, line):
    assert f" {line}\n" in everything["kestrel.scala"]


def test_the_sync_is_on_the_side_of_what_needs_a_restart(everything):
    fixed, _, loose = everything["kestrel.scala"].partition("// ---- reload:")
    assert "syncJournal" in fixed
    assert "syncJournal" not in loose
    for key in ("queuePath", "maxOpenTransactions", "httpPort", "listenAddress"):
        assert key not in loose


def test_what_tells_of_a_reload_is_logged_at_any_level(everything):
    loggers = everything["kestrel.scala"].partition("loggers = ")[2]
    for node in ("net.lag.kestrel.Kestrel", "net.lag.kestrel.QueueCollection"):
        assert re.search(rf'node = "{re.escape(node)}"\s*level = Level.INFO\n', loggers)


def test_time_series_are_off_as_it_comes(every):
    assert "TimeSeries" not in every[1]["as-it-comes"]["kestrel.scala"]
