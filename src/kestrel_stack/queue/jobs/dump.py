"""Moving a queue into a file, and back: one JSON object a line, ``queue``, ``place`` and ``body``.

Items are written to the file, and to the disk, before they are taken off the queue; on the way back, put on
the queue before the file's mark moves on. A cut doubles what was under way, and loses nothing.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from kestrel_stack.queue.errors import QueueError
from kestrel_stack.queue.interface import JobQueue, Queue
from kestrel_stack.queue.jobs.parked import text_or_base64

BATCH = 50
"""Items that are written to the disk together; each is held on a connection of its own."""
PLACES = ("ready", "parked")


class FileFailed(QueueError):  # noqa: N818 - it names what is the matter
    """A file that cannot be used; the message names it."""


@dataclass(frozen=True)
class Item:
    """One line of a dump."""

    queue: str
    place: str
    body: bytes

    def encode(self) -> bytes:
        """Return the line, with its end."""
        content = {"queue": self.queue, "place": self.place, **text_or_base64(self.body)}
        return json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n"


def dump(
    store: Queue,
    queue: str,
    place: str,
    path: Path,
    append: bool,
    count: int | None,
    step: Callable[[], None],
) -> None:
    """Move at most `count` items of `queue` into the file at `path`; call `step` for each.

    Raises `FileFailed`, and what a `JobQueue` raises.
    """
    try:
        whole = _whole_lines(path) if append and path.exists() else None
        # Unbuffered: what did not fit on a full disk must not be written once more at the end.
        with path.open("xb" if whole is None else "r+b", buffering=0) as file:
            file.truncate(whole or 0)
            file.seek(0, os.SEEK_END)
            _sync_folder(path.parent)
            left = count
            for part in store.parts():
                with closing(part):
                    left = _dump_part(part, queue, place, file, left, step)
    except FileExistsError:
        raise FileFailed(
            f"The file {path} exists already; name another, or add to it with --append."
        ) from None
    except OSError as exc:
        raise FileFailed(
            f"The file {path} cannot be written: {exc.strerror}. What is not in it is still on the queue."
        ) from None


def _dump_part(
    part: Queue, queue: str, place: str, file: io.FileIO, left: int | None, step: Callable[[], None]
) -> int | None:
    hands: list[JobQueue] = []
    with ExitStack() as stack:
        while left is None or left > 0:
            batch = []
            for number in range(BATCH if left is None else min(BATCH, left)):
                if number == len(hands):
                    hands.append(part.parked(queue) if place == "parked" else part.worker(queue))
                    stack.callback(hands[-1].drop)
                reservation = hands[number].reserve(0)
                if reservation is None:
                    break
                batch.append((hands[number], reservation))
            if not batch:
                break
            _write(file, b"".join(Item(queue, place, held.body).encode() for _, held in batch))
            for hand, reservation in batch:
                hand.done(reservation)
                step()
            if left is not None:
                left -= len(batch)
    return left


def _write(file: io.FileIO, data: bytes) -> None:
    """Write `data` at the end of the file and to the disk, or leave the file as it was."""
    start, left = file.tell(), memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise


def _whole_lines(path: Path) -> int:
    """Return where the last whole line ends; what follows is from a cut, and still on its queue."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def _sync_folder(folder: Path) -> None:
    """Have the file's name survive a power cut, as its content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[Item]:
    """Yield the items of a dump; `FileFailed` names the line that is none."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # from a cut, see `_whole_lines`
                try:
                    yield _item(line)
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise FileFailed(f"{path}, line {number}: this is not an item of a dump.") from None
    except OSError as exc:
        raise FileFailed(f"The file {path} cannot be read: {exc.strerror}.") from None


def _item(line: bytes) -> Item:
    content = json.loads(line)
    queue, place = content.pop("queue"), content.pop("place")
    ((key, value),) = content.items()
    if not isinstance(queue, str) or place not in PLACES or key not in ("body", "body_b64"):
        raise ValueError(key)
    try:
        body = value.encode("utf-8") if key == "body" else base64.b64decode(value, validate=True)
    except (AttributeError, binascii.Error) as exc:
        raise ValueError(key) from exc
    return Item(queue, place, body)


def load(store: Queue, path: Path, marks: Path, done: int, step: Callable[[], None]) -> None:
    """Put the items of a dump back, from number `done` on; the file `marks` says how many are back.

    Raises what `Queue.put` raises; another call goes on where it was cut, at most one item comes twice.
    """
    try:
        marks.touch()
        with marks.open("r+b", buffering=0) as mark:
            for number, item in enumerate(read(path)):
                if number < done:
                    continue
                put = store.park if item.place == "parked" else store.put
                put(item.queue, item.body)
                # Always as long, so that a cut leaves the one number or the other.
                os.pwrite(mark.fileno(), b"%012d\n" % (number + 1), 0)
                step()
    except OSError as exc:
        raise FileFailed(f"The file {marks} cannot be written: {exc.strerror}.") from None


def marked(marks: Path) -> int:
    """Return how many items of a dump are back on their queues."""
    try:
        text = marks.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as exc:
        raise FileFailed(f"The file {marks} cannot be read: {exc.strerror}.") from None
    if text and not text.strip().isdigit():
        raise FileFailed(f"The file {marks} does not hold a number; it says how many items are loaded.")
    return int(text or 0)
