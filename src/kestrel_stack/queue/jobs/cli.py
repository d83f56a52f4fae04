"""The command line ``jobs``: what there is on the queues, and what to do with it."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import (
    InvalidJob,
    InvalidQueueName,
    InvalidServer,
    QueueError,
    SettingsError,
)
from kestrel_stack.queue.flags import Parser, UsageError
from kestrel_stack.queue.interface import Queue
from kestrel_stack.queue.jobs import ping
from kestrel_stack.queue.jobs.count import sample
from kestrel_stack.queue.jobs.dump import PLACES, FileFailed, dump, load, marked, read
from kestrel_stack.queue.jobs.parked import Filter, Found, as_json, walk
from kestrel_stack.queue.jobs.progress import Progress
from kestrel_stack.queue.jobs.requeue import put_back
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.producer import Producer
from kestrel_stack.queue.settings import Settings

EX_OK = 0
EX_FAILED = 1
"""Exit status when a server was away or full, or nothing was found: all that was not done is as it was."""
EX_CONFIG = 78
"""Exit status for wrong flags, settings or input: nothing was done."""
EX_INTERRUPTED = 130

_WALK = (
    "A queue has no index, so every parked item is taken in turn, and given back when it is not meant: "
    "meanwhile other tools do not see it. Up to 200 items stay where they are; of more, the others go to the "
    "end of the error queue, written there before they are taken away. A cut, even by kill -9, loses "
    "nothing; it can double the one item that was under way."
)


class Failed(Exception):  # noqa: N818 - it names what is the matter
    """A command that did not do what was asked; the message is one line."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    # Understood before and after the command; unset ones must not hide those that were given there.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    add = common.add_argument
    add("--config", metavar="FILE", help="settings file (default: the only one in /etc/kestrel-stack)")
    add("--servers", metavar="HOST:PORT,…", help="queue servers, instead of those in the settings file")
    add("--namespace", help="instead of that in the settings file")
    add(
        "--url",
        help="any kind of queue, such as kestrel://host:port/namespace or beanstalkd://host/namespace",
    )

    made = Parser(
        prog="jobs",
        description="See and move the jobs on the queues.",
        epilog="Exit status: 0 done; 1 not or only partly done, what was not is as before; "
        "78 wrong flags, settings or input.",
        parents=[common],
        allow_abbrev=False,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(
        into: argparse._SubParsersAction[Parser],
        name: str,
        run: Callable[..., int],
        help: str,
        more: str = "",
    ) -> Callable[..., argparse.Action]:
        one = into.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}. {more}",
            parents=[common],
            allow_abbrev=False,
        )
        one.set_defaults(run=run)
        return one.add_argument

    def filters(add: Callable[..., argparse.Action]) -> None:
        add("--job", metavar="NAME", help="only jobs of this name")
        add("--tenant", metavar="NAME", help="only jobs of this tenant")
        add("--reason", metavar="TEXT", help="only those whose reason has this part, in any case")
        add("--id", help="only the job with this id")
        add("--count", type=_count, metavar="N", help="at most so many")

    add = command(commands, "enqueue", _enqueue, "put a job on its queue, and print its id")
    add("job", metavar="JOB", help="for example HelloWorld")
    add("--data", default="{}", metavar="JSON", help="the job's data, a JSON object; - reads it from stdin")
    add("--tenant", required=True, metavar="NAME", help="whose job it is")
    add("--queue", help="default: the job's name in snake case, hello_world")
    add("--delay", type=_count, metavar="S", help="do it so many seconds from now: one of the retry_delays")
    add("--id", help="a UUID, instead of a new one")

    add = command(commands, "count", _count_queues, "count the jobs of all queues, or of those named")
    add("queues", nargs="*", metavar="QUEUE")
    add("--json", action="store_true", help="one JSON object, with ages and each server's numbers")

    add = command(commands, "peek", _peek, "print the next item of a queue, and leave it there")
    add("queue", metavar="QUEUE")

    parked = commands.add_parser("parked", help="see or drop what could not be done", allow_abbrev=False)
    inside = parked.add_subparsers(dest="inside", required=True, metavar="COMMAND", parser_class=Parser)
    add = command(inside, "list", _parked_list, "list parked jobs, a line for each", _WALK)
    add("queue", metavar="QUEUE")
    filters(add)
    add("--json", action="store_true", help="a JSON object for each, with everything")
    add = command(inside, "show", _parked_show, "show parked jobs with their errors and data", _WALK)
    add("queue", metavar="QUEUE")
    filters(add)
    add = command(inside, "drop", _parked_drop, "take parked jobs away for ever", _WALK)
    add("queue", metavar="QUEUE")
    filters(add)
    add("--all", action="store_true", help="all of them")
    add("--yes", action="store_true", help="do not ask")

    add = command(
        commands,
        "requeue",
        _requeue,
        "put parked jobs back on their queue, for a new first attempt with all retries",
        _WALK,
    )
    add("queue", metavar="QUEUE")
    filters(add)
    add("--all", action="store_true", help="all of them")

    add = command(
        commands,
        "ping",
        _ping,
        "ask the workers of this host which release they run, and wait until the right one answers",
        "Each queue is asked on every server; one answer is enough. A worker answers between two jobs, so a "
        "backlog does not matter. Exit status 0 when every queue was answered from the release, else 1.",
    )
    add("--release", required=True, metavar="NAME", help="the release that must answer: its folder's name")
    add("--queue", dest="queues", nargs="+", action="extend", metavar="QUEUE", help="default: all of them")
    add("--deploy", metavar="ID", help="say in the workers' logs which deploy asked")
    add(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="give up after so many seconds (default: the longest job_timeout of the queues, and 10)",
    )
    add("--json", action="store_true", help="a JSON object for each queue")

    add = command(
        commands,
        "dump",
        _dump,
        "move the items of a queue into a file",
        "They are written to the disk before they are taken off the queue; after a cut up to 50 items are in "
        "both places. Jobs that wait for a delay stay where they are.",
    )
    add("queue", metavar="QUEUE")
    add("file", type=Path, metavar="FILE")
    add("--parked", action="store_true", help="its parked items, instead of those that are ready")
    add("--count", type=_count, metavar="N", help="at most so many")
    add("--append", action="store_true", help="add to FILE, for example after a cut")

    add = command(
        commands,
        "load",
        _load,
        "put the items of a file on their queues",
        "FILE.loaded notes how many are there, so that after a cut the same command goes on: at most one "
        "item then comes twice. Delete it to load a file once more.",
    )
    add("file", type=Path, metavar="FILE")
    return made


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command; return the exit status."""
    environ = os.environ if environ is None else environ
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a letter gets its number, and nobody a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        given = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        with _open(given, environ) as store:
            status = given.run(store, given)
        sys.stdout.flush()
        return status
    except (UsageError, SettingsError, InvalidJob, InvalidQueueName, InvalidServer) as exc:
        return _say(exc, EX_CONFIG)
    except (QueueError, Failed) as exc:
        return _say(exc, EX_FAILED)
    except KeyboardInterrupt:
        return _say("interrupted; what was in hand goes back to its queue", EX_INTERRUPTED)
    except BrokenPipeError:
        # As with `| head`. What is left in the buffer must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK


def _say(what: object, status: int) -> int:
    print(f"jobs: {one_line(str(what))}", file=sys.stderr)
    return status


def _open(given: argparse.Namespace, environ: Mapping[str, str]) -> Queue:
    url, servers, namespace = (getattr(given, key, None) for key in ("url", "servers", "namespace"))
    if url and (servers or namespace):
        raise UsageError("--url goes without --servers and --namespace, since it says both")
    found = _settings(given, environ, bool(url or (servers and namespace)))
    given.settings = found
    queues = found.queues.values() if found else ()
    if url:
        return Queue.open(url, queues=queues)
    namespace = namespace or (found.namespace if found else environ.get("KESTREL_STACK_NAMESPACE"))
    servers = servers or (found.servers if found else environ.get("KESTREL_STACK_SERVERS"))
    return KestrelStore(namespace, servers, queues)


def _settings(given: argparse.Namespace, environ: Mapping[str, str], enough: bool) -> Settings | None:
    """Return the settings, or None when there is no file and the rest says all that is needed."""
    config = getattr(given, "config", None)
    try:
        settings.find(config, environ)
    except SettingsError:
        if enough or (environ.get("KESTREL_STACK_SERVERS") and environ.get("KESTREL_STACK_NAMESPACE")):
            return None
        raise
    return settings.load(config, environ)


def _enqueue(store: Queue, given: argparse.Namespace) -> int:
    text = sys.stdin.read() if given.data == "-" else given.data
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"--data is not JSON: {exc}") from None
    if not isinstance(data, dict):
        raise UsageError('--data is not a JSON object such as {"name": "Ada"}')
    producer = Producer.on(store, given.tenant)
    print(producer.enqueue(given.job, data, queue=given.queue, delay=given.delay, id=given.id))
    return EX_OK


def _count_queues(store: Queue, given: argparse.Namespace) -> int:
    queues = given.queues or list(store.queues)
    if not queues:
        raise UsageError("name the queues; there is no settings file that does")
    if given.json:
        numbers = sample(store, queues)
        print(json.dumps(numbers))
        if numbers["failed_servers"]:
            raise Failed(" ".join(failed["reason"] for failed in numbers["failed_servers"]))
        return EX_OK
    found = {queue: store.count(queue) for queue in queues}
    rows = [("QUEUE", "READY", "RESERVED", "DELAYED", "PARKED", "")]
    for queue, counts in found.items():
        delays = ", ".join(f"{delay} s: {number}" for delay, number in counts.delayed.items() if number)
        numbers = (counts.ready, counts.reserved, sum(counts.delayed.values()), counts.parked)
        rows.append((queue, *map(str, numbers), delays))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, *numbers, delays in rows:
        right = (number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *right, delays)).rstrip())
    return EX_OK


def _peek(store: Queue, given: argparse.Namespace) -> int:
    body = store.peek(given.queue)
    if body is None:
        raise Failed(f"the queue {given.queue} has nothing that is ready")
    print(one_line(body.decode("utf-8", "backslashreplace")))
    return EX_OK


def _parked_list(store: Queue, given: argparse.Namespace) -> int:
    def show(found: Found) -> None:
        if given.json:
            print(json.dumps(as_json(found)))
            return
        envelope, record = found.envelope, found.record
        fields = (
            _time(record.parked_at) if record else "-",
            envelope.id if envelope else "-",
            envelope.job if envelope else "-",
            envelope.tenant if envelope else "-",
            f"attempts={record.attempts}" if record else "-",
            found.reason,
        )
        print("  ".join(map(one_line, fields)))

    _each(store, given, "listed", show, summary=not given.json)
    return EX_OK


def _parked_show(store: Queue, given: argparse.Namespace) -> int:
    def show(found: Found) -> None:
        content = as_json(found)
        body = content.pop("body", None)
        stack = (content["error"] or {}).pop("stack", None)
        if content["parked_at"] is not None:
            content["parked_at"] = _time(content["parked_at"])
        error = content.pop("error")
        for key, value in (*content.items(), *((f"error {key}", error[key]) for key in error or ())):
            if value is not None:
                print(f"{key + ':':15} {one_line(str(value))}")
        if body is not None:
            print(f"{'body:':15} {one_line(body)}")
        if stack:
            print("stack:")
            for line in stack.splitlines():
                print(f"    {one_line(line)}")
        print()

    if not _each(store, given, "shown", show, summary=False):
        raise Failed(f"the queue {given.queue} has no such parked job")
    return EX_OK


def _parked_drop(store: Queue, given: argparse.Namespace) -> int:
    _need_choice(given)
    if not given.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here; say --yes to drop parked jobs for ever")
        said = input(f"Drop parked jobs of {given.queue} for ever? There are {_parked(store, given)}. [y/N] ")
        if said.strip().lower() not in ("y", "yes"):
            raise Failed("nothing was dropped")
    _each(store, given, "dropped", lambda found: found.remove())
    return EX_OK


def _requeue(store: Queue, given: argparse.Namespace) -> int:
    _need_choice(given)
    left = 0

    def back(found: Found) -> None:
        nonlocal left
        left += not put_back(found, partial(store.put, given.queue))

    _each(store, given, "requeued", back)
    if left:
        raise Failed(f"{left} items in the error queue of {given.queue} are no parked records; they stay")
    return EX_OK


def _need_choice(given: argparse.Namespace) -> None:
    chosen = bool(_filter(given)) or given.count is not None
    if given.all == chosen:
        raise UsageError("say which: --all, or --job, --tenant, --reason, --id, --count")


def _filter(given: argparse.Namespace) -> Filter:
    return Filter(given.job, given.tenant, given.reason, given.id)


def _parked(store: Queue, given: argparse.Namespace) -> int:
    return store.count(given.queue).parked


def _each(
    store: Queue,
    given: argparse.Namespace,
    what: str,
    act: Callable[[Found], None],
    summary: bool = True,
) -> int:
    """Do `act` with every parked item that is meant; return how many that were."""
    wanted, done = _filter(given), 0
    with Progress("seen" if wanted else what, _parked(store, given), sys.stderr) as progress:
        items = walk(store, given.queue)
        try:
            while given.count is None or done < given.count:
                if (found := next(items, None)) is None:
                    break
                if wanted.matches(found):
                    if sys.stdout.isatty():
                        progress.clear()
                    act(found)
                    done += 1
                progress.step()
        except QueueError as exc:
            raise Failed(f"{what} {done}, then stopped: {exc} The others are still parked.") from None
        finally:
            # Gives back what is held, also after an error.
            items.close()
    if summary:
        progress.what = what
        print(progress.summary(done), file=sys.stderr)
    return done


def _ping(store: Queue, given: argparse.Namespace) -> int:
    if not isinstance(store, KestrelStore):
        raise UsageError("only queues that are kept by Kestrel know pings")
    if not given.release:
        raise UsageError("--release is empty; write the name of the release's folder")
    found: Settings | None = given.settings
    queues = list(dict.fromkeys(given.queues or store.queues))
    if not queues:
        raise UsageError("name the queues with --queue; there is no settings file that does")
    described = [store.described(queue) for queue in queues]
    timeout = given.timeout or max(queue.job_timeout for queue in described) + ping.MARGIN

    def tell(asked: ping.Asked) -> None:
        print(json.dumps(asked.as_json()) if given.json else one_line(asked.as_text()), flush=True)

    def warn(text: str) -> None:
        print(f"jobs: {one_line(text)}", file=sys.stderr, flush=True)

    host = found.host if found else socket.gethostname()
    # A deploy that gives up ends us with TERM: also then the pings are removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked = ping.ask(store, queues, host, given.release, timeout, tell, warn, given.deploy)
    except ValueError as exc:
        raise UsageError(f"--deploy {given.deploy!r}: {exc}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return EX_OK if all(one.answer for one in asked) else EX_FAILED


def _dump(store: Queue, given: argparse.Namespace) -> int:
    counts = store.count(given.queue)
    total = counts.parked if given.parked else counts.ready
    if given.count is not None:
        total = min(total, given.count)
    with Progress("dumped", total, sys.stderr) as progress:
        place = PLACES[given.parked]
        dump(store, given.queue, place, given.file, given.append, given.count, progress.step)
    print(progress.summary(), file=sys.stderr)
    return EX_OK


def _load(store: Queue, given: argparse.Namespace) -> int:
    try:
        total = 0
        for item in read(given.file):
            store.name(item.queue)
            total += 1
    except (FileFailed, InvalidQueueName) as exc:
        raise UsageError(f"{exc} Nothing was loaded.") from None
    marks = given.file.with_name(given.file.name + ".loaded")
    done = marked(marks)
    if done >= total:
        said = f"all of its {total} items are loaded already; delete {marks} to load them once more"
        raise Failed(f"{given.file}: {said}" if done else f"{given.file} holds no item")
    with Progress("loaded", total - done, sys.stderr) as progress:
        try:
            load(store, given.file, marks, done, progress.step)
        except QueueError as exc:
            raise Failed(
                f"loaded {progress.count} of {progress.total}, then stopped: {exc} "
                "The same command goes on from there."
            ) from None
    print(progress.summary(), file=sys.stderr)
    return EX_OK


def one_line(text: str) -> str:
    """Return `text` with everything escaped that would break a line or move the terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _time(milliseconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
