"""Filters that check and complete the inventory's variables, for every role of this checkout.

They run on the controller, touch nothing, and return lists of one-line sentences: an empty list is a pass.
Nothing of kestrel_stack is imported: Ansible runs them with its own Python, where it may not be installed.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# What a queue's entry may leave out. The deploy and the settings file take the same values.
QUEUE_DEFAULTS: dict[str, Any] = {
    "language": "python",
    "processes": 1,
    "max_jobs": 1000,
    "max_time": None,
    "max_memory": None,
    "job_timeout": 60,
    "retry_delays": [],
    "max_items": None,
    "rate_limit": None,
    "also": [],
    "alert": {},
    "max_size": None,
    "max_item_size": None,
    "max_memory_size": None,
    "max_age": None,
    "discard_old_when_full": False,
    "fanouts": [],
    "fanout_only": False,
}

_KB, _MB = 1024, 1024**2

# What one item may have where the description says nothing, in bytes.
ITEM_SIZE = 1 * _MB
# A job that comes back from a delay queue says more of itself (attempt, due_at) than when it was first set,
# and would not fit again: the server's limit is this many bytes above the description's.
RETRY_GROWTH = 4 * _KB
# A parked job is its item in base64, which makes four bytes of three, with the error's message and stack
# beside it.
ERROR_TEXT = 256 * _KB
# Where the inventory states no memory for a queue, it is enough for this many of its largest items.
LEAST_ITEMS = 4
# A ping or its answer is a few hundred bytes, is taken within seconds, and is of no use later.
PING_SETTINGS: dict[str, Any] = {
    "max_items": 100,
    "max_item_size": 4 * _KB,
    "max_memory_size": _MB // 2,
    "max_age": 60,
    "discard_old_when_full": True,
}
# Kestrel counts items in a Java Int.
MAX_ITEMS = 2**31 - 1

# What an item costs a release's JVM beside its data: an object each for the item, its two times and its place
# in the queue, and the header of the byte array: 100 to 140 bytes with compressed pointers (Source: Kestrel
# 2.4.1's code).
ITEM_OVERHEAD = 140
# A job's data where nobody says: the smallest envelopes have about 130 bytes.
USUAL_ITEM = 200
# Share of the heap that G1 needs free to work without stopping for long.
HEAP_FREE = 0.25
# The server's own objects, and scalac 2.9.2, which runs in the same heap at every start and reload.
HEAP_BASE_MB = 160
# What the process has beside the heap (code, metaspace, threads, network buffers), and what the host needs.
BESIDE_HEAP_MB = 200
HOST_MB = 256

# supervisor sends KILL this many seconds after TERM would have had to be obeyed.
STOP_MARGIN_SECONDS = 10

# What supervisor's programs beside those of the queues are called, after the namespace.
OWN_PROGRAMS = {"mover": "the program that moves delayed jobs", "alarm": "the program that reports crashes"}
LANGUAGES = ("python", "php")
# Of an entry, what its own workers need not know: they run on when it changes.
_NOT_A_WORKERS = {
    "processes",
    "alert",
    "max_items",
    "max_size",
    "max_memory_size",
    "max_age",
    "discard_old_when_full",
    "fanouts",
    "fanout_only",
}
# Of the other entries, what a producer goes by, which a job may be.
_PRODUCERS = ("name", "retry_delays", "max_item_size")

# Bytes of a name on the server. The longest suffix we add is `_ping_<host>_answer`, with up to 64 for the
# host.
SERVER_NAME_LIMIT = 200
SUFFIX_RESERVE = len("_ping_") + 64 + len("_answer")

SUPPORTED_DEBIAN = ("12", "13")
SUPPORTED_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

# Groups that Debian's base system has, and our own users: the application's group must be neither.
_RESERVED = """
adm audio backup bin cdrom daemon dialout dip disk fax floppy games input irc kmem kvm list lp mail man
messagebus news nobody nogroup operator plugdev proxy render root sasl sgx shadow src ssh staff sudo sys
systemd-journal tape tty users utmp uucp video voice www-data kestrel kestrel-web sentry web worker
"""
RESERVED_APPS = frozenset(_RESERVED.split())

_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_APP = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z"
)
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]+(\+[A-Za-z0-9_-]+)?\Z")
_RESERVED_QUEUE = re.compile(r".*_(errors|retry_[0-9]+|ping_.*)\Z")
_ENVIRONMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_RATE = re.compile(r"(?=[0-9.]*[1-9])[0-9]+(\.[0-9]+)?/s\Z")
_AGE = re.compile(r"[1-9][0-9]*(s|m|h)\Z")
_AGE_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"([0-9]+)(KB|MB|GB)?\Z")
_SIZE_UNITS = {None: 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
# What Kestrel keeps a size in: a signed 64-bit number of bytes.
_SIZE_LIMIT = 2**63 - 1
_KEY = re.compile(
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" AAAA[A-Za-z0-9+/=]+( [^\r\n]*)?\Z"
)
_PHP_FILE = re.compile(r"(?!/)[A-Za-z0-9_./-]+\.php\Z")
# What the workers' sender takes.
_DSN = re.compile(
    r"https?://[A-Za-z0-9]+(:[A-Za-z0-9]+)?@(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9._~-]+)*/[A-Za-z0-9_-]+/?\Z"
)
_URL = re.compile(r"https?://[^\s\"'\\<>]+\Z")
_URL_PATH = re.compile(r"/[A-Za-z0-9._/-]*\Z")
_HOST_PATH = re.compile(r"/[A-Za-z0-9._/-]+\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+\Z")
_REGISTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z", re.ASCII)


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f": did you mean {close[0]}?" if close else ""


def known_variables(roles: str) -> list[str]:
    """List the variables that the roles in the folder `roles` declare in their argument specs."""
    known: set[str] = set()
    for spec in Path(roles).glob("*/meta/argument_specs.yml"):
        known.update(yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"])
    return sorted(known)


def variable_prefixes(roles: str) -> list[str]:
    """List what our variables' names begin with: the shared prefix and that of each role in `roles`."""
    return ["kestrel_stack_", *(f"{role.name}_" for role in sorted(Path(roles).iterdir()) if role.is_dir())]


def unknown_variables(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Say which of `names`, all of which carry one of our prefixes, no role knows."""
    known = set(known)
    return [
        f"unknown variable {name}{_nearest(name, known, 0.87) or ': no role here reads it, remove it'}"
        for name in sorted(set(names) - known)
    ]


def platform_problems(facts: Mapping[str, Any]) -> list[str]:
    """Say why these facts are not those of a supported host."""
    distribution = str(facts.get("distribution", "unknown"))
    version = str(facts.get("distribution_major_version", "unknown"))
    machine = str(facts.get("architecture", "unknown"))
    problems = []
    if distribution != "Debian" or version not in SUPPORTED_DEBIAN:
        problems.append(
            f"{distribution} {version} is not supported: use Debian {' or '.join(SUPPORTED_DEBIAN)}"
        )
    if machine not in SUPPORTED_MACHINES:
        problems.append(
            f"architecture {machine} is not supported: use {' or '.join(SUPPORTED_MACHINES.values())}"
        )
    return problems


def app_problems(app: Any) -> list[str]:
    """Say what is wrong with kestrel_stack_app."""
    if not _APP.match(str(app)):
        return [f"kestrel_stack_app {app!s} is not legal: a lower-case letter, then up to 30 of a-z, 0-9, -"]
    if str(app) in RESERVED_APPS:
        return [f"kestrel_stack_app {app!s} is a group of the system: choose a name of its own"]
    return []


def namespace_problems(namespace: Any) -> list[str]:
    """Say what is wrong with kestrel_stack_namespace."""
    if _NAME.match(str(namespace)):
        return []
    return [f"kestrel_stack_namespace {namespace!s} is not legal: use A-Z, a-z, 0-9, _ and - only"]


def environment_problems(environment: Any) -> list[str]:
    """Say what is wrong with kestrel_stack_environment."""
    if _ENVIRONMENT.match(str(environment)):
        return []
    return [f"kestrel_stack_environment {str(environment)!r} is not legal: use one word, like production"]


def user_problems(user: Any, variable: str, taken: Sequence[str] = ()) -> list[str]:
    """Say why `user`, the value of `variable`, cannot be the name of a user of its own."""
    if not _USER.match(str(user)):
        return [f"{variable} {user!s} is not a legal user name: a-z, 0-9, _ and -, starting with a letter"]
    if user in taken:
        return [f"{variable} {user!s} is another part's user: choose a user of its own"]
    return []


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _queue_problems(where: str, queue: Mapping[str, Any], namespace: str) -> list[str]:
    problems: list[str] = []
    name = str(queue["name"])
    if not _NAME.match(name):
        return [f"{where}: queue name {name!r} is not legal: use A-Z, a-z, 0-9, _ and - only"]
    where = f"kestrel_stack_queues: {name}"
    if _RESERVED_QUEUE.match(name):
        problems.append(
            f"{where} ends like the queues that the stack makes itself"
            " (_errors, _retry_SECONDS, _ping_HOST): rename it"
        )
    server_name = f"{namespace}_{name}"
    if len(server_name) + SUFFIX_RESERVE > SERVER_NAME_LIMIT:
        longest = SERVER_NAME_LIMIT - SUFFIX_RESERVE
        problems.append(
            f"{where}: {server_name} has {len(server_name)} bytes; with its suffixes it would pass Kestrel's"
            f" {SERVER_NAME_LIMIT}: shorten name or kestrel_stack_namespace to {longest} together"
        )
    unknown = sorted(set(queue) - {"name", *QUEUE_DEFAULTS})
    problems += [f"{where}: unknown option {key}{_nearest(key, QUEUE_DEFAULTS)}" for key in unknown]
    queue = {**QUEUE_DEFAULTS, **queue}
    if name in OWN_PROGRAMS:
        problems.append(f"{where} is the name of {OWN_PROGRAMS[name]}: rename it")
    if queue["language"] not in LANGUAGES:
        problems.append(
            f"{where}: language {queue['language']!s} is unknown: set language: {' or '.join(LANGUAGES)}"
        )
    for key in ("processes", "max_jobs", "job_timeout"):
        if not _whole(queue[key], 1):
            problems.append(f"{where}: {key} {queue[key]!s} must be a whole number of at least 1")
    if _whole(queue["processes"], 101):
        problems.append(f"{where}: processes {queue['processes']} is more than 100 for one host")
    delays = queue["retry_delays"]
    if not isinstance(delays, list) or not all(_whole(delay, 1) for delay in delays):
        problems.append(f"{where}: retry_delays {delays!s} must be a list of whole seconds of at least 1")
    if queue["max_items"] is not None and not _whole(queue["max_items"], 1):
        problems.append(
            f"{where}: max_items {queue['max_items']!s} must be a whole number of at least 1, or left out"
        )
    if queue["rate_limit"] is not None and not _RATE.match(str(queue["rate_limit"])):
        problems.append(f"{where}: rate_limit {queue['rate_limit']!s} must look like 50/s, or be left out")
    if queue["max_time"] is not None and not _AGE.match(str(queue["max_time"])):
        problems.append(f"{where}: max_time {queue['max_time']!s} must look like 30m or 1h, or be left out")
    if queue["max_memory"] is not None:
        problems += size_problems({f"{where}: max_memory": [queue["max_memory"], "16MB", None]})
    alert = queue["alert"]
    if not isinstance(alert, Mapping):
        return [*problems, f"{where}: alert must be a mapping like {{backlog: 1000, age: 60s}}"]
    problems += [
        f"{where}: unknown option alert.{key}{_nearest(key, ['backlog', 'age'])}"
        for key in sorted(set(alert) - {"backlog", "age"})
    ]
    if not _whole(alert.get("backlog", 1), 1):
        problems.append(f"{where}: alert.backlog {alert['backlog']!s} must be a whole number of at least 1")
    if not _AGE.match(str(alert.get("age", "1s"))):
        problems.append(f"{where}: alert.age {alert['age']!s} must look like 60s, 5m or 1h")
    return problems + _storage_problems(where, queue, server_name)


def _storage_problems(where: str, queue: Mapping[str, Any], server_name: str) -> list[str]:
    """Check what an entry says of the server's side: sizes, age, fanouts."""
    problems = []
    if _whole(queue["max_items"], MAX_ITEMS + 1):
        problems.append(f"{where}: max_items {queue['max_items']} is more than Kestrel counts: {MAX_ITEMS}")
    sizes = {
        f"{where}: {key}": [queue[key], 1, None]
        for key in ("max_size", "max_item_size", "max_memory_size")
        if queue[key] is not None
    }
    wrong = size_problems(sizes)
    problems += wrong
    if not wrong and queue["max_memory_size"] is not None and queue["max_size"] is None:
        item = ITEM_SIZE if queue["max_item_size"] is None else size_bytes(queue["max_item_size"])
        if size_bytes(queue["max_memory_size"]) <= item + RETRY_GROWTH:
            problems.append(
                f"{where}: max_memory_size {queue['max_memory_size']} leaves no room beside one item of"
                f" {size_text(item)} (max_item_size) and {size_text(RETRY_GROWTH)}:"
                " raise it, or lower max_item_size"
            )
    if queue["max_age"] is not None and not _AGE.match(str(queue["max_age"])):
        problems.append(f"{where}: max_age {queue['max_age']!s} must look like 30s, 5m or 1h, or be left out")
    for key in ("discard_old_when_full", "fanout_only"):
        if not isinstance(queue[key], bool):
            problems.append(f"{where}: {key} {queue[key]!s} must be true or false")
    fanouts = queue["fanouts"]
    if not isinstance(fanouts, list) or not all(_NAME.match(str(name)) for name in fanouts):
        return [*problems, f"{where}: fanouts {fanouts!s} must be a list of names of A-Z, a-z, 0-9, _ and -"]
    for name in sorted({str(name) for name in fanouts if fanouts.count(name) > 1}):
        problems.append(f"{where}: fanouts: {name} is there twice: remove one of them")
    problems += [
        f"{where}: fanouts: {server_name}+{name} has more than {SERVER_NAME_LIMIT} bytes: shorten {name}"
        for name in fanouts
        if len(f"{server_name}+{name}") > SERVER_NAME_LIMIT
    ]
    if queue["fanout_only"] is True and not fanouts:
        problems.append(f"{where}: fanout_only without fanouts would lose every item: name at least one")
    return problems


def queue_problems(queues: Any, namespace: Any) -> list[str]:
    """Say what is wrong with kestrel_stack_queues, whose server names begin with `namespace`."""
    if not isinstance(queues, list) or not queues:
        return ["kestrel_stack_queues must be a list with at least one queue: - name: hello_world"]
    problems: list[str] = []
    seen: set[str] = set()
    for number, queue in enumerate(queues, 1):
        where = f"kestrel_stack_queues: entry {number}"
        if not isinstance(queue, Mapping) or "name" not in queue:
            problems.append(f"{where} has no name: write - name: hello_world")
            continue
        problems += _queue_problems(where, queue, str(namespace))
        name = str(queue["name"])
        if name in seen:
            problems.append(f"kestrel_stack_queues: {name} is there twice: remove one of them")
        seen.add(name)
    return problems + _also_problems(queues)


def _also_problems(queues: Sequence[Any]) -> list[str]:
    """Say which queue's workers could not take the jobs of those that its `also` names."""
    described = {
        str(queue["name"]): queue for queue in queues if isinstance(queue, Mapping) and "name" in queue
    }
    problems = []
    for name, queue in described.items():
        where = f"kestrel_stack_queues: {name}: also"
        also = queue.get("also", [])
        if not isinstance(also, list):
            problems.append(f"{where} {also!s} must be a list of queues' names, like [mail]")
            continue
        for other in also:
            known = described.get(str(other))
            if other == name or also.count(other) > 1:
                problems.append(f"{where} names {other!s} once more: name each other queue once")
            elif known is None:
                near = _nearest(str(other), described) or ": name one of kestrel_stack_queues"
                problems.append(f"{where} names {other!s}, which is not described{near}")
            elif known.get("language", "python") != queue.get("language", "python"):
                problems.append(
                    f"{where} names {other!s}, whose language is {known.get('language', 'python')!s}:"
                    " a worker runs jobs of one language"
                )
    return list(dict.fromkeys(problems))


def worker_seconds(queues: Sequence[Mapping[str, Any]], name: str) -> int:
    """Say how long a worker of the queue `name` may need to finish its job, in seconds.

    That is the largest job_timeout of the queues that it takes jobs of.
    """
    timeouts = {queue["name"]: queue for queue in complete_queues(queues)}
    taken = [timeouts[name], *(timeouts[other] for other in timeouts[name]["also"])]
    return max(int(queue["job_timeout"]) for queue in taken)


def worker_key(settings: str, name: str) -> str:
    """Name by a hash what the workers of the queue `name` go by in `settings`, the text of the file.

    It is part of their program, so that supervisor starts them again when it changes. What others alone go by
    is left out: how many processes there are, limits that are the server's, and most of the other queues.
    """
    said = json.loads(settings)
    queues = {queue["name"]: queue for queue in said["queues"]}
    own = [name, *queues[name].get("also", [])]
    said["queues"] = [
        {key: value for key, value in queue.items() if key not in _NOT_A_WORKERS}
        if queue["name"] in own
        else {key: queue.get(key) for key in _PRODUCERS}
        for queue in said["queues"]
    ]
    return _hash(said)


def mover_key(settings: str) -> str:
    """Name by a hash what the mover goes by in `settings`, the text of the file; see `worker_key`."""
    said = json.loads(settings)
    said["queues"] = [{key: queue.get(key) for key in ("name", "retry_delays")} for queue in said["queues"]]
    return _hash(said)


def _hash(data: Any) -> str:
    # A name and no secret.
    return hashlib.sha1(json.dumps(data, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def has_delays(queues: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether there is a delay queue, which a mover has to empty."""
    return any(queue.get("retry_delays") for queue in queues)


def complete_queues(queues: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give every queue every option, in a fixed order, so that what is written from it is stable."""
    return [
        {"name": queue["name"], **{key: queue.get(key, default) for key, default in QUEUE_DEFAULTS.items()}}
        for queue in queues
    ]


# What every release of an application knows, since the first one; each refuses an option unknown to it.
_ALWAYS_KNOWN = (
    "language",
    "processes",
    "max_jobs",
    "job_timeout",
    "retry_delays",
    "max_items",
    "rate_limit",
    "alert",
)


def settings_queues(queues: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the queues as an application's settings have them.

    They are read by whatever release runs: after a playbook of a later version of this stack by the old one
    until the next deploy, and again after a rollback. So a later option is there only where it is used.
    """
    return [
        {
            key: value
            for key, value in queue.items()
            if key in ("name", *_ALWAYS_KNOWN) or value != QUEUE_DEFAULTS[key]
        }
        for queue in complete_queues(queues)
    ]


def age_seconds(age: Any) -> int:
    """Say how many seconds an age like 30s, 5m or 1h has."""
    text = str(age)
    return int(text[:-1]) * _AGE_SECONDS[text[-1]]


def ping_suffix(host: str) -> str:
    """Return a host as a ping queue's name has it, as for the workers: Kestrel does not allow dots."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", str(host))[:64]


def _with_journal(settings: dict[str, Any], journal: int, most_journal: int) -> dict[str, Any]:
    """Add what follows from the memory limit: `max_size`, and the sizes of the journal's files.

    `max_size` + one `max_item_size` <= `max_memory_size` keeps a queue out of read-behind for good
    (Source: Kestrel 2.4.1's code):

    * An add is refused when the queued bytes are >= max_size before it. Read-behind begins when they are
      >= max_memory_size before an add, so on a running server max_size <= max_memory_size is enough.
    * A start replays the same adds and removals in the same order, and asks *after* each add. The greatest
      number of bytes it can see is that of an add that was let in one byte below max_size: max_size - 1 + one
      item. That must be < max_memory_size.
    * Open reads that come back add bytes, possibly far above max_size, but neither a returned read nor the
      end of a replay begins read-behind, and the next add is refused until the queue is below max_size.

    A journal's file is rewritten when it has default_journal_size *and* the queue is empty at that moment,
    and is rotated above max_memory_size whatever is queued. With the two close together a queue that is only
    mostly empty always rotates first, and its archives pile up for ever, so the first is at most half of the
    second.
    """
    memory = settings["max_memory_size"]
    settings["default_journal_size"] = max(1, min(journal, memory // 2))
    settings["max_journal_size"] = max(most_journal, 2 * memory)
    if settings.get("max_size") is None:
        settings["max_size"] = max(1, memory - settings["max_item_size"])
    return settings


def _settings(memory: int, item: int, **own: Any) -> dict[str, Any]:
    return {
        "max_items": None,
        "max_size": None,
        "max_item_size": item,
        "max_age": None,
        "discard_old_when_full": False,
        "fanout_only": False,
        "max_memory_size": memory,
        **own,
    }


def server_queues(
    queues: Sequence[Mapping[str, Any]], namespace: str, sizes: Mapping[str, Any], hosts: Iterable[str]
) -> list[dict[str, Any]]:
    """List every queue that a server will have, with complete settings: sizes in bytes, ages in seconds.

    `sizes` has kestrel_max_memory_size, kestrel_side_max_memory_size, kestrel_default_journal_size and
    kestrel_max_journal_size; `hosts` are those of group consumers. For each entry of the description there
    are, in this order, the queue itself, its fanouts (which have its limits), one queue for each retry delay,
    one for parked jobs, one for the pings of each host and one for their answers. The last entry, with the
    name "", is for queues that nobody described.

    Delay queues and those of parked jobs have no limit of items and no expiry: a job that could not be
    written there would have to stay open. They have a limit of bytes, as every queue (see `_with_journal`): a
    refused job stays open and comes again, one in a packed journal is lost.
    """
    size = {key: size_bytes(value) for key, value in sizes.items()}
    main_memory, side_memory = size["kestrel_max_memory_size"], size["kestrel_side_max_memory_size"]
    journal = (size["kestrel_default_journal_size"], size["kestrel_max_journal_size"])
    hosts = list(hosts)
    listed: list[dict[str, Any]] = []

    def add(name: str, kind: str, settings: dict[str, Any]) -> None:
        listed.append({"name": name, "kind": kind, **_with_journal(settings, *journal)})

    for queue in complete_queues(queues):
        name = f"{namespace}_{queue['name']}"
        stated = {
            key: None if queue[key] is None else size_bytes(queue[key])
            for key in ("max_size", "max_item_size", "max_memory_size")
        }
        item = (stated["max_item_size"] or ITEM_SIZE) + RETRY_GROWTH
        # In whole KB, which is easier to read in the server's configuration.
        parked = -(-item * 4 // (3 * _KB)) * _KB + ERROR_TEXT
        limits = {
            "max_items": queue["max_items"],
            "max_size": stated["max_size"],
            "max_age": None if queue["max_age"] is None else age_seconds(queue["max_age"]),
            "discard_old_when_full": queue["discard_old_when_full"],
        }
        memory = stated["max_memory_size"] or max(main_memory, LEAST_ITEMS * item)
        add(name, "main", _settings(memory, item, **limits, fanout_only=queue["fanout_only"]))
        if stated["max_memory_size"] is None and stated["max_size"] is None:
            memory = max(side_memory, LEAST_ITEMS * item)
        for fanout in queue["fanouts"]:
            add(f"{name}+{fanout}", "fanout", _settings(memory, item, **limits))
        for delay in dict.fromkeys(queue["retry_delays"]):
            add(f"{name}_retry_{delay}", "retry", _settings(max(side_memory, LEAST_ITEMS * item), item))
        add(f"{name}_errors", "errors", _settings(max(side_memory, LEAST_ITEMS * parked), parked))
        for host in dict.fromkeys(ping_suffix(host) for host in hosts):
            item = PING_SETTINGS["max_item_size"]
            ping = {key: value for key, value in PING_SETTINGS.items() if not key.startswith("max_m")}
            for of_host in (f"{name}_ping_{host}", f"{name}_ping_{host}_answer"):
                add(of_host, "ping", {**_settings(PING_SETTINGS["max_memory_size"], item), **ping})
    item = ITEM_SIZE + RETRY_GROWTH
    add("", "default", _settings(max(side_memory, LEAST_ITEMS * item), item))
    return listed


def read_behind_warnings(server: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which of `server_queues` may enter read-behind, where a release loses items, and the remedy."""
    warnings = []
    for queue in server:
        reach = queue["max_size"] + queue["max_item_size"]
        memory = queue["max_memory_size"]
        if reach <= memory:
            continue
        size, item = size_text(queue["max_size"]), size_text(queue["max_item_size"])
        fitting = memory - queue["max_item_size"]
        lower = f"max_size to at most {size_text(fitting)} or " if fitting > 0 else ""
        warnings.append(
            f"queue {queue['name']}: max_size {size} and one item of {item} are more than its max_memory_size"
            f" {size_text(memory)}: above that Kestrel keeps items on disk only, and each packing of the"
            f" journal may lose some: set {lower}max_memory_size to at least {size_text(reach)}"
        )
    return warnings


def heap_mb(server: Sequence[Mapping[str, Any]], readers: int = 0) -> int:
    """Say how much heap a release needs when every one of `server_queues` is full, in megabytes.

    For each queue: as many bytes as it may hold in memory (max_memory_size is per queue), what its items cost
    beside their data, and one open read for each of `readers`, the workers of one queue: an open read has
    left the queue's limit and not the memory.
    """
    total = 0.0
    for queue in server:
        data = queue["max_memory_size"]
        items = min(queue["max_items"] or MAX_ITEMS, data // USUAL_ITEM)
        total += data + items * ITEM_OVERHEAD
        if queue["kind"] in ("main", "fanout"):
            total += readers * queue["max_item_size"]
    return HEAP_BASE_MB + -int(-total // ((1 - HEAP_FREE) * _MB))


def heap_problems(
    needed: int, heap: int, memory: int, server: Sequence[Mapping[str, Any]], host: str
) -> list[str]:
    """Say why `heap` (MB; 0 is `needed`) does not fit a host with `memory` MB (0: not known)."""
    heap = heap or needed
    all_of_it = heap + BESIDE_HEAP_MB + HOST_MB
    if not memory or all_of_it <= memory:
        return []
    queues = sum(queue["max_memory_size"] for queue in server) // _MB
    return [
        f"{host} has {memory} MB of memory and Kestrel would need {all_of_it} MB: a heap of {heap} MB, for"
        f" {len(server)} queues that may hold {queues} MB together, {BESIDE_HEAP_MB} MB beside it, and"
        f" {HOST_MB} MB for the host: lower kestrel_max_memory_size, kestrel_side_max_memory_size or a"
        " queue's max_memory_size, or set kestrel_heap_mb and accept that full queues end the server"
    ]


def heap_warnings(needed: int, heap: int) -> list[str]:
    """Say that kestrel_heap_mb (0: not set) is below what full queues need."""
    if not heap or heap >= needed:
        return []
    return [
        f"kestrel_heap_mb {heap} is below the {needed} MB that full queues need:"
        " Kestrel may run out of memory"
    ]


def alias_problems(aliases: Any, server: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what is wrong with kestrel_aliases; a destination need not be one of `server_queues`."""
    if not isinstance(aliases, Mapping):
        return ["kestrel_aliases must be a mapping like {shop_all: [shop_mail, shop_audit]}"]
    described = {queue["name"] for queue in server}
    problems = []
    for name, destinations in aliases.items():
        where = f"kestrel_aliases: {name}"
        if not _NAME.match(str(name)) or len(str(name)) > SERVER_NAME_LIMIT:
            problems.append(f"{where} is not a legal name: use A-Z, a-z, 0-9, _ and - only")
            continue
        if name in described:
            problems.append(f"{where} is a queue's name, which it would hide: choose another")
        if not isinstance(destinations, list) or not destinations:
            problems.append(f"{where} must have a list of queues, by their full names")
            continue
        for queue in destinations:
            if not _SERVER_NAME.match(str(queue)) or len(str(queue)) > SERVER_NAME_LIMIT:
                problems.append(
                    f"{where}: {queue!s} is not a queue's full name, like shop_mail or shop_mail+audit"
                )
            elif queue in aliases:
                problems.append(f"{where}: {queue} is an alias itself: name the queues behind it")
            elif destinations.count(queue) > 1:
                problems.append(f"{where}: {queue} is there twice: remove one of them")
    return list(dict.fromkeys(problems))


def scala_string(text: Any) -> str:
    r"""Write a text as a Scala string literal; raise ValueError for what is not printable ASCII.

    Scala 2.9 replaces \uXXXX before it looks for the end of a string, so only characters that need none
    get in.
    """
    if not re.match(r"[ -~]*\Z", str(text)):
        raise ValueError(
            f"{text!r} has characters that a Kestrel configuration cannot hold: use printable ASCII"
        )
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def scala_size(size: int) -> str:
    """Write bytes as Kestrel's configuration does: 32.megabytes; an L where Scala's Int would not hold it."""
    for unit, name in ((_MB, "megabytes"), (_KB, "kilobytes"), (1, "bytes")):
        if size % unit == 0 and size:
            number = size // unit
            return f"{number}{'L' if number > MAX_ITEMS else ''}.{name}"
    return "0.bytes"


def stop_seconds(queues: Sequence[Mapping[str, Any]]) -> int:
    """Say how long supervisord may need to stop all queues' programs, in seconds.

    It stops one program after the other, all processes of one at once, and gives each its stopwaitsecs. The
    mover and the alarm, which have no job in hand, get the margin alone.
    """
    own = 1 + has_delays(queues)
    return own * STOP_MARGIN_SECONDS + sum(
        worker_seconds(queues, queue["name"]) + STOP_MARGIN_SECONDS for queue in queues
    )


def key_problems(keys: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, a list of public ssh keys in authorized_keys form."""
    if not isinstance(keys, list) or not keys:
        return [f"{variable} is empty, so nobody could deploy: list at least one public ssh key"]
    return [
        f"{variable}: entry {number} is not a public ssh key: give one line like 'ssh-ed25519 AAAA... name'"
        for number, key in enumerate(keys, 1)
        if not _KEY.match(str(key).strip())
    ]


def range_problems(ranges: Mapping[str, Sequence[Any]]) -> list[str]:
    """Say which variables are out of their range; `ranges` maps a name to [value, least, most or None]."""
    problems = []
    for variable, (value, least, most) in ranges.items():
        number = int(value) if re.match(r"-?[0-9]+\Z", str(value)) else None
        if number is None or number < least or (most is not None and number > most):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            problems.append(f"{variable} {value!s} must be a whole number {limits}")
    return problems


def size_bytes(value: Any) -> int:
    """Say how many bytes a size is: a whole number, or one with KB, MB or GB (powers of 1024), like 512MB.

    Raises ValueError for anything else; `size_problems` says so in words, before anything uses the value.
    """
    match = None if isinstance(value, bool) else _SIZE.match(str(value))
    size = int(match.group(1)) * _SIZE_UNITS[match.group(2)] if match else None
    if size is None or size > _SIZE_LIMIT:
        raise ValueError(f"{value!s} is not a size: write it like 512MB (KB, MB or GB), or in bytes")
    return size


def size_text(size: int) -> str:
    """Write a number of bytes as a person would: with the greatest unit that is exact, else in bytes."""
    for unit in ("GB", "MB", "KB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size} bytes"


def size_problems(sizes: Mapping[str, Sequence[Any]]) -> list[str]:
    """Say which sizes are wrong; `sizes` maps a variable's name to [value, least, most or None].

    The limits are sizes themselves (0, "1MB"); see `size_bytes` for how one is written.
    """
    problems = []
    for variable, (value, least, most) in sizes.items():
        try:
            size = size_bytes(value)
        except ValueError as error:
            problems.append(f"{variable}: {error}")
            continue
        if size < size_bytes(least) or (most is not None and size > size_bytes(most)):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            problems.append(f"{variable} {value!s} must be {limits}")
    return problems


def registry_problems(registry: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, where an application's jobs are found."""
    if _REGISTRY.match(str(registry)):
        return []
    return [
        f"{variable} {str(registry)!r} does not name the jobs: give MODULE:REGISTRY, like shop.jobs:registry"
    ]


def wsgi_problems(app: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, where an application's pages are found in Python."""
    if _REGISTRY.match(str(app)):
        return []
    return [
        f"{variable} {str(app)!r} does not name the pages: give MODULE:APPLICATION, like shop.web:application"
    ]


def php_front_problems(file: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, the PHP file that answers an application's requests."""
    text = str(file)
    if _PHP_FILE.match(text) and ".." not in text.split("/"):
        return []
    return [
        f"{variable} {text!r} does not name the pages: give a .php file inside the application,"
        " like public/index.php"
    ]


def url_path_problems(path: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, a page of the application."""
    if _URL_PATH.match(str(path)):
        return []
    return [f"{variable} {str(path)!r} is not the path of a page: write it like /health"]


def tls_problems(paths: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the paths of a certificate and its key: variable to path, both or none set."""
    given = {variable: str(path) for variable, path in paths.items() if path}
    problems = [
        f"{variable} {path!r} is not an absolute path of A-Z, a-z, 0-9, ., _, - and /"
        for variable, path in given.items()
        if not _HOST_PATH.match(path)
    ]
    if given and len(given) < len(paths):
        problems += [
            f"{variable} is empty while {', '.join(given)} is set: give both, or none"
            for variable in paths
            if variable not in given
        ]
    return problems


def php_file_problems(file: Any, variable: str) -> list[str]:
    """Say what is wrong with `variable`, the PHP file that returns an application's jobs."""
    text = str(file)
    if _PHP_FILE.match(text) and ".." not in text.split("/"):
        return []
    return [
        f"{variable} {text!r} does not name the jobs: give a .php file inside the application, like"
        " php/jobs.php"
    ]


def dsn_problems(dsn: Any, backend: Any) -> list[str]:
    """Say what is wrong with app_host_sentry_dsn under this `sentry_backend`; its key is not repeated."""
    if backend != "external":
        return [f"app_host_sentry_dsn is set, and sentry_backend is {backend!s}: use one"] if dsn else []
    if _DSN.match(str(dsn)):
        return []
    return ["app_host_sentry_dsn must be the project's DSN, like https://KEY@sentry.example.com/1"]


def webhook_problems(url: Any, variable: str) -> list[str]:
    """Say why `url` cannot be told of crashes; empty is nobody, and right."""
    if not url or _URL.match(str(url)):
        return []
    # It may hold a token: it is not repeated.
    return [f"{variable} is not a URL that begins with https:// or http:// and has no blanks or quotes"]


def package_problems(packages: Any, variable: str) -> list[str]:
    """Say which of `packages` cannot be names of Debian's packages."""
    if not isinstance(packages, list):
        return [f"{variable} {packages!s} must be a list of Debian's packages, like [php-curl]"]
    return [
        f"{variable}: {name!s} is not the name of a Debian package, like php-curl"
        for name in packages
        if not _PACKAGE.match(str(name))
    ]


def address_problems(address: Any, host: str) -> list[str]:
    """Say why `address` cannot be kestrel_stack_address of `host`: the address other hosts use."""
    text = str(address or "")
    problem = f"kestrel_stack_address of {host} is {text or 'empty'}"
    fix = "give the address other hosts reach it by, like 10.0.0.11"
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        # Digits and dots only is a mistyped address, never a name.
        if _HOST.match(text) and not re.match(r"[0-9.]+\Z", text):
            return []
        return [f"{problem}, which is no address and no host name: {fix}"]
    if parsed.is_unspecified or parsed.is_multicast:
        return [f"{problem}, which no host can be reached by: {fix}"]
    return []


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def listen_problems(address: Any, variable: str, own: Iterable[str], host: str) -> list[str]:
    """Say why a service of `host`, whose addresses are `own`, could not listen on `address`."""
    own = sorted(own)
    try:
        parsed = ipaddress.ip_address(str(address))
    except ValueError:
        return [
            f"{variable} {address!s} is not an IP address: use 127.0.0.1 or one of {host}: {', '.join(own)}"
        ]
    if parsed.is_loopback or parsed.is_unspecified or str(parsed) in own:
        return []
    return [f"{variable} {address!s} is not an address of {host}: use 127.0.0.1 or one of {', '.join(own)}"]


def kestrel_servers(hosts: Iterable[str], hostvars: Mapping[str, Any], this_host: str) -> list[str]:
    """List `address:port` of every Kestrel in `hosts`, as seen from `this_host`, from the inventory alone."""
    servers = []
    for host in hosts:
        listen = str(hostvars[host].get("kestrel_listen_address", "127.0.0.1"))
        # On its own host a Kestrel that listens on loopback only is reached there.
        own = host == this_host and _is_loopback(listen)
        address = listen if own else str(hostvars[host].get("kestrel_stack_address", ""))
        shown = f"[{address}]" if ":" in address else address
        servers.append(f"{shown}:{hostvars[host].get('kestrel_port', 22133)}")
    return servers


def server_problems(hosts: Sequence[str], hostvars: Mapping[str, Any], this_host: str) -> list[str]:
    """Say which Kestrel in `hosts` cannot be reached from `this_host`, going by the inventory."""
    if not hosts:
        return ["the inventory's group kestrel is empty: put at least one host into it"]
    problems = []
    for host in hosts:
        if host == this_host:
            continue
        listen = str(hostvars[host].get("kestrel_listen_address", "127.0.0.1"))
        if _is_loopback(listen):
            problems.append(
                f"kestrel_listen_address of {host} is {listen}, which {this_host} cannot reach:"
                f" set it to the host's kestrel_stack_address"
            )
        problems += address_problems(hostvars[host].get("kestrel_stack_address"), host)
    return problems


def port_problems(ss_lines: Sequence[str], wanted: Mapping[str, Sequence[Any]], owner_uid: Any) -> list[str]:
    """Say which wanted ports another program has.

    `ss_lines` is the output of `ss -H -l -t -n -p -e`; `wanted` maps a variable's name to [address, port];
    sockets of `owner_uid` (None: there is no such user yet) are our own.
    """
    problems = []
    for variable, (address, port) in wanted.items():
        for line in ss_lines:
            fields = line.split()
            if len(fields) < 5 or not fields[3].endswith(f":{port}"):
                continue
            listening = fields[3].rpartition(":")[0].strip("[]").partition("%")[0]
            everywhere = {"*", "0.0.0.0", "::"}  # noqa: S104
            if listening != str(address) and listening not in everywhere and str(address) not in everywhere:
                continue
            uid = re.search(r"\buid:(\d+)", line)  # ss leaves it out for root
            if owner_uid is not None and uid and int(uid.group(1)) == int(owner_uid):
                continue
            program = re.search(r'users:\(\("([^"]+)",pid=(\d+)', line)
            who = f"{program.group(1)} (pid {program.group(2)})" if program else "another program"
            problems.append(
                f"{variable}: port {port} on {listening} is taken by {who}: stop it or set {variable}"
            )
            break
    return problems


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_known_variables": known_variables,
            "kestrel_stack_variable_prefixes": variable_prefixes,
            "kestrel_stack_unknown_variables": unknown_variables,
            "kestrel_stack_platform_problems": platform_problems,
            "kestrel_stack_app_problems": app_problems,
            "kestrel_stack_namespace_problems": namespace_problems,
            "kestrel_stack_environment_problems": environment_problems,
            "kestrel_stack_user_problems": user_problems,
            "kestrel_stack_queue_problems": queue_problems,
            "kestrel_stack_complete_queues": complete_queues,
            "kestrel_stack_settings_queues": settings_queues,
            "kestrel_stack_server_queues": server_queues,
            "kestrel_stack_read_behind_warnings": read_behind_warnings,
            "kestrel_stack_heap_mb": heap_mb,
            "kestrel_stack_heap_problems": heap_problems,
            "kestrel_stack_heap_warnings": heap_warnings,
            "kestrel_stack_alias_problems": alias_problems,
            "kestrel_stack_scala_string": scala_string,
            "kestrel_stack_scala_size": scala_size,
            "kestrel_stack_stop_seconds": stop_seconds,
            "kestrel_stack_key_problems": key_problems,
            "kestrel_stack_range_problems": range_problems,
            "kestrel_stack_bytes": size_bytes,
            "kestrel_stack_size_problems": size_problems,
            "kestrel_stack_worker_seconds": worker_seconds,
            "kestrel_stack_worker_key": worker_key,
            "kestrel_stack_mover_key": mover_key,
            "kestrel_stack_has_delays": has_delays,
            "kestrel_stack_registry_problems": registry_problems,
            "kestrel_stack_php_file_problems": php_file_problems,
            "kestrel_stack_wsgi_problems": wsgi_problems,
            "kestrel_stack_php_front_problems": php_front_problems,
            "kestrel_stack_url_path_problems": url_path_problems,
            "kestrel_stack_tls_problems": tls_problems,
            "kestrel_stack_dsn_problems": dsn_problems,
            "kestrel_stack_webhook_problems": webhook_problems,
            "kestrel_stack_package_problems": package_problems,
            "kestrel_stack_address_problems": address_problems,
            "kestrel_stack_listen_problems": listen_problems,
            "kestrel_stack_servers": kestrel_servers,
            "kestrel_stack_server_problems": server_problems,
            "kestrel_stack_port_problems": port_problems,
        }
