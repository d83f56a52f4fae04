"""What a producer refuses before it touches the network: its server does not exist."""

import datetime
import math

import pytest

from kestrel_stack.queue import InvalidJob, InvalidQueueName, Producer, ServerUnavailable
from kestrel_stack.queue.producer import snake_case

QUEUES = ["hello_world", {"name": "mail", "retry_delays": [10, 60]}]


def producer(tenant="acme", namespace="shop", **options):
    return Producer(namespace, tenant, servers="127.0.0.1:1", queues=QUEUES, **options)


def nested(depth, inside=None):
    data = {} if inside is None else {"a": inside}
    for _ in range(depth):
        data = {"a": data}
    return data


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            {"job": "Unknown"},
            r"'Unknown' has no queue of its own name \('unknown'\).*one of: hello_world, mail",
        ),
        ({"job": "HelloWorld", "queue": "nope"}, "'nope' is not configured; configured: hello_world, mail"),
        ({"job": "Hello World", "queue": "mail"}, "'job' is not a job name"),
        ({"job": "", "queue": "mail"}, "'job' is not a job name"),
        ({"job": None, "queue": "mail"}, "'job' is not a job name"),
        ({"job": "HelloWorld", "data": []}, "must be a dict, not list"),
        ({"job": "HelloWorld", "data": "x"}, "must be a dict, not str"),
        ({"job": "HelloWorld", "data": {"a": math.nan}}, "data.a is nan"),
        ({"job": "HelloWorld", "data": {"a": [1, -math.inf]}}, r"data.a\[1\] is -inf"),
        ({"job": "HelloWorld", "data": {"a": {"b": datetime.date(2026, 1, 1)}}}, "data.a.b is a date"),
        ({"job": "HelloWorld", "data": {"a": b"x"}}, "data.a is a bytes"),
        ({"job": "HelloWorld", "data": {"a": {1}}}, "data.a is a set"),
        ({"job": "HelloWorld", "data": {1: "a"}}, "the key 1, which is not text"),
        ({"job": "HelloWorld", "data": {"a": "\ud800"}}, "data.a holds text that is not Unicode"),
        ({"job": "HelloWorld", "data": nested(127)}, "nested more than 128 levels"),
        ({"job": "HelloWorld", "data": {"a": "x" * 1024 * 1024}}, "at most 1048576 are allowed"),
        ({"job": "HelloWorld", "id": "17"}, "'17' is not a UUID"),
        ({"job": "HelloWorld", "trace": {"a": 1}}, "'trace' is not an object of texts"),
        ({"job": "HelloWorld", "delay": 10}, "hello_world, in seconds: none"),
        ({"job": "SendMail", "queue": "mail", "delay": 11}, "mail, in seconds: 10, 60"),
        ({"job": "SendMail", "queue": "mail", "delay": True}, "mail, in seconds: 10, 60"),
        ({"job": "SendMail", "queue": "mail", "delay": 10.0}, "mail, in seconds: 10, 60"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_before_anything_is_sent(call, said):
    with pytest.raises(InvalidJob, match=said):
        producer().enqueue(**call)


@pytest.mark.parametrize("tenant", ["", " ", "a b", "../x", None, 5, "x" * 101])
def test_a_job_without_a_usable_tenant_is_refused(tenant):
    with pytest.raises(InvalidJob, match="'tenant' is not a tenant name"):
        producer(tenant).enqueue("HelloWorld")


def test_a_job_that_refers_to_itself_is_refused():
    data = {}
    data["data"] = data
    with pytest.raises(InvalidJob, match="nested"):
        producer().enqueue("HelloWorld", data)


def test_an_illegal_namespace_is_refused_when_the_producer_is_made():
    with pytest.raises(InvalidQueueName):
        producer(namespace="a b")


@pytest.mark.parametrize("inside", [None, "text", 1])
def test_the_deepest_allowed_data_gets_as_far_as_the_network(inside):
    with pytest.raises(ServerUnavailable):
        producer().enqueue("HelloWorld", nested(126, inside))


@pytest.mark.parametrize(
    ("job", "queue"),
    [("HelloWorld", "hello_world"), ("SendMail", "send_mail"), ("PDFReport", "pdf_report"), ("A1B", "a1_b")],
)
def test_a_job_has_a_queue_of_its_own_name(job, queue):
    assert snake_case(job) == queue
