"""Somebody who looks at kestrel-web, from the machine that the tests run on."""

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
