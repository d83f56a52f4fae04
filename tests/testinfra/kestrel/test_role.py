"""Role kestrel alone: queue1 with every variable changed from its default, queue2 as it comes."""

from __future__ import annotations

import json
import time

import pytest


@pytest.fixture(scope="module")
def address(stack):
    return stack.vars("queue1")["kestrel_stack_address"]


@pytest.fixture(scope="module")
def talk(memcache, address):
    def say(text, ends="\r\n"):
        return memcache("queue1", address, 22144, text, ends)

    return say


def listening(root, host):
    """Return address:port of every listening TCP socket but ssh's and Docker's own name server."""
    found = {line.split()[3] for line in root(host, "ss -H -l -t -n").splitlines()}
    return {one for one in found if not one.endswith(":22") and not one.startswith("127.0.0.11:")}


def test_the_ports_and_addresses_are_those_of_the_inventory(root, stack, address):
    assert listening(root, "queue1") == {f"{address}:22144", "0.0.0.0:2244"}
    plain = stack.vars("queue2")["kestrel_stack_address"]
    assert listening(root, "queue2") == {f"{plain}:22133", "127.0.0.1:2223"}


def test_every_variable_reaches_the_configuration(root, address):
    written = json.loads(root("queue1", "cat /etc/kestrel/embedded.json"))
    queues = written.pop("queues")
    assert (
        written.pop("default").items() >= {"max_memory_size": 5 << 20, "max_journal_size": 64 << 20}.items()
    )
    assert written == {
        "listen_address": address,
        "port": 22144,
        "admin_address": "0.0.0.0",
        "admin_port": 2244,
        "queue_path": "/var/spool/kestrel",
        "status_file": "/var/lib/kestrel/status",
        "max_open_transactions": 2,
        "client_timeout_ms": 3600_000,
        "expiration_timer_ms": 2000,
        "sync_journal_ms": 0,
        "log_level": "debug",
        "aliases": {"Other-ns_1_both": ["Other-ns_1_limited", "Other-ns_1_unlimited"]},
    }
    assert (
        queues["Other-ns_1_limited"].items()
        >= {
            "max_items": 3,
            "max_memory_size": 6 << 20,
            "default_journal_size": 2 << 20,
        }.items()
    )
    assert root("queue1", "systemctl show kestrel --property LimitNOFILE --value").strip() == "4096"
    assert root("queue1", "systemctl show kestrel --property TimeoutStopUSec --value").strip() == "33s"


def test_a_set_to_an_alias_is_in_each_of_its_queues(talk):
    assert talk("set Other-ns_1_both 0 0 1\r\nx\r\n") == "STORED\r\n"
    for name in ("limited", "unlimited"):
        assert talk(f"get Other-ns_1_{name}\r\n", "END\r\n") == (
            f"VALUE Other-ns_1_{name} 0 1\r\nx\r\nEND\r\n"
        )


def test_a_queue_takes_max_items_and_refuses_more_while_its_error_queue_takes_all(talk):
    one = "set {name} 0 0 1\r\nx\r\n"
    for name, stored in [
        ("Other-ns_1_limited", 3),
        ("Other-ns_1_limited_errors", 5),
        ("Other-ns_1_unlimited", 5),
    ]:
        talk(f"delete {name}\r\n")
        answers = [talk(one.format(name=name)) for _ in range(5)]
        talk(f"delete {name}\r\n")
        assert answers == ["STORED\r\n"] * stored + ["NOT_STORED\r\n"] * (5 - stored), name


def test_the_oldest_versions_are_removed_and_the_current_one_is_not(root):
    current = root("queue1", "readlink /opt/kestrel/current").strip().removeprefix("releases/")
    left = root("queue1", "ls /opt/kestrel/releases").split()
    assert sorted(left) == sorted(["embedded-0.0.3-000000000000", current])
    assert root("queue1", "ls -L /opt/kestrel/current").split() == ["kestrel-embedded.pyz"]


def test_a_restart_keeps_what_is_queued(root, talk, memcache, address):
    talk("delete restart_probe\r\n")
    assert talk("set restart_probe 0 0 5\r\nstays\r\n") == "STORED\r\n"
    root("queue1", "systemctl restart kestrel")
    for _ in range(100):
        if root("queue1", f"ss -H -l -t -n 'src {address}:22144'").strip():
            break
        time.sleep(0.1)
    assert "stays" in talk("get restart_probe\r\n", "END\r\n")
