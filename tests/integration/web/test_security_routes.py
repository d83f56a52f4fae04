"""Every address of kestrel-web, walked: who may call it, and that looking changes nothing."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys
from kestrel_stack.web.access.auth import Auth, Undeclared, declared
from kestrel_stack.web.app import create_app
from kestrel_stack.web.config import ACTIONS, Config
from kestrel_stack.web.polling.poller import Poller
from kestrel_stack.web.site import Site
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_visitor import Visitor, user

PUBLIC = {"health.healthz", "login.login", "login.logout", "pages.static_file"}
QUEUES = (b"shop_mail", b"shop_mail_errors", b"shop_mail+audit", b"shop_mail_retry_10", b"odd<\xff>")
TOKEN = "a token of an operator"
READS = ("GET", "HEAD", "OPTIONS")


def application():
    """The application, without anything behind it."""
    config = Config(servers=(Server("127.0.0.1", 1),), listen="127.0.0.1")
    return create_app(Site(config, Poller(config), None, Auth(config, None), None, None))


@pytest.fixture(scope="module")
def app():
    return application()


@dataclass(frozen=True)
class Call:
    """One way to call an endpoint."""

    endpoint: str
    methods: frozenset[str]
    path: str


def calls(app, broker) -> list[Call]:
    """Every rule with every argument that it takes here."""
    arguments = {
        "key": [*(keys.make(name) for name in QUEUES), "no_such_queue"],
        "server": [broker.address],
        "action": [*ACTIONS, "drop"],
        "task": ["1", "AAAAAAAAAAAAAAAA"],
        "filename": ["kestrel-web.css"],
        "name": ["kestrel-web.css"],
    }
    found = []
    for rule in app.url_map.iter_rules():
        assert rule.arguments <= arguments.keys(), f"{rule}: say here what {rule.arguments} may be"
        names = sorted(rule.arguments)
        for values in itertools.product(*(arguments[name] for name in names)):
            try:
                built = rule.build(dict(zip(names, values, strict=True)))
            except ValueError:  # not one of the actions that this rule is for
                continue
            assert built is not None, rule
            found.append(Call(rule.endpoint, frozenset(rule.methods), built[1]))
    return list(dict.fromkeys(found))


def changing(app, broker):
    """The calls that would change something, but for logging in and out."""
    return [call for call in calls(app, broker) if call.endpoint not in PUBLIC and call.methods - set(READS)]


def state(broker, web) -> dict[str, object]:
    """What an action would change, on the broker and in the audit log."""
    volatile = ("_age", "_age_msec", "_waiters")
    lines = broker.raw(b"stats\r\n").decode("latin-1").split("\r\n")
    stats = dict(line.split(" ", 2)[1:] for line in lines if line.startswith("STAT "))
    kept = {
        name: value
        for name, value in stats.items()
        if name.startswith("queue_") and not name.endswith(volatile)
    }
    totals = {
        name: stats[name]
        for name in ("curr_items", "total_items", "cmd_set", "queue_creates", "queue_deletes")
    }
    audit = web.get("/audit.csv", {"Authorization": f"Bearer {TOKEN}"}).data
    return {
        **kept,
        **totals,
        "status": broker.raw(b"status\r\n"),
        "pid": broker.process.poll(),
        "audit": audit,
    }


def fill(broker) -> None:
    with broker.connect() as client:
        for name in QUEUES:
            for body in (b"one", b"two"):
                client.send(b"set %b 0 0 %d\r\n%b\r\n" % (name, len(body), body))
                client.expect(b"STORED\r\n")


def site(broker, folder: Path, **more) -> KestrelWeb:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return KestrelWeb(
        folder,
        **servers(broker),
        users=[user("ann", "operator"), user("bob")],
        tokens=[{"name": "program", "sha256": digest, "role": "operator"}],
        actions=list(ACTIONS),
        **more,
    )


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as running:
        fill(running)
        yield running


@pytest.fixture(scope="module")
def web(broker, tmp_path_factory):
    with site(broker, tmp_path_factory.mktemp("web")) as running:
        asking = {"Authorization": f"Bearer {TOKEN}"}
        wait_until(
            lambda: running.get("/api/v1/queues/shop_mail", asking).status == 200, "the queues to be known"
        )
        yield running


@pytest.fixture(scope="module")
def read_only(broker, tmp_path_factory):
    with site(broker, tmp_path_factory.mktemp("read_only"), read_only=True) as running:
        yield running


class TestDefaultDeny:
    def test_every_endpoint_says_who_may_call_it(self, app):
        roles = {name: declared(view) for name, view in app.view_functions.items()}
        assert not [name for name, role in roles.items() if role is Undeclared]
        assert {name for name, role in roles.items() if role is None} == PUBLIC

    def test_whatever_changes_something_is_for_operators(self, app):
        for rule in app.url_map.iter_rules():
            if rule.methods - set(READS) and rule.endpoint not in PUBLIC:
                assert declared(app.view_functions[rule.endpoint]) == "operator", rule

    def test_an_endpoint_that_says_nothing_is_nobodys(self):
        app = application()
        app.add_url_rule("/forgotten", "forgotten", lambda: "a secret", methods=["GET", "POST"])
        client = app.test_client()
        own = {"Host": "localhost", "Origin": "http://localhost"}
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            answer = client.open("/forgotten", method=method, headers=own)
            assert answer.status_code == (405 if method == "OPTIONS" else 403)
            assert b"secret" not in answer.data

    def test_nobody_gets_in_anywhere_without_a_login(self, app, broker, web):
        for call in calls(app, broker):
            if call.endpoint in PUBLIC:
                continue
            for method in sorted(call.methods):
                visitor = Visitor(web)
                answer = visitor.send(method, call.path, headers={"Origin": visitor.origin})
                assert answer.status in (303, 401), (method, call.path, answer.status)
                if answer.status == 303:
                    assert answer.headers["Location"].startswith("/login?next=")
                assert b"shop_mail" not in answer.data.replace(call.path.encode(), b""), call.path

    def test_a_viewer_changes_nothing(self, app, broker, web):
        before = state(broker, web)
        bob = Visitor(web).logged_in("bob")
        token = bob.token()
        for call in changing(app, broker):
            answer = bob.post(call.path, {"confirm": "shop_mail", "data": "x"}, token)
            assert answer.status == 403, (call.path, answer.status)
        assert state(broker, web) == before


class TestLookingChangesNothing:
    def test_get_and_head_and_options(self, app, broker, web):
        """Every route, by an operator, with whatever would confirm an action."""
        before = state(broker, web)
        ann = Visitor(web).logged_in("ann")
        token = ann.token()
        sure = {"confirm": "shop_mail", "csrf_token": token, "_method": "POST", "data": "x", "body": "x"}
        chosen = {"key": "shop_mail", "server": broker.address, "f": "items>0", "as": "text", "sort": "items"}
        seen = set()
        for call in calls(app, broker):
            for method in sorted(call.methods & set(READS)):
                for query in ("", "?" + urlencode(sure), "?" + urlencode(chosen)):
                    answer = ann.send(
                        method,
                        call.path + query,
                        headers={
                            "X-HTTP-Method-Override": "POST",
                            "X-CSRFToken": token,
                            "Origin": ann.origin,
                        },
                    )
                    assert answer.status < 500, (method, call.path, answer.status, answer.data)
                    seen.add((call.endpoint, answer.status))
        assert state(broker, web) == before
        # Most of them did answer: the walk saw what there is.
        endpoints = {call.endpoint for call in calls(app, broker) if "GET" in call.methods}
        answered = {endpoint for endpoint, status in seen if status in (200, 303, 304)}
        assert endpoints - answered <= {"act.task", "api.task"}


class TestChanges:
    def test_nothing_is_done_without_a_token_or_from_elsewhere(self, app, broker, web):
        before = state(broker, web)
        ann = Visitor(web).logged_in("ann")
        token = ann.token()
        for call in changing(app, broker):
            fields = {"confirm": "shop_mail", "data": "x", "body": "x"}
            assert ann.post(call.path, fields, token="").status == 400, call.path
            assert ann.post(call.path, fields, token="made-up").status == 400, call.path
            assert ann.post(call.path, fields, token, Origin="https://evil.example").status == 403, call.path
            assert ann.post(call.path, fields, token, Sec_Fetch_Site="cross-site").status == 403, call.path
        assert state(broker, web) == before

    def test_read_only_is_the_servers_business(self, app, broker, read_only):
        before = state(broker, read_only)
        ann = Visitor(read_only).logged_in("ann")
        token = ann.token()
        for call in changing(app, broker):
            answer = ann.post(call.path, {"confirm": "shop_mail", "data": "x"}, token)
            assert answer.status == 403, (call.path, answer.status)
            assert b"read-only" in answer.data
            program = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            answer = read_only.request("POST", call.path, b'{"confirm": "shop_mail"}', program)
            assert answer.status == 403, (call.path, answer.status)
        assert state(broker, read_only) == before
        assert ann.post("/logout", token=token).status == 303

    def test_the_same_requests_do_something_where_they_may(self, broker, web):
        """What the tests above refuse is no request that could not have worked."""
        program = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        before = broker.stats("shop_mail_retry_10")["items"]
        assert before == 2
        answer = web.request(
            "POST", "/api/v1/queues/shop_mail_retry_10/flush", b'{"confirm": "shop_mail_retry_10"}', program
        )
        assert answer.status == 200, answer.data
        assert broker.stats("shop_mail_retry_10")["items"] == 0
