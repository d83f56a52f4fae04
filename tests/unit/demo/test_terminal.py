"""What a terminal shows at a program's end, and its picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kestrel_stack.demo import terminal


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("10 %\r100 %\r\n", ["100 %"]),
        ("a long line\r\x1b[2Kshort\r\n", ["short"]),
        ("one\r\nprogress\r\n\x1b[1A\x1b[2Ktwo\r\n", ["one", "two"]),
        ("kept\r\nbar\r\nbar\r\n\x1b[2A\x1b[Jdone\r\n", ["kept", "done"]),
        ("\x1b[?25l\x1b[1;32mgreen\x1b[0m plain\x1b[?25h", ["green plain"]),
        ("a\x1b]0;title\x07b", ["ab"]),
    ],
    ids=["lines", "return", "erased", "one up", "two up", "colours", "title"],
)
def test_the_screen_shows_what_a_terminal_would(printed: str, shown: list[str]) -> None:
    screen = terminal.Screen()
    screen.feed(printed)
    assert [line.plain for line in screen.lines()] == shown


def test_a_colour_stays_with_its_letters() -> None:
    screen = terminal.Screen()
    screen.feed("\x1b[31mred\x1b[0m plain")
    [line] = screen.lines()
    assert {str(span.style) for span in line.spans if line.plain[span.start : span.end].strip()} == {
        "color(1)"
    }


def test_a_program_is_drawn_as_it_is_on_a_terminal_and_its_exit_code_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import sys, os; print(sys.stdout.isatty(), os.get_terminal_size().columns); sys.exit(3)"
    code = terminal.main(
        [str(tmp_path / "picture.svg"), "--columns", "70", "--", sys.executable, "-c", script]
    )
    assert code == 3
    drawn = (tmp_path / "picture.svg").read_text()
    assert drawn.startswith("<svg")
    assert "url(http" not in drawn
    assert "True&#160;70" in drawn
    assert "True 70" in capsys.readouterr().err


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.main([str(tmp_path / "picture.svg"), "--", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err == f"terminal: {tmp_path / 'nothing'}: No such file or directory\n"
    assert not (tmp_path / "picture.svg").exists()
