"""What strangers may send to a real kestrel-web over real sockets: nothing is believed without reason."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading

import pytest

from support.broker import DEADLINE_S, wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_visitor import Visitor, user

TOKENS = {role: f"token-of-{role}" for role in ("metrics", "viewer", "operator")}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@pytest.fixture(scope="module")
def web(brokers, tmp_path_factory):
    """Nobody has to log in here, and programs may come with tokens."""
    with KestrelWeb(
        tmp_path_factory.mktemp("web"),
        **servers(brokers[0]),
        hosts=["queues.example", "[2001:db8::1]"],
        tokens=[
            {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest(), "role": name}
            for name, token in TOKENS.items()
        ],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def proxied(brokers, tmp_path_factory):
    """A proxy on this machine says who the user is; another one, 127.0.0.2, may only say where from."""
    with KestrelWeb(
        tmp_path_factory.mktemp("proxied"),
        **servers(brokers[0]),
        prefix="/tools/queues",
        proxy={"header": "X-Remote-User", "addresses": ["127.0.0.1"], "operators": ["ann", "bea"]},
        forwarded_from=["127.0.0.0/8"],
    ) as running:
        yield running


def raw(web, data: bytes, source: str = "127.0.0.1") -> bytes:
    """Send bytes and return everything that comes until the other end closes."""
    with socket.create_connection((web.host, web.port), DEADLINE_S, (source, 0)) as sock:
        sock.sendall(data)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def start(line: str, *headers: str) -> bytes:
    """The head of a request without the empty line that ends it."""
    return "\r\n".join((f"{line} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "")).encode(
        "latin-1"
    )


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


class TestHost:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "LOCALHOST.:9", "[::1]:80", "queues.example:443"]
    )
    def test_it_answers_to_its_own_names(self, web, host):
        assert web.get("/", {"Host": host}).status == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8090",
            "localhost, evil.example",
            "user@localhost",
            "localhost/../",
            "192.0.2.1",
            "local\xadhost",
            "",
        ],
    )
    def test_it_answers_to_no_other_and_says_which_key_to_change(self, web, host):
        """DNS rebinding: a page of evil.example whose name suddenly means 127.0.0.1."""
        for path in ("/", "/queues", "/static/kestrel-web.css", "/healthz", "/nothing"):
            answer = web.get(path, {"Host": host})
            assert answer.status == 400
            assert b'"hosts"' in answer.data.replace(b'\\"', b'"')
            assert answer.headers["Content-Security-Policy"] == CSP

    def test_a_request_without_a_host_or_with_two_is_refused(self, web):
        assert raw(web, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 400")
        two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert raw(web, two).startswith(b"HTTP/1.1 400")

    def test_the_host_that_a_proxy_is_said_to_have_seen_is_nobodys(self, web):
        answer = web.get("/", {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "//evil.example"})
        assert answer.status == 200
        assert b"evil.example" not in answer.data

    def test_what_is_not_its_name_does_not_come_back_as_markup(self, web):
        answer = web.get("/", {"Host": "<script>alert(1)</script>"})
        assert answer.status == 400
        assert answer.headers["Content-Type"].startswith("text/plain")


class TestHeaders:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/", 200),
            ("/queues", 200),
            ("/login", 303),
            ("/static/kestrel-web.css", 200),
            ("/static/../config.py", 404),
            ("/nothing", 404),
            ("/logout", 405),
            ("/queues/%FF", 404),
            ("/api/v1/queues", 200),
            ("/api/v1/nothing", 404),
            ("/metrics", 200),
            ("/healthz", 200),
            ("/queues.csv", 200),
        ],
    )
    def test_every_answer_has_them(self, web, path, status):
        answer = web.get(path)
        assert answer.status == status, answer.data
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers.get_all("Content-Security-Policy") == [CSP]
        assert answer.headers["Server"] is None
        assert answer.headers["Cache-Control"]
        assert answer.headers["Strict-Transport-Security"] is None
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]

    def test_pages_are_kept_by_nobody(self, web):
        for path in ("/", "/queues", "/servers", "/audit", "/nothing"):
            assert "no-store" in web.get(path).headers["Cache-Control"], path

    def test_by_https_it_says_so_for_a_year(self, proxied):
        answer = proxied.get("/tools/queues/healthz", {"X-Forwarded-Proto": "https"})
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"

    def test_an_error_of_its_own_shows_nothing_of_it(self, web):
        for path in ("/nothing", "/queues/%00", "/queues?f=%E0", "/api/v1/queues?f=((((", "/queues/~ZZ"):
            answer = web.get(path)
            assert answer.status < 500
            for inner in (b"Traceback", b"site-packages", b".py", b"werkzeug", b"sqlite"):
                assert inner not in answer.data, (path, inner)


class TestOtherSites:
    """A page of somebody else, open in the browser of one who may act here."""

    FOREIGN = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Referer": "https://evil.example/page"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
    )

    @pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: str(headers) if headers else "nothing")
    def test_a_change_must_come_from_a_page_of_its_own(self, proxied, headers):
        visitor = Visitor(proxied, X_Remote_User="ann")
        token = visitor.token()
        sent = {"X-CSRFToken": token, "Content-Type": "application/json", **headers}
        answer = visitor.send("POST", "/api/v1/queues/x/flush", b'{"confirm": "x"}', sent)
        assert answer.status == 403
        assert b"site" in answer.data or b"where it comes from" in answer.data

    @pytest.mark.parametrize(
        "headers",
        [{"Origin": "OWN"}, {"Referer": "OWN/tools/queues/"}, {"Sec-Fetch-Site": "same-origin"}],
        ids=str,
    )
    def test_its_own_pages_may(self, proxied, headers):
        visitor = Visitor(proxied, X_Remote_User="ann")
        own = {name: value.replace("OWN", visitor.origin) for name, value in headers.items()}
        answer = visitor.send("POST", "/api/v1/queues/x/nothing", b"{}", own)
        assert answer.status == 404

    def test_a_form_without_a_token_or_with_somebody_elses_changes_nothing(self, proxied):
        ann, bea = Visitor(proxied, X_Remote_User="ann"), Visitor(proxied, X_Remote_User="bea")
        beas = bea.token()
        ann.token()
        for token in ("", "x", beas):
            answer = ann.post("/logout", token=token)
            assert answer.status == 400
            assert b"load it again and try again" in answer.data
        # Not even with the cookie that the token was made for: it is another user's.
        ann.cookies = dict(bea.cookies)
        assert ann.post("/logout", token=beas).status == 400
        assert bea.post("/logout", token=beas).status == 303

    def test_a_form_without_the_cookie_says_what_to_do(self, proxied):
        visitor = Visitor(proxied, X_Remote_User="ann")
        token = visitor.token()
        visitor.cookies.clear()
        answer = visitor.post("/logout", token=token)
        assert answer.status == 400
        assert b"allow it cookies" in answer.data

    def test_a_proxy_that_does_not_say_https_is_named(self, brokers, tmp_path):
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[user("ann")]) as web:
            visitor = Visitor(web)
            visitor.origin = visitor.origin.replace("http:", "https:")
            answer = visitor.log_in("ann")
            assert answer.status == 403
            assert b"forwarded_from" in answer.data

    def test_no_answer_is_a_script(self, web):
        """JSONP: a script element reads nothing here."""
        for path in ("/api/v1/queues", "/api/v1/overview", "/healthz"):
            plain, asked = web.get(path), web.get(path + "?callback=steal&jsonp=steal")
            assert b"steal" not in asked.data.replace(b"callback=steal", b"")
            assert asked.headers["X-Content-Type-Options"] == "nosniff"
            assert asked.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            if asked.status == 200:
                json.loads(asked.data)
                assert plain.headers["Content-Type"].startswith("application/json")

    def test_another_sites_script_gets_no_permission_to_ask(self, web):
        asking = {
            "Origin": "https://evil.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        answer = web.request("OPTIONS", "/api/v1/queues/x/flush", headers=asking)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


class TestProxy:
    def test_who_the_trusted_proxy_names_is_in(self, proxied):
        page = Visitor(proxied, X_Remote_User="carl").get("/").data
        assert b"carl" in page

    def test_without_a_name_nobody_is_and_the_line_names_the_header(self, proxied):
        answer = Visitor(proxied).get("/")
        assert answer.status == 401
        assert b"X-Remote-User" in answer.data

    def test_the_header_counts_from_the_named_address_only(self, proxied):
        """By the socket's other end: X-Forwarded-For may say what it wants."""
        head = "GET /tools/queues/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Remote-User: ann\r\n"
        assert raw(proxied, f"{head}\r\n".encode()).startswith(b"HTTP/1.1 200")
        for more in ("", "X-Forwarded-For: 127.0.0.1\r\n", "Forwarded: for=127.0.0.1\r\n"):
            answer = raw(proxied, f"{head}{more}\r\n".encode(), source="127.0.0.2")
            assert answer.startswith(b"HTTP/1.1 401"), answer
            assert b"127.0.0.2 said so, but is not in proxy.addresses" in answer

    @pytest.mark.parametrize("name", ["ann, bob", "ann\x01", "\xff\xfe", "x" * 300, " "])
    def test_what_is_no_name_is_nobody(self, proxied, name):
        head = start("GET /tools/queues/", f"X-Remote-User: {name}")
        assert raw(proxied, head + b"\r\n").split(b" ")[1] in (b"400", b"401")

    def test_a_name_twice_is_nobody(self, proxied):
        """What a browser sent and the proxy forgot to take away."""
        head = "GET /tools/queues/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        names = "X-Remote-User: ann\r\nX-Remote-User: bob\r\n\r\n"
        assert raw(proxied, (head + names).encode()).startswith(b"HTTP/1.1 401")
        spelled = "X_Remote_User: ann\r\n\r\n"
        assert raw(proxied, (head + spelled).encode()).startswith(b"HTTP/1.1 401")

    def test_where_nobody_has_to_log_in_the_header_means_nothing(self, web):
        assert b"mallory" not in web.get("/", {"X-Remote-User": "mallory"}).data

    def test_only_named_users_are_operators(self, proxied):
        ann = Visitor(proxied, X_Remote_User="ann")
        for name, status in (("ann", 404), ("bob", 403), ("Ann", 403)):
            path, token = "/servers/192.0.2.1:1/do/reload", ann.token()
            assert ann.post(path, {}, token, X_Remote_User=name).status == status, name


class TestPrefix:
    def test_everything_is_below_it_and_nothing_beside(self, proxied):
        ann = {"X-Remote-User": "ann"}
        assert proxied.get("/tools/queues/", ann).status == 200
        for path in ("/", "/tools/queues"):
            answer = proxied.get(path, ann)
            assert (answer.status, answer.headers["Location"]) == (302, "/tools/queues/")
        for path in ("/queues", "/tools/queuesx/", "/healthz", "/tools", "/tools/other"):
            assert proxied.get(path, ann).status == 404, path

    def test_its_pages_and_cookies_name_it(self, proxied):
        visitor = Visitor(proxied, X_Remote_User="ann")
        page = visitor.get("/").data.decode()
        assert 'href="/tools/queues/queues"' in page
        assert 'href="/queues"' not in page
        visitor.token()
        assert list(visitor.cookies) == [f"kestrel-web-{proxied.port}-tools-queues"]


class TestTokens:
    @pytest.mark.parametrize(
        ("role", "metrics", "page", "change"),
        [("metrics", 200, 403, 403), ("viewer", 200, 200, 403), ("operator", 200, 200, 404)],
    )
    def test_a_token_is_good_for_its_role(self, web, role, metrics, page, change):
        assert web.get("/metrics", bearer(role)).status == metrics
        assert web.get("/api/v1/queues", bearer(role)).status == page
        asked = web.request(
            "POST",
            "/api/v1/servers/192.0.2.1:1/reload",
            b"{}",
            {**bearer(role), "Content-Type": "application/json"},
        )
        assert asked.status == change, asked.data

    def test_a_token_that_nobody_has_is_nobody_even_where_nobody_has_to_log_in(self, web):
        for value in ("Bearer wrong", "Bearer ", "bearer\ttoken-of-viewer", f"Bearer {'x' * 5000}"):
            answer = web.get("/api/v1/queues", {"Authorization": value})
            assert answer.status in (200, 401)
            assert (answer.status == 200) == value.startswith("bearer\t")
        assert web.get("/", {"Authorization": "Bearer wrong"}).status == 401

    def test_a_token_and_another_sites_page_do_not_go_together(self, web):
        asked = {**bearer("operator"), "Origin": "https://evil.example", "Content-Type": "application/json"}
        assert web.request("POST", "/api/v1/servers/192.0.2.1:1/reload", b"{}", asked).status == 403

    def test_it_is_not_in_the_log(self, web):
        assert not [token for token in TOKENS.values() if token in web.log]


class TestServersAndFiles:
    def test_a_server_that_is_not_configured_is_never_called(self, proxied):
        """SSRF: the address of a server comes from the configuration, whatever a request says."""
        called = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.settimeout(DEADLINE_S)
            address = f"127.0.0.1:{trap.getsockname()[1]}"

            def wait():
                try:
                    trap.accept()
                except OSError:
                    return
                called.set()

            waiting = threading.Thread(target=wait, daemon=True)
            waiting.start()
            ann = Visitor(proxied, X_Remote_User="ann")
            token = ann.token()
            for path in (
                f"/servers/{address}",
                f"/servers/{address}/do/reload",
                f"/api/v1/servers/{address}",
                f"/queues/x/peek?server={address}",
                f"/api/v1/queues/x/peek?server={address}",
                f"/api/v1/queues/x/history?server={address}",
            ):
                assert ann.get(path).status in (400, 404), path
            for action in ("reload", "status", "shutdown", "flush_expired"):
                fields = {"confirm": address, "status": "down"}
                assert ann.post(f"/servers/{address}/do/{action}", fields, token).status in (400, 403, 404)
            for action in ("flush", "delete", "enqueue", "requeue"):
                fields = {"confirm": "x", "server": address, "servers": address}
                ann.post(f"/queues/x/do/{action}", fields, token)
            assert not called.is_set()
            # The trap works: a real call springs it.
            socket.create_connection(trap.getsockname(), DEADLINE_S).close()
            wait_until(called.is_set, "the trap")
            waiting.join(DEADLINE_S)

    @pytest.mark.parametrize(
        "path",
        [
            "/static/../config.py",
            "/static/..%2fconfig.py",
            "/static/%2e%2e/config.py",
            "/static/%2e%2e%2fconfig.py",
            "/static/..%5cconfig.py",
            "/static//etc/passwd",
            "/static/%2fetc/passwd",
            "/static/kestrel-web.css/../../config.py",
            "/static/....//config.py",
            "/static/%00kestrel-web.css",
            "/static/",
            "/static/..;/config.py",
        ],
    )
    def test_no_file_but_its_own_is_ever_sent(self, web, path):
        answer = raw(web, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.split(b" ")[1] in (b"400", b"404"), answer[:300]
        assert b"root:" not in answer
        assert b"dataclass" not in answer


class TestLimits:
    def test_a_head_that_is_too_long_is_refused(self, web):
        answer = web.get("/", {"X-Long": "x" * 70_000})
        assert answer.status in (400, 431)

    def test_a_body_that_is_too_long_is_refused_before_it_is_sent(self, web):
        head = start("POST /login", "Content-Length: 99999999")
        assert raw(web, head + b"\r\n").startswith(b"HTTP/1.1 413")

    def test_a_body_of_unknown_length_is_cut_off(self, web):
        head = start("POST /login", "Transfer-Encoding: chunked") + b"\r\n"
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with socket.create_connection((web.host, web.port), DEADLINE_S) as sock:
            sock.sendall(head)
            # It has no end; whoever reads all of it never answers.
            with contextlib.suppress(ConnectionError):
                for _ in range(80):
                    sock.sendall(chunk)
                assert sock.recv(100).startswith(b"HTTP/1.1 413")
        assert web.get("/healthz").status == 200

    def test_one_request_cannot_be_read_as_two(self, web):
        both = (
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert raw(web, both).count(b"HTTP/1.1 ") == 1
        for bad in (
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: +5",
            b"Transfer-Encoding: xchunked",
        ):
            head = b"POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            assert raw(web, head + bad + b"\r\n\r\nhello").split(b" ")[1] in (b"400", b"501")

    def test_other_methods_do_nothing(self, web):
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "FLUSH"):
            answer = web.request(method, "/queues/x", headers={**bearer("operator")})
            assert answer.status in (400, 405, 501), method
            assert b"token-of-operator" not in answer.data


class TestLog:
    def test_nobody_writes_lines_into_it(self, brokers, tmp_path):
        forged = "x\r\nkestrel-web: INFO 'ann' logged in, from 127.0.0.1\u2028\x1b[2J"
        with KestrelWeb(tmp_path, **servers(brokers[0]), users=[user("ann")]) as web:
            visitor = Visitor(web)
            assert visitor.log_in(forged).status == 403
            visitor.get("/nothing/%0D%0Akestrel-web:%20INFO%20forged%1B[2J")
            visitor.post("/logout%0D%0Akestrel-web:%20INFO%20forged", Origin="https://evil.example")
            assert 'login as "x\\r\\nkestrel-web: INFO' in web.log
            assert not [line for line in web.log.splitlines() if line.startswith("kestrel-web: INFO 'ann'")]
            assert "INFO forged" not in [line.partition(": ")[2] for line in web.log.splitlines()]
            assert "\x1b" not in web.log
            assert "\u2028" not in web.log
