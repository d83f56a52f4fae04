"""Charts as SVG, for a light page and a dark one: bars with medians and spans, and lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
STYLE = """
  text { fill: #24292f } .dim { fill: #57606a } .grid { stroke: #d0d7de } .axis { stroke: #57606a }
  .paper { fill: #ffffff } .span { stroke: #24292f; stroke-width: 1.4; fill: none }
  .series { fill: none; stroke-width: 2.5 }
  .b0 { fill: #0969da } .b1 { fill: #8c959f } .b2 { fill: #bc4c00 }
  .s0 { stroke: #0969da } .s1 { stroke: #8c959f } .s2 { stroke: #bc4c00 }
  .t0 { fill: #0969da } .t1 { fill: #57606a } .t2 { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #8b949e } .grid { stroke: #30363d } .axis { stroke: #8b949e }
    .paper { fill: #0d1117 } .span { stroke: #e6edf3 }
    .b0 { fill: #388bfd } .b1 { fill: #6e7681 } .b2 { fill: #f0883e }
    .s0 { stroke: #388bfd } .s1 { stroke: #8b949e } .s2 { stroke: #f0883e }
    .t0 { fill: #58a6ff } .t1 { fill: #8b949e } .t2 { fill: #f0883e }
  }
"""
OURS, OTHER, THIRD = 0, 1, 2
"""Colours: this project's, everybody else's, and one more."""
LETTER = 7.3
"""How wide a letter of 13 units is, at most, on average."""


@dataclass(frozen=True)
class Bar:
    """One bar, to the median, with a whisker from the least to the most."""

    name: str
    median: float
    least: float
    most: float
    colour: int = OTHER


@dataclass(frozen=True)
class Group:
    """Bars below a heading that share a scale."""

    name: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """A line through some points, with its name beside the point number ``named_at``."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = OTHER
    named_at: int = -1
    anchor: str = "middle"
    dots: bool = False


def bars(
    title: str, about: str, groups: Sequence[Group], show: Callable[[float], str], *, less_is_better: bool
) -> str:
    """Return groups of bars, one below the other; ``show`` writes a value with its unit."""
    every = [bar for group in groups for bar in group.bars]
    left = 24 + max(len(bar.name) for bar in every) * LETTER
    right = 24 + max(len(show(bar.median)) for bar in every) * LETTER
    room = WIDTH - left - right
    better = "less is better" if less_is_better else "more is better"
    y = 76.0
    parts: list[str] = []
    for group in groups:
        most = max(bar.most for bar in group.bars) or 1.0
        parts.append(_text(16, y, group.name, weight=600))
        y += 12
        top = y
        for bar in group.bars:
            end, least, upper = (left + room * value / most for value in (bar.median, bar.least, bar.most))
            middle = y + 11
            parts.append(_text(left - 8, middle + 4.5, bar.name, anchor="end"))
            parts.append(
                f'<rect class="b{bar.colour}" x="{left:.1f}" y="{y + 2:.1f}"'
                f' width="{max(end - left, 1):.1f}" height="18" rx="2"/>'
            )
            if bar.most > bar.least:
                parts.append(f'<path class="span" d="M{least:.1f} {middle - 4}v8m0 -4H{upper:.1f}m0 -4v8"/>')
            parts.append(_text(max(end, upper) + 8, middle + 4.5, show(bar.median)))
            y += 24
        parts.append(f'<path class="axis" d="M{left:.1f} {top - 2:.1f}V{y:.1f}"/>')
        y += 30
    height = int(y - 8)
    note = f"medians, whiskers from the least to the most; {better}"
    return _sheet(title, about, height, parts, note)


def lines(
    title: str,
    about: str,
    series: Sequence[Line],
    *,
    unit: str,
    across: str,
    marks: Sequence[tuple[float, str]],
    note: str = "",
) -> str:
    """Return lines over an axis with ``marks`` (where, and what is written there); both axes begin at 0."""
    height, left, right, top, bottom = 400, 64, 24, 84, 56
    most, step = nice(max(value for line in series for _, value in line.points))
    last = max(at for line in series for at, _ in line.points)

    def x(at: float) -> float:
        return left + (WIDTH - left - right) * at / last

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * value / most

    parts = []
    for number in range(round(most / step) + 1):
        value = number * step
        parts.append(f'<path class="grid" d="M{left} {y(value):.1f}H{WIDTH - right}"/>')
        parts.append(_text(left - 8, y(value) + 4, f"{value:g}", kind="dim", anchor="end"))
    parts.append(_text(left - 8, top - 12, unit, kind="dim", anchor="end"))
    for at, what in marks:
        anchor = "start" if at == 0 else "end" if at == last else "middle"
        parts.append(f'<path class="axis" d="M{x(at):.1f} {height - bottom}v5"/>')
        parts.append(_text(x(at), height - bottom + 20, what, kind="dim", anchor=anchor))
    parts.append(_text((left + WIDTH - right) / 2, height - 10, across, kind="dim", anchor="middle"))
    parts.append(f'<path class="axis" fill="none" d="M{left} {top}V{height - bottom}H{WIDTH - right}"/>')
    for line in series:
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line.points)
        parts.append(f'<polyline class="series s{line.colour}" points="{points}"/>')
        if line.dots:
            parts += [
                f'<circle class="b{line.colour}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="4"/>'
                for at, value in line.points
            ]
        at, value = line.points[line.named_at]
        parts.append(_text(x(at), y(value) - 10, line.name, kind=f"t{line.colour}", anchor=line.anchor))
    return _sheet(title, about, height, parts, note)


def nice(most: float) -> tuple[float, float]:
    """Return the end of an axis and its step, in round numbers."""
    step = next(s * 10.0**e for e in range(-3, 12) for s in (1, 2, 5) if s * 10.0**e * 6 >= most)
    return step * -(-most // step), step


def _text(x: float, y: float, text: str, *, kind: str = "", anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"'
        + (f' class="{kind}"' if kind else "")
        + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        + (f' font-weight="{weight}"' if weight != 400 else "")
        + f">{escape(text)}</text>"
    )


def _sheet(title: str, about: str, height: int, parts: Sequence[str], note: str) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="title" font-family="system-ui, sans-serif" font-size="13">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
        _text(16, 43, f"{about}; {note}" if note else about, kind="dim"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"
