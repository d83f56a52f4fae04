"""A picture of a program on a terminal: ``python -m kestrel_stack.demo.terminal FILE.svg -- fab deploy``.

The program runs on a real terminal and prints what it prints there; what is on the screen at its end is
drawn.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.")


class Screen:
    """What a terminal shows of a program's output, as far as progress displays need it."""

    def __init__(self) -> None:
        self._lines: list[list[tuple[str, str]]] = [[]]
        self._row = self._column = 0
        self._style = ""

    def feed(self, text: str) -> None:
        """Take more output; a sequence must not be cut in two."""
        position = 0
        while position < len(text):
            found = _SEQUENCE.match(text, position)
            if found:
                self._sequence(found[1] or "", found[2] or "")
                position = found.end()
                continue
            self._character(text[position])
            position += 1

    def _character(self, character: str) -> None:
        if character == "\n":
            self._row += 1
        elif character == "\r":
            self._column = 0
        elif character >= " ":
            line = self._line()
            line += [(" ", "")] * (self._column - len(line))
            line[self._column : self._column + 1] = [(character, self._style)]
            self._column += 1

    def _line(self) -> list[tuple[str, str]]:
        while len(self._lines) <= self._row:
            self._lines.append([])
        return self._lines[self._row]

    def _sequence(self, numbers: str, letter: str) -> None:
        count = int(numbers) if numbers.isdigit() else 0
        match letter:
            case "m":
                self._style = "" if numbers in ("", "0") else f"{self._style}\x1b[{numbers}m"
            case "A":
                self._row = max(0, self._row - max(1, count))
            case "B":
                self._row += max(1, count)
            case "K":
                # 2: all of the line; 0: what is right of the cursor.
                del self._line()[0 if count == 2 else self._column :]
            case "J":
                del self._line()[self._column :]
                del self._lines[self._row + 1 :]

    def lines(self) -> list[Text]:
        """Return what is shown, without empty lines at the end."""
        lines = [
            Text.from_ansi("".join(f"\x1b[0m{style}{character}" for character, style in line))
            for line in self._lines
        ]
        while lines and not lines[-1].plain.strip():
            lines.pop()
        return lines


def run(command: Sequence[str], columns: int, rows: int = 50) -> tuple[int, str]:
    """Run a program on a terminal of that size; return its exit code and all that it printed."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        close_fds=True,
    )
    os.close(terminal)
    printed = bytearray()
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:
            # The last one that had the terminal open has ended.
            break
        if not part:
            break
        printed += part
        sys.stderr.write(part.decode(errors="replace"))
    os.close(controller)
    return process.wait(), printed.decode(errors="replace")


def draw(title: str, prompt: str, lines: Sequence[Text], columns: int) -> str:
    """Return the picture as SVG."""
    console = Console(
        record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text(f"$ {prompt}", style="bold"))
    for line in lines:
        console.print(line, soft_wrap=False, overflow="ellipsis", no_wrap=True)
    drawn = console.export_svg(title=title, unique_id="terminal")
    # A picture fetches nothing: the viewer's own monospaced letters do.
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the program's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kestrel_stack.demo.terminal", description="Draw a program on a terminal as SVG."
    )
    parser.add_argument("file", type=Path, help="where the picture goes")
    parser.add_argument(
        "--columns", type=int, default=110, help="the terminal's width (default: %(default)s)"
    )
    parser.add_argument("--title", default="Kestrel Stack", help="above the picture (%(default)s)")
    parser.add_argument("command", nargs="+", help="the program, after --")
    given = parser.parse_args(argv)
    try:
        code, printed = run(given.command, given.columns)
    except OSError as error:
        sys.stderr.write(f"terminal: {given.command[0]}: {error.strerror}\n")
        return 1
    screen = Screen()
    screen.feed(printed)
    shown = draw(given.title, shlex.join(given.command), screen.lines(), given.columns)
    given.file.write_text(shown, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
