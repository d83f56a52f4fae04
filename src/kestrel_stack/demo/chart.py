"""The backlog over time, drawn with characters."""

from __future__ import annotations

from collections.abc import Sequence

from kestrel_stack.demo.report import Outage, Sample

HEIGHT = 8
BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .......#"
"""For terminals that know ASCII only: a column's top is a dot unless it fills the cell."""


def draw(outage: Outage, width: int, unicode: bool) -> str:
    """Return the chart, at most `width` characters wide."""
    most = max((sample.backlog for sample in outage.samples), default=0)
    top = scale(most)
    label = len(str(top))
    columns = bins(outage.samples, outage.ended_at, max(20, width - label - 5))
    blocks = BLOCKS if unicode else PLAIN
    lines = [f"  Jobs not yet done, over time (at most {most})"]
    for row in reversed(range(HEIGHT)):
        mark = str(top) if row == HEIGHT - 1 else "0" if row == 0 else ""
        cells = (round(min(1.0, max(0.0, value / top * HEIGHT - row)) * 8) for value in columns)
        bar = "│" if unicode else "|"
        lines.append(f"  {mark:>{label}} {bar}{''.join(blocks[cell] for cell in cells)}".rstrip())
    lines.append(_outage_line(outage, len(columns), label, unicode))
    last = f"{outage.ended_at:.0f} s"
    lines.append(f"  {'':{label}} {'0 s':<{max(1, len(columns) + 1 - len(last))}}{last}")
    return "\n".join(lines)


def scale(most: int) -> int:
    """Return the end of the axis: the next round number from `most` on."""
    return next(
        step * 10**power for power in range(12) for step in (1, 2, 3, 4, 5, 8) if step * 10**power >= most
    )


def bins(samples: Sequence[Sample], seconds: float, count: int) -> list[int]:
    """Return the largest backlog in each of `count` equal parts of the time; one without samples repeats."""
    found: list[int | None] = [None] * count
    for sample in samples:
        number = min(count - 1, int(sample.at / seconds * count)) if seconds else 0
        found[number] = max(found[number] or 0, sample.backlog)
    filled: list[int] = []
    for value in found:
        filled.append(value if value is not None else filled[-1] if filled else 0)
    return filled


def _outage_line(outage: Outage, columns: int, label: int, unicode: bool) -> str:
    def column(at: float) -> int:
        return min(columns - 1, int(at / outage.ended_at * columns)) if outage.ended_at else 0

    begin, end = column(outage.down_at), max(column(outage.down_at) + 1, column(outage.up_at))
    line, corner, left, right = ("─", "└", "├", "┤") if unicode else ("-", "+", "[", "]")
    inside = " API down ".center(end - begin - 1, line)[: end - begin - 1]
    axis = line * begin + left + inside + right + line * (columns - end - 1)
    return f"  {'':{label}} {corner}{axis}"
