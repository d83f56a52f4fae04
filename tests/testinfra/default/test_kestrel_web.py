"""kestrel-web after site.yml: the queues of the one description, for whoever logs in and for nobody else."""

from __future__ import annotations

import http.client
import json
import re
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

import pytest


class Browser:
    """Somebody on the machine that the tests run on."""

    def __init__(self, address):
        self.address = address
        self.cookies = {}

    def ask(self, method, path, fields=None):
        connection = http.client.HTTPConnection(self.address, 8090, timeout=30)
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if fields is not None:
            headers |= {
                "Content-Type": "application/x-www-form-urlencoded",
                "Origin": f"http://{self.address}:8090",
            }
        try:
            body = urlencode(fields) if fields is not None else None
            connection.request(method, path, body, headers if self.cookies or fields else {})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return answer.status, answer.headers, text

    def log_in(self, name, password):
        csrf = re.search(r'name="csrf_token" value="([^"]+)"', self.ask("GET", "/login")[2])[1]
        return self.ask("POST", "/login", {"name": name, "password": password, "csrf_token": csrf})[0]


@pytest.fixture
def panel(stack):
    return stack.group("kestrel_web")[0]


@pytest.fixture
def browser(stack, panel):
    if "kestrel_web_listen_address" not in stack.vars(panel):
        pytest.skip("it listens on its host alone")
    return Browser(stack.vars(panel)["kestrel_stack_address"])


@pytest.fixture
def operator(stack, panel, browser):
    login = json.loads(Path(stack.vars(panel)["kestrel_web_login_file"]).read_text())
    assert browser.log_in(login["name"], login["password"]) == 303
    return browser


def test_nobody_gets_in_without_the_password(browser):
    status, headers, _ = browser.ask("GET", "/")
    assert status == 303
    assert headers["Location"].startswith("/login")
    assert browser.log_in("operator", "operator") >= 400
    assert browser.ask("GET", "/api/v1/queues")[0] == 401


def test_every_described_queue_is_shown_with_its_limits(operator, stack, panel):
    shown = {row["key"]: row for row in json.loads(operator.ask("GET", "/api/v1/queues")[2])["queues"]}
    described = stack.vars(panel)["kestrel_stack_queues"]
    assert described
    for queue in described:
        row = shown[f"shop_{queue['name']}"]
        assert row["described"]
        assert row["limits"]["backlog"] == queue["alert"]["backlog"]
    assert "shop_hello_world" in operator.ask("GET", "/queues")[2]


def test_its_host_gets_through_to_the_admin_port_of_every_server(operator, stack, eventually):
    def servers():
        said = json.loads(operator.ask("GET", "/api/v1/servers")[2])["servers"]
        return said if all(one["reachable"] and not one["error"] for one in said) else None

    found = eventually(servers, "every server answers")
    wanted = {f"{stack.vars(host)['kestrel_stack_address']}:22133" for host in stack.group("kestrel")}
    assert {one["address"] for one in found} == wanted
    assert {one["source"] for one in found} == {"admin"}


def test_nothing_but_ssh_and_kestrel_web_listens_on_its_host(root, stack, panel, browser):
    if panel in stack.group("kestrel"):
        pytest.skip("everything is on one host")
    found = {line.split()[3] for line in root(panel, "ss -H -l -t -n").splitlines()}
    assert {one for one in found if not one.startswith("127.0.0.11:")} == {
        "0.0.0.0:22",
        "[::]:22",
        f"{browser.address}:8090",
    }
