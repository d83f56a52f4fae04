"""monitoring/: alert rules and dashboard ask only for what kestrel-web exports, and do what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from kestrel_stack.web.model import View
from kestrel_stack.web.tables.exposition import Families, Moment

ROOT = Path(__file__).parents[3]
RULES = ROOT / "monitoring" / "kestrel-web.rules.yml"
DASHBOARD = json.loads((ROOT / "monitoring" / "grafana-dashboard.json").read_text())
TARGETS = {"instance", "job"}
"""Labels that Prometheus adds to everything it scrapes."""

WORDS = {
    *(
        "sum",
        "max",
        "count",
        "topk",
        "rate",
        "increase",
        "delta",
        "deriv",
        "absent",
        "time",
        "vector",
        "clamp_min",
    ),
    *("and", "or", "unless", "by", "without", "on", "ignoring"),
}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?<![\w.])([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'\s*([a-z_]+)\s*(?:=~|!~|!=|=)\s*"[^"]*"\s*')
PROMTOOL = shutil.which("promtool")


def exported() -> dict[str, set[str]]:
    """Every metric that there can be, with its labels."""
    known = {}
    for family in Families(Moment(View(), 0, "1")).collect():
        suffix = "_total" if family.type == "counter" else ""
        known[family.name + suffix] = set(family._labelnames) | TARGETS
    for family in ProcessCollector(registry=CollectorRegistry()).collect():
        known[family.name + ("_total" if family.type == "counter" else "")] = set(TARGETS)
    return known


def asked(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, and the labels that it wants of each."""
    everywhere: set[str] = set()
    for labels in _GROUPING.findall(expression):
        everywhere |= {label.strip() for label in labels.split(",") if label.strip()}
    rest = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub(" ", expression))
    found: dict[str, set[str]] = {}
    for name, matchers in _SELECTOR.findall(rest):
        if name in WORDS:
            continue
        labels = [_MATCHER.fullmatch(part) for part in matchers.split(",") if part.strip()]
        assert all(labels), f"{name}{{{matchers}}} is not understood"
        found.setdefault(name, set()).update(match[1] for match in labels)
    every = set().union(*(exported().get(name, set()) for name in found))
    assert everywhere <= every, f"{expression}: nothing here has {everywhere - every}"
    return found


def holds(expression: str) -> None:
    known = exported()
    wanted = asked(expression)
    assert wanted, expression
    for name, labels in wanted.items():
        assert name in known, f"{expression}: kestrel-web exports no {name}"
        assert labels <= known[name], f"{expression}: {name} has no {labels - known[name]}"


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str, str]]:
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_what_there_is(rule):
    holds(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize(("title", "expression", "legend"), panels(), ids=lambda text: text[:30])
def test_a_panel_asks_for_what_there_is(title, expression, legend):
    holds(expression)
    every = set().union(*(exported()[name] for name in asked(expression)))
    assert set(re.findall(r"{{(\w+)}}", legend)) <= every


@pytest.mark.parametrize(
    "wrong", ["kestrel_nothing > 1", 'kestrel_up{queue="x"}', "sum by (colour) (kestrel_up)"]
)
def test_what_there_is_not_would_be_noticed(wrong):
    with pytest.raises(AssertionError):
        holds(wrong)


def test_the_dashboard_can_be_imported_anywhere():
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("server", "queue"):
        metric, label = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", variables[name]["query"]["query"]
        ).groups()
        assert label in exported()[metric]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    assert "id" not in DASHBOARD
    places = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, f"{panel['title']} lies over another panel"
        assert at["x"] + at["w"] <= 24
        places |= cells


def promtool(*arguments: object) -> None:
    if PROMTOOL is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules():
    promtool("check", "rules", RULES)


def test_each_alert_comes_when_it_should_and_not_otherwise():
    file = Path(__file__).with_name("rules_test.yml")
    text = file.read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in text] == []
    promtool("test", "rules", file)


def test_prometheus_understands_every_panel(tmp_path):
    queries = [expression for _, expression, _ in panels()]
    plain = [
        re.sub(r"\$__rate_interval", "5m", query).replace("$server", ".*").replace("$queue", ".*")
        for query in queries
    ]
    recorded = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(plain)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", file)
