"""kestrel-web and servers that hang, lie or are full of odd things: a server's fault is a row of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from contextlib import ExitStack
from html.parser import HTMLParser

import pytest

from kestrel_stack.queue import Envelope
from kestrel_stack.web import keys
from support import forged_server as forged
from support.broker import BrokerProcess, wait_until
from support.forged_server import ForgedServer
from support.kestrel_web import KestrelWeb, servers
from support.web_forms import form, submit
from support.web_visitor import Visitor


def api(web: KestrelWeb, path: str) -> dict:
    """What the API says; it must be JSON that every reader takes."""
    answer = web.get(f"/api/v1/{path}")
    assert answer.status == 200, (path, answer.status, answer.data[:300])
    return strict(answer.data)


def strict(data: bytes) -> dict:
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(data, parse_constant=refuse)


def server(web: KestrelWeb, address: str) -> dict:
    return next(one for one in api(web, "servers")["servers"] if one["address"] == address)


def no_defect(web: KestrelWeb) -> None:
    """Nothing went wrong that nobody had foreseen."""
    assert "Traceback" not in web.log
    assert "cannot be read:" not in web.log


PAGES = ("/", "/queues", "/servers", "/audit", "/queues.csv", "/audit.csv", "/metrics", "/healthz")
"""Without those of one queue or server."""


def walk(web: KestrelWeb, *more: str) -> dict[str, bytes]:
    """Ask for every page; each must be answered."""
    found = {}
    for path in (*PAGES, *more):
        answer = web.get(path)
        # Health is bad while a server is away.
        fine = (200, 503) if path == "/healthz" else (200,)
        assert answer.status in fine, (path, answer.status, answer.data[:500])
        assert answer.data
        found[path] = answer.data
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three brokers and a kestrel-web that polls them."""
    with ExitStack() as stack:
        brokers = [stack.enter_context(BrokerProcess(tmp_path_factory.mktemp(name))) for name in "abc"]
        for broker in brokers:
            with broker.connect() as client:
                client.set("mail", b"one")
        folder = tmp_path_factory.mktemp("web")
        web = stack.enter_context(KestrelWeb(folder, **servers(*brokers), timeout_s=3.0, stale_after_s=5.0))
        wait_until(lambda: all(server(web, one.address)["reachable"] for one in brokers), "all three")
        yield web, brokers


class TestOneThatHangs:
    def test_the_others_rows_stay_fresh_while_one_of_three_is_stopped(self, three):
        web, brokers = three
        hanging = brokers[1]
        os.kill(hanging.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: server(web, hanging.address)["stale"], "it to be stale")
            then = {one.address: server(web, one.address) for one in brokers}
            with brokers[0].connect() as client:
                client.set("mail", b"two")
            wait_until(
                lambda: api(web, "queues/mail")["queue"]["numbers"]["items"] == 4,
                "what was put on another one",
            )
            for other in (brokers[0], brokers[2]):
                wait_until(
                    lambda other=other: (
                        server(web, other.address)["polled_at"] > then[other.address]["polled_at"]
                    ),
                    "the next poll of another one",
                )
                now = server(web, other.address)
                assert (now["reachable"], now["stale"], now["error"]) == (True, False, None)
            row = server(web, hanging.address)
            assert (row["reachable"], row["error"]) == (False, "no answer within 3 s")
            assert row["since"] == then[hanging.address]["since"]
            assert row["polled_at"] == then[hanging.address]["polled_at"], "its last numbers, with their time"
            assert api(web, "queues/mail")["queue"]["stale"], "a sum in which one part is old"
            pages = walk(web, "/queues/mail", f"/servers/{hanging.address}")
            for path in ("/servers", f"/servers/{hanging.address}"):
                assert b"no answer within 3 s" in pages[path], path
            assert f'server="{hanging.address}"'.encode() in pages["/metrics"]
        finally:
            os.kill(hanging.pid, signal.SIGCONT)
        wait_until(lambda: server(web, hanging.address)["reachable"], "it to be back")
        wait_until(lambda: not api(web, "queues/mail")["queue"]["stale"], "its numbers")
        no_defect(web)

    def test_one_that_is_stopped_is_refused_as_a_target_in_bounded_time_and_accounted_for(self, three):
        web, brokers = three
        os.kill(brokers[1].pid, signal.SIGSTOP)
        try:
            wait_until(lambda: server(web, brokers[1].address)["stale"], "it to be stale")
            # Confirming shows what is known, whatever one server does not say.
            page = web.get("/queues/mail/do/flush")
            assert page.status == 200
            assert brokers[1].address.encode() in page.data
            head = web.get(f"/api/v1/queues/mail/peek?server={brokers[1].address}")
            assert head.status == 503
            assert brokers[1].address in strict(head.data)["error"]["message"]
        finally:
            os.kill(brokers[1].pid, signal.SIGCONT)
        wait_until(lambda: server(web, brokers[1].address)["reachable"], "it to be back")
        no_defect(web)


STRANGERS = {
    "silent": (forged.silent, "no answer within 3 s"),
    "drips": (forged.for_ever(b"x", pause=0.02), "no answer within 3 s"),
    "drips stats": (forged.for_ever(b"STAT a 1\r\n", forged.GREETING, pause=0.02), "no answer within 3 s"),
    "closes": (lambda one: None, "connection"),
    "half an answer": (lambda one: (one.recv(99), one.sendall(b"VERSION 2.4"))[1], "closed the connection"),
    "binary": (forged.says(bytes(range(256)) * 40), "it is no Kestrel"),
    "HTML": (forged.web(b"<script>alert(1)</script>"), "'HTTP/1.1 200 OK' to `version`: it is no Kestrel"),
    "a mail server": (forged.says(b"220 mail ESMTP\r\n", again=True), "'220 mail ESMTP' to `version`"),
    "memcached": (forged.says(b"VERSION 1.6.21\r\nERROR\r\n"), "'ERROR' to `status`: it is no Kestrel 2.4"),
    "an endless line": (forged.for_ever(b"V" * 65536), "its answer has no end within 65536 bytes"),
    "tags": (forged.says(b"<img src=x onerror=alert(1)>\x1b[2J\r\n"), "it is no Kestrel"),
}


def test_what_is_no_kestrel_is_a_row_with_its_reason_and_harms_no_other(tmp_path):
    with ExitStack() as stack:
        broker = stack.enter_context(BrokerProcess(tmp_path))
        with broker.connect() as client:
            client.set("mail", b"one")
        strangers = {name: stack.enter_context(ForgedServer(talk)) for name, (talk, _) in STRANGERS.items()}
        config = {
            "servers": [broker.address, *(one.address for one in strangers.values())],
            "admin_ports": {broker.address: broker.admin_port},
            "admin_port": None,
        }
        web = stack.enter_context(KestrelWeb(tmp_path / "web", timeout_s=3.0, **config))
        wait_until(lambda: server(web, broker.address)["reachable"], "the broker")
        for name, (_, why) in STRANGERS.items():
            address = strangers[name].address
            wait_until(lambda address=address: server(web, address)["error"], name)
            row = server(web, address)
            assert not row["reachable"], name
            assert why in row["error"], (name, row["error"])
            assert "\n" not in row["error"]
            assert row["error"].isprintable(), name
            page = web.get(f"/servers/{address}")
            assert page.status == 200
            assert b"<script>alert" not in page.data
            assert b"<img src=x" not in page.data
        then = server(web, broker.address)["polled_at"]
        wait_until(lambda: server(web, broker.address)["polled_at"] > then, "the next poll of the broker")
        pages = walk(web)
        for path, data in pages.items():
            assert b"<img src=x" not in data, path
            assert b"\x1b" not in data, path
        no_defect(web)
        assert memory(web) < 200_000_000


def memory(web: KestrelWeb) -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", (proc(web) / "status").read_text())[1]) * 1000


def proc(web: KestrelWeb):
    from pathlib import Path

    return Path(f"/proc/{web.process.pid}")


def stats(**values: str) -> bytes:
    """Lines of `stats` for one queue, some with other values."""
    plain = {
        "items": "3",
        "bytes": "30",
        "total_items": "5",
        "logsize": "100",
        "expired_items": "0",
        "mem_items": "3",
        "mem_bytes": "30",
        "age": "1000",
        "discarded": "0",
        "waiters": "0",
        "open_transactions": "0",
        "transactions": "0",
        "canceled_transactions": "0",
        "total_flushes": "0",
    }
    lines = [f"STAT queue_odd_{key} {values.get(key, value)}\r\n" for key, value in plain.items()]
    top = {"uptime": "10", "time": "1800000000", "version": "2.4.1", "curr_items": "3", "total_items": "5"}
    top |= {"cmd_get": "1", "cmd_set": "5", "reserved_memory_ratio": "0.5"}
    first = [f"STAT {key} {values.get('top_' + key, value)}\r\n" for key, value in top.items()]
    return "".join((*first, *lines)).encode("latin-1")


NUMBER = re.compile(r" (-?[0-9.]+(e[+-]?[0-9]+)?|NaN|\+Inf)$")

LIES = {
    "negative": stats(items="-5", age="-1", top_curr_items="-3"),
    "huge": stats(items="9" * 400, bytes="9" * 30, age="9" * 25, total_items="9" * 20, top_uptime="9" * 300),
    "past what SQLite holds": stats(items=str(2**63), total_items=str(2**64), age=str(2**63)),
    "no numbers": stats(items="many", bytes="", age="NaN", top_reserved_memory_ratio="Infinity"),
    "other ratio": stats(top_reserved_memory_ratio="nan", top_time="tomorrow"),
    "fractions": stats(items="1.5", age="1e3", top_uptime="1e400"),
    "other digits": stats(items="\xb2\xb3", bytes="\xb9"),
    "nothing": b"STAT\r\n",
    "half a queue": b"STAT queue_odd_items 3\r\nSTAT queue_odd_bytes\r\nSTAT\r\nSTAT queue_\r\n",
    "no names": b"STAT queue__items 1\r\nSTAT queue__bytes 1\r\nSTAT queue__total_items 1\r\n",
    "names that none can have": b"".join(
        b"STAT queue_%b_%b 1\r\n" % (name, key)
        for name in (b"a/b", b"..", b"~", b"x" * 300, b"a b")
        for key in (b"items", b"bytes", b"total_items")
    ),
    "tags in values": stats(items="<script>alert(1)</script>", top_version="<script>alert(1)</script>"),
}


def test_numbers_that_no_kestrel_would_say_break_no_page(tmp_path):
    with ExitStack() as stack:
        liars = {name: stack.enter_context(ForgedServer(forged.kestrel(lie))) for name, lie in LIES.items()}
        config = {"servers": [one.address for one in liars.values()], "admin_port": None}
        web = stack.enter_context(KestrelWeb(tmp_path / "web", **config))
        for name, liar in liars.items():
            wait_until(lambda liar=liar: server(web, liar.address)["polled_at"], name)
            assert server(web, liar.address)["reachable"], name
        view = api(web, "overview")
        wait_until(lambda: api(web, "overview")["serial"] > view["serial"] + 5, "some more views")
        rows = {row["key"] for row in api(web, "queues")["queues"]}
        assert "odd" in rows
        pages = walk(web, "/queues/odd", *(f"/servers/{one.address}" for one in liars.values()))
        for path, data in pages.items():
            assert b"<script>alert" not in data, path
        api(web, "queues/odd")
        api(web, "queues/odd/history")
        for line in pages["/metrics"].decode().splitlines():
            assert line.startswith("#") or NUMBER.search(line), line
        no_defect(web)


def forge(**changes) -> dict:
    """What the admin port of a Kestrel with one queue says, some of it otherwise."""
    counters = {"q/odd/total_items": 5, "cmd_get": 1, "cmd_set": 5, "total_items": 5}
    gauges = {"status/writeable": 1, "items": 3, "q/odd/items": 3, "q/odd/open_transactions": 0}
    return {
        "counters": counters | changes.get("counters", {}),
        "gauges": gauges | changes.get("gauges", {}),
    }


FORGERIES = {
    "a list": b"[]",
    "nothing": b"",
    "no JSON": b"{",
    "deep": b'{"counters":' * 100_000,
    "lists": json.dumps(forge(counters={"q/odd/total_items": [1]}, gauges={"q/odd/items": []})).encode(),
    "texts": json.dumps(forge(counters={"total_items": "x"}, gauges={"q/odd/age_msec": "old"})).encode(),
    "nulls": json.dumps(forge(counters={"q/odd/expired_items": None}, gauges={"items": None})).encode(),
    "objects": json.dumps(forge(gauges={"q/odd/items": {"a": 1}, "connections": {}})).encode(),
    "truth": json.dumps(forge(counters={"cmd_get": True}, gauges={"q/odd/items": True})).encode(),
    "infinite": json.dumps(forge(gauges={"q/odd/items": float("inf"), "items": float("nan")})).encode(),
    "huge": json.dumps(forge(counters={"q/odd/total_items": 10**400})).encode(),
    "large": json.dumps(forge(gauges={"q/odd/items": 1e308, "q/odd/mem_bytes": -(10**30)})).encode(),
    "counters are a list": json.dumps({"counters": [], "gauges": {}}).encode(),
    "gauges are null": json.dumps({"counters": {}, "gauges": None}).encode(),
    "odd names": json.dumps(
        forge(gauges={f"q/{name}/open_transactions": 0 for name in ("", "/", "a/b", "é", "☃", "\x00", "<b>")})
    ).encode(),
    "not UTF-8": b'{"counters": {"\xff": 1}, "gauges": {"status/writeable": 1}}',
    "HTML": b"<script>alert(1)</script>",
}
HEADS = {
    "not found": forged.web(b"{}", b"404 <script>alert(1)</script>"),
    "redirect": forged.web(b"{}", b"302 Found", b"Location: http://127.0.0.1:1/\r\n"),
    "wrong length": forged.web(b"{}", head=b"Content-Length: 99999999999999999999\r\n"),
    "negative length": forged.web(b"{}", head=b"Content-Length: -1\r\n"),
    "endless head": forged.for_ever(b"X: y\r\n", b"HTTP/1.1 200 OK\r\n"),
    "silent": forged.silent,
    "drips": forged.for_ever(b" ", b"HTTP/1.1 200 OK\r\n\r\n", pause=0.02),
    "another protocol": forged.says(b"220 mail ESMTP\r\n"),
}


def test_a_forged_admin_port_takes_nothing_from_what_the_memcache_port_says(tmp_path):
    talks = {name: forged.web(body) for name, body in FORGERIES.items()} | HEADS
    with ExitStack() as stack:
        kestrels, admins = {}, {}
        for name, talk in talks.items():
            kestrels[name] = stack.enter_context(ForgedServer(forged.kestrel(stats())))
            admins[kestrels[name].address] = stack.enter_context(ForgedServer(talk)).port
        config = {"servers": list(admins), "admin_ports": admins, "timeout_s": 1.0}
        web = stack.enter_context(KestrelWeb(tmp_path / "web", **config))
        for name, kestrel in kestrels.items():
            wait_until(lambda kestrel=kestrel: server(web, kestrel.address)["attempted_at"], name)
            wait_until(lambda kestrel=kestrel: server(web, kestrel.address)["reachable"], name)
            row = server(web, kestrel.address)
            # Names that nobody can send are left out; everything else is not believed at all.
            assert row["source"] == ("admin" if name == "odd names" else "memcache"), name
            assert row["numbers"]["curr_items"] == 3, name
            assert row["error"] is None or row["error"].isprintable(), name
        assert api(web, "queues/odd")["queue"]["numbers"]["items"] == 3 * len(kestrels)
        for path, data in walk(web, *(f"/servers/{one.address}" for one in kestrels.values())).items():
            assert b"<script>alert" not in data, path
        no_defect(web)


LEGAL = [bytes([byte]) for byte in range(1, 256) if bytes([byte]) not in b"./~ \n"]
ODD = [
    *(b'"><script>alert(1)', b"'-alert(1)-'", b"<b>bold", b"&lt;b&gt;", b"{{7*7}}", b"%2e%2e%2f", b"${x}"),
    *(b"=1+1", b"@SUM(A1)", b"-2+3", b"#top", b"?f=x", b"a=b&c=d", b"\xe2\x80\xaetxt", "naïve☃".encode()),
    *(b"\xff\xfe", b"a\rb", b"\t", b"__proto__", b"constructor", b"NaN", b"null", b"javascript:alert(1)"),
    b"n" * 200,
]


def put(broker: BrokerProcess, name: bytes, body: bytes = b"x") -> None:
    # A name that ends with CR would be taken for one without, were there nothing behind it.
    with broker.connect() as client:
        client.ask(b"set %b 0 0 %d\r\n%b\r\n" % (name, len(body), body), b"STORED\r\n")


class Tags(HTMLParser):
    """The tags of a page, with everything that could run something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.bad: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            runs = (value or "").strip().lower().startswith("javascript:")
            if name.startswith("on") or name == "style" or runs:
                self.bad.append(f"{tag} {name}={value}")
            if tag == "script" and name == "src":
                self.scripts.append(value)

    @classmethod
    def of(cls, page: bytes) -> Tags:
        made = cls()
        made.feed(page.decode("utf-8"))
        return made


def harmless(path: str, page: bytes) -> None:
    """A page in which nothing of what a queue brought along is markup."""
    tags = Tags.of(page)
    assert tags.bad == [], path
    assert "b" not in tags.tags, path
    assert all("/static/" in script for script in tags.scripts), path
    assert b"<script>alert" not in page, path
    controls = re.findall(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", page)
    assert not controls, (path, controls)
    assert "\u202e" not in page.decode("utf-8"), path


def test_names_of_every_legal_byte_are_shown_escaped_and_acted_on_exactly(tmp_path):
    names = [*(b"n%bn" % byte for byte in LEGAL if byte != b"+"), *ODD, b"parent+child"]
    with BrokerProcess(tmp_path) as broker:
        for name in names:
            put(broker, name)
        with KestrelWeb(tmp_path / "web", **servers(broker)) as web:
            total = len(names) + 1  # the fanout's parent
            wait_until(lambda: api(web, "overview")["totals"]["items"] >= len(names), "all of them")
            wanted = {keys.make(name) for name in names}
            pages = ("/", "/queues", "/queues?f=name~n", "/servers", f"/servers/{broker.address}")
            for path in pages:
                answer = web.get(path)
                assert answer.status == 200
                harmless(path, answer.data)
            found, offset = {}, 0
            while offset is not None:
                page = api(web, f"queues?limit=100&offset={offset}")
                found |= {row["key"]: row for row in page["queues"]}
                offset = page["next_offset"]
            assert wanted - {"parent~2Bchild"} <= set(found)
            assert len(found) <= total
            for name in names:
                key = keys.make(name)
                one = api(web, f"queues/{key}")["queue"]
                assert (one["key"], one["numbers"]["items"]) == (key, 1)
                paths = [f"/queues/{key}"]
                if name in ODD or name[1:2] < b" ":
                    paths.append(f"/queues/{key}/peek?server={broker.address}")
                for path in paths:
                    answer = web.get(path)
                    assert answer.status == 200, (path, answer.status)
                    harmless(path, answer.data)
            for path in ("/queues.csv", "/metrics"):
                assert web.get(path).status == 200
            # No cell is a formula to a spreadsheet.
            for line in web.get("/queues.csv").data.decode().splitlines()[1:]:
                assert not re.match(r'"?[=+@\t\r]|"?-\D', line), line
            visitor = Visitor(web)
            for name in (*ODD[:6], b"n\xffn", b"n\rn", b"n%n"):
                key = keys.make(name)
                page = visitor.get(f"/queues/{key}/do/flush")
                assert page.status == 200, (name, page.data)
                harmless(key, page.data)
                assert submit(visitor, form(page.data.decode(), "/do/flush")).status == 303, name
                wait_until(lambda key=key: api(web, f"queues/{key}")["queue"]["numbers"]["items"] == 0, key)
                audit = visitor.get("/audit")
                harmless("/audit", audit.data)
            left = sum(row["numbers"]["items"] for row in api(web, "queues?limit=1000")["queues"])
            assert left >= len(names) - 9 - 1, "no other queue was touched"
            no_defect(web)


def test_paths_that_are_no_keys_are_not_found(three):
    web, _ = three
    for key in ("~2E~2E", "~2F", "..%2f..", "~00", "~0A", "~zz", "~2e", "%00", "a%20b", "x" * 600, "%C3%A9"):
        of_queue = (f"/queues/{key}", f"/queues/{key}/peek", f"/queues/{key}/do/flush")
        for path in (*of_queue, f"/api/v1/queues/{key}"):
            answer = web.get(path)
            assert answer.status in (400, 404), (path, answer.status)
    for address in ("127.0.0.1:1", "localhost:22133", "169.254.169.254:80", "evil.example:22133", "%2e%2e"):
        of_server = (f"/servers/{address}", f"/servers/{address}/do/flush_expired")
        for path in (*of_server, f"/api/v1/servers/{address}"):
            assert web.get(path).status == 404, path
        assert web.get(f"/queues/mail/peek?server={address}").status == 404
    no_defect(web)


def job(data: dict) -> bytes:
    return Envelope("Hello", "acme", data).encode()


BODIES = {
    "job": job({"x": "</script><script>alert(1)</script>", "y": '"><img src=x onerror=alert(1)>'}),
    "text": b"</pre><script>alert(1)</script><b>bold",
    "JSON": b'{"<script>alert(1)</script>": ["<b>", "\\u2028", "\\u0000"]}',
    "binary": bytes(range(256)),
    "pickle": b"\x80\x04\x95\x1e\x00cos\nsystem\n(S'<script>alert(1)</script>'\ntR.",
    "deep": b"[" * 50_000,
    "digits": b"9" * 10_000,
    "turned": "\u202e<script>alert(1)</script>".encode(),
    "a record": json.dumps({"v": 1, "reason": "<script>alert(1)", "body_b64": "!!"}).encode(),
    "nothing": b"",
    "large": b"<script>alert(1)</script>" * 10_000,
}


def test_what_is_in_a_job_is_shown_and_never_run(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        for name, body in BODIES.items():
            put(broker, name.replace(" ", "_").encode(), body)
            put(broker, (name.replace(" ", "_") + "_errors").encode(), body)
        with KestrelWeb(tmp_path / "web", **servers(broker)) as web:
            wait_until(lambda: api(web, "overview")["totals"]["items"] == 2 * len(BODIES), "all of them")
            for name in BODIES:
                for queue in (name.replace(" ", "_"), name.replace(" ", "_") + "_errors"):
                    for form_ in ("", "&as=json", "&as=text", "&as=hex"):
                        path = f"/queues/{queue}/peek?server={broker.address}{form_}"
                        answer = web.get(path)
                        assert answer.status == 200, (path, answer.status)
                        harmless(path, answer.data)
                        assert answer.headers["Content-Type"].startswith("text/html")
                        assert answer.headers["X-Content-Type-Options"] == "nosniff"
                        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
                    strict(web.get(f"/api/v1/queues/{queue}/peek?server={broker.address}").data)
            for name, body in BODIES.items():
                assert broker.drain(name.replace(" ", "_")) == [body], "looking changed nothing"
            no_defect(web)


def test_counters_that_begin_again_make_no_rate_below_zero(tmp_path):
    with BrokerProcess(tmp_path) as broker, KestrelWeb(tmp_path / "web", **servers(broker)) as web:
        rates = []

        def look() -> None:
            with contextlib.suppress(AssertionError):
                rates.extend(
                    value
                    for row in (api(web, "queues/mail")["queue"]["numbers"], *api(web, "servers")["servers"])
                    for value in (row["rate_in"], row["rate_out"])
                    if value is not None
                )

        for number in range(50):
            put(broker, b"mail", b"%d" % number)
        wait_until(lambda: api(web, "overview")["totals"]["items"] == 50, "the items")
        wait_until(lambda: look() or len(rates) >= 4, "rates")
        broker.kill()
        wait_until(lambda: not server(web, broker.address)["reachable"], "its end to be noticed")
        assert server(web, broker.address)["rate_in"] is None
        shutil.rmtree(broker.spool)
        broker.spool.mkdir()
        broker.start()
        put(broker, b"mail")
        wait_until(lambda: server(web, broker.address)["reachable"], "it to be back")
        wait_until(lambda: api(web, "queues/mail")["queue"]["numbers"]["total_items"] == 1, "its new count")
        rates.clear()
        wait_until(lambda: look() or len(rates) >= 12, "rates")
        # Killed and started between two polls: the same port, other counters.
        broker.kill()
        broker.start()
        serial = api(web, "overview")["serial"]
        wait_until(lambda: look() or api(web, "overview")["serial"] > serial + 5, "some more views")
        assert min(rates) >= 0
        assert max(rates) < 1000, "no jump from counters that began again"
        assert web.get("/queues/mail").status == 200
        no_defect(web)


def test_two_thousand_queues_are_all_there(tmp_path):
    count = 2000
    with BrokerProcess(tmp_path) as broker, KestrelWeb(tmp_path / "web", **servers(broker)) as web:
        with broker.connect() as client:
            for number in range(count):
                client.send(b"set q%04d 0 0 1\r\nx\r\n" % number)
            client.expect(b"STORED\r\n" * count)
        wait_until(lambda: api(web, "overview")["totals"]["items"] == count, "all of them", 60)
        seen, offset = [], 0
        while offset is not None:
            page = api(web, f"queues?limit=1000&offset={offset}&sort=name&dir=asc")
            seen += [row["key"] for row in page["queues"]]
            offset = page["next_offset"]
        assert seen == [f"q{number:04d}" for number in range(count)]
        pages = walk(web, "/queues?f=name~q1999", "/queues?sort=items&dir=desc")
        assert len(pages["/queues.csv"].splitlines()) == count + 1
        assert b"q1999" in pages["/queues?f=name~q1999"]
        assert b"q1998" not in pages["/queues?f=name~q1999"]
        assert pages["/metrics"].count(b'queue="q1') >= 1000
        assert api(web, "overview")["totals"]["items"] == count
        assert memory(web) < 400_000_000
        no_defect(web)
