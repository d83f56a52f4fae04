"""An SSH server on loopback that runs what it is asked to on this machine, and can fall silent."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import suppress

import paramiko

from kestrel_stack.deploy import ssh
from kestrel_stack.deploy.description import Host


class Server(paramiko.ServerInterface):
    """Lets everybody in who has the key, and runs what it is asked to, as sshd does without a terminal."""

    def __init__(self, allowed, folder):
        self.allowed = allowed
        self.folder = folder

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key == self.allowed else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self.serve, args=(channel, command), daemon=True).start()
        return True

    def serve(self, channel, command):
        process = subprocess.Popen(
            ["/bin/sh", "-c", command.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=self.folder,
        )

        def inward():
            with suppress(OSError), process.stdin:
                while data := channel.recv(65536):
                    process.stdin.write(data)
                    process.stdin.flush()

        def outward(stream, send):
            with suppress(OSError), stream:
                while data := stream.read1(65536):
                    send(data)

        threading.Thread(target=inward, daemon=True).start()
        readers = [
            threading.Thread(target=outward, args=(process.stdout, channel.sendall), daemon=True),
            threading.Thread(target=outward, args=(process.stderr, channel.sendall_stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        # Whoever asked may be gone.
        with suppress(OSError, EOFError):
            channel.send_exit_status(code)
            channel.shutdown_write()
            channel.close()


ROOT = "/proc/self/cwd/srv"
"""Names the folder of whichever machine is asked, because scripts run in the machine's own."""


class Machine:
    """A host: the server above behind a port that can fall silent. ``greets``: how many callers at once."""

    def __init__(self, folder, greets=100):
        self.folder = folder
        self.greets = greets
        self.most_greeted = 0
        self.dropped = 0
        self.key = paramiko.ECDSAKey.generate()
        self.user_key = paramiko.ECDSAKey.generate()
        self.user_key.write_private_key_file(str(folder / "id"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.transports = []
        self.lines = []
        self.closed = threading.Event()
        self.silent = threading.Event()
        self.failure = None
        self.accepting = threading.Thread(target=self.serve, daemon=True)
        self.accepting.start()

    def serve(self):
        try:
            self.accept()
        except BaseException as error:
            self.failure = error

    def accept(self):
        while True:
            try:
                outside, _ = self.listener.accept()
            except OSError:
                if self.closed.is_set():
                    return
                # Such as too many open files: whoever serves goes on, as sshd does.
                self.closed.wait(0.1)
                continue
            greeting = sum(one.is_active() and not one.is_authenticated() for one in self.transports)
            self.most_greeted = max(self.most_greeted, greeting + 1)
            if greeting >= self.greets:
                # As sshd does when MaxStartups is reached.
                self.dropped += 1
                outside.close()
                continue
            self.lines.append(outside)
            inside, ours = socket.socketpair()
            done = threading.Lock()
            for one, other in ((outside, ours), (ours, outside)):
                threading.Thread(target=self.carry, args=(one, other, done), daemon=True).start()
            transport = paramiko.Transport(inside)
            transport.add_server_key(self.key)
            self.transports.append(transport)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(threading.Event(), server=Server(self.user_key, self.folder))

    def carry(self, one, other, done):
        with suppress(OSError):
            while data := one.recv(65536):
                if self.silent.is_set():
                    self.closed.wait()
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # Closed by the second of the two threads: what the first still used would by then be somebody else's.
        if done.acquire(blocking=False):
            return
        one.close()
        other.close()

    def cut(self):
        """Break the line, as a machine that loses its network card would."""
        for outside in self.lines:
            with suppress(OSError):
                outside.shutdown(socket.SHUT_RDWR)

    def config(self, *extra, known=None):
        path = self.folder / "config"
        (self.folder / "known_hosts").write_text("".join(f"{line}\n" for line in known or []))
        lines = [
            f"IdentityFile {self.folder / 'id'}",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self.folder / 'known_hosts'}",
            "GlobalKnownHostsFile /dev/null",
            *extra,
        ]
        path.write_text("Host *\n" + "".join(f"  {line}\n" for line in lines))
        return path

    def known(self, name=None, key=None):
        key = key or self.key
        return f"{name or f'[127.0.0.1]:{self.port}'} {key.get_name()} {key.get_base64()}"

    def host(self, name="worker1", *extra, port=None):
        """The machine as the inventory would describe it, with its folder made ready."""
        root = self.folder / "srv"
        for below in ("releases", "venvs", "shared"):
            (root / below).mkdir(parents=True, exist_ok=True)
        if not (root / "srv").is_symlink():
            (root / "srv").symlink_to(".")
        port = port or self.port
        known = self.known(f"[127.0.0.1]:{port}")
        return Host(name, "127.0.0.1", port, "deploy", self.config(*extra, known=[known]), ())

    def remote(self, *extra, known=None, cancel=None):
        known = [self.known()] if known is None else known
        host = Host("worker1", "127.0.0.1", self.port, "deploy", self.config(*extra, known=known), ())
        return ssh.Remote(host, cancel or threading.Event())

    def close(self):
        self.closed.set()
        # Closing alone would not wake who waits in accept().
        self.listener.shutdown(socket.SHUT_RDWR)
        self.accepting.join()
        self.listener.close()
        self.cut()
        for transport in self.transports:
            transport.close()
        if self.failure is not None:
            # Whoever called after that was taken by the kernel, and heard nothing.
            raise AssertionError("it took no more callers") from self.failure
