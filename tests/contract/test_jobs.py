"""The job contracts: hand-written checks, JSON schemas and the shared cases say the same."""

import base64
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.consumer import log
from kestrel_stack.consumer.retry import next_delay
from kestrel_stack.queue import names
from kestrel_stack.queue.envelope import Envelope, ParkedRecord, again, faults, parked_faults
from kestrel_stack.queue.errors import InvalidEnvelope, InvalidJob, InvalidParkedRecord, InvalidQueueName
from kestrel_stack.queue.pings import Ping, PingAnswer

CASES = Path(__file__).parent / "jobs"


def cases(name, part):
    return [
        pytest.param(case, id=case.get("name", "")) for case in json.loads((CASES / name).read_text())[part]
    ]


def validator(name):
    schema = json.loads((files("kestrel_stack.queue") / "schemas" / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


ENVELOPE = validator("envelope-v1.json")
PARKED = validator("parked-v1.json")
PING = validator("ping-v1.json")
PING_ANSWER = validator("ping-answer-v1.json")


@pytest.mark.parametrize("case", cases("envelopes.json", "valid"))
def test_a_valid_envelope_is_read_and_written_back_with_the_same_meaning(case):
    body = base64.b64decode(case["body_b64"])
    envelope = Envelope.decode(body)
    for key in ("id", "job", "tenant", "attempt", "enqueued_at"):
        assert getattr(envelope, key) == case[key]
        assert type(getattr(envelope, key)) is type(case[key])
    assert json.loads(envelope.encode()) == json.loads(body)
    assert ENVELOPE.is_valid(json.loads(body))


@pytest.mark.parametrize("case", cases("envelopes.json", "invalid"))
def test_an_invalid_envelope_is_refused_with_a_sentence_per_fault(case):
    body = base64.b64decode(case["body_b64"])
    with pytest.raises(InvalidEnvelope) as refused:
        Envelope.decode(body)
    if case["faults"] is None:
        assert len(refused.value.faults) == 1
        assert refused.value.faults[0].startswith("The item is not ")
    else:
        assert refused.value.faults == case["faults"]
        if not case["faults"][0].startswith("The item is "):
            assert not ENVELOPE.is_valid(json.loads(body))
    assert all(fault.endswith(".") and "\n" not in fault for fault in refused.value.faults)


@pytest.mark.parametrize("case", cases("parked.json", "valid"))
def test_a_valid_parked_record_is_read_and_written_back(case):
    record = ParkedRecord.decode(json.dumps(case["record"]).encode())
    assert json.loads(record.encode()) == case["record"]
    assert PARKED.is_valid(case["record"])


@pytest.mark.parametrize("case", cases("parked.json", "invalid"))
def test_an_invalid_parked_record_is_refused(case):
    with pytest.raises(InvalidParkedRecord):
        ParkedRecord.decode(json.dumps(case["record"]).encode())
    assert not PARKED.is_valid(case["record"])


@pytest.mark.parametrize("case", cases("names.json", "valid"))
def test_a_queue_gets_its_name_on_the_server(case):
    name = names.make(case["namespace"], case["queue"])
    assert (name, names.errors(name)) == (case["name"], case["errors"])


@pytest.mark.parametrize("case", cases("names.json", "retry"))
def test_a_retry_queue_gets_its_name_on_the_server(case):
    assert names.retry(case["name"], case["seconds"]) == case["retry"]


@pytest.mark.parametrize("case", cases("names.json", "ping"))
def test_a_ping_queue_gets_its_name_on_the_server(case):
    made = names.ping(case["name"], case["host"])
    assert (made, names.ping_answers(made)) == (case["ping"], case["answers"])


@pytest.mark.parametrize("case", cases("names.json", "ping_too_long"))
def test_a_ping_queue_whose_answers_would_have_too_long_a_name_is_refused(case):
    with pytest.raises(InvalidQueueName):
        names.ping(case["name"], case["host"])


@pytest.mark.parametrize("case", cases("pings.json", "valid"))
def test_a_ping_is_read_and_written_back_with_the_same_meaning(case):
    body = base64.b64decode(case["body_b64"])
    assert Ping.decode(body) == Ping(case["id"], case["deploy"])
    assert json.loads(Ping(case["id"], case["deploy"]).encode()) == json.loads(body)
    assert PING.is_valid(json.loads(body))


@pytest.mark.parametrize("case", cases("pings.json", "invalid"))
def test_what_is_no_ping_is_not_taken_for_one(case):
    assert Ping.decode(base64.b64decode(case["body_b64"])) is None


@pytest.mark.parametrize("case", cases("pings.json", "answers"))
def test_a_ping_is_answered(case):
    ping = Ping.decode(base64.b64decode(case["ping_b64"]))
    answer = PingAnswer(id=ping.id, deploy=ping.deploy, **case["worker"])
    assert json.loads(answer.encode()) == case["answer"]
    assert PingAnswer.decode(answer.encode()) == answer
    assert PING_ANSWER.is_valid(case["answer"])


@pytest.mark.parametrize("case", cases("names.json", "invalid"))
def test_an_illegal_queue_name_is_refused(case):
    with pytest.raises(InvalidQueueName):
        names.make(case["namespace"], case["queue"])


@pytest.mark.parametrize("case", cases("retries.json", "again"))
def test_an_envelope_is_written_again_for_the_next_try_and_keeps_its_meaning(case):
    body = base64.b64decode(case["body_b64"])
    written = again(body, case["due_at"])
    assert json.loads(written) == json.loads(base64.b64decode(case["again_b64"]))
    before, after = Envelope.decode(body), Envelope.decode(written)
    assert (after.id, after.attempt, after.due_at) == (before.id, before.attempt + 1, case["due_at"])


@pytest.mark.parametrize("case", cases("retries.json", "again_refused"))
def test_an_envelope_that_no_worker_would_take_is_not_written_again(case):
    with pytest.raises((InvalidEnvelope, InvalidJob)):
        again(base64.b64decode(case["body_b64"]), case["due_at"])


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in cases("retries.json", "rules")
        if case.values[0]["failure"] in ("raises", "timeout", "asks_retry")
    ],
)
def test_a_failure_takes_the_delay_of_its_attempt(case):
    delay = next_delay(case["attempt"], case["retry_delays"], case.get("delay"))
    assert delay == case["outcome"].get("retry_after")
    assert (delay is None) == ("park" in case["outcome"])


@pytest.mark.parametrize("case", cases("log.json", "lines"))
def test_an_event_is_one_line_of_json_and_one_of_text(case):
    event = (case["level"], case["event"], case["fields"], case["at"] / 1000)
    as_json = log.json_line(*event)
    assert list(json.loads(as_json).items()) == list(case["record"].items())
    assert "\n" not in as_json
    assert log.line(*event) == case["text"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def mutations(record):
    """Dictionaries near a valid one: fields replaced by tempting values, left out, or added."""
    values = st.one_of(
        JSON_VALUES,
        st.sampled_from(
            [1, 1.0, True, 0, -1, 2**53, 2**53 - 1, 1000000, 1000001, "", "a", "a\n", "A_9", {}, []]
        ),
        st.sampled_from(
            [{"a": "b"}, {"a": 1}, {"class": "E", "message": "", "stack": ""}, None, "YQ==", "YQ==\n"]
        ),
        st.text(alphabet="aA0-_.\n é", max_size=4),
        st.uuids().map(str),
    )
    keys = st.sampled_from([*record, "due_at", "trace", "unknown"])
    changed = st.dictionaries(keys, values, max_size=3)
    dropped = st.sets(st.sampled_from(sorted(record)), max_size=1)
    return st.tuples(changed, dropped).map(
        lambda both: {key: value for key, value in {**record, **both[0]}.items() if key not in both[1]}
    )


@settings(max_examples=400, deadline=None)
@given(mutations(json.loads(Envelope("HelloWorld", "acme").encode())) | JSON_VALUES)
def test_the_envelope_checks_and_their_schema_agree_on_anything(content):
    assert (faults(content) == []) == ENVELOPE.is_valid(content)


@settings(max_examples=400, deadline=None)
@given(mutations(json.loads(ParkedRecord("why", b"x").encode())) | JSON_VALUES)
def test_the_parked_record_checks_and_their_schema_agree_on_anything(content):
    assert (parked_faults(content) == []) == PARKED.is_valid(content)


A_PING = {"v": 1, "id": "6f9f9f9e-1c1d-4a4b-8c8d-0123456789ab", "deploy": "d"}
AN_ANSWER = A_PING | {"release": "r", "pid": 1, "language": "php", "queue": "q", "host": "h"}


@settings(max_examples=300, deadline=None)
@given(mutations(A_PING) | JSON_VALUES)
def test_the_ping_checks_and_their_schema_agree_on_anything(content):
    assert (Ping.decode(json.dumps(content).encode()) is not None) == PING.is_valid(content)


@settings(max_examples=300, deadline=None)
@given(mutations(AN_ANSWER) | JSON_VALUES)
def test_the_answer_checks_and_their_schema_agree_on_anything(content):
    assert (PingAnswer.decode(json.dumps(content).encode()) is not None) == PING_ANSWER.is_valid(content)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_pings_fail_otherwise_than_by_being_none(body):
    assert Ping.decode(body) is None
    assert PingAnswer.decode(body) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_otherwise_than_by_refusing(body):
    with pytest.raises(InvalidEnvelope):
        Envelope.decode(body)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON_VALUES, max_size=4))
def test_data_arrives_as_it_was_sent(data):
    try:
        body = Envelope("HelloWorld", "acme", data).encode()
    except ValueError as exc:
        assert "surrogate" in str(exc)
        return
    assert Envelope.decode(body).data == data
