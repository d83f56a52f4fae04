"""Connections to hosts: Fabric's, with what it lacks: checked host keys, noticed silence, scripts that stop.

Fabric reads the ssh client configuration and authenticates. Its defaults accept any host key, know no
keepalive and leave a command running on the host when its time is up; here an unknown key is refused, a host
that does not answer for half a minute counts as lost, and every script has a lifeline: standard input, which
it watches.
"""

from __future__ import annotations

import logging
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fabric
import paramiko

from .description import Host
from .errors import Cancelled, HostError, Refused

CONNECT_TIMEOUT = 10
"""Seconds for a connection to come up."""
RETRY_FOR = 3
"""Seconds within which a dropped connection is tried again."""
SILENCE = 30
"""Seconds without an answer to a keepalive, after which a host counts as lost."""
KEEPALIVE = 10
"""Seconds between keepalives, and between signs of life to a running script (which waits for 60)."""
PARALLEL = 8
"""How many hosts are worked on at once: sshd's MaxStartups begins to drop connections at ten."""
STOP_PATIENCE = 30
"""Seconds that a script which was told to stop gets to put its host in order."""

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


class Remote:
    """One connection to one host, opened at first use. Only one thread may use it at a time."""

    def __init__(self, host: Host, cancel: threading.Event) -> None:
        self.host = host
        self.name = host.name
        self._cancel = cancel
        self._connection: fabric.Connection | None = None
        self._last_answer = 0.0
        self._closed = threading.Event()

    # --- opening --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect. Raises Refused, naming the host and the fix, when that cannot be done."""
        if self._connection is not None:
            return
        try:
            connection = self._new_connection()
            _connect(connection)
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
        self._last_answer = time.monotonic()
        self._closed.clear()
        threading.Thread(target=self._keepalive, args=(self._closed,), daemon=True).start()

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
        )

    def _known_hosts_names(self, connection: fabric.Connection) -> str:
        return " or ".join(str(path) for path in known_hosts_files(connection.ssh_config)[:1])

    def _ssh_hint(self) -> str:
        config = f"-F {self.host.ssh_config} " if self.host.ssh_config else ""
        return f"ssh {config}{self.host.user}@{self.host.address}"

    def close(self) -> None:
        """Close the connection; harmless when there is none."""
        self._closed.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client.close()

    def _keepalive(self, closed: threading.Event) -> None:
        """Ask the server for an answer now and then: only that proves it is there. Runs in a thread."""
        while not closed.wait(KEEPALIVE):
            connection = self._connection
            transport = connection.transport if connection else None
            if transport is None or not transport.is_active():
                return
            try:
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
        cancellable: bool = True,
        stop_patience: float = STOP_PATIENCE,
    ) -> Result:
        """Run a bash script and return what it said, whatever its exit code.

        ``what`` names the step in messages. ``timeout`` is in seconds. With ``upload`` the file's bytes are
        the script's standard input, otherwise standard input is its lifeline. When a person cancels, the
        lifeline ends and the script has ``stop_patience`` seconds to put the host in order; then Cancelled is
        raised, with the result as ``result``. Raises HostError with ``lost`` when the connection breaks.
        """
        if cancellable and self._cancel.is_set():
            raise Cancelled("stopped")
        self.open()
        try:
            transport = self._connection.transport
            channel = transport.open_session(timeout=CONNECT_TIMEOUT)
            # `exec`, so that bash leads the session's process group and can end all of it.
            channel.exec_command("exec /bin/bash -c " + shlex.quote(script) + " kestrel-stack-deploy")
            result = _Conversation(
                self, channel, what, timeout, upload, on_line, cancellable, stop_patience
            ).hold()
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            raise HostError(
                self.name, f"{what}: the connection was lost ({_reason(error)})", lost=True
            ) from None
        return result

    def heard(self) -> None:
        """Note that the server is alive."""
        self._last_answer = time.monotonic()

    def silent_for(self) -> float:
        """Seconds since the server last answered."""
        return time.monotonic() - self._last_answer


class _Conversation:
    """One script on one channel: feed it, listen to it, notice silence, stop it."""

    def __init__(
        self,
        remote: Remote,
        channel: paramiko.Channel,
        what: str,
        timeout: float,
        upload: Path | None,
        on_line: Callable[[str], None] | None,
        cancellable: bool,
        stop_patience: float,
    ) -> None:
        self._remote = remote
        self._channel = channel
        self._what = what
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._upload = upload
        self._on_line = on_line
        self._cancellable = cancellable
        self._patience = stop_patience
        self._out = _Lines(self._hear)
        self._err = _Lines(None)
        self._stopping: str | None = None

    def _hear(self, line: str) -> None:
        if self._on_line is not None:
            self._on_line(line)

    def hold(self) -> Result:
        channel = self._channel
        feeder = None
        try:
            if self._upload is not None:
                feeder = threading.Thread(target=self._feed, args=(self._upload,), daemon=True)
                feeder.start()
            next_sign = 0.0
            while not self._ended():
                now = time.monotonic()
                self._watch(now)
                if feeder is None and self._stopping is None and now >= next_sign:
                    self._give_sign()
                    next_sign = now + KEEPALIVE
                select.select([channel], [], [], 0.25)
                self._listen()
            self._listen()
        finally:
            channel.close()
            if feeder is not None:
                feeder.join(5)
        self._out.end()
        self._err.end()
        code = channel.recv_exit_status() if channel.exit_status_ready() else -1
        result = Result(code, tuple(self._out.lines), tuple(self._err.lines))
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
        return nothing_left and (channel.closed or (channel.exit_status_ready() and channel.eof_received))

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

    def _listen(self) -> None:
        channel = self._channel
        while channel.recv_ready():
            self._out.feed(channel.recv(65536))
        while channel.recv_stderr_ready():
            self._err.feed(channel.recv_stderr(65536))

    def _feed(self, path: Path) -> None:
        try:
            with path.open("rb") as source:
                while self._stopping is None and (block := source.read(65536)):
                    self._channel.sendall(block)
                    # A keepalive may queue behind the data on a slow line; data that flows is a sign of life
                    # too.
                    self._remote.heard()
            self._channel.shutdown_write()
        except (OSError, EOFError):
            # The other side has ended; what it said about it is read by the main loop.
            return


class _Lines:
    """Bytes in, whole lines out."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.lines: list[str] = []
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._take(line)

    def end(self) -> None:
        if self._rest:
            self._take(self._rest)
        self._rest = b""

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        # A program on the host must not draw on the screen of the person who deploys.
        line = "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
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


def _connect(connection: fabric.Connection) -> None:
    """Open a connection, and the ones it goes through, with their host keys checked."""
    gateway = connection.gateway
    if isinstance(gateway, fabric.Connection):
        gateway.connect_timeout = gateway.connect_timeout or CONNECT_TIMEOUT
        _check_host_keys(gateway)
    _check_host_keys(connection)
    connection.connect_kwargs.setdefault("banner_timeout", CONNECT_TIMEOUT)
    connection.connect_kwargs.setdefault("auth_timeout", 2 * CONNECT_TIMEOUT)
    if connection.ssh_config.get("identitiesonly", "no").lower() == "yes":
        connection.connect_kwargs.setdefault("allow_agent", False)
        connection.connect_kwargs.setdefault("look_for_keys", False)
    began = time.monotonic()
    while True:
        try:
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
            # sshd drops connections when many come at once.
            connection.client.close()
            if time.monotonic() - began > RETRY_FOR:
                raise
            time.sleep(0.5)


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
