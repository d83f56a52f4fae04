"""A filter whose pattern takes too long is told everywhere in the line that tells of wrong ones."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers

NAME = "a" * 200
SLOW = "name~" + "(a|aa)" * 14 + "b"
SAID = "takes too long to look for; write a simpler pattern"


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    with BrokerProcess(folder / "a") as broker, KestrelWeb(folder / "web", **servers(broker)) as web:
        with broker.connect() as raw:
            raw.set(NAME, b"x")
        wait_until(lambda: NAME.encode() in web.get("/queues").data, "the queue to be seen")
        yield web


def test_the_page_says_so_above_the_whole_table(web):
    answer = web.get(f"/queues?f={quote(SLOW)}&sort=items&dir=desc")
    text = answer.data.decode()
    assert answer.status == 200
    assert SAID in text
    assert 'aria-invalid="true"' in text
    assert NAME in text
    assert "sort=items" in text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/queues.csv?", "application/json"),
        ("/api/v1/queues?", "application/json"),
        ("/metrics?", "application/json"),
        ("/bulk/flush?all=1&", "text/html; charset=utf-8"),
    ],
)
def test_nothing_is_answered_in_part(web, path, kind):
    answer = web.get(f"{path}f={quote(SLOW)}")
    assert (answer.status, answer.headers["Content-Type"]) == (400, kind)
    assert SAID in answer.data.decode()


def test_a_term_that_leaves_few_names_leaves_less_to_search(web):
    answer = web.get(f"/api/v1/queues?f={quote('items>5 ' + SLOW)}")
    assert answer.status == 200
