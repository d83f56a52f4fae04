"""docs/kestrel-web.md says of kestrel-web what is so."""

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from kestrel_stack.web.config import ACTIONS, Config
from kestrel_stack.web.loading import parser
from kestrel_stack.web.model import View
from kestrel_stack.web.tables.exposition import ALERT_KINDS, Families, Moment
from kestrel_stack.web.tables.filters import parse

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "kestrel-web.md").read_text()
SCHEMA = json.loads((ROOT / "src/kestrel_stack/web/schemas/alert-v1.json").read_text())


def section(title: str) -> str:
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def table(title: str) -> list[list[str]]:
    """Rows whose first cell is code, with their cells."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section(title), re.MULTILINE)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in rows]


def default(field) -> str:
    if field.name in ("servers", "state"):
        return ""
    value = field.default_factory() if field.default is MISSING else field.default
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


def test_every_key_of_the_configuration_with_its_default():
    found = [(name, shown) for name, shown, _ in table("Configuration")]
    assert found == [(field.name, default(field)) for field in fields(Config)]


def test_every_metric_with_its_labels():
    there = [
        [f"{family.name}_total" if family.type == "counter" else family.name, ", ".join(family._labelnames)]
        for family in Families(Moment(View(), 0, "1")).collect()
    ]
    assert [row[:2] for row in table("Prometheus")] == there


def test_every_alert():
    assert [row[0] for row in table("Alerts and the webhook")] == list(ALERT_KINDS)
    assert set(SCHEMA["properties"]["kind"]["enum"]) == set(ALERT_KINDS)


def test_the_message_of_the_example_has_the_fields_of_the_schema():
    message = json.loads(re.search(r"```json\n(.*?)```", section("Alerts and the webhook"), re.DOTALL)[1])
    assert set(message) == set(SCHEMA["properties"])


def test_every_action():
    named = re.findall(r"^\| (\w+)", section("Actions"), re.MULTILINE)
    assert set(ACTIONS) <= set(named)
    assert {*ACTIONS, "drop", "action"} == set(named)


def test_filters_of_the_examples():
    examples = re.findall(r"^    (.+)$", section("Filter and sort"), re.MULTILINE)
    assert len(examples) > 4
    for example in examples:
        assert parse(example.partition("  ")[0]).terms


FLAGS = re.findall(r"(?<=\s)--[a-z-]+", re.sub(r"^    (?:python|curl) .*$", "", PAGE, flags=re.MULTILINE))


@pytest.mark.parametrize("flag", sorted(set(FLAGS)))
def test_every_flag_that_is_named(flag):
    known = {option for action in parser()._actions for option in action.option_strings}
    assert flag in known


def test_every_file_that_is_linked_is_there():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_every_place_on_the_page_that_is_linked_is_there():
    places = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= places
