"""The real Bugsink that other tests use: what is sent to it is there, and stays while it is away."""

from __future__ import annotations

import urllib.error
import urllib.request
import uuid

import pytest

from support.bugsink import Bugsink, send


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
