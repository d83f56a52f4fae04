"""What kestrel-web costs at many queues: ``python bench/web.py``.

    bench/web.py --queues 200 --seconds 5 --runs 1      # small, in half a minute

Three embedded brokers with the same 2,000 queues each, and a kestrel-web that polls them as it does by
default. Measured are

* how long a page takes: each asked for again and again on one connection, nobody else there; then the table
  of queues once more, while 50 viewers have it open, each updating it as the page's script does;
* the same table while one scrape of all metrics follows the other, and how long such a scrape takes;
* the memory of kestrel-web, before and after;
* what it all costs the brokers: their processor time, and the bytes and connections that go to them, without
  kestrel-web, with one viewer and with all. Polls are for everybody, so viewers must not add to that.

Bytes are counted by a proxy in front of every port of every broker. Each run has a new kestrel-web; the
tables have medians. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.common import ROOT, about, at_least, conditions, parser, say, spread

MB = 1_000_000
TICK = os.sysconf("SC_CLK_TCK")

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from kestrel_stack.demo.report import percentile  # noqa: E402
from support.broker import BrokerProcess, wait_until  # noqa: E402
from support.kestrel_web import KestrelWeb  # noqa: E402

FRAGMENT = {"X-Kestrel-Fragment": "1"}
EVERY_S = 5.0
"""So often a page updates itself, unless its reader chooses otherwise."""
TABLE = "/queues?sort=items&dir=desc"
PROMETHEUS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
"""What Prometheus asks for unless it is told otherwise."""


class Counter:
    """Forwards to a port and counts what goes both ways."""

    def __init__(self, port: int):
        self._target = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.bytes = self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                server = socket.create_connection(self._target)
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.close()


@dataclass
class Cost:
    """What some seconds took, each as of a minute; the brokers together."""

    what: str
    viewers: int
    broker_cpu_s: float
    broker_bytes: float
    broker_connections: float
    web_cpu_s: float
    views: float
    """Answers to viewers."""


@dataclass
class Page:
    """How long a page takes, in milliseconds, and its size."""

    page: str
    viewers: int
    p50_ms: float
    p95_ms: float
    bytes: int


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MB


def fill(broker: BrokerProcess, queues: int) -> None:
    """Make the queues, with one to twenty items of 100 bytes each."""
    with broker.connect() as raw:
        for number in range(queues):
            item = b"set shop_queue_%05d 0 0 100\r\n%b\r\n" % (number, b"x" * 100)
            count = 1 + number % 20
            raw.ask(item * count, b"STORED\r\n" * count)


class Viewer(threading.Thread):
    """Has a page open that updates itself."""

    def __init__(self, web: KestrelWeb, late_s: float):
        super().__init__(daemon=True)
        self._web = web
        self._late_s = late_s
        self.over = threading.Event()
        self.times: list[float] = []
        self.failed: str | None = None

    def run(self) -> None:
        tag = ""
        connection = http.client.HTTPConnection(self._web.host, self._web.port, timeout=60)
        # They did not all open it at the same moment.
        self.over.wait(self._late_s)
        while not self.over.is_set():
            began = time.perf_counter()
            status, _, tag = ask(connection, TABLE, {**FRAGMENT, "If-None-Match": tag})
            self.times.append(time.perf_counter() - began)
            if status not in (200, 304):
                self.failed = f"{TABLE} answered {status}"
                return
            self.over.wait(max(0.0, EVERY_S - (time.perf_counter() - began)))


def ask(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None
) -> tuple[int, bytes, str]:
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers.get("ETag", "")


@contextlib.contextmanager
def viewers(web: KestrelWeb, count: int) -> Iterator[list[Viewer]]:
    """So many viewers while the block runs."""
    all_of_them = [Viewer(web, EVERY_S * number / max(1, count)) for number in range(count)]
    for viewer in all_of_them:
        viewer.start()
    try:
        yield all_of_them
    finally:
        for viewer in all_of_them:
            viewer.over.set()
        for viewer in all_of_them:
            viewer.join()
    for viewer in all_of_them:
        if viewer.failed:
            raise SystemExit(f"a viewer was let down: {viewer.failed}")


def time_pages(web: KestrelWeb, requests: int) -> list[Page]:
    found = []
    for page in (
        "/",
        "/queues",
        TABLE,
        "/queues?per=500",
        "/queues?f=items%3E10+name~queue_0.*7&sort=age&dir=desc",
        "/queues/shop_queue_00019",
        "/servers",
        "/api/v1/queues?limit=100",
        "/api/v1/queues?limit=1000",
        "/queues.csv",
        "/metrics",
    ):
        say(f"page {page}")
        connection = http.client.HTTPConnection(web.host, web.port, timeout=120)
        times, size = [], 0
        ask(connection, page)
        for _ in range(requests):
            began = time.perf_counter()
            status, body, _ = ask(connection, page)
            times.append((time.perf_counter() - began) * 1000)
            size = len(body)
            if status != 200:
                raise SystemExit(f"{page} answered {status}: {body[:300]!r}")
        connection.close()
        found.append(Page(page, 0, percentile(times, 0.5), percentile(times, 0.95), size))
    return found


class Scraper(threading.Thread):
    """Scrapes again and again, without a pause."""

    def __init__(self, web: KestrelWeb):
        super().__init__(daemon=True)
        self._web = web
        self.over = threading.Event()
        self.times: list[float] = []
        self.failed: str | None = None

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._web.host, self._web.port, timeout=60)
        while not self.over.is_set():
            began = time.perf_counter()
            status, body, _ = ask(connection, "/metrics", PROMETHEUS)
            self.times.append((time.perf_counter() - began) * 1000)
            if status != 200 or not body.endswith(b"# EOF\n"):
                self.failed = f"/metrics answered {status}, {len(body)} bytes"
                return


def time_scrapes(web: KestrelWeb, requests: int) -> list[Page]:
    """Say how long a page and a scrape take that are asked for at the same time."""
    say("a page while metrics are scraped")
    scraper = Scraper(web)
    scraper.start()
    connection = http.client.HTTPConnection(web.host, web.port, timeout=120)
    times, size = [], 0
    while len(times) < requests or (len(scraper.times) < 5 and scraper.is_alive()):
        began = time.perf_counter()
        _, body, _ = ask(connection, TABLE)
        times.append((time.perf_counter() - began) * 1000)
        size = len(body)
    scraper.over.set()
    scraper.join()
    connection.close()
    if scraper.failed:
        raise SystemExit(scraper.failed)
    page = Page(f"{TABLE}, during scrapes", 0, percentile(times, 0.5), percentile(times, 0.95), size)
    scrape = percentile(scraper.times, 0.5), percentile(scraper.times, 0.95)
    return [page, Page("/metrics, during pages", 0, *scrape, 0)]


def measure(
    what: str,
    brokers: list[BrokerProcess],
    counters: list[Counter],
    web: KestrelWeb | None,
    count: int,
    seconds: float,
) -> tuple[Cost, list[float]]:
    """Let some seconds pass and say what they cost; also how long each answer to a viewer took."""
    say(f"{what}, for {seconds:g} s")

    def state() -> tuple[float, ...]:
        return (
            time.monotonic(),
            sum(cpu(broker.pid) for broker in brokers),
            sum(counter.bytes for counter in counters),
            sum(counter.connections for counter in counters),
            cpu(web.process.pid) if web else 0.0,
        )

    with viewers(web, count) if web else contextlib.nullcontext([]) as watching:
        before, seen = state(), sum(len(viewer.times) for viewer in watching)
        time.sleep(seconds)
        after, seen = state(), sum(len(viewer.times) for viewer in watching) - seen
    times = [taken * 1000 for viewer in watching for taken in viewer.times]
    minutes = (after[0] - before[0]) / 60
    broker_cpu, size, connections, web_cpu = (
        (b - a) / minutes for a, b in zip(before[1:], after[1:], strict=True)
    )
    return Cost(what, count, broker_cpu, size, connections, web_cpu, seen / minutes), times


def run(options: argparse.Namespace, folder: Path) -> dict:
    """Measure again and again, each time with a new kestrel-web; every number is a list by run."""
    with contextlib.ExitStack() as stack:
        say(f"{options.servers} brokers with {options.queues} queues each")
        brokers = [stack.enter_context(BrokerProcess(folder / f"broker{n}")) for n in range(options.servers)]
        for broker in brokers:
            fill(broker, options.queues)
        counters: list[Counter] = []
        servers, admin_ports = [], {}
        for broker in brokers:
            pair = Counter(broker.port), Counter(broker.admin_port)
            counters += pair
            servers.append(f"127.0.0.1:{pair[0].port}")
            admin_ports[servers[-1]] = pair[1].port
        for counter in counters:
            stack.callback(counter.close)
        runs = []
        for number in range(options.runs):
            say(f"run {number + 1} of {options.runs}")
            web = KestrelWeb(
                folder / f"web{number}", servers=servers, admin_ports=admin_ports, interval_s=2.0
            )
            runs.append(run_once(options, brokers, counters, web))
        return {
            "pages": together([pages for pages, _, _ in runs], ("page", "viewers", "bytes")),
            "costs": together([costs for _, costs, _ in runs], ("what", "viewers")),
            "memory_mb": {when: [memory[when] for _, _, memory in runs] for when in runs[0][2]},
        }


def run_once(
    options: argparse.Namespace, brokers: list[BrokerProcess], counters: list[Counter], web: KestrelWeb
) -> tuple[list[Page], list[Cost], dict[str, float]]:
    costs = [measure("no kestrel-web", brokers, counters, None, 0, options.seconds)[0]]
    with web:
        wait_until(lambda: known(web) == options.queues, "every queue to be seen", 60)
        memory = {"at the start": resident(web.process.pid)}
        pages = time_pages(web, options.requests)
        pages += time_scrapes(web, options.requests)
        memory["after the pages"] = resident(web.process.pid)
        for count in (0, 1, options.viewers):
            what = f"{count} viewer{'' if count == 1 else 's'}"
            cost, times = measure(what, brokers, counters, web, count, options.seconds)
            costs.append(cost)
            if times:
                pages.append(
                    Page(f"{TABLE}, an update", count, percentile(times, 0.5), percentile(times, 0.95), 0)
                )
        memory[f"after {options.viewers} viewers"] = resident(web.process.pid)
    return pages, costs, memory


def together(runs: list[list], same: tuple[str, ...]) -> list[dict]:
    """Return what each run measured of the same things; what is not named as ``same`` becomes a list."""
    found = []
    for each in zip(*runs, strict=True):
        first = asdict(each[0])
        found.append(
            {key: first[key] if key in same else [getattr(one, key) for one in each] for key in first}
        )
    return found


def known(web: KestrelWeb) -> int:
    found = json.loads(web.get("/api/v1/overview").data)
    return found["queues"] if found["servers"]["stale"] == 0 else 0


def table(found: dict) -> str:
    lines = [f"{'page':58} {'viewers':>8} {'p50':>9} {'p95':>9} {'size':>9}"]
    for page in found["pages"]:
        size = f"{page['bytes'] / 1000:.0f} kB" if page["bytes"] else ""
        p50, p95 = (spread(page[key])["median"] for key in ("p50_ms", "p95_ms"))
        lines.append(f"{page['page']:58} {page['viewers']:8} {p50:6.0f} ms {p95:6.0f} ms {size:>9}")
    head = f"{'brokers: CPU':>14} {'bytes':>10} {'connections':>12} {'kestrel-web: CPU':>17} {'answers':>8}"
    lines += ["", f"{'per minute':18} {head}"]
    for cost in found["costs"]:
        median = {key: spread(value)["median"] for key, value in cost.items() if isinstance(value, list)}
        lines.append(
            f"{cost['what']:18} {median['broker_cpu_s']:12.2f} s {median['broker_bytes'] / MB:7.1f} MB "
            f"{median['broker_connections']:12.0f} {median['web_cpu_s']:15.2f} s {median['views']:8.0f}"
        )
    memory = (f"{spread(mb)['median']:.0f} MB {when}" for when, mb in found["memory_mb"].items())
    return "\n".join([*lines, "", "memory of kestrel-web: " + ", ".join(memory)])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add("--servers", type=at_least(1), default=3, metavar="N", help="brokers (default: 3)")
    add("--queues", type=at_least(20), default=2000, metavar="N", help="queues on each (default: 2000)")
    add("--viewers", type=at_least(1), default=50, metavar="N", help="pages that are open (default: 50)")
    add("--seconds", type=float, default=15, help="for each cost (default: 15)")
    add("--requests", type=at_least(1), default=40, metavar="N", help="for each page (default: 40)")
    options = made.parse_args(arguments)
    if options.seconds <= 0:
        made.error("--seconds must be above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-web-") as folder:
            found = run(options, Path(folder))
    except (OSError, RuntimeError, AssertionError) as exc:
        raise SystemExit(f"bench/web.py: {exc}") from None
    where = conditions(servers=options.servers, queues=options.queues, runs=options.runs, interval_s=2.0)
    if options.json:
        print(json.dumps({"conditions": where, **found}, indent=2))
        return 0
    print(
        f"\n{about(where)}; {options.servers} servers with {options.queues:,} queues each, "
        f"medians of {options.runs} runs\n\n{table(found)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
