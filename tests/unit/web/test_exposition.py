"""What Prometheus reads, made from views that no server has to be asked for."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kestrel_stack.web import keys
from kestrel_stack.web.model import (
    Alert,
    Limits,
    QueueNumbers,
    QueueRow,
    ServerNumbers,
    ServerState,
    View,
)
from kestrel_stack.web.tables.exposition import Families, Moment, label

A, B = "a:22133", "b:22133"


def server(address, **changes):
    numbers = ServerNumbers(version="2.4.1", uptime_s=60, total_items=9)
    whole = {
        "reachable": True,
        "stale": False,
        "polled_at": 990.0,
        "status": "UP",
        "source": "admin",
        "numbers": numbers,
    }
    return ServerState(address, **(whole | changes))


def row(name, **changes):
    numbers = QueueNumbers(items=3, age_ms=1500, total_items=7, put_items=7)
    servers = changes.pop("servers", {A: numbers})
    return QueueRow(keys.make(name), numbers=numbers, servers=servers, **changes)


def registry(view, **changes):
    made = CollectorRegistry()
    made.register(Families(Moment(view, 1000.0, "1.0", **changes)))
    return made


def scrape(view, **changes):
    """Samples of a view: {name: {labels: value}}."""
    made = registry(view, **changes)
    written = generate_latest(made).decode()
    found = {}
    for family in text_string_to_metric_families(written):
        for sample in family.samples:
            place = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in place, f"{sample} is there twice"
            place[labels] = sample.value
    return found


def at(**labels):
    return frozenset(labels.items())


def test_a_queue_has_a_sample_for_each_server_that_has_it():
    both = {A: QueueNumbers(items=3, age_ms=1500), B: QueueNumbers(items=4)}
    found = scrape(View(at=999.0, servers=(server(A), server(B)), queues=(row(b"mail", servers=both),)))
    assert found["kestrel_queue_items"] == {at(queue="mail", server=A): 3, at(queue="mail", server=B): 4}
    assert found["kestrel_queue_age_seconds"][at(queue="mail", server=A)] == 1.5
    assert found["kestrel_web_view_timestamp_seconds"] == {at(): 999.0}
    assert found["kestrel_web_data_age_seconds"][at(server=A)] == 10.0


def test_what_no_server_says_has_no_sample():
    servers = {A: QueueNumbers(put_items=None, journal_bytes=None)}
    found = scrape(View(servers=(server(A),), queues=(row(b"mail", servers=servers),)))
    assert "kestrel_queue_items_put_total" not in found
    assert "kestrel_queue_journal_bytes" not in found
    assert found["kestrel_queue_items_added_total"] == {at(queue="mail", server=A): 0}


def test_queues_of_a_server_that_is_silent_disappear_and_the_server_is_down():
    both = {A: QueueNumbers(items=3), B: QueueNumbers(items=4)}
    down = server(B, reachable=False, stale=True, error="timed out")
    mail = row(b"mail", servers=both, stale=True, limits=Limits(backlog=10))
    found = scrape(View(servers=(server(A), down), queues=(mail,)))
    assert found["kestrel_up"] == {at(server=A): 1, at(server=B): 0}
    assert found["kestrel_queue_items"] == {at(queue="mail", server=A): 3}
    assert at(server=B) not in found["kestrel_uptime_seconds"]
    assert {dict(labels)["server"] for labels in found["kestrel_status"]} == {A}
    assert found["kestrel_queue_backlog_limit"] == {at(queue="mail"): 10}
    assert "kestrel_queue_parked_items" not in found


def test_limits_kinds_and_what_belongs_to_a_queue():
    errors = row(b"mail_errors", kind="errors", parent="mail")
    held = {A: QueueNumbers(items=1)}
    delay = row(b"mail_retry_10", kind="delay", parent="mail", servers=held)
    mail = row(b"mail", limits=Limits(backlog=1000, age_s=60), app="shop", children=(errors, delay))
    found = scrape(View(servers=(server(A),), queues=(mail,)))
    assert found["kestrel_queue_parked_items"] == {at(queue="mail"): 3}
    assert found["kestrel_queue_delayed_items"] == {at(queue="mail"): 3}
    assert found["kestrel_queue_age_limit_seconds"] == {at(queue="mail"): 60}
    assert set(found["kestrel_queue_info"]) == {
        at(queue="mail", kind="queue", parent="", app="shop"),
        at(queue="mail_errors", kind="errors", parent="mail", app=""),
        at(queue="mail_retry_10", kind="delay", parent="mail", app=""),
    }


def test_names_of_any_bytes_are_labels_of_their_own():
    names = [
        b"plain",
        b"f+audit",
        b"q\"uo'te",
        b"back\\slash",
        b"\xff",
        b"\\xff",
        "größe".encode(),
        b"a\tb",
        b"\xe2\x80\xae",
    ]
    rows = tuple(row(name) for name in names)
    found = scrape(View(servers=(server(A),), queues=rows))
    labels = {dict(labels)["queue"] for labels in found["kestrel_queue_items"]}
    assert labels == {label(keys.make(name)) for name in names}
    assert len(labels) == len(names)
    assert {"plain", "f+audit", "größe", "q\"uo'te", "~FF", "~5Cxff"} <= labels


def test_the_status_is_one_of_three():
    found = scrape(View(servers=(server(A, status="READONLY"),)))
    assert found["kestrel_status"] == {
        at(server=A, status="UP"): 0,
        at(server=A, status="READONLY"): 1,
        at(server=A, status="QUIESCENT"): 0,
    }


def test_kestrel_web_tells_of_itself():
    raised = (Alert("backlog", "mail", "…"), Alert("backlog", "news", "…"), Alert("server_down", B, "…"))
    view = View(servers=(server(A),), alerts=raised)
    found = scrape(
        view, environment="lab", store_trouble=True, polls={A: (7, 2, 0.5)}, webhook={"sent": 4, "failed": 0}
    )
    assert found["kestrel_web_info"] == {at(version="1.0", environment="lab"): 1}
    assert found["kestrel_web_alerts"][at(kind="backlog")] == 2
    assert found["kestrel_web_alerts"][at(kind="age")] == 0
    assert found["kestrel_web_database_trouble"] == {at(): 1}
    assert found["kestrel_web_polls_total"] == {at(server=A): 7}
    assert found["kestrel_web_poll_errors_total"] == {at(server=A): 2}
    assert found["kestrel_web_webhook_deliveries_total"] == {at(outcome="sent"): 4, at(outcome="failed"): 0}


def test_before_the_first_poll_there_is_little_to_say():
    found = scrape(View(servers=(ServerState(A),)))
    assert found["kestrel_up"] == {at(server=A): 0}
    assert "kestrel_web_data_age_seconds" not in found


def test_openmetrics_says_the_same():
    view = View(at=1.0, servers=(server(A),), queues=(row(b"mail", limits=Limits(backlog=1)),))
    written = generate_openmetrics(registry(view, polls={A: (1, 0, 0.1)})).decode()
    names = {sample.name for family in parse_openmetrics(written) for sample in family.samples}
    assert names == set(scrape(view, polls={A: (1, 0, 0.1)}))
