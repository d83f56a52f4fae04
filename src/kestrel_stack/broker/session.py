"""One client connection: its requests in order, its open reads, its waiting read or its monitor.

A failure has one of Kestrel's three shapes: a reply and the connection stays; a reply and it closes; or it
closes without a byte (HangUp). What is ours: when the journal cannot be written the answer is SERVER_ERROR
and a close, and nothing has changed; Kestrel closes without a reply and may keep what it did not store. And
a monitor ends with its connection; Kestrel's goes on and may keep one more item open for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic, perf_counter_ns
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

LINGER_S = 30.0
"""Seconds that a client has to take its last replies once its connection is closed."""

VANISHED_S = 120
"""Seconds without a sign of life until a client's machine counts as gone, and its open reads go back."""

SECONDS_OR_DATE = 1_000_000
"""From here on an expiry is a unix time in seconds; below it is seconds from now."""

MONITOR = GetOptions("", open=True)
"""How a monitor takes its items."""


class WaitingRead:
    """A get with t=, or a monitor, that waits for an item."""

    __slots__ = ("options", "queue", "session", "since_s", "timer")

    def __init__(self, session: Session, queue: Queue, options: GetOptions, seconds: float):
        self.session = session
        self.queue = queue
        self.options = options
        loop = asyncio.get_running_loop()
        self.since_s = loop.time()
        self.timer = loop.call_later(seconds, session.end_waiting, self, False)

    def alive(self) -> bool:
        """Say whether the client is still there."""
        return self.session.peer_is_there()

    def wake(self) -> None:
        """Answer the get from what the queue holds now."""
        self.session.end_waiting(self, True)


class Monitor:
    """A monitor that is under way: until when, and for how many more items (below 0: for any number)."""

    __slots__ = ("deadline_s", "key", "left")

    def __init__(self, key: str, deadline_s: float, left: int):
        self.key = key
        self.deadline_s = deadline_s
        self.left = left


class Session(asyncio.BufferedProtocol):
    """One connection on the memcache port."""

    __slots__ = (
        "_broker",
        "_closing",
        "_counters",
        "_monitor",
        "_open",
        "_parser",
        "_read_paused",
        "_spool",
        "_transport",
        "_waiting",
        "_write_paused",
        "last_read_s",
    )

    def __init__(self, broker: Broker):
        self._broker = broker
        self._spool = broker.spool
        self._counters = broker.counters
        self._parser = RequestParser(broker.spool.item_limit)
        self._open: dict[str, deque[tuple[Queue, int]]] | None = None
        self._waiting: WaitingRead | None = None
        self._monitor: Monitor | None = None
        self._closing = False
        self._write_paused = False
        self._read_paused = False
        self.last_read_s = 0.0
        """When the last bytes came from the client, by the monotonic clock."""

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the new connection, or refuse it if the broker would run out of files."""
        self._transport = cast(asyncio.Transport, transport)
        self.last_read_s = monotonic()
        sock = self._transport.get_extra_info("socket")
        if not self._broker.has_room_for(sock.fileno()):
            self._closing = True
            self._transport.abort()
            return
        # A client whose machine has vanished must not hold its open reads for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S // 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_S // 12)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        # No probe is sent while a reply is unacknowledged: that alone would last a quarter of an hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_S * 1000)
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

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: one place for all connections, since they are taken at once."""
        return self._broker.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes from the client."""
        self._counters.bytes_read += nbytes
        self.last_read_s = monotonic()
        if not self._closing:
            self._parser.feed(self._broker.receive_buffer[:nbytes].tobytes())
            self._run()

    def pause_writing(self) -> None:
        """Answer no more requests until the client has read what is there."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Go on, in the loop's next turn: a close in here would make asyncio report the loss twice."""
        self._write_paused = False
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._monitor and not self._waiting and not self._write_paused:
            self._go_on_monitoring()
        self._run()

    def peer_is_there(self) -> bool:
        """Say whether the client has not hung up, even if its hang-up has not been read yet."""
        if self._closing:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def hang_up(self, reply: bytes = b"") -> None:
        """Close, after ``reply`` and the replies before it; open reads return at once."""
        if not self._closing:
            self._closing = True
            self._send(reply)
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
            self._let_go()

    def drop(self) -> None:
        """Close at once; replies that the client does not take are lost, open reads return."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        self.hang_up()

    def _let_go(self) -> None:
        if self._waiting and not self._monitor:
            self._counters.cmd_get_timeout_dropped += 1
        self._monitor = None
        self._forget_waiting()
        held, self._open = self._open, None
        for reads in (held or {}).values():
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
        parser, commands, counters = self._parser, self._COMMANDS, self._counters
        while not (self._waiting or self._monitor or self._closing or self._write_paused):
            try:
                request = parser.next()
                if request is None:
                    break
                counters.requests += 1
                command = commands.get(request.words[0])
                if command is None:
                    raise HangUp(protocol.CLIENT_ERROR, f"unknown command {request.words[0][:40]!r}")
                reply = command(self, request)
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
        if replies:
            self._send(replies[0] if len(replies) == 1 else b"".join(replies))
        if self._monitor and not self._waiting:
            self._go_on_monitoring()
        if self._waiting or self._write_paused or self._read_paused or self._monitor:
            self._control_reading()

    def _control_reading(self) -> None:
        if self._closing:
            return
        busy = self._waiting or self._write_paused or self._monitor
        ahead = busy and self._parser.buffered > MAX_BUFFERED
        if ahead and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()
        elif not ahead and self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def _set(self, request: Request) -> bytes:
        name = request.word(1)
        expiry = integer(request.word(3))
        try:
            integer(request.word(2))  # flags: checked, never stored
        except HangUp:
            return protocol.CLIENT_ERROR
        self._refuse_writes()
        self._counters.cmd_set += 1
        if request.data is None:
            self._spool.refuse(name, request.too_large)
            return protocol.NOT_STORED
        began = perf_counter_ns()
        if expiry == 0 or expiry >= SECONDS_OR_DATE:
            stored = self._spool.add(name, request.data, expiry_ms=expiry * 1000)
        else:
            stored = self._spool.add(name, request.data, expiry * 1000)
        self._spool.timings_of(name).set.add((perf_counter_ns() - began) // 1000)
        return protocol.STORED if stored else protocol.NOT_STORED

    def _get(self, request: Request) -> bytes | None:
        options = GetOptions.parse(request.word(1))
        if options.abort:
            self._end_oldest(options.key, Queue.put_back_one)
            return protocol.END
        confirming = 0
        if options.close:
            if options.open:
                confirming = self._to_confirm_with_next(options.key)
            if not confirming:
                self._end_oldest(options.key, Queue.confirm)
            if not options.open:
                return protocol.END
        held = self._held(options.key) - (confirming != 0)
        if held and not options.peek and not options.open:
            raise HangUp(protocol.ERROR, "a plain get while a read is open")
        if self._broker.status.blocks_reads:
            raise HangUp(protocol.SERVER_ERROR, "the status is QUIESCENT")
        if options.open and held >= self._broker.config.max_open_transactions:
            raise HangUp(protocol.ERROR, "too many open reads")
        if options.peek:
            self._counters.cmd_peek += 1
        else:
            self._counters.cmd_get += 1
        if options.key in self._spool.aliases:
            return protocol.END
        queue = self._spool.get_or_create(options.key)
        began = perf_counter_ns()
        reply = self._take(queue, options, confirming)
        if reply is None and options.wait_ms > 0 and not queue.closed:
            self._waiting = WaitingRead(self, queue, options, options.wait_ms / 1000)
            queue.wait(self._waiting)
            return None
        if not options.peek:
            timings = self._spool.timings_of(queue.name)
            (timings.get_hit if reply else timings.get_miss).add((perf_counter_ns() - began) // 1000)
        return reply or self._miss(queue)

    def _take(self, queue: Queue, options: GetOptions, confirming: int = 0) -> bytes | None:
        """Return the reply with the head of the queue, taken as asked; None if there is none.

        ``confirming`` is the oldest open read of this queue here, if it ends in the same step.
        """
        if queue.closed:
            return None
        if options.peek:
            item = queue.peek()
            if item is None:
                return None
        else:
            if options.open:
                opened = queue.confirm_and_open(confirming) if confirming else queue.open()
                if opened is None:
                    if confirming:
                        self._drop_oldest(queue.name)
                    return None
                item = opened[1]
                if self._open is None:
                    self._open = {}
                reads = self._open.get(queue.name)
                if reads is None:
                    reads = self._open[queue.name] = deque()
                elif confirming:
                    reads.popleft()
                reads.append((queue, opened[0]))
            else:
                item = queue.remove()
                if item is None:
                    return None
            lay_there = self._broker.clock() - item.added_ms
            self._spool.timings_of(queue.name).delivery.add(lay_there if lay_there > 0 else 0)
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
        queue = waiting.queue
        if not may_take:
            waited_ms = int((asyncio.get_running_loop().time() - waiting.since_s) * 1000)
            self._spool.timings_of(queue.name).get_timeout.add(waited_ms)
        try:
            reply = self._take(queue, waiting.options) if may_take else None
        except JournalError as error:
            log.error("%s", error)
            self.hang_up(protocol.SERVER_ERROR)
            return
        self._send(reply or self._miss(queue))
        if self._monitor:
            if reply is None:
                self._monitor = None
            else:
                self._monitor.left -= 1
        # Not from here: this runs inside another connection's set.
        asyncio.get_running_loop().call_soon(self._run)

    def _forget_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting:
            waiting.timer.cancel()
            waiting.queue.stop_waiting(waiting)

    # Open reads

    def _held(self, name: str) -> int:
        """Return how many reads of the named queue are open here."""
        return len(self._open.get(name, ())) if self._open else 0

    def _to_confirm_with_next(self, name: str) -> int:
        """Return the oldest open read of the named queue, if the next item may go out in the same step, or 0.

        Not if the queue was deleted or hidden by an alias meanwhile, and not if a read is refused: that
        confirms all the same.
        """
        reads = self._open.get(name) if self._open else None
        if not reads or self._broker.status.blocks_reads or name in self._spool.aliases:
            return 0
        queue, xid = reads[0]
        most = self._broker.config.max_open_transactions
        return xid if queue is self._spool.queues.get(name) and len(reads) <= most else 0

    def _drop_oldest(self, name: str) -> None:
        """Forget the oldest open read of the named queue."""
        if self._open:
            reads = self._open[name]
            reads.popleft()
            if not reads:
                del self._open[name]

    def _end_oldest(self, name: str, end: Callable[[Queue, int], None]) -> None:
        """Confirm or put back this connection's oldest open read of the named queue, if it has one."""
        reads = self._open.get(name) if self._open else None
        if reads and self._open:
            queue, xid = reads[0]
            end(queue, xid)
            self._drop_oldest(name)

    def _confirm(self, request: Request) -> bytes:
        name = request.word(1)
        count = integer(request.word(2))
        if not 0 < count <= self._held(name):
            return protocol.ERROR
        for _ in range(count):
            self._end_oldest(name, Queue.confirm)
        return protocol.END

    # Monitor

    def _start_monitor(self, request: Request) -> None:
        """Begin a stream of open reads; what comes is sent by _go_on_monitoring."""
        left = (
            integer(request.word(3)) if len(request.words) > 3 else self._broker.config.max_open_transactions
        )
        key = request.word(1)
        seconds = integer(request.word(2))
        if self._broker.status.blocks_reads:
            raise HangUp(why="the status is QUIESCENT")
        self._counters.cmd_monitor += 1
        self._monitor = Monitor(key, asyncio.get_running_loop().time() + seconds, left)

    def _go_on_monitoring(self) -> None:
        """Send items until there is none; then wait for the next, or end the stream."""
        try:
            while self._monitor and not (self._closing or self._write_paused or self._waiting):
                self._next_monitored(self._monitor)
        except Exception as error:
            self.hang_up(_last_reply(error))
            return
        if not self._monitor:
            asyncio.get_running_loop().call_soon(self._run)

    def _next_monitored(self, monitor: Monitor) -> None:
        seconds = monitor.deadline_s - asyncio.get_running_loop().time()
        if (
            self._broker.status.blocks_reads
            or monitor.left == 0
            or seconds <= 0
            or self._held(monitor.key) >= self._broker.config.max_open_transactions
        ):
            self._monitor = None
            self._send(protocol.END)
            return
        self._counters.cmd_monitor_get += 1
        if monitor.key in self._spool.aliases:
            self._monitor = None
            self._send(protocol.END)
            return
        queue = self._spool.get_or_create(monitor.key)
        began = perf_counter_ns()
        reply = self._take(queue, MONITOR)
        if reply is None:
            if queue.closed:
                self._monitor = None
                self._send(self._miss(queue))
                return
            self._waiting = WaitingRead(self, queue, MONITOR, seconds)
            queue.wait(self._waiting)
            return
        self._spool.timings_of(queue.name).get_hit.add((perf_counter_ns() - began) // 1000)
        monitor.left -= 1
        self._send(reply)

    # Everything else

    def _refuse_writes(self) -> None:
        if self._broker.status.blocks_writes:
            raise HangUp(protocol.SERVER_ERROR, f"the status is {self._broker.status.current.name}")

    def _delete(self, request: Request) -> bytes:
        name = request.word(1)
        self._refuse_writes()
        self._spool.delete(name)
        return protocol.DELETED

    def _flush(self, request: Request) -> bytes:
        name = request.word(1)
        self._refuse_writes()
        queue = self._spool.get(name)
        if queue is not None:
            queue.flush()
        return protocol.END

    def _flush_all(self, request: Request) -> bytes:
        self._refuse_writes()
        for queue in list(self._spool.queues.values()):
            queue.flush()
        return b"Flushed all queues.\r\n"

    def _flush_expired(self, request: Request) -> bytes:
        name = request.word(1)
        if self._broker.status.blocks_writes:
            raise HangUp(
                why=f"the status is {self._broker.status.current.name}"
            )  # without a reply, as Kestrel
        queue = self._spool.get(name)
        return b"%d\r\n" % (queue.drop_expired() if queue is not None else 0)

    def _flush_all_expired(self, request: Request) -> bytes:
        # In any status, as in Kestrel.
        return b"%d\r\n" % sum(queue.drop_expired() for queue in list(self._spool.queues.values()))

    def _stats(self, request: Request) -> bytes:
        return self._broker.stats.memcache()

    def _dump_stats(self, request: Request) -> bytes:
        return self._broker.stats.dump(request.words[1:])

    def _version(self, request: Request) -> bytes:
        return b"VERSION %b\r\n" % SERVER_VERSION.encode()

    def _status(self, request: Request) -> bytes:
        if len(request.words) == 1:
            return self._broker.status.current.name.encode() + b"\r\n"
        if self._broker.status.set(request.words[1]):
            return protocol.END
        raise HangUp(protocol.CLIENT_ERROR, f"no status {request.words[1][:40]!r}")

    def _reload(self, request: Request) -> bytes:
        self._broker.reload("the reload command")
        return b"Reloaded config.\r\n"  # also when it was refused, as Kestrel; the log says so

    def _quit(self, request: Request) -> bytes:
        raise HangUp(why="quit")

    def _shutdown(self, request: Request) -> bytes:
        self._broker.request_stop("the shutdown command", delay_s=0.1)
        raise HangUp(why="shutdown")

    _COMMANDS: ClassVar[dict[str, Callable[[Session, Request], bytes | None]]] = {
        "set": _set,
        "get": _get,
        "gets": _get,
        "monitor": _start_monitor,
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
        "reload": _reload,
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
