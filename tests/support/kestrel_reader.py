"""A second, independent reader of Kestrel 2.4.1's journals: what a real Kestrel would serve from a folder.

Written from the description of the format and of the replay alone; it shares no code with the broker.
"""

from __future__ import annotations

import struct
from pathlib import Path


def owed(folder: Path, queue: str = "q") -> list[bytes]:
    """What a start of Kestrel on these files would serve, in order; the files are left as they are."""
    items: list[bytes] = []
    held: dict[int, bytes] = {}
    for path in replay_order(folder, queue):
        for record in whole_records(path.read_bytes()):
            apply(record, items, held)
    # Open reads are put back in descending order of their xids, each to the head.
    for xid in sorted(held, reverse=True):
        items.insert(0, held[xid])
    return items


def replay_order(folder: Path, queue: str) -> list[Path]:
    """The files that a start reads: archives by their number, a finished ``.pack`` for all before it."""
    numbered = []
    for path in folder.iterdir():
        parts = path.name.split(".")
        if len(parts) > 1 and parts[0] == queue and "~~" not in path.name:
            numbered.append((int(parts[1]), path))
    numbered.sort()
    packs = [(number, path) for number, path in numbered if path.name.endswith(".pack")]
    for pack_number, pack in packs:
        numbered = [(number, path) for number, path in numbered if number > pack_number or path == pack]
    current = folder / queue
    return [path for _, path in numbered] + ([current] if current.exists() else [])


def whole_records(content: bytes):
    """Yield (opcode, xid, data) up to the first record that is broken or cut short."""
    at = 0
    while at < len(content):
        opcode = content[at]
        at += 1
        xid, data = 0, b""
        if opcode in (4, 5, 6, 7, 8, 9):
            if at + 4 > len(content):
                return
            (xid,) = struct.unpack_from("<i", content, at)
            at += 4
        if opcode in (0, 2, 7, 8):
            if at + 4 > len(content):
                return
            (size,) = struct.unpack_from("<i", content, at)
            at += 4
            head = 4 if opcode == 0 else 16
            if size < head or at + size > len(content):
                return
            data = content[at + head : at + size]
            at += size
        elif opcode > 9:
            return
        yield opcode, xid, data


def apply(record: tuple[int, int, bytes], items: list[bytes], held: dict[int, bytes]) -> None:
    opcode, xid, data = record
    if opcode in (0, 2, 7):
        items.append(data)
    elif opcode == 1:
        if items:
            items.pop(0)
    elif opcode in (3, 9):
        if items:
            held[xid] = items.pop(0)
    elif opcode == 5:
        if xid in held:
            items.insert(0, held.pop(xid))
    elif opcode == 6:
        held.pop(xid, None)
    elif opcode == 8:
        held.pop(xid, None)
        items.append(data)
