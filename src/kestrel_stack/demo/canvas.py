"""A sheet to draw on, and writing it to a PNG. Needs Pillow (the extra ``demo``)."""

from __future__ import annotations

from pathlib import Path

from kestrel_stack.demo.errors import DemoError

DETAIL = 2
"""Pixels of the file per unit of the sizes here: sharp on dense screens, smooth on others."""

PAPER, INK, DIM, GRID = "#ffffff", "#24292f", "#57606a", "#d8dee4"
SIZES = (13, 14, 19)
"""Of the letters."""


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


class Canvas:
    """One drawing, `width` by `height`; what is drawn later lies above."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * DETAIL, height * DETAIL), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._fonts = {size: ImageFont.load_default(size * DETAIL) for size in SIZES}

    def save(self, file: Path) -> None:
        """Write the drawing to `file` in one step; raise `DemoError` when it cannot be written."""
        new = _unfinished(file)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._image.quantize(128).save(new, "PNG", optimize=True)
            new.rename(file)
        except OSError as exc:
            raise DemoError(f"the picture cannot be written to {file}: {exc.strerror}") from None

    def area(self, points: list[tuple[float, float]], bottom: float, colour: str) -> None:
        """Fill what lies between a line and `bottom`."""
        outline = [(points[0][0], bottom), *points, (points[-1][0], bottom)]
        self._draw.polygon(_scaled(outline), fill=colour)

    def line(self, points: list[tuple[float, float]], colour: str, width: int) -> None:
        """Draw from point to point."""
        self._draw.line(_scaled(points), fill=colour, width=width * DETAIL, joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a rectangle."""
        self._draw.rectangle(_scaled([(left, top), (right, bottom)]), fill=colour)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """Fill a circle."""
        self._draw.ellipse(_scaled([(x - radius, y - radius), (x + radius, y + radius)]), fill=colour)

    def text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        """Write; `anchor` is Pillow's."""
        self._draw.text((x * DETAIL, y * DETAIL), text, fill=colour, font=self._fonts[size], anchor=anchor)

    def legend(self, right: float, y: float, entries: list[tuple[str, str, str]]) -> None:
        """Write (text, colour of the text, colour of the box before it) side by side, ending at `right`."""
        for text, ink, colour in reversed(entries):
            right -= self._fonts[13].getlength(text) / DETAIL
            self.text(right, y, text, 13, ink)
            self.box(right - 14, y + 5, right - 6, y + 13, colour)
            right -= 30


def _unfinished(file: Path) -> Path:
    return file.with_name(f".{file.name}.new")


def _scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * DETAIL, y * DETAIL) for x, y in points]
