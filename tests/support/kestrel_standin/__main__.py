"""Command line: ``python -m support.kestrel_standin OUT.zip [--release R] [--class-file FILE]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from support import kestrel_standin


def main() -> int:
    """Write the stand-in archive and print its SHA-256."""
    parser = argparse.ArgumentParser(
        prog="kestrel_standin", description="Write a stand-in for a Kestrel archive."
    )
    parser.add_argument("target", type=Path, metavar="OUT.zip")
    parser.add_argument("--release", default="2.4.1")
    parser.add_argument(
        "--class-file", type=Path, metavar="FILE", help="the compiled class (default: use javac)"
    )
    options = parser.parse_args()
    try:
        content = options.class_file.read_bytes() if options.class_file else kestrel_standin.compile_class()
        print(kestrel_standin.write(options.target, content, options.release))
    except (OSError, RuntimeError) as error:
        print(f"kestrel_standin: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
