import os
from datetime import UTC, datetime

import pytest

from kestrel_stack.consumer.log import Log, line, value, write_lines

NOON = datetime(2026, 11, 21, 12, 0, 0, 5000, tzinfo=UTC)


def test_a_line_has_utc_time_level_event_and_fields():
    assert line("info", "job done", {"job": "A", "ms": 12, "x": None}, NOON) == (
        "2026-11-21T12:00:00.005Z info job done job=A ms=12"
    )


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("plain-1.2:3/4", "plain-1.2:3/4"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("a\nb\r\x00\x1b[31m", '"a\\nb\\r\\u0000\\u001b[31m"'),
        ("\u2028\u202e\x7f\x85", r'"\u2028\u202e\x7f\x85"'),
        ("Zoë", '"Zoë"'),
        (True, "true"),
        (1.5, "1.5"),
    ],
)
def test_no_value_breaks_its_line_or_reaches_a_terminal_raw(content, written):
    assert value(content) == written


def test_an_event_cannot_break_its_line():
    assert "\n" not in line("info", "a\nb", {"k\n": "v"}, NOON)


def test_an_object_that_cannot_be_shown_is_named():
    class Odd:
        def __str__(self):
            raise RuntimeError

    assert value(Odd()) == '"<Odd>"'


def test_bound_fields_are_on_every_line_and_debug_only_when_wanted():
    read, write = os.pipe()
    log = Log(write_lines(False, write)).bind(job="A")
    log.debug("hidden")
    log.warning("shown", ms=1)
    Log(write_lines(True, write)).debug("also shown")
    os.close(write)
    lines = os.read(read, 10000).decode().splitlines()
    os.close(read)
    assert [text.split(" ", 1)[1] for text in lines] == ["warning shown job=A ms=1", "debug also shown"]


def test_a_log_that_cannot_be_written_does_not_stop_the_work():
    read, write = os.pipe()
    os.close(read)
    Log(write_lines(descriptor=write)).info("into a closed pipe")
    os.close(write)
    Log(write_lines(descriptor=write)).info("into a closed descriptor")
