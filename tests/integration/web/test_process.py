"""The process kestrel-web: how it starts, what it refuses in one line, and how it ends."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection

import pytest
from argon2 import PasswordHasher

from kestrel_stack import __version__
from kestrel_stack.web import service
from support.broker import DEADLINE_S, BrokerProcess, wait_until
from support.kestrel_web import KestrelWeb, clean_environment, servers

COMMAND = [sys.executable, "-m", "kestrel_stack.web"]
NOBODY = "127.0.0.1:1"
"""A server that is not there."""


def run(
    *flags: str, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *flags],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=clean_environment(environment),
    )


def refused(made: subprocess.CompletedProcess) -> str:
    """The one line that it said before it ended."""
    assert made.stdout == ""
    assert made.stderr.count("\n") == 1 and made.stderr.startswith("kestrel-web: "), made.stderr
    return made.stderr


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A kestrel-web with a broker, for tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("web")
    with (
        BrokerProcess(folder) as broker,
        KestrelWeb(folder / "web", **servers(broker), prefix="/q") as started,
    ):
        started.broker = broker
        yield started


# Starting


def test_servers_are_all_it_needs(tmp_path):
    with BrokerProcess(tmp_path) as broker:
        process = subprocess.Popen(
            [*COMMAND, "--servers", broker.address, "--port", "0", "--admin-port", str(broker.admin_port)],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment({"HOME": str(tmp_path), "XDG_STATE_HOME": ""}),
        )
        try:
            line = process.stderr.readline()
            assert line.startswith("kestrel-web: INFO listening at http://127.0.0.1:")
            port = int(line.rpartition(":")[2].strip("/\n"))
            connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.request("GET", "/queues")
            assert connection.getresponse().status == 200
            connection.close()
            state = tmp_path / ".local/state/kestrel-web"
            assert state.stat().st_mode & 0o777 == 0o700
            assert {file.stat().st_mode & 0o077 for file in state.iterdir()} == {0}
        finally:
            process.terminate()
            _, rest = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert rest.endswith("kestrel-web: INFO stopped\n")


def test_it_is_served_below_its_prefix_and_nowhere_else(web):
    assert web.url.endswith("/q")
    assert web.get("/q/queues").status == 200
    assert web.get("/queues").status == 404


def test_an_answer_does_not_tell_what_program_gives_it(web):
    assert web.get("/q/healthz").getheader("Server") is None


def test_it_listens_at_an_address_of_version_6(tmp_path):
    with KestrelWeb(tmp_path, servers=[NOBODY], listen="::1") as web:
        assert web.url.startswith("http://[::1]:")


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(DEADLINE_S)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with KestrelWeb(tmp_path / "web", servers=[NOBODY], environment=environment) as web:
            assert told.recv(100) == b"READY=1"
            assert web.terminate() == 0
            assert told.recv(100) == b"STOPPING=1"


# Refusals


def test_a_port_that_is_taken_is_named(web, tmp_path):
    made = run("--servers", NOBODY, "--port", str(web.port), "--state", str(tmp_path))
    assert made.returncode == 1
    assert f"Port {web.port} of 127.0.0.1 is taken" in refused(made)
    assert not list(tmp_path.iterdir()), "nothing half done"


def test_two_at_one_state_folder_are_refused(web):
    made = run("--servers", NOBODY, "--port", "0", "--state", str(web.state))
    assert made.returncode == 1
    assert str(web.state) in refused(made)


def test_a_state_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()
    made = run("--servers", NOBODY, "--port", "0", "--state", str(tmp_path / "file" / "state"))
    assert made.returncode == 1
    assert str(tmp_path / "file") in refused(made)


def test_an_address_of_another_machine_is_refused(tmp_path):
    config = tmp_path / "c.json"
    proxy = {"header": "X-User", "addresses": ["127.0.0.1"]}
    config.write_text(json.dumps({"servers": [NOBODY], "proxy": proxy, "state": str(tmp_path / "s")}))
    made = run("--config", str(config), "--listen", "192.0.2.1", "--port", "0")
    assert made.returncode == 1
    assert "192.0.2.1 is no address of this machine" in refused(made)


@pytest.mark.parametrize(
    "flags",
    [
        ("--servers", NOBODY, "--listen", "0.0.0.0"),
        ("--servers", NOBODY, "--prot", "1"),
        ("--config", "/nowhere.json"),
        (),
        ("hash-password", "secret"),
    ],
)
def test_a_wrong_configuration_ends_it_with_78_and_one_line(flags):
    made = run(*flags)
    assert made.returncode == 78
    refused(made)


# What else the command does


def test_a_configuration_is_checked_without_anything_being_touched(web, tmp_path):
    file = tmp_path / "kestrel-web.json"
    content = {"servers": [NOBODY], "port": web.port, "state": str(tmp_path / "state")}
    file.write_text(json.dumps(content))
    made = run("--check", "--config", str(file))
    assert (made.returncode, made.stdout) == (0, f"kestrel-web: {file} is in order\n")
    assert not (tmp_path / "state").exists()
    file.write_text(json.dumps({**content, "prefix": "x"}))
    made = run("--config", str(file), "--check")
    assert made.returncode == 78 and '"prefix"' in refused(made)


def test_it_says_its_version():
    assert run("--version").stdout == f"kestrel-web {__version__}\n"


def test_a_password_from_stdin_is_hashed():
    made = run("hash-password", stdin="correct horse battery\n")
    assert made.returncode == 0
    assert PasswordHasher().verify(made.stdout.strip(), "correct horse battery")


def test_a_password_that_is_too_short_gets_no_hash():
    assert run("hash-password", stdin="abc\n").returncode == 1


def test_a_password_that_is_no_text_is_not_shown_in_what_is_wrong_with_it():
    made = subprocess.run(
        [*COMMAND, "hash-password"],
        env={**clean_environment(), "PYTHONIOENCODING": "utf-8:strict"},
        input=b"correct horse \xff\n",
        capture_output=True,
        timeout=30,
    )
    assert (made.returncode, made.stdout) == (1, b"")
    assert made.stderr.count(b"\n") == 1 and b"not text" in made.stderr and b"xff" not in made.stderr


@pytest.mark.parametrize(
    ("second", "status"), [("correct horse battery\n", 0), ("another\n", 1), ("\x04", 1)]
)
def test_on_a_terminal_a_password_is_asked_for_twice_and_not_shown(second, status):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(COMMAND[0], [*COMMAND, "hash-password"], clean_environment())
    shown = b""
    answers = [b"correct horse battery\n", second.encode()]
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
            if answers and shown.count(b": ") == 3 - len(answers):
                os.write(terminal, answers.pop(0))
    except OSError:
        pass  # so a terminal ends
    finally:
        os.close(terminal)
        _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == status
    assert b"correct" not in shown and b"another" not in shown and b"Traceback" not in shown
    assert (b"$argon2id$" in shown) == (status == 0)


# Ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_while_a_server_hangs_and_a_request_is_under_way(tmp_path, number):
    assert service.REQUESTS_END_S + service.PARTS_END_S < 5
    with socket.create_server(("127.0.0.1", 0)) as hole:
        address = f"127.0.0.1:{hole.getsockname()[1]}"
        config = {"servers": [address], "admin_ports": {address: None}, "timeout_s": 60}
        with KestrelWeb(tmp_path, **config) as web, socket.create_connection(("127.0.0.1", web.port)) as half:
            half.sendall(b"GET /queues HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            web.process.send_signal(number)
            assert web.process.wait(DEADLINE_S) == 0
            assert web.log.endswith("kestrel-web: INFO stopped\n") and "Traceback" not in web.log


def test_it_starts_again_where_it_was_after_a_kill(tmp_path):
    with KestrelWeb(tmp_path, servers=[NOBODY]) as web:
        web.kill()
        web.start()
        assert web.get("/healthz").status == 200


def test_what_servers_say_is_logged_when_it_changes_only(tmp_path):
    with BrokerProcess(tmp_path) as broker, KestrelWeb(tmp_path / "web", **servers(broker)) as web:
        wait_until(lambda: f"{broker.address} answers (admin)" in web.log, "the first answer")
        broker.kill()
        wait_until(lambda: f"{broker.address} does not answer" in web.log, "the end to be seen")
        broker.start()
        wait_until(lambda: web.log.count(" answers (admin)") == 2, "the broker to be back")
        assert web.log.count("does not answer") == 1
