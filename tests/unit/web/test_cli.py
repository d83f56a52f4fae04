"""What the program says before it has begun."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from kestrel_stack.web import cli

ROOT = Path(__file__).resolve().parents[3]


def test_all_that_the_extra_web_brings_is_looked_for():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["web"]
    names = {re.split("[<>=]", requirement)[0] for requirement in wanted}
    brought = packages_distributions()
    assert {brought[module][0].lower().replace("_", "-") for module in cli._NEEDED} == names


def test_what_is_not_installed_is_named_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_NEEDED", (*cli._NEEDED, "no_such_module"))
    assert cli.main(["--servers", "127.0.0.1:1"]) == cli.EX_FAILED
    said = capsys.readouterr().err
    assert said.startswith("kestrel-web: Python has no no_such_module here; install kestrel-stack[web]")
    assert said.count("\n") == 1
