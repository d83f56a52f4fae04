"""What the inventory switches off is taken away whole, and comes back: by the role itself, on queue2."""

from __future__ import annotations

import os
import re

import pytest

from support import role_parts

PLAY = [
    {
        "name": "Run the parts that can be switched off",
        "hosts": "queue2",
        "become": True,
        "gather_facts": False,
        "tasks": [
            {
                "name": "Run a part of the role",
                "ansible.builtin.include_role": {"name": "kestrel", "tasks_from": "{{ part }}"},
                "loop": ["preflight_host", "firewall", "guard"],
                "loop_control": {"loop_var": "part"},
            }
        ],
    }
]
OFF = {"kestrel_firewall": False, "kestrel_spool_floor": 0}
# Every file that either part installs.
FILES = [
    "/etc/kestrel/firewall.nft",
    "/etc/systemd/system/kestrel-stack-firewall.service",
    "/etc/systemd/system/kestrel-stack-firewall-ensure.service",
    "/etc/systemd/system/kestrel-stack-firewall-ensure.timer",
    "/etc/systemd/system/nftables.service.d/10-kestrel-stack.conf",
    "/usr/local/sbin/kestrel-stack-firewall",
    "/etc/systemd/system/kestrel-stack-spool-guard.service",
    "/etc/systemd/system/kestrel-stack-spool-guard.timer",
    "/usr/local/sbin/kestrel-stack-spool-guard",
]


@pytest.fixture
def play(tmp_path):
    """Run the parts with these variables; return how many tasks changed something, and the output."""

    def run(variables):
        said = role_parts.run(tmp_path, PLAY, os.environ["KESTREL_STACK_INVENTORY"], variables)
        recap = re.search(r"^queue2 .* changed=(\d+)", said, re.MULTILINE)
        assert recap
        return int(recap.group(1)), said

    return run


def test_packet_filter_and_guard_go_whole_and_come_back(stack, root, admin, memcache, play):
    address = stack.vars("queue2")["kestrel_stack_address"]
    probe = f"python3 -c 'import socket; socket.create_connection((\"{address}\", 22133), 5)'"
    assert "ConnectionRefused" in admin("stranger1").run(probe).stderr
    # As the guard leaves them when there is little room.
    root("queue2", "runuser -u kestrel -- touch /var/lib/kestrel/guard.json")
    assert memcache("queue2", address, 22133, "status readonly\r\n") == "END\r\n"

    changed, said = play(OFF)
    assert changed > 0
    assert "WARNING: kestrel_firewall is false: whoever reaches queue2 reaches the memcache port 22133" in (
        " ".join(said.split())
    )
    assert root("queue2", f"ls {' '.join(FILES)} 2>/dev/null || :") == ""
    assert root("queue2", "nft list tables inet") == ""
    assert "kestrel-stack" not in root("queue2", "systemctl list-units --all --plain 'kestrel-stack-*'")
    assert memcache("queue2", address, 22133, "status\r\n") == "UP\r\n"
    assert admin("stranger1").run(probe).rc == 0
    assert play(OFF)[0] == 0

    assert play({})[0] > 0
    assert "ConnectionRefused" in admin("stranger1").run(probe).stderr
    assert root("queue2", f"ls {' '.join(FILES)}").split() == sorted(FILES)
    assert root("queue2", "systemctl is-active kestrel-stack-spool-guard.timer").strip() == "active"
