"""The role run again: what it refuses leaves the host as it was; flavour and release change, the items stay.

After test_release.py, whose state it changes.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading

import pytest

REAL = bool(os.environ.get("KESTREL_ARCHIVE"))
# Everything that the role would touch, and the process that runs.
STATE = (
    "find /opt/kestrel /etc/kestrel /usr/local/lib/kestrel-stack /etc/systemd/system/kestrel.service"
    " -printf '%p %T@ %s %l\\n' | sort; systemctl show kestrel --property MainPID,InvocationID;"
    " dpkg-query --show | sha256sum"
)
# Set by bin/test --long.
LONG = bool(os.environ.get("KESTREL_STACK_LONG"))
only_stand_in = pytest.mark.skipif(REAL, reason="has no second archive of the real one")


def message(done):
    """Return what Ansible printed of a refusal, as one line."""
    found = re.findall(r"msg: (.*?)(?:\n\n|\nPLAY RECAP|\Z)", done.stdout, re.DOTALL)
    return " ".join(" ".join(found).replace("|-", "").split()) or done.stdout[-2000:]


@pytest.fixture
def standins(pytestconfig):
    return pytestconfig.rootpath / ".build/standin"


def sha256(path):
    return path.with_name(path.name + ".sha256").read_text().strip()


@pytest.fixture
def served(standins):
    """Serve the stand-ins by http; the list has each request's path."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *arguments):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(standins))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@only_stand_in
def test_an_archive_that_is_not_the_pinned_one_is_refused_and_the_host_is_as_it_was(root, play, standins):
    before = root("queue1", STATE)
    # The real 2.3.4 is pinned; the stand-in of it is not that.
    done = play(
        kestrel_release="2.3.4",
        kestrel_allow_untested_release=True,
        kestrel_archive=str(standins / "kestrel-2.3.4.zip"),
        kestrel_archive_sha256="",
    )
    assert done.returncode != 0
    assert "git blob id is" in message(done)
    assert "not 50841aeece29ffa864f181bf049d1d97508d9a31" in message(done)
    assert root("queue1", STATE) == before


def test_a_java_that_is_not_there_is_refused_and_the_host_is_as_it_was(root, play):
    before = root("queue1", STATE)
    done = play(kestrel_java_home="/opt/no-such-java", kestrel_java_version="")
    assert done.returncode != 0
    assert "queue1: kestrel_java_home: /opt/no-such-java has no bin/java" in message(done)
    assert root("queue1", STATE) == before


def test_release_to_embedded_keeps_what_is_queued(root, play, put, take, talk):
    put("switch_probe", "one", "two")
    done = play(kestrel_flavor="embedded")
    assert done.returncode == 0, done.stdout[-3000:]
    assert root("queue1", "readlink /opt/kestrel/current").startswith("releases/embedded-")
    assert talk("get switch_probe/peek\r\n", "END\r\n").split("\r\n")[1] == "one"
    assert "kestrel-embedded.pyz" in root("queue1", "systemctl show kestrel --property ExecStart")
    # Nothing that would signal it as a release.
    assert root("queue1", "ls /etc/logrotate.d").split().count("kestrel") == 0


@only_stand_in
def test_embedded_to_an_older_release_by_http_keeps_what_is_queued(root, play, take, talk, standins, served):
    address, asked = served
    older = {
        "kestrel_release": "2.3.4",
        "kestrel_allow_untested_release": True,
        "kestrel_archive": f"{address}/kestrel-2.3.4.zip",
        "kestrel_archive_sha256": sha256(standins / "kestrel-2.3.4.zip"),
    }
    for cached in (standins.parent / "archives").glob(f"kestrel-{older['kestrel_archive_sha256'][:16]}*"):
        cached.unlink()
    done = play(**older)
    assert done.returncode == 0, done.stdout[-3000:]
    assert asked == ["/kestrel-2.3.4.zip"]
    assert root("queue1", "readlink /opt/kestrel/current").strip() == "releases/2.3.4"
    assert talk("version\r\n") == "VERSION 2.3.4\r\n"
    assert take("switch_probe") == ["one", "two"]


@only_stand_in
@pytest.mark.skipif(not LONG, reason="runs under bin/test --long")
def test_release_to_a_newer_release_keeps_what_is_queued_and_the_archive_is_not_fetched(
    root, play, put, take, talk
):
    put("upgrade_probe", "one", "two")
    talk("get upgrade_probe/open\r\n", "END\r\n")
    # It is on the host already, so nobody needs the archive.
    done = play(kestrel_archive="http://192.0.2.1/kestrel.zip")
    assert done.returncode == 0, done.stdout[-3000:]
    assert root("queue1", "readlink /opt/kestrel/current").strip() == "releases/2.4.1"
    assert talk("version\r\n") == "VERSION 2.4.1\r\n"
    assert take("upgrade_probe") == ["one", "two"]
