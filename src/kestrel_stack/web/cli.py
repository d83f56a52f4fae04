"""The command line ``kestrel-web``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from kestrel_stack.web.config import ConfigError, load

PROGRAM = "kestrel-web"
EX_CONFIG = 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run kestrel-web; return its exit status."""
    from kestrel_stack.web import service

    logging.basicConfig(level=logging.INFO, format=f"{PROGRAM}: %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _stop)
    try:
        config = load(sys.argv[1:] if argv is None else argv, os.environ)
    except ConfigError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EX_CONFIG
    service.serve(config)
    return 0


def _stop(*_: object) -> None:
    raise SystemExit(0)
