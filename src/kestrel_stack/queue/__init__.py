"""What an application imports: the producer, the queues below it, and the errors they raise.

::

    from kestrel_stack.queue import Producer

    producer = Producer.from_settings(tenant="acme")
    producer.enqueue("HelloWorld", {"name": "Ada"})
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
