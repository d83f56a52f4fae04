"""What the job contract is played with: a broker, an application, and workers of one language."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from support.broker import Broker, wait_until
from support.worker import App, WorkerProcess, settings

CASES = Path(__file__).parents[1] / "contract" / "jobs"
LOG = json.loads((CASES / "log.json").read_text())
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LEVELS = ("debug", "info", "warning", "error")

_EVENTS = {entry["event"]: entry for entry in LOG["events"]}
_KINDS = {"text": str, "number": int | float}


def cases(file: str, part: str) -> list[dict]:
    return json.loads((CASES / file).read_text())[part]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Stage:
    """One test's broker and application; `language` is that of the workers."""

    def __init__(self, language: str, app: App, broker: Broker):
        self.language = language
        self.app = app
        self.broker = broker
        self._workers: list[tuple[WorkerProcess, bool]] = []

    def worker(self, *flags: str, debug: bool = False, queues: list[dict] | None = None, **more):
        """Start a worker. `queues` are those of its settings file; without them it has none."""
        servers = more.pop("servers", self.broker.address)
        more.setdefault("name", f"worker{len(self._workers)}")
        if queues is not None:
            described = [{"language": self.language, **queue} for queue in queues]
            more["settings"] = settings(servers, *described)
        started = WorkerProcess(self.app, servers, *flags, language=self.language, debug=debug, **more)
        self._workers.append((started, debug))
        return started

    def send(self, job: str, data: dict | None = None, queue: str = "work", **fields) -> str:
        """Put a job straight on its queue and return its id; `fields` are those of the envelope."""
        envelope = Envelope(job, fields.pop("tenant", "acme"), data or {}, **fields)
        self.put(envelope.encode(), queue)
        return envelope.id

    def put(self, body: bytes, queue: str = "work") -> None:
        with self.broker.connect() as raw:
            raw.set(f"shop_{queue}", body)

    def count(self, queue: str = "work") -> int:
        return self.broker.stats(f"shop_{queue}").get("items", 0)

    def held(self, queue: str = "work") -> int:
        return self.broker.stats(f"shop_{queue}").get("open_transactions", 0)

    def wait_until_settled(self, queue: str = "work") -> None:
        wait_until(lambda: (self.count(queue), self.held(queue)) == (0, 0), f"{queue} to be settled")

    def take(self, queue: str, count: int = 1) -> list[bytes]:
        """Wait for so many items on a queue, and take everything that is there."""
        wait_until(lambda: self.count(queue) >= count, f"{count} items on {queue}")
        return self.broker.drain(f"shop_{queue}")

    def parked(self, count: int = 1, queue: str = "work") -> list[ParkedRecord]:
        return [ParkedRecord.decode(item) for item in self.take(f"{queue}_errors", count)]

    def clear(self) -> None:
        """Empty what an earlier test left; a worker that was killed gives back first."""
        names = [f"work{number}" for number in ("", *range(8))]
        text = self.broker.raw(b"stats\r\n").decode("latin-1")
        for queue in sorted(set(re.findall(r"^STAT queue_(shop_\S+)_items ", text, re.MULTILINE))):
            name = queue.removeprefix("shop_")
            if any(name == known or name.startswith(f"{known}_") for known in names):
                wait_until(lambda name=name: self.held(name) == 0, f"{queue} to be given back")
                self.broker.raw(b"flush %b\r\n" % queue.encode())

    def check_logs(self) -> None:
        """Hold every line of every worker of this test to the contract."""
        for worker, debug in self._workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGKILL)
                worker.process.wait()
            *lines, rest = worker.log_file.read_bytes().decode("utf-8").split("\n")
            assert rest == "" or worker.process.returncode < 0, f"a line without an end: {rest!r}"
            for line in lines:
                if debug:
                    stamp, level, *_ = line.split(" ")
                    assert STAMP.fullmatch(stamp) and level in LEVELS, line
                    assert line.isprintable(), line
                else:
                    check_record(json.loads(line))


def check_record(record: dict) -> None:
    """Hold one line of a log to tests/contract/jobs/log.json."""
    assert list(record)[:3] == ["time", "level", "event"], record
    assert STAMP.fullmatch(record["time"]), record
    assert record["level"] in LEVELS, record
    assert None not in record.values(), record
    event = _EVENTS.get(record["event"])
    of_job = all(key in record for key in LOG["job_fields"])
    if event is None or (of_job and event["of_job"] == "never"):
        return  # a line of the worker that has no contract, or one that a job wrote
    for key, kind in LOG["types"].items():
        if key in record:
            assert isinstance(record[key], _KINDS[kind]) and not isinstance(record[key], bool), (key, record)
    if record["event"] == "job":
        _check_job(record)
        return
    assert record["level"] == event["level"], record
    missing = [key for key in event["required"] if key not in record]
    assert not missing, (missing, record)
    assert of_job or event["of_job"] != "always", record


def _check_job(record: dict) -> None:
    kind = record["outcome"]
    if kind == "parked" and "id" not in record:
        kind = "parked, not an envelope"
    outcome = LOG["outcomes"][kind]
    keys = set(record) - {"time", "level", "event"}
    assert set(outcome["required"]) <= keys <= {*outcome["required"], *outcome["optional"]}, record
    assert record["level"] == outcome["level"], record
    assert all(record[key] >= 0 for key in ("wait_ms", "run_ms") if key in record), record
