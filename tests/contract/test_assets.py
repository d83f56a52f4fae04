"""asset_url(): the shared cases, which the PHP implementation is held to as well."""

import json
from pathlib import Path

import pytest

import kestrel_stack.static
from kestrel_stack.static import Manifest

CASES = json.loads((Path(__file__).parent / "assets" / "urls.json").read_text())


@pytest.fixture
def release(tmp_path):
    """A release, and a folder beside it."""
    folder = tmp_path / "release"
    (folder / "php" / "public").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return folder


def find(case, release):
    if case["manifest"] is not None:
        content = CASES["manifests"][case["manifest"]]
        (release / "_assets").mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (release / "_assets" / "manifest.json").write_text(text)
    environment = {name: value.format(release=release) for name, value in case.get("environment", {}).items()}
    return Manifest.find((release / case.get("start", ".")).resolve(), environment)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_an_address(case, release):
    if "error" in case:
        error = getattr(kestrel_stack.static, case["error"])
        for method in ("address", "integrity"):
            with pytest.raises(error, match=r"^[^\n]*_assets/manifest\.json[^\n]*$"):
                getattr(find(case, release), method)(case["asset"])
        return
    manifest = find(case, release)
    assert manifest.address(case["asset"]) == case["url"]
    assert manifest.integrity(case["asset"]) == case["integrity"]
