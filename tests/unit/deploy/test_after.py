"""What follows a deploy, against a web server on this machine: who is told what, and that nothing fails."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from kestrel_stack.deploy.after import (
    AfterSpec,
    Bugsink,
    Deployed,
    Sentry,
    after_deploy,
    commits_of,
    message,
    parse_after,
    problems,
)
from kestrel_stack.deploy.errors import Refused
from support.deploy import GitApp, git, wait_for
from support.ports import nobody
from support.receiver import Receiver

TOKEN = "sntrys_0123456789abcdef"
RELEASE = "20261121T011500Z-1a2b3c4d"


@pytest.fixture
def receiver():
    with Receiver() as server:
        yield server


def deployed(**changes) -> Deployed:
    about = {
        "app": "shop",
        "environment": "lab",
        "release": RELEASE,
        "rev": "1a2b3c4d" + "0" * 32,
        "hosts": ("worker1", "worker2"),
        "seconds": 41.7,
        "previous": "20261120T011500Z-9f8e7d6c",
        "ref": "main",
        "by": "ann@laptop",
        "started_at": datetime(2026, 11, 21, 1, 15, tzinfo=UTC),
    }
    return Deployed(**{**about, **changes})


def sentry(receiver, prefix="") -> AfterSpec:
    return AfterSpec(Sentry("acme", ("shop", "shop-web"), receiver.url + prefix))


class Told:
    """What a person is shown."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def tell(self, spec, done=None, *, environ=None, timeout=10.0) -> Told:
        environ = {"SENTRY_AUTH_TOKEN": TOKEN} if environ is None else environ
        after_deploy(
            spec,
            done or deployed(),
            warn=self.warned.append,
            say=self.said.append,
            environ=environ,
            timeout=timeout,
        )
        return self

    @property
    def text(self) -> str:
        return "\n".join([*self.said, *self.warned])


# --- Sentry -------------------------------------------------------------------------------------------


def test_sentry_gets_a_release_with_its_commits_and_a_deploy_marker(receiver, tmp_path):
    app = GitApp(tmp_path / "application")
    old = app.commit_id
    app.write("shop/jobs.py", "# changed\n")
    app.commit("Change jobs\n\nIn two lines.")
    new = app.commit("Zoë's: nothing")
    told = Told().tell(
        sentry(receiver, "/sub"), deployed(rev=new, previous_rev=old, repository=app.repository)
    )
    assert told.warned == []
    release, marker = receiver.requests
    assert release.path == "/sub/api/0/organizations/acme/releases/"
    assert release.headers["Authorization"] == f"Bearer {TOKEN}"
    about = release.json
    assert (about["version"], about["projects"], about["ref"]) == (RELEASE, ["shop", "shop-web"], new)
    commits = [(one["id"], one["message"].strip(), one["author_name"]) for one in about["commits"]]
    assert [commit[1:] for commit in commits] == [
        ("Zoë's: nothing", "T"),
        ("Change jobs\n\nIn two lines.", "T"),
    ]
    assert commits[0][0] == new
    assert datetime.fromisoformat(about["commits"][0]["timestamp"]).tzinfo is not None
    assert marker.path == f"/sub/api/0/organizations/acme/releases/{RELEASE}/deploys/"
    assert marker.json["environment"] == "lab"
    assert marker.json["dateStarted"] == "2026-11-21T01:15:00.000Z"
    assert marker.json["dateFinished"] >= marker.json["dateStarted"]
    assert told.said == [f"Sentry knows release {RELEASE}, 2 commits and its deploy to lab"]


def test_commits_of_other_folders_of_the_repository_are_not_the_applications(tmp_path):
    app = GitApp(tmp_path / "repository", "apps/shop")
    old = app.commit_id
    (app.repository / "other").write_text("x")
    app.commit("elsewhere")
    app.write("shop/jobs.py", "# changed\n")
    new = app.commit("here")
    found = commits_of(deployed(rev=new, previous_rev=old, repository=app.repository, path="apps/shop"))
    assert [one["message"].strip() for one in found] == ["here"]


@pytest.mark.parametrize("previous", ["", "f" * 40, "--output=pwned"])
def test_without_a_known_revision_before_only_the_new_commit_is_told(tmp_path, previous):
    app = GitApp(tmp_path / "application")
    new = app.commit("second")
    found = commits_of(deployed(rev=new, previous_rev=previous, repository=app.repository))
    assert [one["id"] for one in found] == [new]
    assert git(app.repository, "status", "--porcelain") == ""


def test_no_repository_or_no_git_there_is_no_commit(tmp_path):
    assert commits_of(deployed()) == []
    assert commits_of(deployed(repository=tmp_path)) == []


def test_a_way_back_has_no_commits(receiver, tmp_path):
    app = GitApp(tmp_path / "application")
    old, new = app.commit_id, app.commit("second")
    done = deployed(action="rollback", rev=old, previous_rev=new, repository=app.repository)
    receiver.status = 208
    assert Told().tell(sentry(receiver), done).warned == []
    assert "commits" not in receiver.requests[0].json
    assert len(receiver.requests) == 2


def test_sentry_is_not_told_of_a_failed_deploy(receiver):
    told = Told().tell(sentry(receiver), deployed(result="failed", reason="worker1: boom"))
    assert (receiver.requests, told.text) == ([], "")


def test_without_a_token_sentry_is_not_asked(receiver):
    told = Told().tell(sentry(receiver), environ={})
    assert receiver.requests == []
    assert told.warned == [
        "Sentry was not told of it: set SENTRY_AUTH_TOKEN in the environment (scope project:releases)"
    ]


def test_a_token_that_would_break_the_header_is_refused_without_being_shown(receiver):
    told = Told().tell(sentry(receiver), environ={"SENTRY_AUTH_TOKEN": "a\nX-Evil: b"})
    assert receiver.requests == []
    assert told.warned == ["Sentry was not told of it: what SENTRY_AUTH_TOKEN holds is no token"]


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            401,
            b'{"detail": "Invalid token ' + TOKEN.encode() + b'"}',
            "is what SENTRY_AUTH_TOKEN holds right",
        ),
        (403, b'{"detail": "You do not have permission"}', "the token needs the scope project:releases"),
        (404, b'{"detail": "The requested resource does not exist"}', "are url, organization and projects"),
        (400, b'{"projects": ["Invalid project slugs"]}', "Invalid project slugs"),
        (500, b"<html>secret page</html>", "answered 500"),
    ],
)
def test_what_sentry_refuses_is_one_line_with_what_to_do_and_no_secret(receiver, status, answer, said):
    receiver.status, receiver.answer = status, answer
    told = Told().tell(sentry(receiver))
    assert told.said == []
    (line,) = told.warned
    assert line.startswith(f"Sentry was not told of it: 127.0.0.1 answered {status}")
    assert said in line
    assert TOKEN not in line
    assert "html" not in line


def test_a_redirect_is_not_followed_so_that_the_token_goes_nowhere_else(receiver):
    with Receiver() as other:
        receiver.status, receiver.headers = 302, {"Location": f"{other.url}/elsewhere"}
        told = Told().tell(sentry(receiver))
        assert other.requests == []
    assert "a redirect, which is not followed" in told.warned[0]


def test_sentry_is_told_the_environment_that_workers_report(receiver):
    told = Told().tell(sentry(receiver), deployed(environment="../inventories/eu", reported="production"))
    assert receiver.requests[1].json["environment"] == "production"
    assert told.said == [f"Sentry knows release {RELEASE} and its deploy to production"]


# --- Bugsink ------------------------------------------------------------------------------------------

PROJECTS = b'{"next":null,"previous":null,"results":[{"id":7,"slug":"shop"},{"id":9,"slug":"blog"}]}'
KNOWN_ALREADY = b'{"version":["Release with this version already exists for the project."]}'
BUGSINK = {"BUGSINK_AUTH_TOKEN": TOKEN}


def bugsink(receiver, *projects, prefix="") -> AfterSpec:
    return AfterSpec(bugsink=Bugsink(receiver.url + prefix, projects or ("shop",)))


def test_bugsink_gets_a_release_for_each_project_whose_number_it_is_asked_for(receiver):
    receiver.answer = PROJECTS
    told = Told().tell(bugsink(receiver, "shop", 3, prefix="/errors"), environ=BUGSINK)
    listed, first, second = receiver.requests
    assert (listed.method, listed.path) == ("GET", "/errors/api/canonical/0/projects/")
    assert {(one.method, one.path) for one in (first, second)} == {
        ("POST", "/errors/api/canonical/0/releases/")
    }
    assert [one.json["project"] for one in (first, second)] == [7, 3]
    assert {one.json["version"] for one in (first, second)} == {RELEASE}
    assert datetime.fromisoformat(first.json["timestamp"]).tzinfo is not None
    assert {one.headers["Authorization"] for one in receiver.requests} == {f"Bearer {TOKEN}"}
    assert (told.said, told.warned) == ([f"Bugsink knows release {RELEASE} in shop, 3"], [])


def test_numbers_alone_need_no_list_of_projects(receiver):
    Told().tell(bugsink(receiver, 7), environ=BUGSINK)
    assert [request.method for request in receiver.requests] == ["POST"]


def test_a_project_on_a_later_page_is_found_at_our_own_address(receiver):
    pages = [PROJECTS.replace(b"null", b'"http://other.example.org/?cursor=abc"', 1), PROJECTS]
    receiver.answer = pages[0].replace(b"shop", b"else")
    told = Told().tell(bugsink(receiver, "shop"), environ=BUGSINK)
    assert [request.path for request in receiver.requests[:2]] == [
        "/api/canonical/0/projects/",
        "/api/canonical/0/projects/?cursor=abc",
    ]
    # It goes on for ever here, and must end all the same.
    assert len(receiver.requests) == 20
    assert told.warned == ["Bugsink was not told of it: it has no project shop; there are blog, else"]


def test_a_release_that_bugsink_knows_from_an_event_is_no_failure(receiver):
    receiver.status, receiver.answer = 400, KNOWN_ALREADY
    told = Told().tell(bugsink(receiver, 7), environ=BUGSINK)
    assert (told.said, told.warned) == ([f"Bugsink knows release {RELEASE} in 7"], [])


def test_bugsink_is_not_told_of_a_failed_deploy_and_not_asked_without_a_token(receiver):
    assert Told().tell(bugsink(receiver), deployed(result="failed"), environ=BUGSINK).text == ""
    told = Told().tell(bugsink(receiver), environ={"SENTRY_AUTH_TOKEN": TOKEN})
    assert receiver.requests == []
    assert told.warned == [
        "Bugsink was not told of it: set BUGSINK_AUTH_TOKEN in the environment (releases:create and"
        " projects:read)"
    ]


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, b'{"detail":"Invalid Bearer token ' + TOKEN.encode() + b'"}', "what BUGSINK_AUTH_TOKEN holds"),
        (403, b'{"detail":"This token is not allowed"}', "the token needs releases:create"),
        (404, b"<!DOCTYPE html><title>secret</title>", "is url that of a Bugsink"),
        (400, b'{"project":["Invalid pk"]}', "Invalid pk"),
        (400, b'{"version":["This field may not be null."]}', "may not be null"),
        (200, b"<html>a login page</html>", "its list of projects is none; is url that of a Bugsink"),
        (200, b'{"results": {}, "next": null}', "it has no project shop; there are none that the token"),
        (302, b"", "a redirect, which is not followed"),
    ],
)
def test_what_bugsink_refuses_is_one_line_with_what_to_do_and_no_secret(receiver, status, answer, said):
    receiver.status, receiver.answer = status, answer
    told = Told().tell(bugsink(receiver), environ=BUGSINK)
    assert told.said == []
    (line,) = told.warned
    assert said in line
    assert TOKEN not in line
    assert "html" not in line


def test_a_bugsink_that_hangs_or_never_ends_is_given_up(receiver):
    receiver.hang = True
    told = Told().tell(bugsink(receiver), environ=BUGSINK, timeout=0.3)
    assert told.warned == ["Bugsink was not told of it: 127.0.0.1: no answer within 0 s"]
    receiver.hang, receiver.trickle = False, True
    told = Told().tell(bugsink(receiver), environ=BUGSINK, timeout=3)
    assert told.warned == ["Bugsink was not told of it: no whole answer within 3 s"]


# --- in bounded time ----------------------------------------------------------------------------------


def test_a_server_that_hangs_is_given_up(receiver):
    receiver.hang = True
    told = Told().tell(AfterSpec(sentry(receiver).sentry, f"{receiver.url}/hook?key=secret"), timeout=0.3)
    wait_for(lambda: len(receiver.requests) == 2)
    assert len(told.warned) == 2
    assert all("no answer within" in line for line in told.warned)


def test_a_server_that_never_ends_its_answer_is_given_up(receiver):
    receiver.trickle = True
    told = Told().tell(sentry(receiver), timeout=3)
    assert told.warned == ["Sentry was not told of it: no whole answer within 3 s"]


def test_a_server_that_is_away_is_named():
    told = Told().tell(AfterSpec(webhook=f"http://{nobody()}/services/T0/secret"))
    assert told.warned == ["the webhook was not told of it: 127.0.0.1: Connection refused"]


def test_one_that_fails_does_not_keep_the_other_from_being_told(receiver):
    told = Told().tell(AfterSpec(sentry(receiver).sentry, f"{receiver.url}/hook"), environ={})
    assert [request.path for request in receiver.requests] == ["/hook"]
    assert (len(told.said), len(told.warned)) == (1, 1)


def test_a_defect_of_ours_is_a_warning_too(receiver):
    told = Told().tell(AfterSpec(webhook=receiver.url), deployed(seconds="no number"))
    assert told.said == []
    assert told.warned == ["the webhook was not told of it: ValueError"]


# --- the webhook --------------------------------------------------------------------------------------


def test_the_webhook_gets_a_text_and_the_facts(receiver):
    told = Told().tell(AfterSpec(webhook=f"{receiver.url}/services/T0/secret?k=v"))
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/services/T0/secret?k=v")
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    assert request.json["text"] == (
        f"[lab] shop: deployed {RELEASE} (main, 1a2b3c4d) on 2 hosts in 42 s, by ann@laptop"
    )
    assert (request.json["result"], request.json["hosts"]) == ("ok", ["worker1", "worker2"])
    assert told.said == ["The webhook at 127.0.0.1 was told"]
    assert "secret" not in told.text


def test_the_webhook_hears_of_what_failed_and_why(receiver):
    Told().tell(
        AfterSpec(webhook=receiver.url), deployed(result="failed", reason="worker2: verify:\nboom", seconds=9)
    )
    text = receiver.requests[0].json["text"]
    assert text == (
        f"[lab] shop: deploy of {RELEASE} (main, 1a2b3c4d) to 2 hosts failed after 9 s, by ann@laptop:"
        " worker2: verify: boom"
    )


def test_a_rollback_says_so():
    assert "rolled back to" in message(deployed(action="rollback"))
    assert "on 1 host in" in message(deployed(hosts=("one",)))


def test_the_webhooks_address_may_come_from_the_environment(receiver):
    spec = parse_after({"webhook": "$CHAT_HOOK"}, "deploy.yml")
    assert Told().tell(spec, environ={"CHAT_HOOK": f"{receiver.url}/x"}).warned == []
    assert [request.path for request in receiver.requests] == ["/x"]
    assert Told().tell(spec, environ={}).warned == [
        "the webhook was not told of it: set CHAT_HOOK in the environment to its address"
    ]
    wrong = Told().tell(spec, environ={"CHAT_HOOK": "file:///etc/passwd"})
    assert wrong.warned == ["the webhook was not told of it: what CHAT_HOOK holds is no address (https://…)"]


def test_a_webhooks_address_in_an_answer_is_not_repeated(receiver):
    address = f"{receiver.url}/services/T0/secret"
    receiver.status, receiver.answer = 500, b'{"failed": "' + address.encode() + b'"}'
    told = Told().tell(AfterSpec(webhook=address))
    assert "answered 500" in told.warned[0]
    assert "secret" not in told.text


@pytest.mark.parametrize(
    "said",
    [
        b'{"path": "/services/T0/secret%20key", "error": "gone"}',
        b'{"error": "no hook secret key for T0", "token": "a-secret=="}',
    ],
)
def test_a_server_that_repeats_its_address_does_not_put_it_into_the_log(receiver, said):
    receiver.status, receiver.answer = 404, said
    told = Told().tell(AfterSpec(webhook=f"{receiver.url}/services/T0/secret%20key?token=a-secret=="))
    assert "answered 404 {" in told.text
    assert "secret" not in told.text


def test_a_deploy_to_another_environment_is_told_to_nobody(receiver):
    spec = parse_after({"webhook": receiver.url, "environments": ["production", "staging"]}, "deploy.yml")
    for about in ({"environment": "lab"}, {"environment": "production", "reported": "lab"}):
        assert Told().tell(spec, deployed(**about)).text == ""
    assert receiver.requests == []
    for about in ({"environment": "staging"}, {"environment": "../eu", "reported": "production"}):
        assert Told().tell(spec, deployed(**about)).said == ["The webhook at 127.0.0.1 was told"]
    assert len(receiver.requests) == 2


def test_nobody_to_tell_is_nothing_to_do():
    assert Told().tell(AfterSpec()).text == ""


# --- deploy.yml ---------------------------------------------------------------------------------------


def test_everything_can_be_said_and_nothing_needs_to_be():
    assert parse_after(None, "deploy.yml") == AfterSpec()
    assert parse_after({}, "deploy.yml") == AfterSpec()
    found = parse_after(
        {
            "sentry": {
                "url": "https://sentry.example.com/sub/",
                "organization": "acme",
                "projects": ["shop"],
            },
            "webhook": "https://chat.example.com/hooks/secret",
        },
        "deploy.yml",
    )
    assert found.sentry == Sentry("acme", ("shop",), "https://sentry.example.com/sub")
    assert "secret" not in repr(found)
    found = parse_after({"bugsink": {"url": "https://h:8765/x/", "projects": ["shop", 2]}}, "deploy.yml")
    assert found.bugsink == Bugsink("https://h:8765/x", ("shop", 2))
    default = parse_after({"sentry": {"organization": "acme", "projects": ["shop"]}}, "deploy.yml")
    assert default.sentry.url == "https://sentry.io"


WELL = {"organization": "acme", "projects": ["shop"]}
BUGSINK_WELL = {"url": "http://127.0.0.1:8765", "projects": ["shop"]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("chat", "after must be a mapping with the keys sentry, bugsink, webhook, environments"),
        ({"webhok": "x"}, "unknown key after.webhok: did you mean webhook?"),
        ({"sentry": {**WELL, "projekts": []}}, "unknown key after.sentry.projekts: did you mean projects?"),
        ({"sentry": {**WELL, "token": "abc-secret"}}, "unknown key after.sentry.token: known are url"),
        ({"sentry": []}, "after.sentry must be a mapping"),
        ({"sentry": {"projects": ["shop"]}}, "after.sentry.organization is None"),
        ({"sentry": {**WELL, "organization": "a/../b"}}, "after.sentry.organization is 'a/../b'"),
        ({"sentry": {**WELL, "projects": "shop"}}, "after.sentry.projects is 'shop'"),
        ({"sentry": {**WELL, "projects": []}}, "after.sentry.projects is []"),
        ({"sentry": {**WELL, "url": "https://me:abc-secret@h/"}}, "after.sentry.url must be an address"),
        ({"sentry": {**WELL, "url": "ftp://h/"}}, "after.sentry.url must be an address"),
        ({"bugsink": []}, "after.bugsink must be a mapping with the keys url, projects"),
        (
            {"bugsink": {**BUGSINK_WELL, "project": "shop"}},
            "unknown key after.bugsink.project: did you mean projects?",
        ),
        (
            {"bugsink": {**BUGSINK_WELL, "token": "abc-secret"}},
            "unknown key after.bugsink.token: known are url",
        ),
        ({"bugsink": {"projects": ["shop"]}}, "after.bugsink.url must be an address"),
        ({"bugsink": {**BUGSINK_WELL, "url": "https://me:abc-secret@h/"}}, "after.bugsink.url must be an"),
        ({"bugsink": {**BUGSINK_WELL, "url": "file:///etc"}}, "after.bugsink.url must be an address"),
        ({"bugsink": {**BUGSINK_WELL, "url": "http://h/?token=abc-secret"}}, "after.bugsink.url must be an"),
        ({"bugsink": {**BUGSINK_WELL, "url": "http://h/#abc-secret"}}, "after.bugsink.url must be an"),
        ({"bugsink": {"url": "http://h"}}, "after.bugsink.projects is None"),
        ({"bugsink": {**BUGSINK_WELL, "projects": "shop"}}, "after.bugsink.projects is 'shop'"),
        ({"bugsink": {**BUGSINK_WELL, "projects": [True]}}, "after.bugsink.projects is [True]"),
        ({"bugsink": {**BUGSINK_WELL, "projects": [0]}}, "after.bugsink.projects is [0]"),
        ({"bugsink": {**BUGSINK_WELL, "projects": ["../x"]}}, "after.bugsink.projects is ['../x']"),
        ({"environments": "production"}, "after.environments is 'production'"),
        ({"environments": []}, "after.environments is []"),
        ({"environments": [1]}, "after.environments is [1]"),
        ({"webhook": 5}, "after.webhook must be an address"),
        ({"webhook": "chat.example.com/abc-secret"}, "after.webhook must be an address"),
        ({"webhook": "https://h:port/abc-secret"}, "after.webhook must be an address"),
        ({"webhook": "$NO NAME"}, "after.webhook must be an address"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_and_no_secret_is_shown(value, said):
    with pytest.raises(Refused) as refused:
        parse_after(value, "deploy.yml")
    assert str(refused.value).startswith("deploy.yml: ")
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_known_before_the_deploy():
    spec = AfterSpec(Sentry("acme", ("shop",)), "$CHAT_HOOK")
    found = problems(spec, {})
    assert len(found) == 2
    assert re.search("SENTRY_AUTH_TOKEN", found[0])
    assert re.search("CHAT_HOOK", found[1])
    both = AfterSpec(bugsink=Bugsink("http://h", (1,)))
    assert ["BUGSINK_AUTH_TOKEN" in line for line in problems(both, {})] == [True]
    assert problems(both, BUGSINK) == []
    assert problems(spec, {"SENTRY_AUTH_TOKEN": TOKEN, "CHAT_HOOK": "https://h/x"}) == []
