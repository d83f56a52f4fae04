"""What an application imports: the producer, the queues below it, and the errors they raise.

::

    from kestrel_stack.queue import Producer

    producer = Producer.from_settings(tenant="acme")
    producer.enqueue("HelloWorld", {"name": "Ada"})

In an application's tests the queue is in memory, and nothing has to run::

    queue = Queue.open("memory://tests/shop")
    Producer.on(queue, tenant="acme").enqueue("HelloWorld", {"name": "Ada"}, queue="hello_world")
    assert Envelope.decode(queue.peek("hello_world")).data == {"name": "Ada"}
"""

from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.errors import (
    InvalidEnvelope,
    InvalidJob,
    InvalidQueueName,
    InvalidServer,
    ProtocolError,
    QueueError,
    QueueFull,
    ServerUnavailable,
    SettingsError,
)
from kestrel_stack.queue.interface import Counts, Queue
from kestrel_stack.queue.producer import Producer

__all__ = [
    "Counts",
    "Envelope",
    "InvalidEnvelope",
    "InvalidJob",
    "InvalidQueueName",
    "InvalidServer",
    "ParkedRecord",
    "Producer",
    "ProtocolError",
    "Queue",
    "QueueError",
    "QueueFull",
    "ServerUnavailable",
    "SettingsError",
]
