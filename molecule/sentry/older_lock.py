"""Write the lock of an older Bugsink: ``older_lock.py LOCK OLDER TO``, LOCK with the entries of OLDER."""

import re
import sys
from pathlib import Path


def main(lock: Path, older: Path, to: Path) -> None:
    """Replace the entries, and add those that LOCK does not have."""
    text = lock.read_text(encoding="utf-8")
    for line in older.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, _, entry = line.partition("==")
        version, _, digest = entry.partition(" ")
        block = re.compile(rf"^{re.escape(name)}==.*\n(?:    .*\n)*", re.MULTILINE)
        wanted = f"{name}=={version} \\\n    {digest}\n"
        text, found = block.subn(lambda _: wanted, text)  # noqa: B023
        text += "" if found else wanted
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
