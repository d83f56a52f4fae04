"""kestrel-release: what it runs, what it says when something is missing, and how it stops a server.

The JDKs are shell scripts that tell how they were called; molecule kestrel-release runs real ones.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest

from support import host_programs

PROGRAM = host_programs.LIBRARY / "kestrel-release"
program = host_programs.load(PROGRAM)
SAY = 'for word in "$@"; do echo "$word"; done; echo "options=$JDK_JAVA_OPTIONS"'


@pytest.fixture
def host(tmp_path):
    """A release, a configuration, a JDK and release.json below a folder; `java` is the shell text it runs."""

    class Host:
        release = tmp_path / "2.4.1"
        config = tmp_path / "kestrel.scala"
        settings = tmp_path / "release.json"

        def java(self, text, version="17.0.15"):
            home = tmp_path / f"jdk-{version}"
            if not home.exists():
                host_programs.fake_jdk(home, version)
            (home / "bin/java").write_text(f"#!/bin/sh\n{text}\n")
            self.write(java_home=str(home))

        def write(self, **changes):
            found = json.loads(self.settings.read_text()) if self.settings.exists() else {}
            self.settings.write_text(json.dumps({**found, **changes}))

        def run(self, command, *arguments, **options):
            return host_programs.run(PROGRAM, "--settings", self.settings, command, *arguments, **options)

        def serve(self, **options):
            return self.run("serve", self.config, self.release, **options)

        def validate(self):
            return self.run("validate", self.config, self.release)

    made = Host()
    made.release.mkdir()
    (made.release / "kestrel_2.9.2-2.4.1.jar").write_text("")
    made.config.write_text("new KestrelConfig {}\n")
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher/KestrelLauncher.class").write_text("")
    (tmp_path / "stubs.jar").write_text("")
    made.write(
        stubs=str(tmp_path / "stubs.jar"),
        launcher=str(tmp_path / "launcher"),
        log_folder="/var/log/kestrel",
        heap_mb=300,
        admin_port=2223,
    )
    made.java(SAY)
    return made


def words_of(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_serve_becomes_java_with_stubs_launcher_jar_and_configuration(host, tmp_path):
    assert words_of(host.serve(env={**os.environ, "JDK_JAVA_OPTIONS": "-Xmx1g"})) == [
        "-Xmx300m",
        "-XX:+UseG1GC",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:ErrorFile=/var/log/kestrel/java_error.log",
        "-Xlog:gc*:file=/var/log/kestrel/gc.log:time,uptime,level,tags:filecount=4,filesize=8M",
        "-Dkestrel.admin.port=2223",
        "-Dfile.encoding=UTF-8",
        f"-Dsun.boot.class.path={tmp_path}/stubs.jar",
        "-cp",
        f"{tmp_path}/launcher",
        "KestrelLauncher",
        f"{host.release}/kestrel_2.9.2-2.4.1.jar",
        "-f",
        str(host.config),
        # What else could add flags stays out.
        "options=",
    ]


def test_serve_leaves_no_other_process(host):
    host.java('echo "pid=$$"; read -r answer')
    process = subprocess.Popen(
        [sys.executable, "-I", PROGRAM, "--settings", host.settings, "serve", host.config, host.release],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == f"pid={process.pid}\n"
    process.communicate("\n", timeout=60)


@pytest.mark.parametrize(
    ("version", "given"), [("11.0.2", True), ("17.0.1", True), ("21.0.1", False), ("25", False)]
)
def test_an_encoding_is_given_to_the_javas_that_take_it_from_the_locale(host, version, given):
    host.java(SAY, version)
    assert ("-Dfile.encoding=UTF-8" in words_of(host.serve())) is given


def test_the_jar_is_named_by_its_physical_path(host, tmp_path):
    (tmp_path / "current").symlink_to(host.release)
    words = words_of(host.run("serve", host.config, tmp_path / "current"))
    assert f"{host.release}/kestrel_2.9.2-2.4.1.jar" in words


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (lambda host: host.settings.unlink(), "release.json is not there: run the play again"),
        (lambda host: host.settings.write_text("{"), "is not JSON"),
        (lambda host: host.settings.write_text("[]"), "is not a JSON object"),
        (lambda host: host.write(heap_mb="300"), "heap_mb is missing or wrong"),
        (lambda host: host.write(heap_mb=True), "heap_mb is missing or wrong"),
        (lambda host: host.write(heap_mb=0), "heap_mb 0 is no heap"),
        (lambda host: host.write(java_home="/nowhere"), "/nowhere/bin/java is not there or not executable"),
        (lambda host: host.write(stubs="/nowhere.jar"), "/nowhere.jar is not there or not readable"),
        (lambda host: host.write(launcher="/nowhere"), "/nowhere/KestrelLauncher.class is not there"),
        (lambda host: next(host.release.iterdir()).unlink(), "has 0 files kestrel_*.jar, not one"),
        (lambda host: (host.release / "kestrel_2.9.2-2.3.4.jar").write_text(""), "has 2 files kestrel_*.jar"),
        (
            lambda host: next(host.release.iterdir()).unlink() or host.release.rmdir(),
            "is no installed release",
        ),
        (lambda host: host.config.unlink(), "kestrel.scala"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "validate"])
def test_what_is_missing_is_one_clear_line(host, breaks, says, command):
    breaks(host)
    done = getattr(host, command)()
    assert (done.returncode, done.stdout) == (78, "")
    assert says in done.stderr
    assert done.stderr.startswith("kestrel-release: ")
    assert done.stderr.count("\n") == 1


def test_check_says_whether_all_is_there(host, tmp_path):
    assert host.run("check").returncode == 0
    assert host.run("check", host.settings).returncode == 0
    (tmp_path / "stubs.jar").unlink()
    assert host.run("check").returncode == 78


@pytest.fixture
def validate(host, monkeypatch, capfd):
    """Call `validate` in this process, as a user who has nothing to drop."""
    monkeypatch.setattr(program.os, "geteuid", lambda: 1000)

    def run():
        code = program.main(
            ["--settings", str(host.settings), "validate", str(host.config), str(host.release)]
        )
        return code, *capfd.readouterr()

    return run


def test_validate_lets_kestrel_compile_a_copy_and_passes_on_its_words(host, validate):
    host.java('while [ "$1" != -f ]; do shift; done; cat "$2" >&2; echo "Config file $2 compiles. :)"')
    code, output, errors = validate()
    assert (code, errors) == (0, "")
    assert output == f"new KestrelConfig {{}}\nConfig file {host.config} compiles. :)\n"


def test_validate_keeps_the_order_that_kestrel_needs(host, validate):
    host.java('echo "$@"; echo "Config file x compiles. :)"')
    _, output, _ = validate()
    assert f"KestrelLauncher {host.release}/kestrel_2.9.2-2.4.1.jar --no-config-cache -f " in output
    assert output.splitlines()[0].endswith(" --validate")


def test_validate_says_what_kestrel_says_of_a_broken_one(host, validate):
    host.java('while [ "$1" != -f ]; do shift; done; echo "Error in config file $2: line 3: error"; exit 1')
    assert validate() == (1, "", f"Error in config file {host.config}: line 3: error\n")


def test_an_older_release_that_does_not_know_the_option_is_asked_without_it(host, validate):
    host.java(
        'case "$*" in *--no-config-cache*)\n'
        '    echo "Unknown command-line option: --no-config-cache"; exit 0;;\n'
        "esac\n"
        'echo "Config file x compiles. :)"'
    )
    code, output, _ = validate()
    assert (code, output) == (0, "Config file x compiles. :)\n")


@pytest.mark.parametrize(
    ("java", "code", "says"),
    [
        ("echo usage; exit 0", 78, "did not say that it compiles; it said: usage"),
        ("exit 0", 78, "it said: nothing"),
        ("exit 134", 78, "Kestrel's check ended with 134 and said nothing"),
    ],
)
def test_an_end_that_is_no_answer_is_no_success(host, validate, java, code, says):
    host.java(java)
    found, output, errors = validate()
    assert (found, output) == (code, "")
    assert says in errors


SERVER = """
    import http.server, os, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok\\n")
            self.wfile.flush()
            if self.path == "/shutdown.txt" and sys.argv[1] == "obeys":
                os._exit(0)
        def log_message(self, *arguments):
            pass
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@pytest.fixture
def start():
    processes = []

    def run(how):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), how], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, int(process.stdout.readline())

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_stop_asks_the_admin_port_and_waits_for_the_end(host, start):
    process, port = start("obeys")
    host.write(admin_port=port)
    done = host.run("stop", process.pid, 20)
    assert (done.returncode, done.stderr) == (0, "")
    # It has ended by itself, and its code says that no signal did it.
    assert process.wait(timeout=60) == 0


def test_stop_gives_up_in_time_and_says_so(host, start):
    process, port = start("ignores")
    host.write(admin_port=port)
    done = host.run("stop", process.pid, 0.3)
    assert done.returncode == 0
    assert done.stderr == "kestrel-release: still running 0.3 s after the orderly stop; a signal follows\n"
    assert process.poll() is None


def test_stop_says_when_the_admin_port_does_not_answer(host, start):
    process, _ = start("ignores")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host.write(admin_port=unused.getsockname()[1])
        done = host.run("stop", process.pid, 20)
    assert done.returncode == 0
    assert "no orderly stop: the admin port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_stop_of_a_process_that_is_gone_is_done(host, start):
    process, _ = start("ignores")
    process.kill()
    process.wait()
    host.settings.unlink()
    assert host.run("stop", process.pid, 20).returncode == 0
    # systemd has no process to name when it has ended by itself.
    assert host.run("stop", "", 20).returncode == 0


def test_the_port_is_the_one_that_the_process_was_started_with(host):
    words = ["java", "-Dkestrel.admin.port=4321", "KestrelLauncher"]
    assert program.admin_port(words, host.settings) == 4321
    assert program.admin_port(["java"], host.settings) == 2223
