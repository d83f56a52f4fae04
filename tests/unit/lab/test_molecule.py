"""What molecule runs is run as a user runs it: with the settings of ansible.cfg."""

from __future__ import annotations

import configparser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
# molecule names an inventory and the roles' folder itself.
ITS_OWN = {"inventory", "roles_path"}


def test_molecule_has_the_settings_of_ansible_cfg() -> None:
    ours = configparser.ConfigParser(interpolation=None)
    ours.read(ROOT / "ansible.cfg")
    base = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text())["ansible"]["cfg"]
    for section in ours.sections():
        for name, value in ours[section].items():
            if name not in ITS_OWN:
                said = str(base.get(section, {}).get(name)).removeprefix("${MOLECULE_PROJECT_DIRECTORY}/")
                assert said == value, f"{section}: {name}"


def test_one_scenario_shows_that_ansibles_own_strategy_does() -> None:
    plain = [
        path.parent.name
        for path in (ROOT / "molecule").glob("*/molecule.yml")
        if "cfg" in yaml.safe_load(path.read_text())["ansible"]
    ]
    assert plain == ["consumers"]
