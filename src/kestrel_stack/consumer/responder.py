"""What a worker answers to a ping."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from kestrel_stack.consumer.log import Log
from kestrel_stack.queue.pings import Ping, PingAnswer


@dataclass(frozen=True)
class Responder:
    """Answers for one worker: `queue` as the settings file calls it, `release` is the folder it runs in."""

    queue: str
    host: str
    release: str
    log: Log
    pid: int = field(default_factory=os.getpid)

    def answer(self, body: bytes) -> bytes | None:
        """Return the answer to the ping in `body`, None when that is no ping."""
        ping = Ping.decode(body)
        if ping is None:
            self.log.debug("not a ping, dropped", bytes=len(body))
            return None
        # Below info: whoever may write to the queue could fill the log with them.
        self.log.debug("ping answered", id=ping.id, deploy=ping.deploy)
        return PingAnswer(
            id=ping.id,
            release=self.release,
            pid=self.pid,
            language="python",
            queue=self.queue,
            host=self.host,
            deploy=ping.deploy,
        ).encode()
