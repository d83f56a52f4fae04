"""What the units of the stack may do at most, by systemd's figure and by what their processes have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jinja2
import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
DROP_IN = "/etc/systemd/system/supervisor.service.d/10-kestrel-stack.conf"
SANDBOX = re.compile(r"(?!KillMode|Timeout|Restart)[A-Z]\w+=")
"""The lines of it that restrict."""
EXPOSURE_OF_DEFAULT = 5.4
"""supervisor's, without supervisor_strict."""

EXPOSURE = {
    # 0 is nothing at all, 10 is root without any limit. What keeps one above 2 is said beside it.
    "kestrel.service": 1.5,
    "kestrel-stack-spool-guard.service": 1.5,
    "kestrel-stack-firewall.service": 1.7,
    "kestrel-stack-firewall-ensure.service": 1.7,
    "kestrel-web.service": 1.2,
    "bugsink.service": 1.2,
    "bugsink-snappea.service": 1.2,
    "bugsink-vacuum.service": 1.2,
    # root that becomes Bugsink's user, whose files it copies.
    "bugsink-backup.service": 2.4,
    "kestrel-stack-nginx-shop.service": 1.5,
    "kestrel-stack-web-shop@.service": 1.7,
    # root that starts and stops units, and asks nginx how it went.
    "kestrel-stack-web-shop.service": 2.5,
    # root that starts each program as its user; with supervisor_strict, as the lab has it.
    "supervisor.service": 3.0,
}
NOT_OURS = re.compile(
    r"(apt-daily|autovt@|console-getty|container-getty@|dbus|debug-shell|dpkg-db-backup|e2scrub|emergency|fstrim|getty|"
    r"initrd|kmod|logrotate|man-db|modprobe@|networking|nftables|nginx|phpsessionclean|php[\d.]+-fpm|procps|quotaon|rc-local|"
    r"rescue|rsync|serial-getty@|ssh|sudo|syslog|systemd-|timers?|udev|user-runtime|user@|hwclock|ifup|sysinit|x11|"
    r"cryptdisks|rpcbind|nfs|lvm2|blk|mdadm|keyboard|console-setup|plymouth|screen-cleanup|polkit|haveged|wpa)"
)


def units(root, host):
    """Return our services that a host has installed; a template's for one that could be started from it."""
    text = root(
        host, "cd /etc/systemd/system && ls -d *.service *.service.d 2>/dev/null | sed 's/\\.d$//' | sort -u"
    )
    return [name for name in text.split() if not NOT_OURS.match(name)]


def hosts(stack):
    return sorted(stack.data["_meta"]["hostvars"])


@pytest.fixture(autouse=True)
def _several_hosts(stack):
    if len(hosts(stack)) == 1:
        pytest.skip("the lab's one host has other settings")


def test_no_unit_of_ours_is_more_exposed_than_its_figure(stack, root):
    found = {}
    for host in hosts(stack):
        for unit in units(root, host):
            # Of a template only an instance can be looked at.
            asked = unit.replace("@.", "@none.")
            text = root(host, f"systemd-analyze security --no-pager {asked}")
            figure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", text)[1])
            found[unit] = max(figure, found.get(unit, 0))
    assert set(found) == set(EXPOSURE)
    assert {unit: figure for unit, figure in found.items() if figure > EXPOSURE[unit]} == {}


def test_what_a_job_runs_in_has_no_privilege_and_can_get_none(stack, root):
    """Not what a file says: what the kernel says of the workers that run."""
    for host in stack.group("consumers"):
        pids = root(host, "pgrep -u worker").split()
        assert len(pids) > 5
        for pid in pids:
            text = root(host, f"cat /proc/{pid}/status 2>/dev/null || true")
            status = dict(line.split(":", 1) for line in text.splitlines())
            if not status:
                continue
            assert status["CapEff"].strip() == status["CapPrm"].strip() == "0000000000000000"
            assert status["NoNewPrivs"].strip() == "1"
            assert status["Seccomp"].strip() == "2"


def test_a_job_sees_no_other_users_processes_and_cannot_change_the_system(stack, root):
    """A probe in supervisor's own sandbox, as the worker and, for the folders, as root."""
    probe = (
        "for d in /etc /usr/local/sbin /boot; do touch $d/.probe && echo can-write $d && rm $d/.probe; done;"
        " ls /proc | grep -c '^1$';"
        " sudo -n -u worker true && echo can-sudo; su worker -s /bin/sh -c true && echo can-su;"
        " unshare --user true && echo can-unshare; hostname probe && echo can-hostname; true"
    )
    host = stack.group("consumers")[0]
    lines = root(host, f"cat {DROP_IN}").splitlines()
    options = " ".join(f"-p {shlex.quote(line)}" for line in lines if SANDBOX.match(line))
    run = f"systemd-run --quiet --wait --pipe --collect {options}"
    shell = f"timeout 20 /bin/sh -c {shlex.quote(probe)}"
    # As root, which supervisord is: files are protected from it too. (su may: it gets no more than it has.)
    said = root(host, f"{run} {shell} </dev/null 2>/dev/null").split("\n")
    assert [line for line in said if line.startswith("can-write")] == []
    assert "can-unshare" not in said
    assert "can-hostname" not in said
    # As the worker: no way to become somebody else.
    said = root(host, f"{run} -p User=worker {shell} </dev/null 2>/dev/null").split("\n")
    assert [line for line in said if line.startswith("can-")] == []
    # Process 1 is another user's.
    assert said[0] == "0"


def test_without_supervisor_strict_a_job_still_runs_a_set_id_program_and_changes_no_system(stack, root):
    """The role's default: sendmail and sudo work in jobs, and the rest is taken away all the same."""
    environment = jinja2.Environment(autoescape=False)
    environment.filters["kestrel_stack_stop_seconds"] = lambda _: 100
    template = environment.from_string((CHECKOUT / "templates" / f"{DROP_IN[1:]}.j2").read_text())
    text = template.render(ansible_managed="", kestrel_stack_queues=[], supervisor_strict=False)
    host = stack.group("consumers")[0]
    # In its own file, so that what runs goes on as it is.
    unit = "/run/hardening-probe/supervisor.service"
    root(host, f"mkdir -p {unit.rpartition('/')[0]} && cp /lib/systemd/system/supervisor.service {unit}")
    try:
        root(host, f"printf %s {shlex.quote(text)} >>{unit}")
        said = root(host, f"systemd-analyze security --no-pager --offline=true {unit}")
        assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1]) <= EXPOSURE_OF_DEFAULT
    finally:
        root(host, "rm -r /run/hardening-probe")
    options = " ".join(f"-p {shlex.quote(line)}" for line in text.splitlines() if SANDBOX.match(line))
    # passwd has a set-id bit: without it, it could not read that the account is locked.
    # The application's folders have such a bit as well, for their group: a job may copy one.
    job = (
        "passwd --status; touch /etc/.probe && echo can-write;"
        " cd /srv/shop/shared/var && mkdir -p .probe/one && cp -r .probe .probe2 && stat -c %A .probe2;"
        " rm -r .probe .probe2"
    )
    probe = f"setpriv --reuid worker --regid worker --clear-groups sh -c {shlex.quote(job)}"
    said = root(host, f"systemd-run --quiet --wait --pipe --collect {options} {probe} </dev/null")
    assert said.startswith("worker L ")
    assert "can-write" not in said
    assert "drwxr-sr-x" in said
