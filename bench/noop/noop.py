"""The job that is measured: it does nothing, but notes when it ran if it is asked to.

As an application of ours it is ``noop:registry``; for RQ the function is ``noop.run``, for Celery the
application is ``noop:celery``.
"""

from __future__ import annotations

import os
import time


def run(data: dict) -> None:
    """Do nothing; with ``mark`` write the time, and with ``sent`` how long the job was on its way."""
    if "mark" in data:
        with open(os.environ["BENCH_MARKS"], "a") as file:  # noqa: PTH123 - the shortest way, in each language
            file.write(f"{data['mark']} {time.time():.6f} {data.get('sent', 0):.6f}\n")


if os.environ.get("BENCH_PEER") == "celery":
    from celery import Celery

    celery = Celery(broker=os.environ["BENCH_REDIS"])
    celery.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=int(os.environ["BENCH_PREFETCH"]),
        broker_connection_retry_on_startup=True,
    )
    celery.task(name="noop")(run)
elif os.environ.get("BENCH_PEER") is None:
    from kestrel_stack.consumer import Registry

    registry = Registry()

    @registry.job("Noop")
    def noop(data: dict, context: object) -> None:
        """Do nothing."""
        run(data)
