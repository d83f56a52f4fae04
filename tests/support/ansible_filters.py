"""The filters of role common as a module: they live where Ansible looks for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

PATH = Path(__file__).resolve().parents[2] / "ansible/roles/common/filter_plugins/kestrel_stack.py"


def load() -> ModuleType:
    """Import the filters."""
    spec = importlib.util.spec_from_file_location("kestrel_stack_filters", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
