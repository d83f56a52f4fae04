"""A lock as one file for a kind of host: ``python -m kestrel_stack.deploy.build.wheelhouse --help``.

The file is a tar of wheels, the lock's and (for kestrel-web) the stack's own, and of the requirements that
name each with its hash: a host installs it without reaching any index. The same inputs give the same bytes,
and the file is kept under ``.build/`` by what is in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..description import ROOT
from ..errors import DeployError
from ..hoststate import Target
from .bundle import tar
from .cache import CACHE, write_whole
from .lock import read_lock
from .stack import build_checkout_wheel
from .wheels import Wheels, build_wheels

LOCK = "requirements/web.txt"


def pack(wheels: Wheels) -> bytes:
    """Return the tar: ``requirements.txt`` and ``wheels/``, the same bytes whenever it is made."""
    content = {"requirements.txt": wheels.requirements.encode()}
    content |= {f"wheels/{path.name}": path.read_bytes() for path in wheels.files}
    return tar(content)


def build(
    target: Target, lock: str = LOCK, *, with_stack: bool = True, root: Path = ROOT, cache: Path = CACHE
) -> dict[str, str]:
    """Make the file for one kind of host; return its ``path``, ``sha256`` and the ``key`` of its content.

    ``lock`` is a path, relative to ``root`` unless it is absolute.
    Raises DeployError naming a package that has no wheel for this kind of host, or whose hash differs.
    """
    packages = read_lock((root / lock).read_text(encoding="utf-8"), lock)
    own = build_checkout_wheel(root=root, cache=cache) if with_stack else None
    wheels = build_wheels(packages, target, own, lock, cache)
    path = cache / ("web" if with_stack else "wheelhouse") / f"{wheels.key}.tar"
    data = pack(wheels)
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)
    return {"path": str(path), "sha256": hashlib.sha256(data).hexdigest(), "key": wheels.key}


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was made as one JSON object; 1 with one line when it cannot be made."""
    parser = argparse.ArgumentParser(prog="wheelhouse", description="Pack a lock for a kind of host.")
    parser.add_argument("--lock", default=LOCK, metavar="FILE", help=f"what to pack (default: {LOCK})")
    parser.add_argument(
        "--without-stack", action="store_true", help="the lock's wheels only, not the stack's"
    )
    parser.add_argument("--python", required=True, metavar="X.Y", help="the hosts' Python, like 3.11")
    parser.add_argument("--arch", required=True, choices=("x86_64", "aarch64"), help="the hosts' machine")
    parser.add_argument("--glibc", required=True, metavar="X.Y", help="the hosts' C library, like 2.36")
    options = parser.parse_args(argv)
    try:
        target = Target(options.python, options.arch, options.glibc)
        made = build(target, options.lock, with_stack=not options.without_stack)
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or options.lock}: {error.strerror}\n")
        return 1
    sys.stdout.write(json.dumps(made) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
