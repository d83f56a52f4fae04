"""The outage as a PNG: how long visitors waited, and the backlog below. Needs Pillow (the extra ``demo``)."""

from __future__ import annotations

import math
from pathlib import Path

from kestrel_stack.demo.canvas import DIM, GRID, Canvas, available, check
from kestrel_stack.demo.chart import scale
from kestrel_stack.demo.report import Outage, duration

__all__ = ["available", "check", "save"]

WIDTH, HEIGHT = 1000, 620
LEFT, RIGHT = 84, 28
UPPER = (92, 300)
"""Top and bottom of the upper panel, in pixels."""
LOWER = (362, 556)

SHADE = "#fff1e5"
COLOURS = {"direct": "#bc4c00", "queued": "#0969da"}
NAMES = {"direct": "calls the API in the request", "queued": "enqueues a job"}
SHORTEST, LONGEST = 0.001, 10.0
"""Seconds at the ends of the upper axis."""


def save(outage: Outage, file: Path) -> None:
    """Draw the picture and write it to `file` in one step; raise `DemoError` when it cannot be written."""
    canvas = Canvas(WIDTH, HEIGHT)
    _Picture(outage, canvas).draw()
    canvas.save(file)


class _Picture:
    """One drawing; coordinates are those of a picture of WIDTH by HEIGHT."""

    def __init__(self, outage: Outage, canvas: Canvas):
        self._outage = outage
        self._canvas = canvas

    def draw(self) -> None:
        """Draw everything, from the back to the front."""
        outage = self._outage
        for top, bottom in (UPPER, LOWER):
            self._canvas.box(self._x(outage.down_at), top, self._x(outage.up_at), bottom, SHADE)
        most = max((sample.backlog for sample in outage.samples), default=0)
        self._canvas.text(LEFT, 16, "A third party's API goes down for a while, and comes back", 19)
        faults = outage.faults()
        sentence = "; ".join(faults) if faults else "all are done, none lost, none doubled"
        self._canvas.text(
            LEFT, 44, f"{outage.orders} orders each way; {outage.enqueued} jobs: {sentence}", 14, DIM
        )
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
                self._canvas.dot(x, y, 1.6, colour)
            else:
                self._canvas.line([(x - 3, y - 3), (x + 3, y + 3)], colour, 1)
                self._canvas.line([(x - 3, y + 3), (x + 3, y - 3)], colour, 1)
        middle = (self._x(self._outage.down_at) + self._x(self._outage.up_at)) / 2
        for line, way in enumerate(COLOURS):
            visits = self._outage.phase(way, down=True)
            failed = sum(not visit.ok for visit in visits)
            longest = duration(max((visit.seconds for visit in visits), default=0.0))
            text = f"{failed} of {len(visits)} failed, the longest took {longest}"
            self._canvas.text(middle, self._y_of_seconds(0.3) + 22 * line, text, 14, COLOURS[way], "ma")
        entries = [(NAMES[way], colour, colour) for way, colour in COLOURS.items()]
        self._canvas.legend(WIDTH - RIGHT, UPPER[0] - 22, entries)

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
        self._canvas.area([(self._x(s.at), y(s.backlog)) for s in samples], bottom, "#b6d4fb")
        self._canvas.area([(self._x(s.at), y(s.delayed)) for s in samples], bottom, "#8250df")
        self._canvas.line([(self._x(s.at), y(s.backlog)) for s in samples], COLOURS["queued"], 2)
        legend = [
            ("waiting for another try", DIM, "#8250df"),
            ("waiting for a worker, or in its hands", DIM, "#b6d4fb"),
        ]
        self._canvas.legend(WIDTH - RIGHT, top - 22, legend)
        for second in range(0, int(self._outage.ended_at) + 1, 5 if self._outage.ended_at > 15 else 1):
            self._canvas.line([(self._x(second), bottom), (self._x(second), bottom + 5)], DIM, 1)
            self._canvas.text(self._x(second), bottom + 8, str(second), 13, DIM, "ma")
        self._canvas.text((LEFT + WIDTH - RIGHT) / 2, bottom + 30, "seconds", 13, DIM, "ma")

    def _panel(self, panel: tuple[int, int], axis: list[tuple[float, str]], title: str) -> None:
        top, bottom = panel
        self._canvas.text(LEFT, top - 22, title, 13)
        for y, label in axis:
            self._canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID, 1)
            self._canvas.text(LEFT - 10, y, label, 13, DIM, "rm")
        middle = (self._x(self._outage.down_at) + self._x(self._outage.up_at)) / 2
        if panel is UPPER:
            self._canvas.text(middle, bottom + 4, "API down", 13, COLOURS["direct"], "ma")
        self._canvas.line([(LEFT, bottom), (WIDTH - RIGHT, bottom)], DIM, 1)

    def _x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, at / (self._outage.ended_at or 1.0))

    @staticmethod
    def _y_of_seconds(seconds: float) -> float:
        share = math.log10(min(LONGEST, max(SHORTEST, seconds)) / SHORTEST) / math.log10(LONGEST / SHORTEST)
        return UPPER[1] - (UPPER[1] - UPPER[0]) * share
