"""The broker process: spool, listeners, timers, syncing, reload, signals, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kestrel_stack.broker.admin import AdminServer
from kestrel_stack.broker.config import Config, ConfigError, load
from kestrel_stack.broker.journal import Journal, JournalError
from kestrel_stack.broker.queue import Queue
from kestrel_stack.broker.session import Session
from kestrel_stack.broker.spool import Spool, wall_clock
from kestrel_stack.broker.stats import Counters, Stats
from kestrel_stack.broker.status import ServerStatus

log = logging.getLogger("kestrel.server")
reload_log = logging.getLogger("kestrel.reload")
reload_log.setLevel(logging.INFO)  # whatever the log level is: who reloads looks for it

RECEIVE_BYTES = 256 * 1024
"""Most bytes that are taken from a connection at once."""

RELOADABLE = ("log_level", "default", "queues", "aliases")
"""What a reload changes; Kestrel's changes the same."""

SWEPT_AT_ONCE = 1000
"""Expired items that the timer takes out of one queue before it looks at the time."""

SWEEP_TURN_S = 0.005
"""Seconds that the timer's sweep takes before connections have a turn."""


class StartError(Exception):
    """The broker cannot start; the text is one line that names the cause and the fix."""


class Syncer:
    """Syncs unsynced journals ``period_ms`` after their first unsynced record, in a thread."""

    def __init__(self, period_ms: int):
        self._period_s = period_ms / 1000
        self._unsynced: set[Journal] = set()
        self._task: asyncio.Task[None] | None = None

    def note(self, journal: Journal) -> None:
        """Remember a journal that has a record which is not synced."""
        self._unsynced.add(journal)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._sync())

    async def _sync(self) -> None:
        while self._unsynced:
            await asyncio.sleep(self._period_s)
            journals, self._unsynced = self._unsynced, set()
            descriptors = []
            for journal in journals:
                try:
                    fd = journal.duplicate_for_sync()
                except OSError as error:
                    log.error("%s: cannot sync: %s; trying again", journal.path, error.strerror)
                    self._unsynced.add(journal)
                    continue
                if fd is not None:
                    descriptors.append((journal.path, fd))
            await asyncio.get_running_loop().run_in_executor(None, _sync_and_close, descriptors)
        self._task = None


def _sync_and_close(descriptors: list[tuple[Path, int]]) -> None:
    for path, fd in descriptors:
        try:
            os.fdatasync(fd)
        except OSError as error:
            log.error("%s: cannot sync: %s", path, error.strerror)
        finally:
            os.close(fd)


class Broker:
    """A running broker."""

    def __init__(self, config: Config, config_file: Path | None = None):
        """``config_file`` is what a reload reads; without it a reload changes nothing."""
        self.config = config
        self.config_file = config_file
        self.clock = wall_clock
        self.started_ms = self.clock()
        self._started_s = time.monotonic()
        self.counters = Counters()
        self.sessions: set[Session] = set()
        self.receive_buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.status = ServerStatus(config.status_file)
        self._syncers: dict[int, Syncer] = {}
        self.spool = Spool(config, clock=self.clock, syncer_for=self._syncer_for)
        self.stats = Stats(self)
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._most_files = 0
        self._refusing = False

    @property
    def uptime_ms(self) -> int:
        """Milliseconds since the start, whatever the wall clock does."""
        return int((time.monotonic() - self._started_s) * 1000)

    def _syncer_for(self, period_ms: int) -> Callable[[Journal], None]:
        if period_ms not in self._syncers:
            self._syncers[period_ms] = Syncer(period_ms)
        return self._syncers[period_ms].note

    async def run(self, port_file: Path | None = None) -> None:
        """Serve until asked to stop; StartError or SpoolError if it cannot begin.

        ``port_file`` gets {"port", "admin_port", "pid"} as JSON once the ports answer.
        """
        self._most_files = _allow_many_files()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.request_stop, signal.Signals(signum).name)
        loop.add_signal_handler(signal.SIGHUP, self.reload, "SIGHUP")
        async with contextlib.AsyncExitStack() as stack:
            # First what may be refused, then the journals: a broker that cannot serve changes no file.
            stack.callback(self.spool.close)
            self.spool.lock()
            server = await self._bind(
                lambda: Session(self), self.config.listen_address, self.config.port, "port"
            )
            stack.callback(self._end_sessions, server)
            admin = None
            if self.config.admin_port is not None:
                admin_server = AdminServer(self)
                admin = await self._bind(
                    admin_server.protocol,
                    self.config.admin_address,
                    self.config.admin_port,
                    "admin_port",
                )
                stack.callback(admin.close)
            self.spool.load()
            self.status.load()
            await self._serve(server, self.config.listen_address, self.config.port, "port")
            if admin and self.config.admin_port is not None:
                await self._serve(admin, self.config.admin_address, self.config.admin_port, "admin_port")
            port, admin_port = _port_of(server), _port_of(admin) if admin else None
            queues = self.spool.queues.values()
            log.info(
                "listening on %s:%d, admin %s; %d queues, %d items in %s",
                self.config.listen_address,
                port,
                f"{self.config.admin_address}:{admin_port}" if admin_port else "off",
                len(queues),
                sum(queue.items for queue in queues),
                self.config.queue_path,
            )
            if port_file:
                _write_whole(port_file, {"port": port, "admin_port": admin_port, "pid": os.getpid()})
            self._start_timers(stack)
            _tell_systemd("READY=1")
            await self._stop.wait()
        await asyncio.sleep(0)  # the connections close in the loop's next turn
        log.info("stopped; every journal is synced and closed")

    def request_stop(self, why: str, delay_s: float = 0.0) -> None:
        """Stop soon: ``why`` is logged, ``delay_s`` lets replies go out first."""
        log.info("stopping: %s", why)
        asyncio.get_running_loop().call_later(delay_s, self._stop.set)

    def reload(self, why: str) -> None:
        """Read the configuration again and take over what can change; a wrong one changes nothing."""
        if self.config_file is None:
            log.error("reload (%s): there is no configuration file", why)
            return
        try:
            new = load(self.config_file)
        except ConfigError as error:
            log.error("reload (%s): %s; everything stays as it was", why, error)
            return
        stays = [
            entry.name
            for entry in fields(Config)
            if entry.name not in RELOADABLE and getattr(new, entry.name) != getattr(self.config, entry.name)
        ]
        new = replace(new, **{name: getattr(self.config, name) for name in stays})
        self.config = new
        logging.getLogger().setLevel(new.log_level.upper())
        stays += self.spool.reload(new)
        if stays:
            reload_log.warning("reload (%s): %s: needs a restart", why, ", ".join(stays))
        reload_log.info("Reloaded config: %d queues, %d aliases", len(new.queues), len(new.aliases))

    # Timers

    def _start_timers(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        if config.client_timeout_ms:
            self._start(stack, self._drop_idle(config.client_timeout_ms / 1000))
        if config.expiration_timer_ms:
            self._start(stack, self._sweep(config.expiration_timer_ms / 1000))

    def _start(self, stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        stack.callback(task.cancel)

    async def _drop_idle(self, timeout_s: float) -> None:
        """Close connections that have sent nothing for so long; one that waits for an item is no exception.

        Source: Kestrel 2.4.1's code (a time limit on reading from the connection).
        """
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 10))
            latest = time.monotonic() - timeout_s
            idle = [session for session in self.sessions if session.last_read_s < latest]
            for session in idle:
                log.debug("closing a connection that has been idle for %g s", timeout_s)
                session.drop()

    async def _sweep(self, period_s: float) -> None:
        """Drop expired items at the heads of all queues, then the queues that are too old; for ever."""
        while True:
            await asyncio.sleep(period_s)
            turn = time.monotonic()
            for queue in list(self.spool.queues.values()):
                left = queue.settings.max_expire_sweep
                while not queue.closed:
                    most = SWEPT_AT_ONCE if left is None else min(left, SWEPT_AT_ONCE)
                    dropped = self._drop_expired(queue, most)
                    if time.monotonic() - turn > SWEEP_TURN_S:
                        await asyncio.sleep(0)
                        turn = time.monotonic()
                    if left is not None:
                        left -= dropped
                    if dropped < most or left == 0:
                        break
            try:
                self.spool.delete_idle()
            except JournalError as error:
                log.error("%s", error)

    @staticmethod
    def _drop_expired(queue: Queue, most: int) -> int:
        try:
            return queue.drop_expired(most)
        except JournalError as error:
            log.error("%s", error)
            return 0

    # Files and connections

    def has_room_for(self, fd: int) -> bool:
        """Say whether a connection with this file number leaves enough files for the journals."""
        reserve = min(128, self._most_files // 4)
        if fd < self._most_files - reserve:
            if self._refusing and fd < self._most_files - 2 * reserve:
                self._refusing = False
                log.warning("taking connections again")
            return True
        if not self._refusing:
            self._refusing = True
            log.error(
                "no room for more connections: %d of %d files are open; refusing them; allow more open files",
                fd,
                self._most_files,
            )
        return False

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
            # The loop itself stops accepting and tries again a second later.
            if not self._refusing:
                self._refusing = True
                log.error("cannot accept connections: %s; trying again every second", error.strerror)
            return
        log.error("unexpected error: %s", context.get("message"), exc_info=error)

    def _end_sessions(self, server: asyncio.Server) -> None:
        # Open reads are not put back here: the next start does, in the order in which they were opened.
        server.close()
        self.spool.close()
        for session in list(self.sessions):
            session.hang_up()

    async def _bind(
        self, make_protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int, key: str
    ) -> asyncio.Server:
        """Take the port without answering on it yet."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.create_server(make_protocol, host, port, backlog=1024, start_serving=False)
        except OSError as error:
            raise StartError(_explain_listen(error, host, port, key)) from None

    async def _serve(self, server: asyncio.Server, host: str, port: int, key: str) -> None:
        try:
            await server.start_serving()
        except OSError as error:  # another took the port in the same moment
            raise StartError(_explain_listen(error, host, port, key)) from None


def _explain_listen(error: OSError, host: str, port: int, key: str) -> str:
    place = f"cannot listen on {host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f'{place}: the port is taken; stop what listens there, or set "{key}" to another'
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        name = "listen_address" if key == "port" else "admin_address"
        return f'{place}: this host has no such address; set "{name}" to one of its own'
    if error.errno == errno.EACCES:
        return f'{place}: this user may not; set "{key}" to 1024 or more'
    return f"{place}: {error.strerror or error}"


def _port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def _allow_many_files() -> int:
    """Every queue and every connection is an open file; take what the system allows, and return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def _write_whole(path: Path, content: dict[str, int | None]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(path)


def _tell_systemd(message: str) -> None:
    """Tell a systemd unit of Type=notify how far we are; nothing outside of one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
