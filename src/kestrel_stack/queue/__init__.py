"""What an application imports: the producer, the settings, and the errors they raise.

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
    ProtocolError,
    QueueError,
    QueueFull,
    ServerUnavailable,
    SettingsError,
)
from kestrel_stack.queue.producer import Producer

__all__ = [
    "Envelope",
    "InvalidEnvelope",
    "InvalidJob",
    "InvalidQueueName",
    "ParkedRecord",
    "Producer",
    "ProtocolError",
    "QueueError",
    "QueueFull",
    "ServerUnavailable",
    "SettingsError",
]
