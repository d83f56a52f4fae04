"""What happens to waiting jobs when movers, workers and brokers are killed. None may be lost."""

import signal

from kestrel_stack.queue.envelope import Envelope, now_ms
from support.broker import BrokerProcess, wait_until
from support.mover import MoverProcess
from support.worker import App, WorkerProcess, settings

QUEUE, LATER = "shop_work", "shop_work_retry_1"


def put(broker, count):
    """Waiting jobs, due one after the other within a second."""
    now = now_ms()
    envelopes = [
        Envelope(job="Note", tenant="acme", attempt=2, due_at=now + number * 1000 // count)
        for number in range(count)
    ]
    with broker.connect() as raw:
        for envelope in envelopes:
            raw.set(LATER, envelope.encode())
    return {envelope.id for envelope in envelopes}


def empty(broker):
    stats = [broker.stats(queue) for queue in (QUEUE, LATER)]
    return all((of["items"], of["open_transactions"]) == (0, 0) for of in stats)


def test_no_waiting_job_is_lost_while_movers_and_brokers_are_killed(tmp_path):
    app = App(tmp_path / "app")
    with BrokerProcess(tmp_path) as broker, WorkerProcess(app, broker.address) as worker:
        ids = put(broker, 300)
        movers = [
            MoverProcess(tmp_path / f"mover{number}", broker.address, delays=[1]) for number in range(2)
        ]
        try:
            for turn in range(4):
                app.wait_for("done", 50 * (turn + 1))
                if turn % 2:
                    broker.kill()
                    broker.start()
                else:
                    movers[0].end(signal.SIGKILL)
                    movers[0] = MoverProcess(tmp_path / f"again{turn}", broker.address, delays=[1])
            wait_until(lambda: set(app.noted("done")) == ids, "every job to be done")
            wait_until(lambda: empty(broker), "the confirmations")
            assert [mover.end(signal.SIGTERM) for mover in movers] == [0, 0]
            assert worker.end(signal.SIGTERM) == 0
        finally:
            for mover in movers:
                mover.__exit__()
        assert broker.drain("shop_work_errors") == []


def test_a_job_put_off_while_no_mover_runs_waits_for_one_and_keeps_its_attempt(tmp_path):
    app = App(tmp_path / "app")
    with BrokerProcess(tmp_path) as broker:
        config = settings(broker.address, {"name": "work", "retry_delays": [1]})
        with broker.connect() as raw:
            raw.set(QUEUE, Envelope(job="Raise", tenant="acme", data={"message": "no"}).encode())
        with WorkerProcess(app, broker.address, settings=config, debug=False) as worker:
            worker.jobs(1)
            wait_until(lambda: broker.stats(QUEUE)["open_transactions"] == 0, "the confirmation")
            broker.restart()
            with MoverProcess(tmp_path, broker.address, delays=[1]):
                first, second = worker.jobs(2)
            assert worker.end(signal.SIGTERM) == 0
        assert [(line["attempt"], line["outcome"]) for line in (first, second)] == [
            (1, "retry"),
            (2, "parked"),
        ]
        assert second["wait_ms"] >= 0
