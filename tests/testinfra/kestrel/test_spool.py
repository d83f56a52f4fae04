"""The folder of the journals: queue1 has a file system of its own (a small tmpfs), and its guard."""

from __future__ import annotations

import json

import pytest

PORT = 22144
SPOOL = "/var/spool/kestrel"
STATE = "/var/lib/kestrel/guard.json"
GUARD = "kestrel-stack-spool-guard"
# A folder is no queue, so what is in it takes room and nothing else.
FILLER = f"{SPOOL}/filler"


@pytest.fixture(scope="module")
def talk(stack, memcache):
    address = stack.vars("queue1")["kestrel_stack_address"]

    def say(text, ends="\r\n"):
        return memcache("queue1", address, PORT, text, ends)

    return say


@pytest.fixture
def fill(root):
    """Take room on the journals' file system, and give it back at the end."""

    def take(command):
        root("queue1", f"mkdir -p {FILLER} && cd {FILLER} && {command}")

    yield take
    root("queue1", f"rm -rf {FILLER}")


@pytest.fixture
def is_status(root, talk, eventually):
    def look(status):
        listens = root("queue1", f"ss -H -l -t -n 'sport = {PORT}'").strip()
        return listens and talk("status\r\n").strip() == status

    def wait(status):
        eventually(lambda: look(status), f"the server is {status}", 20)

    return wait


def test_the_journals_have_a_file_system_of_their_own_that_is_kestrels(root):
    shown = root("queue1", f"findmnt --noheadings --output FSTYPE,OPTIONS {SPOOL}")
    assert shown.split()[0] == "tmpfs"
    assert {"noexec", "size=49152k"} <= set(shown.split()[1].split(","))
    assert root("queue1", f"stat -c '%U %G %a' {SPOOL}").split() == ["kestrel", "kestrel", "750"]


def test_without_its_file_system_the_server_does_not_run(root):
    needs = root("queue1", "systemctl show kestrel --property Requires --value").split()
    assert "var-spool-kestrel.mount" in needs
    after = root("queue1", "systemctl show kestrel --property After --value").split()
    assert "var-spool-kestrel.mount" in after


def test_nothing_but_journals_is_in_the_spool(root):
    for host in ("queue1", "queue2"):
        assert root(host, f"find {SPOOL} ! -user kestrel").strip() == ""
        assert root(host, f"find {SPOOL} -type d").split() == [SPOOL]


def test_little_room_makes_the_server_readonly_and_room_makes_it_up_again(
    root, talk, fill, is_status, eventually
):
    assert talk("status\r\n") == "UP\r\n"
    since = root("queue1", "date +%s.%N").strip()
    fill("head -c 30M /dev/zero >much")
    is_status("READONLY")
    assert json.loads(root("queue1", f"cat {STATE}"))["status"] == "READONLY"
    # A producer is refused and disconnected: nothing is taken that could be lost.
    assert talk("set full_probe 0 0 1\r\nx\r\nversion\r\n") == "SERVER_ERROR\r\n"
    # 25 MB of 48 are free: above the floor of 24, and not a tenth above it.
    fill("truncate -s 23M much")
    root("queue1", f"systemctl start {GUARD}.service")
    assert talk("status\r\n") == "READONLY\r\n"
    fill("rm much")
    is_status("UP")
    eventually(lambda: root("queue1", f"ls {STATE} 2>/dev/null || :") == "", "nothing is noted any more", 10)
    log = root("queue1", f"journalctl --unit {GUARD} --since @{since} --output cat --no-pager").splitlines()
    assert [line.partition(":")[0] for line in log] == ["READONLY", "UP again"], log


def test_few_inodes_make_it_readonly_too(fill, is_status):
    fill("seq 3900 | xargs touch")
    is_status("READONLY")
    fill("find . -type f -delete")
    is_status("UP")


def test_a_readonly_of_an_operator_is_not_lifted(root, talk, fill, is_status):
    assert talk("status readonly\r\n") == "END\r\n"
    try:
        fill("head -c 30M /dev/zero >much")
        root("queue1", f"systemctl start {GUARD}.service")
        fill("rm much")
        root("queue1", f"systemctl start {GUARD}.service")
        assert talk("status\r\n") == "READONLY\r\n"
    finally:
        talk("status up\r\n")


def test_an_operator_who_says_readonly_takes_the_guards_over(root, talk, fill, is_status):
    fill("head -c 30M /dev/zero >much")
    is_status("READONLY")
    root("queue1", "kestrel-stack-kestrel status readonly")
    try:
        fill("rm much")
        root("queue1", f"systemctl start {GUARD}.service")
        assert talk("status\r\n") == "READONLY\r\n"
    finally:
        root("queue1", "kestrel-stack-kestrel status up")


def test_the_guards_readonly_outlasts_a_restart_of_the_server(root, fill, is_status):
    fill("head -c 30M /dev/zero >much")
    is_status("READONLY")
    root("queue1", "systemctl restart kestrel")
    is_status("READONLY")
    assert json.loads(root("queue1", f"cat {STATE}"))["status"] == "READONLY"
    fill("rm much")
    is_status("UP")


def test_a_guard_that_finds_no_server_is_no_failed_unit(root, fill, is_status):
    fill("head -c 30M /dev/zero >much")
    is_status("READONLY")
    root("queue1", "systemctl stop kestrel")
    try:
        root("queue1", f"systemctl start {GUARD}.service")
        fill("rm much")
        root("queue1", f"systemctl start {GUARD}.service")
    finally:
        root("queue1", "systemctl start kestrel")
    is_status("UP")


def test_the_guard_is_not_root_and_may_write_one_folder(root):
    shown = dict(
        line.split("=", 1)
        for line in root(
            "queue1",
            f"systemctl show {GUARD}.service"
            " -p User -p ProtectSystem -p CapabilityBoundingSet -p ReadWritePaths",
        ).splitlines()
    )
    assert shown == {
        "User": "kestrel",
        "ProtectSystem": "strict",
        "CapabilityBoundingSet": "",
        "ReadWritePaths": "/var/lib/kestrel",
    }


def test_both_timers_run_as_often_as_the_inventory_says(root):
    for host, seconds in (("queue1", "1s"), ("queue2", "10s")):
        shown = root(host, f"systemctl show {GUARD}.timer -p TimersMonotonic -p ActiveState")
        assert f"OnUnitInactiveUSec={seconds} ;" in shown
        assert "ActiveState=active" in shown


def test_systemd_finds_nothing_wrong_with_our_units(root):
    ensure = "kestrel-stack-firewall-ensure.service kestrel-stack-firewall-ensure.timer"
    ours = f"kestrel-stack-firewall.service {ensure} {GUARD}.service {GUARD}.timer"
    units = f"{ours} kestrel.service var-spool-kestrel.mount"
    assert root("queue1", f"systemd-analyze verify {units} 2>&1") == ""
