"""What the inventory says of kestrel-web: refused by name, without repeating what is secret; admin ports."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = (
    Path(__file__).resolve().parents[3] / "ansible/roles/common/filter_plugins/kestrel_stack_kestrel_web.py"
)
SPEC = importlib.util.spec_from_file_location("kestrel_stack_kestrel_web", PATH)
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

HASH = f"$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ${'a' * 43}"
SHA256 = "0123456789abcdef" * 4


def test_good_users_tokens_and_proxies_pass():
    assert filters.login_problems([]) == []
    assert filters.login_problems([{"name": "anna@example.com", "password_hash": HASH}]) == []
    assert filters.login_problems([{"name": "b", "role": "operator", "password_hash": HASH}]) == []
    assert filters.token_problems([{"name": "prometheus", "sha256": SHA256}]) == []
    assert filters.proxy_problems({}) == []
    assert filters.proxy_problems({"header": "X-Remote-User", "addresses": ["10.0.0.5", "::1"]}) == []


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        ("anna", "kestrel_web_users must be a list like "),
        (["anna"], "kestrel_web_users must be a list like "),
        ([{"password_hash": HASH}], "kestrel_web_users: entry 1: name '' is not legal"),
        ([{"name": "a:b", "password_hash": HASH}], "kestrel_web_users: entry 1: name 'a:b' is not legal"),
        (
            [{"name": "a", "password_hash": HASH}] * 2,
            "kestrel_web_users: a is there twice: remove one of them",
        ),
        (
            [{"name": "a", "password": "hunter2"}],
            "kestrel_web_users: a: password is not taken, only its hash",
        ),
        (
            [{"name": "a", "password_hash": "hunter2"}],
            "kestrel_web_users: a: password_hash is no argon2 hash",
        ),
        ([{"name": "a"}], "kestrel_web_users: a: password_hash is no argon2 hash"),
        (
            [{"name": "a", "password_hash": HASH, "role": "admin"}],
            "kestrel_web_users: a: role admin is unknown: use viewer or operator",
        ),
        (
            [{"name": "a", "password_hash": HASH, "rol": "viewer"}],
            "kestrel_web_users: a: unknown option rol: known are name, role, password_hash",
        ),
    ],
)
def test_a_wrong_user_is_named_and_what_is_secret_is_not(users, problem):
    [said] = filters.login_problems(users)
    assert said.startswith(problem)
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (
            {"name": "p", "sha256": "a-token-itself"},
            "kestrel_web_tokens: p: sha256 is not the digest of a token",
        ),
        ({"name": "p", "sha256": SHA256, "role": "root"}, "kestrel_web_tokens: p: role root is unknown"),
        (
            {"name": "p", "sha256": SHA256, "token": "a-token-itself"},
            "kestrel_web_tokens: p: unknown option token",
        ),
    ],
)
def test_a_wrong_token_is_named_and_not_repeated(token, problem):
    [said] = filters.token_problems([token])
    assert said.startswith(problem)
    assert "a-token-itself" not in said


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ([], "kestrel_web_proxy must be a mapping like "),
        ({"addresses": ["10.0.0.5"]}, "kestrel_web_proxy: header  is no header's name"),
        ({"header": "X-User"}, "kestrel_web_proxy: addresses is empty: whose header is to be believed?"),
        (
            {"header": "X-User", "addresses": ["proxy"]},
            "kestrel_web_proxy: addresses: proxy is no address: write it like 10.0.0.5",
        ),
    ],
)
def test_a_proxy_that_anybody_could_be_is_refused(proxy, problem):
    [said] = filters.proxy_problems(proxy)
    assert said.startswith(problem)


@pytest.mark.parametrize(("prefix", "legal"), [("", True), ("/queues", True), ("/a/b-1", True), ("/", False)])
def test_a_prefix_is_a_path_without_an_end(prefix, legal):
    assert (filters.prefix_problems(prefix) == []) is legal
    for wrong in ("queues", "/a/", "//a", "/a b", "/..", "/a;b", "/a{"):
        assert filters.prefix_problems(wrong) != [], wrong


def test_unknown_actions_names_and_addresses_are_refused_by_name():
    assert filters.action_problems(list(filters.ACTIONS)) == []
    assert filters.action_problems(["flush", "reboot"]) == [
        "kestrel_web_actions: reboot is unknown: known are " + ", ".join(filters.ACTIONS)
    ]
    assert filters.name_problems(["queues.example.com", "10.0.0.1"], "kestrel_web_hosts") == []
    assert filters.name_problems(["queues.example.com:443"], "kestrel_web_hosts") == [
        "kestrel_web_hosts: queues.example.com:443 is no host's name: write it like queues.example.com,"
        " without port"
    ]
    assert filters.host_address_problems(["10.0.0.0/8"], "kestrel_web_forwarded_from") == [
        "kestrel_web_forwarded_from: 10.0.0.0/8 is no address: write it like 10.0.0.5"
    ]


SAYS = {
    "listen_address": "127.0.0.1",
    "nginx": False,
    "nginx_listen_address": "10.0.0.1",
    "users": [],
    "generate_login": False,
    "login_file": "",
    "proxy": {},
    "tls_certificate": "",
    "server_name": "",
}
NGINX = {"nginx": True, "tls_certificate": "/c", "server_name": "q.example.com"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, None),
        ({"listen_address": "10.0.0.1"}, "kestrel_web_listen_address 10.0.0.1 can be reached by others"),
        ({"listen_address": "0.0.0.0"}, "kestrel_web_listen_address 0.0.0.0 can be reached by others"),
        ({"listen_address": "::"}, "kestrel_web_listen_address :: can be reached by others"),
        ({"listen_address": "10.0.0.1", "users": [{"name": "a"}]}, None),
        ({"listen_address": "10.0.0.1", "proxy": {"header": "X"}}, None),
        ({"listen_address": "10.0.0.1", "generate_login": True, "login_file": "/x"}, None),
        ({"generate_login": True}, "kestrel_web_login_file is empty"),
        (
            {"generate_login": True, "login_file": "/x", "users": [{"name": "operator"}]},
            "operator is the name of",
        ),
        (NGINX, "kestrel_web_nginx_listen_address 10.0.0.1 can be reached by others"),
        ({**NGINX, "nginx_listen_address": "127.0.0.1"}, None),
        ({**NGINX, "users": [{"name": "a"}]}, None),
        ({**NGINX, "users": [{"name": "a"}], "listen_address": "10.0.0.1"}, "would be a way around nginx"),
        ({**NGINX, "users": [{"name": "a"}], "tls_certificate": ""}, "kestrel_web_nginx needs "),
        ({**NGINX, "users": [{"name": "a"}], "server_name": ""}, "kestrel_web_server_name is empty"),
    ],
)
def test_nobody_reaches_it_without_a_login_or_around_nginx(changed, named):
    said = filters.reach_problems({**SAYS, **changed})
    if named is None:
        assert said == []
    else:
        assert len(said) == 1
        assert named in said[0]


@pytest.mark.parametrize(
    ("server", "says", "host", "port"),
    [
        ("10.0.0.1:22133", {"kestrel_flavor": "release"}, "web", 2223),
        ("10.0.0.1:22133", {}, "web", 2223),  # a release, which listens everywhere, is the default
        ("10.0.0.1:22133", {"kestrel_flavor": "embedded"}, "web", None),
        ("10.0.0.1:22133", {"kestrel_flavor": "embedded"}, "queue", "127.0.0.1:2223"),
        ("127.0.0.1:22133", {"kestrel_flavor": "embedded"}, "queue", 2223),
        ("10.0.0.1:22133", {"kestrel_flavor": "embedded", "kestrel_admin_address": "10.0.0.1"}, "web", 2223),
        ("10.0.0.1:22133", {"kestrel_flavor": "embedded", "kestrel_admin_address": "0.0.0.0"}, "web", 2223),
        ("10.0.0.1:22133", {"kestrel_flavor": "embedded", "kestrel_admin_address": "10.9.9.9"}, "web", None),
        ("queue.lan:22133", {"kestrel_flavor": "embedded", "kestrel_admin_address": "10.0.0.1"}, "web", 2223),
        ("queue.lan:22133", {"kestrel_flavor": "embedded"}, "web", None),
        ("[fd00::1]:22133", {"kestrel_flavor": "embedded", "kestrel_admin_address": "fd00::1"}, "web", 2223),
        (
            "[fd00::1]:22133",
            {"kestrel_flavor": "embedded", "kestrel_admin_address": "::1"},
            "queue",
            "[::1]:2223",
        ),
        (
            "10.0.0.1:1",
            {"kestrel_flavor": "embedded", "kestrel_admin_address": "::", "kestrel_admin_port": 9},
            "web",
            9,
        ),
    ],
)
def test_the_admin_port_is_asked_only_where_it_can_be_reached(server, says, host, port):
    assert filters.admin_ports([server], ["queue"], {"queue": says}, host) == {server: port}
