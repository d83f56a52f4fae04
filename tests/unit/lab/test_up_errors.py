"""Where the errors of jobs are, as ``bin/up`` says it at its end; a small server stands in for Bugsink."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kestrel_stack.lab import login, up
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import Lab


class Ready(BaseHTTPRequestHandler):
    """Says that it is ready, or whatever `status` is."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    Ready.status = 200
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def lab_with(state: Path, *sentry: str) -> Lab:
    return Lab(state, "lab", "0", ("worker1", "monitor1"), {"sentry": sentry}, state)


def told(lab: Lab, **variables: object) -> list[tuple[str, str]]:
    addresses = dict.fromkeys(lab.hosts, "127.0.0.1")
    return up._errors(lab, addresses, dict.fromkeys(lab.hosts, variables))


def test_its_address_is_shown_and_where_the_password_is_but_not_the_password(
    tmp_path: Path, port: int
) -> None:
    lab = lab_with(tmp_path, "monitor1")
    made = login.ensure(lab.sentry_login, "admin@lab.invalid")
    [(name, shown)] = told(
        lab,
        sentry_backend="bugsink",
        sentry_bugsink_port=port,
        sentry_listen_address="{{ kestrel_stack_address }}",
        sentry_generate_login=True,
    )
    assert name == "Bugsink on monitor1"
    assert shown == (f"http://127.0.0.1:{port}/ (user admin@lab.invalid, password in {lab.sentry_login})")
    assert made["password"] not in shown


@pytest.mark.parametrize("status", [400, 503])
def test_one_that_does_not_answer_well_is_named_with_its_log(tmp_path: Path, port: int, status: int) -> None:
    Ready.status = status
    with pytest.raises(LabError, match=rf"monitor1: Bugsink .*{status}.*journalctl --unit 'bugsink\*'"):
        told(
            lab_with(tmp_path, "monitor1"),
            sentry_backend="bugsink",
            sentry_bugsink_port=port,
            sentry_listen_address="127.0.0.1",
        )


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [
        ("none", "in the workers' logs only (sentry_backend: none)"),
        ("external", "sent to the project of app_host_sentry_dsn (sentry_backend: external)"),
    ],
)
def test_without_one_it_says_where_errors_go(tmp_path: Path, backend: str, wanted: str) -> None:
    assert told(lab_with(tmp_path), sentry_backend=backend) == [("errors of jobs", wanted)]
