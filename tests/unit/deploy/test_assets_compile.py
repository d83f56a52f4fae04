"""From folders of the commit to files that never change."""

import base64
import gzip
import hashlib
import json
import re
import subprocess

import brotli
import pytest

from kestrel_stack.deploy.assets import MANIFESTS, AssetsSpec, compile_assets
from kestrel_stack.deploy.build.tree import File
from kestrel_stack.deploy.errors import Refused
from support.deploy import ROOT

PUBLIC = AssetsSpec(("public",))


def compiled(files, spec=PUBLIC, **kwargs):
    tree = {path: data if isinstance(data, File) else File(as_bytes(data)) for path, data in files.items()}
    return compile_assets(tree, spec, **kwargs)


def as_bytes(data):
    return data.encode() if isinstance(data, str) else data


def manifest(made):
    return json.loads(made["_assets/manifest.json"].data)


def name_of(made, name):
    return manifest(made)["files"][name]["path"]


def text_of(made, name):
    return made[f"_assets/{name_of(made, name)}"].data.decode()


def rewritten(css, others=(), name="css/a.css", spec=PUBLIC, content="x"):
    """A style sheet after the deploy, with HASH for each hash."""
    files = {f"public/{other}": content for other in others}
    made = compiled({f"public/{name}": css, **files}, spec)
    return re.sub(r"\.[0-9a-f]{16}(?=\.|\b)", ".HASH", text_of(made, name))


# --- names and manifest -----------------------------------------------------------------------------


def test_a_name_has_the_hash_of_the_content():
    made = compiled({"public/js/app.min.js": "x = 1;\n"})
    digest = hashlib.sha256(b"x = 1;\n").hexdigest()
    assert f"_assets/js/app.min.{digest[:16]}.js" in made


def test_the_manifest_says_everything_of_a_file():
    data = b"body {}\n"
    content = manifest(compiled({"public/a.css": data}))
    digest = hashlib.sha256(data).hexdigest()
    integrity = base64.b64encode(hashlib.sha384(data).digest()).decode()
    assert content == {
        "version": 1,
        "url": "/assets/",
        "files": {
            "a.css": {
                "path": f"a.{digest[:16]}.css",
                "sha256": digest,
                "size": len(data),
                "integrity": f"sha384-{integrity}",
            }
        },
    }


def test_every_entry_describes_the_file_that_is_served():
    files = {
        "public/a.css": "@import 'b.css';",
        "public/b.css": "i{background:url(i.png)}",
        "public/i.png": "i",
    }
    made = compiled(files)
    for entry in manifest(made)["files"].values():
        data = made[f"_assets/{entry['path']}"].data
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["size"] == len(data)


def test_files_without_a_suffix_and_with_odd_names():
    made = compiled({"public/LICENSE": "x", "public/img/a b'é.svg": "<svg/>", "public/manifest.json": "{}"})
    assert re.fullmatch(r"LICENSE\.[0-9a-f]{16}", name_of(made, "LICENSE"))
    assert re.fullmatch(r"img/a b'é\.[0-9a-f]{16}\.svg", name_of(made, "img/a b'é.svg"))
    assert re.fullmatch(r"manifest\.[0-9a-f]{16}\.json", name_of(made, "manifest.json"))


def test_same_tree_same_files_in_any_order():
    files = {
        "public/a.css": "a{background:url(i.svg)}",
        "public/i.svg": "<svg/>" * 50,
        "public/b.js": "x" * 99,
    }
    assert compiled(files) == compiled(dict(reversed(files.items())))


def test_nothing_else_of_the_application_is_in_it():
    made = compiled(
        {"public/a.css": "a{}", "shop/jobs.py": "x", "publicity.css": "b{}", "public2/c.css": "c{}"}
    )
    assert list(manifest(made)["files"]) == ["a.css"]


def test_several_folders_are_one_space_of_names():
    made = compiled({"public/a.css": "a{}", "web/dist/js/b.js": "b"}, AssetsSpec(("public", "web/dist")))
    assert list(manifest(made)["files"]) == ["a.css", "js/b.js"]
    with pytest.raises(Refused, match=r"public/a\.css and web/dist/a\.css would both be a\.css: rename"):
        compiled({"public/a.css": "a", "web/dist/a.css": "b"}, AssetsSpec(("public", "web/dist")))


def test_a_folder_without_files_is_refused():
    with pytest.raises(Refused, match=r"assets\.folders: the commit has no file in public$"):
        compiled({"publics/a.css": "a"})


def test_ignored_files_are_left_out():
    spec = AssetsSpec(("public",), ignore=("*.psd", "drafts/"))
    made = compiled({"public/a.css": "a", "public/img/a.psd": "p", "public/drafts/b.css": "b"}, spec)
    assert list(manifest(made)["files"]) == ["a.css"]


def test_code_and_hidden_files_are_never_published():
    files = {
        f"public/{name}": "secret"
        for name in (
            "index.php",
            "x/INDEX.PHP",
            "a.phtml",
            "b.inc",
            "c.py",
            "index.php~",
            "d.php.bak",
            "config.inc.php.dist",
            "e.SQL.old~",
            ".htaccess",
            ".git/config",
            "x/.env",
        )
    }
    made = compiled({"public/a.css": "a{}", **files})
    assert list(manifest(made)["files"]) == ["a.css"]
    assert not any(b"secret" in file.data for file in made.values())


def test_the_web_server_knows_every_name_that_is_given_as_one_with_a_hash():
    template = (ROOT / "templates/etc/kestrel-stack/web/nginx.conf.j2").read_text()
    pattern = re.search(r'"~(.+)" "public, max-age=31536000, immutable";', template)[1]
    names = ("a.css", "LICENSE", "x.tar.gz", "404", "my-photo.final.PNG", "dir.v2/font.woff2", ".well/x.txt~")
    given = compiled({f"public/{name.lstrip('.')}": "x" * 500 for name in names})
    served = [f"/{path}" for path in given if path not in MANIFESTS]
    assert len(served) > len(names)  # compressed copies as well
    assert [path for path in served if not re.search(pattern, path)] == []
    for plain in ("/_assets/a.css", "/_assets/manifest.json", "/_assets/LICENSE", "/_assets/v1.2.3/a.js"):
        assert not re.search(pattern, plain)


def test_a_link_to_a_folder_is_refused_unless_it_is_ignored():
    tree = {
        "public/a.css": File(b"a{}"),
        "public/lib": File(link="../node_modules/lib/dist"),
        "node_modules/lib/dist/lib.css": File(b"b{}"),
    }
    with pytest.raises(Refused) as caught:
        compile_assets(tree, AssetsSpec(("public",)))
    for words in (
        "public/lib is a link to the folder node_modules/lib/dist",
        "assets.folders",
        "assets.ignore",
    ):
        assert words in str(caught.value)
    made = compile_assets(tree, AssetsSpec(("public",), ignore=("lib",)))
    assert not any("lib" in name for name in made)
    beside = compile_assets(tree, AssetsSpec(("public", "node_modules/lib/dist"), ignore=("/lib",)))
    assert any(name.startswith("_assets/lib.") and name.endswith(".css") for name in beside)


def test_links_inside_the_application_are_followed_and_others_left_out():
    made = compiled(
        {
            "public/a.css": File(link="../src/style/a.css"),
            "src/style/a.css": "a{}",
            "public/twice.css": File(link="a.css"),
            "public/storage": File(link="../var/storage"),
            "public/passwd": File(link="/etc/passwd"),
            "public/out": File(link="../../../out"),
            "public/round": File(link="round"),
        }
    )
    assert list(manifest(made)["files"]) == ["a.css", "twice.css"]
    assert text_of(made, "twice.css") == "a{}"


@pytest.mark.parametrize("name", ["a\nb.css", "a\udcff.css"])
def test_a_name_that_no_manifest_can_hold_is_refused(name):
    with pytest.raises(Refused, match="not UTF-8 text of one line: rename it") as refused:
        compiled({f"public/{name}": "a{}"})
    assert "\n" not in str(refused.value)


# --- references of style sheets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("css", "expected"),
    [
        ("a{background:url(../img/i.png)}", "a{background:url(../img/i.HASH.png)}"),
        ("a{background:url( '../img/i.png' )}", "a{background:url( '../img/i.HASH.png' )}"),
        ('a{background:URL("../img/i.png")}', 'a{background:URL("../img/i.HASH.png")}'),
        (
            "a{background:url(../img/i.png),url(../img/i.png)}",
            "a{background:url(../img/i.HASH.png),url(../img/i.HASH.png)}",
        ),
        ("a{b:url(../img/./x/../i.png)}", "a{b:url(../img/i.HASH.png)}"),
        ("a{b:url(../img/i.png?#iefix)}", "a{b:url(../img/i.HASH.png?#iefix)}"),
        ("a{b:url('../img/i.png?v=2#x')}", "a{b:url('../img/i.HASH.png?v=2#x')}"),
        ("a{b:url(/img/i.png)}", "a{b:url(../img/i.HASH.png)}"),
        ("a{b:url(/assets/img/i.png)}", "a{b:url(../img/i.HASH.png)}"),
        ("a{b:url(/public/img/i.png)}", "a{b:url(../img/i.HASH.png)}"),
        ("a{b:url(../img/a%20b.png)}", "a{b:url(../img/a%20b.HASH.png)}"),
        ("a{b:url(../img/a\\ b.png)}", "a{b:url(../img/a%20b.HASH.png)}"),
        ("a{b:url('../img/a b.png')}", "a{b:url('../img/a%20b.HASH.png')}"),
        ("a{b:url(../img/\\69.png)}", "a{b:url(../img/i.HASH.png)}"),
        ("a{b:url(../img/it\\'s\\(1\\).png)}", "a{b:url(../img/it%27s%281%29.HASH.png)}"),
        ("@import 'b.css';", "@import 'b.HASH.css';"),
        ('@import"b.css" screen;', '@import"b.HASH.css" screen;'),
        ("@import/* why */ 'b.css';", "@import/* why */ 'b.HASH.css';"),
        (
            "@import url(b.css) layer(x) supports(display: grid);",
            "@import url(b.HASH.css) layer(x) supports(display: grid);",
        ),
        ("@IMPORT url('b.css');", "@IMPORT url('b.HASH.css');"),
        (
            "a{b:image-set('../img/i.png' type('image/png') 1x, url(../img/i.png) 2x)}",
            "a{b:image-set('../img/i.HASH.png' type('image/png') 1x, url(../img/i.HASH.png) 2x)}",
        ),
        ("a{b:-webkit-image-set('../img/i.png' 1x)}", "a{b:-webkit-image-set('../img/i.HASH.png' 1x)}"),
        (
            "@font-face{src:local('x'),url(../img/i.png)format('woff')}",
            "@font-face{src:local('x'),url(../img/i.HASH.png)format('woff')}",
        ),
        ("a{}/*# sourceMappingURL=a.css.map */", "a{}/*# sourceMappingURL=a.css.HASH.map */"),
        ("a{}/*@ sourceMappingURL=a.css.map?x */", "a{}/*@ sourceMappingURL=a.css.HASH.map?x */"),
        ("\ufeffa{b:url(../img/i.png)}", "\ufeffa{b:url(../img/i.HASH.png)}"),
    ],
)
def test_a_reference_becomes_the_hashed_name(css, expected):
    others = ["img/i.png", "img/a b.png", "img/it's(1).png", "css/b.css", "css/a.css.map"]
    assert rewritten(css, others, content="") == expected


@pytest.mark.parametrize(
    "css",
    [
        "a{b:url(data:image/png;base64,AAAA)}",
        "a{b:url(\"data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>\")}",
        "a{b:url(data:image/svg+xml;utf8,<svg fill='url(#x)'/>)}",
        "a{b:url(https://example.org/i.png)}",
        "a{b:url(//example.org/i.png)}",
        "a{b:url(#shape)}",
        "a{b:url()}",
        "a{b:url('')}",
        "a{b:url(?x)}",
        "a{b:url(/api/portrait.png)}",
        "a{b:url(var(--x))}",
        "a{content:'url(nowhere.png)'}",
        'a{content:"it\'s \\" url(nowhere.png)"}',
        "/* url(nowhere.png) @import 'nowhere.css'; */",
        "/* an open comment url(nowhere.png)",
        "a{b:my-url(nowhere.png)}",
        "a{content:'nowhere.png'}",
        "a{b:type('nowhere.png')}",
        "@namespace url(http://www.w3.org/1999/xhtml);",
        '@charset "utf-8";',
        "a{}/*# sourceMappingURL=nowhere.map */",
        "a{content:'open\nb{c:d}",
        ")))",
    ],
)
def test_what_is_no_reference_to_an_asset_stays(css):
    assert rewritten(css) == css


def test_bytes_that_are_not_utf_8_come_out_as_they_went_in():
    css = b"/* \xe9\xff */ a{b:url(i.png)}"
    made = compiled({"public/a.css": css, "public/i.png": "i"})
    name = name_of(made, "i.png").encode()
    assert made[f"_assets/{name_of(made, 'a.css')}"].data == b"/* \xe9\xff */ a{b:url(" + name + b")}"


def test_the_address_is_relative_also_on_a_cdn():
    spec = AssetsSpec(("public",), "https://cdn.example.org/shop/")
    others = ["img/i.png"]
    assert rewritten("a{b:url(/img/i.png)}", others, spec=spec) == "a{b:url(../img/i.HASH.png)}"
    # A path of the site that looks like the CDN's is none of the assets.
    assert rewritten("a{b:url(/shop/i.png)}", others, spec=spec) == "a{b:url(/shop/i.png)}"


def test_a_changed_picture_changes_the_names_of_all_that_leads_to_it():
    files = {
        "public/a.css": "@import 'b.css';",
        "public/b.css": "b{background:url(i.png)}",
        "public/other.css": "c{}",
        "public/i.png": "one",
    }
    before, after = compiled(files), compiled({**files, "public/i.png": "two"})
    changed = [name for name in manifest(before)["files"] if name_of(before, name) != name_of(after, name)]
    assert changed == ["a.css", "b.css", "i.png"]


def test_a_style_sheet_that_imports_itself_through_another_is_refused():
    files = {
        "public/a.css": "@import 'b.css';",
        "public/b.css": "@import 'sub/c.css';",
        "public/sub/c.css": "@import '../b.css';",
    }
    with pytest.raises(Refused) as refused:
        compiled(files)
    assert str(refused.value) == (
        "assets: style sheets that need each other's name:"
        " public/b.css -> public/sub/c.css -> public/b.css: break the circle"
    )


@pytest.mark.parametrize(
    ("css", "message"),
    [
        (
            "\n\na{b:url(nowhere.png)}",
            "public/css/a.css line 3: nowhere.png: there is no css/nowhere.png in public",
        ),
        ("@import 'nowhere.css';", "line 1: nowhere.css: there is no css/nowhere.css in public"),
        ("a{b:url(/img/no.png)}", "/img/no.png: there is no img/no.png in public"),
        ("a{b:url(/assets/no.png)}", "/assets/no.png: there is no no.png in public"),
        ("a{b:url(../../i.png)}", "../../i.png: leads out of the folder"),
        ("a{b:url(../img/i.psd)}", "img/i.psd is left out by assets.ignore"),
        ("a{b:url(../i.php)}", "i.php is never published, since it may be code"),
        ("a{b:url(../.i.png)}", ".i.png is hidden"),
        ("a{b:url(../img)}", "there is no img in public"),
        ("a{b:image-set('no.png' 1x)}", "there is no css/no.png in public"),
    ],
)
def test_a_reference_to_what_is_not_there_is_named(css, message):
    files = {
        "public/css/a.css": css,
        "public/img/i.png": "i",
        "public/img/i.psd": "p",
        "public/i.php": "p",
        "public/.i.png": "h",
    }
    with pytest.raises(Refused) as refused:
        compiled(files, AssetsSpec(("public",), ignore=("*.psd",)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_missing_files_are_named_at_once_up_to_five():
    css = "".join(f"a{{b:url({number}.png)}}\n" for number in range(7))
    with pytest.raises(Refused) as refused:
        compiled({"public/a.css": css})
    assert "line 1: 0.png" in str(refused.value)
    assert "line 5: 4.png" in str(refused.value)
    assert str(refused.value).endswith("; and 2 more")


# --- scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("x();\n//# sourceMappingURL=a.js.map\n", "x();\n//# sourceMappingURL=a.js.HASH.map\n"),
        ("x();\r\n//# sourceMappingURL=a.js.map\r\n", "x();\r\n//# sourceMappingURL=a.js.HASH.map\r\n"),
        ("//# sourceMappingURL=a.js.map\n// end\n", "//# sourceMappingURL=a.js.HASH.map\n// end\n"),
        ("//# sourceMappingURL=a.js.map\nx();\n",) * 2,
        ("//# sourceMappingURL=nowhere.map\n",) * 2,
        ("//# sourceMappingURL=data:application/json;base64,e30=\n",) * 2,
        ("x('url(nowhere.png)');\n",) * 2,
    ],
)
def test_a_script_names_its_map(script, expected):
    assert rewritten(script, ["a.js.map"], name="a.js") == expected


# --- copies ----------------------------------------------------------------------------------------------


def copies_of(made, name):
    path = f"_assets/{name_of(made, name)}"
    return [other.removeprefix(path) for other in made if other.startswith(f"{path}.")]


def test_copies_hold_the_same():
    made = compiled({"public/a.css": "a { color: red }\n" * 100})
    plain = f"_assets/{name_of(made, 'a.css')}"
    assert copies_of(made, "a.css") == [".br", ".gz"]
    assert gzip.decompress(made[f"{plain}.gz"].data) == made[plain].data
    assert brotli.decompress(made[f"{plain}.br"].data) == made[plain].data
    assert len(made[f"{plain}.br"].data) < len(made[f"{plain}.gz"].data) < len(made[plain].data)


def test_copies_are_made_only_where_they_are_smaller_and_only_of_what_shrinks():
    noise = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(20))
    made = compiled(
        {
            "public/tiny.css": "a{}",
            "public/noise.svg": noise,
            "public/i.png": b"x" * 5000,
            "public/empty.js": "",
        }
    )
    assert {name: copies_of(made, name) for name in manifest(made)["files"]} == {
        "empty.js": [],
        "i.png": [],
        "noise.svg": [],
        "tiny.css": [],
    }


def test_a_gzip_copy_says_nothing_of_time_or_machine():
    made = compiled({"public/a.css": "a { color: red }\n" * 100})
    data = made[f"_assets/{name_of(made, 'a.css')}.gz"].data
    assert data[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"


def test_the_cache_changes_nothing_and_is_used(tmp_path):
    files = {"public/a.css": "a { color: red }\n" * 100}
    made = compiled(files, cache=tmp_path)
    assert made == compiled(files)
    assert made == compiled(files, cache=tmp_path)
    for path in tmp_path.rglob("*.gz"):
        path.write_bytes(b"kept")
    plain = f"_assets/{name_of(made, 'a.css')}"
    assert compiled(files, cache=tmp_path)[f"{plain}.gz"].data == b"kept"


# --- the manifest for PHP --------------------------------------------------------------------------------


def test_php_reads_the_same_manifest(tmp_path, needs_php):
    files = {"public/a'b\\c.css": "a{}", "public/$x {$y}.css": "b{}", "public/é.js": "c", "public/404": "d"}
    made = compiled(files)
    path = tmp_path / "manifest.php"
    path.write_bytes(made["_assets/manifest.php"].data)
    done = subprocess.run(
        ["php", "-r", "echo json_encode(require $argv[1]);", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == manifest(made)


@pytest.fixture
def needs_php():
    try:
        subprocess.run(["php", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("php is not installed: apt install php-cli")
