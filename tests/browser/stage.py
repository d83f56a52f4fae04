"""Some brokers with traffic that never ends, and a kestrel-web in front: what browsers are shown."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from pathlib import Path
from typing import ClassVar

from support.broker import BrokerProcess, RawClient
from support.kestrel_web import KestrelWeb, servers

SCRIPT_NAME = b"<script>alert(1)</script>".replace(b"/", b"")
SCRIPT_BODY = (
    b'{"v":1,"job":"<script>document.title=\'taken\'</script>","data":"</pre><img src=x onerror=alert(1)>"}'
)


def settings_file(folder: Path, addresses: list[str]) -> Path:
    """An application's description of its queues, with limits."""
    file = folder / "shop.json"
    queues = [
        {"name": "orders", "alert": {"backlog": 5000, "age": "60s"}, "retry_delays": [10, 60]},
        {"name": "mail", "alert": {"backlog": 300, "age": "30s"}, "retry_delays": [10, 60, 600]},
        {"name": "thumbnails", "alert": {"backlog": 20000, "age": "10m"}, "retry_delays": [30]},
        {"name": "invoices", "alert": {"backlog": 100, "age": "5m"}},
        {"name": "search_index", "alert": {"backlog": 1000, "age": "2m"}},
    ]
    content = {
        "app": "shop",
        "namespace": "shop",
        "environment": "production",
        "servers": addresses,
        "queues": queues,
    }
    file.write_text(json.dumps(content))
    return file


def envelope(job: str, **data) -> bytes:
    """A job as producers write it."""
    ident = f"{random.getrandbits(32):08x}-0000-4000-8000-{random.getrandbits(48):012x}"
    now = int(time.time() * 1000)
    body = {"v": 1, "id": ident, "job": job, "tenant": "acme", "data": data, "attempt": 1, "enqueued_at": now}
    return json.dumps(body).encode()


def parked(job: str, message: str) -> bytes:
    """A record as consumers park it."""
    import base64

    body = {
        "v": 1,
        "parked_at": int(time.time() * 1000),
        "reason": "failed",
        "error": {"class": "SMTPServerDisconnected", "message": message, "stack": "mail.py:41 in send"},
        "sentry_event": None,
        "attempts": 4,
        "body_b64": base64.b64encode(envelope(job, to="a@example.org")).decode(),
    }
    return json.dumps(body).encode()


def put(client: RawClient, queue: bytes, body: bytes) -> None:
    client.send(b"set %s 0 0 %d\r\n%s\r\n" % (queue, len(body), body))
    client.expect(b"STORED\r\n")


def fill(broker: BrokerProcess, queue: str | bytes, count: int, body: bytes | None = None) -> None:
    """Put some items into a queue of one broker."""
    name = queue.encode() if isinstance(queue, str) else queue
    with broker.connect() as client:
        for number in range(count):
            put(client, name, body or envelope("SendMail", number=number))


class Traffic:
    """Puts and gets in a thread, each queue at rates of its own; goes on over a broker's death."""

    # queue: puts per second, gets per second, how much they swing
    PLAN: ClassVar = {
        "shop_orders": (38, 38.2, 0.3),
        "shop_mail": (9, 7.5, 0.4),
        "shop_thumbnails": (17, 18, 0.8),
        "shop_search_index": (55, 0, 0.2),  # its workers wait for each item
        "shop_invoices": (0.4, 0.41, 0.1),
    }

    def __init__(self, brokers: list[BrokerProcess]):
        self._brokers = brokers
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(broker, index, work), daemon=True)
            for index, broker in enumerate(brokers)
            for work in (self._flow, self._wait)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, broker: BrokerProcess, index: int, work) -> None:
        chance = random.Random(index)
        while not self._stop.is_set():
            with contextlib.suppress(OSError, AssertionError), broker.connect() as client:
                work(client, chance)
            self._stop.wait(0.3)

    def _flow(self, client: RawClient, chance: random.Random) -> None:
        due = {name: [0.0, 0.0] for name in self.PLAN}
        swing = dict.fromkeys(self.PLAN, 1.0)
        last = time.monotonic()
        while not self._stop.wait(0.1):
            now = time.monotonic()
            passed, last = now - last, now
            for name, (into, out, how) in self.PLAN.items():
                swing[name] = min(1 + how, max(1 - how, swing[name] + chance.uniform(-how, how) * 0.25))
                due[name][0] += into * passed * swing[name] / len(self._brokers)
                due[name][1] += out * passed / len(self._brokers)
                while due[name][0] >= 1:
                    due[name][0] -= 1
                    put(client, name.encode(), envelope("Job", order=chance.randrange(10**6)))
                while due[name][1] >= 1:
                    due[name][1] -= 1
                    if client.get(f"{name}/close/open") is None:
                        due[name][1] = 0

    def _wait(self, client: RawClient, chance: random.Random) -> None:
        while not self._stop.is_set():
            client.get("shop_search_index/t=400/close/open")


@contextlib.contextmanager
def stage(folder: Path, brokers: int = 3, odd: bool = True, **config):
    """Brokers with what one meets in life, and a kestrel-web; yields (web, brokers)."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(BrokerProcess(folder / f"b{index}")) for index in range(brokers)]
        first = running[0]
        for broker in running:
            fill(broker, "shop_thumbnails", 600)
            fill(broker, "shop_orders", 25)
            fill(broker, "shop_mail_retry_60", 4)
        for queue in ("shop_mail+audit", "reports_weekly"):
            fill(first, queue, 3)
        fill(first, "shop_mail", 120)
        fill(first, "shop_invoices", 140)
        for number in range(7):
            fill(first, "shop_mail_errors", 1, parked("SendMail", f"Connection lost after {number} s"))
        if odd:
            fill(first, SCRIPT_NAME, 2, SCRIPT_BODY)
        file = settings_file(folder, [broker.address for broker in running])
        web = KestrelWeb(folder / "web", **servers(*running))
        web.config |= {"interval_s": 0.5, "settings": [str(file)], "no_consumers_after_s": 2, **config}
        stack.enter_context(web)
        yield web, running
