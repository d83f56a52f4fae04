"""The lab's command line: ``python -m kestrel_stack.lab``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kestrel_stack.lab import engine, hosts, image, inventory
from kestrel_stack.lab.errors import LabError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m kestrel_stack.lab", description="Containers that are hosts."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("hosts", help="make or remove the containers of an inventory")
    actions = one.add_subparsers(dest="action", required=True, metavar="up|down")
    hosts_up = actions.add_parser(
        "up", help="one container per host of DIR/hosts.yml; writes DIR/containers.yml"
    )
    hosts_down = actions.add_parser("down", help="remove them, their network and the generated files")
    for action in (hosts_up, hosts_down):
        action.add_argument(
            "--inventory", required=True, type=Path, metavar="DIR", help="folder with hosts.yml"
        )
    hosts_up.add_argument(
        "--suite", default="bookworm", help="Debian of the hosts: bookworm (default) or trixie"
    )
    hosts_up.add_argument("--recreate", action="store_true", help="make existing containers anew")

    build = commands.add_parser("image", help="make the host image if it is not there; prints its name")
    build.add_argument("--suite", default="bookworm", help="bookworm (default) or trixie")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""
    options = parser().parse_args(argv)
    try:
        return run(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Run one parsed command."""
    if options.command == "image":
        engine.require()
        print(image.ensure(options.suite)[0])
        return 0
    lab = inventory.load(options.inventory)
    if options.action == "up":
        image.check_suite(options.suite)
        engine.require()
        name, built = image.ensure(options.suite)
        if built:
            print(f"built image {name}")
        done = hosts.up(lab, name, recreate=options.recreate, say=lambda line: print(line, file=sys.stderr))
        for host, address in done.addresses.items():
            what = "created" if host in done.created else "started" if host in done.started else "already up"
            print(f"{host} {address} {what}")
        return 0
    removed = hosts.down(lab)
    for name in (*removed.containers, *removed.networks, *removed.files):
        print(f"removed {name}")
    if not removed.changed:
        print(f"lab {lab.name}: nothing is there")
    return 0
