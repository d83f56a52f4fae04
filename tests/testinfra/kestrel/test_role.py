"""Role kestrel alone, with every variable changed from its default."""

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


def test_the_ports_and_addresses_are_those_of_the_inventory(root, address):
    found = {line.split()[3] for line in root("queue1", "ss -H -l -t -n").splitlines()}
    assert {one for one in found if not one.endswith(":22") and not one.startswith("127.0.0.11:")} == {
        f"{address}:22144",
        "127.0.0.2:2244",
    }


def test_every_variable_reaches_the_configuration(root, address):
    written = json.loads(root("queue1", "cat /etc/kestrel/embedded.json"))
    assert written == {
        "listen_address": address,
        "port": 22144,
        "admin_address": "127.0.0.2",
        "admin_port": 2244,
        "queue_path": "/var/spool/kestrel",
        "max_open_transactions": 2,
        "sync_journal_ms": 0,
        "log_level": "debug",
        "default": {},
        "queues": {"Other-ns_1_limited": {"max_items": 3}},
    }
    assert root("queue1", "systemctl show kestrel --property LimitNOFILE --value").strip() == "4096"


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


def test_nothing_but_journals_is_in_the_spool(root):
    assert root("queue1", "find /var/spool/kestrel ! -user kestrel").strip() == ""
    assert root("queue1", "find /var/spool/kestrel -type d").split() == ["/var/spool/kestrel"]
