"""asset_url(): the shared cases, which the PHP implementation is held to as well."""

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

import kestrel_stack.static
from kestrel_stack.deploy.assets import AssetsSpec, compile_assets
from kestrel_stack.deploy.build.tree import File
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


ODD = ["css/shop.css", "a'b\\c.css", "$x {$y}.css", "img/é ?#&.svg", "404", "no suffix", "x.tar.gz"]
ASK = """
use function KestrelStack\\Assets\\{asset_integrity, asset_url};

require $argv[1];
foreach (array_slice($argv, 2) as $name) {
    echo json_encode([asset_url($name), asset_integrity($name)]), "\\n";
}
"""


@pytest.mark.skipif(shutil.which("php") is None, reason="php is not installed: apt install php-cli")
@pytest.mark.parametrize("php_reads", ["manifest.php", "manifest.json"])
def test_both_languages_name_the_files_that_a_release_has(release, php_reads):
    tree = {f"public/{name}": File(name.encode()) for name in ODD}
    for path, file in compile_assets(tree, AssetsSpec(("public",))).items():
        target = release / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
    if php_reads == "manifest.json":
        (release / "_assets" / "manifest.php").unlink()
    manifest = Manifest.find(release, {})
    for name in ODD:
        path = unquote(manifest.address(name).removeprefix("/assets/"))
        assert (release / "_assets" / path).read_bytes() == name.encode()
    autoload = Path(__file__).parents[2] / "php" / "autoload.php"
    done = subprocess.run(
        ["php", "-r", ASK, str(autoload), *ODD],
        env={"KESTREL_STACK_RELEASE_PATH": str(release)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [[manifest.address(name), manifest.integrity(name)] for name in ODD]
