"""The story: visitors order, the third party goes down and comes back; every order has to reach it once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kestrel_stack import processes
from kestrel_stack.demo.errors import DemoError
from kestrel_stack.demo.report import Outage, Sample, outcomes
from kestrel_stack.demo.stage import Stage
from kestrel_stack.demo.visitors import WAYS, Visitors, request
from kestrel_stack.processes import PHP
from kestrel_stack.queue import Queue, QueueError

NAMESPACE = "demo"
PHP_EXTENSIONS = ("pcntl", "posix", "pdo_sqlite")
SAMPLE_EVERY = 0.1
"""Seconds between two looks at the queues."""


@dataclass(frozen=True)
class Scale:
    """How large the story is. Times are in seconds, `rate` is orders per second to each of the web servers.

    `patience` is how long a visitor waits, `web_timeout` how long the web server waits for the API within a
    request, `job_timeout` how long a job waits for it. The last job has to be done `drain` seconds after the
    last visitor, which is no aim but the end of waiting.
    """

    rate: float
    before: float
    outage: float
    after: float
    patience: float
    web_timeout: float
    job_timeout: float
    retry_delays: tuple[int, ...]
    drain: float = 60.0


FULL = Scale(20, 6, 15, 7, patience=8, web_timeout=4, job_timeout=1, retry_delays=(1, 2, 4, 8, 16))
QUICK = Scale(20, 1.5, 4, 1.5, patience=2, web_timeout=1.5, job_timeout=0.5, retry_delays=(1, 2, 4, 8))

Say = Callable[[float, str], None]
"""Called with seconds since the first visitor and what happened."""
Tick = Callable[[float, Sample, int], None]
"""Called with seconds since the first visitor, the queues, and how many visitors are waiting."""


def no_php() -> str | None:
    """Return why PHP workers cannot run here; None when they can."""
    return processes.no_php(PHP, PHP_EXTENSIONS, "php-cli php-sqlite3")


class Story:
    """One outage on the processes of `stage`, with workers of `speak`; `run` tells it."""

    def __init__(self, stage: Stage, scale: Scale, speak: Sequence[str], say: Say, tick: Tick):
        self._stage = stage
        self._scale = scale
        self._queues = {language: f"orders_{language}" for language in speak}
        self._say = say
        self._tick = tick
        self._ports: dict[str, int] = {}
        self._outage = Outage()

    async def run(self) -> Outage:
        """Tell the story and return what was seen; raise `DemoError` when it cannot be told to its end."""
        try:
            return await self._tell()
        except (QueueError, OSError, asyncio.IncompleteReadError) as exc:
            # Most often somebody we talked to has ended: then its name says more than what we missed.
            await asyncio.sleep(SAMPLE_EVERY)
            self._stage.check()
            raise DemoError(str(exc)) from None

    async def _tell(self) -> Outage:
        visitors = Visitors({way: self._ports[way] for way in WAYS}, self._scale.rate, self._scale.patience)
        scale, outage = self._scale, self._outage
        sampler = asyncio.create_task(self._sample(visitors))
        timeline = asyncio.create_task(self._api_goes_and_comes(visitors))
        coming = asyncio.create_task(visitors.come(scale.before + scale.outage + scale.after))
        tasks = [sampler, timeline, coming]
        try:
            self._say(0.0, f"visitors come: {scale.rate:g} orders a second to each of two web servers")
            pending = {sampler, timeline, coming}
            while coming in pending or timeline in pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self._say(visitors.now, "the last visitor has an answer")
            await self._drained(visitors, sampler)
            outage.ended_at = visitors.now
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        outage.orders = visitors.orders
        outage.visits = visitors.visits
        _, orders = await request(self._ports["api"], "GET", "/control/orders")
        outage.taken = Counter(json.loads(orders))
        outage.outcomes = outcomes(self._stage.log(name) for name in self._workers)
        outage.workers = self._workers
        return outage

    def set_up(self) -> None:
        """Start everything that the story needs."""
        stage, folder = self._stage, self._stage.folder
        python = [sys.executable, "-m"]
        broker = {"port": 0, "admin_port": None, "queue_path": str(folder / "spool")}
        (folder / "spool").mkdir()
        (folder / "broker.json").write_text(json.dumps(broker))
        ports = ["--port-file", "broker.port"]
        stage.start("broker", [*python, "kestrel_stack.broker", "--config", "broker.json", *ports])
        stage.start("api", [*python, "kestrel_stack.demo.api", "api.port"])
        self._ports = {name: stage.port(name) for name in ("broker", "api")}
        settings = folder / "demo.json"
        settings.write_text(json.dumps(self._settings()))
        api = f"http://127.0.0.1:{self._ports['api']}"
        timeout = str(self._scale.web_timeout)
        for way in WAYS:
            stage.start(
                way,
                [*python, "kestrel_stack.demo.web", f"{way}.port", way, api, timeout, *self._queues.values()],
                {"KESTREL_STACK_CONFIG": str(settings)},
            )
        stage.start("mover", [*python, "kestrel_stack.consumer.mover", "--config", str(settings)])
        for name in self._workers:
            language = name.split("-")[0]
            stage.start(name, self._worker(language, settings), self._job_environment(api, language))
        self._ports |= {way: stage.port(way) for way in WAYS}

    @property
    def _workers(self) -> list[str]:
        return [f"{language}-{number}" for number in (1, 2) for language in self._queues]

    def _settings(self) -> dict[str, object]:
        return {
            "app": "demo",
            "namespace": NAMESPACE,
            "environment": "demo",
            "servers": [f"127.0.0.1:{self._ports['broker']}"],
            "queues": [
                {
                    "name": queue,
                    "language": language,
                    "processes": 2,
                    "job_timeout": 10,
                    "retry_delays": list(self._scale.retry_delays),
                }
                for language, queue in self._queues.items()
            ],
        }

    def _worker(self, language: str, settings: Path) -> list[str]:
        flags = ["--queue", self._queues[language], "--config", str(settings)]
        if language == "php":
            return [
                "php",
                str(PHP / "bin" / "consumer"),
                *flags,
                "--app",
                str(Path(__file__).with_name("jobs.php")),
            ]
        return [
            sys.executable,
            "-m",
            "kestrel_stack.consumer",
            *flags,
            "--app",
            "kestrel_stack.demo.jobs:registry",
        ]

    def _job_environment(self, api: str, language: str) -> dict[str, str]:
        return {
            "DEMO_API": api,
            "DEMO_TIMEOUT": str(self._scale.job_timeout),
            "DEMO_ONCE": str(self._stage.folder / f"once-{language}.sqlite"),
        }

    async def _api_goes_and_comes(self, visitors: Visitors) -> None:
        scale, outage = self._scale, self._outage
        await asyncio.sleep(scale.before)
        await self._control("down")
        outage.down_at = visitors.now
        self._say(visitors.now, "the API is down: it accepts connections and never answers")
        await asyncio.sleep(scale.outage / 2)
        self._stage.kill_and_restart(self._workers[0])
        self._say(
            visitors.now,
            f"worker {self._workers[0]} is killed with -9 in the middle of a job, and started again",
        )
        await asyncio.sleep(outage.down_at + scale.outage - visitors.now)
        await self._control("up")
        outage.up_at = visitors.now
        self._say(visitors.now, "the API is back")

    async def _control(self, word: str) -> None:
        await request(self._ports["api"], "POST", f"/control/{word}")

    async def _sample(self, visitors: Visitors) -> None:
        """Look at the queues and the processes, again and again."""
        settings = self._settings()
        url = f"kestrel://127.0.0.1:{self._ports['broker']}/{NAMESPACE}"
        with Queue.open(url, queues=settings["queues"]) as queue:
            while True:
                self._stage.check()
                at = visitors.now
                counts = [await asyncio.to_thread(queue.count, name) for name in self._queues.values()]
                sample = Sample(
                    at,
                    ready=sum(count.ready for count in counts),
                    delayed=sum(sum(count.delayed.values()) for count in counts),
                    reserved=sum(count.reserved for count in counts),
                )
                self._outage.samples.append(sample)
                self._outage.parked = sum(count.parked for count in counts)
                self._outage.left = sample.backlog
                self._tick(at, sample, visitors.waiting)
                await asyncio.sleep(SAMPLE_EVERY)

    async def _drained(self, visitors: Visitors, sampler: asyncio.Task[None]) -> None:
        """Wait until no job is left, or the time for that is over."""
        deadline = visitors.now + self._scale.drain
        since = visitors.now
        while visitors.now < deadline:
            await asyncio.sleep(SAMPLE_EVERY)
            if sampler.done():
                sampler.result()
                raise DemoError("nobody looks at the queues any more")
            last = self._outage.samples[-1]
            # A look from after the last visitor; the one before may have missed what was being put.
            if last.at > since and last.backlog == 0:
                self._say(last.at, "all jobs are done" if not self._outage.parked else "no job waits")
                return
        self._say(visitors.now, f"{self._outage.left} jobs are not done after {self._scale.drain:g} s")
