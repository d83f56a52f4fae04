"""Pack the programs of an application's hosts: ``python -m kestrel_stack.deploy.tools --output DIR``.

The result is one file. The jobs CLI, the delay mover and the alarm run from it with the host's own Python,
whether or not there is a release yet: ``python3 FILE.pyz`` is the jobs CLI, with FILE.pyz as PYTHONPATH
``python3 -m`` starts the others. The same sources give the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kestrel_stack.broker import bundle

PACKAGES = ("queue", "consumer")
LAUNCHER = "import sys\n\nfrom kestrel_stack.queue.jobs.cli import main\n\nsys.exit(main())\n"


def build() -> bytes:
    """Return the bytes of the zipapp."""
    top = bundle.PACKAGE.parent
    sources = [path for package in PACKAGES for path in sorted((top / package).rglob("*"))]
    return bundle.pack(
        [top / "__init__.py", *(path for path in sources if path.suffix in (".py", ".json"))], LAUNCHER
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the bundle and print its path; 1 with one line if the folder cannot be written."""
    parser = argparse.ArgumentParser(
        prog="kestrel_stack.deploy.tools", description="Pack the programs of an application's hosts."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write it to")
    options = parser.parse_args(arguments)
    try:
        path = bundle.keep(options.output, "kestrel-stack-jobs", build())
    except OSError as error:
        sys.stderr.write(f"tools: cannot write to {options.output}: {error.strerror}\n")
        return 1
    sys.stdout.write(f"{path.absolute()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
