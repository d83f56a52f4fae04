"""The broker process: spool, listeners, syncing, signals, an orderly end."""

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
from collections.abc import Callable
from pathlib import Path

from kestrel_stack.broker.admin import AdminServer
from kestrel_stack.broker.config import Config
from kestrel_stack.broker.journal import Journal
from kestrel_stack.broker.session import Session
from kestrel_stack.broker.spool import Spool, wall_clock
from kestrel_stack.broker.stats import Counters, Stats

log = logging.getLogger("kestrel.server")


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
            descriptors = [
                (journal.path, fd) for journal in journals if (fd := journal.duplicate_for_sync()) is not None
            ]
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

    def __init__(self, config: Config):
        self.config = config
        self.clock = wall_clock
        self.started_ms = self.clock()
        self.counters = Counters()
        self.sessions: set[Session] = set()
        period = config.sync_journal_ms
        self.spool = (
            Spool(config, clock=self.clock, on_unsynced=Syncer(period).note)
            if period
            else Spool(config, clock=self.clock)
        )
        self.stats = Stats(self)
        self._stop = asyncio.Event()

    async def run(self, port_file: Path | None = None) -> None:
        """Serve until asked to stop; StartError or SpoolError if it cannot begin.

        ``port_file`` gets {"port", "admin_port", "pid"} as JSON once the ports answer.
        """
        _allow_many_files()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.request_stop, signal.Signals(signum).name)
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
                admin = await self._bind(
                    lambda: AdminServer(self).protocol(),
                    self.config.admin_address,
                    self.config.admin_port,
                    "admin_port",
                )
                stack.callback(admin.close)
            self.spool.load()
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
            _tell_systemd("READY=1")
            await self._stop.wait()
        await asyncio.sleep(0)  # the connections close in the loop's next turn
        log.info("stopped; every journal is synced and closed")

    def request_stop(self, why: str, delay_s: float = 0.0) -> None:
        """Stop soon: ``why`` is logged, ``delay_s`` lets replies go out first."""
        log.info("stopping: %s", why)
        asyncio.get_running_loop().call_later(delay_s, self._stop.set)

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


def _allow_many_files() -> None:
    """Every queue and every connection is an open file; take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
