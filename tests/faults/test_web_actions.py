"""Actions that are cut, held up or in each other's way: no item is lost, and nobody is told otherwise."""

import os
import random
import re
import signal
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.web.actions.plans import ActionRefused
from support.broker import BrokerProcess, wait_until
from support.cutting_proxy import CuttingProxy
from support.kestrel_web import KestrelWeb, servers
from support.web_actions import ADA, BOB, Desk, fill, outcomes, park, shop
from support.web_forms import form, submit
from support.web_visitor import Visitor, user


@pytest.fixture
def broker(tmp_path):
    with BrokerProcess(tmp_path / "a") as started:
        yield started


@pytest.fixture
def other(tmp_path):
    with BrokerProcess(tmp_path / "b") as started:
        yield started


@pytest.fixture
def desk(broker, other, tmp_path):
    made = Desk(tmp_path, broker, other)
    yield made
    made.close()


@contextmanager
def frozen(process):
    """Hold a process up, as a machine that has no memory left does, until the block ends."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def everything(*brokers):
    """The ids of all jobs there are, parked or ready; a job that is there twice is there twice."""
    for broker in brokers:
        for queue in ("shop_mail", "shop_mail_errors"):
            wait_until(
                lambda b=broker, q=queue: not b.stats(q).get("open_transactions"), "everything to be back"
            )
    parked = [ParkedRecord.decode(one).body for broker in brokers for one in broker.drain("shop_mail_errors")]
    ready = [one for broker in brokers for one in broker.drain("shop_mail")]
    return [Envelope.decode(body).id for body in [*ready, *parked]]


class TestCut:
    @pytest.mark.parametrize("answered", [False, True], ids=["before-the-request", "before-the-answer"])
    def test_a_requeue_that_is_cut_at_any_request_loses_nothing(self, broker, tmp_path, answered):
        """Every request that a requeue of three jobs makes, by filter, with one that is left alone."""
        with CuttingProxy(broker.host, broker.port) as line:
            desk = Desk(tmp_path, line)
            at, doubled = 0, 0
            while True:
                at += 1
                made = [park(broker, tenant=tenant) for tenant in ("acme", "other", "acme")]
                line.arm(at, answered)
                try:
                    task = desk.do("requeue", "shop_mail", tenant="acme")
                except ActionRefused:
                    task = None  # It was cut when its numbers were asked.
                cut = line.cut
                line.arm(0, False)
                if cut and task is not None:
                    assert task.state in ("failed", "part", "done"), task
                found = everything(broker)
                assert set(found) == set(made), (at, task)
                assert len(found) - len(made) <= 1, (at, task)
                doubled += len(found) - len(made)
                if not cut:
                    assert (task.state, task.detail) == ("done", {"count": 2})
                    break
            assert at > 8, "too few requests to prove anything"
            assert doubled > 0, "no cut came between writing and taking away"
            desk.close()

    @pytest.mark.parametrize("moved", [1, 40, 150])
    def test_a_killed_kestrel_web_loses_no_job(self, broker, other, tmp_path, moved):
        made = [park((broker, other)[number % 2], tenant=f"t{number % 3}") for number in range(600)]
        with KestrelWeb(
            tmp_path / "web", **servers(broker, other), settings=[str(shop(tmp_path, broker, other))]
        ) as web:
            location = requeue(web, Visitor(web), tenant="t1")
            wait_until(
                lambda: sum(one.stats("shop_mail").get("items", 0) for one in (broker, other)) >= moved,
                "some to be moved",
            )
            web.kill()
            assert "/tasks/" in location
            web.start()
            visitor = Visitor(web)
            with closing(sqlite3.connect(web.state / "kestrel-web.sqlite3")) as database:
                [(outcome,)] = database.execute(
                    "SELECT outcome FROM audit WHERE action = 'requeue'"
                ).fetchall()
            assert outcome == "cut"
            assert visitor.get(location).status == 404
            requeue(web, visitor, tenant="t1")
            wait_until(
                lambda: sum(one.stats("shop_mail").get("items", 0) for one in (broker, other)) >= 200,
                "the rest to be moved",
            )
            web.terminate()
        found = everything(broker, other)
        assert set(found) == set(made)
        assert len(found) - len(made) <= 1

    @pytest.mark.long
    def test_kills_at_any_moment_lose_no_job(self, broker, other, tmp_path):
        seed = random.randrange(10**6)
        chance = random.Random(seed)
        made = [park((broker, other)[number % 2], tenant=f"t{number % 3}") for number in range(900)]
        kills = 0
        with KestrelWeb(
            tmp_path / "web", **servers(broker, other), settings=[str(shop(tmp_path, broker, other))]
        ) as web:
            for _ in range(15):
                visitor = Visitor(web)
                if chance.random() < 0.6:
                    if requeue(web, visitor, tenant=f"t{chance.randrange(3)}") is None:
                        continue
                else:
                    page = visitor.get("/queues/shop_mail/parked").data.decode()
                    if 'method="post"' not in page:
                        break
                    threading.Thread(target=_quietly, args=(submit, visitor, form(page, "/parked"))).start()
                time.sleep(chance.uniform(0, 0.2))
                web.kill()
                kills += 1
                if chance.random() < 0.3:
                    broker.kill()
                    broker.start()
                web.start()
        found = everything(broker, other)
        assert kills > 5, f"seed {seed}"
        assert set(found) == set(made), f"seed {seed}"
        assert len(found) - len(made) <= kills, f"seed {seed}"

    def test_a_task_that_is_stopped_leaves_the_rest_parked(self, desk, broker, other):
        made = [park((broker, other)[number % 2]) for number in range(2000)]
        task = desk.actions.do("requeue", "shop_mail", {"all": True}, ADA)
        wait_until(lambda: desk.actions.tasks.get(task.id).done > 10, "some to be moved")
        assert desk.actions.tasks.stop(task.id, "bob")
        task = desk.over(task)
        assert task.state == "stopped"
        assert task.text.endswith("parked jobs put back. Stopped by bob.")
        assert desk.audit().detail["text"] == task.text
        assert task.results[-1].outcome == "stopped"
        assert desk.audit().outcome == "cut"
        moved = sum(one.stats("shop_mail").get("items", 0) for one in (broker, other))
        assert moved == task.detail["count"] < len(made)
        assert sorted(everything(broker, other)) == sorted(made)

    def test_a_broker_that_dies_in_the_middle_is_named_and_loses_nothing(self, desk, broker, other):
        made = [park((broker, other)[number % 2]) for number in range(2000)]
        task = desk.actions.do("requeue", "shop_mail", {"all": True}, ADA)
        wait_until(lambda: desk.actions.tasks.get(task.id).done > 10, "some to be moved")
        broker.kill()
        task = desk.over(task)
        assert task.state == "part"
        assert outcomes(task)[broker.address] == "failed"
        assert "The others are still parked" in task.results[0].text
        broker.start()
        found = everything(broker, other)
        assert set(found) == set(made)
        assert len(found) - len(made) <= 1


def _quietly(call, *arguments):
    with suppress(Exception):
        call(*arguments)


def requeue(web, visitor, **values):
    """Requeue by the form; where its task is, or None when nothing is parked."""
    page = visitor.get("/queues/shop_mail/do/requeue").data.decode()
    if "Nothing is parked" in page:
        return None
    answer = submit(visitor, form(page, "/do/requeue"), all="", **values)
    assert answer.status == 303, answer.data
    return answer.headers["Location"]


class TestHangs:
    def test_a_server_that_hangs_in_the_middle_holds_up_nobody_else_and_is_named(
        self, broker, other, tmp_path
    ):
        desk = Desk(tmp_path, broker, other, timeout_s=1.0)
        for one in (broker, other):
            fill(one, "plain", 3)
        plan = desk.actions.plan("flush_expired", "plain", {})
        with frozen(broker):
            task = desk.over(desk.actions.run(plan, ADA))
            assert task.state == "part"
            assert outcomes(task) == {broker.address: "failed", other.address: "done"}
            assert "timed out" in task.results[0].text
            assert "may have been done" in task.results[0].text
            # The next one is told before it begins.
            plan = desk.actions.plan("flush", "plain", {})
            assert [bool(place.error) for place in plan.places] == [True, False]
            task = desk.over(desk.actions.run(plan, ADA))
            assert outcomes(task) == {broker.address: "not reached", other.address: "done"}
            assert desk.audit().outcome == "failed"
        assert broker.stats("plain")["items"] == 3
        desk.close()

    def test_the_second_operator_is_told_of_the_first(self, broker, tmp_path):
        desk = Desk(tmp_path, broker, timeout_s=3.0)
        fill(broker, "plain", 1)
        park(broker, "plain")
        plan = desk.actions.plan("flush_expired", "plain", {})
        with frozen(broker):
            first = threading.Thread(target=desk.actions.run, args=(plan, ADA))
            first.start()
            wait_until(lambda: desk.actions.busy("plain"), "the first to begin")
            with pytest.raises(ActionRefused) as caught:
                desk.actions.run(plan, BOB)
        first.join(60)
        assert caught.value.status == 409
        assert re.fullmatch(
            r"ada has begun to flush the expired items of plain at \d\d:\d\d:\d\d; wait until that is over\.",
            str(caught.value),
        )
        assert desk.actions.busy("plain") is None
        assert desk.do("flush", "plain", BOB).state == "done"
        desk.close()

    def test_one_requeue_of_a_queue_at_a_time_and_no_flush_of_its_errors_meanwhile(self, desk, broker, other):
        made = [park(broker) for _ in range(1500)]
        task = desk.actions.do("requeue", "shop_mail", {"all": True}, ADA)
        for action, target, options in (
            ("requeue", "shop_mail", {"all": True}),
            ("flush", "shop_mail_errors", {}),
            ("delete", "shop_mail", {}),
        ):
            with pytest.raises(ActionRefused, match="ada has begun to requeue the parked jobs of"):
                desk.actions.do(action, target, options, BOB, confirm=target)
        with pytest.raises(ActionRefused, match="ada has begun to requeue"):
            desk.actions.look("shop_mail", BOB)
        assert desk.actions.tasks.get(task.id).running, "it was over before anybody else came"
        assert desk.over(task).state == "done"
        assert sorted(everything(broker, other)) == sorted(made)

    def test_the_same_form_sent_twice_at_once_is_done_once(self, desk, broker):
        fill(broker, "plain", 5)
        once = desk.actions.form_id()
        tasks = []
        start = threading.Barrier(8)

        def click():
            start.wait(60)
            tasks.append(desk.actions.do("enqueue", "plain", {"body": "x"}, ADA, once=once))

        threads = [threading.Thread(target=click) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(tasks) == 8
        assert len({task.id for task in tasks}) == 1
        assert broker.stats("plain")["items"] == 6


class TestAudit:
    def test_nothing_is_done_while_the_audit_log_cannot_be_written(self, desk, broker, monkeypatch):
        fill(broker, "plain", 3)
        park(broker)
        path = desk.config.state / "kestrel-web.sqlite3"
        said = {}

        def attempt(action, target, options):
            try:
                desk.actions.do(action, target, options, ADA, confirm=target)
            except ActionRefused as exc:
                said[action] = (exc.status, str(exc))

        wanted = [
            ("flush", "plain", {}),
            ("enqueue", "plain", {"body": "x"}),
            ("requeue", "shop_mail", {"all": True}),
            ("status", broker.address, {"status": "readonly"}),
        ]
        with closing(sqlite3.connect(path, isolation_level=None)) as database, monkeypatch.context() as patch:
            database.execute("BEGIN EXCLUSIVE")
            # It never can be written here, however long one waits.
            patch.setattr(desk.store, "write", partial(desk.store.write, timeout=0.2))
            threads = [threading.Thread(target=attempt, args=each) for each in wanted]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            database.execute("ROLLBACK")
        refusal = "Nothing was done, because the audit log cannot be written; see kestrel-web's log."
        assert said == {action: (503, refusal) for action, _, _ in wanted}
        assert not any(desk.actions.busy(target) for _, target, _ in wanted)
        assert desk.store.audit_list() == []
        assert broker.stats("plain")["items"] == 3
        assert broker.stats("shop_mail_errors")["items"] == 1
        assert broker.raw(b"status\r\n") == b"UP\r\n"
        assert desk.do("flush", "plain").state == "done"

    def test_a_page_says_so_too(self, broker, tmp_path):
        fill(broker, "plain", 1)
        with KestrelWeb(tmp_path / "web", **servers(broker), users=[user("ann", "operator")]) as web:
            ann = Visitor(web).logged_in("ann")
            sent = form(ann.get("/queues/plain/do/flush").data.decode(), "/do/flush")
            with closing(
                sqlite3.connect(web.state / "kestrel-web.sqlite3", isolation_level=None)
            ) as database:
                database.execute("BEGIN EXCLUSIVE")
                answer = submit(ann, sent)
                database.execute("ROLLBACK")
            assert answer.status == 503
            assert b"audit log cannot be written" in answer.data
            assert broker.stats("plain")["items"] == 1
