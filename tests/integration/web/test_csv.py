"""CSV of a real kestrel-web: the same rows as the page, in the same order, and no formulas."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import re
from datetime import datetime

import pytest

from kestrel_stack.web import keys
from kestrel_stack.web.tables.columns import COLUMNS
from kestrel_stack.web.views.csv import AUDIT_HEAD
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers

FORMULA = "=HYPERLINK(1)"
TOKEN = "a-token-" + "0123456789" * 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    with BrokerProcess(folder / "a") as broker:
        with broker.connect() as raw:
            for queue, count in (
                ("mail", 3),
                ("mail_errors", 1),
                ("b", 1),
                ("c,\"d'", 2),
                (FORMULA, 1),
                ("größe", 1),
            ):
                for _ in range(count):
                    raw.set(queue, b"0123456789")
        token = {"name": "=tester", "role": "operator", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
        with KestrelWeb(folder / "web", **servers(broker), tokens=[token]) as web:
            web.broker = broker
            wait_until(lambda: len(table(web, "/queues.csv")) == 6, "the queues to be seen")
            yield web


def table(web, path: str) -> list[dict[str, str]]:
    answer = web.get(path)
    assert answer.status == 200, answer.data
    assert answer.headers["Content-Type"].startswith("text/csv; charset=utf-8")
    assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
    assert answer.data.endswith(b"\r\n")
    assert answer.data.count(b"\n") == answer.data.count(b"\r\n")
    return list(csv.DictReader(io.StringIO(answer.data.decode("utf-8"), newline="")))


def test_every_column_of_the_page_is_there_with_its_unit(site):
    head = list(table(site, "/queues.csv")[0])
    assert head[0] == "key"
    assert [name.partition(" ")[0] for name in head[1:-2]] == list(COLUMNS)
    assert {"age (ms)", "in (1/s)", "bytes (bytes)", "drain (s)"} <= set(head)


def test_rows_are_those_of_the_page_with_children_behind_their_parents(site):
    rows = {row["name"]: row for row in table(site, "/queues.csv")}
    assert list(rows)[-2:] == ["mail", "mail_errors"]
    assert rows["mail_errors"]["parent"] == "mail"
    assert (rows["mail"]["items"], rows["mail"]["bytes (bytes)"], rows["mail"]["parked"]) == ("3", "30", "1")
    assert rows["mail"]["server"] == site.broker.address
    datetime.fromisoformat(rows["mail"]["created"])


def test_any_name_comes_back_and_none_is_a_formula(site):
    rows = {row["key"]: row["name"] for row in table(site, "/queues.csv")}
    assert rows[keys.make(FORMULA.encode())] == f"'{FORMULA}"
    assert rows[keys.make("größe".encode())] == "größe"
    assert rows[keys.make(b"c,\"d'")] == "c,\"d'"


def test_filter_and_order_are_those_of_the_page(site):
    assert [row["name"] for row in table(site, "/queues.csv?f=items%3E1")] == [
        "c,\"d'",
        "mail",
        "mail_errors",
    ]
    assert [row["name"] for row in table(site, "/queues.csv?f=kind%3Derrors")] == ["mail", "mail_errors"]
    names = [row["name"] for row in table(site, "/queues.csv?sort=items&dir=desc")]
    assert names[:3] == ["mail", "mail_errors", "c,\"d'"]


@pytest.mark.parametrize("query", ["f=colour%3E1", "sort=colour", "colour=1", "dir=up"])
def test_what_is_wrong_is_refused_by_name(site, query):
    answer = site.get(f"/queues.csv?{query}")
    assert answer.status == 400
    assert query.partition("=")[0].encode() in answer.data or b"colour" in answer.data
    assert answer.headers["Content-Type"] == "application/json"


def test_the_audit_log(site):
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    for body in (b'{"confirm": "b"}', b'{"confirm": "wrong"}'):
        site.request("POST", "/api/v1/queues/b/flush", body, sent)
    rows = table(site, "/audit.csv")
    assert list(rows[0]) == list(AUDIT_HEAD)
    assert [(row["who"], row["action"], row["name"], row["outcome"]) for row in rows] == [
        ("'=tester", "flush", "b", "refused"),
        ("'=tester", "flush", "b", "done"),
    ]
    assert rows[1]["servers"] == site.broker.address
    assert datetime.fromisoformat(rows[1]["at"]) <= datetime.fromisoformat(rows[1]["ended"])
    assert [row["id"] for row in table(site, "/audit.csv?outcome=done")] == [rows[1]["id"]]


def test_the_history(site):
    rows = table(site, "/queues/mail/history.csv?start=0&end=60")
    assert all(row["items"] == "" for row in rows)
    answer = site.get("/queues/mail/history.csv?hours=0.25")
    head = answer.data.decode().splitlines()[0]
    assert head == "at,items,age_ms,rate_in,rate_out,open,parked,peak_in,peak_out"
    assert site.get("/queues/~xx/history.csv").status == 404


@pytest.mark.parametrize(
    "page",
    [
        "/queues?f=items%3E1&sort=age&dir=desc",
        "/queues/mail",
        "/queues/mail?range=30d",
        "/audit?who=a&outcome=done",
    ],
)
def test_links_on_pages_lead_to_it(site, page):
    links = re.findall(r'href="([^"]+\.csv[^"]*)"', site.get(page).data.decode())
    assert links
    for link in links:
        table(site, html.unescape(link))
