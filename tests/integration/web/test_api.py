"""The JSON API of a real kestrel-web with real brokers: what it answers, what it refuses, what it does."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator

import kestrel_stack.web
from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.web import bodies, keys, service
from kestrel_stack.web.access.auth import declared
from kestrel_stack.web.app import create_app
from kestrel_stack.web.loading import load
from kestrel_stack.web.model import KINDS, QueueNumbers, ServerNumbers
from kestrel_stack.web.record.audit import OUTCOMES
from kestrel_stack.web.tables.columns import COLUMNS
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_visitor import Visitor, user

DESCRIPTION = json.loads((Path(kestrel_stack.web.__file__).parent / "openapi.json").read_text())
SCHEMAS = DESCRIPTION["components"]["schemas"]
API = "/api/v1"
TOKENS = {name: f"{name}-token-{'0123456789' * 4}" for name in ("operator", "viewer", "metrics")}


def tokens() -> list[dict]:
    """The key `tokens` of a configuration."""
    return [
        {"name": name, "role": name, "sha256": hashlib.sha256(token.encode()).hexdigest()}
        for name, token in TOKENS.items()
    ]


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two brokers with some queues, and a kestrel-web at which everybody has to say who they are."""
    folder = tmp_path_factory.mktemp("api")
    with BrokerProcess(folder / "a") as a, BrokerProcess(folder / "b") as b:
        settings = folder / "shop.json"
        queues = [{"name": "mail", "retry_delays": [10], "alert": {"backlog": 3, "age": "60s"}}]
        shop = {"app": "shop", "namespace": "shop", "environment": "test", "servers": [a.address, b.address]}
        settings.write_text(json.dumps({**shop, "queues": queues}))
        for broker, queue, count in (
            (a, "shop_mail", 2),
            (b, "shop_mail", 3),
            (a, "shop_mail_retry_10", 1),
            (a, "plain", 1),
            (b, "f+copy", 1),
            (b, "größe", 1),
        ):
            with broker.connect() as raw:
                for _ in range(count):
                    raw.set(queue, b"x" * 10)
        config = {
            **servers(a, b),
            "settings": [str(settings)],
            "tokens": tokens(),
            "users": [user("ada", "operator")],
        }
        with KestrelWeb(
            folder / "web", actions=["flush", "delete", "enqueue", "requeue", "shutdown"], **config
        ) as web:
            web.brokers = a, b
            wait_until(lambda: look(web, "/queues")["total"] == 4, "both servers to be polled")
            yield web


def call(web, method: str, path: str, body: object = None, name: str | None = "operator", **headers: str):
    """One request; returns status and document."""
    sent = {
        **(bearer(name) if name else {}),
        **{key.replace("_", "-"): value for key, value in headers.items()},
    }
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    if data is not None:
        sent.setdefault("Content-Type", "application/json")
    answer = web.request(method, API + quote(path, safe="/?&=~:%+"), data, sent)
    return answer.status, json.loads(answer.data)


def look(web, path: str):
    """What a viewer gets, held to its description."""
    status, document = call(web, "GET", path, name="viewer")
    assert status == 200, document
    check(path.partition("?")[0], document)
    return document


def act(web, path: str, body: dict, name: str = "operator"):
    status, document = call(web, "POST", path, body, name)
    if status < 300:
        check(path, document, "post", str(status))
    return status, document


def check(path: str, document: object, method: str = "get", status: str = "200") -> None:
    """Hold an answer to the description, field by field."""
    operation = DESCRIPTION["paths"][_described(path)][method]
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": DESCRIPTION["components"]})
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)] == []


def _described(path: str) -> str:
    for known in DESCRIPTION["paths"]:
        parts = zip(known.split("/"), path.split("/"), strict=False)
        if known.count("/") == path.count("/") and all(a == b or a.startswith("{") for a, b in parts):
            return known
    raise AssertionError(f"{path} is not described")


def refused(found, status: int, code: str, *words: str) -> None:
    """Hold an answer to the one shape of all errors."""
    got, document = found
    assert got == status, document
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message"}
    assert document["error"]["code"] == code
    for word in words:
        assert word in document["error"]["message"]


# The description


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The application without anything that runs."""
    state = tmp_path_factory.mktemp("state")
    config = load(["--servers", "127.0.0.1:1", "--state", str(state)], {})
    parts = service.build(config)
    yield create_app(parts)
    parts.store.close()


def test_every_address_is_described_and_every_description_is_an_address(app):
    answered = set()
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith(API):
            continue
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            assert declared(app.view_functions[rule.endpoint]) == (
                "operator" if method == "POST" else "viewer"
            )
            for path in _spelled_out(rule.rule.removeprefix(API)):
                answered.add((method.lower(), path))
    described = {(method, path) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert answered == described


def _spelled_out(rule: str) -> list[str]:
    """``/x/<key>/<any(a,b):action>`` as the addresses ``/x/{key}/a`` and ``/x/{key}/b``."""
    parts = [[]]
    for part in rule.strip("/").split("/"):
        if part.startswith("<any("):
            choices = part[len("<any(") : part.index(")")].split(",")
        else:
            choices = [part.replace("<", "{").replace(">", "}")]
        parts = [[*before, choice] for before in parts for choice in choices]
    return ["/" + "/".join(each) for each in parts]


@pytest.mark.parametrize("place", ["queues", "servers"])
def test_bodies_have_the_keys_that_are_described(place):
    known = bodies.OF_QUEUES if place == "queues" else bodies.OF_SERVERS
    for action, body in known.items():
        parameter = "key" if place == "queues" else "server"
        operation = DESCRIPTION["paths"][f"/{place}/{{{parameter}}}/{action}"]["post"]
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        kinds = SCHEMAS[name].get("oneOf", [SCHEMAS[name]])
        assert set().union(*(kind["properties"] for kind in kinds)) == set(body)
        assert all(kind["additionalProperties"] is False for kind in kinds)
        needed = set.intersection(*(set(kind["required"]) for kind in kinds))
        assert needed == set(bodies.REQUIRED.get(action, ()))


def test_the_description_names_what_there_is():
    parameters = {
        parameter["name"]: parameter["schema"]
        for parameter in DESCRIPTION["paths"]["/queues"]["get"]["parameters"]
    }
    assert parameters["sort"]["enum"] == list(COLUMNS)
    assert SCHEMAS["AuditEntry"]["properties"]["outcome"]["enum"] == list(OUTCOMES)
    assert SCHEMAS["Queue"]["properties"]["kind"]["enum"] == list(KINDS)
    for schema, model in (("QueueNumbers", QueueNumbers), ("ServerNumbers", ServerNumbers)):
        assert list(SCHEMAS[schema]["properties"]) == [field.name for field in fields(model)]


def test_every_field_says_what_it_is():
    for name, schema in SCHEMAS.items():
        assert schema["description"], name
        kinds = schema.get("oneOf", [schema])
        for field, said in (pair for kind in kinds for pair in kind["properties"].items()):
            assert "$ref" in said or "anyOf" in said or said.get("description"), f"{name}.{field}"
    for path, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            for parameter in operation.get("parameters", []):
                assert "$ref" in parameter or parameter["description"], path


def test_the_description_is_served_as_it_stands(site):
    assert look(site, "/openapi.json") == DESCRIPTION


# Looking


def test_overview(site):
    found = look(site, "/overview")
    assert found["servers"] == {"configured": 2, "reachable": 2, "stale": 0}
    assert found["queues"] == 4
    assert set(found["actions"]) == {"flush", "delete", "enqueue", "requeue", "shutdown"}
    assert found["database_trouble"] is None


def test_queues_have_key_and_name_numbers_over_all_servers_and_children(site):
    found = {queue["key"]: queue for queue in look(site, "/queues")["queues"]}
    assert set(found) == {"shop_mail", "plain", "f~2Bcopy", keys.make("größe".encode())}
    mail = found["shop_mail"]
    assert (mail["numbers"]["items"], mail["delayed"], mail["app"]) == (5, 1, "shop")
    assert mail["limits"] == {"backlog": 3, "age_s": 60}
    assert [child["key"] for child in mail["children"]] == ["shop_mail_retry_10"]
    assert mail["servers"] == [broker.address for broker in site.brokers]
    assert {found[key]["name"] for key in found} == {"shop_mail", "plain", "f+copy", "größe"}


def test_filter_and_order_are_those_of_the_page(site):
    def names(query):
        return [queue["name"] for queue in look(site, f"/queues?{query}")["queues"]]

    assert names("f=items>1") == ["shop_mail"]
    assert names("f=kind=delay") == ["shop_mail"]  # for the sake of its child
    assert names("f=name~^p") == ["plain"]
    assert names("sort=items&dir=desc")[0] == "shop_mail"
    assert names("sort=bytes&dir=asc")[-1] == "shop_mail"


def test_a_long_list_comes_in_pages(site):
    whole = [queue["key"] for queue in look(site, "/queues")["queues"]]
    offset, paged = 0, []
    while offset is not None:
        page = look(site, f"/queues?limit=3&offset={offset}")
        assert (page["total"], page["limit"], page["offset"]) == (4, 3, offset)
        paged += [queue["key"] for queue in page["queues"]]
        offset = page["next_offset"]
    assert paged == whole
    assert look(site, f"/queues?offset={2**53 - 1}")["queues"] == []


def test_a_queue_in_full_says_where_its_items_are(site):
    found = look(site, "/queues/shop_mail")["queue"]
    by_server = {each["server"]: each["numbers"]["items"] for each in found["by_server"]}
    assert by_server == {site.brokers[0].address: 2, site.brokers[1].address: 3}


def test_alerts_have_value_and_limit(site):
    wait_until(lambda: look(site, "/alerts")["alerts"], "the backlog of five to be noticed")
    (alert,) = [each for each in look(site, "/alerts")["alerts"] if each["kind"] == "backlog"]
    assert (alert["subject"], alert["name"], alert["value"], alert["limit"]) == (
        "shop_mail",
        "shop_mail",
        5,
        3,
    )


def test_servers(site):
    found = look(site, "/servers")["servers"]
    assert [server["address"] for server in found] == [broker.address for broker in site.brokers]
    one = look(site, f"/servers/{site.brokers[0].address}")["server"]
    assert (one["status"], one["reachable"], one["stale"], one["source"]) == ("UP", True, False, "admin")
    assert one["numbers"]["curr_items"] == 4


def test_the_head_of_a_queue_can_be_seen_and_stays(site):
    b = site.brokers[1]
    found = look(site, f"/queues/f~2Bcopy/peek?server={b.address}")
    assert (found["name"], found["size"], found["body"], found["body_b64"]) == ("f+copy", 10, "x" * 10, None)
    assert look(site, "/queues/f~2Bcopy/peek")["server"] == b.address
    assert b.stats("f+copy")["items"] == 1


def test_the_history_of_a_queue_has_samples_at_equal_distances(site):
    found = look(site, "/queues/plain/history?start=1&end=61&points=3")
    assert (found["key"], found["name"], found["start"], found["end"]) == ("plain", "plain", 1, 61)
    assert {one["items"] for one in found["samples"]} <= {None}
    assert len(look(site, "/queues/plain/history?points=7")["samples"]) <= 8


@pytest.mark.long
def test_the_history_of_a_queue_has_its_backlog(site):
    def items():
        return [one["items"] for one in look(site, "/queues/plain/history")["samples"] if one["items"]]

    wait_until(items, "a sample to be kept, which takes ten seconds")
    assert set(items()) == {1}


def test_who_has_seen_it_already_is_told_so(site):
    config = {**site.config, "port": 0, "interval_s": 60, "state": str(site.folder / "slow-state")}
    with KestrelWeb(site.folder / "slow", **config) as web:
        wait_until(lambda: look(web, "/overview")["servers"]["stale"] == 0, "the first polls")
        for path in (
            "/overview",
            "/queues?f=items>1",
            "/queues/plain",
            "/servers",
            "/alerts",
            "/openapi.json",
            "/audit",
        ):
            # A view may still be made of what the last of two servers said.
            wait_until(lambda path=path: _seen_again(web, path), f"{path} to stay as it is")


def _seen_again(web, path: str) -> bool:
    first = web.get(API + path.replace(">", "%3E"), bearer("viewer"))
    again = web.get(
        API + path.replace(">", "%3E"), {**bearer("viewer"), "If-None-Match": first.headers["ETag"]}
    )
    assert first.status == 200
    if again.status == 304:
        assert again.data == b""
        assert again.headers["ETag"] == first.headers["ETag"]
    return again.status == 304


def test_an_etag_of_another_process_is_not_ours(site):
    assert site.get(f"{API}/overview", {**bearer("viewer"), "If-None-Match": 'W/"0-1"'}).status == 200


# What is refused, in one shape


@pytest.mark.parametrize(
    ("path", "code", "word"),
    [
        ("/queues?colour=red", "unknown_parameter", "'colour'"),
        ("/overview?x=1", "unknown_parameter", "'x'"),
        ("/queues?limit=0", "bad_parameter", "limit"),
        ("/queues?limit=1&limit=2", "bad_parameter", "limit"),
        ("/queues?sort=colour", "bad_parameter", "sort"),
        ("/queues?f=colour>1", "bad_filter", "colour"),
        ("/queues?f=name~(a{99}){99}", "bad_filter", "name~"),
        (f"/queues?offset={'9' * 40}", "bad_parameter", "offset"),
        (f"/audit?before={'9' * 40}", "bad_parameter", "before"),
        ("/audit?outcome=well", "bad_parameter", "outcome"),
        ("/queues/plain/history?start=5&end=4", "bad_parameter", "start"),
        ("/queues/plain/history?start=1&hours=1", "bad_parameter", "hours"),
        ("/queues/plain/history?start=nan", "bad_parameter", "start"),
        ("/queues/plain/history?points=100000", "bad_parameter", "points"),
    ],
)
def test_parameters_are_refused_by_name(site, path, code, word):
    refused(call(site, "GET", path), 400, code, word)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/queues/nobody_has_this", "no_queue"),
        ("/queues/not a key", "no_queue"),
        ("/queues/~2b", "no_queue"),
        ("/queues/nobody_has_this/peek", "no_queue"),
        ("/queues/plain/peek?server=example.org:22133", "no_server"),
        ("/servers/example.org:22133", "no_server"),
        ("/tasks/none", "no_task"),
        ("/nothing", "not_found"),
        ("/", "not_found"),
    ],
)
def test_what_is_not_there(site, path, code):
    refused(call(site, "GET", path), 404, code)


def test_a_peek_makes_no_queue(site):
    call(site, "GET", "/queues/nobody_has_this/peek")
    assert "nobody_has_this" not in site.brokers[0].raw(b"stats\r\n").decode("latin-1")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
def test_another_method(site, method):
    answer = site.request(
        method, f"{API}/queues", b"{}", {**bearer("operator"), "Content-Type": "application/json"}
    )
    refused((answer.status, json.loads(answer.data)), 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


def test_nobody_in_particular(site):
    answer = site.get(f"{API}/queues")
    refused((answer.status, json.loads(answer.data)), 401, "login_needed")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    wrong = site.get(f"{API}/queues", {"Authorization": "Bearer wrong"})
    refused((wrong.status, json.loads(wrong.data)), 401, "login_needed")


def test_a_role_that_is_not_enough(site):
    refused(call(site, "GET", "/queues", name="metrics"), 403, "forbidden", "viewer")
    refused(
        call(site, "POST", "/queues/plain/flush", {"confirm": "plain"}, "viewer"),
        403,
        "forbidden",
        "operator",
    )
    assert site.brokers[0].stats("plain")["items"] == 1


def test_a_body_that_is_no_json(site):
    plain = "/queues/plain/flush"
    refused(
        call(site, "POST", plain, b"confirm=plain", Content_Type="application/x-www-form-urlencoded"),
        415,
        "not_json",
    )
    refused(call(site, "POST", plain, b"{"), 400, "bad_json")
    refused(call(site, "POST", plain, {"confirm": "plain", "force": True}), 400, "unknown_key", "'force'")
    refused(call(site, "POST", plain, {}), 400, "missing_key", "confirm")
    refused(call(site, "POST", plain, b'{"confirm": "' + b"x" * 1_500_000 + b'"}'), 413, "too_large")
    assert site.brokers[0].stats("plain")["items"] == 1


def test_what_is_switched_off(site):
    address = site.brokers[0].address
    refused(call(site, "POST", f"/servers/{address}/reload", {}), 403, "forbidden", "reload")
    refused(
        call(site, "POST", f"/servers/{address}/shutdown", {"confirm": "other"}), 409, "conflict", address
    )
    refused(call(site, "POST", "/servers/example.org:1/reload", {}), 404, "no_server")


def test_a_wrong_host(site):
    answer = site.get(f"{API}/queues", {**bearer("viewer"), "Host": "example.org"})
    refused((answer.status, json.loads(answer.data)), 400, "wrong_host", "example.org")


def test_a_server_that_does_not_answer(site, tmp_path):
    with BrokerProcess(tmp_path) as broker:
        with broker.connect() as raw:
            raw.set("q", b"x")
        with KestrelWeb(tmp_path / "web", **servers(broker), read_only=True) as web:
            wait_until(lambda: call(web, "GET", "/queues/q", name=None)[0] == 200, "the queue to be seen")
            refused(
                call(web, "POST", "/queues/q/flush", {"confirm": "q"}, None, Origin=web.url), 403, "forbidden"
            )
            broker.kill()
            refused(call(web, "GET", "/queues/q/peek", name=None), 503, "unavailable", broker.address)


# Acting


def test_an_action_needs_the_name_and_is_in_the_audit_log(site):
    a = site.brokers[0]
    with a.connect() as raw:
        raw.set("to_flush", b"x")
    wait_until(lambda: call(site, "GET", "/queues/to_flush")[0] == 200, "the queue to be seen")
    refused(act(site, "/queues/to_flush/flush", {"confirm": "other"}), 409, "conflict", "to_flush")
    refused(act(site, "/queues/to_flush/flush", {"confirm": "to_flush", "seen": 500}), 409, "conflict", "500")
    refused(
        act(site, "/queues/to_flush/flush", {"confirm": "to_flush", "servers": ["x:1"]}),
        404,
        "not_found",
        "x:1",
    )
    assert a.stats("to_flush")["items"] == 1
    status, document = act(site, "/queues/to_flush/flush", {"confirm": "to_flush", "seen": 1})
    assert (status, document["task"]["state"]) == (200, "done"), document
    assert a.stats("to_flush")["items"] == 0
    entries = look(site, "/audit?target=to_flush")["entries"]
    assert [entry["outcome"] for entry in entries] == ["done", "refused", "refused", "refused"]
    assert (entries[0]["who"], entries[0]["role"], entries[0]["name"]) == ("operator", "operator", "to_flush")
    pages = [look(site, "/audit?target=to_flush&limit=3")]
    pages.append(look(site, f"/audit?target=to_flush&limit=3&before={pages[0]['next_before']}"))
    assert [entry for page in pages for entry in page["entries"]] == entries
    assert pages[1]["next_before"] is None


def test_an_item_and_a_job_can_be_enqueued(site):
    status, document = act(
        site, "/queues/plain/enqueue", {"body": "hällo", "server": site.brokers[1].address}
    )
    assert (status, document["task"]["state"]) == (200, "done"), document
    assert site.brokers[1].drain("plain") == ["hällo".encode()]
    before = len(site.brokers[0].drain("shop_mail")) + len(site.brokers[1].drain("shop_mail"))
    assert before
    status, document = act(
        site, "/queues/shop_mail/enqueue", {"job": "Hello", "tenant": "acme", "data": {"n": 2**60}}
    )
    assert status == 200, document
    (item,) = [*site.brokers[0].drain("shop_mail"), *site.brokers[1].drain("shop_mail")]
    envelope = Envelope.decode(item)
    assert (envelope.job, envelope.tenant, envelope.data) == ("Hello", "acme", {"n": 2**60})
    refused(act(site, "/queues/shop_mail/enqueue", {"body": "x"}), 400, "bad_parameter", "body")


def test_parked_jobs_go_back_in_a_task(site):
    a = site.brokers[0]
    job = Envelope("Hello", "acme", {})
    with a.connect() as raw:
        raw.set("back_errors", ParkedRecord("failed", job.encode(), attempts=1).encode())
    refused(act(site, "/queues/back/requeue", {}), 400, "bad_parameter", "all")
    status, document = act(site, "/queues/back/requeue", {"all": True})
    assert status in (200, 202), document
    task = document["task"]["id"]
    wait_until(lambda: look(site, f"/tasks/{task}")["task"]["state"] != "running", "the task to be over")
    assert look(site, f"/tasks/{task}")["task"]["state"] == "done"
    assert [Envelope.decode(item).id for item in a.drain("back") + site.brokers[1].drain("back")] == [job.id]


def test_a_session_acts_with_its_token_only(site):
    with site.brokers[0].connect() as raw:
        raw.set("by_hand", b"x")
    wait_until(lambda: call(site, "GET", "/queues/by_hand")[0] == 200, "the queue to be seen")
    ada = Visitor(site).logged_in("ada")
    sent = {"Content-Type": "application/json", "Origin": ada.origin}
    path, body = f"{API}/queues/by_hand/flush", b'{"confirm": "by_hand"}'
    answer = ada.send("POST", path, body, sent)
    refused((answer.status, json.loads(answer.data)), 400, "bad_request")
    answer = ada.send(
        "POST", path, body, {**sent, "X-CSRFToken": ada.token(), "Origin": "http://example.org"}
    )
    refused((answer.status, json.loads(answer.data)), 403, "forbidden")
    assert site.brokers[0].stats("by_hand")["items"] == 1
    answer = ada.send("POST", path, body, {**sent, "X-CSRFToken": ada.token()})
    assert answer.status == 200, answer.data
    assert look(site, "/audit?target=by_hand")["entries"][0]["who"] == "ada"


def test_of_two_at_once_each_gets_a_clear_answer(site):
    with site.brokers[0].connect() as raw:
        raw.set("both", b"x")
    wait_until(lambda: call(site, "GET", "/queues/both")[0] == 200, "the queue to be seen")
    found = []

    def flush():
        found.append(act(site, "/queues/both/flush", {"confirm": "both"}))

    threads = [threading.Thread(target=flush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in found} <= {200, 409}
    assert 200 in {status for status, _ in found}
    assert site.brokers[0].stats("both")["items"] == 0


def test_below_a_prefix(site, tmp_path):
    config = {**servers(*site.brokers), "tokens": tokens(), "prefix": "/queues"}
    with KestrelWeb(tmp_path, **config) as web:
        answer = web.get("/queues/api/v1/queues", bearer("viewer"))
        assert answer.status == 200
        described = json.loads(web.get("/queues/api/v1/openapi.json", bearer("viewer")).data)
        assert described["servers"][0]["url"] == "/queues/api/v1"
        assert described["paths"] == DESCRIPTION["paths"]
        missing = web.get("/queues/api/v1/nothing", bearer("viewer"))
        refused((missing.status, json.loads(missing.data)), 404, "not_found")
