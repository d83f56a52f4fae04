import importlib
import sys
from pathlib import Path

import pytest

SHOP = Path(__file__).parents[3] / "examples" / "shop"


@pytest.fixture
def shop(monkeypatch, tmp_path):
    """Import modules of the shop as its workers do, with a `var` of its own: ``shop("ledger")``."""
    monkeypatch.syspath_prepend(str(SHOP))
    monkeypatch.setenv("SHOP_VAR", str(tmp_path))
    monkeypatch.delenv("SHOP_PARTNER_URL", raising=False)
    yield lambda name: importlib.import_module(f"shop.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        del sys.modules[name]
