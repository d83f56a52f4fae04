"""When somebody should look, and when not: the same views give the same alerts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.alerting.judge import CLEAR_AFTER_S, judge
from kestrel_stack.web.config import Config
from kestrel_stack.web.model import Alert, Condition, Limits, QueueNumbers, View
from support.web_views import START, row, server, view

CONFIG = Config(servers=(Server("a", 1), Server("b", 1)), no_consumers_after_s=60, stale_after_s=10)
BACKLOG = Limits(backlog=1000)
AGE = Limits(age_s=60)


class Watch:
    """A run of views, each judged with the one before."""

    def __init__(self, earlier=None):
        self.view = earlier or View()
        self.at = START

    def see(self, *rows, after=2.0, servers=None):
        self.at += after
        self.view = judge(view(self.at, *rows, servers=servers), CONFIG, self.view)
        return self.kinds()

    def kinds(self):
        return [(alert.kind, alert.subject) for alert in self.view.alerts]

    def for_(self, seconds, *rows, servers=None):
        for _ in range(round(seconds / 2)):
            self.see(*rows, servers=servers)
        return self.kinds()


@pytest.fixture
def watch():
    return Watch()


def busy(items, limits=BACKLOG, **more):
    """A queue that somebody takes from."""
    return row("shop_mail", limits, items=items, waiters=more.pop("waiters", 1), **more)


RAISED = [("backlog", "shop_mail")]


class TestLimits:
    """Backlog and age."""

    @pytest.mark.parametrize(("items", "alerts"), [(0, []), (999, []), (1000, RAISED), (10**9, RAISED)])
    def test_a_backlog_is_raised_from_its_limit_on(self, watch, items, alerts):
        assert watch.see(busy(items)) == alerts

    def test_the_alert_says_what_and_how_much_and_stands_in_its_row(self, watch):
        watch.see(busy(1234))
        (alert,) = watch.view.alerts
        assert alert.text == "shop_mail has 1,234 items; its limit is 1,000"
        assert (alert.value, alert.limit, alert.since) == (1234, 1000, watch.at)
        assert watch.view.row("shop_mail").alerts == (alert,)

    def test_an_old_item_is_raised_in_words(self, watch):
        assert watch.see(busy(1, AGE, age_ms=59_999)) == []
        assert watch.see(busy(1, AGE, age_ms=3_725_000)) == [("age", "shop_mail")]
        assert watch.view.alerts[0].text == (
            "The next item of shop_mail has waited for 1 h 2 min; its limit is 1 min"
        )

    def test_the_age_of_an_empty_queue_is_none(self, watch):
        assert watch.see(busy(0, AGE, age_ms=10**9)) == []

    def test_without_a_limit_nothing_is_too_much(self, watch):
        assert watch.see(busy(10**9, Limits(), age_ms=10**12)) == []

    def test_since_is_when_it_began_however_it_goes_on(self, watch):
        watch.see(busy(1000))
        began = watch.at
        watch.for_(100, busy(5000))
        assert (watch.view.alerts[0].since, watch.view.alerts[0].value) == (began, 5000)

    def test_it_is_over_when_all_is_well_for_a_while(self, watch):
        watch.see(busy(1000))
        assert watch.for_(CLEAR_AFTER_S - 2, busy(10)) == RAISED
        assert watch.see(busy(10)) == []
        assert watch.view.conditions == {}

    def test_a_backlog_at_its_limit_does_not_flap(self, watch):
        watch.see(busy(1000))
        for _ in range(50):
            for items in (999, 1001, 901, 1000):
                assert watch.see(busy(items)) == RAISED
        # Short dips neither.
        for _ in range(20):
            assert watch.for_(CLEAR_AFTER_S - 4, busy(0)) == RAISED
            assert watch.see(busy(950)) == RAISED

    def test_a_limit_that_is_taken_away_ends_its_alert(self, watch):
        watch.see(busy(1000))
        assert watch.see(busy(1000, Limits())) == []

    def test_children_have_alerts_of_their_own(self, watch):
        child = row("shop_mail_errors", Limits(backlog=5), items=5, kind="errors", parent="shop_mail")
        watch.see(row("shop_mail", waiters=1, children=(child,)))
        top = watch.view.queues[0]
        assert top.alerts == () and [alert.kind for alert in top.children[0].alerts] == ["backlog"]


class TestConsumers:
    """Items that nobody takes."""

    NOBODY = row("q", items=3)

    def test_it_is_raised_when_it_has_lasted(self, watch):
        watch.see(self.NOBODY)
        began = watch.at
        assert watch.for_(58, self.NOBODY) == []
        assert watch.see(self.NOBODY) == [("no_consumers", "q")]
        (alert,) = watch.view.alerts
        assert (alert.since, alert.text) == (began, "q has 3 items and no consumers")

    @pytest.mark.parametrize(
        "sign",
        [
            {"items": 0},
            {"items": 3, "waiters": 1},
            {"items": 3, "open_transactions": 1},
            {"items": 3, "rate_out": 0.2},
        ],
    )
    def test_any_sign_of_one_ends_it_and_its_waiting(self, watch, sign):
        watch.for_(80, self.NOBODY)
        assert watch.see(row("q", **sign)) == []
        assert watch.for_(50, self.NOBODY) == []

    def test_a_consumer_on_another_server_is_one(self, watch):
        parts = {"a:1": QueueNumbers(items=3), "b:1": QueueNumbers(waiters=1)}
        servers = (server("a:1"), server("b:1"))
        assert watch.for_(100, row("q", servers=parts), servers=servers) == []

    @pytest.mark.parametrize(
        ("kind", "alerts"),
        [("queue", 1), ("fanout", 1), ("errors", 0), ("delay", 0)],
    )
    def test_only_queues_that_have_consumers_can_miss_them(self, watch, kind, alerts):
        assert len(watch.for_(100, row("q", items=3, kind=kind))) == alerts

    def test_time_in_which_the_server_said_nothing_does_not_count(self, watch):
        parts = {"a:1": QueueNumbers(items=3)}
        away = (server("a:1", fresh=False, queues={"q": parts["a:1"]}),)
        watch.for_(50, self.NOBODY)
        watch.for_(100, row("q", servers=parts, stale=True), servers=away)
        assert watch.for_(8, self.NOBODY, servers=(server(),)) == [("server_down", "a:1")]
        assert ("no_consumers", "q") in watch.for_(6, self.NOBODY)


class TestServers:
    """Servers that do not answer, or not as they should."""

    def test_one_that_does_not_answer_is_raised_with_its_error_and_since_when(self, watch):
        down = server("b:1", fresh=False, error="connection refused", since=START - 30)
        assert watch.see(servers=(server("a:1"), down)) == [("server_down", "b:1")]
        (alert,) = watch.view.alerts
        assert (alert.text, alert.since) == ("b:1 is down: connection refused", START - 30)

    def test_one_that_hangs_is_down_as_soon_as_its_numbers_are_stale(self, watch):
        hangs = replace(server("b:1", fresh=False), reachable=True, error="its admin port is closed")
        assert watch.see(servers=(hangs,)) == [("server_down", "b:1")]
        (alert,) = watch.view.alerts
        assert (alert.text, alert.since) == ("b:1 is down: it does not answer", hangs.polled_at)

    def test_a_restart_is_no_alarm(self, watch):
        restarting = server("b:1")
        failing = replace(restarting, reachable=False, error="refused")
        watch.see(servers=(restarting,))
        assert watch.for_(8, servers=(failing,)) == []
        assert watch.for_(20, servers=(restarting,)) == []

    def test_one_that_never_answered_is_raised_after_a_while(self, watch):
        never = server("b:1", fresh=False, polled_at=None)
        assert watch.for_(10, servers=(never,)) == []
        assert watch.see(servers=(never,)) == [("server_down", "b:1")]

    def test_one_that_was_not_asked_yet_is_not_judged(self, watch):
        unasked = server("b:1", fresh=False, polled_at=None, attempted_at=None)
        assert watch.for_(60, servers=(unasked,)) == []

    def test_one_that_comes_and_goes_stays_raised(self, watch):
        away, back = (server("b:1", fresh=False),), (server("b:1"),)
        watch.see(servers=away)
        for _ in range(10):
            assert watch.for_(8, servers=back) == [("server_down", "b:1")]
            assert watch.see(servers=away) == [("server_down", "b:1")]
        assert watch.for_(12, servers=back) == []

    @pytest.mark.parametrize("status", ["READONLY", "QUIESCENT", "ReadOnly"])
    def test_one_that_is_not_up_is_raised(self, watch, status):
        assert watch.see(servers=(server("a:1", status=status),)) == [("server_status", "a:1")]
        assert watch.view.alerts[0].text == f"a:1 is {status.upper()}, not UP"
        assert watch.for_(20, servers=(server("a:1", fresh=False),)) == [
            ("server_down", "a:1"),
            ("server_status", "a:1"),
        ]
        assert watch.for_(20, servers=(server("a:1", status="Up"),)) == []

    def test_the_status_that_it_last_said_raises_nothing_and_ends_nothing(self, watch):
        away = server("a:1", fresh=False, status="READONLY")
        assert watch.for_(20, servers=(away,)) == [("server_down", "a:1")]
        watch.for_(20, servers=(server("a:1", status="READONLY"),))
        both = [("server_down", "a:1"), ("server_status", "a:1")]
        assert watch.for_(60, servers=(server("a:1", fresh=False, status="UP"),)) == both

    def test_one_that_is_no_longer_configured_has_no_alert(self, watch):
        watch.see(servers=(server("a:1"), server("b:1", fresh=False)))
        assert watch.see(servers=(server("a:1"),)) == []


class TestUnknown:
    """What nobody knows neither raises an alert nor ends one."""

    PARTS = {"a:1": QueueNumbers(items=400, waiters=1), "b:1": QueueNumbers(items=700, waiters=1)}  # noqa: RUF012
    UP = (server("a:1"), server("b:1"))
    HALF = (server("a:1"), server("b:1", fresh=False, queues={"shop_mail": PARTS["b:1"]}))
    DOWN = ("server_down", "b:1")

    def seen(self, **parts):
        parts = {
            name.replace("_", ":"): QueueNumbers(items=items, waiters=1) for name, items in parts.items()
        }
        return row("shop_mail", BACKLOG, servers=parts)

    def test_what_a_server_last_said_raises_nothing(self, watch):
        assert watch.for_(20, self.seen(a_1=400, b_1=700), servers=self.HALF) == [self.DOWN]

    def test_what_the_others_hold_alone_does(self, watch):
        assert watch.see(self.seen(a_1=1000, b_1=700), servers=self.HALF) == [self.DOWN, *RAISED]

    def test_nothing_is_over_while_a_server_may_hold_more(self, watch):
        watch.see(self.seen(a_1=400, b_1=700), servers=self.UP)
        assert watch.for_(600, self.seen(a_1=0, b_1=700), servers=self.HALF) == [self.DOWN, *RAISED]
        # Nor when it is not known which queues it has.
        unknown = (server("a:1"), server("b:1", fresh=False, polled_at=None))
        assert RAISED[0] in watch.for_(600, self.seen(a_1=0), servers=unknown)
        assert RAISED[0] in watch.for_(600, servers=unknown)
        assert RAISED[0] not in watch.for_(12, self.seen(a_1=0, b_1=0), servers=self.UP)

    def test_it_is_over_when_the_server_that_is_away_has_none_of_it(self, watch):
        watch.see(self.seen(a_1=1000), servers=self.UP)
        away = (server("a:1"), server("b:1", fresh=False))
        assert watch.for_(12, self.seen(a_1=0), servers=away) == [self.DOWN]

    def test_a_queue_that_is_deleted_has_no_alert(self, watch):
        watch.see(self.seen(a_1=1000), servers=self.UP)
        assert watch.see(servers=self.UP) == []


class TestClock:
    """The wall clock is set."""

    @pytest.mark.parametrize("jump", [3600.0, 10.0**9, -3600.0, -1.7e9])
    def test_a_jump_raises_nothing_and_ends_nothing(self, watch, jump):
        nobody = row("q", items=3)
        watch.see(busy(1000), nobody)
        watch.see(busy(0), nobody)
        watch.at += jump
        assert watch.see(busy(950), nobody) == RAISED
        assert ("no_consumers", "q") not in watch.for_(20, busy(950), nobody)

    def test_it_goes_on_after_one(self, watch):
        nobody = row("q", items=3)
        watch.see(nobody)
        watch.at -= 86_400
        assert watch.for_(64, nobody) == [("no_consumers", "q")]


class TestRestart:
    """What was raised before is the view before the first one."""

    ALERT = Alert("backlog", "shop_mail", "old text", 2000, 1000, START - 500)

    def begin(self):
        name = (self.ALERT.kind, self.ALERT.subject)
        return Watch(View(alerts=(self.ALERT,), conditions={name: Condition(START - 500, alert=self.ALERT)}))

    def test_it_goes_on_with_its_time(self):
        watch = self.begin()
        watch.see(busy(1500))
        assert watch.view.alerts[0].since == START - 500 and watch.view.alerts[0].value == 1500

    def test_it_waits_for_servers_that_were_not_asked_yet(self):
        watch = self.begin()
        unasked = (server("a:1", fresh=False, polled_at=None, attempted_at=None),)
        assert watch.for_(60, servers=unasked) == RAISED
        assert watch.for_(10, busy(0)) == []


def test_a_row_without_an_alert_is_the_same_object(watch):
    quiet, loud = row("a", waiters=1), busy(1000)
    watch.see(quiet, loud)
    assert watch.view.queues[0] is quiet and watch.view.queues[1] is not loud


def test_nothing_is_changed_in_what_is_judged():
    seen = view(START, busy(1000))
    assert judge(seen, CONFIG).alerts and not seen.alerts and not seen.queues[0].alerts


@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6),
            st.integers(0, 2000),
            st.booleans(),
            st.booleans(),
            st.booleans(),
            st.sampled_from([0, 1]),
        ),
        max_size=40,
    )
)
def test_an_alert_is_raised_only_on_what_was_seen_and_ends_only_on_what_was_seen(steps):
    watch = Watch()
    for passed, items, a_up, b_up, there, waiters in steps:
        before = set(watch.kinds())
        parts = {
            "a:1": QueueNumbers(items=items, waiters=waiters),
            "b:1": QueueNumbers(items=1, waiters=waiters),
        }
        servers = tuple(
            server(name, fresh=up, queues={"shop_mail": parts[name]})
            for name, up in (("a:1", a_up), ("b:1", b_up))
        )
        shown = [row("shop_mail", Limits(backlog=1000, age_s=5), servers=parts)] if there else []
        after = set(watch.see(*shown, after=passed, servers=servers))
        queue_kinds = {name for name in before ^ after if not name[0].startswith("server")}
        if not a_up and not b_up:
            assert not queue_kinds
        if not there:
            assert not {name for name in after - before if not name[0].startswith("server")}
        for kind, subject in after - before:
            if kind == "backlog":
                assert (items if a_up else 0) + (1 if b_up else 0) >= 1000
            if kind == "server_down":
                assert not (a_up if subject == "a:1" else b_up)
        assert {(alert.kind, alert.subject) for alert in watch.view.alerts} <= watch.view.conditions.keys()
