"""The tables of docs/proof.md, from rows."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from support import proof, proof_picture

ROW = proof.Row(
    section="broker",
    fault="one of two servers killed",
    flavor="embedded",
    suite="bookworm",
    enqueued=101,
    acknowledged=100,
    refused=3,
    done=100,
    lost=0,
    doubled=2,
    recovery_seconds=1.25,
    allowed="at most 14: in hand",
    said="kestrel.service: status=9/KILL",
    at="2026-11-21 21:00",
    machine="4 cores",
    commit="0123456789ab",
    series={"step": 0.5, "acknowledged": [100, 0, 100, 100], "done": [90, 0, 50, 160], "fault": [0.6, 0.7]},
)


def document(tmp_path: Path, *sections: str) -> Path:
    file = tmp_path / "proof.md"
    tables = "\n\n".join(
        "\n".join([*proof.markers(name)[:1], "old", proof.markers(name)[1]]) for name in sections
    )
    file.write_text(f"# Proof\n\nBefore.\n\n{tables}\n\nAfter.\n")
    return file


def test_rows_become_a_table_between_the_markers_and_the_prose_stays(tmp_path):
    file = document(tmp_path, "broker")
    assert proof.write(file, [ROW]) == ["broker: 1 rows, 0 jobs lost"]
    text = file.read_text()
    assert "old" not in text
    assert text.startswith("# Proof\n\nBefore.\n") and text.endswith("\nAfter.\n")
    assert (
        "| one of two servers killed | 100 | 3 | 0 | 2 (at most 14, a) | 1.2 s |"
        " kestrel.service: status=9/KILL |"
    ) in text
    assert "Measured 2026-11-21 on 4 cores; commit 0123456789ab." in text


def test_writing_twice_changes_nothing_more(tmp_path):
    file = document(tmp_path, "broker")
    proof.write(file, [ROW])
    once = file.read_text()
    proof.write(file, [ROW])
    assert file.read_text() == once


def test_the_last_row_of_a_fault_counts_and_keeps_its_place(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    other = dataclasses.replace(ROW, fault="another")
    stand_in = dataclasses.replace(ROW, flavor="stand-in")
    for row in (ROW, other, stand_in, dataclasses.replace(ROW, acknowledged=7)):
        proof.add(row, file)
    rows = proof.read([file])
    assert [row.name for row in rows] == [ROW.name, other.name, stand_in.name]
    assert rows[0].acknowledged == 7


def test_the_totals_are_sums_and_a_loss_is_not_overlooked():
    table = proof.table([ROW, dataclasses.replace(ROW, fault="another", lost=4, done=96)])
    assert "| all | 200 | 6 | 4 | 4 |  |  |" in table
    assert "| **4** |" in table


def test_a_row_whose_test_failed_is_marked(tmp_path):
    failed = dataclasses.replace(ROW, failed="15 jobs were done twice")
    assert proof.cells(failed, proof.reasons([failed]))[0] == "one of two servers killed **(failed)**"
    assert proof.write(document(tmp_path, "broker"), [failed]) == ["broker: 1 rows, 0 jobs lost, 1 failed"]


def test_another_flavor_and_another_debian_are_named_in_their_row():
    cell = proof.cells(dataclasses.replace(ROW, flavor="stand-in", suite="trixie", allowed=""), {})[0]
    assert cell == "one of two servers killed *(stand-in for a release)* *(trixie)*"


def test_what_a_power_cut_costs_has_a_table_of_its_own_without_totals():
    row = dataclasses.replace(ROW, section="power loss", fault="100 ms", lost=12, recovery_seconds=0.11)
    table = proof.table([row, dataclasses.replace(row, fault="0 ms", lost=0, recovery_seconds=0.0)])
    assert "| 100 ms | 100 | 12 | 0.11 s |" in table
    assert "| 0 ms | 100 | 0 | – |" in table
    assert "| all |" not in table


def test_text_cannot_break_the_table():
    cells = proof.cells(dataclasses.replace(ROW, said="a | b\n<script> of 172.20.1.11", allowed=""), {})
    assert cells[-1] == "a \\| b &lt;script> of ADDRESS"


def test_each_reason_for_doubling_stands_below_the_table_once():
    table = proof.table(
        [ROW, dataclasses.replace(ROW, fault="another", allowed="at most 3: no answer; in hand")]
    )
    assert "2 (at most 14, a)" in table
    assert "2 (at most 3, b, a)" in table
    assert "\nDoubled: (a) in hand; (b) no answer.\n" in table


def test_another_rate_is_said():
    assert ", **at 80 jobs a second**; commit" in proof.table([dataclasses.replace(ROW, rate=80.0)])


def test_a_section_without_rows_stays_as_it_is(tmp_path):
    file = document(tmp_path, "broker", "workers")
    proof.write(file, [ROW])
    assert "<!-- proof: workers -->\nold\n<!-- proof: end of workers -->" in file.read_text()


@pytest.mark.parametrize("change", ["missing", "twice", "reversed"])
def test_markers_that_are_not_there_are_named_and_nothing_is_written(tmp_path, capsys, change):
    file = document(tmp_path, "broker")
    first, last = proof.markers("broker")
    text = file.read_text()
    text = {
        "missing": text.replace(last, ""),
        "twice": text + first,
        "reversed": text.replace(first, "X").replace(last, first).replace("X", last),
    }[change]
    file.write_text(text)
    rows = tmp_path / "rows.jsonl"
    proof.add(ROW, rows)
    assert proof.main([str(rows), f"--document={file}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"proof.md: needs the lines `{first}` and `{last}`" in said
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a row"),
        ('{"section": "broker"}', "not a row"),
        ("other section", "no such section or flavor"),
    ],
    ids=["no JSON", "not whole", "another section"],
)
def test_a_line_that_is_no_row_is_named(tmp_path, capsys, line, reason):
    rows = tmp_path / "rows.jsonl"
    proof.add(ROW, rows)
    if line == "other section":
        line = json.dumps({**dataclasses.asdict(ROW), "section": "nonsense"})
    with rows.open("a") as file:
        file.write(line + "\n")
    assert proof.main([str(rows), f"--document={document(tmp_path, 'broker')}"]) == 1
    assert re.fullmatch(rf"proof: {re.escape(str(rows))}:2: {reason}.*\n", capsys.readouterr().err)


def test_without_rows_it_says_what_makes_them(tmp_path, capsys):
    assert proof.main([str(tmp_path / "none.jsonl")]) == 1
    assert "bin/test --long faults" in capsys.readouterr().err
    assert proof.main([str(tmp_path / "none.jsonl"), "--print"]) == 0
    assert "bin/test --long faults" in capsys.readouterr().out


def test_what_is_printed_ends_with_how_to_write_the_document(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    proof.add(ROW, rows)
    assert proof.main([str(rows), "--print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| all | 100 | 3 | 0 | 2 |  |  |" in lines
    assert lines[-1] == f"To write docs/proof.md: PYTHONPATH=src:tests python -m support.proof {rows}"


def test_the_committed_document_has_every_marker_once():
    text = proof.DOCUMENT.read_text()
    for section in proof.SECTIONS:
        assert proof.put(text, section, "x")


def test_a_picture_has_the_fault_and_what_waits(tmp_path):
    rows = tmp_path / "rows.jsonl"
    proof.add(ROW, rows)
    file = document(tmp_path, "broker")
    assert proof.main([str(rows), f"--document={file}", f"--picture={ROW.fault}"]) == 0
    picture = (tmp_path / "proof.svg").read_text()
    assert picture == proof_picture.picture(ROW)
    assert 'class="fault"' in picture
    # 10 wait after the first second, none after the second one.
    assert re.search(r'class="waiting" points="64\.0,\S+ 836\.0,344\.0"', picture)


def test_a_picture_of_no_row_names_those_that_there_are(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    proof.add(ROW, rows)
    assert proof.main([str(rows), f"--document={document(tmp_path, 'broker')}", "--picture=nothing"]) == 1
    assert "there are: one of two servers killed" in capsys.readouterr().err
