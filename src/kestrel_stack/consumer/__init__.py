"""The worker: it takes jobs from a queue and runs the application's functions.

An application needs the registry only::

    from kestrel_stack.consumer import Registry

    registry = Registry()

    @registry.job("HelloWorld")
    def hello(data, context):
        context.log.info("hello", name=data["name"])
"""

from kestrel_stack.consumer.registry import Context, Registry

__all__ = ["Context", "Registry"]
