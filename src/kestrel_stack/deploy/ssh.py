"""Connections to hosts: Fabric's, with what it lacks: checked host keys, noticed silence, scripts that stop.

Fabric reads the ssh client configuration and authenticates. Its defaults accept any host key, know no
keepalive and leave a command running on the host when its time is up; here an unknown key is refused, a host
that does not answer for half a minute counts as lost, and every script has a lifeline: standard input, which
it watches.

A line with a long way makes every question dear, so none is asked whose answer is known: the request to log
in follows the request for that service at once, the channels follow the log-in, and a script's input follows
the script. From TCP's own greeting to the first word of the first script that leaves five round trips.
"""

from __future__ import annotations

import logging
import random
import select
import shlex
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fabric
import paramiko
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import cMSG_CHANNEL_REQUEST, cMSG_SERVICE_REQUEST, cMSG_USERAUTH_REQUEST
from paramiko.transport import ServiceRequestingTransport

from .description import Host
from .errors import Cancelled, HostError, Refused

CONNECT_TIMEOUT = 10
"""Seconds for a connection to come up."""
CONNECTING = 8
"""How many connections to one sshd come up at once: its MaxStartups begins to drop them at ten."""
RETRY_FOR = 20
"""Seconds within which a connection that sshd has dropped is tried again."""
SILENCE = 30
"""Seconds without an answer to a keepalive, after which a host counts as lost."""
KEEPALIVE = 10
"""Seconds between keepalives, and between signs of life to a running script (which waits for 60)."""
PARALLEL = 64
"""How many hosts are worked on at once: a thread each."""
UPLOAD_BLOCK = 1 << 16
"""Bytes of an upload between two looks at whether it is still wanted."""
STOP_PATIENCE = 30
"""Seconds that a script which was told to stop gets to put its host in order."""

_NAME = "kestrel-stack-deploy"
"""What our processes on a host call themselves."""
_WAIT_FOR_SCRIPT = (
    'exec /bin/bash -c \'IFS= read -r size && script=$(head -c "$size") &&'
    f' [[ $script == *"#:$size:" ]] && exec /bin/bash -c "$script" {_NAME}\''
)
"""Run on a channel that is opened ahead. sshd takes no input before something runs, so a script that has an
upload would else have to wait for its own beginning. A script that breaks off on its way is not begun."""

T = TypeVar("T")

# Paramiko reports what it also raises; a person would see tracebacks of its threads.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


@dataclass(frozen=True)
class Result:
    """What a script left behind."""

    code: int
    lines: tuple[str, ...]
    """Standard output."""
    errors: tuple[str, ...]
    """Standard error."""

    @property
    def complaint(self) -> str:
        """The end of what it complained about, in one line."""
        said = [line.strip() for line in (self.errors or self.lines) if line.strip()]
        # bash names itself, the script and the line number; the person cares for the rest.
        return "; ".join(said[-4:])[-900:] or f"exit code {self.code}"


@dataclass
class Statistics:
    """What a host has been asked for so far."""

    connections: int = 0
    channels: int = 0
    """Scripts run, and channels opened ahead for scripts to come."""
    sent: int = 0
    """Bytes to the scripts: their own text, uploads, signs of life; without what SSH adds."""
    received: int = 0
    """Bytes that the scripts said."""


class Remote:
    """One connection to one host, opened at first use and again when it was lost. Threads may share it.

    ``channels``: how many scripts are going to run. Their channels are opened together with the connection,
    so that no script waits for its own; those beyond are opened when they are needed.
    """

    def __init__(self, host: Host, cancel: threading.Event, channels: int = 1) -> None:
        self.host = host
        self.name = host.name
        self.statistics = Statistics()
        self._cancel = cancel
        self._channels = channels
        self._ahead: deque[Future[paramiko.Channel]] = deque()
        self._connection: fabric.Connection | None = None
        self._last_answer = 0.0
        self._closed = threading.Event()
        self._opening = threading.RLock()
        self._talks: list[Talk] = []

    # --- opening --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, unless there is a connection that works.

        Raises Refused, naming the host and the fix, when that cannot be done.
        """
        with self._opening:
            if self._connection is not None:
                if self._connection.transport.is_active() and self.silent_for() <= SILENCE:
                    return
                self.close()
            self._open()

    def _open(self) -> None:
        try:
            connection = self._new_connection()
            _connect(connection, self._cancel)
        except paramiko.BadHostKeyException as error:
            raise Refused(
                f"{self.name}: the host key has changed ({error.key.get_name()}, now"
                f" {_fingerprint(error.key)});"
                " if the machine was rebuilt, remove its old line from known_hosts, else find out who answers"
            ) from None
        except _UnknownHostKey as error:
            raise Refused(
                f"{self.name}: unknown host key for {error.name} ({error.key.get_name()}"
                f" {_fingerprint(error.key)}):"
                f" compare it with the machine's own and add it to {self._known_hosts_names(connection)}"
            ) from None
        except paramiko.AuthenticationException as error:
            raise Refused(
                f"{self.name}: user {self.host.user} may not log in ({error}): put your public key into"
                " app_host_deploy_keys and run ansible-playbook site.yml"
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            where = f"{self.host.address} port {connection.port}"
            raise Refused(
                f"{self.name} does not answer at {where} ({_reason(error)}): is it up, and is its"
                " address right?"
                f" Try: {self._ssh_hint()}; --limit leaves hosts out"
            ) from None
        self._connection = connection
        transport = connection.transport
        # Opened ahead only once: after a lost connection nobody knows how many more there will be.
        self._ahead = deque(transport.ahead or transport.open_ahead(self._channels))
        self._channels = 0
        self.statistics.connections += 1
        self.statistics.channels += len(self._ahead)
        self._last_answer = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._keepalive, args=(connection, self._closed), daemon=True).start()

    def _new_connection(self) -> fabric.Connection:
        path = str(self.host.ssh_config) if self.host.ssh_config else None
        # lazy: neither this machine's fabric.yml nor its environment may change what a deploy does.
        config = fabric.Config(lazy=True, runtime_ssh_path=path)
        config.load_ssh_config()
        return fabric.Connection(
            self.host.address,
            user=self.host.user,
            port=self.host.port,
            config=config,
            connect_timeout=CONNECT_TIMEOUT,
            connect_kwargs={"transport_factory": lambda *a, **kw: _Transport(*a, ahead=self._channels, **kw)},
        )

    def _known_hosts_names(self, connection: fabric.Connection) -> str:
        return " or ".join(str(path) for path in known_hosts_files(connection.ssh_config)[:1])

    def _ssh_hint(self) -> str:
        config = f"-F {self.host.ssh_config} " if self.host.ssh_config else ""
        return f"ssh {config}{self.host.user}@{self.host.address}"

    def close(self) -> None:
        """Close the connection; harmless when there is none."""
        with self._opening:
            self._closed.set()
            self._ahead.clear()
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.client.close()
                if isinstance(connection.gateway, fabric.Connection):
                    connection.gateway.client.close()

    def _keepalive(self, connection: fabric.Connection, closed: threading.Event) -> None:
        """Ask the server for an answer now and then: only that proves it is there. Runs in a thread."""
        transport = connection.transport
        while not closed.wait(KEEPALIVE):
            if not transport.is_active():
                return
            try:
                for talk in list(self._talks):
                    talk.sign()
                transport.global_request("keepalive@openssh.com", wait=True)
            except (OSError, EOFError, paramiko.SSHException):
                return
            self.heard()

    # --- running --------------------------------------------------------------------------------------

    def run(
        self,
        script: str,
        *,
        what: str,
        timeout: float,
        upload: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
        keep_lines: bool = True,
        cancellable: bool = True,
        stop_patience: float = STOP_PATIENCE,
    ) -> Result:
        """Run a bash script and return what it said, whatever its exit code.

        ``what`` names the step in messages. ``timeout`` is in seconds, ``inf`` for none. Standard input is
        the script's lifeline; with ``upload`` the file's bytes come first, and ``on_sent`` hears how many
        went out since it last heard. Without ``keep_lines`` what ``on_line`` has heard is not in the result.
        When a person cancels, the lifeline ends and the script has ``stop_patience`` seconds to put the host
        in order; then Cancelled is raised, with the result as ``result``. Raises HostError with ``lost`` when
        the connection breaks.
        """
        if cancellable and self._cancel.is_set():
            raise Cancelled("stopped")
        self.open()
        with self._losing(what):
            channel = self._start(script)
            conversation = _Conversation(self, channel, what, timeout, cancellable, stop_patience)
            return conversation.hold(upload, on_line, on_sent, keep_lines)

    def talk(
        self,
        script: str,
        *,
        what: str,
        on_line: Callable[[str], None] | None = None,
        cancellable: bool = True,
    ) -> Talk:
        """Start a script that answers questions until it is told to end. ``on_line`` runs in a thread."""
        if cancellable and self._cancel.is_set():
            raise Cancelled("stopped")
        self.open()
        with self._losing(what):
            talk = Talk(self, self._start(script), what, on_line)
        self._talks = [other for other in self._talks if other.alive] + [talk]
        return talk

    @contextmanager
    def _losing(self, what: str) -> Iterator[None]:
        """Make a HostError that says so of whatever a broken connection raises."""
        try:
            yield
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            raise HostError(
                self.name, f"{what}: the connection was lost ({_reason(error)})", lost=True
            ) from None

    def _start(self, script: str) -> paramiko.Channel:
        """Run a script on a channel, without waiting to hear that it was begun."""
        connection = self._connection
        if connection is None:
            raise EOFError("it was closed meanwhile")
        channel = None
        while channel is None and self._ahead:
            with suppress(paramiko.SSHException, FutureTimeout, IndexError):
                ahead = self._ahead.popleft().result(CONNECT_TIMEOUT)
                channel = None if ahead.closed else ahead
        if channel is None:
            channel = connection.transport.open_session(timeout=CONNECT_TIMEOUT)
            self.statistics.channels += 1
        if getattr(channel, "waits_for_a_script", False):
            data = _announced(script)
            channel.settimeout(CONNECT_TIMEOUT)
            channel.sendall(data)
            channel.settimeout(None)
        else:
            # `exec`, so that bash leads the session's process group and can end all of it.
            data = f"exec /bin/bash -c {shlex.quote(script)} {_NAME}".encode()
            _execute(channel, data)
        self.statistics.sent += len(data)
        return channel

    def heard(self) -> None:
        """Note that the server is alive."""
        self._last_answer = time.monotonic()

    def silent_for(self) -> float:
        """Seconds since the server last answered."""
        return time.monotonic() - self._last_answer


def _announced(script: str) -> bytes:
    """Return what a shell that waits for a script is sent: its size in bytes, the script, and its end."""
    text = script.encode()
    size = len(text) + 3
    while len(text) + len(f"\n#:{size}:") != size:
        size = len(text) + len(f"\n#:{size}:")
    return f"{size}\n".encode() + text + f"\n#:{size}:".encode()


def _execute(channel: paramiko.Channel, command: bytes | str) -> None:
    """Have a command run, without waiting to hear that it was begun."""
    message = paramiko.Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    # An answer is asked for, so that a refusal closes the channel; it is not waited for.
    message.add_boolean(True)
    message.add_string(command)
    channel._event_pending()
    channel.transport._send_user_message(message)


class _Conversation:
    """One script on one channel: feed it, listen to it, notice silence, stop it."""

    def __init__(
        self,
        remote: Remote,
        channel: paramiko.Channel,
        what: str,
        timeout: float,
        cancellable: bool,
        stop_patience: float,
    ) -> None:
        self._remote = remote
        self._channel = channel
        self._what = what
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._cancellable = cancellable
        self._patience = stop_patience
        self._stopping: str | None = None

    def hold(
        self,
        upload: Path | None,
        on_line: Callable[[str], None] | None,
        on_sent: Callable[[int], None] | None,
        keep_lines: bool,
    ) -> Result:
        """Stay with the script until it ends."""
        channel = self._channel
        out, err = _Lines(on_line, keep_lines), _Lines(None)
        feeder = None
        try:
            if upload is not None:
                feeder = threading.Thread(target=self._feed, args=(upload, on_sent), daemon=True)
                feeder.start()
            # The first sign can wait: a script that has begun has heard that there is somebody.
            next_sign = time.monotonic() + KEEPALIVE
            while not self._ended():
                now = time.monotonic()
                self._watch(now)
                if now >= next_sign and self._stopping is None and not (feeder and feeder.is_alive()):
                    self._give_sign()
                    next_sign = now + KEEPALIVE
                self._wait()
                known = len(out.lines)
                self._listen(out, err)
                if "@ listening" in out.lines[known:]:
                    # It waits for a sign before it says that it is done.
                    next_sign = now
            self._listen(out, err)
        finally:
            channel.close()
            if feeder is not None:
                feeder.join(5)
        out.end()
        err.end()
        code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        result = Result(code, tuple(out.lines), tuple(err.lines))
        if self._stopping == "cancelled":
            stopped = Cancelled("stopped")
            stopped.result = result
            raise stopped
        if self._stopping == "timeout":
            raise HostError(
                self._remote.name, f"{self._what}: did not end within {self._timeout:.0f} s and was stopped"
            )
        if code < 0:
            raise EOFError("the connection ended before the script did")
        return result

    def _ended(self) -> bool:
        channel = self._channel
        nothing_left = not channel.recv_ready() and not channel.recv_stderr_ready()
        return nothing_left and (channel.closed or (channel.status_event.is_set() and channel.eof_received))

    def _wait(self) -> None:
        """Wait for what the script says or for its end, at most a quarter of a second."""
        channel = self._channel
        if channel.eof_received and not channel.recv_ready() and not channel.recv_stderr_ready():
            # Nothing more will be said, and `select` would no longer wait.
            channel.status_event.wait(0.25)
        else:
            select.select([channel], [], [], 0.25)

    def _watch(self, now: float) -> None:
        """Raise when the host is gone; tell the script to stop when it is time or when a person says so."""
        transport = self._channel.get_transport()
        if not transport.is_active():
            raise EOFError("the connection was closed")
        if self._remote.silent_for() > SILENCE:
            raise OSError(f"no answer for {SILENCE} s")
        if self._stopping is not None:
            if now > self._deadline:
                raise OSError("it was told to stop and did not")
            return
        if self._cancellable and self._remote._cancel.is_set():
            self._stopping = "cancelled"
        elif now > self._deadline:
            self._stopping = "timeout"
        if self._stopping is not None:
            self._deadline = now + self._patience
            self._channel.shutdown_write()

    def _give_sign(self) -> None:
        try:
            self._channel.sendall(b"\n")
        except OSError:
            # A short script may have ended meanwhile, which is not a lost connection.
            if self._channel.get_transport().is_active():
                return
            raise
        self._remote.statistics.sent += 1

    def _listen(self, out: _Lines, err: _Lines) -> None:
        channel = self._channel
        while channel.recv_ready():
            self._remote.statistics.received += out.feed(channel.recv(65536))
        while channel.recv_stderr_ready():
            self._remote.statistics.received += err.feed(channel.recv_stderr(65536))

    def _feed(self, path: Path, on_sent: Callable[[int], None] | None) -> None:
        try:
            with path.open("rb") as source:
                while self._stopping is None and (block := source.read(UPLOAD_BLOCK)):
                    self._channel.sendall(block)
                    self._remote.statistics.sent += len(block)
                    # A keepalive may queue behind the data on a slow line; data that flows is a sign of life
                    # too.
                    self._remote.heard()
                    if on_sent is not None:
                        on_sent(len(block))
        except (OSError, EOFError):
            # The other side has ended; what it said about it is read by the main loop.
            return


class Talk:
    """A script that stays and answers questions: a line goes in, lines come back, the last is ``@ ready N``.

    A question is ``N WORD ARGUMENT``; an empty line is a sign of life. What comes between the answers is
    heard by ``on_line`` alone. Questions are asked one at a time.
    """

    def __init__(
        self,
        remote: Remote,
        channel: paramiko.Channel,
        what: str,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._remote = remote
        self._channel = channel
        self._what = what
        self._on_line = on_line
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        self._questions = 0
        self._answer: list[str] = []
        self._answered = -1
        self._result: Result | None = None
        self._errors = _Lines(None)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the script runs and is connected, as far as is known."""
        return (
            self._result is None
            and self._channel.get_transport().is_active()
            and self._remote.silent_for() <= SILENCE
        )

    def sign(self) -> None:
        """Give a sign of life."""
        if self.alive:
            with suppress(OSError):
                self._channel.sendall(b"\n")
                self._remote.statistics.sent += 1

    def ask(self, question: str, timeout: float, *, cancellable: bool = True) -> list[str]:
        """Ask and return the lines of the answer. ``timeout`` is in seconds.

        Raises HostError, with ``lost`` when the connection broke, and Cancelled.
        """
        with self._asking:
            self._questions += 1
            number = self._questions
            with self._changed:
                self._answer = []
            self._send(f"{number} {question}\n")
            return self._wait(lambda: self._answered >= number, timeout, cancellable)

    def first(self, timeout: float, *, cancellable: bool = True) -> list[str]:
        """Return what the script says before any question. ``timeout`` is in seconds."""
        with self._asking:
            return self._wait(lambda: self._answered >= 0, timeout, cancellable)

    def end(self, question: str, timeout: float) -> Result:
        """Ask for the end and return how it ended, whatever the exit code.

        Raises HostError, with ``lost`` when the connection broke: then nobody knows whether it has ended.
        """
        with self._asking:
            with self._changed:
                self._answer = []
            self._send(f"{self._questions + 1} {question}\n")
            self._wait(lambda: self._result is not None, timeout, False)
            if self._result.code < 0:
                self._raise_ended(self._result)
            return self._result

    def close(self) -> None:
        """End the script's standard input; harmless when it has ended."""
        with suppress(OSError, EOFError):
            self._channel.close()

    def _send(self, line: str) -> None:
        data = line.encode()
        with self._remote._losing(self._what):
            try:
                self._channel.sendall(data)
            except OSError:
                # It may have ended by itself; what it said decides.
                if not self._channel.get_transport().is_active():
                    raise
        self._remote.statistics.sent += len(data)

    def _wait(self, enough: Callable[[], bool], timeout: float, cancellable: bool) -> list[str]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not enough():
                if self._result is not None:
                    self._raise_ended(self._result)
                if cancellable and self._remote._cancel.is_set():
                    raise Cancelled("stopped")
                with self._remote._losing(self._what):
                    if self._remote.silent_for() > SILENCE:
                        raise OSError(f"no answer for {SILENCE} s")
                if time.monotonic() > deadline:
                    raise HostError(self._remote.name, f"{self._what}: did not answer within {timeout:.0f} s")
                self._changed.wait(0.25)
            return self._answer

    def _raise_ended(self, result: Result) -> None:
        if result.code < 0:
            with self._remote._losing(self._what):
                raise EOFError("the connection ended before the script did")
        raise HostError(self._remote.name, f"{self._what}: {result.complaint}")

    def _read(self) -> None:
        """Take in what the script says. Runs in a thread."""
        channel = self._channel
        lines = _Lines(self._hear, keep=False)
        while data := channel.recv(65536):
            self._remote.statistics.received += lines.feed(data)
            self._read_errors()
        lines.end()
        channel.status_event.wait(CONNECT_TIMEOUT)
        self._read_errors()
        self._errors.end()
        with self._changed:
            code = channel.exit_status if channel.exit_status_ready() else -1
            self._result = Result(code, tuple(self._answer), tuple(self._errors.lines))
            self._changed.notify_all()
        with suppress(OSError, EOFError):
            channel.close()

    def _read_errors(self) -> None:
        while self._channel.recv_stderr_ready():
            self._remote.statistics.received += self._errors.feed(self._channel.recv_stderr(65536))

    def _hear(self, line: str) -> None:
        if self._on_line is not None:
            self._on_line(line)
        with self._changed:
            if line.startswith("@ ready "):
                self._answered = int(line.split()[2])
                if self._answered < self._questions:
                    # Late: whoever asked has given up, and something else has been asked since.
                    self._answer = []
                self._changed.notify_all()
            else:
                self._answer.append(line)


class _Lines:
    """Bytes in, whole lines out."""

    def __init__(self, on_line: Callable[[str], None] | None, keep: bool = True) -> None:
        self.lines: list[str] = []
        self._on_line = on_line
        self._keep = keep
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Take bytes; return how many."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._take(line)
        return len(data)

    def end(self) -> None:
        if self._rest:
            self._take(self._rest)
        self._rest = b""

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        # A program on the host must not draw on the screen of the person who deploys.
        line = "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
        if self._keep:
            self.lines.append(line)
        if self._on_line is not None:
            self._on_line(line)


# --- host keys ---------------------------------------------------------------------------------------


class _UnknownHostKey(Exception):  # noqa: N818
    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(name)
        self.name = name
        self.key = key


class _Reject(paramiko.MissingHostKeyPolicy):
    """Like paramiko's RejectPolicy, but it keeps the key, so that the message can show its fingerprint."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise _UnknownHostKey(hostname, key)


def known_hosts_files(ssh_config: dict[str, Any]) -> list[Path]:
    """Return the files that ssh itself would look into for this host."""
    files = []
    for key, default in (
        ("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
        ("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"),
    ):
        value = ssh_config.get(key) or default
        # paramiko has taken the quotes off a single path with a space in it.
        words = [value] if Path(value).expanduser().exists() else shlex.split(value)
        files += [Path(word).expanduser() for word in words]
    return files


_connecting: dict[Any, threading.Semaphore] = {}
_connecting_guard = threading.Lock()


def _turn(connection: fabric.Connection) -> threading.Semaphore:
    """Return what limits how many connections the sshd has to greet that hears of this one first."""
    gateway = connection.gateway
    if isinstance(gateway, fabric.Connection):
        return _turn(gateway)
    door = gateway or (connection.host, connection.port)
    with _connecting_guard:
        return _connecting.setdefault(door, threading.Semaphore(CONNECTING))


def _connect(connection: fabric.Connection, cancel: threading.Event) -> None:
    """Open a connection, and the ones it goes through, with their host keys checked."""
    gateway = connection.gateway
    if isinstance(gateway, fabric.Connection):
        gateway.connect_timeout = gateway.connect_timeout or CONNECT_TIMEOUT
        gateway.connect_kwargs.setdefault("transport_factory", _Transport)
        _check_host_keys(gateway)
    _check_host_keys(connection)
    connection.connect_kwargs.setdefault("banner_timeout", CONNECT_TIMEOUT)
    connection.connect_kwargs.setdefault("auth_timeout", 2 * CONNECT_TIMEOUT)
    if connection.ssh_config.get("identitiesonly", "no").lower() == "yes":
        connection.connect_kwargs.setdefault("allow_agent", False)
        connection.connect_kwargs.setdefault("look_for_keys", False)
    began = time.monotonic()
    pause = 0.2
    while True:
        try:
            with _turn(connection):
                tried = time.monotonic()
                connection.open()
            return
        except (
            paramiko.AuthenticationException,
            paramiko.BadHostKeyException,
            paramiko.ssh_exception.NoValidConnectionsError,
            TimeoutError,
        ):
            raise
        except (OSError, EOFError, paramiko.SSHException) as error:
            transport = connection.client.get_transport()
            if transport is not None and transport.is_active() and transport.initial_kex_done:
                # Paramiko tries every kind of key on every file and raises what it met last.
                connection.client.close()
                raise paramiko.AuthenticationException("none of your keys was accepted") from error
            # sshd drops connections when many come at once, and says so at most by closing them.
            connection.client.close()
            now = time.monotonic()
            # One that takes connections and then says nothing drops nothing; it is away.
            if now - tried >= CONNECT_TIMEOUT or now - began > RETRY_FOR or cancel.is_set():
                raise
            # Not all at the same moment again.
            cancel.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            pause = min(2 * pause, 2)


class _Auth(AuthOnlyHandler):
    """Paramiko's, but it asks for the service and to be let in at once."""

    def send_auth_request(
        self, username: str, method: str, finish_message: Callable[[paramiko.Message], None] | None = None
    ) -> list[str]:
        """Ask to be let in and wait for the answer."""
        self.auth_method = method
        self.username = username
        # Before the request: the answer may be there before this thread goes on.
        self.auth_event = threading.Event()
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_REQUEST)
        message.add_string(username)
        message.add_string("ssh-connection")
        message.add_string(method)
        if finish_message is not None:
            finish_message(message)
        with self.transport.lock:
            self.transport._send_message(message)
        self.transport.asked_to_log_in()
        try:
            return self.wait_for_response(self.auth_event)
        except paramiko.SSHException:
            self.transport.ahead = []
            raise


class _Transport(ServiceRequestingTransport):
    """Paramiko's, without waiting where nothing is to be decided, and with nothing weak to agree on."""

    _preferred_ciphers = (
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
    )
    _preferred_macs = (
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    )

    def __init__(self, sock: Any, *, ahead: int = 0, **kwargs: Any) -> None:
        super().__init__(sock, **kwargs)
        self.ahead: list[Future[paramiko.Channel]] = []
        self._wanted = ahead
        # Small messages follow each other here; none may wait until the one before it is acknowledged. A
        # connection through another host has no such option.
        with suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ensure_session(self) -> None:
        """Ask for the service that logs in; what follows is only heard when it is there."""
        if not self.active or not self.initial_kex_done:
            raise paramiko.SSHException("No existing session")
        if self.auth_handler is None:
            message = paramiko.Message()
            message.add_byte(cMSG_SERVICE_REQUEST)
            message.add_string("ssh-userauth")
            self._send_message(message)
            self.auth_handler = _Auth(self)

    def asked_to_log_in(self) -> None:
        """Open channels already, once: RFC 4252 has them served if this is the request that succeeds."""
        wanted, self._wanted = self._wanted, 0
        self.ahead = self.open_ahead(wanted)

    def open_ahead(self, count: int) -> list[Future[paramiko.Channel]]:
        """Open channels without waiting for them.

        The first is for a script that follows at once; on the others something already waits for one.
        """
        return [self._open_in_thread(waits=number > 0) for number in range(count)]

    def _open_in_thread(self, waits: bool) -> Future[paramiko.Channel]:
        future: Future[paramiko.Channel] = Future()

        def work() -> None:
            try:
                channel = self.open_session(timeout=CONNECT_TIMEOUT)
                channel.waits_for_a_script = waits
                if waits:
                    _execute(channel, _WAIT_FOR_SCRIPT)
                future.set_result(channel)
            except Exception as error:
                future.set_exception(
                    error if isinstance(error, paramiko.SSHException) else paramiko.SSHException(str(error))
                )

        threading.Thread(target=work, daemon=True).start()
        return future


def _check_host_keys(connection: fabric.Connection) -> None:
    client = connection.client
    keys = client.get_host_keys()
    for path in known_hosts_files(connection.ssh_config):
        if path.is_file():
            client.load_system_host_keys(str(path))
    alias = connection.ssh_config.get("hostkeyalias")
    if alias:
        # Paramiko knows no HostKeyAlias: file the alias's keys under the name that it will ask for.
        name = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
        for kind, key in (client._system_host_keys.lookup(alias) or {}).items():
            keys.add(name, kind, key)
    client.set_missing_host_key_policy(_Reject())


def _fingerprint(key: paramiko.PKey) -> str:
    return key.fingerprint


def _reason(error: BaseException) -> str:
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        error = next(iter(error.errors.values()))
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"no answer within {CONNECT_TIMEOUT} s" if str(error) in ("", "timed out") else str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if str(error) == "No existing session":
        # Paramiko's words for a transport that has ended before there was anything to log in to.
        return "it took the connection, and ended it or said nothing"
    return str(error) or type(error).__name__


# --- many hosts --------------------------------------------------------------------------------------


def on_all(
    items: Sequence[T],
    action: Callable[[T], Any],
    cancel: threading.Event,
    *,
    parallel: int = PARALLEL,
) -> tuple[dict[T, Any], dict[T, BaseException]]:
    """Run ``action`` for every item, at most ``parallel`` at once; return results and errors, by item.

    Ctrl-C sets ``cancel``, which the running scripts obey; this returns when they have ended.
    """
    results: dict[T, Any] = {}
    errors: dict[T, BaseException] = {}
    if not items:
        return results, errors
    pool = ThreadPoolExecutor(max_workers=min(parallel, len(items)), thread_name_prefix="deploy")
    try:
        futures = {pool.submit(action, item): item for item in items}
        pending: Iterable[Any] = set(futures)
        while pending:
            try:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                cancel.set()
                continue
            for future in done:
                item = futures[future]
                error = future.exception()
                if error is None:
                    results[item] = future.result()
                else:
                    errors[item] = error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return results, errors
