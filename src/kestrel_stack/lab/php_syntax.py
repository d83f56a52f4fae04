"""``python -m kestrel_stack.lab.php_syntax``: PHP reads every PHP file of the checkout, and runs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kestrel_stack.lab.inventory import CHECKOUT
from kestrel_stack.lab.progress import say

FOLDERS = ("php", "examples", "src", "tests", "bench")


def main(root: Path = CHECKOUT) -> int:
    """Print what PHP refuses; return 0 when it refuses nothing."""
    refused = 0
    for path in files(root):
        # One file at a time: before PHP 8.3 it takes no more.
        try:
            done = subprocess.run(["php", "-l", path], cwd=root, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            say("php is not installed: apt install php-cli", sys.stderr)
            return 1
        if done.returncode:
            refused += 1
            say((done.stderr or done.stdout).strip())
    return min(refused, 1)


def files(root: Path = CHECKOUT) -> list[str]:
    """Return the PHP files of the checkout: *.php, and the programs that PHP runs."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*.php")]
    found += [path for path in (root / "php/bin").glob("*") if path.is_file()]
    return sorted({path.relative_to(root).as_posix() for path in found})


if __name__ == "__main__":
    sys.exit(main())
