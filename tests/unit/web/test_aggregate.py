"""One row per queue over all servers: sums, families, zeros for what is described, staleness."""

import pytest

from kestrel_stack.queue.settings import QueueSettings, Settings
from kestrel_stack.web.model import Limits, QueueNumbers, ServerState
from kestrel_stack.web.polling import aggregate
from kestrel_stack.web.polling.aggregate import Aggregate, add, drain_s


def application(*queues: QueueSettings, namespace: str = "shop", app: str = "shop") -> Settings:
    return Settings(app, namespace, "test", (), {queue.name: queue for queue in queues}, "host")


MAIL = QueueSettings("mail", retry_delays=(10, 60), fanouts=("audit",), alert={"backlog": 1000, "age": "60s"})


def server(address: str, /, stale: bool = False, **queues: int | QueueNumbers) -> ServerState:
    numbers = {
        key: each if isinstance(each, QueueNumbers) else QueueNumbers(items=each)
        for key, each in queues.items()
    }
    return ServerState(address, reachable=not stale, stale=stale, queues=numbers)


def view(*servers: ServerState, settings=()):
    return Aggregate(settings).view(1, 0.0, servers)


def family(*names: str, settings=()) -> dict[str, list[str]]:
    """The top rows for queues of these names, with their children as KIND:NAME."""
    found = view(server("a:1", **dict.fromkeys(names, 1)), settings=settings)
    return {top.key: [f"{row.kind}:{row.key}" for row in top.children] for top in found.queues}


# Names that somebody made up to be looked at for long


@pytest.mark.parametrize("part", ["_ping_y_errors", "_ping_y_retry_5", "_errors", "_ping_y"])
def test_a_name_made_of_many_that_could_be_its_family_is_placed_as_fast_as_others(monkeypatch, part):
    begin = "x_errors"
    names = ["x", begin]
    while len(begin) + len(part) <= 255:
        names += [begin + part.removesuffix("_errors").removesuffix("_retry_5"), begin + part]
        begin += part
    names = list(dict.fromkeys(names))
    found = []
    look = aggregate._Places._find
    monkeypatch.setattr(aggregate._Places, "_find", lambda self, key: found.append(key) or look(self, key))
    view(server("a:1", **dict.fromkeys(names, 1)))
    assert sorted(found) == sorted(names), "each is looked at once"


# Sums


def test_a_queue_is_the_sum_over_all_servers_and_knows_its_parts():
    row = view(server("a:1", q=5), server("b:1", q=7), server("c:1")).row("q")
    assert row.numbers.items == 12
    assert {address: part.items for address, part in row.servers.items()} == {"a:1": 5, "b:1": 7}


def test_the_age_is_the_largest_and_the_creation_the_first():
    parts = [QueueNumbers(age_ms=5, create_time=70), QueueNumbers(age_ms=9, create_time=60)]
    assert (add(parts).age_ms, add(parts).create_time) == (9, 60)


def test_what_one_server_does_not_say_is_not_known_of_all():
    assert add([QueueNumbers(put_items=5), QueueNumbers()]).put_items is None
    assert add([QueueNumbers(put_items=5), QueueNumbers(put_items=2)]).put_items == 7


def test_rates_are_those_of_the_servers_that_answer():
    a, b = QueueNumbers(items=1, rate_in=5.0, rate_out=1.0), QueueNumbers(items=1, rate_in=2.0, rate_out=3.0)
    assert view(server("a:1", q=a), server("b:1", q=b)).row("q").numbers.rate_in == 7
    row = view(server("a:1", stale=True, q=a), server("b:1", q=b)).row("q")
    assert (row.numbers.items, row.numbers.rate_in, row.stale) == (2, 2.0, True)
    assert view(server("a:1", stale=True, q=a)).row("q").numbers.rate_in is None


def test_totals_count_every_queue_and_the_rates_of_main_queues_only():
    busy = QueueNumbers(items=1, rate_in=4.0, rate_out=2.0)
    found = view(server("a:1", q=busy, q_errors=busy, q_ping_h=busy, **{"q~2Bb": busy}))
    assert (found.totals.items, found.totals.rate_in, found.totals.rate_out) == (3, 4.0, 2.0)


def test_without_any_queue_the_totals_are_zero_and_the_rates_unknown():
    found = view(server("a:1"))
    assert (found.totals.items, found.totals.rate_in) == (0, None)


@pytest.mark.parametrize(
    ("numbers", "seconds"),
    [
        (QueueNumbers(items=100, rate_in=5.0, rate_out=15.0), 10.0),
        (QueueNumbers(items=100, rate_in=5.0, rate_out=5.0), None),
        (QueueNumbers(items=100, rate_in=5.0, rate_out=1.0), None),
        (QueueNumbers(items=100), None),
        (QueueNumbers(items=0), 0.0),
    ],
)
def test_the_time_to_drain_is_known_while_a_queue_gets_shorter(numbers, seconds):
    assert drain_s(numbers) == seconds


# Families


def test_what_an_application_describes_is_a_family():
    names = ("shop_mail", "shop_mail_errors", "shop_mail_retry_10", "shop_mail_retry_60", "shop_mail~2Baudit")
    assert family(*names, settings=[application(MAIL)]) == {
        "shop_mail": [
            "errors:shop_mail_errors",
            "delay:shop_mail_retry_10",
            "delay:shop_mail_retry_60",
            "fanout:shop_mail~2Baudit",
        ]
    }


def test_delays_are_in_the_order_of_their_seconds():
    names = [f"q_retry_{seconds}" for seconds in (5, 60, 600)]
    assert family("q", *names) == {"q": [f"delay:{name}" for name in names]}


def test_undescribed_queues_are_a_family_where_the_parent_exists():
    assert family("q", "q_errors", "q_retry_5", "q~2Bx") == {
        "q": ["errors:q_errors", "delay:q_retry_5", "fanout:q~2Bx"]
    }


@pytest.mark.parametrize(
    "name", ["press_errors", "x_retry_5", "x_ping_h", "q_retry_05", "q_retry_", "_errors"]
)
def test_a_suffix_without_a_parent_makes_no_family(name):
    assert family(name, "q") == {name: [], "q": []} if name < "q" else {"q": [], name: []}
    assert view(server("a:1", **{name: 1})).row(name).kind == "queue"


def test_a_described_queue_is_a_parent_even_before_it_exists():
    assert family("shop_mail_retry_7", settings=[application(MAIL)]) == {
        "shop_mail": ["delay:shop_mail_retry_7"]
    }


def test_a_described_queue_is_what_its_description_says_whatever_its_name():
    odd = QueueSettings("mail_ping")
    names = ("shop_mail", "shop_mail_ping", "shop_mail_ping_errors")
    assert family(*names, settings=[application(MAIL, odd)]) == {
        "shop_mail": [],
        "shop_mail_ping": ["errors:shop_mail_ping_errors"],
    }


def test_pings_are_left_out_of_everything():
    names = ("q", "q_ping_host-1", "q_ping_host-1_answer", "q_ping_a_ping_b")
    assert family(*names) == {"q": []}
    assert view(server("a:1", **dict.fromkeys(names, 5))).totals.items == 5


def test_a_fanout_without_its_parent_is_a_top_row():
    found = view(server("a:1", **{"x~2By": 1}))
    assert [(row.key, row.kind, row.parent) for row in found.queues] == [("x~2By", "fanout", None)]


def test_a_fanout_of_an_error_queue_stands_with_the_family():
    assert family("q", "q_errors", "q_errors~2Bcopy") == {"q": ["errors:q_errors", "fanout:q_errors~2Bcopy"]}


def test_a_fanouts_own_error_queue_is_a_fanout_as_the_server_has_it():
    assert family("q", "q~2Bx", "q~2Bx_errors") == {"q": ["fanout:q~2Bx", "fanout:q~2Bx_errors"]}


def test_the_errors_of_errors_are_a_queue_of_their_own():
    assert family("q", "q_errors", "q_errors_errors") == {"q": ["errors:q_errors"], "q_errors_errors": []}


def test_parked_and_delayed_count_what_somebody_holds_too():
    held = QueueNumbers(items=2, open_transactions=1)
    row = view(server("a:1", q=0, q_errors=held, q_retry_5=held)).row("q")
    assert (row.parked, row.delayed) == (3, 3)


# Descriptions


def test_a_described_queue_that_is_on_no_server_is_a_row_of_zeros_with_its_limits():
    found = view(server("a:1"), settings=[application(MAIL)])
    (row,) = found.queues
    assert (row.key, row.described, row.app, row.limits) == ("shop_mail", True, "shop", Limits(1000, 60))
    assert (row.numbers, row.servers, row.stale) == (QueueNumbers(), {}, False)


def test_zeros_of_which_nobody_knows_are_stale():
    found = view(server("a:1"), server("b:1", stale=True), settings=[application(MAIL)])
    assert found.row("shop_mail").stale


def test_of_a_queue_that_two_applications_share_the_first_ones_word_holds():
    other = application(QueueSettings("mail", alert={"backlog": 5}), app="crm")
    found = view(server("a:1"), settings=[application(MAIL), other])
    assert [(row.app, row.limits.backlog) for row in found.queues] == [("shop", 1000)]


# Again and again


def test_a_row_that_has_not_changed_is_used_again_and_one_that_has_is_not():
    aggregate = Aggregate([application(MAIL)])
    same, other = QueueNumbers(items=1), QueueNumbers(items=1)
    first = aggregate.view(1, 0.0, [server("a:1", x=same, y=other)])
    second = aggregate.view(2, 1.0, [server("a:1", x=same, y=QueueNumbers(items=2))])
    assert second.row("x") is first.row("x")
    assert second.row("y").numbers.items == 2
    third = aggregate.view(3, 2.0, [server("a:1", stale=True, x=same)])
    assert third.row("x").stale and third.row("y") is None


def test_a_row_finds_its_parent_when_that_comes_and_loses_it_when_it_goes():
    aggregate = Aggregate([])
    alone = server("a:1", q_errors=1)
    both = server("a:1", q=1, q_errors=1)
    kinds = [aggregate.view(1, 0.0, [state]).row("q_errors").kind for state in (alone, both, alone)]
    assert kinds == ["queue", "errors", "queue"]
