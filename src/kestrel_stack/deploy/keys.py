"""What every part of deploy.yml shares: a mapping with keys that are known, and no other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Refused


def mapping(value: Any, name: str, known: Sequence[str], where: str) -> Mapping[str, Any]:
    """Return a mapping whose keys are all known.

    ``name`` is its own place in the file, such as ``assets.cdn``, empty for the whole of it; ``where`` is the
    file. Raises Refused naming the key and, when misspelt, the nearest known one.
    """
    if not isinstance(value, dict):
        subject = f"{name} must" if name else "must"
        raise Refused(f"{where}: {subject} be a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            full = _printable(f"{name}.{key}" if name else str(key))
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise Refused(f"{where}: unknown key {full}: {hint}")
    return value


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:100]
