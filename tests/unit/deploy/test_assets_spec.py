"""deploy.yml's key assets: what it says, and what is refused with the fix."""

import re
from pathlib import Path

import pytest

from kestrel_stack.deploy.appspec import parse_app_spec
from kestrel_stack.deploy.assets import AssetsSpec, parse_assets
from kestrel_stack.deploy.assets.spec import S3, Rsync, ignored
from kestrel_stack.deploy.errors import Refused

DOCS = Path(__file__).parents[3] / "docs"


def parse(value):
    return parse_assets(value, "deploy.yml")


def test_folders_alone_are_enough():
    assert parse({"folders": ["public"]}) == AssetsSpec(("public",), "/assets/", (), None)


def test_no_key_is_no_assets():
    assert parse(None) is None


def test_everything():
    value = {
        "folders": ["public", "web/static/"],
        "url": "https://cdn.example.org/shop",
        "ignore": ["*.psd", "drafts/"],
        "cdn": {
            "s3": {
                "bucket": "shop-assets",
                "prefix": "/shop/",
                "endpoint": "https://s3.example.org",
                "region": "eu-central-1",
                "acl": "public-read",
            }
        },
    }
    assert parse(value) == AssetsSpec(
        ("public", "web/static"),
        "https://cdn.example.org/shop/",
        ("*.psd", "drafts/"),
        S3("shop-assets", "shop/", "https://s3.example.org", "eu-central-1", "public-read"),
    )


@pytest.mark.parametrize(
    "target",
    [
        "deploy@cdn.example.org:/srv/cdn",
        "cdn:assets/",
        "rsync://u@cdn.example.org/assets",
        "/srv/cdn",
        "[::1]:/srv",
    ],
)
def test_rsync_targets(target):
    cdn = parse({"folders": ["public"], "cdn": {"rsync": target}}).cdn
    assert cdn == Rsync(target if target.endswith("/") else f"{target}/")


@pytest.mark.parametrize(
    "url",
    ["/assets", "/static/app/", "//cdn.example.org/", "http://127.0.0.1:8080/x", "https://cdn.example.org"],
)
def test_addresses(url):
    assert parse({"folders": ["public"], "url": url}).url == (url if url.endswith("/") else f"{url}/")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("public", "assets must be a mapping with the keys folders, url, ignore, cdn"),
        ([], "assets must be a mapping"),
        ({}, "assets.folders is missing"),
        ({"folder": ["public"]}, "unknown key assets.folder: did you mean folders?"),
        ({"folders": "public"}, "assets.folders must be a list"),
        ({"folders": []}, "assets.folders is missing"),
        ({"folders": ["/public"]}, "'/public' is not a folder inside the application"),
        ({"folders": ["../public"]}, "'../public' is not a folder inside the application"),
        ({"folders": ["."]}, "'.' is not a folder inside the application"),
        ({"folders": [7]}, "7 is not a folder inside the application"),
        ({"folders": ["public", "public/img"]}, "public/img is in public, which is named already"),
        ({"folders": ["public", "public"]}, "public is in public, which is named already"),
        ({"folders": ["p"], "url": "assets/"}, "'assets/' is neither a path"),
        ({"folders": ["p"], "url": "ftp://cdn.example.org/"}, "is neither a path"),
        ({"folders": ["p"], "url": "https://"}, "is neither a path"),
        ({"folders": ["p"], "url": "//"}, "is neither a path"),
        ({"folders": ["p"], "url": "https://me:secret@cdn.example.org/"}, "is neither a path"),
        ({"folders": ["p"], "url": "https://cdn.example.org:x/"}, "is neither a path"),
        ({"folders": ["p"], "url": "/a?b"}, "is neither a path"),
        ({"folders": ["p"], "url": '/"onload='}, "is neither a path"),
        ({"folders": ["p"], "url": ""}, "is neither a path"),
        ({"folders": ["p"], "ignore": "*.psd"}, "assets.ignore must be a list"),
        ({"folders": ["p"], "ignore": ["/"]}, "'/' is not a pattern"),
        ({"folders": ["p"], "ignore": [1]}, "1 is not a pattern"),
        ({"folders": ["p"], "cdn": {}}, "assets.cdn must name one target, s3 or rsync"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "abc"}, "rsync": "/x"}}, "must name one target"),
        ({"folders": ["p"], "cdn": {"ftp": "x"}}, "unknown key assets.cdn.ftp"),
        ({"folders": ["p"], "cdn": {"s3": "bucket"}}, "assets.cdn.s3 must be a mapping"),
        ({"folders": ["p"], "cdn": {"s3": {}}}, "'' is not a bucket's name"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "a/b"}}}, "'a/b' is not a bucket's name"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": 7}}}, "assets.cdn.s3.bucket: 7 is not a text"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "abc", "acl": "open"}}}, "'open' is none of private"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "abc", "key": "x"}}}, "unknown key assets.cdn.s3.key"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "abc", "prefix": "a/../b"}}}, "must not contain '..'"),
        ({"folders": ["p"], "cdn": {"s3": {"bucket": "abc", "endpoint": "s3:9000"}}}, "must be an address"),
        ({"folders": ["p"], "cdn": {"rsync": "-e sh x:/"}}, "is not a target"),
        ({"folders": ["p"], "cdn": {"rsync": "a\nb:/"}}, "is not a target"),
        ({"folders": ["p"], "cdn": {"rsync": "relative/folder"}}, "starts with a slash"),
    ],
)
def test_what_is_refused(value, message):
    with pytest.raises(Refused) as refused:
        parse(value)
    told = str(refused.value)
    assert told.startswith("deploy.yml: ")
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "cdn",
    [
        {"rsync": "rsync://me:secret@cdn.example.org/assets/"},
        {"rsync": "me:secret@cdn.example.org:/srv/"},
        {"s3": {"bucket": "abc", "endpoint": "https://me:secret@s3.example.org"}},
    ],
)
def test_a_password_is_refused_and_not_repeated(cdn):
    with pytest.raises(Refused, match="environment") as refused:
        parse({"folders": ["public"], "cdn": cdn})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "left_out", "kept"),
    [
        ("*.psd", ["a.psd", "img/a.psd"], ["a.psd.png", "psd"]),
        ("drafts", ["drafts", "drafts/a.css", "x/drafts/y/a.css"], ["drafts.css", "my-drafts/a.css"]),
        ("drafts/", ["drafts/a.css", "x/drafts/a.css"], ["drafts", "x/drafts"]),
        ("img/*.svg", ["img/a.svg"], ["img/x/a.svg", "x/img/a.svg"]),
        ("/img", ["img", "img/a.svg"], ["imgs/a.svg"]),
        ("img/**/raw", ["img/raw/a", "img/x/y/raw/a"], ["img/x/raws/a"]),
        ("**/test.css", ["test.css", "a/b/test.css"], ["a/latest.css"]),
        ("img/**", ["img/a", "img/b/c"], ["img"]),
        ("a?.js", ["ab.js", "x/ab.js"], ["a.js", "abc.js"]),
        ("a+(b).js", ["a+(b).js"], ["aab.js"]),
    ],
)
def test_patterns(pattern, left_out, kept):
    assert [name for name in left_out + kept if ignored(name, [pattern])] == left_out


def test_the_examples_of_the_manual_are_good():
    manuals = [(DOCS / name).read_text() for name in ("static.md", "composer.md")]
    examples = re.findall(r"^```yaml\n(.*?)^```", "\n".join(manuals), re.DOTALL | re.MULTILINE)
    specs = [parse_app_spec(example) for example in examples]
    assert [spec.assets is not None for spec in specs] == [True, True, False]
    assert specs[1].assets.cdn == S3(
        "shop-assets", "shop/", "https://s3.example.org", "eu-central-1", "public-read"
    )
    assert specs[2].composer == (".",)
