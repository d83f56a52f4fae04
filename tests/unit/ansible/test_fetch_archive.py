"""The archive comes to the controller once, is verified there, and a failure is one line."""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import host_programs

PROGRAM = Path(__file__).resolve().parents[3] / "ansible/roles/kestrel/files/fetch_archive.py"
CONTENT = b"PK not really\n" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serve CONTENT at /good.zip, and at other paths what a bad server does; `asked` has each request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if self.path == "/gone.zip":
                self.send_error(404)
            elif self.path == "/busy-once.zip" and len(self.server.asked) == 1:
                self.send_error(503)
            elif self.path == "/moved.zip":
                self.send_response(302)
                self.send_header("Location", "/good.zip")
                self.end_headers()
            elif self.path == "/garbage.zip":
                self.wfile.write(b"garbage\r\n")
            elif self.path == "/torn-chunk.zip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nPK")
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                short = self.path == "/short.zip"
                self.wfile.write(CONTENT[:50] if short else CONTENT)

        def log_message(self, form, *arguments):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    made.address = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def fetch(tmp_path):
    def run(archive, *more, sha256=SHA256):
        pins = ["--sha256", sha256] if sha256 else []
        return host_programs.run(
            PROGRAM, "--pause", 0.01, "--archive", archive, "--cache", tmp_path / "cache", *pins, *more
        )

    return run


def left(tmp_path):
    folder = tmp_path / "cache"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_it_is_downloaded_once(server, fetch, tmp_path):
    first = json.loads(fetch(f"{server.address}/good.zip").stdout)
    second = json.loads(fetch(f"{server.address}/good.zip").stdout)
    assert first == second
    assert Path(first["path"]).read_bytes() == CONTENT
    assert server.asked == ["/good.zip"]
    assert left(tmp_path) == [Path(first["path"]).name]


def test_of_several_that_want_it_at_once_one_downloads_it(server, fetch, tmp_path):
    arrived = threading.Barrier(4)

    def one(_):
        arrived.wait()
        return fetch(f"{server.address}/good.zip").stdout

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(one, range(4)))
    assert len(set(said)) == 1
    assert Path(json.loads(said[0])["path"]).read_bytes() == CONTENT
    assert server.asked == ["/good.zip"]


def test_a_cached_one_that_was_damaged_is_downloaded_again(server, fetch):
    path = Path(json.loads(fetch(f"{server.address}/good.zip").stdout)["path"])
    path.write_bytes(b"damaged")
    assert json.loads(fetch(f"{server.address}/good.zip").stdout)["path"] == str(path)
    assert path.read_bytes() == CONTENT


def test_both_pins_are_those_of_git_and_sha256sum(fetch, tmp_path):
    (tmp_path / "one.zip").write_bytes(CONTENT)
    found = json.loads(fetch(tmp_path / "one.zip").stdout)
    asked = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True
    ).stdout.decode()
    assert found == {"path": str(tmp_path / "one.zip"), "sha256": SHA256, "blob": asked.strip()}


def test_a_local_file_is_used_where_it_is(fetch, tmp_path):
    (tmp_path / "one.zip").write_bytes(CONTENT)
    assert json.loads(fetch(tmp_path / "one.zip").stdout)["path"] == str(tmp_path / "one.zip")
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["--sha256", "--blob"])
def test_each_pin_alone_refuses_a_wrong_one(server, fetch, tmp_path, kind):
    wanted = "0" * (64 if kind == "--sha256" else 40)
    done = fetch(f"{server.address}/good.zip", kind, wanted, sha256="" if kind == "--blob" else SHA256)
    assert done.returncode == 1
    assert done.stderr.startswith(f"kestrel_archive {server.address}/good.zip: what came has")
    assert f"not {wanted}: it is not unpacked" in done.stderr
    assert done.stderr.count("\n") == 1
    assert left(tmp_path) == []


def test_without_a_pin_nothing_is_fetched(server, fetch):
    done = fetch(f"{server.address}/good.zip", sha256="")
    assert done.returncode == 1
    assert "it has no pin: set kestrel_archive_sha256" in done.stderr
    assert server.asked == []


def test_a_check_downloads_nothing_and_verifies_what_is_there(server, fetch, tmp_path):
    found = json.loads(fetch(f"{server.address}/good.zip", "--check").stdout)
    assert found["path"] is None
    assert server.asked == []
    (tmp_path / "wrong.zip").write_bytes(b"x")
    assert fetch(tmp_path / "wrong.zip", "--check").returncode == 1


def test_a_server_that_was_busy_is_asked_again(server, fetch):
    assert fetch(f"{server.address}/busy-once.zip").returncode == 0
    assert server.asked == ["/busy-once.zip"] * 2


def test_redirects_are_followed(server, fetch):
    assert fetch(f"{server.address}/moved.zip").returncode == 0


@pytest.mark.parametrize(
    ("path", "says", "tries"),
    [
        ("/gone.zip", "the server answered 404", 1),
        ("/short.zip", "it ended after", 3),
        ("/garbage.zip", "garbage", 3),
        ("/torn-chunk.zip", "IncompleteRead", 3),
    ],
)
def test_what_does_not_come_is_one_line(server, fetch, tmp_path, path, says, tries):
    done = fetch(f"{server.address}{path}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"kestrel_archive {server.address}{path}: ")
    assert says in done.stderr
    assert "the path of the zip on the controller" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(server.asked) == tries
    assert left(tmp_path) == []


def test_a_file_that_is_not_there_is_one_line(fetch):
    done = fetch("/no/such.zip")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "kestrel_archive /no/such.zip: there is no such file on the controller\n"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a b.zip", "http://[bad/a.zip"])
def test_what_is_no_url_is_one_line(fetch, url):
    done = fetch(url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"kestrel_archive {url}: ")
    assert done.stderr.count("\n") == 1
