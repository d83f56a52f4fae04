"""Print, as JSON, what the checks of role kestrel need to know of this host; change nothing.

usage: host_facts.py SPOOL MOUNT_SOURCE NAMES

SPOOL is the folder of the journals, MOUNT_SOURCE what shall be mounted there ("" is nothing), NAMES a JSON
list of host names. Runs on the host with its own Python. Sizes are bytes.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

# Enough to name; a list of thousands helps nobody.
NAMED = 5
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETGEN = 16
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
# The greatest opcode of Kestrel's journals, and those that have a block behind them (or behind an xid).
OPCODES = range(10)
LEAST_BLOCK = {0: (1, 4), 2: (1, 16), 7: (5, 16), 8: (5, 16)}


def nftables() -> str:
    """Ask the kernel for its ruleset's generation; return why it does not answer, "" if it does.

    The program nft need not be there yet. Who is not root cannot tell.
    """
    if os.geteuid() != 0:
        return ""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asked:
            asked.settimeout(10)
            asked.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST, 1, 0) + body)
            answer = asked.recv(65536)
    except OSError as error:
        return error.strerror or "no answer"
    _, answered, _, _, _, code = struct.unpack_from("=IHHIIi", answer.ljust(20, b"\0"))
    if answered != NLMSG_ERROR:
        return ""
    # EINVAL is how a kernel answers that does not know this part of netfilter.
    return "no nf_tables in the kernel" if -code == errno.EINVAL else os.strerror(-code)


def resolve(name: str) -> list[str]:
    """Return every address of a name, none if it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]).partition("%")[0] for entry in found})


def owner(uid: int) -> str:
    """Return a user's name; "" where the number has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def mount_of(path: str) -> dict[str, str] | None:
    """Return what is mounted at `path` itself, None if nothing is."""
    found = None
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        fields = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[4])
        if place == path:  # the last one is on top
            rest = fields[fields.index("-") + 1 :]
            found = {"device": fields[2], "fstype": rest[0], "source": rest[1]}
    return found


def is_source(source: str, mounted: dict[str, str]) -> bool | None:
    """Tell whether `source`, as an fstab writes it, is what is mounted; None if that cannot be told."""
    tag = re.fullmatch(r"(UUID|LABEL|PARTUUID|PARTLABEL)=\"?([^\"]+)\"?", source)
    path = f"/dev/disk/by-{tag.group(1).lower()}/{tag.group(2)}" if tag else source
    if not path.startswith("/"):
        return path == mounted["source"]
    try:
        found = Path(path).stat()
    except OSError:
        return None
    if stat.S_ISBLK(found.st_mode):
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" == mounted["device"]
    backing = Path(f"/sys/dev/block/{mounted['device']}/loop/backing_file")
    try:
        return backing.read_text(encoding="utf-8").strip() == os.path.realpath(path)
    except OSError:
        return None


def why_foreign(entry: os.DirEntry[str]) -> str:
    """Say why a file is not one of Kestrel's; "" if it may be."""
    name = entry.name
    if "~~" in name:
        return ""  # a temporary file: never read as a queue
    if entry.is_symlink():
        return "is a link: Kestrel would replace it, and what it points to would stay behind"
    if not entry.is_file(follow_symlinks=False):
        return "is no regular file"
    queue, _, rest = name.partition(".")
    if not queue:
        return "has no queue's name before its dot: Kestrel does not start with it"
    if "~" in queue:
        return "has a ~, which no queue's name may have: Kestrel does not start with it"
    if "." in name and not re.fullmatch(r"-?[0-9]+(\.pack)?", rest):
        if re.match(r"-?[0-9]+\.", rest):
            return f"would be read as an old journal of a queue {queue}"
        return f"is no journal of a queue {queue}: Kestrel does not start with it"
    try:
        with Path(entry.path).open("rb") as file:
            head = file.read(9)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return ""
    if head[0] not in OPCODES:
        return f"does not begin with a journal's record: it would become queue {queue}, cut to nothing"
    at, least = LEAST_BLOCK.get(head[0], (0, 0))
    if at and len(head) >= at + 4 and struct.unpack_from("<i", head, at)[0] < least:
        return f"does not begin with a whole journal's record: it would become queue {queue}, cut to nothing"
    return ""


def spool_of(path: str, user: str, source: str) -> dict[str, Any]:
    """Say what there is in the folder of the journals and around it."""
    mounted = mount_of(path)
    found: dict[str, Any] = {
        "exists": os.path.lexists(path),
        "folder": Path(path).is_dir() and not Path(path).is_symlink(),
        "owner": None,
        "mounted": mounted,
        "is_source": is_source(source, mounted) if mounted and source else None,
        "in_fstab": False,
        "entries": 0,
        "first": [],
        "foreign": [],
        "foreign_count": 0,
        "others": [],
        "others_count": 0,
        "unowned": [],
    }
    try:
        lines = Path("/etc/fstab").read_text(encoding="utf-8", errors="replace").splitlines()
        found["in_fstab"] = any(
            len(fields := line.split()) > 1 and fields[0][0] != "#" and fields[1].rstrip("/") == path
            for line in lines
        )
    except OSError:
        pass
    if found["folder"]:
        uid = Path(path).stat().st_uid
        found["owner"] = owner(uid) or str(uid)
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.name == "lost+found" and entry.is_dir(follow_symlinks=False):
                    continue  # every ext4 file system has it; subfolders are no queues
                found["entries"] += 1
                found["first"] = [*found["first"], entry.name][:NAMED]
                # Also a link to one.
                if Path(entry.path).is_dir():
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # a rotation of the running server
                why = why_foreign(entry)
                if why and os.path.lexists(entry.path):
                    found["foreign_count"] += 1
                    found["foreign"] = [*found["foreign"], [entry.name, why]][:NAMED]
                    continue
                name = owner(status.st_uid)
                # root's and nobody's at all: what a copy leaves behind.
                if status.st_uid == 0 or not name:
                    found["unowned"].append(entry.path)
                elif name != user:
                    found["others_count"] += 1
                    found["others"] = [*found["others"], [entry.name, name]][:NAMED]
    near = next(folder for folder in (Path(path), *Path(path).parents) if folder.is_dir())
    size = os.statvfs(near)
    # What the file system keeps for root is no room for Kestrel.
    found["total"] = (size.f_blocks - size.f_bfree + size.f_bavail) * size.f_frsize
    found["free"] = size.f_bavail * size.f_frsize
    return found


def main(arguments: list[str]) -> None:
    """Print what is asked for."""
    spool, source, names = arguments
    json.dump(
        {
            "nftables": nftables(),
            "resolved": {name: resolve(name) for name in json.loads(names)},
            "spool": spool_of(spool, "kestrel", source),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
