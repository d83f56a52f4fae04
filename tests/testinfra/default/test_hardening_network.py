"""What of the hosts can be reached: the sockets that the inventory asked for, from the right hosts.

And whom we talk to: a host that shows another key than the known one gets nothing of Ansible or the deploy.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
INVENTORY = Path(os.environ.get("KESTREL_STACK_INVENTORY") or CHECKOUT / "ansible/inventories/lab")
SSH = {("tcp", "0.0.0.0", 22), ("tcp", "::", 22)}
PORTS = {"kestrel": {22133, 2223}, "web": {8080}, "kestrel_web": {8090}, "sentry": {8765}}
"""What each group adds, on the host's own address."""
RESOLVER = "127.0.0.11"
"""The containers' own: whatever Docker has put there is not in a machine."""

# Exit code 0: connected; 7: refused at once; 9: no such way; anything else: neither.
CONNECT = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except ConnectionRefusedError:
    sys.exit(7)
except OSError as error:
    sys.exit(9 if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH) else 1)
"""
# Sockets that answer on an IPv6 address, whoever comes.
LISTEN = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in sys.argv[2:]:
    server = socket.create_server((sys.argv[1], int(port)), family=socket.AF_INET6)
    ready.register(server, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        key.fileobj.accept()[0].close()
"""


def hosts(stack):
    return sorted(stack.data["_meta"]["hostvars"])


def listening(text):
    """Return (protocol, address, port) of each line of `ss -lntuH`."""
    found = set()
    for line in text.splitlines():
        protocol, _, _, _, local = line.split()[:5]
        address, _, port = local.rpartition(":")
        address = re.sub(r"%\w+$", "", address).strip("[]").removeprefix("::ffff:")
        if address != RESOLVER:
            found.add((protocol, "0.0.0.0" if address == "*" else address, int(port)))
    return found


def wanted(stack, host):
    """Return what a host shall listen on, by the groups that it is in."""
    address = stack.vars(host)["kestrel_stack_address"]
    ports = set().union(*(PORTS[group] for group in PORTS if host in stack.group(group)))
    found = SSH | {("tcp", address, port) for port in ports}
    if os.environ.get("KESTREL_ARCHIVE") and host in stack.group("kestrel"):
        # A release binds its admin port to every address, whatever it is told; the packet filter keeps it.
        found = found - {("tcp", address, 2223)} | {("tcp", "0.0.0.0", 2223)}
    return found


@pytest.fixture(autouse=True)
def _several_hosts(stack):
    if len(hosts(stack)) == 1:
        pytest.skip("everything is on one host")


def test_every_host_listens_where_the_inventory_says_and_nowhere_else(stack, root):
    found = {host: listening(root(host, "ss -lntuH")) for host in hosts(stack)}
    assert found == {host: wanted(stack, host) for host in hosts(stack)}


def test_a_unix_socket_of_ours_is_for_those_who_need_it(stack, root):
    """By what `ss` says is listening, not by what there ought to be."""
    ours = re.compile(r"kestrel|supervis|bugsink|sentry|shop|nginx|php|gunicorn")
    found = {}
    for host in hosts(stack):
        paths = {line.split()[4] for line in root(host, "ss -lxH").splitlines()}
        # supervisord binds a name with its pid, and links it to the one that is known.
        paths = {re.sub(r"\.sock\.\d+$", ".sock", one) for one in paths}
        for path in sorted(one for one in paths if one.startswith("/") and ours.search(one)):
            found[path] = root(host, f"stat -c '%a %U %G' {path}").strip()
    assert found == {
        "/run/supervisor.sock": "700 root root",
        "/run/kestrel-stack-web/shop.sock": "660 root www-data",
    }


def reaches(stack, host, address, port):
    done = stack.host(host).run("python3 -c %s %s %s", CONNECT, address, str(port))
    assert done.rc in (0, 7), f"{host} -> {address}:{port}: {done.rc} {done.stderr}"
    return done.rc == 0


def test_exactly_the_hosts_of_the_right_groups_reach_the_queues_ports(stack):
    """From every host to both ports; the machine that runs this test is in no group at all."""
    [queue] = stack.group("kestrel")
    address = stack.vars(queue)["kestrel_stack_address"]
    found = {
        host: (reaches(stack, host, address, 22133), reaches(stack, host, address, 2223))
        for host in hosts(stack)
    }
    panels = stack.group("kestrel_web")
    assert found == {host: (True, host in panels or host == queue) for host in hosts(stack)}
    assert False in {admin for _, admin in found.values()}
    for port in (22133, 2223):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), 5)


def test_over_ipv6_nobody_reaches_the_queues_ports_whatever_listens_there(stack, root):
    """The table is of both families: who has no address in it is refused, although a socket is there.

    The stranger is a network namespace with a link to the queue's host; both go when the test ends.
    """
    [queue] = stack.group("kestrel")
    admin = stack.host(queue)
    made = admin.run(
        "sudo sh -c %s",
        # Containers have no IPv6 and a /proc/sys that cannot be written: only these two ends get it.
        "mkdir -p /run/v6-proc && mount -t proc proc /run/v6-proc"
        " && ip netns add stranger && ip link add v6q type veth peer name v6s netns stranger"
        " && echo 0 >/run/v6-proc/sys/net/ipv6/conf/v6q/disable_ipv6"
        " && nsenter --net=/run/netns/stranger"
        " sh -c 'echo 0 >/run/v6-proc/sys/net/ipv6/conf/v6s/disable_ipv6'"
        " && ip link set v6q up && ip netns exec stranger ip link set v6s up"
        " && ip -6 addr add fd00:6b73::1/64 dev v6q nodad"
        " && ip netns exec stranger ip -6 addr add fd00:6b73::2/64 dev v6s nodad",
    )
    try:
        if made.rc != 0:
            pytest.skip(f"no IPv6 link can be made here: {made.stderr.strip()}")
        # 22134 is nobody's: it shows that the link carries packets and that somebody answers.
        started = admin.run(
            "sudo systemd-run --quiet --collect --unit v6-probe -p User=nobody -p RuntimeMaxSec=60"
            " python3 -c %s fd00:6b73::1 22133 2223 22134",
            LISTEN,
        )
        assert started.rc == 0, started.stderr
        root(
            queue,
            "for i in $(seq 100); do ss -lntH6 | grep -q :22134 && exit 0; sleep 0.1; done; exit 1",
        )
        asked = {
            port: admin.run(
                "sudo ip netns exec stranger timeout 10 python3 -c %s fd00:6b73::1 %s", CONNECT, str(port)
            ).rc
            for port in (22133, 2223, 22134)
        }
        assert asked == {22133: 7, 2223: 7, 22134: 0}
    finally:
        admin.run("sudo systemctl stop v6-probe")
        admin.run(
            "sudo sh -c %s",
            "ip link del v6q; ip netns del stranger; umount /run/v6-proc && rmdir /run/v6-proc",
        )


@pytest.fixture
def other_keys(stack, tmp_path):
    """A copy of the inventory in which worker1 and worker2 are known by each other's host key."""
    copy = tmp_path / "inventory"
    shutil.copytree(INVENTORY, copy, symlinks=False)
    config = Path(stack.vars("worker1")["deploy_ssh_config"]).read_text()
    known = Path(re.search(r'UserKnownHostsFile "?([^"\n]+)', config)[1])
    names = [
        re.search(rf"^({host},\S+) ", known.read_text(), re.MULTILINE)[1] for host in ("worker1", "worker2")
    ]
    text = known.read_text().replace(names[0], "SWAP").replace(names[1], names[0]).replace("SWAP", names[1])
    (tmp_path / "known_hosts").write_text(text)
    (tmp_path / "config").write_text(
        re.sub(r"UserKnownHostsFile .*", f"UserKnownHostsFile {tmp_path}/known_hosts", config)
    )
    text = (copy / "containers.yml").read_text()
    assert stack.vars("worker1")["deploy_ssh_config"] in text
    (copy / "containers.yml").write_text(
        text.replace(stack.vars("worker1")["deploy_ssh_config"], str(tmp_path / "config"))
    )
    return copy


def tool(name, *arguments):
    return subprocess.run(
        [Path(sys.executable).parent / name, *arguments],
        cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_ansible_refuses_a_host_that_shows_another_key(other_keys):
    done = tool("ansible", "-i", str(other_keys), "worker1:queue1", "-m", "ansible.builtin.ping", "-o")
    # ssh's own words, or Mitogen's.
    said = done.stdout + done.stderr
    assert "Host key verification failed" in said or "unrecognized or mismatching host key" in said
    assert "worker1 | UNREACHABLE" in done.stdout
    assert "queue1 | SUCCESS" in done.stdout


def test_the_deploy_refuses_a_host_that_shows_another_key(other_keys):
    done = tool("fab", "status", "--env", str(other_keys), "--limit", "worker1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the host key has changed" in done.stdout + done.stderr


def test_ssh_takes_no_empty_password_and_nobody_has_one(stack, root):
    for host in stack.group("app"):
        said = dict(
            line.partition(" ")[::2]
            for line in root(host, "sshd -T -C user=deploy,host=x,addr=192.0.2.1").splitlines()
        )
        assert said["permitemptypasswords"] == "no"
        # Nobody has one, so that none can be guessed whatever sshd allows.
        assert root(host, "awk -F: '$2 !~ /^[!*]/ {print $1}' /etc/shadow") == ""
