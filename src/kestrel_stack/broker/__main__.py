"""Command line: ``python -m kestrel_stack.broker --config FILE.json [--check] [--port-file FILE]``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from kestrel_stack.broker.config import Config, ConfigError, load
from kestrel_stack.broker.server import Broker, StartError
from kestrel_stack.broker.spool import SpoolError

PROGRAM = "kestrel-embedded"
EX_CONFIG = 78
"""Exit code for a configuration that cannot be used (sysexits.h)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the broker; return 0 after an orderly stop, 1 if it cannot start, 78 for a wrong configuration."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="A durable queue that speaks Kestrel's protocol."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.json", help="the configuration")
    parser.add_argument("--check", action="store_true", help="check the configuration and stop")
    parser.add_argument(
        "--port-file", type=Path, metavar="FILE", help="write the ports here, as JSON, when ready"
    )
    options = parser.parse_args(arguments)
    try:
        config = load(options.config)
    except ConfigError as error:
        return _fail(error, EX_CONFIG)
    if options.check:
        print(f"{PROGRAM}: {options.config} is in order")
        return 0
    logging.basicConfig(
        level=config.log_level.upper(),
        stream=sys.stderr,
        format=f"{PROGRAM}: %(levelname)s %(message)s",
    )
    try:
        asyncio.run(_serve(config, options.config, options.port_file))
    except (StartError, SpoolError, OSError) as error:
        return _fail(error, 1)
    return 0


async def _serve(config: Config, config_file: Path, port_file: Path | None) -> None:
    await Broker(config, config_file.absolute()).run(port_file)


def _fail(error: Exception, code: int) -> int:
    print(f"{PROGRAM}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
