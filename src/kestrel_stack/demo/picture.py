"""The outage as a PNG: how long visitors waited, and the backlog below. Needs Pillow (the extra ``demo``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from kestrel_stack.demo.chart import scale
from kestrel_stack.demo.errors import DemoError
from kestrel_stack.demo.report import Outage, duration

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT = 1000, 620
LEFT, RIGHT = 84, 28
UPPER = (92, 300)
"""Top and bottom of the upper panel, in pixels."""
LOWER = (362, 556)
DETAIL = 2
"""Pixels of the file per unit of the sizes here: sharp on dense screens, smooth on others."""

PAPER, INK, DIM, GRID = "#ffffff", "#24292f", "#57606a", "#d8dee4"
SHADE = "#fff1e5"
COLOURS = {"direct": "#bc4c00", "queued": "#0969da"}
NAMES = {"direct": "calls the API in the request", "queued": "enqueues a job"}
SHORTEST, LONGEST = 0.001, 10.0
"""Seconds at the ends of the upper axis."""


def available() -> bool:
    """Say whether Pillow is there."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return False
    return True


def check(file: Path) -> None:
    """Raise `DemoError` when no picture can be written to `file`: better now than when the story is over."""
    if file.is_dir():
        raise DemoError(f"the picture's place {file} is a folder; name a file")
    new = _unfinished(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.touch()
        new.unlink()
    except OSError as exc:
        raise DemoError(f"the picture cannot be written to {file}: {exc.strerror}") from None


def save(outage: Outage, file: Path) -> None:
    """Draw the picture and write it to `file` in one step; raise `DemoError` when it cannot be written."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH * DETAIL, HEIGHT * DETAIL), PAPER)
    _Picture(outage, ImageDraw.Draw(image)).draw()
    new = _unfinished(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(128).save(new, "PNG", optimize=True)
        new.rename(file)
    except OSError as exc:
        raise DemoError(f"the picture cannot be written to {file}: {exc.strerror}") from None


def _unfinished(file: Path) -> Path:
    return file.with_name(f".{file.name}.new")


class _Picture:
    """One drawing; coordinates are those of a picture of WIDTH by HEIGHT."""

    def __init__(self, outage: Outage, draw: ImageDraw):
        from PIL import ImageFont

        self._outage = outage
        self._draw = draw
        self._fonts = {size: ImageFont.load_default(size * DETAIL) for size in (13, 14, 19)}

    def draw(self) -> None:
        """Draw everything, from the back to the front."""
        outage = self._outage
        for top, bottom in (UPPER, LOWER):
            self._box(self._x(outage.down_at), top, self._x(outage.up_at), bottom, SHADE)
        most = max((sample.backlog for sample in outage.samples), default=0)
        self._text(LEFT, 16, "A third party's API goes down for a while, and comes back", 19)
        faults = outage.faults()
        sentence = "; ".join(faults) if faults else "all are done, none lost, none doubled"
        self._text(LEFT, 44, f"{outage.orders} orders each way; {outage.enqueued} jobs: {sentence}", 14, DIM)
        self._visits()
        self._backlog(most)

    def _visits(self) -> None:
        decades = round(math.log10(LONGEST / SHORTEST))
        axis = []
        for number in range(decades + 1):
            seconds = SHORTEST * 10**number
            label = f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"
            axis.append((self._y_of_seconds(seconds), label))
        self._panel(UPPER, axis, "What visitors waited; a cross is a request that failed")
        for visit in self._outage.visits:
            x, y = self._x(visit.at), self._y_of_seconds(visit.seconds)
            colour = COLOURS[visit.way]
            if visit.ok:
                self._draw.ellipse(
                    [(x - 1.6) * DETAIL, (y - 1.6) * DETAIL, (x + 1.6) * DETAIL, (y + 1.6) * DETAIL], colour
                )
            else:
                self._line([(x - 3, y - 3), (x + 3, y + 3)], colour, 1)
                self._line([(x - 3, y + 3), (x + 3, y - 3)], colour, 1)
        middle = (self._x(self._outage.down_at) + self._x(self._outage.up_at)) / 2
        for line, way in enumerate(COLOURS):
            visits = self._outage.phase(way, down=True)
            failed = sum(not visit.ok for visit in visits)
            longest = duration(max((visit.seconds for visit in visits), default=0.0))
            text = f"{failed} of {len(visits)} failed, the longest took {longest}"
            self._text(middle, self._y_of_seconds(0.3) + 22 * line, text, 14, COLOURS[way], "ma")
        right = WIDTH - RIGHT
        for way in reversed(COLOURS):
            right -= self._fonts[13].getlength(NAMES[way]) / DETAIL
            self._text(right, UPPER[0] - 22, NAMES[way], 13, COLOURS[way])
            self._box(right - 14, UPPER[0] - 17, right - 6, UPPER[0] - 9, COLOURS[way])
            right -= 30

    def _backlog(self, most: int) -> None:
        top, bottom = LOWER
        end = scale(most)

        def y(value: float) -> float:
            return bottom - (bottom - top) * min(1.0, value / end)

        self._panel(
            LOWER, [(y(end * part / 4), f"{end * part / 4:g}") for part in range(5)], "Jobs not yet done"
        )
        samples = self._outage.samples
        if not samples:
            return
        self._area([(self._x(s.at), y(s.backlog)) for s in samples], bottom, "#b6d4fb")
        self._area([(self._x(s.at), y(s.delayed)) for s in samples], bottom, "#8250df")
        self._line([(self._x(s.at), y(s.backlog)) for s in samples], COLOURS["queued"], 2)
        legend = (
            ("waiting for another try", "#8250df"),
            ("waiting for a worker, or in its hands", "#b6d4fb"),
        )
        right = float(WIDTH - RIGHT)
        for text, colour in reversed(legend):
            right -= self._fonts[13].getlength(text) / DETAIL
            self._text(right, top - 22, text, 13, DIM)
            self._box(right - 14, top - 17, right - 6, top - 9, colour)
            right -= 30
        for second in range(0, int(self._outage.ended_at) + 1, 5 if self._outage.ended_at > 15 else 1):
            self._line([(self._x(second), bottom), (self._x(second), bottom + 5)], DIM, 1)
            self._text(self._x(second), bottom + 8, str(second), 13, DIM, "ma")
        self._text((LEFT + WIDTH - RIGHT) / 2, bottom + 30, "seconds", 13, DIM, "ma")

    def _panel(self, panel: tuple[int, int], axis: list[tuple[float, str]], title: str) -> None:
        top, bottom = panel
        self._text(LEFT, top - 22, title, 13)
        for y, label in axis:
            self._line([(LEFT, y), (WIDTH - RIGHT, y)], GRID, 1)
            self._text(LEFT - 10, y, label, 13, DIM, "rm")
        middle = (self._x(self._outage.down_at) + self._x(self._outage.up_at)) / 2
        self._text(middle, bottom + 4, "API down", 13, COLOURS["direct"], "ma") if panel is UPPER else None
        self._line([(LEFT, bottom), (WIDTH - RIGHT, bottom)], DIM, 1)

    def _x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, at / (self._outage.ended_at or 1.0))

    @staticmethod
    def _y_of_seconds(seconds: float) -> float:
        share = math.log10(min(LONGEST, max(SHORTEST, seconds)) / SHORTEST) / math.log10(LONGEST / SHORTEST)
        return UPPER[1] - (UPPER[1] - UPPER[0]) * share

    def _area(self, points: list[tuple[float, float]], bottom: float, colour: str) -> None:
        outline = [(points[0][0], bottom), *points, (points[-1][0], bottom)]
        self._draw.polygon(_scaled(outline), fill=colour)

    def _line(self, points: list[tuple[float, float]], colour: str, width: int) -> None:
        self._draw.line(_scaled(points), fill=colour, width=width * DETAIL, joint="curve")

    def _box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._draw.rectangle(_scaled([(left, top), (right, bottom)]), fill=colour)

    def _text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        self._draw.text((x * DETAIL, y * DETAIL), text, fill=colour, font=self._fonts[size], anchor=anchor)


def _scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * DETAIL, y * DETAIL) for x, y in points]
