"""The embedded broker reads, and writes, the very bytes of Kestrel 2.4.1's journals."""

import json
import struct
from pathlib import Path

import pytest

from kestrel_stack.broker.config import Config
from kestrel_stack.broker.spool import Spool
from support.broker import BrokerProcess, wait_until

FOLDER = Path(__file__).parent / "golden_journals"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}

# Kestrel's answer loses what was acknowledged, or Kestrel does not start at all; ours, and why.
OURS_INSTEAD = {
    "42-corrupt-archive": {
        "why": "a break in an archive says nothing about the current file, which Kestrel cuts there",
        "items": {"ca": ["arch-one", "cur-1", "cur-2", "cur-3"]},
        "changed": {},
        "removed": [],
    },
    "44-empty-pack": {
        "why": "an empty .pack is an unfinished one; Kestrel deletes the live archive for it",
        "items": {"ep": ["live-in-archive", "current"]},
        "changed": {},
        "removed": ["ep.150.pack"],
    },
    "45-rewrite-cut-short": {
        "why": "the archive stands for the current file; Kestrel replays both and gives out C instead of A",
        "items": {"rc": ["A"]},
        "changed": {"rc": CASES["45-rewrite-cut-short"]["files"]["rc.500"] + "0505000000"},
        "removed": ["rc.500"],
    },
    "50-negative-size": {
        "why": "Kestrel does not start; cut back as any other break",
        "items": {"plain": ["one", "two", "three"]},
        "cut_to_case_01": True,
    },
    "51-size-2147483647": {
        "why": "Kestrel does not start; cut back as any other break",
        "items": {"plain": ["one", "two", "three"]},
        "cut_to_case_01": True,
    },
    "52-size-900MB": {
        "why": "Kestrel does not start; cut back as any other break",
        "items": {"plain": ["one", "two", "three"]},
        "cut_to_case_01": True,
    },
    "53-bak-file": {
        "why": "Kestrel does not start; the stray file is named in the log and left alone",
        "items": {"plain": ["one", "two", "three"]},
    },
    "54-tilde-file": {
        "why": "Kestrel does not start; the stray file is named in the log and left alone",
        "items": {"plain": ["one", "two", "three"]},
    },
    "55-dot-file": {
        "why": "Kestrel does not start; the stray file is named in the log and left alone",
        "items": {"plain": ["one", "two", "three"]},
    },
}


def folder_content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().hex() for path in folder.iterdir() if path.is_file()}


def expected_after_start(name: str) -> tuple[dict[str, str], dict[str, list[str] | None]]:
    """Files and items (None: no such queue) after a start on the case's files."""
    case, restart = CASES[name], CASES[name]["restart"]
    ours = OURS_INSTEAD.get(name)
    if ours is None:
        changed, removed = restart["files_changed_by_the_start"], restart["files_removed_by_the_start"]
        items = {
            queue: state and state["items_in_order"] for queue, state in restart.get("queues", {}).items()
        }
    else:
        changed, removed, items = ours.get("changed", {}), ours.get("removed", []), ours["items"]
        if ours.get("cut_to_case_01"):
            changed = CASES["01-set-x3"]["files"]
    files = {**case["files"], **changed}
    return {file: content for file, content in files.items() if file not in removed}, items


@pytest.fixture
def start_on(tmp_path):
    spools = []

    def start(files: dict[str, str]) -> Spool:
        for file, content in files.items():
            (tmp_path / file).write_bytes(bytes.fromhex(content))
        spool = Spool(Config(queue_path=tmp_path, sync_journal_ms=None))
        spools.append(spool)
        spool.load()
        return spool

    yield start
    for spool in spools:
        spool.close()


@pytest.mark.parametrize("name", CASES)
def test_a_start_on_these_files_changes_and_serves_what_kestrel_does(name, start_on, tmp_path):
    spool = start_on(CASES[name]["files"])
    files, items = expected_after_start(name)
    assert folder_content(tmp_path) == files
    for queue, expected in items.items():
        if expected is None:
            assert spool.get(queue) is None
            continue
        state = CASES[name]["restart"].get("queues", {}).get(queue)
        if state and name not in OURS_INSTEAD:
            found = spool.get(queue)
            assert (found.items, found.bytes, found.journal.size, found.open_reads, found.expired) == (
                state["items"],
                state["bytes"],
                state["logsize"],
                state["open_transactions"],
                state["expired_items"],
            )
        assert [item.data.decode("latin-1") for item in iter(spool.get(queue).remove, None)] == expected
    for queue, count in CASES[name]["restart"].get("item_counts", {}).items():
        if name not in OURS_INSTEAD:
            assert spool.get(queue).items == count


@pytest.mark.parametrize("name", CASES)
def test_what_a_start_cuts_off_is_kept_beside_the_journals(name, start_on, tmp_path):
    """Kestrel keeps no copy."""
    before = CASES[name]["files"]
    start_on(before)
    cut = sorted(
        content.removeprefix(after)
        for file, content in before.items()
        if (after := folder_content(tmp_path).get(file, content)) != content and content.startswith(after)
    )
    kept = tmp_path / "damaged~"
    assert sorted(folder_content(kept).values() if kept.exists() else []) == cut


@pytest.mark.parametrize("name", CASES)
def test_a_second_start_finds_no_open_reads_and_changes_nothing_more(name, start_on, tmp_path):
    start_on(CASES[name]["files"]).close()
    after_first = folder_content(tmp_path)
    start_on({})
    assert folder_content(tmp_path) == after_first


# Cases whose requests can be played again and leave the same files. Not here: 09, whose items must expire one
# by one; 14, of whose archives ours drops those that are history; 16, 23 to 26 and 28, where Kestrel packs:
# ours does it in another way; and 19, where Kestrel loses items.
PLAYED = [
    *("01-set-x3", "02-set-get", "03-set-open", "04-open-close", "05-open-abort", "06-two-opens-disconnect"),
    *("07-three-opens-held", "08-expiry", "10-flush", "11-delete", "12-fanout", "13-fanout-only"),
    *("15-read-behind", "17-rewrite-when-empty", "18-expire-to-queue", "20-discard-old", "21-empty"),
    *("22-xid-count", "27-two-generations"),
]
SETTINGS = {
    "rw": {"default_journal_size": 100},
    "disc": {"max_items": 2, "discard_old_when_full": True},
    "fo": {"fanout_only": True},
    "rb": {"max_memory_size": 100},
    "exq": {"max_age": 1, "expire_to_queue": "exdead"},
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("golden"), queues=SETTINGS) as process:
        yield process


@pytest.mark.parametrize("name", PLAYED)
def test_the_same_requests_give_the_same_journal(name, broker):
    case = CASES[name]
    queue = next(iter(case["restart"]["queues"]))
    connections = {}
    for step in case["steps"]:
        if "restart" in step:
            broker.kill()
            broker.start()
            connections = {}
        elif step.get("disconnect"):
            connections.pop(step["conn"]).close()
            wait_until(lambda: broker.stats(queue)["open_transactions"] == 0, "the open reads to come back")
        else:
            if name == "18-expire-to-queue" and step["recv"] == "END\r\n":
                wait_until(
                    lambda: broker.raw(b"flush_expired exq\r\n") and not items_of(broker), "the expiry"
                )
            client = connections.setdefault(step["conn"], broker.connect())
            client.ask(step["send"].encode("latin-1"), step["recv"].encode("latin-1"))
    names = {file.partition(".")[0] for file in case["files"]}
    written = {path.name: path.read_bytes() for path in broker.spool.iterdir() if path.is_file()}
    recorded = {file: bytes.fromhex(content) for file, content in case["files"].items()}
    for one in names:
        assert in_order(one, written) == in_order(one, recorded)
    for client in connections.values():
        client.close()


def items_of(broker) -> int:
    return broker.stats("exq")["items"]


def in_order(queue: str, files: dict[str, bytes]) -> list[list[tuple]]:
    """The records of a queue's files, archives first: their names are times, so they differ."""
    archives = sorted(
        (file for file in files if file.startswith(queue + ".")), key=lambda file: int(file.split(".")[1])
    )
    return [records(files[file]) for file in [*archives, queue] if file in files]


def records(content: bytes) -> list[tuple]:
    """Decode on its own what 2.4.1 writes; times become relative, since the clock is another."""
    found, at = [], 0
    while at < len(content):
        opcode = content[at]
        if opcode == 2:
            size, added, expiry = struct.unpack_from("<iqq", content, at + 1)
            data = content[at + 21 : at + 5 + size]
            far = expiry in (0, 2145916800000)
            # In whole seconds: Kestrel looks at its clock twice for one item.
            found.append((opcode, data, expiry if far else (expiry - added) // 1000))
            at += 5 + size
        elif opcode == 1:
            found.append((opcode,))
            at += 1
        else:
            found.append(struct.unpack_from("<Bi", content, at))
            at += 5
    return found
