"""The pages after site.yml and a deploy, from outside: files, and jobs that are enqueued there get done."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def web(stack):
    return stack.group("web")[0]


@pytest.fixture
def address(stack, web):
    return stack.vars(web)["kestrel_stack_address"]


def ask(address, method, path, body=None, **headers):
    """Return status, headers and text of one request from the machine that the tests run on."""
    connection = http.client.HTTPConnection(address, 8080, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def done(stack, tenant, job):
    total = 0
    for name in stack.group("consumers"):
        told = stack.host(name, "deploy").run("cd /srv/shop/current && venv/bin/python report.py --json")
        total += json.loads(told.stdout)["done"].get(tenant, {}).get(job, 0)
    return total


def test_the_pages_are_of_the_release_that_was_deployed(stack, web, address):
    host = stack.host(web, "deploy")
    current = host.run("readlink /srv/shop/current").stdout.strip().removeprefix("releases/")
    told = host.run("sudo -n /usr/local/sbin/kestrel-stack-web status shop")
    assert told.rc == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["group"] == "web"
    assert [(one["state"], one["release"]) for one in report["processes"]] == [("RUNNING", current)]
    status, headers, text = ask(address, "GET", "/")
    assert status == 200
    assert current in text.decode()
    assert headers["Cache-Control"] == "no-cache"
    assert headers["Server"] == "nginx"


def test_its_files_have_hashed_names_and_are_cached_for_good(stack, web, address):
    page = ask(address, "GET", "/")[2].decode()
    files = re.findall(r'(?:href|src)="(/assets/[^"]+)"', page)
    assert len(set(files)) >= 3
    for file in files:
        assert re.search(r"\.[0-9a-f]{16}\.\w+$", file), file
        status, headers, _ = ask(address, "GET", file, **{"Accept-Encoding": "br"})
        assert status == 200, file
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    style = next(file for file in files if file.endswith(".css"))
    for encoding in ("br", "gzip"):
        status, headers, _ = ask(address, "GET", style, **{"Accept-Encoding": encoding})
        there = stack.host(web, "deploy").run("ls -lR /srv/shop/assets /srv/shop/current/_assets").stdout
        assert (status, headers["Content-Encoding"]) == (200, encoding), there


def test_a_form_enqueues_a_job_and_a_worker_of_another_host_does_it(stack, address, eventually):
    before = done(stack, "acme", "HelloWorld")
    status, headers, _ = ask(
        address,
        "POST",
        "/enqueue",
        "queue=hello_world&count=4",
        **{"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert status == 303
    assert "4 enqueued on hello_world" in ask(address, "GET", headers["Location"])[2].decode()
    eventually(lambda: done(stack, "acme", "HelloWorld") >= before + 4, "4 jobs are done")
    numbers = json.loads(ask(address, "GET", "/queues")[2])["queues"]
    assert numbers["hello_world"]["parked"] == 0


def test_nothing_but_ssh_and_the_pages_listens_on_a_web_host(stack, root, web, address):
    if web in stack.group("kestrel"):
        pytest.skip("everything is on one host")
    found = {line.split()[3] for line in root(web, "ss -H -l -t -n").splitlines()}
    assert {one for one in found if not one.startswith("127.0.0.11:")} == {
        "0.0.0.0:22",
        "[::]:22",
        f"{address}:8080",
    }


def test_what_belongs_to_the_release_stays_there(address):
    for path in ("/release.json", "/deploy.yml", "/venv/bin/python", "/.env", "/shop/web.py"):
        assert ask(address, "GET", path)[0] == 404, path


@pytest.mark.skipif(not os.environ.get("KESTREL_STACK_LONG"), reason="takes a whole deploy: --long")
def test_no_visitor_notices_a_deploy(address):
    inventory = os.environ.get("KESTREL_STACK_INVENTORY") or CHECKOUT / "ansible/inventories/lab"
    seen, failures, ended = Counter(), [], threading.Event()

    def visit():
        while not ended.is_set():
            try:
                status, _, text = ask(address, "GET", "/health")
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                continue
            if status != 200:
                failures.append(status)
            seen[text] += 1

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    try:
        command = [Path(sys.executable).parent / "fab", "deploy", "--env", str(inventory)]
        deployed = subprocess.run(
            [*command, "--allow-dirty", "--force", "--yes", "--soak", "0"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        ended.set()
        for visitor in visitors:
            visitor.join()
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert not failures
    assert len(seen) == 2
    assert sum(seen.values()) > 1000
