"""The queue server, as the consumers and an attacker see it."""

from __future__ import annotations

import os
import re
import socket

import pytest

# The lab runs the release that this names, else the embedded one.
RELEASE = bool(os.environ.get("KESTREL_ARCHIVE"))


@pytest.fixture
def queue(stack):
    return stack.group("kestrel")[0]


@pytest.fixture
def address(stack, queue):
    return stack.vars(queue)["kestrel_stack_address"]


def main_pid(root, host):
    return int(root(host, "systemctl show --property MainPID --value kestrel"))


def listening(root, host):
    """Return address:port of every listening TCP socket but ssh's and Docker's own name server."""
    found = {line.split()[3] for line in root(host, "ss -H -l -t -n").splitlines()}
    return {one for one in found if not one.endswith(":22") and not one.startswith("127.0.0.11:")}


def test_every_consumer_host_gets_a_version_over_tcp(stack, memcache, address):
    assert stack.group("consumers")
    for host in stack.group("consumers"):
        assert memcache(host, address, 22133, "version\r\n").startswith("VERSION ")


def test_the_queue_listens_where_it_was_told_and_nowhere_else(root, queue, address):
    # A release binds its admin port to every address, whatever it is told; kestrel-web's host gets through.
    admin = "0.0.0.0:2223" if RELEASE else f"{address}:2223"
    # A JVM's sockets serve both families, and are shown so.
    found = {re.sub(r"^\[::ffff:(.*)\]:", r"\1:", one) for one in listening(root, queue)}
    assert {one.replace("*:", "0.0.0.0:") for one in found} == {f"{address}:22133", admin}


def test_the_admin_port_cannot_be_reached_from_a_worker_and_that_is_counted(
    root, admin, stack, queue, address
):
    before = refused(root, queue, "admin")
    worker = admin(stack.group("consumers")[0])
    probe = worker.run("python3 -c 'import socket; socket.create_connection((\"%s\", 2223), 3)'", address)
    assert probe.rc != 0
    assert "ConnectionRefusedError" in probe.stderr
    # By the packet filter, and not only because nobody listens there.
    assert refused(root, queue, "admin") > before


def test_a_machine_in_none_of_the_groups_is_refused_by_the_packet_filter(root, stack, queue, address):
    """The stranger is the machine that runs this test: it deploys by ssh and never talks to the queue."""
    if address in {stack.vars(host)["kestrel_stack_address"] for host in stack.group("consumers")}:
        pytest.skip("everything is on one host")
    for port, chain in ((22133, "port"), (2223, "admin")):
        before = refused(root, queue, chain)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), 5)
        assert refused(root, queue, chain) > before


def refused(root, host, chain):
    """Return how many packets our packet filter has refused in a chain."""
    [line] = [
        line
        for line in root(host, f"nft list chain inet kestrel_stack {chain}").splitlines()
        if "reject" in line
    ]
    return int(re.search(r"packets (\d+)", line).group(1))


def test_the_server_runs_as_its_own_user_without_any_privilege(root, queue):
    pid = main_pid(root, queue)
    assert root(queue, f"ps -o user= -p {pid}").strip() == "kestrel"
    status = dict(line.split(":", 1) for line in root(queue, f"cat /proc/{pid}/status").splitlines())
    assert status["CapEff"].strip() == status["CapBnd"].strip() == "0000000000000000"
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"


def test_the_server_can_write_its_journals_and_nothing_else(root, queue, eventually):
    # World-writable folders show the sandbox, not the file rights. The probe runs in the unit's own sandbox.
    drop_in = "/run/systemd/system/kestrel.service.d"
    root(
        queue,
        f"mkdir -p {drop_in} && install -d -m 1777 /opt/probe /var/probe"
        f" && cat >{drop_in}/probe.conf <<'UNIT'\n"
        "[Service]\n"
        "ExecStartPre=/bin/sh -c 'for d in /opt/probe /var/probe /etc/kestrel /opt/kestrel /var/spool/kestrel"
        " /var/lib/kestrel /tmp; do if touch $$d/.probe; then rm $$d/.probe; echo probe-yes $$d;"
        " else echo probe-no $$d; fi; done'\n"
        "UNIT\n"
        "systemctl daemon-reload && systemctl restart kestrel",
    )
    try:
        log = root(
            queue,
            "journalctl --unit kestrel --output cat --no-pager"
            " _SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value kestrel)",
        )
    finally:
        root(
            queue,
            f"rm -r {drop_in} /opt/probe /var/probe && systemctl daemon-reload && systemctl restart kestrel",
        )
    answers = dict(reversed(pair) for pair in re.findall(r"probe-(yes|no) (\S+)", log))
    assert answers == {
        "/opt/probe": "no",
        "/var/probe": "no",
        "/etc/kestrel": "no",
        "/opt/kestrel": "no",
        "/var/spool/kestrel": "yes",
        "/var/lib/kestrel": "yes",
        "/tmp": "yes",
    }


def test_what_was_acknowledged_survives_a_killed_server_that_systemd_starts_again(
    stack, root, memcache, queue, address, eventually
):
    worker = stack.group("consumers")[0]
    eventually(lambda: answers(stack, address), "Kestrel answers again after the test before")
    version = memcache(worker, address, 22133, "version\r\n")
    items = [f"item-{number}" for number in range(1000)]
    sets = "".join(f"set molecule_probe 0 0 {len(item)}\r\n{item}\r\n" for item in items)
    memcache(worker, address, 22133, "delete molecule_probe\r\n")
    answer = memcache(worker, address, 22133, f"{sets}version\r\n", version)
    assert answer.count("STORED\r\n") == len(items)

    killed = main_pid(root, queue)
    root(queue, f"kill -9 {killed}")
    started = eventually(
        lambda: (pid := main_pid(root, queue)) not in (0, killed) and pid, "systemd starts Kestrel again"
    )
    assert started != killed
    eventually(lambda: answers(stack, address), "Kestrel answers again")

    gets = "get molecule_probe\r\n" * (len(items) + 1)
    answer = memcache(worker, address, 22133, f"{gets}version\r\n", version)
    memcache(worker, address, 22133, "delete molecule_probe\r\n")
    assert re.findall(r"item-\d+", answer) == items


def answers(stack, address):
    worker = stack.host(stack.group("consumers")[0])
    return (
        worker.run("python3 -c 'import socket; socket.create_connection((\"%s\", 22133), 3)'", address).rc
        == 0
    )


def test_the_configuration_and_the_journals_are_nobody_elses_business(root, queue):
    config = f"/etc/kestrel/{'kestrel.scala' if RELEASE else 'embedded.json'}"
    shown = root(queue, f"stat -c '%a %U %G %n' /etc/kestrel {config} /var/spool/kestrel")
    assert shown.splitlines() == [
        "750 root kestrel /etc/kestrel",
        f"640 root kestrel {config}",
        "750 kestrel kestrel /var/spool/kestrel",
    ]
