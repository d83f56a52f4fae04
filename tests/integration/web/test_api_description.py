"""The API held to its description by a stranger who reads only that: schemathesis, and wrong data too."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers

TOKEN = "a-token-of-an-operator-" + "0123456789" * 3

# What a schema cannot say: a filter is a language of its own, a start is before its end, and what an item
# must be depends on the settings of its queue, as does whether it can have parked jobs.
# Data that fits the schema may be refused there.
CONFIG = """
[[operations]]
include-operation-id = ["queues", "history", "enqueue", "requeue", "drop"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "403", "404", "409"]
"""


def play(tmp_path: Path, *flags: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Let schemathesis loose on a kestrel-web with a broker of its own."""
    with BrokerProcess(tmp_path) as broker:
        job = Envelope("Hello", "acme", {}).encode()
        parked = ParkedRecord("failed", job, attempts=1, sentry_event="0123456789abcdef" * 2).encode()
        for queue, body in (
            ("plain", b"x"),
            ("f+copy", b"\xff\0"),
            ("shop_mail", b"{}"),
            ("shop_mail_errors", parked),
        ):
            with broker.connect() as raw:
                raw.set(queue, body)
        token = {"name": "tester", "role": "operator", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
        # With a login nothing is answered without the token.
        proxy = {"header": "X-Remote-User", "addresses": ["192.0.2.1"]}
        known = {"tokens": [token], "proxy": proxy, "event_url": "https://errors.example.org/e/{event_uuid}/"}
        with KestrelWeb(tmp_path / "web", **servers(broker), **known) as web:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            wait_until(
                lambda: web.get("/api/v1/queues/plain", headers).status == 200, "the queues to be seen"
            )
            (tmp_path / "schemathesis.toml").write_text(CONFIG)
            program = Path(sys.executable).with_name("schemathesis")
            return subprocess.run(
                [
                    program,
                    "run",
                    f"{web.url}/api/v1/openapi.json",
                    "-H",
                    f"Authorization: Bearer {TOKEN}",
                    *flags,
                ],
                cwd=tmp_path,
                env={**os.environ, "NO_COLOR": "1"},
                capture_output=True,
                text=True,
                timeout=timeout,
            )


def fine(done: subprocess.CompletedProcess[str]) -> None:
    """Everything was tried, and nothing found."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout, done.stdout
    # Otherwise nothing at all may have been tried.
    assert "Operations:       20 selected / 20 total" in done.stdout, done.stdout


COMMON = ("--warnings", "off", "--no-shrink", "--continue-on-failure")


def test_it_is_as_described(tmp_path):
    fine(play(tmp_path, "--max-examples=4", "--seed=1", *COMMON, timeout=120))


@pytest.mark.long
def test_it_is_as_described_whatever_is_sent(tmp_path):
    fine(play(tmp_path, "--max-examples=200", *COMMON, timeout=900))
