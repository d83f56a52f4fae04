"""Administrator, token, organisation, team, project and DSN, asked of a stand-in for Sentry's own API."""

from __future__ import annotations

import json

import pytest

EXEC = "docker compose --env-file .env --env-file .env.custom exec -T web sentry"


def users(host):
    return json.loads((host.state_folder / "users.json").read_text())


def posts(host):
    lines = [json.loads(line) for line in (host.state_folder / "api.jsonl").read_text().splitlines()]
    return [(path, given) for method, path, given, _ in lines if method == "POST"]


def test_everything_is_made_once_and_written_down(installed):
    since = len(installed.calls())
    answer = installed.done("project")
    assert answer["made"] == ["administrator", "token", "team", "project", "dsn"]
    assert users(installed) == {"a@example.com": {"superuser": True, "password": "p4ssw0rd's \\n"}}
    # The user is made without a password, which then goes in by standard input.
    assert installed.called()[since:] == [
        f"{EXEC} exec",
        f"{EXEC} createuser --superuser --no-input --no-password --email a@example.com",
        f"{EXEC} exec",
        f"{EXEC} exec",
    ]
    assert posts(installed) == [
        ("/api/0/organizations/sentry/teams/", {"name": "shop", "slug": "shop"}),
        ("/api/0/teams/sentry/shop/projects/", {"name": "shop", "slug": "shop"}),
    ]
    told = installed.etc / "shop.json"
    assert json.loads(told.read_text()) == {
        "dsn": f"https://{'c' * 32}@errors.example.com/2",
        "url": "https://errors.example.com",
        "event_url": "https://errors.example.com/organizations/sentry/projects/shop/events/{event_id}/",
    }
    assert told.stat().st_mode & 0o777 == 0o600 and installed.etc.stat().st_mode & 0o777 == 0o700
    assert (installed.root / "token").stat().st_mode & 0o777 == 0o600
    since = len(installed.calls())
    answer = installed.done("project")
    assert (answer["changed"], answer["made"]) == (False, [])
    assert installed.called()[since:] == []
    assert installed.done("project", "--check")["changed"] is False


def test_a_changed_password_is_changed_there(installed):
    installed.done("project")
    (installed.root / "admin.json").write_text('{"email": "a@example.com", "password": "another one"}')
    assert installed.done("project")["made"] == ["administrator"]
    assert users(installed)["a@example.com"]["password"] == "another one"
    assert "another one" not in (installed.root / "state.json").read_text()


def test_a_token_that_is_refused_is_made_anew(installed):
    installed.done("project")
    (installed.state_folder / "tokens.json").write_text("[]")
    assert installed.done("project")["made"] == ["token"]


def test_an_organisation_that_cannot_be_made_is_told_with_those_there_are(installed):
    installed.want("26.7.0", organization="mine")
    found = installed.refused("project")
    assert "set sentry_organization to one that is (sentry)" in found


def test_a_missing_login_is_named(installed):
    (installed.root / "admin.json").unlink()
    assert "set sentry_admin_email and sentry_admin_password" in installed.refused("project")


def test_what_fails_inside_sentry_is_told_though_it_ends_with_0(installed):
    (installed.standin / "modules/sentry/models/apitoken.py").write_text(
        "raise RuntimeError('no such table')\n"
    )
    code, answer, _ = installed.do("project")
    assert code == 1
    assert "was not done" in answer["failed"]
    assert any("no such table" in line for line in answer["log"])


def test_a_sentry_that_is_down_is_told(installed):
    installed.done("project")
    installed.stop()
    assert "Sentry does not answer on 127.0.0.1" in installed.refused("project")


def test_an_event_is_waited_for(installed):
    installed.done("project")
    event = "fc6d8c0c43fc4630ad850ee518f1b9d0"
    assert f"does not show event {event}" in installed.refused("seen", event, "--seconds", "0")
    known = json.loads((installed.state_folder / "api.json").read_text())
    (installed.state_folder / "api.json").write_text(json.dumps(known | {"events": [event]}))
    answer = installed.done("seen", "fc6d8c0c-43fc-4630-ad85-0ee518f1b9d0", "--seconds", "0")
    base = "https://errors.example.com/organizations/sentry/projects/shop/events"
    assert answer == {"changed": False, "seen": True, "issue": "7", "url": f"{base}/{event}/"}
    assert "is no event's id" in installed.refused("seen", "../x")


@pytest.mark.parametrize("value", ['a"b', "it's", "back\\slash", "{x} %s", "ü"])
def test_any_value_gets_into_a_script_whole(host, value):
    assert eval(host.tool.literal(value), {"json": json}) == value
