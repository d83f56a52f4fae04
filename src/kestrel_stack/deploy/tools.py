"""Pack the programs of an application's hosts: ``python -m kestrel_stack.deploy.tools --output DIR``.

The result is one file. The jobs CLI, the delay mover and the alarm run from it with the host's own Python,
whether or not there is a release yet: ``python3 FILE.pyz`` is the jobs CLI, with FILE.pyz as PYTHONPATH
``python3 -m`` starts the others. The same sources give the same bytes everywhere.
"""

from __future__ import annotations

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


def write(folder: Path) -> Path:
    """Write the zipapp into ``folder``, which is made if need be, and return its path."""
    return bundle.keep(folder, "kestrel-stack-jobs", build())


def main(arguments: list[str] | None = None) -> int:
    """Write the bundle and print its path; 1 with one line if the folder cannot be written."""
    about = "Pack the programs of an application's hosts."
    return bundle.command("kestrel_stack.deploy.tools", about, write, arguments)


if __name__ == "__main__":
    sys.exit(main())
