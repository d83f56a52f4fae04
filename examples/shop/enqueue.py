# ruff: noqa: T201 - a script prints.
"""Enqueue jobs of the shop: ``venv/bin/python enqueue.py --tenant acme --job HelloWorld --count 20``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kestrel_stack.queue import Producer, QueueError

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "HelloWorld": ("hello_world", {"name": "World"}),
    "SendMail": ("mail", {"to": "ada@example.org", "subject": "Your order", "text": "It is on its way.\n"}),
    "PostToPartner": ("partner_api", {"order": 4711}),
    # Done by a worker in PHP. A file of one's own: php php/enqueue.php --tenant acme --file FILE.
    "PostUpload": ("post_upload", {"name": "hello.txt", "content": "SGVsbG8K"}),
}
"""Each job's queue, and the data that is sent when none is given."""


def main() -> int:
    """Enqueue, and print one JSON object with the ids."""
    parser = argparse.ArgumentParser(description="Enqueue jobs of the shop.")
    parser.add_argument("--tenant", required=True, help="for example acme")
    parser.add_argument(
        "--job", default="HelloWorld", help=f"one of {', '.join(EXAMPLES)} (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--data", type=json.loads, metavar="JSON", help="the job's data, one JSON object")
    parser.add_argument("--queue", help="another queue than the job's own")
    parser.add_argument("--config", help="settings file (default: the only one in /etc/kestrel-stack)")
    given = parser.parse_args()
    queue, data = EXAMPLES.get(given.job, (None, {}))
    ids: list[str] = []
    failure = None
    try:
        with Producer.from_settings(given.tenant, given.config) as producer:
            for _ in range(given.count):
                ids.append(
                    producer.enqueue(
                        given.job, data if given.data is None else given.data, queue=given.queue or queue
                    )
                )
    except QueueError as exc:
        failure = exc
    # Also after a failure: what was enqueued before it will be done.
    print(json.dumps({"tenant": given.tenant, "job": given.job, "enqueued": len(ids), "ids": ids}))
    if failure:
        print(f"enqueue: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
