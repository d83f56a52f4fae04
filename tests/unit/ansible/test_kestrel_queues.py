"""Every queue of a server, from the one description: limits, the memory they take, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.queue import names, pings, settings
from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from support import ansible_filters

filters = ansible_filters.load()
KB, MB = 1024, 1024**2
SIZES = {
    "kestrel_max_memory_size": "32MB",
    "kestrel_side_max_memory_size": "16MB",
    "kestrel_default_journal_size": "16MB",
    "kestrel_max_journal_size": "256MB",
}


def server(*queues, hosts=(), **sizes):
    return filters.server_queues(list(queues), "shop", {**SIZES, **sizes}, hosts)


def one(name, *queues, **options):
    [found] = [queue for queue in server(*queues, **options) if queue["name"] == name]
    return found


def test_every_queue_of_a_description_is_listed_with_those_that_belong_to_it():
    listed = server(
        {"name": "mail", "retry_delays": [10, 60, 10], "fanouts": ["audit"]},
        {"name": "import"},
        hosts=["worker1", "worker2.example.com"],
    )
    assert [(queue["name"], queue["kind"]) for queue in listed] == [
        ("shop_mail", "main"),
        ("shop_mail+audit", "fanout"),
        ("shop_mail_retry_10", "retry"),
        ("shop_mail_retry_60", "retry"),
        ("shop_mail_errors", "errors"),
        ("shop_mail_ping_worker1", "ping"),
        ("shop_mail_ping_worker1_answer", "ping"),
        ("shop_mail_ping_worker2-example-com", "ping"),
        ("shop_mail_ping_worker2-example-com_answer", "ping"),
        ("shop_import", "main"),
        ("shop_import_errors", "errors"),
        ("shop_import_ping_worker1", "ping"),
        ("shop_import_ping_worker1_answer", "ping"),
        ("shop_import_ping_worker2-example-com", "ping"),
        ("shop_import_ping_worker2-example-com_answer", "ping"),
        ("", "default"),
    ]


def test_the_names_are_those_that_consumers_use():
    listed = {queue["name"] for queue in server({"name": "mail", "retry_delays": [10]})}
    main = names.make("shop", "mail")
    assert {main, names.errors(main), names.retry(main, 10)} <= listed


@pytest.mark.parametrize("host", ["worker1", "worker2.example.com", "w_1", "a" * 63 + ".example.com"])
def test_the_ping_queues_are_those_that_workers_look_at(host):
    listed = {queue["name"] for queue in server({"name": "mail"}, hosts=[host]) if queue["kind"] == "ping"}
    asked = names.ping(names.make("shop", "mail"), host)
    assert listed == {asked, names.ping_answers(asked)}


def test_the_longest_name_of_a_description_has_room_for_its_pings():
    longest = filters.SERVER_NAME_LIMIT - filters.SUFFIX_RESERVE - len("shop_")
    assert len(names.ping_answers(names.ping(names.make("shop", "q" * longest), "h" * 80))) == 200


def test_every_queue_has_the_same_complete_settings():
    listed = server({"name": "mail", "retry_delays": [10], "fanouts": ["a"]}, hosts=["w"])
    assert {tuple(sorted(queue)) for queue in listed} == {tuple(sorted(listed[0]))}
    assert all(queue[key] for queue in listed for key in queue if key.endswith("_size"))


def test_parked_and_delayed_jobs_have_no_limit_of_items_and_never_expire():
    limits = {"max_items": 5, "max_age": "5m", "discard_old_when_full": True}
    for name in ("shop_mail_errors", "shop_mail_retry_10"):
        queue = one(name, {"name": "mail", "retry_delays": [10], **limits})
        assert (queue["max_items"], queue["max_age"], queue["discard_old_when_full"]) == (None, None, False)


def test_a_fanout_has_its_parents_limits_and_keeps_items_where_the_parent_keeps_none():
    entry = {"name": "mail", "max_items": 5, "max_age": "5m", "fanouts": ["audit"], "fanout_only": True}
    assert one("shop_mail", entry)["fanout_only"] is True
    child = one("shop_mail+audit", entry)
    assert (child["max_items"], child["max_age"], child["fanout_only"]) == (5, 300, False)


def test_pings_are_small_and_short_lived():
    for name in ("shop_mail_ping_w", "shop_mail_ping_w_answer"):
        ping = one(name, {"name": "mail"}, hosts=["w"])
        assert (ping["max_items"], ping["max_age"], ping["discard_old_when_full"]) == (
            100,
            pings.EXPIRES,
            True,
        )
        assert (ping["max_item_size"], ping["max_memory_size"]) == (pings.MAX_BYTES, MB // 2)


def test_what_the_description_states_is_what_the_server_gets():
    entry = {"name": "mail", "max_size": "10MB", "max_item_size": "64KB", "max_memory_size": "20MB"}
    queue = one("shop_mail", entry)
    assert (queue["max_size"], queue["max_memory_size"]) == (10 * MB, 20 * MB)
    # And what a retry adds to a job.
    assert queue["max_item_size"] == 64 * KB + 4 * KB


ID = "123e4567-e89b-42d3-a456-426614174000"


def test_a_job_of_the_greatest_size_can_be_delayed_and_parked():
    made = Envelope(job="Big", tenant="acme", data={"text": ""}, id=ID, enqueued_at=2**40)
    room = MB - len(made.encode())
    job = Envelope(job="Big", tenant="acme", data={"text": "x" * room}, id=ID, enqueued_at=2**40)
    assert len(job.encode()) == MB
    again = Envelope(
        job="Big", tenant="acme", data=job.data, id=job.id, enqueued_at=2**40, attempt=99, due_at=2**41
    )
    entry = {"name": "mail", "retry_delays": [10]}
    for name in ("shop_mail", "shop_mail_retry_10"):
        assert len(again.encode()) <= one(name, entry)["max_item_size"]
    error = {"class": "Boom", "message": "m" * 1000, "stack": "s" * 200 * KB}
    parked = ParkedRecord(reason="failed", body=again.encode(), attempts=99, error=error)
    assert len(parked.encode()) <= one("shop_mail_errors", entry)["max_item_size"]


sizes = st.integers(1, 64 * MB)


@given(
    item=st.none() | sizes,
    main=st.integers(MB, 64 * MB),
    side=st.integers(MB, 64 * MB),
    memory=st.none() | st.integers(64 * MB + 4 * KB + 1, 256 * MB),
)
def test_no_queue_enters_read_behind_unless_the_description_says_so(item, main, side, memory):
    entry = {"name": "mail", "retry_delays": [10], "fanouts": ["a"], "max_item_size": item}
    listed = server(
        {**entry, "max_memory_size": memory},
        hosts=["w"],
        kestrel_max_memory_size=main,
        kestrel_side_max_memory_size=side,
    )
    assert filters.queue_problems([{**entry, "max_memory_size": memory}], "shop") == []
    assert filters.read_behind_warnings(listed) == []
    for queue in listed:
        assert queue["max_size"] > 0
        assert queue["max_size"] + queue["max_item_size"] <= queue["max_memory_size"]


def test_a_journal_is_rewritten_well_before_it_would_be_rotated():
    for queue in server({"name": "mail", "fanouts": ["a"]}, hosts=["w"]):
        assert queue["default_journal_size"] <= queue["max_memory_size"] // 2


def test_a_queue_that_may_enter_read_behind_is_named_with_the_figures_and_the_remedy():
    listed = server({"name": "mail", "max_size": "64MB"})
    assert filters.read_behind_warnings(listed) == [
        "queue shop_mail: max_size 64MB and one item of 1028KB are more than its max_memory_size 32MB: above"
        " that Kestrel keeps items on disk only, and each packing of the journal may lose some: set max_size"
        " to at most 31740KB or max_memory_size to at least 66564KB"
    ]


@pytest.mark.parametrize("fix", [{"max_size": "31740KB"}, {"max_size": "64MB", "max_memory_size": "66564KB"}])
def test_the_remedy_is_one(fix):
    assert filters.read_behind_warnings(server({"name": "mail", **fix})) == []


# A small Kestrel: what its add, get, abort and replay do with the number of queued bytes, and where it begins
# read-behind (Source: Kestrel 2.4.1's code, PersistentQueue).


class Model:
    def __init__(self, max_size, max_item_size, max_memory_size):
        self.max_size, self.max_item_size, self.memory = max_size, max_item_size, max_memory_size
        self.journal = []
        self.queue, self.open, self.behind = [], {}, False
        self.next = 0

    def size(self):
        return sum(self.queue)

    def add(self, item):
        if item > self.max_item_size or self.size() >= self.max_size:
            return
        self.behind |= self.size() >= self.memory
        self.queue.append(item)
        self.journal.append(("add", item))

    def get_open(self):
        if self.queue:
            self.next += 1
            self.open[self.next] = self.queue.pop(0)
            self.journal.append(("open", self.next))

    def get(self):
        if self.queue:
            self.queue.pop(0)
            self.journal.append(("get", 0))

    def abort(self):
        if self.open:
            xid = min(self.open)
            self.queue.insert(0, self.open.pop(xid))
            self.journal.append(("abort", xid))

    def close(self):
        if self.open:
            xid = min(self.open)
            del self.open[xid]
            self.journal.append(("close", xid))

    def restart(self):
        self.queue, self.open = [], {}
        for kind, value in self.journal:
            if kind == "add":
                self.queue.append(value)
                # When a journal is replayed this has to come after the item.
                self.behind |= self.size() >= self.memory
            elif kind == "open":
                self.open[value] = self.queue.pop(0)
            elif kind == "get":
                self.queue.pop(0)
            elif kind == "abort":
                self.queue.insert(0, self.open.pop(value))
            else:
                del self.open[value]
        for xid in sorted(self.open, reverse=True):
            self.queue.insert(0, self.open.pop(xid))
            self.journal.append(("abort", xid))


operations = st.lists(
    st.sampled_from(["get_open", "get_open", "get", "abort", "close", "restart"]) | st.integers(1, 12),
    max_size=60,
)


def play(model, steps):
    for step in steps:
        if isinstance(step, int):
            model.add(step)
        else:
            getattr(model, step)()
    return model.behind


@given(operations, st.integers(1, 30), st.integers(1, 12))
def test_with_the_rule_no_sequence_of_operations_and_restarts_begins_read_behind(steps, max_size, item):
    assert not play(Model(max_size, item, max_size + item), steps)


@pytest.mark.parametrize(("max_size", "item"), [(1, 1), (20, 5), (7, 12)])
def test_with_one_byte_less_a_restart_of_a_full_queue_begins_read_behind(max_size, item):
    fill = [1] * (max_size - 1)
    assert play(Model(max_size, item, max_size + item - 1), [*fill, item, "restart"])
    assert not play(Model(max_size, item, max_size + item), [*fill, item, "restart"])


def test_open_reads_that_come_back_fill_a_queue_above_its_limit_and_begin_nothing():
    model = Model(20, 5, 25)
    assert not play(
        model, [5, 5, 5, 5, "get_open", "get_open", "get_open", "get_open", 5, 5, 5, 5, "restart"]
    )
    assert model.size() == 40
    model.add(5)
    assert model.size() == 40
    assert not model.behind


# What may not be asked for.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"max_size": "lots"},
            "max_size: lots is not a size: write it like 512MB (KB, MB or GB), or in bytes",
        ),
        ({"max_item_size": 0}, "max_item_size 0 must be at least 1"),
        (
            {"max_memory_size": "1MB"},
            "max_memory_size 1MB leaves no room beside one item of 1MB (max_item_size) and 4KB:"
            " raise it, or lower max_item_size",
        ),
        ({"max_age": 30}, "max_age 30 must look like 30s, 5m or 1h, or be left out"),
        ({"discard_old_when_full": "yes"}, "discard_old_when_full yes must be true or false"),
        ({"max_items": 2**31}, "max_items 2147483648 is more than Kestrel counts: 2147483647"),
        ({"fanouts": "audit"}, "fanouts audit must be a list of names of A-Z, a-z, 0-9, _ and -"),
        ({"fanouts": ["a+b"]}, "fanouts ['a+b'] must be a list of names of A-Z, a-z, 0-9, _ and -"),
        ({"fanouts": ["a", "a"]}, "fanouts: a is there twice: remove one of them"),
        (
            {"fanouts": ["a" * 200]},
            f"fanouts: shop_mail+{'a' * 200} has more than 200 bytes: shorten {'a' * 200}",
        ),
        ({"fanout_only": True}, "fanout_only without fanouts would lose every item: name at least one"),
    ],
)
def test_what_a_queue_cannot_have_is_refused_in_one_sentence(options, sentence):
    [problem] = filters.queue_problems([{"name": "mail", **options}], "shop")
    assert (
        problem.removeprefix("kestrel_stack_queues: mail: ").removeprefix("kestrel_stack_queues: mail ")
        == sentence
    )


@pytest.mark.parametrize(
    ("aliases", "sentence"),
    [
        ([], "kestrel_aliases must be a mapping like {shop_all: [shop_mail, shop_audit]}"),
        ({"a/b": ["x"]}, "kestrel_aliases: a/b is not a legal name: use A-Z, a-z, 0-9, _ and - only"),
        (
            {"shop_mail": ["x"]},
            "kestrel_aliases: shop_mail is a queue's name, which it would hide: choose another",
        ),
        ({"all": []}, "kestrel_aliases: all must have a list of queues, by their full names"),
        ({"all": "x"}, "kestrel_aliases: all must have a list of queues, by their full names"),
        (
            {"all": ["x.y"]},
            "kestrel_aliases: all: x.y is not a queue's full name, like shop_mail or shop_mail+audit",
        ),
        ({"all": ["x", "x"]}, "kestrel_aliases: all: x is there twice: remove one of them"),
        ({"all": ["all"]}, "kestrel_aliases: all: all is an alias itself: name the queues behind it"),
    ],
)
def test_an_alias_that_cannot_be_is_refused_in_one_sentence(aliases, sentence):
    assert filters.alias_problems(aliases, server({"name": "mail"})) == [sentence]


def test_an_alias_may_lead_to_queues_that_are_not_described():
    assert (
        filters.alias_problems({"all": ["shop_mail", "other", "shop_mail+audit"]}, server({"name": "mail"}))
        == []
    )


# Memory.


def test_the_heap_has_room_for_every_full_queue():
    listed = server({"name": "mail"})
    data = sum(queue["max_memory_size"] for queue in listed) // MB
    assert data == 32 + 16 + 16
    assert filters.heap_mb(listed) > data / (1 - filters.HEAP_FREE)


def test_a_queue_of_few_items_needs_less_beside_them():
    many, few = server({"name": "mail"}), server({"name": "mail", "max_items": 10})
    assert filters.heap_mb(few) < filters.heap_mb(many)


def test_open_reads_of_big_items_count():
    listed = server({"name": "mail", "max_item_size": "4MB"})
    assert filters.heap_mb(listed, 10) - filters.heap_mb(listed) >= 40


def test_a_heap_that_the_host_cannot_have_is_refused_with_the_figures():
    listed = server({"name": "mail"})
    needed = filters.heap_mb(listed)
    whole = needed + 200 + 256
    assert filters.heap_problems(needed, 0, whole, listed, "queue1") == []
    [problem] = filters.heap_problems(needed, 0, whole - 1, listed, "queue1")
    assert problem.startswith(
        f"queue1 has {whole - 1} MB of memory and Kestrel would need {whole} MB: a heap of"
    )
    assert filters.heap_problems(needed, needed - 1, whole - 1, listed, "queue1") == []


def test_a_host_that_does_not_say_its_memory_is_not_refused():
    listed = server({"name": "mail"})
    assert filters.heap_problems(10**6, 0, 0, listed, "queue1") == []


def test_a_heap_below_what_full_queues_need_is_warned_of():
    assert filters.heap_warnings(500, 0) == []
    assert filters.heap_warnings(500, 500) == []
    assert filters.heap_warnings(500, 499) == [
        "kestrel_heap_mb 499 is below the 500 MB that full queues need: Kestrel may run out of memory"
    ]


# A release's configuration is a program.


@pytest.mark.parametrize(
    ("text", "literal"),
    [("plain", '"plain"'), ('a"b', r'"a\"b"'), ("a\\u0022b", r'"a\\u0022b"'), ("", '""'), ("a+b", '"a+b"')],
)
def test_a_text_becomes_a_scala_literal_that_nothing_gets_out_of(text, literal):
    assert filters.scala_string(text) == literal


@pytest.mark.parametrize("text", ["a\nb", "caf\u00e9", "a\x00", "a\n"])
def test_what_a_scala_literal_cannot_hold_is_refused(text):
    with pytest.raises(ValueError, match="use printable ASCII"):
        filters.scala_string(text)


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (16 * MB, "16.megabytes"),
        (KB, "1.kilobytes"),
        (1025, "1025.bytes"),
        (2**31 - 1, "2147483647.bytes"),
        (2**31 + 1, "2147483649L.bytes"),
    ],
)
def test_a_size_is_written_as_kestrels_own_examples_do(size, written):
    assert filters.scala_size(size) == written


# What the settings file of an application says of the same keys.


def test_the_consumers_take_every_key_that_the_playbook_writes():
    entry = {
        "name": "mail",
        "max_size": "10MB",
        "max_item_size": "64KB",
        "max_memory_size": 4096,
        "max_age": "5m",
        "discard_old_when_full": True,
        "fanouts": ["audit"],
        "fanout_only": True,
    }
    assert filters.queue_problems([entry], "shop") == []
    [whole] = filters.complete_queues([entry])
    queue = settings.describe_queue(whole, "shop")
    assert (queue.max_size, queue.max_item_size, queue.max_memory_size) == (10 * MB, 64 * KB, 4096)
    assert (queue.max_age, queue.discard_old_when_full, queue.fanouts) == (300, True, ("audit",))
    assert queue.fanout_only is True
