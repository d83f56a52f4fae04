"""A release's admin port listens on every address: what keeps strangers out are packets that are refused."""

from __future__ import annotations

import pytest

PORT, ADMIN = 22133, 2223
# By the inventory's groups: web, kestrel_web, and none.
REACH_PORT = {"site1": True, "panel1": True, "stranger1": False}
REACH_ADMIN = {"site1": False, "panel1": True, "stranger1": False}

# Exit code 0: connected; 7: refused at once; anything else: neither.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except ConnectionRefusedError:
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def reaches(stack, admin):
    def probe(host, port):
        address = stack.vars("queue1")["kestrel_stack_address"]
        done = admin(host).run("python3 -c %s %s %s", CONNECT, address, str(port))
        assert done.rc in (0, 7), f"{host} -> {address}:{port}: {done.stderr}"
        return done.rc == 0

    return probe


def test_the_admin_port_listens_on_every_address_whatever_it_is_told(root):
    listening = {line.split()[3] for line in root("queue1", "ss -H -l -t -n").splitlines()}
    assert listening & {f"*:{ADMIN}", f"0.0.0.0:{ADMIN}", f"[::]:{ADMIN}"}, listening
    # Text and thrift are off.
    assert not [one for one in listening if one.endswith((":2222", ":2229"))]


def test_exactly_the_hosts_that_need_a_port_reach_it(reaches):
    assert {host: reaches(host, PORT) for host in REACH_PORT} == REACH_PORT
    assert {host: reaches(host, ADMIN) for host in REACH_ADMIN} == REACH_ADMIN


def test_without_our_table_a_stranger_would_reach_the_admin_port(root, reaches):
    root("queue1", "nft delete table inet kestrel_stack")
    try:
        assert reaches("stranger1", ADMIN)
    finally:
        root("queue1", "kestrel-stack-firewall ensure")
    assert not reaches("stranger1", ADMIN)
