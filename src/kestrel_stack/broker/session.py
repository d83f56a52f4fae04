"""One client connection: its requests in order, its open reads, its waiting read.

A failure has one of Kestrel's three shapes: a reply and the connection stays; a reply and it closes; or it
closes without a byte (HangUp). What is ours: when the journal cannot be written the answer is SERVER_ERROR
and a close, and nothing has changed; Kestrel closes without a reply and may keep what it did not store.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

from kestrel_stack.broker import SERVER_VERSION, protocol
from kestrel_stack.broker.journal import JournalError
from kestrel_stack.broker.protocol import GetOptions, HangUp, Request, RequestParser, integer
from kestrel_stack.broker.queue import Queue

if TYPE_CHECKING:
    from kestrel_stack.broker.server import Broker

log = logging.getLogger("kestrel.session")

MAX_BUFFERED = 1 << 20
"""Bytes of requests that a connection may send ahead while one is waiting; then it is not read from."""

WRITE_AT_ONCE = 64 * 1024
"""Bytes of replies that are collected while requests are at hand, before they are written."""

SECONDS_OR_DATE = 1_000_000
"""From here on an expiry is a unix time in seconds; below it is seconds from now."""


class WaitingRead:
    """A get with t= that waits for an item."""

    __slots__ = ("options", "queue", "session", "timer")

    def __init__(self, session: Session, queue: Queue, options: GetOptions):
        self.session = session
        self.queue = queue
        self.options = options
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(options.wait_ms / 1000, session.end_waiting, self, False)

    def alive(self) -> bool:
        """Say whether the client is still there."""
        return self.session.peer_is_there()

    def wake(self) -> None:
        """Answer the get from what the queue holds now."""
        self.session.end_waiting(self, True)


class Session(asyncio.Protocol):
    """One connection on the memcache port."""

    def __init__(self, broker: Broker):
        self._broker = broker
        self._spool = broker.spool
        self._counters = broker.counters
        self._parser = RequestParser(broker.spool.item_limit)
        self._open: dict[str, deque[tuple[Queue, int]]] = {}
        self._waiting: WaitingRead | None = None
        self._closing = False
        self._write_paused = False
        self._read_paused = False
        self._poll: select.poll | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the new connection."""
        self._transport = cast(asyncio.Transport, transport)
        sock = self._transport.get_extra_info("socket")
        # A client whose machine has vanished must not hold its open reads for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLRDHUP)
        self._broker.sessions.add(self)
        self._counters.total_connections += 1

    def eof_received(self) -> bool:
        """Take half a hang-up for a whole one, as Kestrel does: a waiting read ends, replies still go out."""
        self.hang_up()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Return what the client has not confirmed."""
        self._closing = True
        self._broker.sessions.discard(self)
        self._let_go()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._counters.bytes_read += len(data)
        if not self._closing:
            self._parser.feed(data)
            self._run()

    def pause_writing(self) -> None:
        """Answer no more requests until the client has read what is there."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._run()

    def peer_is_there(self) -> bool:
        """Say whether the client has not hung up, even if its hang-up has not been read yet."""
        return not self._closing and self._poll is not None and not self._poll.poll(0)

    def hang_up(self, reply: bytes = b"") -> None:
        """Close, after ``reply`` and the replies before it; open reads return at once."""
        if not self._closing:
            self._closing = True
            self._send(reply)
            self._transport.close()
            self._let_go()

    def _let_go(self) -> None:
        self._forget_waiting()
        held, self._open = self._open, {}
        for reads in held.values():
            for queue in dict.fromkeys(queue for queue, _ in reads):
                xids = [xid for owner, xid in reads if owner is queue]
                queue.put_back(xids)
                self._counters.cmd_get_open_dropped += len(xids)

    def _send(self, reply: bytes) -> None:
        if reply:
            self._counters.bytes_written += len(reply)
            self._transport.write(reply)

    # Requests

    def _run(self) -> None:
        """Answer the requests that have arrived, in order, until one must wait."""
        replies: list[bytes] = []
        size = 0
        while not (self._waiting or self._closing or self._write_paused):
            try:
                request = self._parser.next()
                if request is None:
                    break
                reply = self._answer(request)
            except Exception as error:
                replies.append(_last_reply(error))
                self.hang_up(b"".join(replies))
                return
            if reply is not None:
                replies.append(reply)
                size += len(reply)
                if size > WRITE_AT_ONCE:  # so that a client that does not read is noticed
                    self._send(b"".join(replies))
                    replies, size = [], 0
        self._send(b"".join(replies))
        self._control_reading()

    def _control_reading(self) -> None:
        if self._closing:
            return
        ahead = (self._waiting or self._write_paused) and self._parser.buffered > MAX_BUFFERED
        if ahead and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        elif not ahead and self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def _answer(self, request: Request) -> bytes | None:
        command = self._COMMANDS.get(request.words[0])
        if command is None:
            raise HangUp(protocol.CLIENT_ERROR, f"unknown command {request.words[0][:40]!r}")
        return command(self, request)

    def _set(self, request: Request) -> bytes:
        name = request.word(1)
        expiry = integer(request.word(3))
        try:
            integer(request.word(2))  # flags: checked, never stored
        except HangUp:
            return protocol.CLIENT_ERROR
        self._counters.cmd_set += 1
        queue = self._spool.get_or_create(name)
        if request.too_large or request.data is None:
            return protocol.NOT_STORED
        if expiry == 0 or expiry >= SECONDS_OR_DATE:
            stored = queue.add(request.data, expiry_ms=expiry * 1000)
        else:
            stored = queue.add(request.data, expires_in_ms=expiry * 1000)
        return protocol.STORED if stored else protocol.NOT_STORED

    def _get(self, request: Request) -> bytes | None:
        options = GetOptions.parse(request.word(1))
        if options.abort:
            self._end_oldest(options.key, Queue.put_back_one)
            return protocol.END
        if options.close:
            self._end_oldest(options.key, Queue.confirm)
            if not options.open:
                return protocol.END
        held = len(self._open.get(options.key, ()))
        if (
            held
            and not options.peek
            and (not options.open or held >= self._broker.config.max_open_transactions)
        ):
            raise HangUp(protocol.ERROR)
        queue = self._spool.get_or_create(options.key)
        if options.peek:
            self._counters.cmd_peek += 1
        else:
            self._counters.cmd_get += 1
        reply = self._take(queue, options)
        if reply is None and options.wait_ms > 0 and not queue.closed:
            self._waiting = WaitingRead(self, queue, options)
            queue.wait(self._waiting)
            return None
        return reply or self._miss(queue)

    def _take(self, queue: Queue, options: GetOptions) -> bytes | None:
        """Return the reply with the head of the queue, taken as asked; None if there is none."""
        if queue.closed:
            return None
        if options.peek:
            item = queue.peek()
        elif options.open:
            opened = queue.open()
            item = opened[1] if opened else None
            if opened:
                self._open.setdefault(queue.name, deque()).append((queue, opened[0]))
        else:
            item = queue.remove()
        if item is None:
            return None
        if not options.peek:
            queue.hits += 1
            self._counters.get_hits += 1
        return protocol.value(queue.name, item.data)

    def _miss(self, queue: Queue) -> bytes:
        queue.misses += 1
        self._counters.get_misses += 1
        return protocol.END

    def end_waiting(self, waiting: WaitingRead, may_take: bool) -> None:
        """Answer the waiting read, from the queue if ``may_take``, else with END; then go on."""
        if self._waiting is not waiting:
            return
        self._forget_waiting()
        try:
            reply = self._take(waiting.queue, waiting.options) if may_take else None
        except JournalError as error:
            log.error("%s", error)
            self.hang_up(protocol.SERVER_ERROR)
            return
        self._send(reply or self._miss(waiting.queue))
        # Not from here: this runs inside another connection's set.
        asyncio.get_running_loop().call_soon(self._run)

    def _forget_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting:
            waiting.timer.cancel()
            waiting.queue.stop_waiting(waiting)

    def _end_oldest(self, name: str, end: Callable[[Queue, int], None]) -> None:
        """Confirm or put back this connection's oldest open read of the named queue, if it has one."""
        reads = self._open.get(name)
        if reads:
            queue, xid = reads[0]
            end(queue, xid)
            reads.popleft()
            if not reads:
                self._open.pop(name, None)

    def _confirm(self, request: Request) -> bytes:
        name = request.word(1)
        count = integer(request.word(2))
        if not 0 < count <= len(self._open.get(name, ())):
            return protocol.ERROR
        for _ in range(count):
            self._end_oldest(name, Queue.confirm)
        return protocol.END

    def _delete(self, request: Request) -> bytes:
        self._spool.delete(request.word(1))
        return protocol.DELETED

    def _flush(self, request: Request) -> bytes:
        queue = self._spool.get(request.word(1))
        if queue is not None:
            queue.flush()
        return protocol.END

    def _flush_all(self, request: Request) -> bytes:
        for queue in list(self._spool.queues.values()):
            queue.flush()
        return b"Flushed all queues.\r\n"

    def _flush_expired(self, request: Request) -> bytes:
        queue = self._spool.get(request.word(1))
        return b"%d\r\n" % (queue.drop_expired() if queue is not None else 0)

    def _flush_all_expired(self, request: Request) -> bytes:
        return b"%d\r\n" % sum(queue.drop_expired() for queue in list(self._spool.queues.values()))

    def _stats(self, request: Request) -> bytes:
        return self._broker.stats.memcache()

    def _dump_stats(self, request: Request) -> bytes:
        return self._broker.stats.dump(request.words[1:])

    def _version(self, request: Request) -> bytes:
        return b"VERSION %b\r\n" % SERVER_VERSION.encode()

    def _status(self, request: Request) -> bytes:
        if len(request.words) == 1:
            return b"UP\r\n"
        if request.words[1].lower() == "up":
            return protocol.END
        raise HangUp(protocol.CLIENT_ERROR, "the status cannot be changed yet")

    def _quit(self, request: Request) -> bytes:
        raise HangUp(why="quit")

    def _shutdown(self, request: Request) -> bytes:
        self._broker.request_stop("the shutdown command", delay_s=0.1)
        raise HangUp(why="shutdown")

    _COMMANDS: ClassVar[dict[str, Callable[[Session, Request], bytes | None]]] = {
        "set": _set,
        "get": _get,
        "gets": _get,
        "confirm": _confirm,
        "delete": _delete,
        "flush": _flush,
        "flush_all": _flush_all,
        "flush_expired": _flush_expired,
        "flush_all_expired": _flush_all_expired,
        "stats": _stats,
        "dump_stats": _dump_stats,
        "version": _version,
        "status": _status,
        "quit": _quit,
        "shutdown": _shutdown,
    }


def _last_reply(error: Exception) -> bytes:
    """Log why a connection is closed and return what it is told before."""
    if isinstance(error, HangUp):
        log.debug("closing a connection: %s", error)
        return error.reply
    if isinstance(error, JournalError):
        log.error("%s", error)
        return protocol.SERVER_ERROR
    # Kestrel's shape for anything unforeseen; the other connections go on.
    log.error("unexpected error, closing a connection", exc_info=error)
    return b""
