"""What of a request can be believed: addresses, names, hosts, and where somebody goes on."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
from werkzeug.test import create_environ

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.access.auth import PROXY_USER, load_key
from kestrel_stack.web.access.security import (
    Front,
    LogFormatter,
    local_path,
    networks,
    plain,
    user_name,
    within,
)
from kestrel_stack.web.config import Config, Proxy

CONFIG = Config(servers=(Server("127.0.0.1", 22133),))


def seen(config: Config, peer: str, headers: dict[str, str], path: str = "/") -> dict:
    """The request as the application sees it."""
    caught = {}

    def app(environ, start_response):
        caught.update(environ)
        start_response("200 OK", [])
        return []

    environ = create_environ(path, "http://localhost", headers=headers)
    environ["REMOTE_ADDR"] = peer
    list(Front(app, config)(environ, lambda *arguments: None))
    return caught


class TestForwarded:
    CONFIG = replace(CONFIG, forwarded_from=("10.0.0.1", "10.1.0.0/16", "2001:db8::/32"))

    @pytest.mark.parametrize(
        ("peer", "said", "address"),
        [
            ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "6.6.6.6, 192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "6.6.6.6, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
            ("10.0.0.1", "10.1.2.3", "10.1.2.3"),
            ("10.0.0.1", "192.0.2.7, nonsense", "10.0.0.1"),
            ("10.0.0.1", "nonsense, 192.0.2.7", "192.0.2.7"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "[2001:db9::7]", "2001:db9::7"),
            ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "192.0.2.7", "192.0.2.7"),
            ("10.0.0.2", "192.0.2.7", "10.0.0.2"),
            ("", "192.0.2.7", ""),
        ],
    )
    def test_the_sender_is_whom_the_last_trusted_one_names(self, peer, said, address):
        assert seen(self.CONFIG, peer, {"X-Forwarded-For": said})["REMOTE_ADDR"] == address

    @pytest.mark.parametrize(
        ("peer", "said", "scheme"),
        [
            ("10.0.0.1", "https", "https"),
            ("10.0.0.1", "http, https", "https"),
            ("10.0.0.1", "https, http", "http"),
            ("10.0.0.1", "javascript", "http"),
            ("10.0.0.2", "https", "http"),
        ],
    )
    def test_so_is_the_scheme(self, peer, said, scheme):
        assert seen(self.CONFIG, peer, {"X-Forwarded-Proto": said})["wsgi.url_scheme"] == scheme

    def test_nothing_of_it_reaches_a_view(self):
        headers = {f"X-Forwarded-{name}": "x" for name in ("For", "Proto", "Host", "Port", "Prefix")}
        for peer in ("10.0.0.1", "10.0.0.2"):
            environ = seen(self.CONFIG, peer, {**headers, "Forwarded": "for=x"})
            assert not [name for name in environ if "FORWARDED" in name]
            assert (environ["HTTP_HOST"], environ["SCRIPT_NAME"]) == ("localhost", "")


class TestProxyUser:
    CONFIG = replace(
        CONFIG, proxy=Proxy("X-Remote-User", ("10.0.0.1",)), forwarded_from=("10.0.0.1", "10.0.0.2")
    )

    def test_the_header_is_its_senders_word_and_then_gone(self):
        for peer, name in (("10.0.0.1", "ann"), ("10.0.0.2", None), ("192.0.2.1", None)):
            environ = seen(self.CONFIG, peer, {"X-Remote-User": "ann", "X-Forwarded-For": "10.0.0.1"})
            assert environ.get(PROXY_USER) == name
            assert "HTTP_X_REMOTE_USER" not in environ

    @pytest.mark.parametrize(
        ("said", "name"),
        [
            ("ann", "ann"),
            ("  ann  ", "ann"),
            ("ann@example.org", "ann@example.org"),
            ("Zoë".encode().decode("latin-1"), "Zoë"),
            ("", None),
            ("   ", None),
            ("ann,bob", None),
            ("ann\tbob", None),
            ("\xff", None),
            ("a\u202e".encode().decode("latin-1"), None),
            ("x" * 201, None),
        ],
    )
    def test_a_name_is_one_line_that_can_be_read(self, said, name):
        assert user_name(said) == name


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.2.0.1", False),
        ("::1", True),
        ("x", False),
        ("", False),
    ],
)
def test_an_address_is_within_its_networks_only(address, inside):
    assert within(address, networks(("10.1.0.0/16", "::1"))) is inside


@pytest.mark.parametrize(
    "path",
    ["/q/", "/q/queues", "/q/queues?f=items%3E1&sort=age", "/q/queues/a~2Bb", "/q/x?u=https://elsewhere/"],
)
def test_a_page_below_the_prefix_is_one_of_ours(path):
    assert local_path(path, "/q") == path


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "q/",
        "/",
        "/other",
        "/q",
        "/qq/",
        "//q/",
        "/q/\\x",
        "/q/\n",
        "/q/../other",
        "/q/%2e%2e/other",
        "/q/%2E%2e/other",
        "/q/é",
        "http://localhost/q/",
        "/q/" + "x" * 5000,
    ],
)
def test_anything_else_is_not(path):
    assert local_path(path, "/q") is None


def test_without_a_prefix_no_address_begins_with_two_slashes():
    assert local_path("/queues", "") == "/queues"
    for path in ("//evil.example", "/\\evil.example", "///evil.example", "https:evil.example"):
        assert local_path(path, "") is None


def test_a_line_of_the_log_is_one_line():
    assert plain("a\r\nb\x1b[2J\u2028\u202ec\ud800é") == "a\\r\\nb\\x1b[2J\\u2028\\u202ec\\ud800é"
    formatter = LogFormatter("kestrel-web: %(levelname)s %(message)s")
    try:
        raise ValueError("first\nkestrel-web: INFO forged")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "bad %s", ("na\nme",), sys.exc_info())
    first, *others = formatter.format(record).splitlines()
    assert first == "kestrel-web: ERROR bad na\\nme"
    assert others
    assert all(line.startswith("  | ") for line in others)


def test_the_secret_is_made_once_and_for_us_only(tmp_path):
    state = tmp_path / "state"
    key = load_key(state)
    assert load_key(state) == key
    assert (state / "session.key").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in state.iterdir()] == ["session.key"]


def test_a_secret_that_is_cut_off_is_not_used(tmp_path, caplog):
    load_key(tmp_path)
    (tmp_path / "session.key").write_bytes(b"")
    assert len(load_key(tmp_path)) == 32
    assert "remove it" in caplog.text
