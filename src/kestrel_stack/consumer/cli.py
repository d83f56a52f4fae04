"""The worker's command line; the same flags for every language."""

from __future__ import annotations

import argparse
import math
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kestrel_stack.consumer import sentry
from kestrel_stack.consumer.log import Log, Writer
from kestrel_stack.consumer.priority import PriorityQueue
from kestrel_stack.consumer.responder import Responder
from kestrel_stack.consumer.runner import Runner, UnusableApp
from kestrel_stack.consumer.signals import Signals
from kestrel_stack.consumer.worker import Limits, Rules, Worker
from kestrel_stack.queue import names, settings
from kestrel_stack.queue.errors import QueueError, SettingsError
from kestrel_stack.queue.flags import Parser, UsageError
from kestrel_stack.queue.interface import JobQueue, Queue
from kestrel_stack.queue.kestrel import KestrelStore
from kestrel_stack.queue.settings import QueueSettings, Settings

EX_OK = 0
EX_DEFECT = 1
EX_CONFIG = 78
"""Exit status for what trying again would not mend: a wrong flag, settings file or application."""
MIN_UPTIME = 5.0
"""Seconds; more than supervisor's startsecs: it takes any earlier exit for a failed start."""

_APP = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know, from flags, environment and settings file.

    `rules` are by the queue's name on the server; the first queue comes before the others.
    """

    rules: Mapping[str, Rules]
    app: str
    servers: str
    store: Queue
    environment: str | None
    limits: Limits
    start: int
    debug: bool
    log_file: str | None = None
    host: str | None = None
    sentry_dsn: str | None = field(default=None, repr=False)

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues' names on the server, the first before the others."""
        return tuple(self.rules)

    def open(self) -> JobQueue:
        """Return the queue to work on, one or several by priority; nothing is sent yet."""
        queues = [self.store.worker(name, self.start) for name in self.store.queues]
        return queues[0] if len(queues) == 1 else PriorityQueue(queues)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the worker's flags."""
    made = Parser(
        prog="python -m kestrel_stack.consumer",
        description="Take jobs from a queue and run the application's functions for them.",
        epilog="Signals: TERM finishes the job in hand and ends; HUP replaces the process that runs jobs "
        "after the job in hand; USR1 reopens logs. "
        "Exit status: 0 done; 78 wrong flags, settings or application. "
        "The log is one JSON object a line; one line, with the event job, for each job.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        *("--queue",),
        required=True,
        metavar="NAME[,NAME…]",
        help="the queue's name in the settings file, for example hello_world; of several, a job of the "
        "first is taken before any of the others (default: after a queue come those in its 'also')",
    )
    add("--app", required=True, metavar="MODULE:REGISTRY", help="for example shop.jobs:registry")
    add("--config", metavar="FILE", help="settings file (default: the only one in /etc/kestrel-stack)")
    add(
        *("--servers",),
        metavar="HOST:PORT,…",
        help="queue servers, instead of those in the settings file; or beanstalkd://HOST:PORT",
    )
    add("--namespace", help="instead of that in the settings file")
    add("--env", metavar="NAME", help="environment, instead of that in the settings file")
    add("--max-jobs", type=_count, metavar="N", help="end after so many jobs")
    add("--max-memory", type=_count, metavar="MB", help="replace the process that runs jobs above this size")
    add("--max-time", type=_seconds, metavar="S", help="end after so many seconds")
    add("--job-timeout", type=_seconds, metavar="S", help="kill a job that takes longer; it has failed")
    add("--rate", type=_rate, metavar="N/s", help="start at most so many jobs per second")
    add("--debug", action="store_true", help="log every action, as text")
    add(
        "--log-file",
        metavar="FILE",
        help="log to the end of this file instead of stderr; USR1 opens it again",
    )
    add("--once", action="store_true", help="do one job if there is one, and end")
    add("--min-uptime", type=float, default=MIN_UPTIME, help=argparse.SUPPRESS)
    return made


def plan(arguments: Sequence[str], environ: Mapping[str, str]) -> Plan:
    """Return what to do; raise `UsageError` or `QueueError` with one line on what is wrong."""
    given = parser().parse_args(arguments)
    if not _APP.fullmatch(given.app):
        raise UsageError(f"--app {given.app!r} is not MODULE:REGISTRY, for example shop.jobs:registry")
    found = _settings(given, environ)
    queues = _queues(given.queue, found)
    namespace = given.namespace or (found.namespace if found else environ.get("KESTREL_STACK_NAMESPACE"))
    servers = given.servers or (found.servers if found else environ.get("KESTREL_STACK_SERVERS"))
    environment = given.env or (found.environment if found else environ.get("KESTREL_STACK_ENVIRONMENT"))
    if given.job_timeout:
        queues = [replace(queue, job_timeout=math.ceil(given.job_timeout)) for queue in queues]
    first = queues[0]
    store = _store(servers, namespace, queues)
    return Plan(
        rules={
            names.make(namespace, queue.name): Rules(
                given.job_timeout or queue.job_timeout, queue.retry_delays
            )
            for queue in queues
        },
        app=given.app,
        servers=",".join(map(str, store.servers)) if isinstance(store, KestrelStore) else str(servers),
        store=store,
        environment=environment,
        limits=Limits(
            jobs=given.max_jobs or first.max_jobs,
            time=given.max_time or first.max_time,
            memory=given.max_memory * 1_000_000 if given.max_memory else first.max_memory,
            rate=given.rate or first.rate_limit,
            min_uptime=given.min_uptime,
            once=given.once,
        ),
        start=process_number(environ),
        debug=given.debug,
        log_file=given.log_file,
        host=found.host if found else None,
        sentry_dsn=environ.get("SENTRY_DSN") or (found.sentry_dsn if found else None),
    )


def _store(servers: object, namespace: str, queues: list[QueueSettings]) -> Queue:
    if not isinstance(servers, str) or "://" not in servers:
        return KestrelStore(namespace, servers, queues)  # type: ignore[arg-type]
    if servers.startswith("memory:"):
        raise UsageError("--servers: memory:// is inside of one process; a worker needs a server")
    return Queue.open(f"{servers.rstrip('/')}/{namespace}", queues=queues)


def _queues(text: str, found: Settings | None) -> list[QueueSettings]:
    """Return the queues to work on, by priority."""
    wanted = text.split(",")
    if found is None:
        queues = [QueueSettings(name) for name in wanted]
    else:
        queues = [found.queue(name) for name in wanted]
        if len(queues) == 1:
            queues += [found.queue(name) for name in queues[0].also]
    for queue in queues:
        if queue.language != "python":
            raise UsageError(f"the queue {queue.name} is for {queue.language} workers, not for Python")
        if queues.count(queue) > 1:
            raise UsageError(f"--queue names {queue.name} twice")
    return queues


def process_number(environ: Mapping[str, str]) -> int:
    """Return this worker's number in its program: 3 for ``shop_mail_03``, 0 without supervisor."""
    match = re.search(r"_([0-9]+)$", environ.get("SUPERVISOR_PROCESS_NAME", ""))
    return int(match[1]) if match else 0


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a worker; return the exit status."""
    started = time.monotonic()
    environ = os.environ if environ is None else environ
    try:
        planned = plan(sys.argv[1:] if arguments is None else arguments, environ)
    except (UsageError, QueueError) as exc:
        print(f"consumer: {exc}", file=sys.stderr)
        return unusable(started, environ)
    try:
        writer = Writer(planned.debug, file=planned.log_file)
    except OSError as exc:
        print(f"consumer: --log-file {planned.log_file}: {exc.strerror}", file=sys.stderr)
        return unusable(started, environ)
    log = Log(writer)
    signals = Signals()
    signals.install()
    for_child = dict(environ)
    if planned.environment:
        for_child["KESTREL_STACK_ENVIRONMENT"] = planned.environment
    reporter = _reporter(planned, environ, for_child, log)
    runner = Runner(
        *(planned.app, log, signals, for_child), pass_on=None if reporter is None else reporter.pass_on
    )
    queue = planned.open()
    responder = None if planned.limits.once else _responder(planned, log)
    worker = Worker(
        queue, planned.rules, runner, signals, writer, planned.limits, reporter, started, responder
    )
    log.info(
        "worker begins",
        queue=queue.name,
        app=planned.app,
        servers=planned.servers,
        environment=planned.environment,
        release=environ.get("KESTREL_STACK_RELEASE"),
        pid=os.getpid(),
    )
    try:
        worker.run()
    except UnusableApp as exc:
        log.error("application cannot be used", app=planned.app, folder=Path.cwd(), error=exc)
        log.debug("where that comes from", stack=exc.stack)
        return unusable(started, environ, signals, runner)
    except Exception as exc:
        # One line, as everything in the log is; what was reserved has gone back to its queue.
        last = traceback.extract_tb(exc.__traceback__)[-1]
        error, where = f"{type(exc).__name__}: {exc}", f"{last.filename} line {last.lineno}"
        log.error("the worker has a defect", error=error, where=where)
        log.debug("where that comes from", stack="".join(traceback.format_exception(exc)))
        return EX_DEFECT
    finally:
        if reporter is not None:
            reporter.close()
    return EX_OK


def _responder(planned: Plan, log: Log) -> Responder | None:
    """Return what answers the pings for the first queue, None when its name is too long for theirs."""
    own, name = planned.queues[0], next(iter(planned.store.queues))
    host = planned.host or socket.gethostname()
    try:
        names.ping(own, host)
        # The physical folder: `current` may have been moved on since this worker was started.
        return Responder(name, host, Path.cwd().name or "/", log)
    except (QueueError, OSError) as exc:
        log.warning("pings are not answered", error=exc)
        return None


def _reporter(
    planned: Plan, environ: Mapping[str, str], for_child: dict[str, str], log: Log
) -> sentry.Reporter | None:
    """Return what reports failed jobs, None without a DSN; tell the child of it in its environment."""
    for_child.pop("SENTRY_DSN", None)
    if not planned.sentry_dsn:
        return None
    host = planned.host or socket.gethostname()
    try:
        dsn = sentry.Dsn.parse(planned.sentry_dsn)
    except ValueError as exc:
        # Jobs must not stand still for it.
        log.error("errors are not reported", error=exc)
        return None
    for_child |= {"SENTRY_DSN": planned.sentry_dsn, "KESTREL_STACK_HOST": host}
    release = environ.get("KESTREL_STACK_RELEASE")
    about = {"release": release, "environment": planned.environment, "server_name": host}
    return sentry.Reporter(dsn, log, about)


def unusable(
    started: float,
    environ: Mapping[str, str],
    signals: Signals | None = None,
    runner: Runner | None = None,
) -> int:
    """Return the exit status for what trying again would not mend, under supervisor after `MIN_UPTIME`."""
    # Supervisor restarts whatever ends within startsecs; later, it sees that 78 means to stay down.
    while (
        environ.get("SUPERVISOR_ENABLED")
        and (left := started + MIN_UPTIME - time.monotonic()) > 0
        and not (signals and signals.stop)
    ):
        runner.wait(left) if runner else time.sleep(left)
    return EX_CONFIG


def _settings(given: argparse.Namespace, environ: Mapping[str, str]) -> Settings | None:
    """Return the settings, or None when there is no file and the rest says all that is needed."""
    try:
        settings.find(given.config, environ)
    except SettingsError:
        servers = given.servers or environ.get("KESTREL_STACK_SERVERS")
        namespace = given.namespace or environ.get("KESTREL_STACK_NAMESPACE")
        if servers and namespace:
            return None
        raise
    return settings.load(given.config, environ)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return float(text)


def _rate(text: str) -> float:
    try:
        return settings.parse_rate(text)
    except SettingsError as exc:
        raise argparse.ArgumentTypeError(str(exc).rstrip(".")) from None
