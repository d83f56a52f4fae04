"""The lock of a Bugsink of before, to upgrade from: ``python -m support.older_bugsink FILE`` writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from kestrel_stack.deploy.build.cache import write_whole

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements/bugsink.txt"

# A release of before, whose tables were others, as pip has it: what it wants in place of today's.
OLDER = {
    "bugsink": (
        "2.5.1",
        "4631e9360db1541d1b20c404e9813006e001f5133cf18c35e01ba925656fd706",
        "fea675d76cda3edb0deffc7b34c220eacf69b2abecb5e2ee586ed59d16c6bf5d",
    ),
    "djangorestframework": (
        "3.17.2",
        "89ed713b6dc83e1539f214b7d10808ae19bb8511004beba886225da6d5c9dafa",
        "cb0546a7415d5b46c04e0f4fe0a54b2109f4fdd5e83ca773c8c6183a6493d042",
    ),
    "gunicorn": (
        "26.0.0",
        "40233d26a5f0d1872916188c276e21641155111c2853f0c2cd55260aec0d24fc",
        "ca9346f85e3a4aeeb64d491045c16b9a35647abd37ea15efe53080eb8b090baf",
    ),
    "packaging": (
        "26.3",
        "94edc256424af38762eb31306eed28beb9f0efc50a8837492c9d6fd6004aed79",
        "d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c",
    ),
    "pygments": (
        "2.20.0",
        "6757cd03768053ff99f3039c1a36d6c0aa0b263438fcab17520b30a303a82b5f",
        "81a9e26dd42fd28a23a2d169d86d7ac03b46e2f8b59ed4698fb4785f946d0176",
    ),
    "semver": (
        "3.0.4",
        "9c824d87ba7f7ab4a1890799cec8596f15c1241cb473404ea1cb0c55e4b04746",
        "afc7d8c584a5ed0a11033af086e8af226a9c0b206f313e0301f8dd7b6b589602",
    ),
}


def older_lock(path: Path = ROOT / ".build/bugsink/older.txt") -> Path:
    """Write today's lock with the packages of the release of before, and return where it is."""
    text = LOCK.read_text(encoding="utf-8")
    for name, (version, *digests) in OLDER.items():
        entry = " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in digests)])
        text = re.sub(rf"^{re.escape(name)}==.*\n(?:    .*\n)*", "", text, flags=re.MULTILINE) + f"{entry}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
    return path


if __name__ == "__main__":
    older_lock(Path(sys.argv[1]))
