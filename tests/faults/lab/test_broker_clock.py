"""Clocks of queue servers that jump and fall behind, while jobs come in and are done; only they see them.

The machine's own clock is never set: libfaketime gives the servers another one. Workers keep the real one, so
that what is measured is, too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from support.fault_lab import FaultLab, Host

pytestmark = [pytest.mark.docker, pytest.mark.long]

DAY = 86400
CLOCK = "/var/lib/kestrel/clock"
DROP_IN = "/run/systemd/system/kestrel.service.d"
# Timers go on by a clock that nobody sets, as on a real host.
UNIT = f"""[Service]
Environment=FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_NO_CACHE=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1
Environment=LD_PRELOAD=LIBRARY
"""


@contextlib.contextmanager
def clocks(lab: FaultLab) -> Iterator[list[Host]]:
    """Let both servers run with a clock that can be set; they are started anew for it, and after it."""
    hosts = [lab.host(name) for name in lab.queue_hosts]
    # Until it is undone, and for good where that does not succeed.
    lab.broken = unusable = "clocks of their own"
    try:
        for host in hosts:
            library = host.run("ls /usr/lib/*/faketime/libfaketime.so.1")
            set_clock(host, "+0")
            host.run(
                f"mkdir -p {DROP_IN} && printf '{UNIT.replace('LIBRARY', library)}' >{DROP_IN}/clock.conf"
                " && systemctl daemon-reload && systemctl restart kestrel"
            )
            lab.wait_until(host.serves)
        yield hosts
    finally:
        for host in hosts:
            host.run(f"rm -rf {DROP_IN} {CLOCK} && systemctl daemon-reload && systemctl restart kestrel")
            lab.wait_until(host.serves)
        if lab.broken == unusable:
            lab.broken = ""


def set_clock(host: Host, what: str) -> None:
    """Set a server's clock, in libfaketime's words."""
    host.run(f"echo '{what}' >{CLOCK}.new && chown kestrel: {CLOCK}.new && mv {CLOCK}.new {CLOCK}")


def offset(host: Host) -> float:
    """Return by how much a server's clock is ahead, in seconds."""
    for line in host.answers("stats"):
        if line.startswith("STAT time "):
            return int(line.split()[2]) - time.time()
    raise AssertionError(f"{host.name} does not tell its time")


@pytest.mark.parametrize(
    ("what", "words", "ahead"),
    [
        ("jump a day ahead, and back", f"+{DAY}s", DAY),
        ("jump a day back, and ahead again", f"-{DAY}s", -DAY),
    ],
    ids=["ahead", "back"],
)
def test_the_servers_clocks_jump(lab: FaultLab, what: str, words: str, ahead: int) -> None:
    with clocks(lab) as hosts, lab.under_load("broker", f"the clocks of both servers {what}") as run:
        kept = hosts[0]
        # What our jobs do not have: a time to expire, an hour from now.
        assert kept.says("set shop_clock_probe 0 3600 1\r\n1") == "STORED"
        with run.fault():
            for host in hosts:
                set_clock(host, words)
            assert all(abs(offset(host) - ahead) < 60 for host in hosts)
            run.goes_on(500)
            checked = lab.fab("check")
            assert checked.code == 0, checked.text
            there = kept.says("get shop_clock_probe/peek") != "END"
            assert there is (ahead < 0)
            for host in hosts:
                set_clock(host, "+0")
        assert all(abs(offset(host)) < 60 for host in hosts)
        kept.says("delete shop_clock_probe")
        expiry = "stays" if there else "goes at once"
        run.said(f"`fab check`: all workers answer; an item that was to expire in an hour {expiry}")


def test_the_servers_clocks_fall_behind(lab: FaultLab) -> None:
    # Set again and again, not by libfaketime's rate: that would also stretch how long the server sleeps.
    with clocks(lab) as hosts, lab.under_load("broker", "the clocks of both servers fall behind") as run:
        with run.fault():
            for behind in range(1, 11):
                for host in hosts:
                    set_clock(host, f"-{behind}s")
                run.goes_on(50)
            assert all(-13 < offset(host) < -7 for host in hosts)
            for host in hosts:
                set_clock(host, "+0")
        run.said(f"nothing; ages of items in the numbers are too small: `fab status` {status(lab)}")


def status(lab: FaultLab) -> str:
    return "ends with 0" if lab.fab("status").code == 0 else "fails"
