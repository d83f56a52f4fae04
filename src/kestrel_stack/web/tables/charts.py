"""Sparklines and charts as SVG: drawn here, so that a page shows them without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kestrel_stack.web.tables import text

Point = tuple[float, float | None]

WIDTH, HEIGHT = 440, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 10, 24
SPARK_WIDTH, SPARK_HEIGHT = 96, 22

_TIME_STEPS = (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 432000, 864000)
_DURATION_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is its number in the style sheet, which sets colour and dashes."""

    title: str
    points: Sequence[Point]
    style: int = 1


def spark(values: Sequence[float | None] | None, label: str = "") -> Markup:
    """Return a small line without axes; nothing where there are no values."""
    known = [value for value in values or () if value is not None]
    if len(known) < 2 or values is None:
        return Markup('<span class="none" title="no history yet">–</span>')
    top = max(known) or 1
    step = SPARK_WIDTH / max(1, len(values) - 1)
    points: list[tuple[float, float | None]] = [
        (
            index * step,
            None if value is None else SPARK_HEIGHT - 1.5 - value / top * (SPARK_HEIGHT - 3),
        )
        for index, value in enumerate(values)
    ]
    path = _path(points)
    first = next(x for x, y in points if y is not None)
    last = [(x, y) for x, y in points if y is not None][-1]
    area = (
        f'<path class="spark-area" d="{path}L{_n(last[0])} {SPARK_HEIGHT}L{_n(first)} {SPARK_HEIGHT}Z"/>'
        if None not in values
        else ""
    )
    said = (
        label or f"from {text.count(known[0])} to {text.count(known[-1])}, at most {text.count(max(known))}"
    )
    return Markup(  # noqa: S704 - numbers, and one text that is escaped
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(said)}"><title>{escape(said)}</title>{area}'
        f'<path class="spark-line" d="{path}"/></svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """Return the drawing of a line with its gaps; a point between two gaps becomes a dot."""
    parts: list[str] = []
    pen_down = False
    for index, (x, y) in enumerate(points):
        if y is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{_n(x)} {_n(y)}")
        alone = not pen_down and (index + 1 == len(points) or points[index + 1][1] is None)
        if alone:
            parts.append("h0.01")
        pen_down = True
    return "".join(parts)


def ticks(top: float, kind: str = "count", wanted: int = 4) -> list[float]:
    """Return round values from 0 to at least `top`, for an axis."""
    if not top > 1e-6:
        top = 1.0
    if kind == "seconds":
        step = next((each for each in _DURATION_STEPS if top / each <= wanted + 1), 0)
        if not step:
            step = 86400 * math.ceil(top / 86400 / wanted)
    elif kind == "bytes":
        step = 2 ** math.ceil(math.log2(max(1.0, top / wanted)))
    else:
        rough = top / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        if kind == "count":
            step = max(1, round(step))
    return [index * step for index in range(math.ceil(top / step - 1e-9) + 1)]


def time_ticks(start: float, end: float, wanted: int = 5) -> list[float]:
    """Return round moments of this machine's time zone between two moments."""
    step = next((each for each in _TIME_STEPS if (end - start) / each <= wanted), _TIME_STEPS[-1])
    moment = text.when(start)
    offset = moment.utcoffset().total_seconds() if moment and moment.utcoffset() is not None else 0  # type: ignore[union-attr]
    first = math.ceil((start + offset) / step) * step - offset
    return [first + index * step for index in range(int((end - first) // step) + 1)]


def _time_label(at: float, span: float) -> str:
    moment = text.when(at)
    if moment is None:
        return ""
    if span <= 2 * 86400:
        return moment.strftime("%H:%M")
    return moment.strftime("%a %d" if span <= 8 * 86400 else "%d %b")


def chart(
    title: str,
    series: Sequence[Series],
    start: float,
    end: float,
    *,
    kind: str = "count",
    limit: float | None = None,
    limit_text: str = "",
) -> Markup:
    """Return a chart over time with axes, a legend for more than one line, and its limit.

    Gaps in the points are gaps in the line. The page has the same numbers as a table.
    """
    values = [value for line in series for _, value in line.points if value is not None]
    top = max([*values, 0])
    # A limit far above everything would press the line flat; then it is said in words only.
    drawn_limit = limit if limit is not None and (top == 0 or limit <= top * 4) else None
    scale = ticks(max(top, drawn_limit or 0), kind)
    highest = scale[-1]
    say: Callable[[float], str] = {"rate": text.rate, "seconds": text.duration, "bytes": text.size}.get(
        kind, text.count
    )
    span = max(1e-9, end - start)

    def x_of(at: float) -> float:
        return _LEFT + (at - start) / span * (WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - value / highest * (HEIGHT - _TOP - _BOTTOM)

    out: list[str] = []
    for value in scale:
        y = _n(y_of(value))
        out.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>')
        out.append(
            f'<text class="axis" x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{escape(say(value))}</text>'
        )
    for at in time_ticks(start, end):
        x = _n(x_of(at))
        # The last one would be cut off where it is wider than what is left.
        cut = x_of(at) > WIDTH - 22
        at_x, anchor = (WIDTH - 2, "end") if cut else (x, "middle")
        out.append(
            f'<line class="tick" x1="{x}" y1="{HEIGHT - _BOTTOM}" x2="{x}" y2="{HEIGHT - _BOTTOM + 4}"/>'
        )
        out.append(
            f'<text class="axis" x="{at_x}" y="{HEIGHT - 5}" text-anchor="{anchor}">'
            f"{escape(_time_label(at, span))}</text>"
        )
    for line in series:
        points = [
            (x_of(at), None if value is None else y_of(value))
            for at, value in line.points
            if start <= at <= end
        ]
        out.append(f'<path class="line line-{line.style}" d="{_path(points)}"/>')
    if drawn_limit is not None:
        y = y_of(drawn_limit)
        out.append(
            f'<line class="limit" x1="{_LEFT}" y1="{_n(y)}" x2="{WIDTH - _RIGHT}" y2="{_n(y)}"/>'
            f'<text class="limit-text" x="{WIDTH - _RIGHT - 4}" y="{_n(y - 4 if y > 20 else y + 12)}" '
            f'text-anchor="end">{escape(limit_text or "limit " + say(drawn_limit))}</text>'
        )
    if not values:
        out.append(
            f'<text class="chart-empty" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT / 2:.0f}" '
            'text-anchor="middle">nothing recorded in this time</text>'
        )
    said = title + ": " + "; ".join(_summary(line, say) for line in series)
    return Markup(  # noqa: S704 - numbers, and texts that are escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}" '
        f'data-points="{escape(_readings(series, x_of, start, end, say))}">'
        f"{''.join(out)}</svg>"
    )


def _readings(
    series: Sequence[Series],
    x_of: Callable[[float], float],
    start: float,
    end: float,
    say: Callable[[float], str],
) -> str:
    """Return what a pointer over the chart reads: ``x|14:03:05|1.2 k`` per moment, separated by ``;``."""
    moments: dict[float, list[str]] = {}
    for line in series:
        for at, value in line.points:
            if start <= at <= end and value is not None:
                said = say(value) if len(series) == 1 else f"{line.title.split()[0]} {say(value)}"
                moments.setdefault(at, []).append(said)
    return ";".join(
        f"{_n(x_of(at))}|{text.clock(at, end)}|{', '.join(said)}" for at, said in sorted(moments.items())
    )


def _summary(line: Series, say: Callable[[float], str]) -> str:
    known = [value for _, value in line.points if value is not None]
    if not known:
        return f"{line.title} not known"
    return f"{line.title} now {say(known[-1])}, from {say(min(known))} to {say(max(known))}"
