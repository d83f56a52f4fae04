"""A host that is rebooted comes back with everything that ran on it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import paramiko
import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


def reboot(stack, name, eventually):
    """Let a host shut down by itself and start it again, as its power button would."""
    inventory = Path(os.environ.get("KESTREL_STACK_INVENTORY") or CHECKOUT / "ansible/inventories/lab")
    if not (inventory / "containers.yml").exists():
        pytest.skip("only the lab's hosts are rebooted by a test")
    transport = stack.host(name).backend.client.get_transport()
    # Its answer may be lost with the connection.
    with contextlib.suppress(paramiko.SSHException, EOFError, ConnectionError):
        stack.host(name).run("sudo systemctl reboot")
    eventually(lambda: not transport.is_active(), f"{name} goes down")

    def up():
        done = subprocess.run(
            [sys.executable, "-m", "kestrel_stack.lab", "hosts", "up", "--inventory", inventory],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src")},
        )
        return f"{name} " in done.stdout and f"{name} " in "".join(
            line for line in done.stdout.splitlines() if line.endswith("started")
        )

    eventually(up, f"{name} is started again")
    stack.forget()


def test_a_rebooted_consumer_host_has_all_its_workers_on_the_same_release(stack, eventually):
    helper = "sudo -n /usr/local/sbin/kestrel-stack-workers status shop_hello_world"

    def workers():
        done = stack.host("worker2", "deploy").run(helper)
        return json.loads(done.stdout)["processes"] if done.rc == 0 else []

    before = {one["name"]: one["release"] for one in workers()}
    assert before
    assert None not in before.values()
    reboot(stack, "worker2", eventually)
    eventually(
        lambda: {one["name"]: one["release"] for one in workers() if one["state"] == "RUNNING"} == before,
        "all workers RUNNING from their release",
    )


def test_a_rebooted_queue_has_what_was_acknowledged_and_its_packet_filter_first(
    stack, root, memcache, eventually
):
    address = stack.vars("queue1")["kestrel_stack_address"]
    memcache("worker1", address, 22133, "delete reboot_probe\r\n")
    assert memcache("worker1", address, 22133, "set reboot_probe 0 0 5\r\nstays\r\n") == "STORED\r\n"
    reboot(stack, "queue1", eventually)
    probe = f"python3 -c 'import socket; socket.create_connection((\"{address}\", 22133), 3)'"
    eventually(lambda: stack.host("worker1").run(probe).rc == 0, "Kestrel answers again")
    assert "stays" in memcache("worker1", address, 22133, "get reboot_probe\r\n", "END\r\n")
    memcache("worker1", address, 22133, "delete reboot_probe\r\n")
    assert "reject" in root("queue1", "nft list table inet kestrel_stack")
    loaded, started = root(
        "queue1",
        "systemctl show --value --property ActiveEnterTimestampMonotonic kestrel-stack-firewall;"
        " systemctl show --value --property ExecMainStartTimestampMonotonic kestrel",
    ).split()
    assert 0 < int(loaded) < int(started)
