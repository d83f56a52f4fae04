"""`after.bugsink` of a deploy.yml, against a real Bugsink."""

from __future__ import annotations

import json

import pytest

from kestrel_stack.consumer import sentry
from kestrel_stack.deploy.after import Deployed, after_deploy, parse_after
from support.broker import wait_until
from support.bugsink import Bugsink

RELEASE = "20261121T011500Z-1a2b3c4d"

TOKENS = """
import json
from bsmain.models import AuthToken
from projects.models import Project
shop = Project.objects.get(name="shop")
bound = {"is_project_bound": True, "project": shop}
print(json.dumps({
    "enough": AuthToken.objects.create(releases_create=True, projects_read=True, **bound).token,
    "creates": AuthToken.objects.create(releases_create=True, **bound).token,
    "reads": AuthToken.objects.create(projects_read=True, releases_read=True).token,
}))
"""


@pytest.fixture(scope="module")
def bugsink(tmp_path_factory):
    with Bugsink(tmp_path_factory.mktemp("bugsink")) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(bugsink):
    """Tokens that may do less than everything."""
    return json.loads(bugsink.manage("shell", "-c", TOKENS).strip().splitlines()[-1])


def tell(bugsink, projects, token, release=RELEASE) -> tuple[list[str], list[str]]:
    """Tell of a deploy as fab does; return what was said and what was warned of."""
    spec = parse_after({"bugsink": {"url": bugsink.url, "projects": projects}}, "deploy.yml")
    done = Deployed("shop", "lab", release, "1a2b3c4d" + "0" * 32, ("worker1",), 41.7)
    said, warned = [], []
    environ = {"BUGSINK_AUTH_TOKEN": token}
    after_deploy(spec, done, warn=warned.append, say=said.append, environ=environ)
    assert token not in "".join(said + warned)
    return said, warned


def releases(bugsink) -> list[str]:
    return [one["version"] for one in bugsink.get("releases/", project=bugsink.project)["results"]]


def test_a_release_is_made_once_however_often_it_is_told(bugsink):
    for project in ("shop", bugsink.project):
        said, warned = tell(bugsink, [project], bugsink.token)
        assert (said, warned) == ([f"Bugsink knows release {RELEASE} in {project}"], [])
    assert releases(bugsink).count(RELEASE) == 1


def test_a_release_that_an_event_came_from_is_known_already(bugsink):
    event = sentry.make_event("Boom", "broken", level="error", tags={"job": "SendMail"})
    sentry.send(bugsink.dsn, {**event, "release": "20261121T020000Z-2b3c4d5e"})
    wait_until(lambda: "20261121T020000Z-2b3c4d5e" in releases(bugsink), "Bugsink to digest the event")
    said, warned = tell(bugsink, ["shop"], bugsink.token, "20261121T020000Z-2b3c4d5e")
    assert (len(said), warned) == (1, [])


def test_a_token_needs_no_more_than_the_page_says(bugsink, tokens):
    assert tell(bugsink, ["shop"], tokens["enough"], "20261121T030000Z-00000001")[1] == []
    assert tell(bugsink, [bugsink.project], tokens["creates"], "20261121T030000Z-00000002")[1] == []
    assert {"20261121T030000Z-00000001", "20261121T030000Z-00000002"} <= set(releases(bugsink))
    for projects, token in ((["shop"], "creates"), (["shop"], "reads")):
        said, (line,) = tell(bugsink, projects, tokens[token], "20261121T030000Z-00000003")
        assert said == []
        assert "answered 403" in line
        assert "the token needs releases:create, and projects:read where" in line
    assert "20261121T030000Z-00000003" not in releases(bugsink)


@pytest.mark.parametrize(
    ("projects", "token", "words"),
    [
        (["shpo"], None, "it has no project shpo; there are shop"),
        ([4711], None, 'Invalid pk \\"4711\\"'),
        (["shop"], "0" * 40, "Invalid Bearer token"),
        (["shop"], "sntrys_abc", "is what BUGSINK_AUTH_TOKEN holds right?"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_so(bugsink, projects, token, words):
    said, (line,) = tell(bugsink, projects, token or bugsink.token, "20261121T040000Z-00000004")
    assert said == []
    assert line.startswith("Bugsink was not told of it: ")
    assert words in line
    assert "20261121T040000Z-00000004" not in releases(bugsink)


def test_a_bugsink_that_is_away_is_a_line_too(bugsink):
    bugsink.stop()
    try:
        assert tell(bugsink, ["shop"], bugsink.token) == (
            [],
            ["Bugsink was not told of it: 127.0.0.1: Connection refused"],
        )
    finally:
        bugsink.start()
