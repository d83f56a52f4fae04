"""Pack the broker into one file: ``python -m kestrel_stack.broker.bundle --output DIR``.

The file is a zipapp of this package alone; run it with ``python3 FILE.pyz --config FILE.json``. The same
sources give the same bytes everywhere (fixed times and modes, nothing compressed), and the name carries
their hash: kestrel-embedded-<version>-<first 12 of the SHA-256>.pyz.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from kestrel_stack import __version__

PACKAGE = Path(__file__).parent
LONG_AGO = (1980, 1, 1, 0, 0, 0)
LAUNCHER = "import sys\n\nfrom kestrel_stack.broker.__main__ import main\n\nsys.exit(main())\n"


def build() -> bytes:
    """Return the bytes of the zipapp."""
    return pack([PACKAGE.parent / "__init__.py", *PACKAGE.glob("*.py")], LAUNCHER)


def pack(sources: Iterable[Path], launcher: str) -> bytes:
    """Return the bytes of a zipapp of these files of kestrel_stack, which runs `launcher`."""
    files = {"__main__.py": launcher.encode()}
    for source in sources:
        files[source.relative_to(PACKAGE.parent.parent).as_posix()] = source.read_bytes()
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def write(folder: Path) -> Path:
    """Write the zipapp into ``folder``, which is made if need be, and return its path."""
    return keep(folder, "kestrel-embedded", build())


def keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a zipapp into ``folder`` under its name, version and hash, and return its path."""
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{name}-{__version__}-{digest[:12]}.pyz"
    if not path.exists() or path.read_bytes() != content:
        folder.mkdir(parents=True, exist_ok=True)
        # A playbook asks for it on behalf of each host, at the same time: no two write to the same file.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as temporary:
            temporary.write(content)
        made = Path(temporary.name)
        made.chmod(0o644)
        made.replace(path)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Write the bundle and print its path; 1 with one line if the folder cannot be written."""
    return command("kestrel_stack.broker.bundle", "Pack the broker into one file.", write, arguments)


def command(
    program: str, about: str, write_into: Callable[[Path], Path], arguments: list[str] | None = None
) -> int:
    """Be the command line of a program that writes one zipapp into a folder; return its exit status."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write it to")
    options = parser.parse_args(arguments)
    try:
        path = write_into(options.output)
    except OSError as error:
        said = f"cannot write to {options.output}: {error.strerror}"
        sys.stderr.write(f"{program.rpartition('.')[2]}: {said}\n")
        return 1
    sys.stdout.write(f"{path.absolute()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
