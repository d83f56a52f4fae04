"""How fast the embedded broker is, beside other queue servers in the same run: ``python bench/broker.py``.

    bench/broker.py --only embedded                        # alone
    bench/broker.py --kestrel 127.0.0.1:22133              # with a real Kestrel that runs already
    bench/broker.py --backlog 1000000                      # the memory curve: docs/broker-memory.svg

Loads are numbers of requests: ``put``; ``take and confirm``, which is at-least-once: each request confirms
the item before and takes the next, in one write (``get q/close/open``; beanstalkd: delete and reserve;
Redis: LREM from the connection's own list and BRPOPLPUSH to it); and ``take, at most once``: what was on
its way to a client that ends is lost (``get q``; Redis: BRPOP; beanstalkd has none). Every connection waits
for each reply before it sends again. The clients are processes that do nothing but that; with one
connection a round trip through the client is part of what is measured. Every server writes to disk without
waiting for it: the embedded broker syncs after 100 ms, beanstalkd as well, Redis appends with ``appendfsync
everysec``. The servers take turns in every run, so that whatever else the machine does hits all of them.
beanstalkd and Redis are those on PATH, or Debian's packages, unpacked below .build/. Progress goes to
stderr, the table or ``--json`` to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.chart import OURS, THIRD, Line, lines
from lib.common import ROOT, about, address, at_least, chosen, conditions, numbers, parser, say, spread

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.beanstalkd import BeanstalkdProcess  # noqa: E402
from support.broker import BrokerProcess  # noqa: E402
from support.redis_server import RedisProcess  # noqa: E402

PICTURE = ROOT / "docs" / "broker-memory.svg"
QUEUE = "bench"
MB = 1_000_000
SYNC_MS = 100
PUT, RELIABLE, ONCE = "put", "take and confirm", "take, at most once"
LOADS = (PUT, RELIABLE, ONCE)


class Connection:
    """What one connection sends, and when a reply is whole."""

    def __init__(self, request: bytes, reply_size: int) -> None:
        self.request = request
        self._reply_size = reply_size

    def whole(self, got: bytes) -> bool:
        """Say whether the reply is whole, which is told by its size; ConnectionError if it is longer."""
        if len(got) > self._reply_size:
            raise ConnectionError(f"a reply is {len(got) - self._reply_size} bytes too long: {got[:80]!r}")
        return len(got) == self._reply_size


class BeanstalkdPut(Connection):
    """The reply has the job's number, which has more and more digits."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request, 0)

    def whole(self, got: bytes) -> bool:
        return got.startswith(b"INSERTED ") and got.endswith(b"\r\n")


class BeanstalkdTake(Connection):
    """Each request deletes the job before, by its number, and reserves the next."""

    def __init__(self, data: bytes) -> None:
        super().__init__(b"reserve\r\n", 0)
        self._end = b" %d\r\n%b\r\n" % (len(data), data)

    def whole(self, got: bytes) -> bool:
        if not got.endswith(self._end):
            return False
        number = got[got.rindex(b"RESERVED ") + 9 : -len(self._end)]
        self.request = b"delete %b\r\nreserve\r\n" % number
        return True


@dataclass
class Server:
    """A server under load, which speaks Kestrel's protocol; ``pid`` where it is known."""

    name: str
    host: str
    port: int
    pid: int | None = None
    loads = LOADS
    hello = b""

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self.host, self.port), 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def resident(self) -> float | None:
        """Megabytes of memory, or None for a server whose process is not known."""
        if self.pid is None:
            return None
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / MB

    def connection(self, load: str, data: bytes, number: int) -> Connection:
        """Return what one connection of a load does; ``number`` is its own."""
        queue = QUEUE.encode()
        if load == PUT:
            return Connection(b"set %b 0 0 %d\r\n%b\r\n" % (queue, len(data), data), len(b"STORED\r\n"))
        value = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (queue, len(data), data)
        return Connection(b"get %b%b\r\n" % (queue, b"/close/open" * (load == RELIABLE)), len(value))

    def clear(self) -> None:
        """Empty the queue."""
        ask(self, b"delete %b\r\n" % QUEUE.encode(), b"DELETED\r\n")


class Beanstalkd(Server):
    """A server that speaks beanstalkd's."""

    loads = (PUT, RELIABLE)

    def connection(self, load: str, data: bytes, number: int) -> Connection:
        if load == PUT:
            return BeanstalkdPut(b"put 0 0 600 %d\r\n%b\r\n" % (len(data), data))
        return BeanstalkdTake(data)

    def clear(self) -> None:
        """Delete what is there; what a connection had reserved is back when that is closed."""
        with self.connect() as sock, sock.makefile("rb") as replies:
            while True:
                sock.sendall(b"reserve-with-timeout 0\r\n")
                head = replies.readline()
                if head.startswith(b"TIMED_OUT"):
                    return
                if not head.startswith(b"RESERVED "):
                    raise SystemExit(f"{self.name} answered {head!r} to reserve")
                _, number, size = head.split()
                replies.read(int(size) + 2)
                sock.sendall(b"delete %b\r\n" % number)
                replies.readline()


class Redis(Server):
    """A Redis, whose lists are the queues."""

    def connection(self, load: str, data: bytes, number: int) -> Connection:
        queue, mine = QUEUE.encode(), b"%b:taken:%d:%d" % (QUEUE.encode(), os.getpid(), number)
        item = b"$%d\r\n%b\r\n" % (len(data), data)
        if load == PUT:
            # The reply is the list's length, which has more and more digits.
            return RedisPut(command(b"LPUSH", queue, data))
        if load == ONCE:
            return Connection(
                command(b"BRPOP", queue, b"0"), len(b"*2\r\n$%d\r\n%b\r\n" % (len(queue), queue) + item)
            )
        confirm = command(b"LREM", mine, b"1", data)
        return Connection(confirm + command(b"BRPOPLPUSH", queue, mine, b"0"), len(b":0\r\n" + item))

    def clear(self) -> None:
        with self.connect() as sock:
            sock.sendall(command(b"FLUSHALL"))
            if sock.recv(100) != b"+OK\r\n":
                raise SystemExit(f"{self.name} does not take FLUSHALL")


class RedisPut(Connection):
    """The reply has the list's length."""

    def __init__(self, request: bytes) -> None:
        super().__init__(request, 0)

    def whole(self, got: bytes) -> bool:
        return got.startswith(b":") and got.endswith(b"\r\n")


def command(*words: bytes) -> bytes:
    """Return a command in Redis's protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@contextlib.contextmanager
def embedded(folder: Path, sync_journal_ms: int, **default) -> Iterator[Server]:
    """An embedded broker with its spool in ``folder``."""
    settings = {"admin_port": None, "sync_journal_ms": sync_journal_ms, "default": default}
    with BrokerProcess(folder, queue_path=folder / "spool", **settings) as process:
        yield Server("embedded", process.host, process.port, process.pid)


@contextlib.contextmanager
def beanstalkd(folder: Path) -> Iterator[Server]:
    """A beanstalkd with its journal in ``folder``."""
    folder.mkdir()
    with BeanstalkdProcess(folder, sync_ms=SYNC_MS) as process:
        yield Beanstalkd("beanstalkd", process.host, process.port, process.process.pid)


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """A Redis that appends to a file in ``folder``."""
    folder.mkdir()
    with RedisProcess("--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(folder)) as process:
        yield Redis("redis", process.host, process.port, process.process.pid)


Maker = Callable[[Path, argparse.Namespace], contextlib.AbstractContextManager[Server]]

SERVERS: dict[str, Maker] = {
    "embedded": lambda folder, options: embedded(folder, options.sync_journal_ms),
    "beanstalkd": lambda folder, options: beanstalkd(folder),
    "redis": lambda folder, options: redis(folder),
}


# Load


def client(server: Server, load: str, data: bytes, numbers: range, count: int, start, done) -> None:
    """Send so many requests over the connections of these numbers, one at a time each; tell when it ended."""
    socks = {}
    for number in numbers:
        sock = server.connect()
        socks[sock.fileno()] = (sock, server.connection(load, data, number))
    got_of = dict.fromkeys(socks, b"")
    poll = select.epoll()
    for fd in socks:
        poll.register(fd, select.EPOLLIN)
    start.wait()
    began = time.monotonic()
    to_send, to_come = count, count
    for sock, connection in socks.values():
        if to_send:
            sock.send(connection.request)
            to_send -= 1
    while to_come:
        ready = poll.poll(60)
        if not ready:
            raise ConnectionError("no reply within a minute")
        for fd, _ in ready:
            sock, connection = socks[fd]
            got = sock.recv(65536)
            if not got:
                raise ConnectionError("the server closed a connection")
            if got_of[fd]:
                got = got_of[fd] + got
            if not connection.whole(got):
                got_of[fd] = got
                continue
            got_of[fd] = b""
            to_come -= 1
            if to_send:
                sock.send(connection.request)
                to_send -= 1
    done.put((began, time.monotonic()))
    start.wait()  # nobody hangs up before all have been served


def rate(server: Server, load: str, data: bytes, connections: int, count: int, clients: int) -> float:
    """Requests per second of ``count`` requests over ``connections`` connections of some client processes."""
    clients = min(clients, connections)
    start, done = multiprocessing.Barrier(clients), multiprocessing.SimpleQueue()
    bounds = [connections * number // clients for number in range(clients + 1)]
    counts = [count // clients + (number < count % clients) for number in range(clients)]
    processes = [
        multiprocessing.Process(
            target=client, args=(server, load, data, range(*bounds[number : number + 2]), share, start, done)
        )
        for number, share in enumerate(counts)
    ]
    for process in processes:
        process.start()
    # Who fails leaves the others at the barrier, so the first that ends decides.
    multiprocessing.connection.wait([process.sentinel for process in processes])
    for process in processes:
        process.join(1)
    for process in processes:
        if process.exitcode is None and any(other.exitcode for other in processes):
            process.terminate()
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a client failed against {server.name} at {server.host}:{server.port}")
    spans = [done.get() for _ in processes]
    return count / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def ask(server: Server, request: bytes, reply: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(request)
        got = b""
        while len(got) < len(reply):
            chunk = sock.recv(65536)
            if not chunk:
                break
            got += chunk
    if got != reply:
        raise SystemExit(f"{server.name} at {server.host}:{server.port} answered {got[:80]!r} to {request!r}")


@dataclass
class Result:
    """Requests per second of one load, one number for each run."""

    load: str
    connections: int
    rates: dict[str, list[float]] = field(default_factory=dict)


def measure(servers: list[Server], options: argparse.Namespace) -> list[Result]:
    """Run every load on every server, in turns."""
    data = b"x" * options.size
    results = {
        (load, connections): Result(load, connections)
        for connections in options.connections
        for load in LOADS
    }
    for run in range(options.runs):
        for server in servers:
            for connections in options.connections:
                count = options.requests if connections > 1 else max(options.requests // 4, 1)
                server.clear()
                for load in server.loads:
                    if load == ONCE:
                        server.clear()
                        rate(server, PUT, data, min(connections, 50), count, options.clients)
                    found = rate(server, load, data, connections, count, options.clients)
                    results[load, connections].rates.setdefault(server.name, []).append(found)
                    say(
                        f"run {run + 1} of {options.runs}: {server.name:<11}{load:<19}{connections:>4} "
                        f"connection{'s' * (connections > 1):<1} {found:>9,.0f}/s"
                    )
    for server in servers:
        server.clear()
    return list(results.values())


def table(names: list[str], results: list[Result], memory: dict[str, list[float | None]]) -> str:
    """Return the medians, their spans and what each is to the first, as text."""
    width = 36
    rows = [f"{'':<36}" + "".join(f"{name:>{width}}" for name in names)]
    for result in results:
        if not result.rates:
            continue
        cells, first = [], None
        for name in names:
            if name not in result.rates:
                cells.append("")
                continue
            found = spread(result.rates[name])
            median = found["median"]
            cell = f"{median:,.0f}/s ({found['least']:,.0f}-{found['most']:,.0f})"
            if first is None:
                first = median
            else:
                cell += f"{median / first:6.2f}x"
            cells.append(cell)
        label = f"{result.load}, {result.connections} connection{'s' * (result.connections > 1)}"
        rows.append(f"{label:<36}" + "".join(f"{cell:>{width}}" for cell in cells))
    for number, label in enumerate(("memory before, MB", "memory after, MB")):
        values = [
            "unknown" if memory[name][number] is None else f"{memory[name][number]:.0f}" for name in names
        ]
        rows.append(f"{label:<36}" + "".join(f"{value:>{width}}" for value in values))
    return "\n".join(row.rstrip() for row in rows)


def compare(options: argparse.Namespace) -> int:
    """Measure the embedded broker, and the others."""
    with (
        tempfile.TemporaryDirectory(prefix="kestrel-bench-", dir=options.spool) as folder,
        contextlib.ExitStack() as stack,
    ):
        servers = [stack.enter_context(SERVERS[name](Path(folder) / name, options)) for name in options.only]
        if options.kestrel:
            servers.append(Server("kestrel", *options.kestrel, options.kestrel_pid))
        for each in servers:
            each.clear()
        memory = {each.name: [each.resident()] for each in servers}
        results = measure(servers, options)
        for each in servers:
            memory[each.name].append(each.resident())
    found = what_it_holds_for(options)
    if options.json:
        loads = [
            {"load": r.load, "connections": r.connections, "per_second": r.rates} for r in results if r.rates
        ]
        print(json.dumps({"conditions": found, "loads": loads, "memory_mb": memory}, indent=2))
    else:
        print(
            f"\n{about(found)}; items of {options.size} bytes, medians of {options.runs} runs "
            f"(least-most), {options.clients} client processes, the embedded broker syncs after "
            f"{options.sync_journal_ms} ms\n\n{table([each.name for each in servers], results, memory)}"
        )
    return 0


def what_it_holds_for(options: argparse.Namespace) -> dict:
    return conditions(
        item_bytes=options.size,
        requests=options.requests,
        runs=options.runs,
        client_processes=options.clients,
        sync_journal_ms=options.sync_journal_ms,
    )


# The memory curve


@dataclass(frozen=True)
class Sample:
    """One point of the curve."""

    handled: int
    queued: int
    resident_mb: float
    journal_mb: float


def journal_mb(folder: Path) -> float:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total / MB


def curve(options: argparse.Namespace) -> list[Sample]:
    """Pile up and drain a backlog; every item is checked."""
    count, size, step = options.backlog, options.size, 1000
    default = {"max_memory_size": options.max_memory_size, "max_journal_size": 4 * options.max_memory_size}
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="kestrel-bench-", dir=options.spool) as folder:
        base = Path(folder) / "embedded"
        with (
            embedded(base, options.sync_journal_ms, **default) as server,
            server.connect() as sock,
            sock.makefile("rb", 1 << 20) as replies,
        ):

            def sample(handled: int, queued: int) -> None:
                samples.append(Sample(handled, queued, server.resident(), journal_mb(base / "spool")))

            def item(number: int) -> bytes:
                return (b"%010d" % number).ljust(size, b"x")

            sample(0, 0)
            every = max(count // 100 // step, 1) * step
            for begin in range(0, count, step):
                numbers = range(begin, min(begin + step, count))
                sock.sendall(
                    b"".join(b"set %b 0 0 %d\r\n%b\r\n" % (QUEUE.encode(), size, item(n)) for n in numbers)
                )
                if replies.read(8 * len(numbers)) != b"STORED\r\n" * len(numbers):
                    raise SystemExit("an item was refused")
                if numbers.stop % every == 0 or numbers.stop == count:
                    sample(numbers.stop, numbers.stop)
                    progress(samples[-1], "piled up", count)
            for begin in range(0, count, step):
                numbers = range(begin, min(begin + step, count))
                sock.sendall(b"get %b\r\n" % QUEUE.encode() * len(numbers))
                expected = b"".join(
                    b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (QUEUE.encode(), size, item(n)) for n in numbers
                )
                if replies.read(len(expected)) != expected:
                    raise SystemExit(f"items {numbers} did not come back as they were stored")
                if numbers.stop % every == 0 or numbers.stop == count:
                    sample(count + numbers.stop, count - numbers.stop)
                    progress(samples[-1], "to go", count)
            sock.sendall(b"set %b 0 0 1\r\nx\r\n" % QUEUE.encode())  # an empty queue's journal is rewritten
            replies.readline()
            sample(2 * count, 1)
    return samples


def progress(sample: Sample, what: str, count: int) -> None:
    if sample.queued % max(count // 10, 1) == 0:
        say(
            f"{sample.queued:>10,} items {what}: {sample.resident_mb:.0f} MB of memory, "
            f"{sample.journal_mb:.0f} MB of journal"
        )


def backlog(options: argparse.Namespace) -> int:
    """Measure the curve and draw it."""
    began = time.monotonic()
    samples = curve(options)
    seconds = time.monotonic() - began
    figures = {
        **what_it_holds_for(options),
        "items": options.backlog,
        "max_memory_size": options.max_memory_size,
        "seconds": round(seconds, 1),
        "resident_mb_before": round(samples[0].resident_mb, 1),
        "resident_mb_most": round(max(sample.resident_mb for sample in samples), 1),
        "journal_mb_most": round(max(sample.journal_mb for sample in samples), 1),
        "journal_mb_after": round(samples[-1].journal_mb, 1),
    }
    options.svg.write_text(picture(samples, figures), encoding="utf-8")
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print("\n".join(f"{key:<20} {value}" for key, value in figures.items()))
    say(f"wrote {options.svg}")
    return 0


def picture(samples: list[Sample], figures: dict) -> str:
    """Return the curve as SVG: megabytes over the items put, then taken."""
    last, items = samples[-1].handled, figures["items"]
    marks = []
    for number in range(9):
        handled = last * number / 8
        marks.append((handled, f"{handled if handled <= items else 2 * items - handled:,.0f}"))
    title = (
        f"{items:,} items of {figures['item_bytes']} bytes pile up and drain: at most "
        f"{figures['resident_mb_most']:.0f} MB of memory, {figures['journal_mb_most']:.0f} MB of journal"
    )
    where = (
        f"Embedded broker, max_memory_size {figures['max_memory_size'] / (1 << 20):.0f} MiB, "
        f"{figures['date']}, {figures['cores']} cores, Python {figures['python']}"
    )
    series = [
        Line(
            "journal on disk",
            [(s.handled, s.journal_mb) for s in samples],
            THIRD,
            len(samples) // 4,
            "end",
        ),
        Line(
            "memory of the process (RSS)",
            [(s.handled, s.resident_mb) for s in samples],
            OURS,
            len(samples) // 2,
        ),
    ]
    return lines(title, where, series, unit="MB", across="items in the queue: put, then taken", marks=marks)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add(
        "--only",
        type=chosen(list(SERVERS)),
        default=list(SERVERS),
        metavar="NAME,…",
        help=f"of: {', '.join(SERVERS)} (default: all)",
    )
    add("--kestrel", type=address, metavar="HOST:PORT", help="a real Kestrel; its queue bench is emptied")
    add("--kestrel-pid", type=int, metavar="PID", help="its process, for its memory")
    add(
        "--requests",
        type=at_least(1),
        default=40_000,
        metavar="N",
        help="of a load (default: 40000); a quarter at 1 connection",
    )
    add("--connections", type=numbers, default=[1, 50], metavar="N,…", help="how many (default: 1,50)")
    add("--clients", type=at_least(1), default=3, metavar="N", help="client processes (default: 3)")
    add("--size", type=at_least(1), default=200, metavar="BYTES", help="of an item (default: 200)")
    add(
        "--sync-journal-ms",
        type=at_least(0),
        default=SYNC_MS,
        metavar="MS",
        help=f"of the embedded broker (default: {SYNC_MS})",
    )
    add(
        "--spool",
        type=Path,
        metavar="FOLDER",
        help="where the servers' files are (default: the system's temporary folder)",
    )
    add("--backlog", type=at_least(1), metavar="ITEMS", help="measure the memory curve instead")
    add(
        "--max-memory-size",
        type=at_least(1),
        default=16 << 20,
        metavar="BYTES",
        help="of the curve (default: 16 MiB)",
    )
    add(
        "--svg",
        type=Path,
        default=PICTURE,
        metavar="FILE",
        help=f"where it is drawn (default: {PICTURE.relative_to(ROOT)})",
    )
    options = made.parse_args(arguments)
    if min(options.connections) < 1:
        made.error("--connections must be at least 1")
    if options.backlog and options.size < 10:
        made.error("--backlog needs items of at least 10 bytes: each carries its number")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return backlog(options) if options.backlog else compare(options)
    except (OSError, RuntimeError, AssertionError) as error:
        raise SystemExit(f"bench/broker.py: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
