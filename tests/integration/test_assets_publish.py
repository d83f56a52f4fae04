"""Static files go to a CDN's origin: a real S3 server, a real rsync, a real sshd where there is one."""

import getpass
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import botocore.session
import pytest
from rich.console import Console

from kestrel_stack.deploy.assets import compile_assets, parse_assets, publish, require_tools, s3
from kestrel_stack.deploy.assets import publish as publishing
from kestrel_stack.deploy.build.tree import File
from kestrel_stack.deploy.errors import Cancelled, Failed, Refused
from kestrel_stack.deploy.report import Report
from support.ports import nobody, reserve

TREE = {
    "public/css/shop.css": File(b"a { background: url(../img/i.png) }\n" * 50),
    "public/css/plain.css": File(b"b { color: red }\n" * 50),
    "public/img/i.png": File(b"\x89PNG\r\n"),
    "public/font/f.woff2": File(b"wOF2"),
    "public/LICENSE": File(b"free"),
}
SECRET = "the-very-secret-key"
DEADLINE = 60.0
"""Seconds for what should take a moment; only a failing test waits so long."""


def spec_of(cdn, url="https://cdn.example.org/"):
    return parse_assets({"folders": ["public"], "url": url, "cdn": cdn}, "deploy.yml")


class Publisher:
    """Publishes a tree and keeps what was printed."""

    def __init__(self, cdn):
        self.spec = spec_of(cdn)
        self.printed = io.StringIO()

    def __call__(self, tree=TREE, cancel=None):
        self.files = compile_assets(tree, self.spec)
        out = Report(Console(file=self.printed, width=400))
        return publish(self.files, self.spec, out, cancel)

    def name(self, name):
        """The hashed path of an asset."""
        return self.paths()[name]

    def paths(self):
        entries = json.loads(self.files["_assets/manifest.json"].data)["files"]
        return {name: entry["path"] for name, entry in entries.items()}

    def served(self):
        """What ought to be there: every file but the manifests."""
        return {
            path.removeprefix("_assets/"): file.data
            for path, file in self.files.items()
            if path not in ("_assets/manifest.json", "_assets/manifest.php")
        }


def changed(tree=TREE):
    return {**tree, "public/img/i.png": File(b"\x89PNG another\r\n")}


def wait_until(condition, process=None):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process is None or process.poll() is None, "the server ended"
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_without_a_cdn_nothing_is_done():
    out = Report(Console(file=io.StringIO()))
    spec = parse_assets({"folders": ["public"]}, "deploy.yml")
    assert publish(compile_assets(TREE, spec), spec, out) == 0
    assert publish({}, None, out) == 0


# --- S3 --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    port = reserve()
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Every listing has several pages.
            env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": "5"},
        )
    try:
        wait_until(lambda: answers(port), process)
        yield port
    except AssertionError:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait()


class Bucket:
    """A bucket on the server, as its owner sees it."""

    def __init__(self, port):
        self.port = port
        self.name = f"assets-{uuid.uuid4().hex}"
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client = botocore.session.get_session().create_client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1"
        )
        self.client.create_bucket(Bucket=self.name)
        self.client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})

    def written(self):
        """Every writing there ever was, by key: the bucket keeps versions."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.name)
        found = {}
        for page in pages:
            for item in page.get("Versions", ()):
                found.setdefault(item["Key"], set()).add(item["VersionId"])
        return found

    def content(self):
        return {
            key: self.client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in self.written()
        }

    def get(self, key):
        """Ask as a browser does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("GET", f"/{self.name}/{key}")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Nothing of the account of whoever runs the tests is used."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "RSYNC_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def account(monkeypatch, no_account):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def bucket(s3_server, account):
    return Bucket(s3_server)


def to(bucket, **more):
    return Publisher({"s3": {"bucket": bucket.name, "endpoint": bucket.endpoint, **more}})


def test_every_file_goes_to_the_bucket_and_the_manifest_does_not(bucket):
    publisher = to(bucket, prefix="shop")
    sent = publisher()
    wanted = {f"shop/{name}": data for name, data in publisher.served().items()}
    assert bucket.content() == wanted
    assert sent == len(wanted) == 9
    assert (
        f"uploaded 9 files (3 kB) to s3://{bucket.name}/shop/; 0 were there" in publisher.printed.getvalue()
    )


def test_each_file_says_what_it_is_and_that_it_never_changes(bucket):
    publisher = to(bucket, acl="public-read")
    publisher()
    css = publisher.name("css/shop.css")
    expected = {
        css: ("text/css; charset=utf-8", None),
        f"{css}.gz": ("text/css; charset=utf-8", "gzip"),
        f"{css}.br": ("text/css; charset=utf-8", "br"),
        publisher.name("img/i.png"): ("image/png", None),
        publisher.name("font/f.woff2"): ("font/woff2", None),
        publisher.name("LICENSE"): ("application/octet-stream", None),
    }
    for key, (kind, encoding) in expected.items():
        answer = bucket.get(key)
        assert answer.status == 200
        assert answer.getheader("Content-Type") == kind
        assert answer.getheader("Content-Encoding") == encoding
        assert answer.getheader("Cache-Control") == "public, max-age=31536000, immutable"


def test_only_what_is_missing_is_uploaded(bucket):
    publisher = to(bucket)
    assert publisher() == 9
    before = bucket.written()
    assert len(before) == 9
    assert publisher() == 0
    assert bucket.written() == before
    assert f"Assets: 9 files at s3://{bucket.name}/ already" in publisher.printed.getvalue()
    # The picture, and the style sheet that shows it with its two copies.
    assert publisher(changed()) == 4
    after = bucket.written()
    assert {key: after[key] for key in before} == before
    assert len(after) == 13


def test_what_others_keep_there_stays_and_a_broken_file_is_mended(bucket):
    publisher = to(bucket, prefix="shop/")
    publisher()
    broken = f"shop/{publisher.name('img/i.png')}"
    bucket.client.put_object(Bucket=bucket.name, Key=broken, Body=b"half")
    bucket.client.put_object(Bucket=bucket.name, Key="shop/of/others", Body=b"theirs")
    assert publisher() == 1
    content = bucket.content()
    assert content[broken] == TREE["public/img/i.png"].data
    assert content["shop/of/others"] == b"theirs"


def test_who_may_read_is_the_buckets_own_policy_unless_asked(bucket):
    publisher = to(bucket)
    publisher()
    assert bucket.get(publisher.name("img/i.png")).status == 403


def test_credentials_come_from_a_profile_as_well(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[shop]\naws_access_key_id = somebody\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "shop")
    assert to(bucket)() == 9


def failure(publisher):
    with pytest.raises(Failed) as failed:
        publisher()
    told = str(failed.value)
    assert "\n" not in told
    assert SECRET not in told + publisher.printed.getvalue()
    return told


def test_without_credentials_it_says_where_they_belong(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    told = failure(to(bucket))
    assert told.startswith(f"assets.cdn: s3://{bucket.name}/: no credentials: set AWS_ACCESS_KEY_ID")


def test_a_bucket_that_is_not_there_is_named(bucket):
    publisher = Publisher({"s3": {"bucket": "no-such-bucket", "endpoint": bucket.endpoint}})
    told = failure(publisher)
    assert told.startswith("assets.cdn: s3://no-such-bucket/: ListObjectsV2 was refused: NoSuchBucket")
    assert told.endswith("make the bucket, or correct assets.cdn.s3.bucket")


@pytest.fixture
def strict(s3_server, bucket):
    """The server checks signatures, which it does only if asked."""

    def demand(value):
        address = f"http://127.0.0.1:{s3_server}/moto-api/reset-auth"
        request = urllib.request.Request(address, value, {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    demand(b"0")
    yield
    demand(b"inf")


def test_refused_credentials_are_not_printed(bucket, strict):
    told = failure(to(bucket))
    assert "was refused: InvalidAccessKeyId" in told
    assert told.endswith("check AWS_ACCESS_KEY_ID or the profile")


def test_a_server_that_is_away(account):
    publisher = Publisher({"s3": {"bucket": "abc", "endpoint": f"http://{nobody()}"}})
    assert "Could not connect to the endpoint" in failure(publisher)


def test_a_server_that_says_nothing_is_given_up(account, monkeypatch):
    monkeypatch.setattr(s3, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        publisher = Publisher({"s3": {"bucket": "abc", "endpoint": f"http://127.0.0.1:{port}"}})
        assert "Read timeout" in failure(publisher)


def test_an_upload_that_takes_too_long_is_given_up(bucket, monkeypatch):
    monkeypatch.setattr(sys.modules[publishing.__module__], "SECONDS", 0)
    publisher = to(bucket)
    assert failure(publisher).endswith("not done within 0 s: given up")
    assert bucket.content() == {}


def test_a_person_may_stop_it(bucket):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        to(bucket)(cancel=cancel)
    assert bucket.content() == {}


# --- rsync -----------------------------------------------------------------------------------------------


@pytest.fixture
def rsync():
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed: apt install rsync")


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_rsync_to_a_folder(rsync, tmp_path):
    publisher = Publisher({"rsync": str(tmp_path / "cdn")})
    assert publisher() == 9
    assert files_in(tmp_path / "cdn") == publisher.served()
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "cdn").rglob("*") if path.is_file()}
    assert modes == {"0o644"}


def test_rsync_sends_only_what_is_missing_and_deletes_nothing(rsync, tmp_path):
    folder = tmp_path / "cdn"
    publisher = Publisher({"rsync": str(folder)})
    publisher()
    (folder / "theirs.txt").write_text("theirs")
    broken = folder / publisher.name("img/i.png")
    broken.write_bytes(b"half")
    kept = (folder / publisher.name("css/plain.css")).stat()
    assert publisher() == 1
    assert broken.read_bytes() == TREE["public/img/i.png"].data
    assert publisher(changed()) == 4
    assert publisher(changed()) == 0
    assert (folder / "theirs.txt").read_text() == "theirs"
    now = (folder / publisher.name("css/plain.css")).stat()
    assert (now.st_ino, now.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    assert f"Assets: 9 files at {folder}/ already" in publisher.printed.getvalue()


def test_the_targets_own_folder_keeps_its_mode(rsync, tmp_path):
    folder = tmp_path / "cdn"
    folder.mkdir(mode=0o2770)
    folder.chmod(0o2770)
    Publisher({"rsync": str(folder)})()
    assert oct(folder.stat().st_mode & 0o7777) == "0o2770"


def test_rsync_says_in_one_line_what_it_lacks(rsync, tmp_path):
    publisher = Publisher({"rsync": str(tmp_path / "not" / "there")})
    told = failure(publisher)
    assert told.startswith(f"assets.cdn: {tmp_path}/not/there/: rsync")
    assert "No such file or directory" in told


def test_without_rsync_its_package_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    publisher = Publisher({"rsync": str(tmp_path / "cdn")})
    with pytest.raises(Refused) as refused:
        require_tools(publisher.spec)
    assert str(refused.value) == "assets.cdn: rsync is not installed on this machine: apt install rsync"
    assert failure(publisher).endswith("rsync is not installed on this machine")
    for spec in (None, spec_of(None), spec_of({"s3": {"bucket": "abc"}})):
        require_tools(spec)


@pytest.fixture
def daemon(rsync, tmp_path):
    """An rsync daemon with a password, as a CDN's push zone has one."""
    port = reserve()
    (tmp_path / "zone").mkdir()
    secrets = tmp_path / "secrets"
    secrets.write_text(f"shop:{SECRET}\n")
    secrets.chmod(0o600)
    config = tmp_path / "rsyncd.conf"
    config.write_text(
        f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\npid file = {tmp_path}/pid\n"
        f"log file = {tmp_path}/log\n[zone]\npath = {tmp_path}/zone\nread only = no\n"
        f"auth users = shop\nsecrets file = {secrets}\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
    )
    process = subprocess.Popen(
        ["rsync", "--daemon", "--no-detach", f"--config={config}"], stdin=subprocess.DEVNULL
    )
    wait_until(lambda: answers(port), process)
    yield Publisher({"rsync": f"rsync://shop@127.0.0.1:{port}/zone/"})
    process.terminate()
    process.wait()


def test_rsync_to_a_daemon_with_the_password_of_the_environment(daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("RSYNC_PASSWORD", SECRET)
    assert daemon() == 9
    assert files_in(tmp_path / "zone") == daemon.served()
    assert daemon() == 0
    assert SECRET not in daemon.printed.getvalue()


def test_a_daemon_that_refuses_the_password(daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("RSYNC_PASSWORD", f"not-{SECRET}")
    assert "auth failed on module zone" in failure(daemon)
    assert files_in(tmp_path / "zone") == {}


def test_ctrl_c_ends_rsync(rsync, tmp_path, monkeypatch):
    shell = tmp_path / "shell"
    shell.write_text(
        f"#!/bin/sh\necho $$ >{tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid\nexec sleep 1000\n"
    )
    shell.chmod(0o755)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    cancel = threading.Event()

    def press():
        wait_until((tmp_path / "pid").exists)
        cancel.set()

    person = threading.Thread(target=press)
    person.start()
    with pytest.raises(Cancelled):
        Publisher({"rsync": "cdn.example.org:/srv/cdn"})(cancel=cancel)
    person.join()
    pid = int((tmp_path / "pid").read_text())
    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() or "sleep" not in Path(f"/proc/{pid}/cmdline").read_text()
    )


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """An sshd of our own on a port of its own, that lets the user in who runs the tests."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("sshd is not installed: apt install openssh-server")
    port = reserve()
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/key.pub\nStrictModes no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )
    process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL)
    # What a person writes into ~/.ssh/config; ssh takes no other home than the account's.
    client = tmp_path / "ssh_config"
    host = (tmp_path / "host_key.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    client.write_text(
        f"Host cdn\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\n"
        f"IdentityFile {tmp_path}/key\nIdentitiesOnly yes\nUserKnownHostsFile {tmp_path}/known_hosts\n"
        "StrictHostKeyChecking yes\n"
    )
    real = shutil.which("ssh")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {client} "$@"\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    wait_until(lambda: answers(port), process)
    yield tmp_path
    process.terminate()
    process.wait()


def test_rsync_over_ssh(rsync, sshd):
    publisher = Publisher({"rsync": f"cdn:{sshd}/served"})
    assert publisher() == 9
    assert files_in(sshd / "served") == publisher.served()
    assert publisher() == 0
    assert publisher(changed()) == 4


def test_a_changed_host_key_is_refused(rsync, sshd):
    known = sshd / "known_hosts"
    other = (sshd / "key.pub").read_text()
    known.write_text(known.read_text().split()[0] + " " + other)
    told = failure(Publisher({"rsync": f"cdn:{sshd}/served"}))
    assert told.startswith("assets.cdn: cdn:")
    assert not (sshd / "served").exists()


def test_a_key_that_is_not_let_in(rsync, sshd):
    (sshd / "key.pub").write_text("")
    told = failure(Publisher({"rsync": f"cdn:{sshd}/served"}))
    assert "Permission denied (publickey" in told
