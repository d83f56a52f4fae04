"""The shop's web server: ``python -m kestrel_stack.demo.web PORTFILE direct|queued API TIMEOUT QUEUE...``.

`POOL` threads handle ``POST /orders/NUMBER``. The way ``direct`` tells the third party within the request and
waits for its answer; the way ``queued`` enqueues a job that will, in the queues in turn, and answers at once.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from kestrel_stack.demo.api import write_port
from kestrel_stack.queue import Producer, QueueError

POOL = 8
"""Requests that the web server handles at the same time, like the processes of a small php-fpm."""
IDS = uuid.UUID("6f4b8c1e-1f0a-4b36-9a55-8d1f6a6f2d10")
"""An order's job has an id made of the order, so that an order which is sent twice is one job."""


class Pooled(HTTPServer):
    """An HTTP server with `POOL` threads; what comes while all are busy waits."""

    request_queue_size = 1024

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._threads = ThreadPoolExecutor(POOL)

    def process_request(self, request, client_address):
        """Leave the request to the pool."""
        self._threads.submit(self._handle, request, client_address)

    def _handle(self, request, client_address) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the visitor has gone
        finally:
            self.shutdown_request(request)


def handler(way: str, api: str, timeout: float, queues: list[str]) -> type[BaseHTTPRequestHandler]:
    """Return the handler of one way; `timeout`: seconds that ``direct`` waits for the third party."""
    producer = Producer.from_settings("acme") if way == "queued" else None

    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1  # head and body leave in one packet

        def do_POST(self) -> None:
            number = int(self.path.removeprefix("/orders/"))
            if producer is None:
                status = post(api, f"direct-{number}", timeout)
            else:
                status = enqueue(producer, queues[number % len(queues)], number)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def post(api: str, order: str, timeout: float) -> int:
    """Tell the third party of an order; return the status for the visitor."""
    request = urllib.request.Request(f"{api}/orders/{order}", method="POST")  # noqa: S310 - our own URL
    try:
        with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310
            return 200
    except (urllib.error.URLError, OSError):
        return 502


def enqueue(producer: Producer, queue: str, number: int) -> int:
    """Enqueue the order's job; return the status for the visitor."""
    try:
        producer.enqueue("PostOrder", {"order": f"queued-{number}"}, queue=queue, id=job_id(number))
    except QueueError:
        return 503
    return 202


def job_id(number: int) -> uuid.UUID:
    """Return the id of the job for an order."""
    return uuid.uuid5(IDS, str(number))


if __name__ == "__main__":
    port_file, way, api, timeout, *queues = sys.argv[1:]
    server = Pooled(handler(way, api, float(timeout), queues))
    write_port(Path(port_file), server.server_port)
    server.serve_forever()
