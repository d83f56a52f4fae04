"""What the inventory says of where errors go: what is refused, and what is said of one left behind."""

from __future__ import annotations

import importlib.util

import pytest

from support.ansible_filters import PATH

SPEC = importlib.util.spec_from_file_location(
    "kestrel_stack_errors", PATH.with_name("kestrel_stack_errors.py")
)
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

NGINX = {
    "url": "",
    "listen_address": "127.0.0.1",
    "port": 8765,
    "nginx": True,
    "nginx_port": 443,
    "server_name": "errors.example.com",
    "tls_certificate": "/etc/ssl/errors.pem",
    "generate_login": False,
    "login_file": "",
    "admin_email": "anna@example.com",
    "admin_password": "a sample, not a secret",
}


@pytest.mark.parametrize(
    ("says", "url"),
    [
        (NGINX, "https://errors.example.com"),
        ({**NGINX, "nginx_port": 8443}, "https://errors.example.com:8443"),
        ({**NGINX, "url": "https://e.example.com/"}, "https://e.example.com"),
        ({**NGINX, "nginx": False, "listen_address": "10.0.0.1"}, "http://10.0.0.1:8765"),
        ({**NGINX, "nginx": False, "listen_address": "fd00::1"}, "http://[fd00::1]:8765"),
        ({**NGINX, "nginx": False, "listen_address": "::"}, "http://[fd00::9]:8765"),
    ],
)
def test_what_it_is_called_by_follows_from_what_is_in_front(says, url):
    assert filters.url(says, "fd00::9") == url
    assert filters.url_problems(url) == []


def test_http_is_refused_where_nginx_speaks_https_alone():
    assert filters.reach_problems(NGINX, "errors1", ["worker1"]) == []
    said = filters.reach_problems({**NGINX, "url": "http://errors.example.com"}, "errors1", ["worker1"])
    assert said == [
        "sentry_url http://errors.example.com is HTTP, and sentry_nginx speaks HTTPS alone: write it with https://"
    ]


@pytest.mark.parametrize(
    ("own", "other", "refused"),
    [
        (["10.0.0.1", 443], ["10.0.0.1", "443"], True),
        (["10.0.0.1", 443], ["0.0.0.0", 443], True),
        (["::", 443], ["10.0.0.1", 443], True),
        (["10.0.0.1", 443], ["10.0.0.2", 443], False),
        (["10.0.0.1", 8443], ["10.0.0.1", 443], False),
        ([], [], False),
    ],
)
def test_two_nginx_of_one_host_need_two_places(own, other, refused):
    said = filters.shared_problems(own, other)
    assert [text.partition(" is ")[0] for text in said] == ["sentry_nginx_port 443"] * refused


def test_a_project_is_for_one_application():
    assert filters.app_problems("shop", {"worker1": "shop", "worker2": "shop"}, "errors1") == []
    (said,) = filters.app_problems("shop", {"worker1": "shop", "worker2": "depot"}, "errors1")
    assert said.startswith(
        "kestrel_stack_app of worker2 is depot, and errors1 of group sentry has a project for shop"
    )


@pytest.mark.parametrize(
    ("enabled", "backend", "hosts", "said"),
    [
        ([], "none", [], []),
        (["bugsink"], "bugsink", ["errors1"], []),
        (["bugsink"], "none", [], ["still runs Bugsink, and sentry_backend is none: nothing reports there"]),
        (["self_hosted"], "external", [], ["still runs Sentry, and sentry_backend is external: nothing"]),
        (
            ["bugsink", "self_hosted"],
            "self_hosted",
            ["errors1"],
            ["still runs Bugsink, and sentry_backend is self_hosted: nothing reports there"],
        ),
        (
            ["bugsink"],
            "bugsink",
            ["errors2"],
            ["still runs Bugsink, and errors go to errors2: nothing reports"],
        ),
    ],
)
def test_a_backend_that_was_left_is_named(enabled, backend, hosts, said):
    found = filters.left(enabled, backend, hosts, "errors1")
    assert len(found) == len(said)
    for text, start in zip(found, said, strict=True):
        assert text.startswith(f"errors1 {start}")
