"""One fault of docs/proof.md drawn: what came in, what was done, and what waited, second by second."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from kestrel_stack.demo.chart import scale

if TYPE_CHECKING:
    from support.proof import Row

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 72, 56
STYLE = """
  text { fill: #24292f } .dim { fill: #57606a } .grid { stroke: #d0d7de } .paper { fill: #ffffff }
  .fault { fill: #cf222e; fill-opacity: .13 } .fault-name { fill: #cf222e }
  polyline { fill: none; stroke-width: 2.5 }
  .in { stroke: #8c959f } .done { stroke: #0969da } .waiting { stroke: #bc4c00 }
  .in-name { fill: #57606a } .done-name { fill: #0969da } .waiting-name { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .dim { fill: #8b949e } .grid { stroke: #30363d } .paper { fill: #0d1117 }
    .fault { fill: #f85149; fill-opacity: .2 } .fault-name { fill: #f85149 }
    .done { stroke: #388bfd } .waiting { stroke: #f0883e }
    .in-name { fill: #8b949e } .done-name { fill: #58a6ff } .waiting-name { fill: #f0883e }
  }
"""


def draw(row: Row, file: Path) -> None:
    """Write the picture of a row that has a series."""
    file.write_text(picture(row), encoding="utf-8")


def picture(row: Row) -> str:
    """Return the picture as SVG, for light pages and dark ones."""
    series = row.series or {}
    step = series["step"]
    per_second = max(1, round(1 / step))
    acknowledged, done = (seconds(series[name], per_second) for name in ("acknowledged", "done"))
    waiting = [a - b for a, b in zip(accumulate(acknowledged), accumulate(done), strict=True)]
    count = len(acknowledged)
    top = scale(max([*acknowledged, *done, *waiting, 1]))
    across = (WIDTH - LEFT - RIGHT) / max(count - 1, 1)

    def x(second: float) -> float:
        return LEFT + second * across

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = []
    for value in (top * part / 4 for part in range(5)):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y(value) + 4, f"{value:g}", "dim", "end"))
    for second in range(0, count, max(1, count // 8)):
        parts.append(text(x(second), HEIGHT - BOTTOM + 20, f"{second} s", "dim", "middle"))
    if series.get("fault"):
        # A point of a line is a whole second, drawn where it begins.
        begins, ends = (x(min(max(at, 0), count - 1)) for at in series["fault"])
        width = max(ends - begins, 2)
        place = f'x="{begins:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
        parts.append(f'<rect class="fault" {place}/>')
        parts.append(text(begins + width / 2, TOP - 6, "fault", "fault-name", "middle"))
    lines = (("in", acknowledged), ("done", done), ("waiting", waiting))
    for name, values in lines:
        points = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in enumerate(values))
        parts.append(f'<polyline class="{name}" points="{points}"/>')
    names = {"in": "jobs acknowledged a second", "done": "jobs done a second", "waiting": "jobs waiting"}
    left = LEFT
    for name, words in names.items():
        parts.append(text(left, HEIGHT - 10, f"— {words}", f"{name}-name"))
        left += 40 + len(words) * 7
    title = row.fault.replace("`", "")
    about = f"{row.acknowledged} jobs acknowledged, {row.lost} lost, {row.doubled} done twice; {row.at} UTC"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-labelledby="title" font-family="system-ui, sans-serif" font-size="13">',
        f'<title id="title">{escaped(title)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text x="16" y="24" font-size="15" font-weight="600">{escaped(title)}</text>',
        text(16, 43, about, "dim"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def seconds(counts: list[int], size: int) -> list[int]:
    """Add up so many counts each; a rest at the end counts as a whole one."""
    return [sum(counts[first : first + size]) for first in range(0, len(counts), size)]


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """Return some words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escaped(words)}</text>'


def escaped(words: str) -> str:
    """Return words as they may stand in SVG."""
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
