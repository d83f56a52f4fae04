"""Rules of actions that need no server: options, changes, turns, tasks."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.queue.envelope import Envelope
from kestrel_stack.queue.servers import parse_servers
from kestrel_stack.queue.settings import QueueSettings, Settings
from kestrel_stack.web.actions import requeue
from kestrel_stack.web.actions.plans import ActionRefused, check_options, has_changed
from kestrel_stack.web.actions.tasks import AT_ONCE, DONE, KEEP, Busy, Outcome, Result, Tasks
from kestrel_stack.web.actions.turns import Forms, Holds
from support.broker import wait_until

SERVERS = ["a:1", "b:2"]
SHOP = Settings("shop", "shop", "lab", parse_servers("a:1"), {"mail": QueueSettings("mail")})
MAIL = requeue.Described(SHOP, SHOP.queues["mail"], "shop_mail")

NAMES = ["flush", "delete", "enqueue", "requeue", "drop", "status", "reload"]
OPTIONS = ["servers", "server", "job", "tenant", "data", "body", "as", "all", "count", "id", "status"]
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())),
    st.dictionaries(st.text(), st.text()),
)


def checked(action, described=None, **options):
    return check_options(action, options, SERVERS, described, "plain")


class TestOptions:
    @given(
        st.sampled_from(NAMES),
        st.dictionaries(st.sampled_from(OPTIONS), VALUES),
        st.sampled_from([None, MAIL]),
    )
    def test_whatever_is_given_is_taken_or_refused_in_one_line(self, action, options, described):
        try:
            check_options(action, options, SERVERS, described, "plain")
        except ActionRefused as exc:
            assert exc.status in (400, 404)
            assert str(exc).isprintable()

    def test_what_is_empty_counts_as_not_given(self):
        assert checked("requeue", job="A", tenant="", reason=None, all="") == {"job": "A"}
        with pytest.raises(ActionRefused, match="Say which"):
            checked("requeue", all=False)

    @pytest.mark.parametrize("action", ["requeue", "drop"])
    @pytest.mark.parametrize("name", ["job", "tenant", "reason", "id", "count"])
    def test_blanks_choose_no_parked_job_and_least_of_all_every_one(self, action, name):
        with pytest.raises(ActionRefused, match="Say which"):
            checked(action, **{name: " \t "})
        assert checked(
            action, **{name: "  ", "tenant": " acme "} if name != "tenant" else {"tenant": " acme "}
        ) == {"tenant": "acme"}

    def test_data_may_be_an_object_or_its_text(self):
        for data in ({"n": 1}, '{"n": 1}'):
            body = checked("enqueue", MAIL, job="A", tenant="t", data=data)["body"]
            assert Envelope.decode(body).data == {"n": 1}

    def test_half_a_character_is_refused_where_a_job_could_not_carry_it(self):
        with pytest.raises(ActionRefused, match="not Unicode"):
            checked("enqueue", MAIL, job="A", tenant="t", data='{"x": "\\ud800"}')

    @given(st.integers(0, 10**9), st.integers(0, 10**9))
    def test_a_small_change_is_none(self, seen, now):
        assert has_changed(seen, now) == (abs(seen - now) > 10 and abs(seen - now) > seen * 0.1)


class TestNames:
    def test_a_queue_is_described_by_the_name_that_its_server_knows(self):
        assert requeue.described([SHOP], "shop_mail") == MAIL
        assert requeue.described([SHOP], "mail") is None
        assert requeue.described([SHOP], "shop_mail_errors") is None

    def test_only_servers_that_the_application_uses_get_its_jobs(self):
        configured = parse_servers("a:1,b:2")
        assert MAIL.servers(configured) == parse_servers("a:1")
        assert MAIL.servers(parse_servers("c:3,d:4")) == parse_servers("c:3,d:4")

    @pytest.mark.parametrize(
        ("key", "parent"),
        [("x_errors", "x"), ("x", "x"), ("_errors", "_errors"), ("x_errors_errors", "x_errors")],
    )
    def test_an_error_queue_belongs_to_its_parent(self, key, parent):
        assert requeue.parent_of(key) == parent

    @pytest.mark.parametrize("key", ["caf~C3~A9", "x" * 200, "a~2Bb"])
    def test_a_name_that_can_have_no_error_queue_of_ours_is_said_so(self, key):
        with pytest.raises(requeue.CannotPark):
            requeue.errors_of(key)


class TestTurns:
    def test_all_or_none_is_taken(self):
        holds = Holds(lambda: 0.0)
        release = holds.take(["b"], "ada", "flush")
        with pytest.raises(ActionRefused, match="ada has begun to flush b"):
            holds.take(["a", "b"], "bob", "delete")
        assert holds.get("a") is None
        release()
        release()
        holds.take(["a", "b"], "bob", "delete")
        release()
        assert holds.get("b").who == "bob"

    def test_ids_of_forms_are_of_one_process(self):
        with pytest.raises(ActionRefused):
            Forms().task("ada", Forms().new(), lambda: None)


class TestTasks:
    def test_one_that_breaks_is_over_and_leaves_its_place_to_others(self, caplog):
        tasks = Tasks()
        for _ in range(AT_ONCE + 1):
            task = tasks.start("flush", "2 queues", "ada", 2, lambda work: 1 // 0)
            wait_until(lambda t=task: not tasks.get(t.id).running, "the task to end")
        assert tasks.get(task.id).state == "failed"
        assert "Look at the servers" in tasks.get(task.id).text
        assert "ZeroDivisionError" in caplog.text

    def test_one_that_cannot_begin_was_never_there(self, monkeypatch):
        def no_room(_):
            raise RuntimeError("can't start new thread")

        tasks = Tasks()
        monkeypatch.setattr(threading.Thread, "start", no_room)
        for _ in range(AT_ONCE + 1):
            with pytest.raises(Busy, match="no room for another task"):
                tasks.start("flush", "2 queues", "ada", 2, lambda work: None)
        assert tasks.running() == []

    def test_so_many_at_once_and_each_can_be_stopped(self):
        tasks = Tasks()

        def run(work):
            work.stop.wait(60)
            return Outcome((), "stopped", "stopped")

        running = [tasks.start("requeue", "q", "ada", 1, run) for _ in range(AT_ONCE)]
        with pytest.raises(Busy):
            tasks.start("requeue", "q", "ada", 1, run)
        assert len(tasks.running()) == AT_ONCE
        assert tasks.stop(running[0].id)
        wait_until(lambda: not tasks.get(running[0].id).running, "the task to end")
        assert tasks.get(running[0].id).state == "stopped"
        assert not tasks.stop(running[0].id)
        tasks.close()
        assert tasks.running() == []

    def test_the_oldest_that_are_over_are_forgotten_first(self):
        tasks = Tasks()
        go_on = threading.Event()

        def run(work):
            go_on.wait(60)
            return Outcome((), "", DONE)

        first = tasks.start("requeue", "q", "ada", 1, run)
        over = [
            tasks.over("flush", "q", "ada", Outcome((Result("a", "done", ""),)), 0.0) for _ in range(KEEP)
        ]
        assert tasks.get(first.id) is not None
        assert tasks.get(over[0].id) is None
        assert tasks.get(over[-1].id).done == 1
        go_on.set()
        wait_until(lambda: not tasks.running(), "the task to end")
