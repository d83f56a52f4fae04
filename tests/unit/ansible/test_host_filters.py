"""Who may reach Kestrel's ports, and what the folder of the journals may be: filters and host probe."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PROBE = CHECKOUT / "ansible/roles/kestrel/files/host_facts.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


firewall = load(CHECKOUT / "ansible/roles/common/filter_plugins/kestrel_stack_firewall.py")
spool = load(CHECKOUT / "ansible/roles/common/filter_plugins/kestrel_stack_spool.py")
probe = load(PROBE)

HOSTS = {
    "worker1": {"kestrel_stack_address": "10.0.0.21"},
    "worker2": {"kestrel_stack_address": "worker2.example.com"},
    "worker6": {"kestrel_stack_address": "fd00::21"},
    "single": {"kestrel_stack_address": "127.0.0.1"},
    "mapped": {"kestrel_stack_address": "::ffff:10.0.0.77"},
    "silent": {},
}
RESOLVED = {"worker2.example.com": ["10.0.0.22", "fd00::22"]}


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        ("10.0.0.21/24", "write 10.0.0.0/24, or the one address"),
        ("fd00::1/64", "write fd00::/64, or the one address"),
        ("worker1", "write it like 10.0.0.21 or 10.0.0.0/24"),
        ("10.0.0", "write it like 10.0.0.21 or 10.0.0.0/24"),
        ("10.0.0.1; flush ruleset", "write it like 10.0.0.21 or 10.0.0.0/24"),
        ("", "write it like 10.0.0.21 or 10.0.0.0/24"),
    ],
)
def test_a_source_that_is_no_address_and_no_network_is_refused_with_the_fix(source, fix):
    assert firewall.source_problems([source], "kestrel_firewall_port_from") == [
        f"kestrel_firewall_port_from: {source} is no address and no network: {fix}"
    ]


def test_addresses_and_networks_of_both_families_pass():
    assert (
        firewall.source_problems(
            ["10.0.0.1", "10.0.0.0/24", "0.0.0.0/0", "fd00::1", "fd00::/64", "::/0"], "x"
        )
        == []
    )


def test_only_names_are_resolved():
    assert firewall.host_names(HOSTS, HOSTS) == ["worker2.example.com"]


def test_a_name_the_host_cannot_resolve_and_a_missing_address_are_refused():
    assert firewall.host_problems(["worker1", "worker2"], HOSTS, RESOLVED, "queue1") == []
    assert firewall.host_problems(["worker2"], HOSTS, {"worker2.example.com": []}, "queue1") == [
        "kestrel_stack_address of worker2 is worker2.example.com, which queue1 cannot resolve:"
        " give an address, or make the name known there"
    ]
    assert firewall.host_problems(["silent"], HOSTS, {}, "queue1") == [
        "kestrel_stack_address of silent is empty, so queue1 cannot let it through:"
        " give the address other hosts reach it by, like 10.0.0.11"
    ]


def test_sources_are_addresses_by_family_sorted_once_and_with_who_they_are():
    assert firewall.sources(
        ["worker6", "worker2", "worker1"], HOSTS, RESOLVED, ["192.0.2.0/24"], "x_from"
    ) == {
        "ipv4": ["10.0.0.21", "10.0.0.22", "192.0.2.0/24"],
        "ipv6": ["fd00::21", "fd00::22"],
        "who": [
            ["10.0.0.21", "worker1"],
            ["10.0.0.22", "worker2"],
            ["fd00::22", "worker2"],
            ["fd00::21", "worker6"],
            ["192.0.2.0/24", "x_from"],
        ],
    }


def test_an_address_inside_a_network_is_left_out_for_a_set_takes_no_overlaps():
    found = firewall.sources(["worker1"], HOSTS, {}, ["10.0.0.0/24", "10.0.0.128/25", "10.0.1.0/24"], "x")
    assert found["ipv4"] == ["10.0.0.0/24", "10.0.1.0/24"]


def test_loopback_is_let_through_by_its_interface_and_not_as_a_source():
    assert firewall.sources(["single"], HOSTS, {}, ["127.0.0.0/8", "::1"], "x") == {
        "ipv4": [],
        "ipv6": [],
        "who": [],
    }


def test_an_ipv4_address_in_ipv6_form_is_the_ipv4_address_of_the_packets():
    found = firewall.sources(["mapped"], HOSTS, {}, ["::ffff:192.0.2.0/120"], "x")
    assert (found["ipv4"], found["ipv6"]) == (["10.0.0.77", "192.0.2.0/24"], [])


# What the probe finds on a host where nothing is wrong; 1000 bytes, half of them free.
GOOD = {
    "exists": True,
    "folder": True,
    "owner": "kestrel",
    "mounted": None,
    "is_source": None,
    "in_fstab": False,
    "entries": 0,
    "first": [],
    "foreign": [],
    "foreign_count": 0,
    "others": [],
    "others_count": 0,
    "unowned": [],
    "total": 1000,
    "free": 500,
}
MOUNT = {"src": "/dev/sdb1", "fstype": "ext4"}
MOUNTED = {"device": "8:17", "fstype": "ext4", "source": "/dev/sdb1"}
SPOOL = "/var/spool/kestrel"


def problems(changed, mount=None, floor=0):
    return spool.spool_problems({**GOOD, **changed}, mount or {}, floor, SPOOL, "kestrel")


@pytest.mark.parametrize(
    ("changed", "mount", "floor"),
    [
        ({}, None, 0),
        ({}, None, 909),
        ({"owner": "root"}, None, 0),
        ({"exists": False, "folder": False, "owner": None}, MOUNT, 0),
        ({"mounted": MOUNTED, "is_source": True, "entries": 3, "first": ["a", "b", "c"]}, MOUNT, 0),
        # Whether it is the same cannot be told: what is mounted stays.
        ({"mounted": MOUNTED, "is_source": None}, MOUNT, 0),
        # Its size is not known before it is mounted.
        ({}, MOUNT, 10**9),
        # Somebody else's mount is none of ours.
        ({"in_fstab": True, "mounted": MOUNTED}, None, 0),
    ],
)
def test_a_fit_folder_passes(changed, mount, floor):
    assert problems(changed, mount, floor) == []


@pytest.mark.parametrize(
    ("changed", "mount", "floor", "sentence"),
    [
        ({"folder": False}, None, 0, f"{SPOOL} is no folder: move it away"),
        (
            {"owner": "bob"},
            None,
            0,
            f"{SPOOL} belongs to bob: if its journals are to be served here, stop what uses it and run"
            f" chown -R root: {SPOOL} (this role passes them on to kestrel), else move it away",
        ),
        (
            {"others": [["jobs", "bob"]], "others_count": 3},
            None,
            0,
            f"{SPOOL} has files of other users: jobs (bob) and 2 more: if they are journals to be served"
            f" here, run chown -R kestrel: {SPOOL}, else move them away",
        ),
        (
            {"foreign": [["q.bak", "is no journal"]], "foreign_count": 1},
            None,
            0,
            f"{SPOOL} has files that are no journals, and each would become a queue or keep the server from"
            " starting: q.bak is no journal. Move them away",
        ),
        (
            {},
            None,
            910,
            f"kestrel_spool_floor is 910 bytes, and the file system of {SPOOL} holds 1000 bytes: the server"
            " would never be UP; set kestrel_spool_floor lower (a tenth more must fit), or give it more room",
        ),
        (
            {"entries": 7, "first": ["jobs", "mail"]},
            MOUNT,
            0,
            f"{SPOOL} holds jobs, mail and 5 more, which /dev/sdb1 would hide when it is mounted there:"
            f" stop Kestrel, mount /dev/sdb1 on /mnt, move everything from {SPOOL} to it, unmount it,"
            " and run this again",
        ),
        (
            {"mounted": {**MOUNTED, "source": "/dev/sdc1"}, "is_source": False},
            MOUNT,
            0,
            f"kestrel_spool_mount says /dev/sdb1, but /dev/sdc1 is mounted on {SPOOL}: set it to that, or"
            " move the journals (docs/kestrel.md says how)",
        ),
        (
            {"in_fstab": True},
            MOUNT,
            0,
            f"/etc/fstab mounts {SPOOL}, and so does kestrel_spool_mount: remove one of them",
        ),
    ],
)
def test_an_unfit_folder_is_refused_in_one_line_with_the_fix(changed, mount, floor, sentence):
    assert problems(changed, mount, floor) == [sentence]


@pytest.mark.parametrize(
    ("mount", "sentence"),
    [
        ({"src": "/dev/sdb1"}, "kestrel_spool_mount has no fstype"),
        ({"fstype": "ext4"}, "kestrel_spool_mount has no src"),
        (
            {**MOUNT, "options": "x"},
            "kestrel_spool_mount: unknown option options: known are src, fstype, opts",
        ),
        ({**MOUNT, "opts": "a, b"}, "kestrel_spool_mount: opts 'a, b' has a space"),
        ({**MOUNT, "src": "sdb1"}, "kestrel_spool_mount: src sdb1 is no device"),
        ("/dev/sdb1", "kestrel_spool_mount is no mapping"),
    ],
)
def test_a_wrong_mount_is_refused(mount, sentence):
    [said] = spool.mount_problems(mount)
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    "mount",
    [
        {},
        MOUNT,
        {**MOUNT, "src": "UUID=0000-0000"},
        {"src": "nas:/export", "fstype": "nfs", "opts": "hard"},
        {"src": "tmpfs", "fstype": "tmpfs"},
    ],
)
def test_a_right_mount_passes(mount):
    assert spool.mount_problems(mount) == []


def test_little_room_and_a_file_system_in_memory_are_warned_of():
    assert spool.spool_warnings(GOOD, {}, 500, SPOOL) == []
    assert spool.spool_warnings(GOOD, {}, 501, SPOOL) == [
        f"only 500 bytes are free in the file system of {SPOOL}, less than kestrel_spool_floor (501 bytes):"
        " the server takes no items until there is more room"
    ]
    assert spool.spool_warnings(GOOD, {"src": "tmpfs", "fstype": "tmpfs"}, 0, SPOOL) == [
        f"{SPOOL} is on a tmpfs, in memory: a reboot loses every item"
    ]


ADDX = bytes.fromhex("0210000000") + bytes(16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs", b""),
        ("jobs", ADDX),
        ("jobs", ADDX[:3]),
        ("jobs+copy", ADDX),
        ("Über 1", ADDX),
        ("jobs.1795222368842", ADDX),
        ("jobs.1795222368842.pack", b""),
        ("jobs~~1795222368842", b"anything"),
        ("jobs", b"\x01"),
        ("jobs", b"\x09\x01\x00\x00\x00"),
        ("jobs", b"\x07\x01\x00\x00\x00" + ADDX[1:]),
    ],
)
def test_a_file_of_a_queue_is_not_foreign(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert foreign(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("q.bak", b"", "is no journal of a queue q: Kestrel does not start with it"),
        (".hidden", b"", "has no queue's name before its dot: Kestrel does not start with it"),
        ("q~", b"", "has a ~, which no queue's name may have: Kestrel does not start with it"),
        ("q.100.old", b"", "would be read as an old journal of a queue q"),
        (
            "README",
            b"Read me",
            "does not begin with a journal's record: it would become queue README, cut to nothing",
        ),
        (
            "q",
            b"\x02\xff\xff\xff\xff",
            "does not begin with a whole journal's record: it would become queue q, cut to nothing",
        ),
    ],
)
def test_a_foreign_file_is_named_with_what_kestrel_would_do_to_it(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    assert foreign(tmp_path) == [[name, why]]


def test_links_are_foreign_and_folders_are_not(tmp_path):
    (tmp_path / "folder.of.anything").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "journal").symlink_to("/dev/null")
    (tmp_path / "elsewhere").symlink_to(PROBE)
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "room").symlink_to(tmp_path)
    assert [name for name, _ in foreign(tmp_path)] == ["elsewhere", "journal", "nowhere", "round"]


def test_what_is_neither_a_file_nor_a_folder_is_foreign(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert foreign(tmp_path) == [["pipe", "is no regular file"]]


def test_of_the_folders_kestrel_was_seen_with_exactly_the_foreign_files_are_foreign(tmp_path):
    found = {}
    for case in sorted((CHECKOUT / "tests/contract/golden_journals").glob("*.json")):
        folder = tmp_path / case.stem
        folder.mkdir()
        for name, content in json.loads(case.read_text())["files"].items():
            (folder / name).write_bytes(bytes.fromhex(content))
        if named := foreign(folder):
            found[case.stem] = [name for name, _ in named]
    assert found == {
        "53-bak-file": ["plain.bak"],
        "54-tilde-file": ["plain~"],
        "55-dot-file": [".hidden"],
        "56-odd-names": ["notes"],
        "58-stamp-dup": ["plain.100.old"],
    }


def foreign(folder: Path) -> list:
    return probe.spool_of(str(folder), "kestrel", "")["foreign"]


def test_the_probe_tells_who_owns_what_and_how_much_there_is(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    found = probe.spool_of(str(tmp_path), "nobody-else", "")
    me = probe.owner(os.getuid())
    assert (found["owner"], found["entries"], found["first"]) == (me, 3, ["a", "b", "c"])
    if os.getuid() == 0:
        assert found["unowned"] == [str(tmp_path / name) for name in ("a", "b", "c")]
    else:
        assert found["others"] == [[name, me] for name in ("a", "b", "c")]
    size = os.statvfs(tmp_path)
    assert found["total"] <= size.f_blocks * size.f_frsize
    assert found["free"] <= found["total"]
    assert found["mounted"] is None


def test_the_probe_of_a_folder_that_is_not_there_measures_where_it_would_be(tmp_path):
    found = probe.spool_of(str(tmp_path / "not/there"), "kestrel", "")
    assert (found["exists"], found["folder"], found["owner"]) == (False, False, None)
    assert found["total"] > 0


def test_the_probe_knows_what_is_mounted():
    assert probe.mount_of("/proc")["fstype"] == "proc"
    assert probe.mount_of("/proc/self") is None
    mounted = {"device": "0:1", "fstype": "tmpfs", "source": "tmpfs"}
    assert probe.is_source("tmpfs", mounted) is True
    assert probe.is_source("none", mounted) is False
    assert probe.is_source("/dev/null", mounted) is None
    assert probe.is_source("UUID=of-nothing", mounted) is None


def test_the_probe_runs_alone_and_prints_one_document(tmp_path):
    names = json.dumps(["localhost", "no-such-name.invalid"])
    done = subprocess.run(
        [sys.executable, "-I", PROBE, tmp_path, "", names], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert set(found) == {"nftables", "resolved", "spool"}
    assert found["resolved"]["no-such-name.invalid"] == []
    assert set(found["resolved"]["localhost"]) & {"127.0.0.1", "::1"}


@pytest.mark.parametrize("code", ["EINVAL", "EPERM"])
def test_a_kernel_that_refuses_is_told_from_one_that_answers(monkeypatch, code):
    class Refusing:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def settimeout(self, _): ...
        def send(self, _): ...
        def recv(self, _):
            return struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -getattr(errno, code))

    monkeypatch.setattr(probe.os, "geteuid", lambda: 0)
    monkeypatch.setattr(probe.socket, "socket", Refusing)
    expected = {"EINVAL": "no nf_tables in the kernel", "EPERM": "Operation not permitted"}
    assert probe.nftables() == expected[code]
