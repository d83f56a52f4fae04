"""Asks the workers of one host which release they run.

Every server is asked by a thread of its own, since one that is away must not keep the others waiting. A ping
is written again when it was taken and nothing came of it: by a worker that ended meanwhile, or one of another
release. Before Kestrel is asked for an item there is a look at whether it has one, since asking makes the
queue. What was written is removed at the end; after a kill -9 it expires.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from kestrel_stack.queue import names
from kestrel_stack.queue.client import KestrelClient
from kestrel_stack.queue.errors import ProtocolError, QueueFull, ServerUnavailable
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.pings import EXPIRES, Ping, PingAnswer
from kestrel_stack.queue.servers import Server

MARGIN = 10
"""Seconds that a queue's workers get beside their longest job: to start, to look, and for the way."""
LOOK_PAUSE = 0.1
"""Seconds between two looks for answers."""
ASK_AGAIN = 1.0
"""Seconds after which a ping that was taken and not answered is written again."""
ASK_ANEW = EXPIRES / 2
"""Seconds after which a ping is written again in any case, before it expires."""
SERVER_TIMEOUT = 2.0
"""Seconds that a server gets for a connection, and for an answer."""
SERVER_PAUSE = 0.5
"""Seconds until a server that failed is tried again."""
MOST_ANSWERS = 100
"""Answers that are taken in one look at one queue; more than that nobody has waiting."""


@dataclass
class Asked:
    """What became of the question to one queue; `server` and `seconds` are those of the answer."""

    queue: str
    ping_queue: str
    ping: Ping
    release: str
    """The one that must answer."""
    answer: PingAnswer | None = None
    other: PingAnswer | None = None
    """The last answer that was not the right one."""
    server: Server | None = None
    seconds: float = 0.0
    taken: bool = False
    """A worker has taken the ping from a server."""
    failures: dict[Server, str] = field(default_factory=dict)
    """Why a server could not be asked, the last time."""

    @property
    def reason(self) -> str | None:
        """Why there is no right answer; None when there is one."""
        if self.answer is not None:
            return None
        parts = [f"no answer from release {self.release} in {self.seconds:.1f} s"]
        if self.other is not None:
            parts.append(f"the last that answered was {_who(self.other)}")
        elif self.taken:
            parts.append("a worker took the ping and did not answer")
        elif not self.failures:
            parts.append(
                "no worker took the ping: none runs, none reaches the server, or its job takes longer"
            )
        # A copy: the thread of a server that hangs may still be at work.
        parts += [said for _, said in sorted(self.failures.copy().items())]
        return "; ".join(part.rstrip(".") for part in parts)

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine; without the right answer, `release` and `pid` are those of another."""
        said = self.answer or self.other
        return {
            "queue": self.queue,
            "answered": self.answer is not None,
            "release": said.release if said else None,
            "pid": said.pid if said else None,
            "language": said.language if said else None,
            "server": str(self.server) if self.server else None,
            "seconds": round(self.seconds, 3),
            "reason": self.reason,
        }

    def as_text(self) -> str:
        """Return it as one line for a person."""
        if self.answer is None:
            return f"{self.queue}  NOT ANSWERED: {self.reason}"
        return (
            f"{self.queue}  answered by {_who(self.answer)} by way of {self.server} in {self.seconds:.1f} s"
        )


def ask(
    store: KestrelStore,
    queues: Sequence[str],
    host: str,
    release: str,
    timeout: float,
    tell: Callable[[Asked], None],
    warn: Callable[[str], None],
    deploy: str | None = None,
) -> list[Asked]:
    """Ask the workers of `queues` on `host`, until each queue was answered from `release` or time is over.

    `tell` is called for each queue as soon as that is known, and `warn` with a sentence on an answer from
    elsewhere. `timeout` is in seconds. Raises `InvalidQueueName`, or `ValueError` for a wrong `deploy`.
    """
    asked = [
        Asked(queue, names.ping(store.name(queue), host), Ping(deploy=deploy), release) for queue in queues
    ]
    for one in asked:
        one.ping.encode()
    return _Questions(asked, host, timeout, warn).run(store.servers, tell)


class _Questions:
    """What the threads of one `ask` share.

    The thread that runs it takes no lock: who is interrupted between taking and having one never gives it
    back, and the others could not remove what they wrote.
    """

    def __init__(self, asked: list[Asked], host: str, timeout: float, warn: Callable[[str], None]):
        self._asked = asked
        self._host = host
        self._warn = warn
        self._began = time.monotonic()
        self._deadline = self._began + timeout
        self._answered: SimpleQueue[Asked] = SimpleQueue()
        self._hearing = threading.Lock()
        self._over = threading.Event()
        self._visitors: list[threading.Thread] = []
        """Those that may have written something."""

    def run(self, servers: Sequence[Server], tell: Callable[[Asked], None]) -> list[Asked]:
        told: set[str] = set()
        try:
            # Within: who is interrupted while the last ones start has pings of the first ones to remove.
            for server in servers:
                threading.Thread(target=self._visit, args=(server,), daemon=True).start()
            while len(told) < len(self._asked):
                try:
                    one = self._answered.get(timeout=max(0.0, self._deadline - time.monotonic()))
                except Empty:
                    break
                told.add(one.queue)
                tell(one)
        finally:
            seconds = time.monotonic() - self._began
            self._over.set()
            # Each removes what it wrote, within its time limits. One that begins only now writes nothing.
            for visitor in self._visitors:
                visitor.join(2 * SERVER_TIMEOUT + 1)
        for one in self._asked:
            if one.queue not in told:
                if one.answer is None:
                    one.seconds = seconds
                tell(one)
        return self._asked

    def _visit(self, server: Server) -> None:
        """Ask at one server until there is nothing more to ask."""
        self._visitors.append(threading.current_thread())
        client = KestrelClient(server, SERVER_TIMEOUT, SERVER_TIMEOUT)
        written: dict[str, float] = {}
        with client:
            while open_ := self._open():
                pause = LOOK_PAUSE
                for one in open_:
                    try:
                        self._ask(client, one, written)
                    except QueueFull as exc:
                        one.failures[server] = str(exc)
                    except (ServerUnavailable, ProtocolError) as exc:
                        for other in open_:
                            other.failures[server] = str(exc)
                        pause = SERVER_PAUSE
                        break
                    else:
                        one.failures.pop(server, None)
                self._over.wait(pause)
            with contextlib.suppress(ServerUnavailable, ProtocolError):
                for queue in written:
                    client.delete(queue)
                    client.delete(names.ping_answers(queue))

    def _open(self) -> list[Asked]:
        return [] if self._over.is_set() else [one for one in self._asked if one.answer is None]

    def _ask(self, client: KestrelClient, one: Asked, written: dict[str, float]) -> None:
        """Look for answers, and write the ping if there is none there."""
        queue = one.ping_queue
        answers = names.ping_answers(queue)
        for _ in range(min(client.items(answers), MOST_ANSWERS) if queue in written else 0):
            body = client.get(answers)
            if body is None:
                break
            said = PingAnswer.decode(body)
            if said is not None and said.id != one.ping.id:
                # Somebody else waits for it.
                client.set(answers, body, EXPIRES)
            elif said is not None:
                self._heard(one, said, client.server)
        age = time.monotonic() - written.get(queue, float("-inf"))
        if one.answer is not None or age < ASK_AGAIN:
            return
        waiting = age < ASK_ANEW and client.items(queue) > 0
        one.taken = one.taken or (queue in written and not waiting and age < ASK_ANEW)
        if not waiting:
            # Noted first: also what only may have been written must be removed.
            written[queue] = float("-inf")
            client.set(queue, one.ping.encode(), EXPIRES)
            written[queue] = time.monotonic()

    def _heard(self, one: Asked, said: PingAnswer, server: Server) -> None:
        with self._hearing:
            if one.answer is not None:
                return
            one.server = server
            one.seconds = time.monotonic() - self._began
            if (said.release, said.host) == (one.release, self._host):
                one.answer = said
                self._answered.put(one)
                return
            known, one.other = one.other, said
        if known != said:
            self._warn(f"{one.queue}: answered by {_who(said)}; waiting for release {one.release}")


def _who(said: PingAnswer) -> str:
    return f"release {said.release}, pid {said.pid} ({said.language}) on {said.host}"
