"""How fast the embedded broker is, beside a second server if there is one: ``python bench/broker.py``.

    bench/broker.py --against 127.0.0.1:22133 --against-pid 4711   # a real Kestrel, in the same run
    bench/broker.py --backlog 1000000                              # the memory curve: docs/broker-memory.svg

Each load is a number of requests: ``set`` of items, then ``get q/close/open`` of the same items, at 1 and at
50 connections. Every connection waits for each reply before it sends again. The clients are processes that
do nothing but that; with one connection a round trip through the client is part of what is measured. The
servers take turns in every repeat, so that whatever else the machine does hits both; the table has medians.
Progress goes to stderr, the table or ``--json`` to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "broker-memory.svg"
QUEUE = "bench"
MB = 1_000_000


@dataclass
class Server:
    """A server under load; ``pid`` where it is known."""

    name: str
    host: str
    port: int
    pid: int | None = None

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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def embedded(folder: Path, settings: dict, default: dict) -> Iterator[Server]:
    """An embedded broker with its spool in ``folder``, stopped at the end."""
    config, ports, spool = folder / "broker.json", folder / "ports.json", folder / "spool"
    spool.mkdir(parents=True)
    content = {"port": 0, "admin_port": None, "queue_path": str(spool), **settings, "default": default}
    config.write_text(json.dumps(content))
    command = ["-m", "kestrel_stack.broker", "--config", str(config), "--port-file", str(ports)]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen([sys.executable, *command], env=environment, stderr=log)
    try:
        while not ports.exists():
            if process.poll() is not None:
                raise SystemExit(f"the broker does not start: {(folder / 'log').read_text()}")
            time.sleep(0.01)
        yield Server("embedded", "127.0.0.1", json.loads(ports.read_text())["port"], process.pid)
    finally:
        process.terminate()
        process.wait(60)


# Load


def client(
    server: Server, request: bytes, reply_size: int, connections: int, count: int, start, done
) -> None:
    """Send ``request`` ``count`` times over these connections, one at a time each; report when it ended."""
    socks = {sock.fileno(): sock for sock in (server.connect() for _ in range(connections))}
    left_of = dict.fromkeys(socks, reply_size)
    poll = select.epoll()
    for fd in socks:
        poll.register(fd, select.EPOLLIN)
    start.wait()
    began = time.monotonic()
    to_send, to_come = count, count
    for sock in socks.values():
        if to_send:
            sock.send(request)
            to_send -= 1
    while to_come:
        for fd, _ in poll.poll(60):
            got = len(socks[fd].recv(65536))
            if not got:
                raise ConnectionError("the server closed a connection")
            left = left_of[fd] - got
            if left > 0:
                left_of[fd] = left
                continue
            if left < 0:
                raise ConnectionError(f"a reply is {-left} bytes too long")
            left_of[fd] = reply_size
            to_come -= 1
            if to_send:
                socks[fd].send(request)
                to_send -= 1
    done.put((began, time.monotonic()))
    start.wait()  # nobody hangs up before all have been served


def rate(
    server: Server, request: bytes, reply_size: int, connections: int, count: int, clients: int
) -> float:
    """Requests per second of ``count`` requests over ``connections`` connections of some client processes."""
    clients = min(clients, connections)
    start, done = multiprocessing.Barrier(clients), multiprocessing.SimpleQueue()
    share = [connections // clients + (number < connections % clients) for number in range(clients)]
    counts = [count // clients + (number < count % clients) for number in range(clients)]
    processes = [
        multiprocessing.Process(target=client, args=(server, request, reply_size, *pair, start, done))
        for pair in zip(share, counts, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
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
    """Requests per second of one load, one number for each repeat."""

    load: str
    connections: int
    rates: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])


def measure(servers: list[Server], options: argparse.Namespace) -> list[Result]:
    """Run every load on every server, in turns."""
    data = b"x" * options.size
    put = b"set %b 0 0 %d\r\n%b\r\n" % (QUEUE.encode(), len(data), data)
    take = b"get %b/close/open\r\n" % QUEUE.encode()
    value = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (QUEUE.encode(), len(data), data)
    results = [
        Result(load, connections)
        for connections in options.connections
        for load in ("set", "get q/close/open")
    ]
    for repeat in range(options.repeats):
        for server in servers:
            for result in results:
                if result.load == "set":
                    ask(server, b"delete %b\r\n" % QUEUE.encode(), b"DELETED\r\n")
                request, reply = (put, b"STORED\r\n") if result.load == "set" else (take, value)
                count = options.requests if result.connections > 1 else max(options.requests // 4, 1)
                found = rate(server, request, len(reply), result.connections, count, options.clients)
                result.rates.setdefault(server.name, []).append(found)
                say(
                    f"repeat {repeat + 1} of {options.repeats}: {server.name:<9}"
                    f"{result.load:<17}{result.connections:>3} connections {found:>10,.0f}/s"
                )
    for server in servers:
        ask(server, b"delete %b\r\n" % QUEUE.encode(), b"DELETED\r\n")
    return results


def table(servers: list[Server], results: list[Result], memory: dict[str, list[float | None]]) -> str:
    """Return the medians, their spans and the ratios as text."""
    names = [server.name for server in servers]
    head = f"{'':<34}" + "".join(f"{name:>24}" for name in names) + ("     ratio" if len(names) > 1 else "")
    lines = [head]
    for result in results:
        connections = f"{result.connections} connection{'s' * (result.connections > 1)}"
        line = f"{result.load + ', ' + connections:<34}"
        for name in names:
            rates = result.rates[name]
            line += f"{f'{result.median(name):,.0f}/s ({min(rates):,.0f}-{max(rates):,.0f})':>24}"
        if len(names) > 1:
            line += f"{result.median(names[0]) / result.median(names[1]):>10.2f}"
        lines.append(line)
    for row, label in enumerate(("memory before, MB", "memory after, MB")):
        if all(memory[name][row] is None for name in names):
            continue
        line = f"{label:<34}"
        numbers = [memory[name][row] for name in names]
        line += "".join(f"{'unknown' if number is None else f'{number:.0f}':>24}" for number in numbers)
        if len(numbers) > 1 and None not in numbers:
            line += f"{numbers[0] / numbers[1]:>10.2f}"
        lines.append(line)
    return "\n".join(lines)


def compare(options: argparse.Namespace) -> int:
    """Measure the embedded broker, and the other server if one was named."""
    with tempfile.TemporaryDirectory(prefix="kestrel-bench-", dir=options.spool) as folder:
        settings = {"sync_journal_ms": options.sync_journal_ms}
        with embedded(Path(folder) / "embedded", settings, {}) as server:
            servers = [server]
            if options.against:
                host, _, port = options.against.rpartition(":")
                servers.append(Server("against", host, int(port), options.against_pid))
                ask(servers[1], b"delete %b\r\n" % QUEUE.encode(), b"DELETED\r\n")
            memory = {each.name: [each.resident()] for each in servers}
            results = measure(servers, options)
            for each in servers:
                memory[each.name].append(each.resident())
    if options.json:
        rates = [
            {"load": r.load, "connections": r.connections, "per_second": r.rates, "medians": medians(r)}
            for r in results
        ]
        print(json.dumps({**conditions(options), "loads": rates, "memory_mb": memory}, indent=2))
    else:
        print(f"\n{about(options)}\n\n{table(servers, results, memory)}")
    return 0


def medians(result: Result) -> dict[str, float]:
    return {name: result.median(name) for name in result.rates}


def conditions(options: argparse.Namespace) -> dict:
    """What the numbers hold for."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "item_bytes": options.size,
        "requests": options.requests,
        "repeats": options.repeats,
        "client_processes": options.clients,
        "sync_journal_ms": options.sync_journal_ms,
    }


def about(options: argparse.Namespace) -> str:
    about = conditions(options)
    return (
        f"{about['date']}, {about['cores']} cores ({about['machine']}), Python {about['python']}; items of "
        f"{options.size} bytes, medians of {options.repeats} repeats (smallest-largest), "
        f"{options.clients} client processes, sync_journal_ms {options.sync_journal_ms}"
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
            embedded(base, {"sync_journal_ms": options.sync_journal_ms}, default) as server,
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
        **conditions(options),
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


def nice(most: float) -> tuple[float, float]:
    """The end of an axis and its step, in round numbers."""
    step = next(s * 10**e for e in range(10) for s in (1, 2, 5) if s * 10**e * 6 >= most)
    return step * -(-most // step), step


def picture(samples: list[Sample], figures: dict) -> str:
    """Return the curve as SVG: megabytes over the items put, then taken."""
    width, height, left, right, top, bottom = 860, 400, 64, 24, 70, 56
    most, step = nice(max(max(s.resident_mb, s.journal_mb) for s in samples))
    last = samples[-1].handled

    def x(handled: float) -> float:
        return left + (width - left - right) * handled / last

    def y(megabytes: float) -> float:
        return height - bottom - (height - top - bottom) * megabytes / most

    def line(kind: str, values: list[tuple[int, float]]) -> str:
        points = " ".join(f"{x(handled):.1f},{y(value):.1f}" for handled, value in values)
        return f'<polyline class="{kind}" points="{points}"/>'

    items = figures["items"]
    title = (
        f"{items:,} items of {figures['item_bytes']} bytes pile up and drain: at most "
        f"{figures['resident_mb_most']:.0f} MB of memory, {figures['journal_mb_most']:.0f} MB of journal"
    )
    about = (
        f"Embedded broker, max_memory_size {figures['max_memory_size'] / (1 << 20):.0f} MiB, "
        f"{figures['date']}, {figures['cores']} cores, Python {figures['python']}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="title" font-family="system-ui, sans-serif" font-size="13">',
        f'<title id="title">{title}</title>',
        "<style>",
        "  text { fill: #24292f } .grid { stroke: #d0d7de }",
        "  .axis { stroke: #57606a } .dim { fill: #57606a }",
        "  polyline { fill: none; stroke-width: 2.5 }",
        "  .memory { stroke: #0969da } .journal { stroke: #bc4c00 }",
        "  .t-memory { fill: #0969da } .t-journal { fill: #bc4c00 } .paper { fill: #ffffff }",
        "  @media (prefers-color-scheme: dark) {",
        "    text { fill: #e6edf3 } .grid { stroke: #30363d }",
        "    .axis { stroke: #8b949e } .dim { fill: #8b949e }",
        "    .memory { stroke: #58a6ff } .journal { stroke: #f0883e } .paper { fill: #0d1117 }",
        "    .t-memory { fill: #58a6ff } .t-journal { fill: #f0883e }",
        "  }",
        "</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text x="{left}" y="24" font-size="14" font-weight="600">{title}</text>',
        f'<text x="{left}" y="44" class="dim">{about}</text>',
    ]
    for number in range(int(most / step) + 1):
        value = number * step
        parts.append(f'<path class="grid" d="M{left} {y(value):.1f}H{width - right}"/>')
        parts.append(
            f'<text class="dim" x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    parts.append(f'<text class="dim" x="{left - 8}" y="{top - 12}" text-anchor="end">MB</text>')
    for number in range(9):
        handled = last * number / 8
        queued = handled if handled <= items else 2 * items - handled
        anchor = "start" if number == 0 else "end" if number == 8 else "middle"
        parts.append(f'<path class="axis" d="M{x(handled):.1f} {height - bottom}v5"/>')
        parts.append(
            f'<text class="dim" x="{x(handled):.1f}" y="{height - bottom + 20}" text-anchor="{anchor}">'
            f"{queued:,.0f}</text>"
        )
    parts += [
        f'<text class="dim" x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        "items in the queue: put, then taken</text>",
        f'<path class="axis" d="M{left} {top}V{height - bottom}H{width - right}" fill="none"/>',
        line("journal", [(s.handled, s.journal_mb) for s in samples]),
        line("memory", [(s.handled, s.resident_mb) for s in samples]),
    ]
    rising = samples[len(samples) // 4]
    middle = samples[len(samples) // 2]
    parts += [
        f'<text class="t-journal" x="{x(rising.handled) - 12:.1f}" y="{y(rising.journal_mb):.1f}" '
        'text-anchor="end">journal on disk</text>',
        f'<text class="t-memory" x="{x(middle.handled):.1f}" y="{y(middle.resident_mb) - 10:.1f}" '
        'text-anchor="middle">memory of the process (RSS)</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="HOST:PORT", help="a second server, measured in turns")
    parser.add_argument("--against-pid", type=int, metavar="PID", help="its process, for its memory")
    parser.add_argument("--repeats", type=int, default=5, help="how often each load runs (default 5)")
    parser.add_argument(
        "--requests", type=int, default=40_000, help="requests of a load; a quarter at 1 connection"
    )
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 50], help="default 1 50")
    parser.add_argument("--clients", type=int, default=3, help="client processes (default 3)")
    parser.add_argument("--size", type=int, default=200, help="bytes of an item (default 200)")
    parser.add_argument(
        "--sync-journal-ms", type=int, default=100, help="of the embedded broker (default 100)"
    )
    parser.add_argument(
        "--spool", type=Path, help="where its spool is made (default the system's temporary folder)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--backlog", type=int, metavar="ITEMS", help="measure the memory curve instead")
    parser.add_argument(
        "--max-memory-size", type=int, default=16 << 20, help="of the curve, in bytes (16 MiB)"
    )
    parser.add_argument(
        "--svg", type=Path, default=PICTURE, help=f"where the curve is drawn (default {PICTURE})"
    )
    options = parser.parse_args()
    for name in ("repeats", "requests", "clients", "size", "max_memory_size", "backlog"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.connections) < 1 or options.sync_journal_ms < 0:
        parser.error("--connections must be at least 1, --sync-journal-ms at least 0")
    if options.against and not options.against.rpartition(":")[2].isdigit():
        parser.error(f"--against must be HOST:PORT, not {options.against}")
    if options.backlog and options.size < 10:
        parser.error("--backlog needs items of at least 10 bytes: each carries its number")
    return options


def main() -> int:
    options = arguments()
    try:
        return backlog(options) if options.backlog else compare(options)
    except (OSError, ConnectionError) as error:
        print(f"bench/broker.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
