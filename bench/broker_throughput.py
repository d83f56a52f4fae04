"""How many requests per second the embedded broker does: ``python bench/broker_throughput.py``.

Starts a broker in a temporary folder, loads it from client processes that each wait for every reply, and
prints one line per load. Bounded: each load runs for ``--seconds`` (default 2). The clients are Python as
well and share the machine with the broker, so these are lower bounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"


def client(port: int, request: bytes, end: bytes, seconds: float, results) -> None:
    """Send ``request`` again and again; its replies are complete when ``end`` has come."""
    done = 0
    with socket.create_connection(("127.0.0.1", port)) as sock:
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            sock.sendall(request)
            reply = b""
            while not reply.endswith(end):
                chunk = sock.recv(65536)
                if not chunk:
                    raise ConnectionError(reply)
                reply += chunk
            done += 1
    results.put(done)


def load(name: str, port: int, connections: int, seconds: float, request: bytes, end: bytes, each: int = 1):
    """Run one load and print its rate; ``each`` is how many requests are sent at once."""
    results = multiprocessing.SimpleQueue()
    processes = [
        multiprocessing.Process(target=client, args=(port, request, end, seconds, results))
        for _ in range(connections)
    ]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes) * each
    for process in processes:
        process.join()
    print(f"{name:<32} {connections:>3} connections {total / seconds:>10,.0f}/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each load")
    parser.add_argument("--size", type=int, default=300, help="bytes of an item")
    parser.add_argument("--sync-journal-ms", type=int, default=100, help="as in the configuration; 0 = each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kestrel-bench-") as folder:
        config, ports, spool = (Path(folder) / name for name in ("broker.json", "ports.json", "spool"))
        spool.mkdir()
        settings = {"port": 0, "admin_port": None, "queue_path": str(spool)}
        config.write_text(json.dumps({**settings, "sync_journal_ms": options.sync_journal_ms}))
        command = ["-m", "kestrel_stack.broker", "--config", str(config), "--port-file", str(ports)]
        broker = subprocess.Popen([sys.executable, *command], env={"PYTHONPATH": str(SOURCE)})
        try:
            while not ports.exists():
                if broker.poll() is not None:
                    return 1
                time.sleep(0.01)
            port = json.loads(ports.read_text())["port"]
            data = b"x" * options.size
            put = b"set bench 0 0 %d\r\n%b\r\n" % (len(data), data)
            stored, end, seconds = b"STORED\r\n", b"END\r\n", options.seconds
            print(f"items of {options.size} bytes, sync_journal_ms {options.sync_journal_ms}")
            for connections in (1, 8):
                load("set", port, connections, seconds, put, stored)
                load("get /t=1/close/open", port, connections, seconds, b"get bench/t=1/close/open\r\n", end)
                load("get", port, connections, seconds, b"get bench\r\n", end)
            load("set, 100 in one packet", port, 1, seconds, put * 100, stored * 100, each=100)
            load("set and get in one packet", port, 8, seconds, put + b"get bench\r\n", end, each=2)
        finally:
            broker.terminate()
            broker.wait(20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
