"""kestrel-web after site.yml: the queues of the one description, for whoever logs in and for nobody else."""

from __future__ import annotations

import json

import pytest


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


def test_nothing_but_ssh_kestrel_web_and_bugsink_listens_on_its_host(root, stack, panel, browser):
    if panel in stack.group("kestrel"):
        pytest.skip("everything is on one host")
    assert panel in stack.group("sentry")
    found = {line.split()[3] for line in root(panel, "ss -H -l -t -n").splitlines()}
    assert {one for one in found if not one.startswith("127.0.0.11:")} == {
        "0.0.0.0:22",
        "[::]:22",
        f"{browser.address}:8090",
        f"{browser.address}:8765",
    }
