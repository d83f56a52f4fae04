"""Failing jobs of both languages become issues of a real Bugsink: real workers, and the embedded broker.

PHP's own library cannot be installed everywhere: `composer require sentry/sentry` in .build/php-sentry, or
KESTREL_STACK_PHP_SENTRY with another autoload.php, and its tests run as well.
"""

import importlib.util
import json
import os
import re
import signal
import uuid
from pathlib import Path

import pytest

from kestrel_stack.queue import Producer
from kestrel_stack.queue.envelope import ParkedRecord
from support.broker import BrokerProcess, wait_until
from support.bugsink import Bugsink
from support.worker import ROOT, App, WorkerProcess, settings

RELEASE = "20261121T011500Z-1a2b3c4d"
TRACE = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
PHP_LIBRARY = Path(os.environ.get("KESTREL_STACK_PHP_SENTRY", ROOT / ".build/php-sentry/vendor/autoload.php"))
has_sdk = pytest.mark.skipif(
    importlib.util.find_spec("sentry_sdk") is None, reason="sentry_sdk is not installed"
)
has_php_sdk = pytest.mark.skipif(
    not PHP_LIBRARY.is_file(),
    reason="sentry/sentry is not installed: composer require it in .build/php-sentry",
)

PYTHON = """
from kestrel_stack.consumer import Registry

registry = Registry()


def tell_partner(order, password):
    try:
        {}["address"]
    except KeyError as exc:
        raise RuntimeError(f"partner does not answer for order {order}") from exc


@registry.job("TellPartner")
def tell(data, context):
    context.log.debug("asking the partner", url="https://partner.example")
    context.log.info("waiting", seconds=2)
    tell_partner(data["order"], data["password"])


@registry.job("BillPartner")
def bill(data, context):
    tell_partner(data["order"], data["password"])


@registry.job("Forget")
def forget(data, context):
    raise LookupError("nobody knows it")
"""
PHP = """<?php

use KestrelStack\\Consumer\\{Context, Registry};

function tell_partner(int $order, string $password): void
{
    $cause = new OutOfBoundsException('address');
    throw new RuntimeException("partner does not answer for order $order", 0, $cause);
}

return (new Registry())
    ->job('TellPartner', function (array $data, Context $context): void {
        $context->log->debug('asking the partner', ['url' => 'https://partner.example']);
        $context->log->info('waiting', ['seconds' => 2]);
        tell_partner($data['order'], $data['password']);
    })
    ->job('BillPartner', function (array $data, Context $context): void {
        tell_partner($data['order'], $data['password']);
    })
    ->job('Forget', function (array $data, Context $context): void {
        throw new LengthException('nobody knows it');
    });
"""
SENDERS = [
    "python",
    pytest.param("python with sentry_sdk", marks=has_sdk),
    "php",
    pytest.param("php with sentry/sentry", marks=has_php_sdk),
]
KINDS = {"python": ("RuntimeError", "LookupError"), "php": ("RuntimeException", "LengthException")}
CAUSES = {"python": "KeyError", "php": "OutOfBoundsException"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture(scope="module")
def one_bugsink(tmp_path_factory):
    with Bugsink(tmp_path_factory.mktemp("bugsink")) as started:
        yield started


class Site:
    """One application, in one language, with one sender, which has a project of its own in Bugsink."""

    def __init__(self, folder, broker, bugsink, sender):
        self.language, _, library = sender.partition(" with ")
        self.broker = broker
        self.bugsink = bugsink
        self.app = App(folder / "app")
        # A name of its own for each: what other senders reported is not looked at.
        self.environment = f"test-{uuid.uuid4().hex[:8]}"
        self.queue = f"mail{uuid.uuid4().hex[:8]}"
        if self.language == "python":
            first = "" if library else "import sys\nsys.modules['sentry_sdk'] = None\n"
            (self.app.folder / "special.py").write_text(first + PYTHON)
            self.app_name = "special:registry"
        else:
            text = PHP.replace("<?php\n", f"<?php\nrequire '{PHP_LIBRARY}';\n") if library else PHP
            (self.app.folder / "special.php").write_text(text)
            self.app_name = "special.php"

    def work(self, jobs, delays=()):
        """Have a worker do jobs, of (name, tenant), with all their attempts; return the parked records."""
        queue = {"name": self.queue, "language": self.language, "retry_delays": list(delays)}
        config = settings(self.broker.address, queue)
        config |= {"sentry_dsn": self.bugsink.dsn, "host": "worker1", "environment": self.environment}
        for number, (job, tenant) in enumerate(jobs):
            data = {"order": 1000 + number, "password": "hunter2-secret"}
            with Producer("shop", tenant, servers=[self.broker.address], queues=[self.queue]) as send:
                send.enqueue(job, data, queue=self.queue, trace=TRACE)
        with WorkerProcess(
            *(self.app, self.broker.address),
            name=self.queue,
            language=self.language,
            queue=self.queue,
            app_name=self.app_name,
            settings=config,
            debug=False,
            environ={"KESTREL_STACK_RELEASE": RELEASE},
        ) as worker:
            worker.jobs(len(jobs))
            for delay in delays:
                # What the mover does when it is due.
                later = f"shop_{self.queue}_retry_{delay}"
                wait_until(lambda name=later: self.broker.stats(name).get("items") == len(jobs), later)
                with self.broker.connect() as raw:
                    for item in self.broker.drain(later):
                        raw.set(f"shop_{self.queue}", item)
            errors = f"shop_{self.queue}_errors"
            wait_until(lambda: self.broker.stats(errors).get("items", 0) == len(jobs), "all to be parked")
            assert worker.end(signal.SIGTERM) == 0
            (told,) = worker.events("errors")
            assert (told["repeated"], told["not_reported"]) == (0, 0)
            assert told["reported"] == len(jobs) * (1 + len(delays))
        self.log = worker.log
        return [ParkedRecord.decode(item) for item in self.broker.drain(errors)]

    def issues(self, count):
        """The issues of this site, when so many events are there: their events, the oldest first."""
        self.bugsink.wait_for_events(count)
        found = {}

        def complete():
            found.clear()
            for issue in self.bugsink.issues():
                # PHP's library has the id in the envelope's head only.
                events = [
                    event["data"] | {"event_id": event["event_id"].replace("-", "")}
                    for event in self.bugsink.events(issue["id"])
                ]
                ours = [event for event in events if event.get("environment") == self.environment]
                if ours:
                    found[issue["id"]] = ours
            return sum(map(len, found.values())) >= count

        wait_until(complete, f"{count} events", 30)
        return list(found.values())


@pytest.fixture
def site(tmp_path, broker, one_bugsink, request):
    return Site(tmp_path, broker, one_bugsink, request.param)


def every():
    return pytest.mark.parametrize("site", SENDERS, indirect=True)


def crumbs(event):
    found = event["breadcrumbs"]
    return found["values"] if isinstance(found, dict) else found


@every()
def test_a_failing_job_is_one_issue_over_its_attempts_and_tenants_with_all_that_helps(site):
    parked = site.work([("TellPartner", "acme"), ("TellPartner", "globex")], delays=(10,))
    (events,) = site.issues(4)
    assert [event["level"] for event in events].count("warning") == 2
    assert {(event["tags"]["tenant"], event["tags"]["attempt"], event["level"]) for event in events} == {
        *(("acme", "1", "warning"), ("globex", "1", "warning")),
        *(("acme", "2", "error"), ("globex", "2", "error")),
    }
    ids = {event["event_id"] for event in events if event["level"] == "error"}
    assert {record.sentry_event for record in parked} == ids
    for event in events:
        assert event["tags"]["job"] == event["transaction"] == "TellPartner"
        assert event["tags"]["queue"] == f"shop_{site.queue}"
        assert event["contexts"]["job"]["id"] == event["tags"]["job_id"]
        assert event["contexts"]["job"]["attempt"] == f"{event['tags']['attempt']} of 2"
        assert event["release"] == event["tags"]["release"] == RELEASE
        assert event["server_name"] == "worker1"
        assert event["platform"] == site.language
        assert event["contexts"]["runtime"]["version"]
        assert event["contexts"]["trace"]["trace_id"] == "ab" * 16
        cause, error = event["exception"]["values"]
        assert (cause["type"], error["type"]) == (CAUSES[site.language], KINDS[site.language][0])
        assert re.fullmatch(r"partner does not answer for order 100[01]", error["value"])
        last = error["stacktrace"]["frames"][-1]
        assert last["function"].endswith("tell_partner")
        assert last["filename"].lstrip("/") == f"special.{'py' if site.language == 'python' else 'php'}"
        assert "partner does not answer" in last["context_line"]
        assert len(last["pre_context"]) >= 3 and last["post_context"]
        assert last["in_app"] is True
        assert (error["mechanism"]["type"], error["mechanism"]["handled"]) == ("kestrel_stack", False)
        assert [(crumb["level"], crumb["message"]) for crumb in crumbs(event)] == [
            ("debug", "asking the partner url=https://partner.example"),
            ("info", "waiting seconds=2"),
        ]


@every()
def test_what_a_job_was_given_is_not_sent(site):
    site.work([("TellPartner", "acme")], delays=())
    ((event,),) = site.issues(1)
    said = json.dumps(event)
    # The code that has the name is shown, what it stands for is not.
    assert "password" in said
    assert "hunter2" not in said
    key = site.bugsink.dsn.partition("://")[2].partition("@")[0]
    assert key not in site.log


@every()
def test_other_errors_and_the_same_error_of_another_job_are_other_issues(site):
    jobs = ["TellPartner", "BillPartner", "Forget", "TellPartner"]
    site.work([(job, "acme") for job in jobs], delays=())
    found = [
        (events[0]["transaction"], events[0]["exception"]["values"][-1]["type"], len(events))
        for events in site.issues(4)
    ]
    partner, other = KINDS[site.language]
    assert sorted(found) == [("BillPartner", partner, 1), ("Forget", other, 1), ("TellPartner", partner, 2)]
