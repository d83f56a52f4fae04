"""The document read as a script: what is typed, what must come out, what is edited."""

from __future__ import annotations

import pytest
import yaml

from operations import runbook

TEXT = """# Title
<!-- chapter: one doubled -->
Words.
<!-- step: first until exit=3 -->
```console
$ echo a
a
…
$ echo b \\
> c
b c 17
```
<!-- edit: second FILE -->
```yaml
a: 1
```
<!-- remove: third FILE a.b -->
<!-- by hand: no machine -->
```console
$ reboot
```
"""


def test_a_chapter_has_its_steps_in_order():
    (chapter,) = runbook.read(TEXT)
    assert (chapter.name, chapter.doubled) == ("one", True)
    assert [step.kind for step in chapter.steps] == ["step", "edit", "remove", "by hand"]
    first = chapter.steps[0]
    assert first.commands == [("echo a", ["a"]), ("echo b \\\nc", ["b c 17"])]
    assert (first.again, first.exit_code, first.keeps) == (True, 3, "")


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ ls\n```\n",
        "<!-- chapter: a -->\n<!-- step: b -->\n<!-- step: c -->\n```\n```\n",
        "<!-- chapter: a -->\n<!-- stepp: b -->\n",
        "<!-- step: b -->\n",
    ],
    ids=["fence", "no-fence", "unknown", "no-chapter"],
)
def test_what_is_not_understood_is_refused(text: str):
    with pytest.raises(runbook.Wrong):
        runbook.read(text)


def test_numbers_and_spaces_may_be_others():
    assert runbook.missing(["mail  7   3.2 s"], "x\nmail 12 0.9 s\n") is None
    assert (
        runbook.missing(["to 20261121T212237Z-575cb1fe (1 h)"], "to 20270101T000000Z-abcdef12 (2 h)") is None
    )
    assert runbook.missing(["at 10.0.0.41:8765"], "at 172.31.92.11:8765") is None
    assert runbook.missing(["… 2 hosts"], "   3.1 s  worker1  done on 3 hosts\n") is None


@pytest.mark.parametrize(
    ("shown", "said"), [("3 answer", "2 answer"), ("3 answer", "13 answer"), ("0", "10")]
)
def test_numbers_that_a_step_is_about_must_be_those(shown: str, said: str):
    assert runbook.missing([shown], shown, exact=True) is None
    assert runbook.missing([shown], said, exact=True) == shown


def test_a_line_that_does_not_come_or_comes_too_early_is_missed():
    assert runbook.missing(["a", "b"], "b\na\n") == "b"
    assert runbook.missing(["mail  0  0"], "mail 58 0") == "mail  0  0"
    assert runbook.missing(["w … failed=0"], "w ok=5 failed=1 rescued=0") == "w … failed=0"
    assert runbook.missing(["RUNNING"], "STOPPED\n") == "RUNNING"
    assert runbook.missing(['"status": "UP"'], '"status": "READONLY"\n') == '"status": "UP"'


def test_yaml_is_merged_and_taken_out_again(tmp_path):
    path = tmp_path / "stack.yml"
    path.write_text("queues: [{name: mail, processes: 1}]\nkeys: [ssh-ed25519 AAAA old]\n")
    more = "queues: [{name: mail, processes: 2}, {name: news}]\nkeys: [ssh-ed25519 BBBB new]\n"
    for _ in range(2):  # the second time changes nothing
        runbook.edit(path, more)
        data = yaml.safe_load(path.read_text())
        assert data["queues"] == [{"name": "mail", "processes": 2}, {"name": "news"}]
        assert data["keys"] == ["ssh-ed25519 AAAA old", "ssh-ed25519 BBBB new"]
    runbook.remove(path, "queues.news")
    runbook.remove(path, "keys.old")
    data = yaml.safe_load(path.read_text())
    assert data == {"queues": [{"name": "mail", "processes": 2}], "keys": ["ssh-ed25519 BBBB new"]}
