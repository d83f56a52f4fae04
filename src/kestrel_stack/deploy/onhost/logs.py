"""Send the ends of the workers' logs, and with ``follow`` what is added to them: ``logs.py OPTIONS``.

Runs on a host as ``python3 -I -S -c``. OPTIONS is a JSON object: ``folder``; ``groups``, whose logs are meant
(empty: all of the folder); ``lines``, how many of the last of each log (null: all); ``follow``; ``at``, where
an earlier run had come to: ``{LOG: [INODE, OFFSET]}``.

Standard output: ``LOG<tab>LINE`` for each line, then ``@ at LOG INODE OFFSET``, and once ``@ caught up``
when all that was there is sent. A log that is rotated meanwhile is read to its end before the new one, and so
is one that was rotated while nobody listened. Exit code 1: the folder or a log cannot be read, with one line
on standard error.
"""

import io
import json
import os
import re
import sys
import time
from pathlib import Path

PAUSE = 0.25
"""Seconds between two looks at the logs."""
BLOCK = 65536
LONGEST = 32768
"""Bytes of a line that are sent; the rest of it is left out."""
BACKUPS = 100
"""A log's older files are looked for up to this number."""


class Log:
    """One log, open, and how far it is read."""

    def __init__(self, path, name, offset=0):
        self.path = path
        self.name = name
        self.file = path.open("rb", buffering=0)
        self.inode = os.fstat(self.file.fileno()).st_ino
        self.offset = offset

    def send_new(self, whole_lines=True):
        """Send what is there behind `offset`; an unfinished last line waits, unless it is the file's end."""
        if os.fstat(self.file.fileno()).st_size < self.offset:
            # Emptied in place.
            self.offset = 0
        self.file.seek(self.offset)
        rest, sent = b"", False
        while block := self.file.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self.send(line)
                self.offset += len(line) + 1
            sent = sent or bool(lines)
            if len(rest) > BLOCK:
                # No line of ours is that long: it is sent in parts.
                self.send(rest)
                self.offset += len(rest)
                rest, sent = b"", True
        if rest and not whole_lines:
            self.send(rest)
            self.offset += len(rest)
            sent = True
        if sent:
            self.say_where()

    def say_where(self):
        """Say how far the log is read."""
        say(f"@ at {self.name} {self.inode} {self.offset}")

    def send(self, line):
        """Send one line."""
        say(f"{self.name}\t{line[:LONGEST].decode('utf-8', 'replace')}")

    def replaced(self):
        """Whether the log's name leads to another file by now."""
        try:
            return self.path.stat().st_ino != self.inode
        except FileNotFoundError:
            return False


def say(line):
    """Write one line of output; `main` flushes."""
    sys.stdout.write(line.replace("\r", " ") + "\n")


def names(folder, groups):
    """Return the names of the logs that are meant."""
    found = [entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".log")]
    pattern = re.compile("(?:" + "|".join(map(re.escape, groups)) + r")_[0-9]+\Z") if groups else None
    return sorted(name for name in found if pattern is None or pattern.match(name))


def last_lines(path, count):
    """Return where the last `count` lines of a file begin, and how many of them there are."""
    with path.open("rb") as file:
        position = end = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= count:
            start = max(0, position - BLOCK)
            file.seek(start)
            data = file.read(position - start) + data
            position = start
    lines = list(io.BytesIO(data))[-count:] if count else []
    return end - sum(map(len, lines)), len(lines)


def older(path, number):
    """Return the path of a rotated log: 1 is the youngest."""
    return path.with_name(f"{path.name}.{number}")


def begin(path, name, count, follow):
    """Open a log where its last `count` lines begin, after sending those of them that were rotated."""
    offset, found = (0, None) if count is None else last_lines(path, count)
    if found is not None and found < count and older(path, 1).exists():
        rotated = Log(older(path, 1), name, last_lines(older(path, 1), count - found)[0])
        rotated.send_new(whole_lines=False)
        rotated.file.close()
    log = Log(path, name, offset)
    log.send_new(whole_lines=follow)
    # Said for a log without a line, too: what comes is behind this, also for another run.
    log.say_where()
    return log


def resume(path, name, inode, offset):
    """Open a log where an earlier run had come to, after sending what was rotated since."""
    log = Log(path, name)
    if log.inode == inode:
        log.offset = offset
    else:
        numbers = [n for n in range(1, BACKUPS) if older(path, n).exists()]
        there = [n for n in numbers if older(path, n).stat().st_ino == inode]
        # When the one that was read is gone, the rotated ones that are younger are not known: none is sent.
        for number in range(there[0], 0, -1) if there else ():
            rotated = Log(older(path, number), name, offset if number == there[0] else 0)
            rotated.send_new(whole_lines=False)
            rotated.file.close()
    log.send_new()
    return log


def main(options):
    """Send what is there, then what comes. Exits with a sentence when something cannot be read."""
    folder, follow = options["folder"], options["follow"]
    logs = {}
    first = True
    while True:
        try:
            found = names(folder, options["groups"])
        except OSError as error:
            sys.exit(f"{folder} cannot be read: {error.strerror}")
        for name in found:
            path = Path(folder, f"{name}.log")
            try:
                if name not in logs:
                    at = options["at"].get(name)
                    if at is not None:
                        logs[name] = resume(path, name, *at)
                    elif first:
                        logs[name] = begin(path, name, options["lines"], follow)
                    else:
                        logs[name] = Log(path, name)
                log = logs[name]
                if log.replaced():
                    # What is open has its last lines even when the file itself is gone.
                    log.send_new(whole_lines=False)
                    log.file.close()
                    logs[name] = resume(path, name, log.inode, log.offset)
                else:
                    log.send_new()
            except FileNotFoundError:
                # Between two names: the next look finds it.
                continue
            except PermissionError as error:
                sys.exit(f"{path} cannot be read: {error.strerror}")
        if first:
            say("@ caught up")
            first = False
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
