"""The lab's command line: ``python -m kestrel_stack.lab``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kestrel_stack.lab import daemon, engine, hosts, image, inventory, stages, up
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
    hosts_up.add_argument("--recreate", action="store_true", help="make existing containers anew")

    build = commands.add_parser("image", help="make the host image if it is not there; prints its name")

    daemon_parser = commands.add_parser(
        "engine", help="start a Docker engine where none answers, or stop that one"
    )
    daemon_parser.add_argument("action", choices=("up", "down"))

    whole = commands.add_parser("up", help="what bin/up does once the virtual environment is there")
    whole.add_argument("--env", default="lab", help="an inventory of ansible/inventories")
    whole.add_argument("--recreate", action="store_true", help="make existing hosts anew")
    for command in (hosts_up, build, whole):
        command.add_argument(
            "--suite",
            default=os.environ.get("KESTREL_STACK_SUITE", "bookworm"),
            help="Debian of the hosts: bookworm or trixie (default: $KESTREL_STACK_SUITE, else bookworm)",
        )

    remove = commands.add_parser("down", help="what bin/down does")
    remove.add_argument("--env", help="one lab only; without it every lab of this checkout")
    remove.add_argument("--all", action="store_true", help="the host images too")

    test = commands.add_parser("test", help="what bin/test does")
    test.add_argument("--long", action="store_true", help="also Debian 13 and the tests marked long")
    test.add_argument("stages", nargs="*", metavar="STAGE", help="these stages only")
    test.add_argument("--only", action="append", default=[], metavar="STAGE", help="the same")
    test.add_argument("--list", action="store_true", help="name the stages")
    return top


# The programs of bin/ that a command is the second half of: the user knows those names.
PROGRAMS = {"up": "bin/up", "down": "bin/down", "test": "bin/test"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 done, 1 refused or failed, 2 wrong use, 130 interrupted, 141 unread."""
    options = parser().parse_args(argv)
    name = PROGRAMS.get(options.command, "lab")
    try:
        return run(options)
    except LabError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As with `| head`. What is left in the buffer must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def run(options: argparse.Namespace) -> int:
    """Run one parsed command."""
    match options.command:
        case "up":
            return up.up(options.env, options.suite, recreate=options.recreate)
        case "down":
            return up.down(options.env, everything=options.all)
        case "test":
            return stages.run(
                long=options.long, only=[*options.stages, *options.only], list_only=options.list
            )
        case "image":
            engine.require()
            print(image.ensure(options.suite)[0])
            return 0
        case "engine":
            return engine_command(options.action)
        case _:
            lab = inventory.load(options.inventory)
            return hosts_up(lab, options) if options.action == "up" else hosts_down(lab)


def engine_command(action: str) -> int:
    """Start or stop the engine that is ours."""
    if action == "up":
        print("started" if daemon.ensure(up.ENGINE_STATE) else "an engine answers")
    else:
        print(daemon.stop(up.ENGINE_STATE) or "no engine of ours runs")
    return 0


def hosts_up(lab: inventory.Lab, options: argparse.Namespace) -> int:
    """Make the containers of an inventory and print a line for each host."""
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


def hosts_down(lab: inventory.Lab) -> int:
    """Remove the containers of an inventory and name what was removed."""
    removed = hosts.down(lab)
    for name in (*removed.containers, *removed.networks, *removed.files):
        print(f"removed {name}")
    if not removed.changed:
        print(f"lab {lab.name}: nothing is there")
    return 0
