"""How fast one worker is, beside RQ and Celery in the same run: ``python bench/jobs.py``.

    bench/jobs.py --only python,php          # without the others, which need Redis and packages
    bench/jobs.py --broker 127.0.0.1:22133   # ours on a real Kestrel instead of the embedded broker

Measured for each: no-op jobs per second of one worker on a full queue; the wait of a job from before it is
enqueued until it runs, at a trickle; and the memory of the worker's processes. The worker is the whole one,
with its child process and its log, which goes to a file. RQ forks for every job; SimpleWorker is RQ without
that. Celery has one pool process, acknowledges late, and is measured with both prefetches. Redis appends to
a file once a second, as Kestrel's journal is written without waiting for the disk. The first jobs of a worker
are not counted. The contenders take turns in every run; the table has medians. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.common import ROOT, about, address, at_least, chosen, conditions, parser, say, spread

NOOP = ROOT / "bench" / "noop"
PEERS_ENVIRONMENT = ROOT / ".build" / "bench-peers"
PEERS = ("rq==2.12.0", "celery==5.7.0", "redis==8.1.0", "packaging==26.3")
WARM_UP = 0.1
"""This part of the jobs is done before the clock starts."""
DEADLINE = 300.0
OURS = ("python", "php")

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from kestrel_stack.demo.report import percentile  # noqa: E402
from kestrel_stack.queue.envelope import Envelope  # noqa: E402
from support.broker import Broker, BrokerProcess, wait_until  # noqa: E402


class Contender:
    """One kind of worker: how its jobs are enqueued, and how it is started."""

    jobs = 0
    """How many jobs its throughput is measured with, so that it takes a few seconds."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.folder = folder / name.replace(" ", "-").replace(",", "")
        self.folder.mkdir(parents=True)
        self.marks = self.folder / "marks"

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("KESTREL_STACK_")}
        return kept | {"BENCH_MARKS": str(self.marks)}

    def command(self) -> list[str]:
        raise NotImplementedError

    def enqueue(self, jobs: list[dict]) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """Run a worker and yield its process id."""
        self.marks.write_text("")
        log = self.folder / "log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(),
                cwd=NOOP,
                env=self.environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )
        try:
            yield process.pid
        except AssertionError as exc:
            raise SystemExit(f"{self.name}: {exc}; its log ends with:\n{tail(log)}") from None
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def marked(self) -> list[list[str]]:
        return [line.split(" ") for line in self.marks.read_text().splitlines()]

    def close(self) -> None:
        """Let go of what enqueueing needed."""


class Ours(Contender):
    """A worker of this project."""

    jobs = 20_000

    def __init__(self, name: str, folder: Path, broker: Broker):
        super().__init__(name, folder)
        self.broker = broker
        self._connection = broker.connect()

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PYTHONPATH": str(ROOT / "src")}

    def command(self) -> list[str]:
        flags = ["--queue", "noop", "--servers", self.broker.address, "--namespace", "bench"]
        flags += ["--max-jobs", "1000000000"]
        if self.name == "php":
            return ["php", str(ROOT / "php" / "bin" / "consumer"), *flags, "--app", "noop.php"]
        return [sys.executable, "-m", "kestrel_stack.consumer", *flags, "--app", "noop:registry"]

    def enqueue(self, jobs: list[dict]) -> None:
        for data in jobs:
            self._connection.set("bench_noop", Envelope("Noop", "acme", data).encode())

    def close(self) -> None:
        self._connection.close()


class Peer(Contender):
    """A worker on Redis."""

    def __init__(
        self, name: str, folder: Path, url: str, arguments: list[str], jobs: int, **environment: str
    ):
        super().__init__(name, folder)
        self.jobs = jobs
        self._kind = name.split(" ")[0]
        self._url = url
        self._arguments = arguments
        self._more = environment
        self._producer: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        names = {"BENCH_PEER": self._kind, "BENCH_REDIS": self._url, "PYTHONPATH": str(NOOP)}
        return super().environment | names | self._more

    def command(self) -> list[str]:
        return [str(PEERS_ENVIRONMENT / "bin" / self._arguments[0]), *self._arguments[1:]]

    def enqueue(self, jobs: list[dict]) -> None:
        if self._producer is None:
            self._producer = subprocess.Popen(
                [str(PEERS_ENVIRONMENT / "bin" / "python"), str(NOOP / "enqueue.py"), self._kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
                text=True,
            )
        self._producer.stdin.write(json.dumps(jobs) + "\n")
        self._producer.stdin.flush()
        if self._producer.stdout.readline() != "done\n":
            raise SystemExit(f"{self.name}: jobs could not be enqueued")

    def close(self) -> None:
        if self._producer is not None:
            self._producer.stdin.close()
            self._producer.wait(20)
            self._producer.stdout.close()


@dataclass
class Result:
    """What was measured for one contender; a number for each run, or all waits in milliseconds by run."""

    rates: list[float] = field(default_factory=list)
    memories_mb: list[float] = field(default_factory=list)
    waits_ms: list[list[float]] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, float]]:
        return {
            "jobs_per_second": spread(self.rates),
            "p50_ms": spread([percentile(waits, 0.5) for waits in self.waits_ms]),
            "p99_ms": spread([percentile(waits, 0.99) for waits in self.waits_ms]),
            "memory_mb": spread(self.memories_mb),
        }


def throughput(contender: Contender, count: int) -> tuple[float, float]:
    """Return the jobs per second of one worker on a queue with so many jobs, and its megabytes afterwards."""
    filling = "x" * 60
    first = max(1, int(count * WARM_UP))
    jobs = [{"name": filling, "number": number} for number in range(count)]
    jobs[first]["mark"], jobs[-1]["mark"] = "first", "last"
    contender.enqueue(jobs)
    with contender.worker() as pid:
        wait_until(lambda: len(contender.marked()) == 2, "all jobs to be done", DEADLINE)
        memory = resident_mb(pid)
        (_, began, _), (_, ended, _) = contender.marked()
    return (count - 1 - first) / (float(ended) - float(began)), memory


def trickle(contender: Contender, count: int, per_second: float) -> list[float]:
    """Return the waits in milliseconds of jobs that are enqueued one after the other."""
    with contender.worker():
        contender.enqueue([{"mark": "warm"}] * 5)
        wait_until(lambda: len(contender.marked()) == 5, "the worker to have started", DEADLINE)
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number / per_second - time.monotonic()))
            contender.enqueue([{"mark": "wait", "sent": time.time()}])
        wait_until(lambda: len(contender.marked()) == 5 + count, "all jobs to be done", DEADLINE)
        return [(float(ran) - float(sent)) * 1000 for mark, ran, sent in contender.marked() if mark == "wait"]


def resident_mb(pid: int) -> float:
    """Megabytes of a process and its descendants; shared pages are counted by their share."""
    total, left = 0, [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
            left += map(int, children)
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(text.split("\nPss:")[1].split()[0]) * 1024
    return total / 1_000_000


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])


def install_peers() -> None:
    """Make an environment of their own for RQ and Celery, once."""
    stamp = PEERS_ENVIRONMENT / "installed"
    if stamp.exists() and stamp.read_text() == " ".join(PEERS):
        return
    say(f"installing {', '.join(PEERS)} into {PEERS_ENVIRONMENT.relative_to(ROOT)}")
    venv.create(PEERS_ENVIRONMENT, with_pip=True, clear=True)
    command = [str(PEERS_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-qq", *PEERS]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("RQ and Celery could not be installed; --only python,php goes without them")
    stamp.write_text(" ".join(PEERS))


Maker = Callable[[Path, contextlib.ExitStack, argparse.Namespace], Contender]


def ours(name: str, folder: Path, stack: contextlib.ExitStack, options: argparse.Namespace) -> Contender:
    if name == "php" and not shutil.which("php"):
        raise SystemExit("there is no php here; install php-cli, or use --only")
    if options.broker:
        broker = Broker()
        broker.host, broker.port = options.broker
    else:
        broker = stack.enter_context(BrokerProcess(folder / f"broker-{name}", admin_port=None))
    return Ours(name, folder, broker)


def peer(
    name: str,
    arguments: list[str],
    jobs: int,
    folder: Path,
    stack: contextlib.ExitStack,
    options: argparse.Namespace,
    **environment: str,
) -> Contender:
    from support.redis_server import RedisProcess

    install_peers()
    spool = folder / f"redis-{name.replace(' ', '-')}"
    spool.mkdir()
    redis = stack.enter_context(RedisProcess("--appendonly", "yes", "--dir", str(spool)))
    url = f"redis://{redis.host}:{redis.port}/0"
    filled = [argument.replace("{url}", url) for argument in arguments]
    return Peer(name, folder, url, filled, jobs, **environment)


RQ = ["rq", "worker", "--url", "{url}"]
CELERY = [
    "celery",
    "-A",
    "noop:celery",
    "worker",
    "--pool",
    "prefork",
    "--concurrency",
    "1",
    "--loglevel",
    "INFO",
]
CELERY += ["--without-gossip", "--without-mingle", "--without-heartbeat"]

CONTENDERS: dict[str, Maker] = {
    "python": functools.partial(ours, "python"),
    "php": functools.partial(ours, "php"),
    "rq": functools.partial(peer, "rq", [*RQ, "noop"], 300),
    "rq simple": functools.partial(
        peer, "rq simple", [*RQ, "--worker-class", "rq.SimpleWorker", "noop"], 1000
    ),
    "celery": functools.partial(peer, "celery", CELERY, 2000, BENCH_PREFETCH="1"),
    "celery prefetch 4": functools.partial(peer, "celery prefetch 4", CELERY, 3000, BENCH_PREFETCH="4"),
}


def measure(options: argparse.Namespace) -> dict[str, Result]:
    """Measure every contender in turns."""
    results = {name: Result() for name in options.only}
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="kestrel-bench-", dir=options.spool))
        )
        contenders = [CONTENDERS[name](folder, stack, options) for name in options.only]
        for contender in contenders:
            stack.callback(contender.close)
        for run in range(options.runs):
            for contender in contenders:
                found = results[contender.name]
                rate, memory = throughput(contender, options.jobs or contender.jobs)
                waits = trickle(contender, max(1, int(options.seconds * options.trickle)), options.trickle)
                found.rates.append(rate)
                found.memories_mb.append(memory)
                found.waits_ms.append(waits)
                say(
                    f"run {run + 1} of {options.runs}: {contender.name:<18}{rate:>8,.0f}/s, "
                    f"p99 {percentile(waits, 0.99):.1f} ms, {memory:.0f} MB"
                )
    return results


def ratios(summaries: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return what ours is to the others, as sentences."""
    lines = []
    celery = [summaries[name]["p99_ms"]["median"] for name in summaries if name.startswith("celery")]
    for name in OURS:
        if name not in summaries:
            continue
        mine = {key: found["median"] for key, found in summaries[name].items()}
        parts = [
            f"{mine['jobs_per_second'] / summaries[other]['jobs_per_second']['median']:.1f} times {other}"
            for other in summaries
            if other not in OURS
        ]
        if celery:
            parts.append(f"p99 {mine['p99_ms'] / min(celery):.2f} of Celery's best")
        if parts:
            lines.append(f"{name}: " + ", ".join(parts))
    return lines


def table(results: dict[str, Result], options: argparse.Namespace) -> str:
    summaries = {name: result.summary() for name, result in results.items()}
    lines = [f"{'one worker':<20}{'jobs/s (least-most)':>26}{'p50 ms':>10}{'p99 ms':>10}{'memory MB':>12}"]
    slow = []
    for name, summary in summaries.items():
        jobs = summary["jobs_per_second"]
        rate = f"{jobs['median']:,.0f} ({jobs['least']:,.0f}-{jobs['most']:,.0f})"
        lines.append(
            f"{name:<20}{rate:>26}{summary['p50_ms']['median']:>10.1f}{summary['p99_ms']['median']:>10.1f}"
            f"{summary['memory_mb']['median']:>12.0f}"
        )
        if jobs["median"] < options.trickle:
            slow.append(name)
    if slow:
        lines.append(f"({' and '.join(slow)} cannot keep up with the trickle: those waits only grow)")
    return "\n".join([*lines, "", *ratios(summaries)]).rstrip()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add(
        "--only",
        type=chosen(list(CONTENDERS)),
        default=list(CONTENDERS),
        metavar="NAME,…",
        help=f"of: {', '.join(CONTENDERS)} (default: all)",
    )
    add(
        "--jobs",
        type=at_least(10),
        metavar="N",
        help="jobs on the full queue (default: as many as take some seconds)",
    )
    add("--trickle", type=float, default=50, metavar="N", help="jobs per second (default: 50)")
    add("--seconds", type=float, default=10, help="how long the trickle lasts (default: 10)")
    add(
        "--broker",
        type=address,
        metavar="HOST:PORT",
        help="a Kestrel for ours, instead of the embedded broker",
    )
    add(
        "--spool",
        metavar="FOLDER",
        help="where the queues' files are (default: the system's temporary folder)",
    )
    options = made.parse_args(arguments)
    if options.trickle <= 0 or options.seconds <= 0:
        made.error("--trickle and --seconds must be above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        results = measure(options)
    except (OSError, RuntimeError, AssertionError) as exc:
        raise SystemExit(f"bench/jobs.py: {exc}") from None
    found = conditions(
        broker="a Kestrel" if options.broker else "embedded",
        peers=PEERS,
        runs=options.runs,
        job_bytes=len(Envelope("Noop", "acme", {"name": "x" * 60, "number": 10_000}).encode()),
        trickle_per_second=options.trickle,
        trickle_seconds=options.seconds,
    )
    if options.json:
        contenders = {name: {**result.__dict__, **result.summary()} for name, result in results.items()}
        print(json.dumps({"conditions": found, "contenders": contenders}, indent=2))
        return 0
    print(
        f"\n{about(found)}; jobs of {found['job_bytes']} bytes, medians of {options.runs} runs; "
        f"waits at {options.trickle:g} jobs a second for {options.seconds:g} s; "
        f"broker: {found['broker']}; {', '.join(PEERS)}\n\n{table(results, options)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
