import json
import os
from datetime import UTC, datetime

import pytest

from kestrel_stack.consumer.log import KeptBack, Log, Writer, json_line, line, value

NOON = datetime(2026, 11, 21, 12, 0, 0, 5000, tzinfo=UTC).timestamp()


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
    log = Log(Writer(False, write)).bind(job="A")
    log.debug("hidden")
    log.warning("shown", ms=1)
    Log(Writer(True, write)).debug("also shown", of="text")
    os.close(write)
    first, second = os.read(read, 10000).decode().splitlines()
    os.close(read)
    assert json.loads(first) | {"time": None} == {
        "time": None,
        "level": "warning",
        "event": "shown",
        "job": "A",
        "ms": 1,
    }
    assert second.split(" ", 1)[1] == "debug also shown of=text"


def test_a_log_that_cannot_be_written_does_not_stop_the_work():
    read, write = os.pipe()
    os.close(read)
    Log(Writer(descriptor=write)).info("into a closed pipe")
    os.close(write)
    Log(Writer(descriptor=write)).info("into a closed descriptor")


@pytest.mark.parametrize(
    "content",
    [
        "plain",
        "two\nlines\r\n",
        'say "x"',
        "\x00\x1b[31m\x7f\x9b",
        "Zo\u00eb \u2028\u202e",
        "\ud800 half",
        5,
        -0.5,
        True,
    ],
)
def test_a_line_of_json_is_ascii_on_one_line_and_means_what_was_logged(content):
    text = json_line("info", "said", {"text": content, "left out": None}, NOON)
    assert text.isascii()
    assert len(text.splitlines()) == 1
    assert json.loads(text) == {
        "time": "2026-11-21T12:00:00.005Z",
        "level": "info",
        "event": "said",
        "text": content,
    }


@pytest.mark.parametrize("content", [float("nan"), float("inf"), 2**64, [1], {"a": 1}, b"x"])
def test_what_not_every_json_reader_keeps_is_text(content):
    assert json.loads(json_line("info", "said", {"it": content}))["it"] == str(content)


def test_no_field_passes_for_the_time_level_or_event_of_a_line():
    record = json.loads(json_line("info", "said", {"time": "noon", "level": "error", "event": "x"}, NOON))
    assert (record["level"], record["event"]) == ("info", "said")
    assert (record["time_"], record["level_"], record["event_"]) == ("noon", "error", "x")


def test_a_log_file_is_appended_to_and_opened_again_by_its_name(tmp_path):
    file = tmp_path / "log"
    file.write_text("before\n")
    writer = Writer(True, file=file)
    Log(writer).info("one")
    file.rename(tmp_path / "log.1")
    Log(writer).info("two")
    writer.reopen()
    Log(writer).info("three")
    assert [text.split()[-1] for text in (tmp_path / "log.1").read_text().splitlines()] == [
        "before",
        "one",
        "two",
    ]
    assert [text.split()[-1] for text in file.read_text().splitlines()] == ["three"]


def test_a_log_file_that_cannot_be_opened_again_goes_on_as_it_was(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    writer = Writer(True, file=folder / "log")
    folder.rename(tmp_path / "moved")
    with pytest.raises(OSError):
        writer.reopen()
    Log(writer).info("still here")
    assert "still here" in (tmp_path / "moved" / "log").read_text()


def kept_events(kept, capfd):
    kept.write(Writer(), Log(Writer()))
    return [json.loads(text) for text in capfd.readouterr().err.splitlines()]


def test_of_kept_lines_the_newest_stay_and_the_missing_are_counted(capfd):
    kept = KeptBack(lines=3)
    for number in range(5):
        kept.add(f"line {number}", {"job": "A"})
    records = kept_events(kept, capfd)
    assert [record["event"] for record in records] == ["lines dropped", "line 2", "line 3", "line 4"]
    assert records[0]["count"] == 2
    assert [record["level"] for record in records[1:]] == ["debug"] * 3


def test_kept_lines_have_a_size_in_bytes_too(capfd):
    kept = KeptBack(size=100)
    kept.add("a", {"text": "x" * 90})
    kept.add("b", {"text": "x" * 90})
    kept.add("c", {"text": "x" * 900})
    assert [record["event"] for record in kept_events(kept, capfd)] == ["lines dropped"]
    kept.add("d", {})
    assert [record["event"] for record in kept_events(kept, capfd)] == ["d"]


def test_what_is_forgotten_is_not_written(capfd):
    kept = KeptBack()
    kept.add("of the job before", {})
    kept.clear()
    assert kept_events(kept, capfd) == []
