"""What failing jobs cost when their errors are reported: ``python bench/sentry.py``.

    bench/sentry.py --only python            # one language
    bench/sentry.py --jobs 500 --runs 1   # quicker

One worker on the embedded broker, whose jobs all fail and are parked; counted are those parked per second,
from the first tenth on. Without a DSN; with one to a healthy Bugsink, a real one; with a Sentry that refuses
connections; and with one that takes them and never answers. Each is measured with one error again and again,
of which a worker sends a few and counts the others, and with an error of its own for every job. The last
columns say what became of the errors, of which ``lost`` were dropped and counted. The cases take turns in
every run; the table has medians. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lib.common import ROOT, about, at_least, chosen, conditions, parser, say, spread

sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from kestrel_stack.queue.envelope import Envelope  # noqa: E402
from support.broker import BrokerProcess, wait_until  # noqa: E402
from support.bugsink import Bugsink  # noqa: E402
from support.worker import LANGUAGES, App, WorkerProcess, settings  # noqa: E402

SENTRIES = ("none", "healthy", "down", "hanging")
ERRORS = ("one", "many")
WARM_UP = 0.1
DEADLINE = 300.0
KEY = "0" * 32
PYTHON = """
import sys
sys.modules["sentry_sdk"] = None
from kestrel_stack.consumer import Registry

registry = Registry()


@registry.job("Fail")
def fail(data, context):
    context.log.debug("about to fail", name=data["name"])
    raise ValueError(f"broken {data['name']}")
"""
PHP = """<?php

use KestrelStack\\Consumer\\{Context, Registry};

return (new Registry())->job('Fail', function (array $data, Context $context): void {
    $context->log->debug('about to fail', ['name' => $data['name']]);
    throw new RuntimeException("broken {$data['name']}");
});
"""
# A number in an error's text makes it no other error; a word does.
LETTERS = str.maketrans("0123456789", "ghijklmnop")


@contextlib.contextmanager
def sentry(kind: str, folder: Path) -> Iterator[str | None]:
    """Have a Sentry of this kind and yield its DSN."""
    if kind == "none":
        yield None
    elif kind == "healthy":
        bugsink = Bugsink(folder)
        # What its quota does is another question: see tests/faults/test_sentry_bugsink.py.
        bugsink.quota(per_5_minutes=1_000_000)
        with bugsink:
            yield bugsink.dsn
    else:
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
            port = listening.getsockname()[1]
            if kind == "hanging":
                yield f"http://{KEY}@127.0.0.1:{port}/1"
        if kind == "down":
            yield f"http://{KEY}@127.0.0.1:{port}/1"


@dataclass
class Result:
    """What was measured of one case; a number for each run."""

    rates: list[float] = field(default_factory=list)
    reported: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    not_reported: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, float]]:
        return {name: spread(found) for name, found in self.__dict__.items()}


def measure(language: str, dsn: str | None, errors: str, count: int, folder: Path) -> tuple[float, dict]:
    """Return how many failing jobs one worker parks per second, and its line about errors."""
    app = App(folder / "app")
    (app.folder / "failing.py").write_text(PYTHON)
    (app.folder / "failing.php").write_text(PHP)
    queue = {"name": "work", "language": language, "max_jobs": count + 1}
    with BrokerProcess(folder / "broker") as broker:
        with broker.connect() as raw:
            for number in range(count):
                name = str(number) if errors == "one" else str(number).translate(LETTERS)
                raw.set("shop_work", Envelope("Fail", "acme", {"name": name}).encode())

        def parked() -> int:
            return broker.stats("shop_work_errors").get("items", 0)

        with WorkerProcess(
            *(app, broker.address),
            language=language,
            app_name="failing.php" if language == "php" else "failing:registry",
            settings=settings(broker.address, queue) | {"sentry_dsn": dsn, "host": "bench"},
            debug=False,
        ) as worker:
            wait_until(lambda: parked() == count, "all jobs to be parked", DEADLINE)
            status = worker.end(signal.SIGTERM)
        if status != 0:
            raise SystemExit(f"the worker ended with {status}: {worker.log[-2000:]}")
    # By the worker's own clock: to ask the broker meanwhile would take from what is measured.
    ended = [datetime.fromisoformat(line["time"]).timestamp() for line in worker.events("job")]
    first = int(count * WARM_UP)
    rate = (len(ended) - 1 - first) / (ended[-1] - ended[first])
    told = worker.events("errors")
    return rate, told[0] if told else {"reported": 0, "repeated": 0, "not_reported": 0}


def measure_all(options: argparse.Namespace) -> dict[str, Result]:
    """Measure every case in turns."""
    cases = [(language, kind, errors) for language in options.only for kind in SENTRIES for errors in ERRORS]
    results = {" ".join(case): Result() for case in cases}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kestrel-bench-")))
        dsns = {kind: stack.enter_context(sentry(kind, folder / kind)) for kind in SENTRIES}
        for run in range(options.runs):
            for language, kind, errors in cases:
                where = folder / f"{language}-{kind}-{errors}-{run}"
                where.mkdir()
                rate, told = measure(language, dsns[kind], errors, options.jobs, where)
                result = results[f"{language} {kind} {errors}"]
                result.rates.append(rate)
                for name in ("reported", "repeated", "not_reported"):
                    getattr(result, name).append(told[name])
                say(f"run {run + 1} of {options.runs}: {language} {kind} {errors:<6}{rate:>8,.0f}/s")
    return results


def table(results: dict[str, Result]) -> str:
    head = f"{'':<8}{'Sentry':<10}{'errors':<8}{'jobs/s (least-most)':>24}{'of none':>9}"
    lines = [head + f"{'reported':>10}{'repeated':>10}{'lost':>8}"]
    for name, result in results.items():
        language, kind, errors = name.split()
        summary = {key: found["median"] for key, found in result.summary().items()}
        rate = f"{summary['rates']:,.0f} ({min(result.rates):,.0f}-{max(result.rates):,.0f})"
        none = results[f"{language} none {errors}"].summary()["rates"]["median"]
        lines.append(
            f"{language:<8}{kind:<10}{errors:<8}{rate:>24}{summary['rates'] / none:>9.0%}"
            f"{summary['reported']:>10,.0f}{summary['repeated']:>10,.0f}{summary['not_reported']:>8,.0f}"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--only",
        type=chosen(list(LANGUAGES)),
        default=list(LANGUAGES),
        metavar="NAME,…",
        help=f"of: {', '.join(LANGUAGES)} (default: all)",
    )
    made.add_argument(
        "--jobs",
        type=at_least(20),
        default=2000,
        metavar="N",
        help="failing jobs of each case (default: 2000)",
    )
    return made.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        results = measure_all(options)
    except (OSError, RuntimeError, AssertionError) as exc:
        raise SystemExit(f"bench/sentry.py: {exc}") from None
    found = conditions(jobs=options.jobs, runs=options.runs)
    if options.json:
        cases = {name: {**result.__dict__, "summary": result.summary()} for name, result in results.items()}
        print(json.dumps({"conditions": found, "cases": cases}, indent=2))
        return 0
    print(
        f"\n{about(found)}; {options.jobs:,} failing jobs for each, medians of {options.runs} runs\n\n"
        f"{table(results)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
