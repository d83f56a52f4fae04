"""docs/performance.md and its pictures, from what bench/run has measured.

The numbers stand between markers, ``<!-- bench/run: NAME -->`` and ``<!-- /bench/run -->``; the text around
them is written by hand and kept. What was not measured stays as it is, with its own date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib import chart
from lib.chart import OTHER, OURS, Bar, Group, Line
from lib.common import BUSY, about, spread
from lib.parts import PARTS

PAGE = "performance.md"
MARKED = re.compile(r"<!-- bench/run: ([a-z-]+) -->\n(.*?)<!-- /bench/run -->", re.DOTALL)
MB = 1_000_000


class Unreadable(Exception):  # noqa: N818 - it is a file
    """What was measured cannot be read; the text is one line that says what to do."""


@dataclass
class Aim:
    """What was to be reached, and whether it is."""

    what: str
    measured: str
    aim: str
    met: bool

    def row(self) -> str:
        return f"| {self.what} | {self.measured} | {self.aim} | {'met' if self.met else '**not met**'} |"


@dataclass
class Section:
    """What one part has to say."""

    text: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.text += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
        self.text.append("")

    def picture(self, name: str, alt: str, svg: str) -> None:
        self.pictures[f"performance-{name}.svg"] = svg
        self.text += [f"![{alt}](performance-{name}.svg)", ""]


# --- reading and writing -----------------------------------------------------------------------------------


def read(folder: Path, name: str) -> dict | None:
    """Return what a part has measured, or None if it has not; `Unreadable` if that makes no sense."""
    file = folder / f"{name}.json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{file} is not JSON ({error}); measure it again: bench/run {name}") from None
    if not isinstance(found, dict) or found.get("part") != name or not isinstance(found.get("result"), dict):
        raise Unreadable(f"{file} is not what bench/run writes; measure it again: bench/run {name}")
    return found


def write(folder: Path, docs: Path) -> list[Path]:
    """Write the page and its pictures, all or nothing, and return the files."""
    page = docs / PAGE
    try:
        before = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Unreadable(f"there is no {page} to write the numbers into") from None
    blocks = dict(MARKED.findall(before))
    missing = [name for name in ("aims", *SECTIONS) if name not in blocks]
    if missing:
        raise Unreadable(f"{page} lacks the line <!-- bench/run: {missing[0]} --> or its end")
    measured = {name: found for name in SECTIONS if (found := read(folder, name))}
    if not measured:
        raise Unreadable(f"nothing was measured in {folder}: bench/run --help")
    aims: list[Aim] = []
    files: dict[Path, str] = {}
    for name, found in measured.items():
        section = Section()
        try:
            SECTIONS[name](section, found["result"])
            head = _conditions(name, found)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
            raise Unreadable(
                f"{folder / name}.json is not what bench/{PARTS[name].program} writes "
                f"({type(error).__name__}: {error}); measure it again: bench/run {name}"
            ) from None
        blocks[name] = "\n".join([*section.text, *head]).strip() + "\n"
        files.update({docs / picture: svg for picture, svg in section.pictures.items()})
        if not found["quick"]:
            aims += section.aims
    blocks["aims"] = _aims(blocks["aims"], aims)
    files[page] = MARKED.sub(
        lambda match: f"<!-- bench/run: {match[1]} -->\n{blocks[match[1]]}<!-- /bench/run -->", before
    )
    for file, text in files.items():
        new = file.with_name(f".{file.name}.new")
        new.write_text(text, encoding="utf-8")
        new.rename(file)
    return list(files)


def _conditions(name: str, found: dict) -> list[str]:
    """Return what the numbers hold for, and the command that makes them again."""
    where = found["result"]["conditions"]
    quiet = (
        "" if found["busy_before"] <= BUSY else f" **Others used {found['busy_before']:.0%} of the machine.**"
    )
    quick = " **A quick run: not figures.**" if found["quick"] else ""
    return [
        f"`{found['command']}`: {about(where)}; {found['runs']} runs, {found['seconds'] / 60:.0f} minutes, "
        f"load before {found['load_before']:g}; commit {found['commit']}.{quiet}{quick}"
    ]


def _aims(before: str, new: list[Aim]) -> str:
    """Return the table with these aims in it; those of parts that were not measured stay."""
    rows = {
        line.split("|")[1].strip(): line
        for line in before.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| aim for"))
    }
    rows.update({aim.what: aim.row() for aim in new})
    return "\n".join(["| aim for | measured | aim | |", "| --- | --- | --- | --- |", *rows.values()]) + "\n"


# --- numbers -----------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def span(found: Sequence[float], unit: str = "") -> str:
    """Return the median, and the least and the most behind it."""
    of = spread(found)
    short = f"{number(of['median'])}{unit}"
    return short if len(found) == 1 else f"{short} ({number(of['least'])}-{number(of['most'])})"


def median(found: Sequence[float]) -> float:
    return spread(found)["median"]


def bar(name: str, found: Sequence[float], colour: int) -> Bar:
    of = spread(found)
    return Bar(name, of["median"], of["least"], of["most"], colour)


def times(factor: float) -> str:
    """Return how many times as fast ours is."""
    return f"×{factor:.2f}" if factor < 10 else f"×{factor:.0f}"


# --- parts -------------------------------------------------------------------------------------------------

SERVERS = {
    "embedded": "embedded broker",
    "kestrel": "Kestrel",
    "beanstalkd": "beanstalkd",
    "redis": "Redis lists",
}


def broker(section: Section, found: dict) -> None:
    where = found["conditions"]
    names = [name for name in SERVERS if name in found["memory_mb"]]
    groups, rows = [], []
    for load in found["loads"]:
        rates, plural = load["per_second"], "s" * (load["connections"] > 1)
        label = f"{load['load']}, {load['connections']} connection{plural}"
        cells = [label]
        for name in names:
            if name not in rates:
                cells.append("")
                continue
            factor = median(rates["embedded"]) / median(rates[name])
            cells.append(span(rates[name]) + ("" if name == "embedded" else f" {times(factor)}"))
        rows.append(cells)
        groups.append(
            Group(
                label,
                [bar(SERVERS[n], rates[n], OURS if n == "embedded" else OTHER) for n in names if n in rates],
            )
        )
    for row, label in enumerate(("memory before, MB", "memory after, MB")):
        values = [found["memory_mb"][name][row] for name in names]
        rows.append([label, *("unknown" if value is None else f"{value:.0f}" for value in values)])
    svg = chart.bars(
        "Requests a second of one queue server",
        f"items of {where['item_bytes']} bytes, {where['client_processes']} client processes, {_day(where)}",
        groups,
        lambda value: f"{value:,.0f}/s",
        less_is_better=False,
    )
    section.picture("broker", "Requests a second: the embedded broker, beanstalkd and Redis lists", svg)
    section.table(["requests a second", *(SERVERS[name] for name in names)], rows)


WORKERS = {
    "python": "Python worker",
    "php": "PHP worker",
    "rq": "RQ",
    "rq simple": "RQ, SimpleWorker",
    "celery": "Celery, prefetch 1",
    "celery prefetch 4": "Celery, prefetch 4",
}


def jobs(section: Section, found: dict) -> None:
    contenders, where = found["contenders"], found["conditions"]
    ours = [name for name in ("python", "php") if name in contenders]
    rates = {name: of["jobs_per_second"]["median"] for name, of in contenders.items()}
    p99 = {name: of["p99_ms"]["median"] for name, of in contenders.items()}
    svg = chart.bars(
        "One worker: no-op jobs a second",
        f"full queue, jobs of {where['job_bytes']} bytes, {_day(where)}",
        [
            Group(
                "jobs a second",
                [
                    bar(WORKERS[name], of["rates"], OURS if name in ours else OTHER)
                    for name, of in contenders.items()
                ],
            )
        ],
        lambda value: f"{value:,.0f}/s",
        less_is_better=False,
    )
    section.picture("jobs", "Jobs a second of one worker, beside RQ and Celery", svg)
    waits = [
        Group(
            label,
            [
                Bar(WORKERS[name], of[key]["median"], of[key]["least"], of[key]["most"], _own(name in ours))
                for name, of in contenders.items()
                if rates[name] >= where["trickle_per_second"]
            ],
        )
        for label, key in (("half of the jobs", "p50_ms"), ("99 of 100", "p99_ms"))
    ]
    svg = chart.bars(
        "One worker: how long a job waits until it runs, at most",
        f"{where['trickle_per_second']:g} jobs a second for {where['trickle_seconds']:g} s, {_day(where)}",
        waits,
        lambda value: f"{value:.1f} ms",
        less_is_better=True,
    )
    section.picture("waits", "How long a job waits for a worker, beside RQ and Celery", svg)
    rows = []
    for name, of in contenders.items():
        cells = [WORKERS[name], span(of["rates"])]
        for mine in ours:
            cells.append("" if name in ours else times(rates[mine] / rates[name]))
        for key in ("p50_ms", "p99_ms"):
            cells.append(f"{of[key]['median']:.1f} ({of[key]['least']:.1f}-{of[key]['most']:.1f})")
        rows.append([*cells, f"{of['memory_mb']['median']:.0f}"])
    head = ["one worker", "jobs a second", *(f"ours ({name})" for name in ours)]
    section.table([*head, "p50, ms", "p99, ms", "memory, MB"], rows)
    for mine in ours:
        for peer, names in (("RQ", ("rq", "rq simple")), ("Celery", ("celery", "celery prefetch 4"))):
            theirs = [name for name in names if name in contenders]
            if not theirs:
                continue
            factor = rates[mine] / max(rates[name] for name in theirs)
            best = min(p99[name] for name in theirs)
            section.aims += [
                Aim(
                    f"{WORKERS[mine]}, jobs a second beside {peer}'s best",
                    times(factor),
                    "×1 or more",
                    factor >= 1,
                ),
                Aim(
                    f"{WORKERS[mine]}, p99 of a job's wait beside {peer}'s best",
                    f"{p99[mine]:.1f} ms to {best:.1f} ms",
                    "not more",
                    p99[mine] <= best,
                ),
            ]


def deploy(section: Section, found: dict) -> None:
    ours, seconds = "fab deploy", {}
    for hosts, delay, case, name, taken in found["seconds"]:
        seconds.setdefault((case, delay, hosts), {})[name] = taken
    names = list(dict.fromkeys(name for by_name in seconds.values() for name in by_name))
    groups, rows = [], []
    for (case, delay, hosts), by_name in seconds.items():
        label = f"{case}, {hosts} hosts, {delay} ms"
        groups.append(Group(label, [bar(name, of, _own(name == ours)) for name, of in by_name.items()]))
        mine = median(by_name[ours]) if ours in by_name else None
        cells = [label]
        for name in names:
            of = by_name.get(name)
            behind = f" {times(median(of) / mine)}" if of and mine and name != ours else ""
            cells.append(span(of, " s") + behind if of else "")
        rows.append(cells)
    svg = chart.bars(
        "Seconds of a deploy",
        f"200 files, 5 MB; ms: added each way by a proxy; {_day(found['conditions'])}",
        groups,
        lambda value: f"{value:.2f} s",
        less_is_better=True,
    )
    section.picture("deploy", "Seconds of a deploy: fab deploy, Capistrano, pyinfra and plain Fabric", svg)
    section.table(["seconds", *names], rows)
    for peer in ("capistrano", "pyinfra"):
        factors = [
            median(by_name[peer]) / median(by_name[ours])
            for by_name in seconds.values()
            if peer in by_name and ours in by_name
        ]
        if factors:
            section.aims.append(
                Aim(
                    f"fab deploy beside {peer}, all cases",
                    f"{times(min(factors))} to {times(max(factors))}",
                    "×1 or more in each",
                    min(factors) >= 1,
                )
            )


def deploy_load(section: Section, found: dict) -> None:
    names = {
        "deploy_seconds": "seconds of the deploy",
        "enqueued": "jobs enqueued",
        "lost": "lost",
        "doubled": "done twice",
        "producer_errors": "refused by the queue",
        "p99_wait_ms_before": "p99 of the waits before, ms",
        "p99_wait_ms_during": "p99 of the waits meanwhile, ms",
        "longest_wait_ms_during": "longest wait meanwhile, ms",
    }
    figures = found["figures"]
    section.table(
        [f"a deploy under {found['conditions']['rate']:g} jobs a second", "median (least-most)"],
        [[label, span([each[key] for each in figures])] for key, label in names.items()],
    )
    lost = sum(each["lost"] for each in figures)
    section.aims.append(Aim("jobs lost over a deploy under load", str(lost), "0", lost == 0))


def site(section: Section, found: dict) -> None:
    seconds: dict[str, dict[str, dict[int, list[float]]]] = {}
    for hosts, case, name, taken in found["seconds"]:
        seconds.setdefault(case, {}).setdefault(name, {})[int(hosts)] = taken
    where, ours = found["conditions"], "kestrel-stack"
    per_task = {(name, hosts): taken for name, hosts, taken in found["per task"]}
    for case, by_name in seconds.items():
        by_name = {ours: by_name.pop(ours), **by_name}
        counts = sorted({count for by_count in by_name.values() for count in by_count})
        series = [
            Line(
                name,
                [(count, median(by_count[count])) for count in sorted(by_count)],
                _own(name == ours),
                anchor="end",
                dots=True,
            )
            for name, by_count in by_name.items()
        ]
        svg = chart.lines(
            f"ansible-playbook site.yml: {case}",
            f"medians, {_day(where)}; less is better",
            series,
            unit="seconds",
            across="hosts",
            marks=[(count, str(count)) for count in counts],
        )
        section.picture(
            f"site-{re.sub(r'[^a-z]+', '-', case.lower())}", f"Seconds of site.yml by hosts: {case}", svg
        )
        rows = []
        for name, by_count in by_name.items():
            cells = [name]
            for count in counts:
                of, mine = by_count.get(count), by_name[ours].get(count)
                behind = f" {times(median(of) / median(mine))}" if of and mine and name != ours else ""
                cells.append(span(of, " s") + behind if of else "")
            rows.append(cells)
            tasks = [per_task.get((f"{name}, {case}", count)) for count in counts]
            rows.append(
                [f"{name}: for each task and host", *(f"{1000 * of:.0f} ms" if of else "" for of in tasks)]
            )
        section.table([case, *(f"{count} host{'s' * (count > 1)}" for count in counts)], rows)
        if case != "no change":
            continue
        mine = by_name[ours]
        if 4 in mine:
            taken = median(mine[4])
            section.aims.append(
                Aim("site.yml, no change, 4 hosts", f"{taken:.1f} s", "under 25 s", taken < 25)
            )
        few, many = min(mine), max(mine)
        if few != many:
            growth = median(mine[many]) / median(mine[few])
            section.aims.append(
                Aim(
                    "site.yml, no change, growth with hosts",
                    f"{many} hosts take {growth:.2f} times as long as {few}",
                    f"less than {many / few:g} times",
                    growth < many / few,
                )
            )


def web(section: Section, found: dict) -> None:
    where = found["conditions"]
    groups = [
        Group(
            "processor seconds a minute",
            [
                bar(f"{who}, {cost['what']}", cost[key], OURS if who == "kestrel-web" else chart.THIRD)
                for cost in found["costs"]
                for who, key in (("brokers", "broker_cpu_s"), ("kestrel-web", "web_cpu_s"))
                if cost["what"] != "no kestrel-web" or who == "brokers"
            ],
        )
    ]
    svg = chart.bars(
        "What kestrel-web costs: processor seconds in each minute",
        f"{where['servers']} brokers with {where['queues']:,} queues each, {_day(where)}",
        groups,
        lambda value: f"{value:.1f} s",
        less_is_better=True,
    )
    section.picture("web", "Processor time of kestrel-web and of the brokers that it polls", svg)
    section.table(
        [
            "a minute with",
            "brokers, all of them",
            "bytes to and from them",
            "kestrel-web",
            "answers to viewers",
        ],
        [
            [
                cost["what"],
                span(cost["broker_cpu_s"], " s"),
                f"{median(cost['broker_bytes']) / MB:.0f} MB",
                span(cost["web_cpu_s"], " s"),
                f"{median(cost['views']):.0f}",
            ]
            for cost in found["costs"]
        ],
    )
    section.table(
        ["page", "viewers", "p50, ms", "p95, ms", "size"],
        [
            [
                "`" + page["page"].replace("|", "\\|") + "`",
                str(page["viewers"]),
                span(page["p50_ms"]),
                span(page["p95_ms"]),
                f"{page['bytes'] / 1000:.0f} kB" if page["bytes"] else "",
            ]
            for page in found["pages"]
        ],
    )
    memory = ", ".join(f"{median(mb):.0f} MB {when}" for when, mb in found["memory_mb"].items())
    section.text += [f"Memory of kestrel-web: {memory}.", ""]


def sentry(section: Section, found: dict) -> None:
    where, rows = found["conditions"], []
    groups: dict[str, list[Bar]] = {}
    kinds = {"none": "no Sentry", "healthy": "healthy", "down": "refuses", "hanging": "hangs"}
    repeats = {"one": "one error again and again", "many": "an error for each job"}
    for name, of in found["cases"].items():
        language, kind, errors = name.split()
        none = median(found["cases"][f"{language} none {errors}"]["rates"])
        counts = [f"{median(of[key]):,.0f}" for key in ("reported", "repeated", "not_reported")]
        share = f"{median(of['rates']) / none:.0%}"
        rows.append([language, kinds[kind], repeats[errors], span(of["rates"]), share, *counts])
        title = f"{language}, {repeats[errors]}"
        groups.setdefault(title, []).append(bar(kinds[kind], of["rates"], _own(kind != "none")))
    svg = chart.bars(
        "Failing jobs a second of one worker, with Sentry in different states",
        f"{where['jobs']:,} jobs each, {_day(where)}",
        [Group(title, bars) for title, bars in groups.items()],
        lambda value: f"{value:,.0f}/s",
        less_is_better=False,
    )
    section.picture("sentry", "Failing jobs a second by the state of Sentry", svg)
    head = ["worker", "Sentry", "errors", "jobs a second", "of no Sentry", "reported", "repeated", "lost"]
    section.table(head, rows)


def up(section: Section, found: dict) -> None:
    seconds, steps = found["seconds"], found["steps"]
    groups = [Group("bin/up", [bar(case, taken, OURS) for case, taken in seconds.items() if case != "down"])]
    groups += [
        Group(f"steps of bin/up: {case}", [bar(name, taken, OTHER) for name, taken in steps[case].items()])
        for case in seconds
        if steps.get(case)
    ]
    svg = chart.bars(
        "Seconds of bin/up, with the image and the virtual environment there",
        f"{found['conditions']['env']} inventory, {_day(found['conditions'])}",
        groups,
        lambda value: f"{value:.1f} s",
        less_is_better=True,
    )
    section.picture("up", "Seconds of bin/up and of its steps", svg)
    section.table(["bin/up", "median (least-most)"], [[case, span(of, " s")] for case, of in seconds.items()])
    taken = median(seconds["warm"])
    section.aims.append(Aim("bin/up, warm", f"{taken:.0f} s", "under 90 s", taken < 90))


def _own(ours: bool) -> int:
    return OURS if ours else OTHER


def _day(where: dict) -> str:
    return f"{where['cores']} cores, {str(where['date']).split(' ', maxsplit=1)[0]}"


SECTIONS: dict[str, Callable[[Section, dict], None]] = {
    "broker": broker,
    "jobs": jobs,
    "deploy": deploy,
    "deploy-load": deploy_load,
    "site": site,
    "up": up,
    "web": web,
    "sentry": sentry,
}
