"""What ``stats`` and the admin port say, read by the same names whatever these look like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.web.polling import admin, stats
from kestrel_stack.web.polling.line import LineError

KEYS = list(stats.FIELDS)
HEAD = "STAT uptime 5\r\nSTAT time 1700000000\r\nSTAT version 2.4.1\r\nSTAT curr_items 3\r\n"
HEAD += (
    "STAT reserved_memory_ratio 0.250\r\nSTAT queue_creates 7\r\nSTAT queue_deletes 2\r\nSTAT queue_expires 1"
)


def reply(*queues: str, children: str = "") -> bytes:
    """The reply of a server on which the first queue has 0 items, 1 byte, 2 in total…, the next 14, 15…"""
    lines = HEAD.split("\r\n")
    for number, name in enumerate(queues):
        lines += [f"STAT queue_{name}_{key} {number * 14 + at}" for at, key in enumerate(KEYS)]
        if children:
            lines.append(f"STAT queue_{name}_children {children}")
    return "\r\n".join(lines).encode("latin-1")


def test_the_servers_numbers_are_read():
    numbers = stats.parse(reply("a")).numbers
    assert (numbers.uptime_s, numbers.time, numbers.version, numbers.curr_items) == (
        5,
        1700000000,
        "2.4.1",
        3,
    )
    assert (numbers.queue_creates, numbers.queue_deletes, numbers.queue_expires) == (7, 2, 1)
    assert numbers.reserved_memory_ratio == 0.25


def test_all_numbers_of_a_queue_are_read():
    expected = {field: number for number, field in enumerate(stats.FIELDS.values())}
    assert stats.parse(reply("a")).queues == {"a": expected}


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a_mem", "a_total", "a_expired", "a_open", "a_canceled"),
        ("a_mem", "a"),
        ("queue_a", "a", "queue", "items", "_items", "a_items"),
        ("creates", "deletes", "expires", "creates_items"),
        ("a+b", "a", "a_children"),
        ("x_put", "x_put_items"),
        ("b\xfcch\xa0er", "a\tb", "a\rb", "a\r"),
    ],
)
def test_names_like_the_keys_of_other_queues_are_told_apart_by_the_order(names):
    found = stats.parse(reply(*names)).queues
    assert list(found) == list(names)
    assert [queue["items"] for queue in found.values()] == [14 * number for number in range(len(names))]
    assert [queue["total_flushes"] for queue in found.values()] == [14 * n + 13 for n in range(len(names))]


words = st.sampled_from([*KEYS, "queue", "a", "put", "children", "_", "+"])
odd_names = st.lists(words, min_size=1, max_size=4).map("_".join)


@given(st.lists(odd_names, min_size=1, max_size=6, unique=True), st.booleans())
def test_whatever_the_queues_are_called_each_has_its_own_numbers(names, children):
    found = stats.parse(reply(*names, children="x+y,x+z" if children else "")).queues
    assert [(name, queue["bytes"]) for name, queue in found.items()] == [
        (name, 14 * number + 1) for number, name in enumerate(names)
    ]


def test_an_alias_is_no_queue():
    alias = b"\r\nSTAT queue_all_put_items 9\r\nSTAT queue_all_put_bytes 9\r\nSTAT queue_all_children a,b"
    assert list(stats.parse(reply("a") + alias).queues) == ["a"]
    assert list(stats.parse(reply() + alias + reply("z")[len(HEAD) :]).queues) == ["z"]


def test_what_makes_no_sense_is_left_out():
    assert stats.parse(b"STAT\r\nnonsense\r\nSTAT queue_a_items x\r\nSTAT queue_ 5").queues == {}


def stats_json(**queues: int) -> dict:
    gauges = {"status/writeable": 1, "items": 5, "bytes": 50, "connections": 2, "jvm_uptime": 1}
    counters = {"cmd_get": 3, "kestrel-memcache/requests": 7}
    for name, items in queues.items():
        gauges |= {f"q/{name}/items": items, f"q/{name}/open_transactions": 0, f"q/{name}/journal_size": 99}
        gauges[f"q/{name}/age_msec"] = 7
        counters[f"q/{name}/put_items"] = 4
    return {"counters": counters, "gauges": gauges, "labels": {}, "metrics": {}}


def test_the_admin_port_is_read_by_the_same_fields():
    answer = admin.parse(stats_json(a=1, a_mem=2))
    assert {name: queue["items"] for name, queue in answer.queues.items()} == {"a": 1, "a_mem": 2}
    queue = answer.queues["a"]
    assert (queue["journal_bytes"], queue["age_ms"], queue["put_items"]) == (99, 7, 4)
    assert set(stats.FIELDS.values()) <= set(queue), "one port has a field that the other has not"
    assert (answer.numbers.curr_items, answer.numbers.curr_connections, answer.numbers.cmd_get) == (5, 2, 3)


def test_a_counter_that_is_not_there_yet_is_zero():
    assert admin.parse(stats_json(a=1)).queues["a"]["total_flushes"] == 0


def test_an_alias_has_no_gauges_of_a_queue():
    found = stats_json(a=1)
    found["gauges"]["q/all/create_time"] = 5
    found["counters"]["q/all/put_items"] = 5
    assert list(admin.parse(found).queues) == ["a"]


@pytest.mark.parametrize("other", [{}, {"counters": {}, "gauges": {}}, {"counters": [], "gauges": 1}])
def test_the_statistics_of_another_program_are_refused(other):
    with pytest.raises(LineError, match="something else than a Kestrel"):
        admin.parse(other)


def test_the_servers_own_time_is_its_start_and_its_uptime():
    info = {"uptime": 61_500, "start_time": "Sat Nov 21 14:43:54 UTC 2026"}
    assert admin.started(info) == (61, 1795272234 + 61)
    assert admin.started({"uptime": 5000, "start_time": "gestern"}) == (5, 0)
