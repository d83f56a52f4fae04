"""The worker: it takes jobs from a queue and runs the application's functions.

An application needs the registry only::

    from kestrel_stack.consumer import Registry

    registry = Registry()

    @registry.job("HelloWorld")
    def hello(data, context):
        context.log.info("hello", name=data["name"])

A job that fails is tried again after the delays of its queue, then parked. It may raise `Retry` to choose the
delay, or `Park` when another try would be no use.
"""

from kestrel_stack.consumer.registry import Context, Registry
from kestrel_stack.consumer.retry import Park, Retry

__all__ = ["Context", "Park", "Registry", "Retry"]
