"""Where the shop keeps its files, and who may read them.

Workers write as one user, reports are run by another one of the same group; so everything below ``var`` is
readable and writable for the group, whatever the process's umask is.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def var() -> Path:
    """Return the folder that outlives a release: ``var`` beside this package, or ``$SHOP_VAR``."""
    return Path(os.environ.get("SHOP_VAR") or Path(__file__).resolve().parent.parent / "var")


def shared_folder(path: Path) -> Path:
    """Make `path` a folder that the group may use, if it does not exist."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o2775)
        path.chmod(0o2775)
    return path


def shared_file(path: Path) -> Path:
    """Make `path` an empty file that the group may write, if it does not exist."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o664)
        os.fchmod(descriptor, 0o664)
        os.close(descriptor)
    return path
