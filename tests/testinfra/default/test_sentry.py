"""Errors after site.yml and a deploy: jobs of both languages that fail, as Bugsink on its host has them."""

from __future__ import annotations

import http.cookiejar
import json
import re
import shlex
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import pytest

# Run as root on Bugsink's host, where the token is: prints the issues of the project, each with its events.
ASK = """
import json, urllib.request

told = json.load(open("/etc/kestrel-stack-sentry/shop.json"))
token = open("/etc/bugsink/token").read().strip()

def get(path):
    request = urllib.request.Request(told["url"].rstrip("/") + "/api/canonical/0/" + path)
    request.add_header("Authorization", "Bearer " + token)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)

project = told["dsn"].rsplit("/", 1)[1]
issues = get("issues/?project=" + project)["results"]
for issue in issues:
    listed = get("events/?order=desc&issue=" + issue["id"])["results"][:20]
    issue["events"] = [get("events/" + each["id"] + "/")["data"] for each in listed]
print(json.dumps(issues))
"""
MAIL = "/etc/supervisor/conf.d/kestrel-stack.shop.shop_mail.conf"


@pytest.fixture
def host(stack):
    [found] = stack.group("sentry")
    return found


@pytest.fixture
def issues(root, host):
    """Ask Bugsink for its issues; `events` of each are the newest ones, as they were sent."""
    return lambda: json.loads(root(host, shlex.join(["python3", "-c", ASK])))


@pytest.fixture
def tenant():
    """A tenant that no other test and no former run has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def enqueue(stack):
    """Enqueue the shop's jobs on a host."""

    def put(name, job, tenant, count=1):
        command = f"venv/bin/python enqueue.py --tenant {tenant} --job {job} --count {count}"
        done = stack.host(name, "deploy").run(f"cd /srv/shop/current && {command}")
        assert done.rc == 0, done.stderr

    return put


@pytest.fixture
def parked(stack):
    """List a tenant's parked jobs."""

    def listed(queue, tenant):
        name = stack.group("consumers")[0]
        command = f"kestrel-stack-jobs parked list {queue} --tenant {tenant} --json"
        done = stack.host(name, "deploy").run(command)
        assert done.rc == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return listed


@pytest.fixture
def visitor(stack, host):
    """Somebody who has logged in to Bugsink's pages, from the machine that the tests run on."""
    if "sentry_listen_address" not in stack.vars(host):
        pytest.skip("it listens on its host alone")
    address = f"http://{stack.vars(host)['kestrel_stack_address']}:8765"
    login = json.loads(Path(stack.vars(host)["sentry_login_file"]).read_text())
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    form = browser.open(f"{address}/accounts/login/", timeout=30).read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)[1]
    fields = {"username": login["email"], "password": login["password"], "csrfmiddlewaretoken": token}
    answer = browser.open(
        f"{address}/accounts/login/", urllib.parse.urlencode(fields).encode("ascii"), timeout=30
    )
    assert "/login" not in answer.url
    return browser


def of_tenant(issues, *tenants):
    """Return the issues that have events of these tenants, with these events alone."""
    found = []
    for issue in issues:
        events = [event for event in issue["events"] if event.get("tags", {}).get("tenant") in tenants]
        if events:
            found.append((issue, events))
    return found


def counted(found):
    return sum(len(events) for _, events in found)


@pytest.mark.parametrize(
    ("job", "queue", "level", "platform"),
    [("PostToPartner", "partner_api", "warning", "python"), ("PostUpload", "post_upload", "error", "php")],
)
def test_a_job_that_fails_for_two_tenants_is_one_issue_with_all_that_is_known_of_it(
    stack, issues, enqueue, eventually, tenant, job, queue, level, platform
):
    other = f"{tenant}b"
    first, second = stack.group("consumers")
    enqueue(first, job, tenant)
    enqueue(second, job, other)
    # An issue is asked for before its events are: its count may be of the moment before the second one.
    found = eventually(
        lambda: (
            counted(seen := of_tenant(issues(), tenant, other)) >= 2
            and sum(issue["digested_event_count"] for issue, _ in seen) >= 2
            and seen
        ),
        "Bugsink has two events",
    )
    [(_, events)] = found
    release = stack.host(first, "deploy").run("readlink /srv/shop/current").stdout.strip()
    assert {event["tags"]["tenant"] for event in events} == {tenant, other}
    for event in events:
        tags = event["tags"]
        assert (tags["job"], tags["queue"], tags["attempt"]) == (job, f"shop_{queue}", "1")
        assert tags["release"] == event["release"] == release.removeprefix("releases/")
        assert event["level"] == level
        assert event["platform"] == platform
        assert event["environment"] == "lab"
        assert event["server_name"] in (first, second)
        [exception] = event["exception"]["values"]
        assert exception["stacktrace"]["frames"]
        # The line that the log keeps back.
        crumbs = event["breadcrumbs"]["values"]
        assert "debug" in {crumb["level"] for crumb in crumbs}, crumbs


def test_a_parked_job_names_its_event_and_kestrel_web_links_to_it(
    root, stack, issues, enqueue, parked, eventually, tenant, host, operator, panel, visitor
):
    enqueue(stack.group("consumers")[0], "PostUpload", tenant)
    [(_, [event])] = eventually(lambda: of_tenant(issues(), tenant), "Bugsink has the event")
    [record] = eventually(lambda: parked("post_upload", tenant), "the job is parked")
    assert record["sentry_event"] == event["event_id"]
    told = json.loads(root(host, "cat /etc/kestrel-stack-sentry/shop.json"))
    config = json.loads(root(panel, "cat /etc/kestrel-web/kestrel-web.json"))
    assert config["event_url"] == told["event_url"]
    said = operator.ask("GET", "/api/v1/queues/shop_post_upload_errors/peek")
    head = json.loads(said[2])["parked"]
    shown = {"event_id": head["sentry_event"], "event_uuid": uuid.UUID(head["sentry_event"])}
    assert head["sentry_url"] == told["event_url"].format(**shown)
    # Whoever is logged in there sees the event, others are asked to log in.
    with visitor.open(head["sentry_url"], timeout=30) as answer:
        assert "nobody takes uploads" in answer.read().decode()
    with urllib.request.urlopen(head["sentry_url"], timeout=30) as answer:
        assert "/accounts/login/" in answer.url
        assert "nobody takes uploads" not in answer.read().decode()


def test_every_consumer_host_has_sent_one_test_event_and_no_second_one(stack, issues):
    sent = [
        event["server_name"]
        for issue in issues()
        for event in issue["events"]
        if issue["calculated_value"].startswith("Kestrel Stack can report errors from")
    ]
    assert sorted(sent) == sorted(stack.group("consumers"))


@pytest.fixture
def fatal(stack, root, eventually):
    """Have supervisor give up the worker of a queue, and put all back."""
    name = stack.group("consumers")[-1]
    root(name, f"cp -a {MAIL} /root/shop_mail.conf")
    yield lambda: root(
        name,
        f"sed -i 's#^command=.*#command=/bin/false#; s#^startretries=.*#startretries=1#' {MAIL};"
        " supervisorctl update",
    )
    root(name, f"mv /root/shop_mail.conf {MAIL}; supervisorctl update")
    state = "supervisorctl status shop_mail: || true"
    eventually(lambda: "RUNNING" in root(name, state), "the worker runs again")


def test_a_worker_that_supervisor_gives_up_is_an_issue(stack, issues, fatal, eventually):
    def given_up():
        return [
            event
            for issue in issues()
            for event in issue["events"]
            if event.get("tags", {}).get("kind") == "fatal" and event["tags"]["group"] == "shop_mail"
        ]

    before = len(given_up())
    fatal()
    event = eventually(lambda: len(seen := given_up()) > before and seen, "Bugsink has the event")[0]
    assert event["level"] == "fatal"
    assert event["tags"]["process"] == "shop_mail_00"
    assert event["server_name"] == stack.group("consumers")[-1]


def test_while_bugsink_is_away_jobs_are_done_and_parked_as_ever(
    stack, root, host, issues, enqueue, parked, eventually, tenant
):
    first = stack.group("consumers")[0]
    root(host, "systemctl stop bugsink")
    try:
        enqueue(first, "PostUpload", tenant, 3)
        eventually(lambda: len(parked("post_upload", tenant)) == 3, "three jobs are parked")
    finally:
        root(host, "systemctl start bugsink")
    ready = f"curl -s -o /dev/null -w '%{{http_code}}' {stack_url(root, host)}/health/ready || true"
    eventually(lambda: root(host, ready) == "200", "Bugsink is ready")
    after = f"{tenant}b"
    # Whoever was refused a connection tries the next event again.
    enqueue(first, "PostUpload", after, 3)
    eventually(lambda: of_tenant(issues(), after), "Bugsink has an event again")


def stack_url(root, host):
    return json.loads(root(host, "cat /etc/kestrel-stack-sentry/shop.json"))["url"].rstrip("/")
