"""What ``bin/up`` shows at its end: hosts, jobs, where to look, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

Jobs = dict[str, dict[str, int]]
PIPE_WIDTH = 110


@dataclass
class Summary:
    """Everything the report says; jobs are counts by tenant and job name."""

    hosts: Sequence[tuple[str, str, str, str]]
    enqueued: Jobs = field(default_factory=dict)
    done: Jobs = field(default_factory=dict)
    duplicates: int = 0
    pages: Sequence[tuple[str, str]] = ()
    """Host and address of each of the application's pages."""
    monitors: Sequence[tuple[str, str]] = ()
    """Host and address of each kestrel-web, with how to log in."""
    errors: Sequence[tuple[str, str]] = ()
    """What takes the errors of jobs, and its address, with how to log in."""
    try_next: Sequence[str] = ()


def add(total: Jobs, more: Mapping[str, Mapping[str, int]]) -> Jobs:
    """Add counts by tenant and job to ``total`` and return it."""
    for tenant, jobs in more.items():
        counts = total.setdefault(tenant, {})
        for job, count in jobs.items():
            counts[job] = counts.get(job, 0) + count
    return total


def missing(wanted: Jobs, before: Jobs, now: Jobs) -> int:
    """Return how many ``wanted`` jobs are not yet done, given the counts before enqueueing and now."""
    return sum(
        max(0, count - now.get(tenant, {}).get(job, 0) + before.get(tenant, {}).get(job, 0))
        for tenant, jobs in wanted.items()
        for job, count in jobs.items()
    )


def show(summary: Summary, out: TextIO) -> None:
    """Print the report; in a pipe without colours and 110 columns wide."""
    console = Console(file=out, width=None if out.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=True)
    hosts = Table("host", "address", "groups", "release", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in summary.hosts:
        hosts.add_row(*row)
    jobs = Table("tenant", "job", box=box.SIMPLE_HEAD, pad_edge=False)
    jobs.add_column("enqueued by bin/up", justify="right")
    jobs.add_column("done", justify="right")
    everything = add(add({}, summary.enqueued), summary.done)
    for tenant in sorted(everything):
        for job in sorted(everything[tenant]):
            enqueued = summary.enqueued.get(tenant, {}).get(job, 0)
            done = summary.done.get(tenant, {}).get(job, 0)
            jobs.add_row(tenant, job, str(enqueued), str(done))
    console.print()
    console.print(hosts)
    if everything:
        console.print(jobs)
        console.print(f"done twice: {summary.duplicates}")
    for host, address in summary.pages:
        # Not wrapped by rich, so that a terminal sees one address.
        print(f"the application's page on {host}: {address}", file=out)
    for host, address in summary.monitors:
        print(f"kestrel-web on {host}: {address}", file=out)
    for name, address in summary.errors:
        print(f"{name}: {address}", file=out)
    if summary.try_next:
        console.print("\nTry next:")
        for command in summary.try_next:
            print(f"  {command}", file=out)
