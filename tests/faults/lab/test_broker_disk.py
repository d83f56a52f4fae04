"""Full disks below a queue server, and journals that are renewed, while jobs come in and are done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from support.fault_lab import PRODUCERS, WORKERS, FaultLab, Host, flavor

pytestmark = [pytest.mark.docker, pytest.mark.long]

SPOOL = "/var/spool/kestrel"
# What cannot be journalled is not taken either: a job that was done may not be closed and comes again.
UNCLOSED = "a job whose end could not be written is given again"
CAME_BACK = "will be written before the next record"
"""What a server logs of an open read that came back while there was no room to write that down."""
FILLING = "filling~~1"
"""A name that no queue has."""
GUARD = "kestrel-stack-spool-guard"

CONFIG = "/etc/kestrel/embedded.json"
SMALL_FILES = f"""
import json

with open("{CONFIG}") as file:
    data = json.load(file)
for name, queue in data["queues"].items():
    if "_ping_" not in name:
        queue.update(default_journal_size=8192, max_memory_size=16384, max_size=1 << 24)
with open("{CONFIG}", "w") as file:
    json.dump(data, file)
"""


@contextlib.contextmanager
def spool_of(host: Host, size: str) -> Iterator[None]:
    """Let the journals have a file system of `size` (like 96m) of their own, after an orderly stop."""
    move = "find {} -mindepth 1 -maxdepth 1 -exec mv -t {} '{{}}' +"
    # Until it is undone, and for good where that does not succeed.
    host.lab.broken = unusable = f"{host.name}: journals on a file system of their own"
    try:
        host.run(
            "systemctl stop kestrel && mkdir /var/aside && owner=$(id -u kestrel),gid=$(id -g kestrel)"
            f" && mount -t tmpfs -o size={size},mode=0750,uid=$owner tmpfs /mnt"
            f" && {move.format(SPOOL, '/mnt')} && mount --move /mnt {SPOOL} && systemctl start kestrel"
        )
        host.lab.wait_until(host.serves)
        yield
    finally:
        host.run(
            f"systemctl stop kestrel; rm -f {SPOOL}/{FILLING}; {move.format(SPOOL, '/var/aside')}"
            f"; umount --lazy {SPOOL} && {move.format('/var/aside', SPOOL)} && rmdir /var/aside"
            " && systemctl start kestrel"
        )
        if host.lab.broken == unusable:
            host.lab.broken = ""


@contextlib.contextmanager
def without_guard(host: Host) -> Iterator[None]:
    """Let nobody look at the room for journals; one look at a small disk, and the server takes nothing."""
    host.run(f"systemctl stop {GUARD}.timer {GUARD}.service")
    try:
        yield
    finally:
        host.run(f"systemctl start {GUARD}.timer")


def fill(host: Host, folder: str = SPOOL) -> None:
    """Take all the room that is left."""
    host.run(f"cat /dev/zero >{folder}/{FILLING} 2>/dev/null || true")


def test_a_spool_gets_full_and_the_guard_sees_it(lab: FaultLab) -> None:
    host = lab.host("queue1")
    with (
        spool_of(host, "700m"),
        lab.under_load("broker", "spool of one of two servers below its floor (512 MB free)") as run,
    ):
        with run.fault():
            host.run(f"fallocate -l 250M {SPOOL}/{FILLING}")
            lab.wait_until(lambda: host.says("status") == "READONLY")
            # Its jobs are done, and new ones go to the other server.
            run.goes_on(500)
            assert host.says("set shop_probe 0 0 0\r\n") == "SERVER_ERROR"
            run.said(host.journal(GUARD))
            host.run(f"rm {SPOOL}/{FILLING}")
        run.recovered(host.serves)


@pytest.mark.parametrize("which", ["one", "both"])
def test_a_spool_is_full(lab: FaultLab, which: str) -> None:
    """Something else takes all the room between two looks of the guard."""
    hosts = [lab.host(name) for name in lab.queue_hosts[: 1 if which == "one" else None]]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(without_guard(host))
            stack.enter_context(spool_of(host, "96m"))
        run = stack.enter_context(
            lab.under_load("broker", f"spool of {which} of two servers full to the last byte")
        )
        with run.fault():
            for host in hosts:
                fill(host)
            if which == "one":
                run.goes_on(500)
            else:
                run.is_refused(100)
            for host in hosts:
                lines = host.journal(lines=200, since=run.began).splitlines()
                full = [line for line in lines if "No space left on device" in line]
                assert full, f"{host.name}: {lines}"
                run.said(full[0])
            for host in hosts:
                host.run(f"rm {SPOOL}/{FILLING}")
        # A job is done twice only if it came back after it was done. A refused item is taken out again, and
        # the producer is told: enqueueing it once more doubles nothing.
        told = CAME_BACK if flavor() != "release" else "No space left"
        back = sum(host.journal(lines=100_000, since=run.began).count(told) for host in hosts)
        # One each may have come back just when that could be written, and its end could not.
        run.allow_doubled(WORKERS + back, UNCLOSED)


def test_the_disk_of_the_logs_is_full(lab: FaultLab) -> None:
    host = lab.host("queue1")
    with lab.under_load("broker", "disk of the logs full on one of two servers, which is killed then") as run:

        def mend() -> None:
            restart = "systemctl restart systemd-journald kestrel"
            host.run(f"umount -l /var/log 2>/dev/null && {restart} || true")

        lab.finally_(mend)
        before = host.pid()
        with run.fault():
            host.run(
                "owner=$(stat -c %u:%g /var/log/kestrel) && mount -t tmpfs -o size=256k tmpfs /var/log"
                " && mkdir /var/log/kestrel && chown $owner /var/log/kestrel"
                " && systemctl restart systemd-journald"
            )
            fill(host, "/var/log")
            run.said(host.run("df -h --output=pcent,target /var/log | tail -n 1"))
            host.run(f"kill -9 {before}")
            lab.wait_until(host.serves)
            run.goes_on(500)
        assert host.pid() != before
        run.allow_doubled(2 * WORKERS + 2 * PRODUCERS, UNCLOSED)
        mend()
        run.recovered(host.serves)


def test_the_disk_of_the_program_is_full(lab: FaultLab) -> None:
    """A server that is killed then must start again from what is there."""
    host = lab.host("queue1")
    releases = "/opt/kestrel/releases"
    with lab.under_load(
        "broker", "disk of the releases full on one of two servers, which is killed then"
    ) as run:

        def mend() -> None:
            host.run(f"umount -l {releases} 2>/dev/null || true")

        lab.finally_(mend)
        before = host.pid()
        with run.fault():
            host.run(
                f"cp -a {releases} /var/tmp/releases && mount -t tmpfs -o size=64m,mode=0755 tmpfs {releases}"
                f" && cp -a /var/tmp/releases/. {releases} && rm -r /var/tmp/releases"
            )
            fill(host, releases)
            run.said(host.run(f"df -h --output=pcent,target {releases} | tail -n 1"))
            host.run(f"kill -9 {before}")
            lab.wait_until(host.serves)
            run.goes_on(600)
            mend()
        assert host.pid() != before
        run.allow_doubled(WORKERS + PRODUCERS, UNCLOSED)
        run.recovered(host.serves)


@pytest.mark.skipif(flavor() != "embedded", reason="a release is not told of other sizes while it runs")
def test_a_server_is_killed_while_its_journals_are_renewed(lab: FaultLab) -> None:
    """Small files, so that every few hundred jobs one is rotated or rewritten."""
    host = lab.host("queue1")
    times = 6

    def mend() -> None:
        host.run(f"mv {CONFIG}.aside {CONFIG} && systemctl restart kestrel")
        lab.wait_until(host.serves)

    with contextlib.ExitStack() as stack:
        host.run(f"cp -a {CONFIG} {CONFIG}.aside")
        stack.callback(mend)
        host.run(f"python3 - <<'END'\n{SMALL_FILES}\nEND\nsystemctl restart kestrel")
        lab.wait_until(host.serves)
        what = f"one of two servers killed {times} times while its journals are renewed"
        run = stack.enter_context(lab.under_load("broker", what))

        def files() -> set[str]:
            # With the time of birth: an inode is used again.
            found = host.run(f"cd {SPOOL} && stat -c '%i %w' shop_hello_world shop_hello_world.* || true")
            return set(found.splitlines())

        with run.fault():
            for _ in range(times):
                before = files()
                run.load.burst(400)
                # Producers that have just been refused here ask the other server first for a while.
                lab.wait_until(lambda before=before: files() - before)
                host.run(f"kill -9 {host.pid()}")
                lab.wait_until(host.serves)
        run.allow_doubled(times * (WORKERS + PRODUCERS), "jobs in hand and enqueued at each kill")
        run.said(host.run("journalctl -u kestrel -o cat -n 40 | grep -E 'returned|items' | tail -n 1"))
