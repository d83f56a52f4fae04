import os

import pytest

from kestrel_stack.consumer import output
from kestrel_stack.consumer.log import Log


@pytest.fixture
def printed():
    lines = []
    made = output.Output(Log(lambda level, event, fields: lines.append(fields)))
    yield made, lines
    made.close()


def texts(lines):
    return [(fields["stream"], fields["text"]) for fields in lines]


def test_printed_lines_become_log_lines_and_half_a_line_waits(printed):
    made, lines = printed
    os.write(made.stdout, b"one\r\ntwo\nthr")
    os.write(made.stderr, b"bad\n")
    made.drain()
    assert texts(lines) == [("stdout", "one"), ("stdout", "two"), ("stderr", "bad")]
    os.write(made.stdout, b"ee\n")
    made.drain()
    assert texts(lines)[-1] == ("stdout", "three")


def test_half_a_line_is_logged_at_the_end_of_its_job(printed):
    made, lines = printed
    os.write(made.stdout, b"no end")
    made.begin(Log(lambda *_: None))
    assert texts(lines) == [("stdout", "no end")]


def test_bytes_that_are_not_text_are_shown_and_long_lines_cut(printed):
    made, lines = printed
    os.write(made.stdout, b"\xff\x00\n" + b"x" * (output.MAX_LINE + 5) + b"\n")
    made.drain()
    assert [len(text) for _, text in texts(lines)] == [5, output.MAX_LINE, 5]
    assert texts(lines)[0] == ("stdout", "\\xff\x00")


def test_the_end_of_stderr_is_kept_for_the_parked_record(printed):
    made, _ = printed
    os.write(made.stdout, b"not this")
    os.write(made.stderr, b"a" * output.TAIL + b"the end")
    made.drain()
    assert made.tail().endswith("the end")
    assert len(made.tail()) == output.TAIL
    made.begin(made.log)
    assert made.tail() == ""
