"""The command line for the jobs on the queues: enqueue, count, look, requeue, dump and load."""

from kestrel_stack.queue.jobs.cli import main

__all__ = ["main"]
