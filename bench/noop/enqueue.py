"""Enqueues no-op jobs for RQ or Celery, in the environment that has them: ``enqueue.py rq|celery``.

Reads lines from stdin, each a JSON list of jobs' data to enqueue at once, and answers each with a line.
"""

import json
import os
import sys
import time
from collections.abc import Callable


def main() -> None:
    put = {"rq": rq, "celery": celery}[sys.argv[1]]()
    for line in sys.stdin:
        for data in json.loads(line):
            if "sent" in data:
                # The way from the bench to here is no part of a job's wait.
                data["sent"] = time.time()
            put(data)
        print("done", flush=True)


def rq() -> Callable[[dict], object]:
    import redis
    from rq import Queue

    queue = Queue("noop", connection=redis.Redis.from_url(os.environ["BENCH_REDIS"]))
    return lambda data: queue.enqueue("noop.run", data, result_ttl=0)


def celery() -> Callable[[dict], object]:
    import noop

    return lambda data: noop.celery.tasks["noop"].apply_async((data,))


if __name__ == "__main__":
    main()
