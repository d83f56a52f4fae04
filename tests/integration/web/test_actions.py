"""What operators may do, on real brokers: what is done, what is said of it, and what is refused."""

import re
import socket
from contextlib import nullcontext

import pytest

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.servers import Server
from kestrel_stack.web import keys
from kestrel_stack.web.access.auth import Auth
from kestrel_stack.web.actions import peek
from kestrel_stack.web.actions.plans import ActionRefused
from kestrel_stack.web.actions.server_client import NotDone, ServerClient
from kestrel_stack.web.actions.tasks import Outcome
from kestrel_stack.web.alerting.alerts import Alerting
from kestrel_stack.web.app import create_app
from kestrel_stack.web.config import ACTIONS
from kestrel_stack.web.site import Site
from support.broker import DEADLINE_S, BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, servers
from support.web_actions import ADA, EVE, Desk, fill, outcomes, park, shop
from support.web_forms import form, forms, submit
from support.web_visitor import Visitor, user


@pytest.fixture(autouse=True)
def empty(brokers):
    yield
    for broker in brokers:
        for line in broker.raw(b"stats\r\n").split(b"\r\n"):
            if (found := re.fullmatch(rb"STAT queue_(.*)_total_flushes 0*[0-9]+", line)) is not None:
                broker.raw(b"delete " + found[1] + b" \r\n")


@pytest.fixture
def desk(brokers, tmp_path):
    made = Desk(tmp_path, *brokers)
    yield made
    made.close()


def refused(expected, call, /, *arguments, **options):
    with pytest.raises(ActionRefused) as caught:
        call(*arguments, **options)
    assert caught.value.status == expected, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestQueues:
    def test_flush_empties_the_queue_on_every_server_and_keeps_what_is_reserved(self, desk, brokers):
        a, b = brokers
        fill(a, "plain", 5)
        fill(b, "plain", 3)
        with a.connect() as worker:
            assert worker.get("plain/open") == b"item 0"
            plan = desk.actions.plan("flush", "plain", {})
            assert plan.count == 7
            assert any("1 item is reserved" in warning and "keeps" in warning for warning in plan.warnings)
            task = desk.do("flush", "plain", seen=7)
            assert task.state == "done"
            assert outcomes(task) == {a.address: "done", b.address: "done"}
            assert "Flushed 4 items; 0 are there now. 1 reserved item stays." in task.results[0].text
            worker.ask(b"get plain/abort\r\n", b"END\r\n")
        assert a.drain("plain") == [b"item 0"]
        entry = desk.audit()
        assert (entry.who, entry.address, entry.action, entry.target) == ("ada", "10.1.2.3", "flush", "plain")
        assert (entry.outcome, entry.detail["count"]) == ("done", 7)
        assert set(entry.servers) == {a.address, b.address}

    def test_flush_may_leave_out_a_server(self, desk, brokers):
        a, b = brokers
        fill(a, "plain", 2)
        fill(b, "plain", 3)
        task = desk.do("flush", "plain", servers=[b.address])
        assert outcomes(task) == {b.address: "done"}
        assert (a.stats("plain")["items"], b.stats("plain")["items"]) == (2, 0)

    def test_delete_warns_of_everything_that_would_surprise(self, desk, brokers):
        a, _ = brokers
        fill(a, "shop_mail", 3)
        fill(a, "shop_mail+audit", 1)
        with a.connect() as reader, a.connect() as waiting:
            reader.get("shop_mail/open")
            plan = desk.actions.plan("delete", "shop_mail", {})
            said = " ".join(plan.warnings)
            assert "reserved by consumers" in said
            assert "knows nothing of that" in said
            assert "settings of shop describe this queue" in said
            assert "fanouts stay" in said
            assert "shop_mail+audit" in said
            fill(a, "idle", 1)
            a.drain("idle")
            waiting.send(b"get idle/t=20000\r\n")
            wait_until(lambda: a.stats("idle").get("waiters") == 1, "the consumer to wait")
            assert "1 consumer waits" in " ".join(desk.actions.plan("delete", "idle", {}).warnings)
            task = desk.do("delete", "idle")
        assert task.state == "done"
        assert a.stats("idle") == {}
        assert "Deleted with 0 items." in task.text

    def test_expired_items_go_of_one_queue_or_of_a_whole_server(self, desk, brokers):
        a, _ = brokers
        for queue in ("one", "two"):
            # A time in the past: expired at once, and still there.
            a.raw(b"set %b 0 -1 1\r\nx\r\n" % queue.encode())
        assert desk.do("flush_expired", "one").results[0].text == "Removed 1 expired item."
        assert desk.do("flush_expired", a.address).results[0].text == "Removed 1 expired item."

    def test_a_queue_that_nobody_has_is_said_so_and_not_made(self, desk, brokers):
        for action in ("flush", "delete", "flush_expired", "requeue"):
            assert "nope" in refused(
                404, desk.do, action, "nope", **({"all": True} if action == "requeue" else {})
            )
        assert "nope" in refused(404, desk.do, "enqueue", "nope", body="x")
        assert all(not broker.stats("nope") for broker in brokers)

    def test_names_of_every_legal_byte_are_acted_on_and_no_other(self, desk, brokers):
        a, _ = brokers
        odd = bytes(byte for byte in range(1, 256) if byte not in b"./~ \n+")
        names = [odd[:120], odd[120:], b"caf\xc3\xa9+x", b"ends\r", b"'}{", b"tab\there", b"<script>"]
        for name in names:
            key = keys.make(name)
            with ServerClient(Server(a.host, a.port)) as client:
                client.put(key, b"here")
            assert desk.actions.plan("flush", key, {}).count == 1, name
            head = peek.look(desk.config, key, a.address)
            assert head.body == b"here", (name, head)
            assert "item" in desk.do("flush", key).text
            assert desk.actions.plan("flush", key, {}).count == 0
            assert desk.do("delete", key).state == "done"
            assert refused(404, desk.actions.plan, "flush", key, {})

    def test_a_parents_queue_of_an_odd_name_cannot_be_requeued_and_it_is_said_why(self, desk, brokers):
        key = keys.make(b"caf\xc3\xa9")
        fill(brokers[0], "café", 1)
        assert "only a queue whose name is of A-Z" in refused(400, desk.do, "requeue", key, all=True)


class TestConfirmation:
    def test_from_the_limit_on_the_name_must_be_typed(self, brokers, tmp_path):
        desk = Desk(tmp_path, *brokers, confirm_typed_from=5)
        fill(brokers[0], "plain", 5)
        assert desk.actions.plan("flush", "plain", {}).needs_typed
        for typed in ("", "plai", "PLAIN"):
            said = refused(409, desk.do, "flush", "plain", confirm=typed)
            assert said == "Nothing was done: type plain to confirm this."
        assert brokers[0].stats("plain")["items"] == 5
        assert desk.audit().outcome == "refused"
        assert desk.do("flush", "plain", confirm=" plain ").state == "done"
        desk.close()

    def test_a_program_always_says_the_name(self, desk, brokers):
        fill(brokers[0], "plain", 1)
        with pytest.raises(ActionRefused, match="type plain"):
            desk.actions.do("flush", "plain", {}, ADA, always_typed=True)
        assert desk.actions.do("flush", "plain", {}, ADA, always_typed=True, confirm="plain").state == "done"

    @pytest.mark.parametrize(
        ("seen", "there", "ok"),
        [
            (100, 111, False),
            (100, 110, True),
            (0, 10, True),
            (0, 11, False),
            (40, 20, False),
            (200, 220, True),
        ],
    )
    def test_who_saw_other_numbers_must_look_again(self, desk, brokers, seen, there, ok):
        fill(brokers[0], "plain", there)
        if ok:
            assert desk.do("flush", "plain", seen=seen).state == "done"
        else:
            said = refused(409, desk.do, "flush", "plain", seen=seen)
            assert f"there were {seen:,} items when this was shown, now there are {there:,}" in said
            assert brokers[0].stats("plain")["items"] == there

    def test_the_same_form_does_its_work_once(self, desk, brokers):
        fill(brokers[0], "plain", 1)
        once = desk.actions.form_id()
        first = desk.actions.do("flush", "plain", {}, ADA, once=once)
        fill(brokers[0], "plain", 2)
        second = desk.actions.do("flush", "plain", {}, ADA, once=once)
        assert second.id == first.id
        assert brokers[0].stats("plain")["items"] == 2
        assert len(desk.store.audit_list()) == 1

    def test_a_form_of_an_earlier_process_is_worth_nothing(self, desk, brokers):
        fill(brokers[0], "plain", 1)
        with pytest.raises(ActionRefused, match="from before kestrel-web was started again") as caught:
            desk.actions.do("flush", "plain", {}, ADA, once="AAAAAAAA.BBBB")
        assert caught.value.status == 409
        assert brokers[0].stats("plain")["items"] == 1

    def test_a_refused_form_may_be_sent_again(self, brokers, tmp_path):
        desk = Desk(tmp_path, *brokers, confirm_typed_from=1)
        fill(brokers[0], "plain", 1)
        once = desk.actions.form_id()
        for typed in ("no", "plain"):
            with pytest.raises(ActionRefused) if typed == "no" else nullcontext():
                desk.actions.do("flush", "plain", {}, ADA, once=once, confirm=typed)
        assert brokers[0].stats("plain")["items"] == 0
        desk.close()


class TestWhoMay:
    @pytest.mark.parametrize("action", ["flush", "delete", "flush_expired", "enqueue", "requeue", "drop"])
    def test_nothing_is_done_on_a_read_only_site_nor_by_a_viewer_nor_when_switched_off(
        self, brokers, tmp_path, action
    ):
        options = {"enqueue": {"body": "x"}, "requeue": {"all": True}, "drop": {"all": True}}.get(action, {})
        queue = "plain"
        fill(brokers[0], queue, 1)
        park(brokers[0], queue)
        before = [broker.stats(queue) for broker in brokers]
        for number, (config, who, words) in enumerate(
            [
                ({"read_only": True}, ADA, "read-only"),
                ({"actions": ()}, ADA, "switched off"),
                ({}, EVE, "needs the role operator"),
                ({}, None, "Nobody is logged in"),
            ]
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            desk = Desk(folder, *brokers, **config)
            assert words in refused(403, desk.do, action, queue, who, **options)
            assert desk.audit().outcome == "refused"
            desk.close()
        after = [broker.stats(queue) for broker in brokers]
        assert [numbers.get("items") for numbers in before] == [numbers.get("items") for numbers in after]
        assert brokers[0].stats(f"{queue}_errors")["items"] == 1

    def test_only_configured_servers_are_touched(self, desk):
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.settimeout(0.2)
            address = f"127.0.0.1:{other.getsockname()[1]}"
            refused(404, desk.do, "shutdown", address)
            refused(404, desk.do, "flush_expired", address)
            fill_options = {"servers": [address]}
            refused(404, desk.do, "flush", "shop_mail", **fill_options)
            refused(404, desk.do, "enqueue", "shop_mail", job="A", tenant="t", server=address)
            with pytest.raises(LookupError):
                peek.look(desk.config, "shop_mail", address)
            with pytest.raises(TimeoutError):
                other.accept()

    @pytest.mark.parametrize(
        ("action", "target", "options", "words"),
        [
            ("flush", "plain", {"force": True}, "no option 'force'"),
            ("reload", "SERVER", {"x": 1}, "no option 'x'; it has: none"),
            ("status", "SERVER", {"status": "down"}, "one of UP, READONLY, QUIESCENT"),
            ("enqueue", "plain", {}, "item is empty"),
            ("enqueue", "plain", {"body": "{", "as": "json"}, "not JSON"),
            ("enqueue", "plain", {"job": "A"}, "No settings describe"),
            ("enqueue", "plain", {"body": "x" * 300_000}, "at most 262,144"),
            ("enqueue", "shop_mail", {"job": "no job", "tenant": "t"}, "not a job name"),
            ("enqueue", "shop_mail", {"job": "A", "tenant": "../x"}, "not a tenant name"),
            ("enqueue", "shop_mail", {"job": "A", "tenant": "t", "data": "[1]"}, "not a JSON object"),
            ("enqueue", "shop_mail", {"job": "A", "tenant": "t", "data": "{"}, "not JSON"),
            ("enqueue", "shop_mail", {"body": "x"}, "give job, tenant and data"),
            ("requeue", "plain", {}, "all, or by job"),
            ("requeue", "plain", {"all": True, "job": "A"}, "all, or by job"),
            ("requeue", "plain", {"count": "-1"}, "whole number from 1"),
            ("requeue", "plain", {"count": True}, "whole number from 1"),
        ],
    )
    def test_wrong_options_are_named(self, desk, brokers, action, target, options, words):
        fill(brokers[0], "plain", 1)
        park(brokers[0], "plain")
        target = brokers[0].address if target == "SERVER" else target
        assert words in refused(400, desk.do, action, target, **options)
        assert brokers[0].stats("plain")["items"] == 1


class TestEnqueue:
    def test_a_described_queue_gets_a_valid_job(self, desk, brokers):
        task = desk.do("enqueue", "shop_mail", job="SendMail", tenant="acme", data='{"to": "Ada", "n": 1.10}')
        [body] = [item for broker in brokers for item in broker.drain("shop_mail")]
        made = Envelope.decode(body)
        assert (made.job, made.tenant, made.data, made.attempt) == (
            "SendMail",
            "acme",
            {"to": "Ada", "n": 1.1},
            1,
        )
        assert task.detail == {"id": made.id, "server": task.results[0].server}
        assert made.id in task.text
        assert task.results[0].server in task.text

    def test_another_queue_gets_the_very_text_on_the_server_that_has_it(self, desk, brokers):
        a, b = brokers
        fill(b, "plain", 1)
        for body in ("<script>alert(1)</script>", '{"a": 1.10}', "é"):
            assert desk.do("enqueue", "plain", body=body).results[0].server == b.address
        assert b.drain("plain")[1:] == [b"<script>alert(1)</script>", b'{"a": 1.10}', "é".encode()]
        assert a.stats("plain") == {}

    def test_a_server_may_be_chosen(self, desk, brokers):
        fill(brokers[0], "plain", 1)
        desk.do("enqueue", "plain", body="x", server=brokers[1].address)
        assert brokers[1].drain("plain") == [b"x"]

    def test_one_that_refuses_is_passed_by_and_named(self, desk, brokers):
        a, b = brokers
        a.raw(b"status readonly\r\n")
        try:
            for _ in range(5):
                task = desk.do("enqueue", "shop_mail", job="SendMail", tenant="acme")
                assert task.state == "done"
                assert task.detail["server"] == b.address
            assert "READONLY" in refused_text(desk, a)
        finally:
            a.raw(b"status up\r\n")


def refused_text(desk, broker):
    task = desk.do("enqueue", "shop_mail", job="SendMail", tenant="acme", server=broker.address)
    assert task.state == "failed"
    return task.results[0].text


class TestServers:
    def test_a_readonly_server_refuses_in_two_ways_and_both_are_explained(self, desk, brokers):
        a, b = brokers
        fill(a, "plain", 2)
        fill(b, "plain", 2)
        assert desk.do("status", a.address, status="readonly").text == "The server is READONLY."
        try:
            task = desk.do("flush", "plain")
            assert task.state == "part"
            assert outcomes(task) == {a.address: "failed", b.address: "done"}
            assert (
                "is READONLY and refuses to flush (it answers SERVER_ERROR): set it to UP first"
                in task.results[0].text
            )
            assert a.stats("plain")["items"] == 2
            assert desk.audit().outcome == "failed"
            task = desk.do("flush_expired", "plain")
            assert "it closes without a reply" in task.results[0].text
            assert desk.do("delete", "plain").state == "part"
            assert desk.do("status", a.address, status="QUIESCENT").text == "The server is QUIESCENT."
            head = peek.look(desk.config, "plain", a.address)
            assert "QUIESCENT and refuses to show the head of a queue" in head.error
        finally:
            assert desk.do("status", a.address, status="up").text == "The server is UP."
        assert desk.do("flush", "plain").state == "done"

    def test_reload_is_verified(self, desk, brokers):
        assert "Reloaded; the server is UP" in desk.do("reload", brokers[0].address).text

    def test_shutdown_needs_the_address_and_is_seen_to_be_done(self, brokers, tmp_path):
        with BrokerProcess(tmp_path / "c") as c:
            desk = Desk(tmp_path, c, brokers[0])
            fill(c, "plain", 3)
            assert desk.actions.plan("shutdown", c.address, {}).needs_typed
            refused(409, desk.do, "shutdown", c.address, confirm="yes")
            assert (
                desk.do("shutdown", c.address).text == "The server has stopped: it is not reachable any more."
            )
            assert c.process.wait(60) == 0
            fill(brokers[0], "plain", 1)
            plan = desk.actions.plan("flush", "plain", {})
            assert any("Nothing is done on this server" in warning for warning in plan.warnings)
            task = desk.do("flush", "plain")
            assert task.state == "part"
            assert outcomes(task) == {c.address: "not reached", brokers[0].address: "done"}
            assert (
                refused(409, desk.do, "shutdown", c.address, confirm="")
                == f"Nothing was done: type {c.address} to confirm this."
            )
            c.start()
            assert len(c.drain("plain")) == 3
            desk.close()

    def test_shutdown_is_off_unless_it_was_switched_on(self, brokers, tmp_path):
        from kestrel_stack.web.config import DEFAULT_ACTIONS

        desk = Desk(tmp_path, *brokers, actions=DEFAULT_ACTIONS)
        assert "switched off" in refused(403, desk.do, "shutdown", brokers[0].address)
        desk.close()

    def test_a_name_that_is_no_name_is_closed_without_a_reply_and_said_so(self, brokers):
        class Raw(ServerClient):
            def _name(self, queue):
                return queue.encode()

        with (
            Raw(Server(brokers[0].host, brokers[0].port)) as client,
            pytest.raises(Exception, match="without a reply"),
        ):
            client.put("a.b", b"x")

    def test_a_full_queue_refuses_an_item(self, tmp_path):
        with (
            BrokerProcess(tmp_path, queues={"small": {"max_items": 1}}) as broker,
            ServerClient(Server(broker.host, broker.port)) as client,
        ):
            client.put("small", b"1")
            with pytest.raises(NotDone, match="full or the item too large"):
                client.put("small", b"2")


class TestRequeue:
    def test_parked_jobs_go_back_by_what_they_are(self, desk, brokers):
        a, b = brokers
        mine = [park(broker, tenant="acme", reason="Boom: timeout") for broker in (a, b, a)]
        other = park(a, tenant="other")
        hello = park(b, job="Hello")
        task = desk.do("requeue", "shop_mail", tenant="acme", job="SendMail", reason="TIMEOUT")
        assert (task.state, task.detail, task.done) == ("done", {"count": 3}, 3)
        assert sorted(ready(brokers)) == sorted(mine)
        assert desk.do("requeue", "shop_mail", id=hello).detail == {"count": 1}
        assert ready(brokers) == [hello]
        # The error queue's own key means the same.
        assert desk.do("requeue", "shop_mail_errors", all=True).target == "shop_mail"
        assert ready(brokers) == [other]
        assert "Nothing is parked" in refused(409, desk.do, "requeue", "shop_mail", all=True)

    def test_how_many_those_are_is_not_known_before(self, desk, brokers):
        for number in range(6):
            park(brokers[0], tenant=f"t{number % 2}")
        said = []
        before = desk.actions.tasks._change
        desk.actions.tasks._change = lambda task, **changes: (said.append(changes), before(task, **changes))
        task = desk.do("requeue", "shop_mail", tenant="t1")
        assert (task.total, task.done) == (None, 3)
        assert said[-2]["text"] == f"{brokers[0].address}: 6 looked at, 3 put back"
        assert desk.do("requeue", "shop_mail", count=2).total == 2

    def test_so_many_and_no_more(self, desk, brokers):
        for number in range(6):
            park(brokers[number % 2])
        task = desk.do("requeue", "shop_mail", count="4")
        assert task.detail == {"count": 4}
        assert len(ready(brokers)) == 4
        assert sum(broker.stats("shop_mail_errors")["items"] for broker in brokers) == 2

    def test_a_queue_that_nothing_describes_goes_back_to_where_it_is_read(self, desk, brokers):
        a, b = brokers
        fill(b, "plain", 1)
        park(a, "plain")
        task = desk.do("requeue", "plain", all=True)
        assert task.state == "done"
        assert "items" not in a.stats("plain")
        assert len(b.drain("plain")) == 2

    def test_what_is_no_parked_record_stays_and_is_counted(self, desk, brokers):
        park(brokers[0])
        fill(brokers[0], "shop_mail_errors", 2)
        task = desk.do("requeue", "shop_mail", all=True)
        assert task.state == "part"
        assert "1 put back. 2 in the error queue are no parked records; they stay." in task.results[0].text
        assert brokers[0].stats("shop_mail_errors")["items"] == 2

    def test_dropping_is_for_ever_and_confirmed(self, desk, brokers):
        park(brokers[0])
        kept = park(brokers[0], tenant="other")
        assert desk.actions.plan("drop", "shop_mail", {"tenant": "acme"}).destructive
        assert desk.do("drop", "shop_mail", tenant="acme").text == "1 parked job dropped."
        [record] = brokers[0].drain("shop_mail_errors")
        assert Envelope.decode(ParkedRecord.decode(record).body).id == kept

    def test_a_server_that_is_away_is_named_and_the_others_are_done(self, brokers, tmp_path):
        with BrokerProcess(tmp_path / "c") as c:
            desk = Desk(tmp_path, brokers[0], c)
            park(brokers[0])
            park(c)
            c.kill()
            task = desk.do("requeue", "shop_mail", all=True)
            assert task.state == "part"
            assert outcomes(task) == {brokers[0].address: "done", c.address: "not reached"}
            desk.close()

    def test_a_look_gives_all_back_in_their_order(self, desk, brokers):
        a, b = brokers
        order = [park(a, reason=f"Boom {number}") for number in range(30)]
        park(b, tenant="other")
        fill(b, "shop_mail_errors", 1)
        found = desk.actions.look("shop_mail_errors", ADA)
        assert len(found.items) == 32
        assert [item.id for item in found.items[:30]] == order
        assert found.items[0].error_class == "Boom"
        assert found.items[0].stack == "line 1\nline 2"
        assert not found.items[-1].is_record
        assert desk.actions.last_look("shop_mail") == found
        wait_until(lambda: a.stats("shop_mail_errors")["open_transactions"] == 0, "all to be back")
        assert [
            Envelope.decode(ParkedRecord.decode(one).body).id for one in a.drain("shop_mail_errors")
        ] == order
        assert desk.audit().action == "look"

    def test_a_look_is_bounded_and_shared_among_the_servers(self, desk, brokers):
        from kestrel_stack.web.actions import requeue

        a, b = brokers
        for _ in range(7):
            park(a)
            park(b)
        plan = desk.actions.plan_look("shop_mail")
        found = requeue.look(desk.actions.parking(plan), "shop_mail", "ada", desk.actions.parked(plan), 6)
        assert [item.server for item in found.items] == [a.address] * 3 + [b.address] * 3
        for broker in brokers:
            wait_until(lambda b=broker: b.stats("shop_mail_errors")["items"] == 7, "all to be back")

    def test_a_look_is_for_operators_of_a_site_that_may_change(self, desk, brokers, tmp_path):
        park(brokers[0])
        refused(403, desk.actions.look, "shop_mail", EVE)
        (tmp_path / "other").mkdir()
        still = Desk(tmp_path / "other", *brokers, read_only=True)
        refused(403, still.actions.look, "shop_mail", ADA)
        still.close()
        assert brokers[0].stats("shop_mail_errors")["transactions"] == 0


def ready(brokers):
    return [Envelope.decode(body).id for broker in brokers for body in broker.drain("shop_mail")]


class TestBulk:
    def test_several_queues_each_with_its_outcome(self, brokers, tmp_path):
        desk = Desk(tmp_path, *brokers, confirm_typed_from=5)
        for queue, count in (("one", 3), ("two", 4)):
            fill(brokers[0], queue, count)
        fill(brokers[1], "two", 1)
        bulk = desk.actions.plan_bulk("flush", ["one", "two", "nope"], {})
        assert (bulk.count, bulk.needs_typed, bulk.name) == (8, True, "2 queues")
        assert [key for key, _ in bulk.refused] == ["nope"]
        with pytest.raises(ActionRefused, match="type 2 queues"):
            desk.actions.do_bulk("flush", ["one", "two"], ADA)
        task = desk.over(
            desk.actions.do_bulk("flush", ["one", "two"], ADA, confirm="2 queues", seen={"one": 3, "two": 5})
        )
        assert task.state == "done"
        assert [(result.target, result.outcome) for result in task.results] == [
            ("one", "done"),
            ("two", "done"),
            ("two", "done"),
        ]
        assert {entry.target for entry in desk.store.audit_list(filters={"outcome": "done"})} == {
            "one",
            "two",
        }
        desk.close()

    def test_numbers_that_nobody_saw_are_not_flushed(self, desk, brokers):
        fill(brokers[0], "one", 30)
        with pytest.raises(ActionRefused, match="there were 2 items"):
            desk.actions.do_bulk("flush", ["one"], ADA, seen={"one": 2})
        assert brokers[0].stats("one")["items"] == 30

    def test_parked_jobs_of_several_queues(self, desk, brokers):
        park(brokers[0], "plain")
        park(brokers[0], "shop_mail")
        task = desk.over(desk.actions.do_bulk("requeue", ["plain_errors", "shop_mail", "plain"], ADA))
        assert (task.state, task.total) == ("done", 2)
        assert brokers[0].stats("plain")["items"] == 1


class TestPeek:
    def test_a_look_makes_no_queue_and_takes_nothing(self, desk, brokers):
        a, _ = brokers
        assert peek.look(desk.config, "nope", a.address).empty
        assert a.stats("nope") == {}
        fill(a, "plain", 2)
        for _ in range(3):
            assert peek.look(desk.config, "plain", a.address).body == b"item 0"
        assert a.stats("plain")["items"] == 2

    def test_jobs_and_parked_jobs_are_understood(self, desk, brokers):
        a, _ = brokers
        made = Envelope("SendMail", "acme", {"text": "<script>alert(1)</script>"})
        with a.connect() as client:
            client.set("shop_mail", made.encode())
        parked = park(a)
        head = peek.look(desk.config, "shop_mail", a.address)
        assert head.envelope == made
        assert head.as_json()["kind"] == "job"
        head = peek.look(desk.config, "shop_mail_errors", a.address)
        assert (head.record.reason, head.inner.id, head.as_json()["kind"]) == ("Boom", parked, "parked")

    @pytest.mark.parametrize("size", [1000, 1001, 5 * 1024 * 1024])
    def test_a_large_item_is_cut_and_its_true_size_said(self, brokers, tmp_path, size):
        desk = Desk(tmp_path, *brokers, peek_bytes=1000)
        with brokers[0].connect() as client:
            client.set("plain", b"x" * size)
        head = peek.look(desk.config, "plain", brokers[0].address)
        assert (len(head.body), head.size, head.truncated) == (1000, size, size > 1000)
        desk.close()


@pytest.fixture(scope="module")
def web(brokers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    with KestrelWeb(
        folder,
        **servers(*brokers),
        settings=[str(shop(folder, *brokers))],
        users=[user("ann", "operator"), user("eve")],
        prefix="/kestrel",
        confirm_typed_from=5,
    ) as running:
        yield running


@pytest.fixture
def ann(web):
    return Visitor(web).logged_in("ann")


def text_of(response):
    return " ".join(re.sub(r"<[^>]+>", " ", response.data.decode()).split())


def see(web, visitor, queue):
    """Wait until the poller knows a queue."""
    wait_until(lambda: visitor.get(f"/queues/{queue}").status == 200, f"{queue} to be known")


class TestPages:
    def test_flush_by_its_form_with_the_name_and_the_present_count(self, brokers, ann, web):
        fill(brokers[0], "plain", 5)
        fill(brokers[1], "plain", 2)
        page = ann.get("/queues/plain/do/flush")
        assert page.status == 200
        assert "7 items" in text_of(page)
        sent = form(page.data.decode(), "/queues/plain/do/flush")
        assert sent.value(f"seen-{brokers[0].address}") == "5"
        again = submit(ann, sent)
        assert again.status == 409
        assert "type plain to confirm this" in text_of(again)
        assert brokers[0].stats("plain")["items"] == 5
        answer = submit(ann, form(again.data.decode(), "/do/flush"), confirm="plain")
        assert answer.status == 303
        assert answer.headers["Location"].startswith("/kestrel/tasks/")
        task = ann.get(answer.headers["Location"].removeprefix("/kestrel"))
        assert f"{brokers[1].address} done Flushed 2 items" in text_of(task)
        # The Back button and a second click on the same form find it done.
        fill(brokers[0], "plain", 3)
        double = submit(ann, form(again.data.decode(), "/do/flush"), confirm="plain")
        assert double.headers["Location"] == answer.headers["Location"]
        assert brokers[0].stats("plain")["items"] == 3

    def test_a_count_that_has_changed_is_shown_again(self, brokers, ann):
        fill(brokers[0], "plain", 2)
        sent = form(ann.get("/queues/plain/do/flush").data.decode(), "/do/flush")
        fill(brokers[0], "plain", 30)
        again = submit(ann, sent)
        assert again.status == 409
        assert "there were 2 items when this was shown, now there are 32" in text_of(again)
        assert form(again.data.decode(), "/do/flush").value(f"seen-{brokers[0].address}") == "32"
        assert brokers[0].stats("plain")["items"] == 32

    def test_unticked_servers_are_left_alone_and_none_is_a_mistake(self, brokers, ann):
        for broker in brokers:
            fill(broker, "plain", 2)
        sent = form(ann.get("/queues/plain/do/flush").data.decode(), "/do/flush")
        again = submit(ann, sent, server=[])
        assert again.status == 400
        assert "Tick at least one server" in text_of(again)
        sent = form(again.data.decode(), "/do/flush")
        assert submit(ann, sent, server=[brokers[1].address]).status == 303
        assert [broker.stats("plain")["items"] for broker in brokers] == [2, 0]

    def test_a_job_is_enqueued_by_its_form(self, brokers, ann):
        fill(brokers[0], "shop_mail", 1)
        page = form(ann.get("/queues/shop_mail/do/enqueue").data.decode(), "/do/enqueue")
        assert page.value("job") == "Mail"
        again = submit(ann, page, tenant="acme", data="[1]")
        assert again.status == 400
        assert "not a JSON object" in text_of(again)
        kept = form(again.data.decode(), "/do/enqueue")
        assert (kept.value("tenant"), kept.value("data")) == ("acme", "[1]")
        answer = submit(ann, kept, data='{"text": "a\\nb"}', server=brokers[1].address)
        task = text_of(ann.get(answer.headers["Location"].removeprefix("/kestrel")))
        made = Envelope.decode(brokers[1].drain("shop_mail")[0])
        assert f"Job {made.id} is on shop_mail at {brokers[1].address}." in task

    def test_parked_jobs_are_looked_at_searched_and_put_back(self, brokers, ann, web):
        for number in range(4):
            park(brokers[number % 2], tenant=f"t{number}", data={"x": "<script>alert(1)</script>"})
        before = brokers[0].stats("shop_mail_errors")["transactions"]
        page = ann.get("/queues/shop_mail/parked")
        assert "4 parked jobs at this moment" in text_of(page)
        assert brokers[0].stats("shop_mail_errors")["transactions"] == before, "a GET took something in hand"
        answer = submit(
            ann, next(f for f in _forms(page) if f.method == "POST" and f.action.endswith("/parked"))
        )
        assert answer.status == 303
        seen = ann.get("/queues/shop_mail/parked?tenant=t2").data.decode()
        assert seen.count("<article") == 1
        assert "<script>alert" not in seen
        assert "&lt;script&gt;alert" in seen
        sent = form(ann.get("/queues/shop_mail/do/requeue?tenant=t2").data.decode(), "/do/requeue")
        assert sent.value("all") == ""
        location = submit(ann, sent).headers["Location"].removeprefix("/kestrel")
        wait_until(lambda: "1 parked job put back" in text_of(ann.get(location)), "the task to end")
        [made] = ready(brokers)
        assert made in seen

    def test_the_page_of_large_parked_jobs_stays_small(self, brokers, ann):
        for _ in range(20):
            park(brokers[0], "large", data={"x": "y" * 12_000})
        submit(ann, form(ann.get("/queues/large/parked").data.decode(), "/parked"))
        page = ann.get("/queues/large/parked").data.decode()
        assert page.count("Body as hex, the first 512 bytes") == 20
        assert page.count("y" * 12_000) == 20
        assert len(page) < 20 * 20_000

    def test_a_viewer_sees_but_does_nothing(self, brokers, web):
        eve = Visitor(web).logged_in("eve")
        fill(brokers[0], "plain", 2)
        park(brokers[0], "plain")
        assert eve.get("/queues/plain/peek").status == 200
        assert eve.get("/queues/plain/parked").status == 200
        for path in ("/queues/plain/do/flush", "/bulk/flush", "/queues/plain/parked"):
            assert eve.post(path, {"key": "plain"}).status == 403
        assert eve.get("/queues/plain/do/flush").status == 403
        assert brokers[0].stats("plain")["items"] == 2

    def test_peek_shows_items_escaped_and_says_that_it_is_the_head_only(self, brokers, ann):
        with brokers[0].connect() as client:
            client.set("plain", b'{"a": 1.10, "b": "</pre><script>alert(1)</script>"}')
        with brokers[1].connect() as client:
            client.set("plain", b"\x00\xff\x1b[31m<b>")
        page = ann.get("/queues/plain/peek").data.decode()
        assert "<script>alert" not in page
        assert "&#34;a&#34;: 1.10," in page
        assert "00 ff 1b" in page
        assert "Only the next item of each server can be seen" in page
        for form_, words in (
            ("hex", "7b 22 61"),
            ("text", "{&#34;a&#34;: 1.10"),
            ("json", "  &#34;a&#34;: 1.10"),
        ):
            assert (
                words in ann.get(f"/queues/plain/peek?server={brokers[0].address}&as={form_}").data.decode()
            )
        assert ann.get("/queues/plain/peek?as=xml").status == 400
        assert ann.get("/queues/plain/peek?server=127.0.0.1:1").status == 404
        assert ann.get("/queues/..%2Fetc/peek").status == 404

    def test_several_queues_by_a_filter(self, brokers, ann, web):
        for queue, count in (("bulk_one", 3), ("bulk_two", 1), ("other", 2)):
            fill(brokers[0], queue, count)
            see(web, ann, queue)
        page = ann.get("/bulk/flush?f=name%7E%5Ebulk_&all=1")
        assert "4 items" in text_of(page)
        sent = form(page.data.decode(), "/bulk/flush")
        location = submit(ann, sent).headers["Location"].removeprefix("/kestrel")
        wait_until(lambda: "2 of 2 queues" in text_of(ann.get(location)), "the task to end")
        assert [brokers[0].stats(queue)["items"] for queue in ("bulk_one", "bulk_two", "other")] == [0, 0, 2]
        assert ann.get("/bulk/flush?f=items%3E%3E&all=1").status == 400
        assert ann.get("/bulk/enqueue?key=other").status == 404
        assert ann.get("/bulk/flush").status == 400

    def test_a_servers_status_by_its_form(self, brokers, ann):
        page = form(ann.get(f"/servers/{brokers[0].address}/do/status").data.decode(), "/do/status")
        for status in ("READONLY", "UP"):
            location = submit(ann, page, status=status, form=_new(ann, brokers[0])).headers["Location"]
            assert f"The server is {status}." in text_of(ann.get(location.removeprefix("/kestrel")))
        assert ann.get(f"/servers/{brokers[0].address}/do/shutdown").status == 403
        assert ann.get("/servers/127.0.0.1:1/do/reload").status == 404

    def test_one_queue_by_its_box_is_one_queue(self, brokers, ann):
        fill(brokers[0], "plain", 1)
        page = ann.get("/bulk/flush?key=plain")
        assert "1 item in 1 queue at this moment" in text_of(page)
        location = submit(ann, form(page.data.decode(), "/bulk/flush")).headers["Location"]
        location = location.removeprefix("/kestrel")
        wait_until(lambda: "Flush: 1 of 1 queue." in text_of(ann.get(location)), "the task to end")
        assert '<th scope="row"><a href="/kestrel/queues/plain">' in ann.get(location).data.decode()

    def test_numbers_to_decide_by_are_exact(self, brokers, ann):
        fill(brokers[0], "plain", 1234)
        assert f"{brokers[0].address} 1,234 0 0" in text_of(ann.get("/queues/plain/do/flush"))

    def test_blanks_drop_nothing(self, brokers, ann):
        park(brokers[0])
        sent = form(ann.get("/queues/shop_mail/do/drop").data.decode(), "/do/drop")
        answer = submit(ann, sent, all="", reason="   ", confirm="shop_mail")
        assert answer.status == 400
        assert "Say which parked jobs to drop" in text_of(answer)
        assert brokers[0].stats("shop_mail_errors")["items"] == 1

    def test_every_action_can_be_found_in_the_audit_log(self, ann):
        page = ann.get("/audit").data.decode()
        assert {*ACTIONS, "drop", "look"} <= set(re.findall(r'<option value="([a-z_]+)"', page))

    def test_tasks_that_are_not_known_say_where_to_look(self, ann):
        answer = ann.get("/tasks/nope")
        assert answer.status == 404
        assert "audit log" in text_of(answer)


class TestRunning:
    """What is shown of a task that goes on."""

    @pytest.fixture
    def begin(self, brokers, tmp_path):
        """A task that goes on until it is stopped, the desk, and a browser of somebody without a login."""
        desk = Desk(tmp_path, *brokers, actions=("delete",))

        def run(work):
            work.stop.wait(DEADLINE_S)
            return Outcome((), "2 parked jobs dropped.", "stopped")

        task = desk.actions.tasks.start("drop", "shop_mail", "ada", None, run)
        auth = Auth(desk.config, desk.store)
        app = create_app(
            Site(desk.config, desk.poller, desk.store, auth, desk.actions, Alerting(desk.config, desk.store))
        )
        yield task, desk, app.test_client()
        desk.close()

    def test_an_operator_stops_it_whatever_the_allow_list_says(self, begin):
        task, desk, client = begin
        page = client.get(f"/tasks/{task.id}").text
        [stop] = [each for each in forms(page) if each.action == f"/tasks/{task.id}/stop"]
        assert "A stop comes after the job in hand; what is gone by then stays gone." in page
        # Only where no script updates it: whoever is about to press the button is not to lose it.
        assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in page
        assert "<button" in page[page.index(stop.action) :]
        answer = client.post(stop.action, data=dict(stop.fields), headers={"Origin": "http://localhost"})
        assert answer.status_code == 303
        assert desk.over(task).state == "stopped"
        page = client.get(f"/tasks/{task.id}").text
        assert stop.action not in page
        assert 'http-equiv="refresh"' not in page

    def test_how_far_it_is_is_one_click_from_where_another_begins(self, begin, brokers):
        task, desk, client = begin
        park(brokers[0])
        release = desk.actions._holds.take(["shop_mail"], "ada", "drop")
        page = client.get("/queues/shop_mail/do/drop").text
        assert "ada has begun to drop this" in page
        assert f'<a href="/tasks/{task.id}">' in page
        release()
        assert task.id not in client.get("/queues/shop_mail/do/drop").text

    def test_a_look_is_offered_where_it_is_allowed(self, begin, brokers):
        _, _, client = begin
        park(brokers[0])
        page = client.get("/queues/shop_mail/parked").text
        [look] = [each for each in forms(page) if each.action.endswith("/parked")]
        assert "not possible" not in page[page.index("Look at the first") :].partition("</form>")[0]
        answer = client.post(look.action, data=dict(look.fields), headers={"Origin": "http://localhost"})
        assert answer.status_code == 303
        assert "Boom" in client.get(look.action).text


def _forms(page):
    return forms(page.data.decode())


def _new(visitor, broker):
    return form(visitor.get(f"/servers/{broker.address}/do/status").data.decode(), "/do/status").value("form")
