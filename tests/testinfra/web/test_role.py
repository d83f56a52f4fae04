"""Role web before any deploy, and with releases made by hand: pages, files, rights, reloads under load."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
ROOT = "/srv/news-letter"
HELPER = "sudo -n /usr/local/sbin/kestrel-stack-web"
# Where each host's pages are, seen from itself, and the page that says whether it is well.
URLS = {"web1": "http://127.0.0.1:8080", "web2": "https://127.0.0.1"}
HEALTH = {"web1": "/health", "web2": "/how/are/you"}
RELEASES = [f"2026010{number}T000000Z-{str(number) * 8}" for number in range(1, 6)]

# The pages say of which release they are, and of which one a file is that a request loads on its way.
PYTHON = """
import json, pathlib, time, urllib.parse
HERE = pathlib.Path(__file__).parent
def application(environ, start_response):
    path, asked = environ["PATH_INFO"], urllib.parse.parse_qs(environ["QUERY_STRING"])
    if path == "/health" and (HERE / "unwell").exists():
        start_response("500 Unwell", [])
        return [b""]
    sent = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
    time.sleep(float(asked.get("seconds", ["0"])[0]))
    import part
    said = {"release": HERE.name, "part": part.RELEASE, "path": path, "sent": sent,
            "from": environ.get("HTTP_X_FORWARDED_FOR")}
    headers = [("Content-Type", "application/json")]
    if path == "/cached":
        headers += [("Cache-Control", "max-age=5"), ("X-Frame-Options", "DENY")]
    start_response("200 OK", headers)
    return [json.dumps(said).encode()]
"""
PHP = """<?php
$path = explode('?', $_SERVER['REQUEST_URI'], 2)[0];
$unwell = $path === '/how/are/you' && file_exists(dirname(__DIR__) . '/unwell');
if ($unwell) { http_response_code(500); return; }
usleep((int) (1e6 * ($_GET['seconds'] ?? 0)));
$part = require dirname(__DIR__) . '/part.php';
if ($path === '/cached') { header('Cache-Control: max-age=5'); header('X-Frame-Options: DENY'); }
header('Content-Type: application/json');
echo json_encode(['release' => basename(dirname(__DIR__)), 'part' => $part, 'path' => $path,
    'sent' => file_get_contents('php://input'), 'from' => $_SERVER['REMOTE_ADDR']]);
"""

# Visitors: each asks for one page after the other, slow ones and posts among them, some over one connection.
# They end when the file is there; what is not a whole answer of one release is a failure.
VISITORS = """
import collections, http.client, json, os, ssl, sys, threading, time, urllib.parse
url, stop, visitors = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3])
keep = sys.argv[4] == "keep"
context = ssl._create_unverified_context()
lock, seen, failures = threading.Lock(), collections.Counter(), []
def connect():
    if url.scheme == "https":
        return http.client.HTTPSConnection(url.hostname, url.port or 443, timeout=60, context=context)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=60)
def visit(number):
    count = 0
    connection = connect()
    while not os.path.exists(stop):
        count += 1
        try:
            if count % 7 == 0:
                body = "x" * 3000
                connection.request("POST", "/post", body)
            else:
                body = ""
                connection.request("GET", "/?seconds=0.3" if count % 11 == 0 else "/page")
            answer = connection.getresponse()
            text = answer.read()
            said = json.loads(text) if answer.status == 200 else {}
            fine = answer.status == 200 and said["release"] == said["part"] and said["sent"] == body
            with lock:
                seen[said.get("release")] += 1
                open(stop + ".begun", "w").close()
                if not fine:
                    failures.append([answer.status, text[:300].decode()])
        except Exception as error:
            with lock:
                failures.append([type(error).__name__, str(error)])
            connection.close()
            connection = connect()
        if number % 2 or not keep:
            connection.close()
            connection = connect()
threads = [threading.Thread(target=visit, args=(number,)) for number in range(visitors)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"seen": seen, "failures": failures[:20], "failed": len(failures)}))
"""


class Site:
    """One host of this scenario, as the deploy user and as a browser on it."""

    def __init__(self, stack, name):
        self.name = name
        self.python = name == "web1"
        self.ship = stack.host(name, "ship")
        self.admin = stack.host(name)
        self.health = HEALTH[name]

    def run(self, command):
        done = self.ship.run(command)
        assert done.rc == 0, f"{self.name}: {command}: {done.stderr}{done.stdout}"
        return done.stdout

    def make(self, release, code=None):
        """Make a release as the deploy leaves one."""
        folder = f"{ROOT}/releases/{release}"
        page, part, said = ("pages.py", "part.py", f"RELEASE = '{release}'")
        if not self.python:
            page, part, said = ("front/page.php", "part.php", f"<?php return '{release}';")
        self.run(f"umask 022 && mkdir -p {folder}/front && ln -sfn ../../venvs/one {folder}/venv")
        for path, text in {
            page: code or (PYTHON if self.python else PHP),
            part: said,
            "release.json": '{"secret": 1}',
            "deploy.yml": "secret: 1",
            ".env": "SECRET=1",
        }.items():
            self.run(f"cat >{folder}/{path} <<'CODE'\n{text}\nCODE")

    def switch(self, release):
        """Let `current` lead to another release, with one rename."""
        self.run(f"cd {ROOT} && ln -sfn releases/{release} .current.new && mv -T .current.new current")

    def helper(self, action):
        done = self.ship.run(f"{HELPER} {action} news-letter")
        return done.rc, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr.strip()

    def deploy(self, release):
        self.make(release)
        self.switch(release)
        code, report, error = self.helper("reload")
        assert (code, error) == (0, "")
        return report

    def get(self, path, *options):
        """Ask for a page; return status, headers by lower-case name, body."""
        command = ["curl", "--silent", "--insecure", "--include", "--http1.1", "--path-as-is", *options]
        done = self.ship.run(shlex.join([*command, URLS[self.name] + path]))
        assert done.rc == 0, f"{path}: curl ends with {done.rc}"
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        if head.startswith("HTTP/1.1 100"):
            head, _, body = body.partition("\n\n")
        lines = head.splitlines()
        headers = {}
        for line in lines[1:]:
            key, _, value = line.partition(": ")
            headers.setdefault(key.lower(), []).append(value)
        return int(lines[0].split()[1]), headers, body

    def release(self):
        status, _, body = self.get("/")
        return json.loads(body)["release"] if status == 200 else status


@pytest.fixture(params=["web1", "web2"], ids=["python", "php"])
def site(request, stack):
    """A host without any release, before the test and after it."""
    made = Site(stack, request.param)
    if made.python:
        wheel = next((CHECKOUT / ".build/web-test").glob("gunicorn-*.whl"))
        if made.ship.run(f"test -e {ROOT}/venvs/one/.complete").rc != 0:
            with made.ship.backend.client.open_sftp() as files:
                files.put(str(wheel), "/home/ship/gunicorn.whl")
            made.run(
                f"python3 -m venv --without-pip {ROOT}/venvs/one && cd {ROOT}/venvs/one &&"
                " python3 -m zipfile -e /home/ship/gunicorn.whl lib/python3*/site-packages/ &&"
                " printf '#!/bin/sh\\n' >bin/gunicorn && chmod +x bin/gunicorn && touch .complete"
            )
    yield made
    made.run(f"rm -f {ROOT}/current")
    assert made.helper("reload")[0] == 0
    made.run(f"rm -rf {ROOT}/releases/* {ROOT}/assets/*")


class Visitors:
    """Load from the host itself, until it is told to stop."""

    def __init__(self, site, count=8, connections="keep"):
        self.site = site
        self.folder = site.run("mktemp -d").strip()
        site.run(f"cat >{self.folder}/visitors.py <<'CODE'\n{VISITORS}\nCODE")
        command = (
            f"python3 {self.folder}/visitors.py {URLS[site.name]} {self.folder}/stop {count} {connections}"
        )
        site.run(
            f"nohup {command} >{self.folder}/out 2>{self.folder}/err </dev/null & echo $! >{self.folder}/pid"
        )
        site.run(f"timeout 30 sh -c 'until [ -e {self.folder}/stop.begun ]; do sleep 0.1; done'")

    def end(self):
        """Stop them; return how many answers came by release, and what failed."""
        wait = f"while kill -0 $(cat {self.folder}/pid) 2>/dev/null; do sleep 0.1; done"
        self.site.run(f"touch {self.folder}/stop; {wait}")
        said = self.site.run(f"cat {self.folder}/out {self.folder}/err")
        self.site.run(f"rm -rf {self.folder}")
        return json.loads(said)


def test_before_the_first_deploy_every_page_is_a_plain_503(site):
    for path in ("/", site.health, "/assets/x.css", "/any/thing?x=1"):
        status, headers, body = site.get(path)
        assert status == 503, path
        assert body == "news-letter is not available yet.\n"
        assert headers["content-type"] == ["text/plain; charset=utf-8"]
        assert headers["cache-control"] == ["no-store"]
        assert headers["retry-after"] == ["10"]
    code, report, error = site.helper("status")
    assert (code, error) == (0, "")
    assert report == {
        "group": "web",
        "processes": [{"name": "web", "state": "STOPPED", "pid": None, "uptime": 0, "release": None}],
    }
    assert site.helper("reload") == (0, report, "")


def test_a_release_is_served_once_it_is_current_and_status_says_which(site, root):
    report = site.deploy(RELEASES[0])
    [process] = report["processes"]
    assert (process["state"], process["release"]) == ("RUNNING", RELEASES[0])
    assert root(site.name, f"ps -o user= -p {process['pid']}").strip() == "web"
    assert site.helper("status")[1]["processes"][0]["pid"] == process["pid"]
    status, headers, body = site.get("/some/page?x=1")
    assert status == 200
    said = json.loads(body)
    assert said["release"] == said["part"] == RELEASES[0]
    assert said["path"] == "/some/page"
    assert said["from"] == "127.0.0.1"
    assert headers["server"] == ["nginx"]
    assert headers["cache-control"] == ["no-cache"]
    assert headers["x-content-type-options"] == ["nosniff"]
    assert headers["x-frame-options"] == ["SAMEORIGIN"]
    assert headers["referrer-policy"] == ["strict-origin-when-cross-origin"]
    assert "x-powered-by" not in headers
    # A reload with nothing new leaves the processes alone.
    assert site.helper("reload")[1]["processes"][0]["pid"] == process["pid"]


def test_what_the_application_says_of_its_page_stands(site):
    site.deploy(RELEASES[0])
    _, headers, _ = site.get("/cached")
    assert headers["cache-control"] == ["max-age=5"]
    assert headers["x-frame-options"] == ["DENY"]


def test_a_client_cannot_pretend_to_be_somebody_else(site):
    site.deploy(RELEASES[0])
    _, _, body = site.get(
        "/", "--header", "X-Forwarded-For: 192.0.2.7", "--header", "Proxy: http://192.0.2.7"
    )
    assert json.loads(body)["from"] == "127.0.0.1"


def test_hashed_files_are_cached_for_good_and_packed_and_others_asked_for_again(site):
    site.deploy(RELEASES[0])
    hashed = "css/shop.0123456789abcdef.css"
    site.run(
        f"cd {ROOT}/assets && mkdir -p css && echo plain >{hashed} && echo gz | gzip >{hashed}.gz"
        f" && echo brotli >{hashed}.br && echo {{}} >names.json && echo x >.hidden"
        " && echo >module.0123456789abcdef.mjs && echo >LICENSE.0123456789abcdef"
        " && ln -s /etc/passwd link.txt"
    )
    status, headers, body = site.get(f"/assets/{hashed}")
    assert (status, body) == (200, "plain\n")
    assert headers["cache-control"] == ["public, max-age=31536000, immutable"]
    assert headers["content-type"] == ["text/css; charset=utf-8"]
    assert headers["vary"] == ["Accept-Encoding"]
    for encoding in ("gzip", "br"):
        _, headers, _ = site.get(
            f"/assets/{hashed}", "--header", f"Accept-Encoding: {encoding}", "-o", "/dev/null", "-D", "-"
        )
        assert headers["content-encoding"] == [encoding]
        assert headers["content-type"] == ["text/css; charset=utf-8"]
        assert headers["cache-control"] == ["public, max-age=31536000, immutable"]
    assert site.get("/assets/names.json")[1]["cache-control"] == ["no-cache"]
    # A browser runs no module that is of another type.
    module = site.get("/assets/module.0123456789abcdef.mjs")[1]
    assert module["content-type"] == ["application/javascript; charset=utf-8"]
    bare = site.get("/assets/LICENSE.0123456789abcdef")[1]
    assert bare["cache-control"] == ["public, max-age=31536000, immutable"]
    status, headers, _ = site.get("/assets/css/gone.0123456789abcdef.css")
    assert status == 404
    assert "cache-control" not in headers
    for path in ("/assets/.hidden", "/assets/", "/assets/css/", "/assets/link.txt"):
        assert site.get(path)[0] in (403, 404), path


def test_no_file_of_a_release_or_of_the_host_can_be_had(site):
    site.deploy(RELEASES[0])
    site.run(f"echo x >{ROOT}/assets/a.txt")
    for path in (
        "/.env",
        "/.git/config",
        "/a/.htpasswd",
        "/release.json",
        "/deploy.yml",
        "/pages.py",
        "/part.php",
        "/front/page.php",
        "/venv/bin/python",
        "/current/release.json",
        f"/releases/{RELEASES[0]}/release.json",
        f"/assets/../releases/{RELEASES[0]}/release.json",
        f"/assets/%2e%2e/releases/{RELEASES[0]}/release.json",
        f"/assets../releases/{RELEASES[0]}/release.json",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/kestrel-stack/php/autoload.php",
    ):
        status, _, body = site.get(path)
        assert "secret" not in body.lower(), path
        assert "root:" not in body, path
        # The application itself is asked, whatever the name is, or nobody.
        assert status in (400, 404) or json.loads(body)["release"] == RELEASES[0], path
    assert site.get("/.env")[0] == 404


def test_a_body_that_is_too_large_is_refused_and_the_largest_one_arrives(site):
    site.deploy(RELEASES[0])
    limit = 1024 * 1024 if site.python else 64 * 1024
    site.run(
        f"head -c {limit} /dev/zero | tr '\\0' x >/tmp/fits && cp /tmp/fits /tmp/larger && echo >>/tmp/larger"
    )
    post = ("--header", "Content-Type: text/plain", "--header", "Expect:", "--data-binary")
    status, _, body = site.get("/post", *post, "@/tmp/fits")
    assert (status, len(json.loads(body)["sent"])) == (200, limit)
    assert site.get("/post", *post, "@/tmp/larger")[0] == 413


def test_no_request_is_lost_and_none_sees_two_releases_while_releases_and_configurations_change(site, root):
    site.deploy(RELEASES[0])
    for release in RELEASES[1:]:
        site.make(release)
    visitors = Visitors(site)
    try:
        for release in [*RELEASES[1:], RELEASES[2]]:
            site.switch(release)
            if not site.python:
                # Its code is found anew by every request.
                assert site.release() == release
            code, report, error = site.helper("reload")
            assert (code, error) == (0, "")
            assert [one["release"] for one in report["processes"]] == [release]
            assert {site.release() for _ in range(5)} == {release}
        # What a run of the play does when a file of its own has changed.
        root(site.name, "/usr/local/sbin/kestrel-stack-web restart news-letter")
        assert site.release() == RELEASES[2]
    finally:
        found = visitors.end()
    assert found["failures"] == [], found
    assert sum(found["seen"].values()) >= 1000, found
    assert set(found["seen"]) == set(RELEASES)


def test_a_new_configuration_of_nginx_refuses_nobody(site, root):
    site.deploy(RELEASES[0])
    # A connection that rests is closed when nginx reloads; on such a one a browser asks again by itself.
    visitors = Visitors(site, 4, "new")
    try:
        for _ in range(3):
            root(site.name, "systemctl reload kestrel-stack-nginx-news-letter")
            assert site.release() == RELEASES[0]
    finally:
        found = visitors.end()
    assert found["failures"] == [], found


def test_a_request_that_has_begun_is_finished_by_the_release_that_began_it(site):
    site.deploy(RELEASES[0])
    site.make(RELEASES[1])
    # Asked before the switch, answered after it.
    site.run(
        f"(curl -sk '{URLS[site.name]}/?seconds=3' >/tmp/slow.part; mv /tmp/slow.part /tmp/slow)"
        " </dev/null >/dev/null 2>&1 &"
    )
    site.run("sleep 1")
    site.switch(RELEASES[1])
    assert site.helper("reload")[0] == 0
    assert site.release() == RELEASES[1]
    said = json.loads(site.run("while [ ! -e /tmp/slow ]; do sleep 0.1; done; cat /tmp/slow; rm /tmp/slow"))
    assert said["release"] == said["part"] == RELEASES[0]


@pytest.mark.parametrize("site", ["web1"], indirect=True, ids=["python"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        (
            PYTHON.replace('"/health" and (HERE / "unwell").exists()', '"/health"'),
            "/health answers 500 Unwell",
        ),
    ],
    ids=["does-not-import", "is-not-well"],
)
def test_a_release_that_does_not_come_up_never_serves_and_the_one_before_goes_on(site, code, reason):
    before = site.deploy(RELEASES[0])["processes"][0]["pid"]
    visitors = Visitors(site, 3)
    try:
        site.make(RELEASES[1], code)
        site.switch(RELEASES[1])
        failed, report, error = site.helper("reload")
        assert failed == 1
        assert error.startswith(f"kestrel-stack-web: release {RELEASES[1]} does not come up: ")
        assert reason in error
        assert error.endswith(f"; {RELEASES[0]} goes on serving")
        assert len(error.splitlines()) == 1
        assert [one["pid"] for one in report["processes"]] == [before]
        # The way back has nothing to do.
        site.switch(RELEASES[0])
        assert site.helper("reload")[1]["processes"][0]["pid"] == before
    finally:
        found = visitors.end()
    assert found["failures"] == []
    assert set(found["seen"]) == {RELEASES[0]}


@pytest.mark.parametrize("site", ["web1"], indirect=True, ids=["python"])
def test_a_release_without_gunicorn_is_told_what_to_do(site):
    site.make(RELEASES[0])
    site.run(f"ln -sfn ../../venvs/none {ROOT}/releases/{RELEASES[0]}/venv && mkdir -p {ROOT}/venvs/none/bin")
    site.switch(RELEASES[0])
    code, _, error = site.helper("reload")
    assert code == 1
    assert f"release {RELEASES[0]} has no gunicorn: add it to the application's requirements" in error


@pytest.mark.parametrize("site", ["web2"], indirect=True, ids=["php"])
def test_a_php_release_that_is_not_well_is_said_to_be_so(site):
    site.deploy(RELEASES[0])
    site.make(RELEASES[1])
    site.run(f"touch {ROOT}/releases/{RELEASES[1]}/unwell")
    site.switch(RELEASES[1])
    code, _, error = site.helper("reload")
    assert code == 1
    assert "/how/are/you answers 500" in error
    site.switch(RELEASES[0])
    assert site.helper("reload")[0] == 0
    assert site.release() == RELEASES[0]


def test_without_a_current_release_all_ends_and_the_page_says_so(site, root):
    pid = site.deploy(RELEASES[0])["processes"][0]["pid"]
    site.run(f"rm {ROOT}/current")
    code, report, error = site.helper("reload")
    assert (code, error) == (0, "")
    assert [one["state"] for one in report["processes"]] == ["STOPPED"]
    assert site.get("/")[0] == 503
    assert root(site.name, f"ps -o pid= -p {pid} || :").strip() == ""


def test_a_current_that_leads_elsewhere_is_refused(site):
    site.deploy(RELEASES[0])
    site.run(f"ln -sfn /tmp/x.service {ROOT}/.current.new && mv -T {ROOT}/.current.new {ROOT}/current")
    code, _, error = site.helper("reload")
    assert code == 1
    assert error == f"kestrel-stack-web: {ROOT}/current does not lead to a release"


def test_what_died_is_started_again_and_requests_wait_for_it(site, root):
    pid = site.deploy(RELEASES[0])["processes"][0]["pid"]
    root(site.name, f"kill -9 {pid}")
    assert site.release() == RELEASES[0]
    [process] = site.helper("status")[1]["processes"]
    assert process["state"] == "RUNNING"
    assert process["pid"] != pid


def test_the_deploy_user_may_ask_and_reload_and_nothing_else(site):
    listed = site.ship.run("sudo -n -l").stdout
    assert listed.count("NOPASSWD:") == 2
    assert "ALL)" not in listed
    for command in [
        HELPER,
        f"{HELPER} status",
        f"{HELPER} status other",
        f"{HELPER} restart news-letter",
        f"{HELPER} renew news-letter",
        f"{HELPER} reload news-letter x",
        "sudo -n systemctl status nginx",
        "sudo -n -u web id",
    ]:
        refused = site.ship.run(command)
        assert refused.rc == 1, command
        assert "password is required" in refused.stderr, command
    for path in ["/usr/local/sbin/kestrel-stack-web", "/usr/local/lib/kestrel-stack", "/etc/kestrel-stack"]:
        assert site.ship.run("test -w %s", path).rc != 0


def test_the_pages_may_read_the_settings_and_write_no_release_and_nginx_neither(site, run_as, root):
    pid = site.deploy(RELEASES[0])["processes"][0]["pid"]
    settings = "/etc/kestrel-stack/news-letter.json"
    assert run_as(site.name, "web", f"test -r {settings}").rc == 0
    assert run_as(site.name, "www-data", f"test -r {settings}").rc != 0
    for user in ("web", "www-data"):
        assert run_as(site.name, user, f"touch {ROOT}/releases/{RELEASES[0]}/x {ROOT}/current/x").rc != 0
    assert run_as(site.name, "nobody", "test -w /run/kestrel-stack-web/news-letter.sock").rc != 0
    nginx = root(
        site.name, "systemctl show --value --property MainPID kestrel-stack-nginx-news-letter"
    ).strip()
    for one, user, capabilities in (
        (pid, "web", "0000000000000000"),
        (nginx, "www-data", "0000000000000000" if site.python else "0000000000000400"),
    ):
        assert root(site.name, f"ps -o user= -p {one}").strip() == user
        status = dict(line.split(":", 1) for line in root(site.name, f"cat /proc/{one}/status").splitlines())
        assert status["CapEff"].strip() == status["CapBnd"].strip() == capabilities
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"


def test_only_our_nginx_listens_and_debians_own_servers_are_off(site, root):
    found = {line.split()[3] for line in root(site.name, "ss -H -l -t -n").splitlines()}
    wanted = "127.0.0.1:8080" if site.python else "0.0.0.0:443"
    assert {one for one in found if not one.startswith("127.0.0.11:")} == {"0.0.0.0:22", "[::]:22", wanted}
    for unit in ["nginx", *([] if site.python else ["php*-fpm"])]:
        assert (
            root(site.name, f"systemctl list-units --plain --no-legend --state active '{unit}.service'") == ""
        )
        assert (
            root(site.name, f"systemctl list-unit-files --no-legend --state enabled '{unit}.service'; :")
            == ""
        )
    for unit in ("nginx-news-letter.service", "web-news-letter.service", "web-news-letter.socket"):
        assert root(site.name, f"systemctl is-enabled kestrel-stack-{unit}").strip() == "enabled"


def test_it_comes_back_with_the_host(site, root, eventually):
    """As a boot does: everything is stopped, then what is enabled is started."""
    site.deploy(RELEASES[0])
    root(
        site.name,
        f"systemctl stop kestrel-stack-web-news-letter@{RELEASES[0]} kestrel-stack-web-news-letter.service"
        " kestrel-stack-web-news-letter.socket kestrel-stack-nginx-news-letter",
    )
    root(
        site.name,
        "systemctl start kestrel-stack-web-news-letter.socket kestrel-stack-nginx-news-letter"
        " kestrel-stack-web-news-letter.service",
    )
    eventually(lambda: site.release() == RELEASES[0], "the release is served")
