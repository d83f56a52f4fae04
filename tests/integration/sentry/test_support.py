"""The real Bugsink that other tests use: what is sent to it is there, and stays while it is away."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from urllib.parse import urlsplit

import pytest

from support.bugsink import Bugsink


def send(dsn: str, message: str) -> str:
    """Send one event as the protocol has it; return its id."""
    parts, event = urlsplit(dsn), uuid.uuid4().hex
    payload = json.dumps({"event_id": event, "message": message, "level": "error", "platform": "python"})
    body = f'{{"event_id":"{event}"}}\n{{"type":"event","length":{len(payload)}}}\n{payload}\n'
    request = urllib.request.Request(
        f"http://{parts.hostname}:{parts.port}/api{parts.path}/envelope/",
        body.encode(),
        {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_client=test/1, sentry_key={parts.username}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    return event


def test_what_is_sent_is_found_again_and_one_that_was_away_still_has_it(tmp_path):
    with Bugsink(tmp_path / "bugsink") as bugsink:
        sent = [send(bugsink.dsn, text) for text in ("out of stock", "out of stock", "no such card")]
        issues = bugsink.wait_for_events(3)
        assert sorted(issue["digested_event_count"] for issue in issues) == [1, 2]
        events = [event for issue in issues for event in bugsink.events(issue["id"])]
        assert sorted(uuid.UUID(event["event_id"]).hex for event in events) == sorted(sent)
        assert {event["data"]["message"] for event in events} == {"out of stock", "no such card"}
        bugsink.stop()
        with pytest.raises(urllib.error.URLError):
            send(bugsink.dsn, "nobody there")
        bugsink.start()
        send(bugsink.dsn, "out of stock")
        assert len(bugsink.wait_for_events(4)) == 2
        bugsink.quota(per_5_minutes=5)
        send(bugsink.dsn, "the last one")
        bugsink.wait_for_events(5)
        with pytest.raises(urllib.error.HTTPError, match="429"):
            send(bugsink.dsn, "one too many")
