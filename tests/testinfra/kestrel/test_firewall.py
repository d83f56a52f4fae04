"""The packet filter, proven with packets of other hosts: queue1's admin port is open, as a release has it."""

from __future__ import annotations

import json
import shlex

import pytest

PORT, ADMIN = 22144, 2244
# Who is let through, by the inventory's groups.
REACH_PORT = {"worker1": True, "panel1": True, "queue2": True, "stranger1": False}
REACH_ADMIN = {"worker1": False, "panel1": True, "queue2": False, "stranger1": False}
TABLE = "nft list table inet kestrel_stack"
UNIT = "kestrel-stack-firewall.service"

# Exit code 0: connected; 7: refused at once; anything else: neither.
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except ConnectionRefusedError:
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def address(stack):
    return stack.vars("queue1")["kestrel_stack_address"]


@pytest.fixture(scope="module")
def reaches(admin, address):
    def probe(host, port):
        done = admin(host).run("python3 -c %s %s %s", CONNECT, address, str(port))
        assert done.rc in (0, 7), f"{host} -> {address}:{port}: {done.stderr}"
        return done.rc == 0

    return probe


@pytest.fixture(scope="module")
def counted(root):
    def count(chain, verdict):
        listed = json.loads(root("queue1", "nft --json list table inet kestrel_stack"))["nftables"]
        return sum(
            part["counter"]["packets"]
            for entry in listed
            if (rule := entry.get("rule")) and rule["chain"] == chain
            for part in rule["expr"]
            if "counter" in part and any(verdict in other for other in rule["expr"])
        )

    return count


def test_exactly_the_hosts_that_need_the_memcache_port_reach_it(reaches):
    assert {host: reaches(host, PORT) for host in REACH_PORT} == REACH_PORT


def test_exactly_the_hosts_that_show_the_queues_reach_the_admin_port(reaches):
    assert {host: reaches(host, ADMIN) for host in REACH_ADMIN} == REACH_ADMIN


def test_the_host_itself_reaches_both_by_loopback_and_by_its_own_address(admin, address):
    for where, port in [(address, PORT), (address, ADMIN), ("127.0.0.1", ADMIN)]:
        assert admin("queue1").run("python3 -c %s %s %s", CONNECT, where, str(port)).rc == 0


def test_who_is_refused_and_who_is_let_through_is_counted(reaches, counted):
    refused, let = counted("admin", "reject"), counted("port", "accept")
    assert not reaches("stranger1", ADMIN)
    assert reaches("worker1", PORT)
    assert counted("admin", "reject") > refused
    assert counted("port", "accept") > let


def test_a_table_that_was_removed_by_hand_is_put_back_by_the_units_reload(root, reaches):
    # Without the table strangers get in: that is what keeps them out.
    root("queue1", "nft delete table inet kestrel_stack")
    assert reaches("stranger1", ADMIN)
    root("queue1", f"systemctl reload {UNIT}")
    assert not reaches("stranger1", ADMIN)
    assert reaches("worker1", PORT)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nft delete table inet kestrel_stack", "loaded: there was no table"),
        ("nft flush chain inet kestrel_stack admin", "loaded: somebody had changed the table"),
        ("nft add rule inet kestrel_stack admin accept", "loaded: somebody had changed the table"),
        ("rm /run/kestrel-stack-firewall/loaded.json", "loaded: nobody had noted what was loaded"),
    ],
)
def test_what_somebody_changed_by_hand_is_put_back_by_the_next_run_and_only_then(root, reaches, damage, said):
    root("queue1", damage)
    assert root("queue1", "kestrel-stack-firewall ensure").strip() == said
    assert root("queue1", "kestrel-stack-firewall ensure") == ""
    assert not reaches("stranger1", ADMIN)


def test_a_timer_puts_a_flushed_table_back_and_says_so_once(root, reaches):
    ensure = "kestrel-stack-firewall-ensure"
    shown = root("queue1", f"systemctl show {ensure}.timer -p ActiveState -p TimersMonotonic")
    assert "ActiveState=active" in shown
    assert "OnUnitInactiveUSec=1min ;" in shown
    since = root("queue1", "date +%s.%N").strip()
    root("queue1", "nft delete table inet kestrel_stack")
    # What the timer starts.
    root("queue1", f"systemctl start {ensure}.service && systemctl start {ensure}.service")
    assert not reaches("stranger1", ADMIN)
    log = root("queue1", f"journalctl --unit {ensure} --since @{since} --output cat --no-pager")
    assert log.splitlines() == ["loaded: there was no table"]


def test_packets_that_were_counted_do_not_count_as_a_change(root, reaches):
    reaches("stranger1", PORT)
    assert root("queue1", "kestrel-stack-firewall ensure") == ""


def test_other_tables_are_never_touched(root):
    root(
        "queue1",
        "nft add table inet other; nft add chain inet other mine; nft add rule inet other mine tcp dport 1",
    )
    before = root("queue1", "nft list table inet other")
    try:
        for command in (
            "kestrel-stack-firewall load",
            f"systemctl reload {UNIT}",
            f"systemctl restart {UNIT}",
            f"systemctl stop {UNIT}",
            f"systemctl start {UNIT}",
        ):
            root("queue1", command)
            assert root("queue1", "nft list table inet other") == before, command
    finally:
        root("queue1", f"nft delete table inet other; systemctl start {UNIT}")


def test_a_stopped_unit_takes_the_table_away_and_a_started_one_brings_it_back(root, admin):
    timer = "kestrel-stack-firewall-ensure.timer"
    root("queue1", f"systemctl stop {UNIT}")
    assert admin("queue1").run(f"sudo {TABLE}").rc != 0
    assert root("queue1", f"systemctl is-active {timer} || :").strip() == "inactive"
    # Stopping what is not there is no error.
    root("queue1", "kestrel-stack-firewall remove")
    root("queue1", f"systemctl start {UNIT}")
    root("queue1", TABLE)
    assert root("queue1", f"systemctl is-active {timer}").strip() == "active"


def test_the_package_left_debians_own_unit_off_and_the_ruleset_alone(root):
    for host in ("queue1", "queue2"):
        shown = root(host, "systemctl is-enabled nftables || :; systemctl is-active nftables || :")
        assert shown.split() == ["disabled", "inactive"]
        assert root(host, "nft list tables inet").split() == ["table", "inet", "kestrel_stack"]


@pytest.fixture
def flushable(root, eventually):
    """Let Debian's unit and ours work in a network stack of their own; return how to look at our table there.

    The host's own ruleset has the engine's rules for its name server, which no program here could put back.
    Only a restart takes a sandboxed unit there; the host has its table again at once.
    """
    units = "nftables.service kestrel-stack-firewall.service"
    root(
        "queue1",
        f"ip netns add flushable; for unit in {units}; do mkdir -p /run/systemd/system/$unit.d"
        " && printf '[Service]\\nNetworkNamespacePath=/run/netns/flushable\\n'"
        " >/run/systemd/system/$unit.d/netns.conf; done; systemctl daemon-reload;"
        f" systemctl restart {UNIT}; /usr/local/sbin/kestrel-stack-firewall load",
    )
    yield lambda: root("queue1", f"ip netns exec flushable {TABLE} 2>/dev/null || :")
    root(
        "queue1",
        f"systemctl stop nftables; for unit in {units}; do rm -r /run/systemd/system/$unit.d; done;"
        f" systemctl daemon-reload; systemctl restart {UNIT}; ip netns del flushable",
    )


def test_ours_comes_back_after_debians_own_unit_has_flushed_everything(root, eventually, flushable):
    assert "reject" in flushable()
    for action in ("start", "reload", "restart", "stop"):
        # Something of nobody's shows that it was flushed.
        root("queue1", "ip netns exec flushable nft add table inet witness")
        root("queue1", f"systemctl {action} nftables")
        assert root("queue1", "ip netns exec flushable nft list tables inet").count("witness") == 0
        eventually(lambda: "reject" in flushable(), f"our table is back after {action} of nftables", 10)


def test_at_a_boot_our_table_is_there_before_the_network_and_kestrel(root):
    before = root("queue1", f"systemctl show {UNIT} --property Before --value").split()
    assert {"network-pre.target", "kestrel.service"} <= set(before)
    assert "nftables.service" in root("queue1", f"systemctl show {UNIT} --property After --value").split()
    wanted = root("queue1", f"systemctl show {UNIT} --property WantedBy --value").split()
    assert set(wanted) == {"kestrel.service", "multi-user.target"}


def test_ipv6_is_held_to_the_same(root):
    """Two more network stacks inside queue1: one with our table and a listener, one that calls it."""
    listen = f"""
import socket, time
listening = [socket.create_server(("::", port), family=socket.AF_INET6) for port in ({PORT}, {ADMIN})]
print(flush=True)
time.sleep(600)
"""
    targets = " ".join(f"fd00:{net}::1:{port}" for net in (22, 33) for port in (PORT, ADMIN))
    script = f"""
set -eu
trap 'ip netns del served 2>/dev/null; ip netns del caller 2>/dev/null' EXIT
ip netns add served; ip netns add caller
ip link add one netns served type veth peer name two netns caller
ip -n served link set lo up; ip -n served link set one up; ip -n caller link set two up
for net in 22 33; do
  ip -n served addr add fd00:$net::1/64 dev one nodad; ip -n caller addr add fd00:$net::9/64 dev two nodad
done
ip netns exec served nft --file /etc/kestrel/firewall.nft
ip netns exec served python3 -c {shlex.quote(listen)} >/tmp/listens & listener=$!
while ! [ -s /tmp/listens ]; do sleep 0.05; done
for target in {targets}; do
  code=0
  ip netns exec caller python3 -c {shlex.quote(CONNECT)} "${{target%:*}}" "${{target##*:}}" || code=$?
  echo "$target $code"
done
kill $listener; rm /tmp/listens
"""
    # The inventory lets fd00:22::/64 to the memcache port and fd00:22::9 to the admin port.
    assert root("queue1", script).splitlines() == [
        f"fd00:22::1:{PORT} 0",
        f"fd00:22::1:{ADMIN} 0",
        f"fd00:33::1:{PORT} 7",
        f"fd00:33::1:{ADMIN} 7",
    ]


def test_a_file_that_the_kernel_refuses_leaves_the_table_as_it_is(root, admin):
    before = root("queue1", f"nft --stateless {TABLE.removeprefix('nft ')}")
    root(
        "queue1",
        "cp -p /etc/kestrel/firewall.nft /root/kept"
        " && sed -i 's/reject with/rejct with/' /etc/kestrel/firewall.nft",
    )
    try:
        done = admin("queue1").run(f"sudo systemctl reload {UNIT}")
        assert done.rc != 0
        assert root("queue1", f"nft --stateless {TABLE.removeprefix('nft ')}") == before
        said = admin("queue1").run("sudo kestrel-stack-firewall load")
        assert said.rc == 1
        assert said.stderr.startswith("kestrel-stack-firewall: nft does not load /etc/kestrel/firewall.nft: ")
        assert len(said.stderr.splitlines()) == 1
    finally:
        root("queue1", "mv /root/kept /etc/kestrel/firewall.nft; kestrel-stack-firewall ensure")
    assert root("queue1", "kestrel-stack-firewall ensure") == ""


def test_wrong_usage_is_one_line(admin):
    done = admin("queue1").run("sudo kestrel-stack-firewall open")
    assert (done.rc, done.stderr) == (
        2,
        "kestrel-stack-firewall: usage: kestrel-stack-firewall load|ensure|remove\n",
    )
