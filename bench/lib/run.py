"""Run the comparisons, each with the median of some runs, and write docs/performance.md: ``bench/run``.

    bench/run                                # every part
    bench/run broker jobs web sentry         # those without containers
    bench/run deploy site up --resume        # what is not there yet, or is of another commit
    bench/run broker --kestrel 10.0.0.5:22133
    bench/run deploy -- --hosts 2,4          # more arguments for one part: see python bench/deploy.py --help
    bench/run --render                       # docs/performance.md from what was measured, nothing else

Contenders take turns within each run. Every part leaves its numbers and what they hold for in
.build/bench/PART.json as soon as it is done, so an interrupted run goes on with --resume. A part that fails
is told of in one line, and the others go on. Exit status: 0 all done; 1 some part was not measured, or
something could not be read; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# Run as a program, this file is in the folder of what it imports.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import report  # noqa: E402
from lib.common import BUSY, ROOT, RUNS, address, at_least, busy, say  # noqa: E402
from lib.parts import PARTS, Part  # noqa: E402

OUT = ROOT / ".build" / "bench"
LOOK_S = 3.0
"""How long the machine is looked at before each part."""
MEASURED = ("ansible", "bench", "bin", "examples", "fabfile.py", "php", "src", "templates")
"""What numbers depend on: writing a document makes none of them old."""
END_S = 180.0
"""How long an interrupted part may take to remove its hosts."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be measured, and how."""

    parts: Sequence[Part]
    runs: int
    quick: bool
    out: Path
    more: Sequence[str]
    kestrel: Sequence[str]
    commit: str

    def command(self, part: Part) -> list[str]:
        """Return the part's program and its arguments."""
        sizes = part.quick if self.quick else part.full
        kestrel = self.kestrel if part.name == "broker" else ()
        return [f"bench/{part.program}", "--json", "--runs", str(self.runs), *sizes, *kestrel, *self.more]

    def told(self, part: Part) -> str:
        """Return the command that measures this part again."""
        words = ["bench/run", part.name, "--runs", str(self.runs), *["--quick"] * self.quick]
        if part.name == "broker":
            words += self.kestrel
        return " ".join([*words, *(["--", *self.more] if self.more else [])])

    def seconds(self, part: Part) -> float:
        return part.seconds(self.runs, quick=self.quick)

    def is_there(self, part: Part) -> bool:
        """Say whether this has been measured already, with this commit."""
        with contextlib.suppress(report.Unreadable):
            found = report.read(self.out, part.name)
            same = {"command": self.told(part), "commit": self.commit, "status": 0}
            return found is not None and all(found.get(key) == value for key, value in same.items())
        return False


def commit() -> str:
    """Return the last commit of what is measured; if files differ from it, with a mark of how."""
    last = _git("log", "-1", "--format=%h", "--", *MEASURED)
    changed = _git("diff", "HEAD", "--binary", "--", *MEASURED)
    if not last or not changed:
        return last or "unknown"
    return f"{last}+{hashlib.sha256(changed.encode()).hexdigest()[:7]}"


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout.strip()


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def until(seconds: float) -> str:
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))


def run(plan: Plan) -> list[str]:
    """Measure every part and return what went wrong, a line each."""
    plan.out.mkdir(parents=True, exist_ok=True)
    left = sum(plan.seconds(part) for part in plan.parts)
    say(f"{len(plan.parts)} parts, about {minutes(left)}, until {until(left)}")
    wrong = []
    for number, part in enumerate(plan.parts, 1):
        mine = plan.seconds(part)
        say(
            f"\n[{number} of {len(plan.parts)}] {part.name}: {part.what}; about {minutes(mine)}, "
            f"all of it until {until(left)}"
        )
        left -= mine
        problem = measure(plan, part)
        if problem:
            wrong.append(f"{part.name}: not measured: {problem}")
            say(wrong[-1])
    return wrong


def measure(plan: Plan, part: Part) -> str | None:
    """Measure one part and keep its numbers; return why that was not possible, or None."""
    load, others = os.getloadavg()[0], busy(LOOK_S / 10 if plan.quick else LOOK_S)
    if others > BUSY:
        say(f"the machine is not quiet: others use {others:.0%} of its processors; compare ratios only")
    began = time.monotonic()
    status, answer, last = watch([sys.executable, *plan.command(part)])
    seconds = time.monotonic() - began
    try:
        result = json.loads(answer)
    except ValueError:
        result = None
    if result is None:
        return last or f"{part.program} ended with {status} and said nothing"
    kept = {
        "part": part.name,
        "command": plan.told(part),
        "runs": plan.runs,
        "quick": plan.quick,
        "commit": plan.commit,
        "status": status,
        "seconds": round(seconds, 1),
        "load_before": round(load, 2),
        "busy_before": round(others, 3),
        "result": result,
    }
    file = plan.out / f"{part.name}.json"
    new = file.with_name(f".{file.name}.new")
    new.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    new.rename(file)
    say(f"{part.name}: {minutes(seconds)}; {file}")
    return f"{part.program} ended with {status}: {last}" if status else None


def watch(command: list[str]) -> tuple[int, str, str]:
    """Run a program and hand on its stderr; return its status, its stdout, and the last line of stderr."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        # One JSON can be more than a pipe holds, so somebody reads it meanwhile.
        answer: list[str] = []
        reader = threading.Thread(target=lambda: answer.extend(process.stdout), daemon=True)
        reader.start()
        # What a part that crashed has left would hold its stderr open for ever.
        threading.Thread(target=_end_rest, args=(process,), daemon=True).start()
        last = ""
        try:
            for line in process.stderr:
                sys.stderr.write(f"  {line}")
                sys.stderr.flush()
                last = line.strip() or last
            process.wait()
        except KeyboardInterrupt:
            say("interrupted; what this part has made is being removed")
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            raise
        reader.join()
    return process.returncode, "".join(answer), last


def _end_rest(process: subprocess.Popen) -> None:
    """Wait for a program, and end what it has started and not ended."""
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Plan]:
    made = argparse.ArgumentParser(
        prog="bench/run",
        description=__doc__,
        epilog=f"{parts_list(RUNS)}\n\n--list --runs 3 estimates for three runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (default: all)")
    add("--runs", type=at_least(1), metavar="N", help=f"runs of each (default: {RUNS}; with --quick 1)")
    add("--quick", action="store_true", help="small sizes: to see that it works, not for figures")
    add("--resume", action="store_true", help="leave out what was measured like this with this commit")
    add("--render", action="store_true", help="write docs/performance.md; without a part nothing is measured")
    add(
        "--kestrel",
        type=address,
        metavar="HOST:PORT",
        help="broker: a real Kestrel; its queue bench is emptied",
    )
    add("--kestrel-pid", type=int, metavar="PID", help="its process, if it is on this machine")
    add("--out", type=Path, metavar="FOLDER", help=f"of the JSON (default: {OUT.relative_to(ROOT)})")
    add(
        "--docs", type=Path, default=ROOT / "docs", metavar="FOLDER", help="of performance.md (default: docs)"
    )
    add("--list", action="store_true", help="name the parts, and how long each takes")
    own, more = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, more = arguments[:at], arguments[at + 1 :]
    options = made.parse_args(own)
    for name in options.parts:
        if name not in PARTS:
            made.error(f"{name}: there are {', '.join(PARTS)}")
    if more and len(options.parts) != 1:
        made.error("what follows -- is for one part: name it")
    kestrel = ["--kestrel", "{}:{}".format(*options.kestrel)] if options.kestrel else []
    if kestrel and options.kestrel_pid:
        kestrel += ["--kestrel-pid", str(options.kestrel_pid)]
    options.out = options.out or (OUT / "quick" if options.quick else OUT)
    options.runs = options.runs or (1 if options.quick else RUNS)
    names = dict.fromkeys(options.parts) or ([] if options.render else PARTS)
    parts = [PARTS[name] for name in names]
    plan = Plan(parts, options.runs, options.quick, options.out.resolve(), more, kestrel, commit())
    return options, plan


def parts_list(runs: int, *, quick: bool = False) -> str:
    """Return the parts with the time that each takes, and all together."""
    lines = [f"parts, and how long they take with {runs} runs:"]
    for part in PARTS.values():
        about = minutes(part.seconds(runs, quick=quick))
        hosts = " (containers)" if part.hosts else ""
        lines.append(f"  {part.name:<12}{about:>8}  {part.what}{hosts}")
    lines.append(
        f"  {'all':<12}{minutes(sum(part.seconds(runs, quick=quick) for part in PARTS.values())):>8}"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options, plan = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        print(parts_list(plan.runs, quick=plan.quick))
        return 0
    if options.resume:
        there = [part.name for part in plan.parts if plan.is_there(part)]
        if there:
            say(f"measured already: {', '.join(there)}")
        plan = dataclasses.replace(plan, parts=[part for part in plan.parts if part.name not in there])
    wrong: list[str] = []
    try:
        if plan.parts:
            wrong = run(plan)
        if options.render:
            for file in report.write(plan.out, options.docs):
                say(f"wrote {file}")
    except KeyboardInterrupt:
        say("bench/run: interrupted; what is done is kept: run the same with --resume")
        return 130
    except (report.Unreadable, OSError) as error:
        say(f"bench/run: {error}")
        return 1
    if wrong:
        say("\n" + "\n".join(f"bench/run: {line}" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
