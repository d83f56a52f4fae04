"""vendor/ from composer.lock, with a real Composer; packages come from the tree itself, none from the net."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from kestrel_stack.deploy.build import composer
from kestrel_stack.deploy.build.tree import File
from kestrel_stack.deploy.errors import Failed, Refused

MISSING = [name for name in ("composer", "php", "unzip") if shutil.which(name) is None]
needs_composer = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}: apt install composer unzip"
)


def text(value):
    return File(value.encode() if isinstance(value, str) else (json.dumps(value, indent=4) + "\n").encode())


GREETER = """<?php

namespace Acme\\NAME;

class Greeter
{
    public static function greet(): string
    {
        BODY
    }
}
"""


def library(name, body="return 'hello';", **more):
    """A package's files, and the same as a zip."""
    manifest = {
        "name": f"acme/{name}",
        "version": "1.2.3",
        "autoload": {"psr-4": {f"Acme\\{name.title()}\\": "src/"}},
        **more,
    }
    code = GREETER.replace("NAME", name.title()).replace("BODY", body)
    return {"composer.json": text(manifest), "src/Greeter.php": text(code)}


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for name, file in files.items():
            made.writestr(zipfile.ZipInfo(name), file.data)
    return File(packed.getvalue())


def application(**more):
    """An application with one package in a folder and another as a zip, before `composer update`."""
    packed = zipped(library("zipped"))
    described = json.loads(library("zipped")["composer.json"].data)
    dist = {"type": "zip", "url": "artifacts/zipped.zip", "shasum": hashlib.sha1(packed.data).hexdigest()}
    manifest = {
        "name": "acme/shop",
        "require": {"acme/greeter": "^1.2", "acme/zipped": "*"},
        "require-dev": {"acme/tests": "*"},
        "autoload": {"classmap": ["lib/"]},
        "repositories": [
            {"type": "path", "url": "packages/*"},
            {"type": "package", "package": {**described, "dist": dist}},
            {"packagist.org": False},
        ],
        **more,
    }
    packages = {
        f"packages/{name}/{path}": file
        for name in ("greeter", "tests")
        for path, file in library(name).items()
    }
    packages["packages/greeter/bin/greet"] = File(b"#!/usr/bin/env php\n<?php echo 'hi';\n", executable=True)
    greeter = json.loads(packages["packages/greeter/composer.json"].data)
    packages["packages/greeter/composer.json"] = text({**greeter, "bin": ["bin/greet"]})
    return {
        "composer.json": text(manifest),
        "lib/Shop.php": text("<?php\n\nclass Shop\n{\n}\n"),
        "artifacts/zipped.zip": packed,
        **packages,
    }


def write(tree, folder):
    for name, file in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.link is not None:
            path.symlink_to(file.link)
        else:
            path.write_bytes(file.data)
            path.chmod(0o755 if file.executable else 0o644)


def locked(tree, folder, where="."):
    """The tree with the composer.lock that its developer makes."""
    write(tree, folder)
    environment = {**os.environ, "COMPOSER_ALLOW_SUPERUSER": "1", "COMPOSER_HOME": str(folder / ".composer")}
    done = subprocess.run(
        ["composer", "update", "--no-install", "--no-interaction"],
        cwd=folder / where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = os.path.normpath(f"{where}/composer.lock")
    return {**tree, name: File((folder / name).read_bytes())}


@pytest.fixture(autouse=True)
def composer_home(tmp_path, monkeypatch):
    """Composer keeps nothing in the account of whoever runs the tests, and takes nothing from there."""
    monkeypatch.setenv("COMPOSER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COMPOSER_CACHE_DIR", str(tmp_path / "home" / "cache"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return locked(application(), tmp_path_factory.mktemp("shop"))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Every call of Composer, by its command."""
    log = tmp_path / "calls"
    folder = tmp_path / "counting"
    folder.mkdir()
    (folder / "composer").write_text(f'#!/bin/sh\necho "$1" >>{log}\nexec {shutil.which("composer")} "$@"\n')
    (folder / "composer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def made():
        said = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return said

    return made


def vendor(tree):
    return {name: file for name, file in tree.items() if "vendor/" in name}


def run_php(tree, folder, code):
    write(tree, folder)
    done = subprocess.run(
        ["php", "-d", "display_errors=stderr", "-r", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_folders_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    tree = {"a": File(b"a")}
    assert composer.add_vendor(tree, (), tmp_path) == tree


# --- what is made ---------------------------------------------------------------------------------------


@needs_composer
def test_the_application_finds_its_packages_and_its_own_classes(shop, tmp_path):
    made = composer.add_vendor(shop, ["."], tmp_path / "cache")
    assert {name: made[name] for name in shop} == shop
    code = "require 'vendor/autoload.php'; new Shop(); echo Acme\\Greeter\\Greeter::greet();"
    code += " echo Acme\\Zipped\\Greeter::greet();"
    assert run_php(made, tmp_path / "release", code) == "hellohello"


@needs_composer
def test_packages_for_developers_stay_at_home(shop, tmp_path):
    names = vendor(composer.add_vendor(shop, ["."], tmp_path))
    assert "vendor/acme/greeter/src/Greeter.php" in names
    assert not any(name.startswith("vendor/acme/tests/") for name in names)


@needs_composer
def test_programs_can_be_run_and_packages_are_copies(shop, tmp_path):
    made = vendor(composer.add_vendor(shop, ["."], tmp_path))
    assert made["vendor/bin/greet"].executable
    assert made["vendor/acme/greeter/bin/greet"].executable
    assert not made["vendor/autoload.php"].executable
    assert [name for name, file in made.items() if file.link is not None] == []


@needs_composer
def test_no_script_of_the_application_runs_here(tmp_path):
    scripts = {"scripts": {"post-install-cmd": "touch ran", "post-autoload-dump": "touch ran"}}
    tree = locked(application(**scripts), tmp_path / "work")
    (tmp_path / "work" / "ran").unlink(missing_ok=True)
    made = composer.add_vendor(tree, ["."], tmp_path / "cache")
    assert not any("ran" in Path(name).parts for name in made)
    assert list(tmp_path.rglob("ran")) == []


@needs_composer
def test_a_folder_below_and_the_application_itself(tmp_path):
    tree = application()
    below = {f"php/admin/{name}": file for name, file in application().items()}
    tree = locked({**locked(tree, tmp_path / "1"), **below}, tmp_path / "2", "php/admin")
    made = composer.add_vendor(tree, [".", "php/admin"], tmp_path / "cache")
    assert "vendor/autoload.php" in made
    code = "require 'php/admin/vendor/autoload.php'; echo Acme\\Greeter\\Greeter::greet();"
    assert run_php(made, tmp_path / "release", code) == "hello"


@needs_composer
def test_another_vendor_folder(tmp_path):
    tree = locked(application(config={"vendor-dir": "lib/third"}), tmp_path / "work")
    made = composer.add_vendor(tree, ["."], tmp_path / "cache")
    assert "lib/third/autoload.php" in made
    assert not any(name.startswith("vendor/") for name in made)


@needs_composer
def test_an_extension_that_only_the_hosts_have(tmp_path):
    tree = application()
    write(tree, tmp_path / "work")
    manifest = json.loads(tree["composer.json"].data)
    manifest["require"]["ext-kestrel-of-tomorrow"] = "*"
    tree["composer.json"] = text({**manifest, "config": {"platform": {"ext-kestrel-of-tomorrow": "1.0"}}})
    tree = locked(tree, tmp_path / "lock")
    assert "vendor/autoload.php" in composer.add_vendor(tree, ["."], tmp_path / "cache")


# --- the same every time --------------------------------------------------------------------------------


def digest(tree):
    told = hashlib.sha256()
    for name, file in sorted(tree.items()):
        told.update(repr((name, file)).encode())
    return told.hexdigest()


@needs_composer
def test_same_tree_same_bytes_wherever_it_is_made(shop, tmp_path, monkeypatch):
    first = composer.add_vendor(shop, ["."], tmp_path / "one")
    # Inside a git repository, with other settings, from another folder.
    other = tmp_path / "repository"
    other.mkdir()
    subprocess.run(["git", "init", "-q", "."], cwd=other, check=True)
    monkeypatch.chdir(other)
    monkeypatch.setenv("TMPDIR", str(other))
    monkeypatch.setattr("tempfile.tempdir", str(other))
    monkeypatch.setenv("COMPOSER_VENDOR_DIR", "elsewhere")
    monkeypatch.setenv("COMPOSER_ROOT_VERSION", "9.9")
    second = composer.add_vendor(dict(reversed(shop.items())), ["."], tmp_path / "two")
    assert digest(first) == digest(second)
    assert not any(str(tmp_path).encode() in file.data for file in first.values())


@needs_composer
def test_it_is_made_once(shop, tmp_path, calls):
    first = composer.add_vendor(shop, ["."], tmp_path / "cache")
    assert calls() == ["--version", "validate", "install", "dump-autoload"]
    assert composer.add_vendor(shop, ["."], tmp_path / "cache") == first
    assert calls() == ["--version"]


@needs_composer
def test_a_new_class_is_found_and_packages_are_not_fetched_again(shop, tmp_path, calls):
    composer.add_vendor(shop, ["."], tmp_path / "cache")
    calls()
    tree = {**shop, "lib/Till.php": text("<?php\n\nclass Till\n{\n}\n")}
    made = composer.add_vendor(tree, ["."], tmp_path / "cache")
    assert calls() == ["--version", "dump-autoload"]
    assert (
        run_php(made, tmp_path / "release", "require 'vendor/autoload.php'; new Till(); echo 'yes';") == "yes"
    )


@needs_composer
def test_a_changed_file_that_is_no_code_makes_nothing_anew(shop, tmp_path, calls):
    composer.add_vendor(shop, ["."], tmp_path / "cache")
    calls()
    composer.add_vendor({**shop, "README.md": text("news")}, ["."], tmp_path / "cache")
    assert calls() == ["--version"]


@needs_composer
def test_a_package_in_the_tree_may_change_without_the_lock(shop, tmp_path):
    composer.add_vendor(shop, ["."], tmp_path / "cache")
    changed = library("greeter", "return 'changed';")["src/Greeter.php"]
    tree = {**shop, "packages/greeter/src/Greeter.php": changed}
    made = composer.add_vendor(tree, ["."], tmp_path / "cache")
    assert made["vendor/acme/greeter/src/Greeter.php"] == changed


@needs_composer
def test_another_php_or_composer_makes_it_anew(shop, tmp_path, monkeypatch, calls):
    composer.add_vendor(shop, ["."], tmp_path / "cache")
    calls()
    tools = composer._tools()
    monkeypatch.setattr(composer, "_tools", lambda: tools.replace("php 8", "php 9"))
    composer.add_vendor(shop, ["."], tmp_path / "cache")
    assert "install" in calls()


# --- what is refused -------------------------------------------------------------------------------------


def refusal(tree, cache, folders=(".",), error=Refused):
    with pytest.raises(error) as refused:
        composer.add_vendor(tree, folders, cache)
    told = str(refused.value)
    assert "\n" not in told
    return told


@needs_composer
@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (
            "composer.lock",
            "php.composer: composer.lock is not in the commit: run composer update and commit it",
        ),
        ("composer.json", "php.composer: composer.json is not in the commit: correct php.composer"),
    ],
)
def test_a_missing_file_is_named(shop, tmp_path, lacking, message):
    tree = {name: file for name, file in shop.items() if name != lacking}
    assert refusal(tree, tmp_path).startswith(message)


@needs_composer
def test_a_missing_file_of_a_folder_is_named_with_it(shop, tmp_path):
    told = refusal(shop, tmp_path, ["php/admin"])
    assert told.startswith("php.composer: php/admin/composer.json is not in the commit")


@needs_composer
def test_a_lock_that_does_not_fit_is_refused(shop, tmp_path):
    manifest = json.loads(shop["composer.json"].data)
    manifest["require"]["acme/greeter"] = "^1.0"
    told = refusal({**shop, "composer.json": text(manifest)}, tmp_path)
    assert told == (
        "composer.lock does not fit composer.json: run composer update --lock (or composer update) and"
        " commit it"
    )


@needs_composer
def test_a_lock_without_a_required_package_is_refused(shop, tmp_path):
    lock = json.loads(shop["composer.lock"].data)
    lock["packages"] = [package for package in lock["packages"] if package["name"] != "acme/greeter"]
    told = refusal({**shop, "composer.lock": text(lock)}, tmp_path)
    assert told.startswith("composer.lock does not fit composer.json")


@needs_composer
@pytest.mark.parametrize("name", ["composer.json", "composer.lock"])
@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_file_that_is_not_json_is_named(shop, tmp_path, name, content, message):
    assert refusal({**shop, name: text(content)}, tmp_path).startswith(f"{name} {message}")


@needs_composer
def test_a_vendor_folder_in_the_commit_is_refused(shop, tmp_path):
    told = refusal({**shop, "vendor/autoload.php": text("<?php")}, tmp_path)
    assert told.startswith(
        "vendor is in the commit, and Composer would write there: remove it from git, or set"
    )


@pytest.mark.parametrize("kind", ["link", "file"])
@pytest.mark.parametrize("folder", ["vendor", "vendor/deeper"])
def test_nothing_is_written_through_a_link_of_the_commit(tmp_path, folder, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = application(config={"vendor-dir": folder})
    tree |= {"composer.lock": text({}), "vendor": File(link=str(outside)) if kind == "link" else File(b"x")}
    with pytest.raises(Refused, match=r"^vendor is a file or a link in the commit.*remove it from git"):
        composer.add_vendor(tree, ["."], tmp_path / "cache")
    assert not list(outside.iterdir())


@needs_composer
@pytest.mark.parametrize("folder", ["../vendor", "/srv/vendor", "$HOME/vendor", "", 7])
def test_a_vendor_folder_outside_is_refused(shop, tmp_path, folder):
    manifest = {**json.loads(shop["composer.json"].data), "config": {"vendor-dir": folder}}
    told = refusal({**shop, "composer.json": text(manifest)}, tmp_path)
    assert told == f"composer.json: config.vendor-dir {folder!r} is not inside the application"


@needs_composer
def test_a_package_that_is_not_what_was_locked_is_refused(shop, tmp_path):
    tree = {**shop, "artifacts/zipped.zip": zipped(library("zipped", "return 'foreign';"))}
    told = refusal(tree, tmp_path, error=Failed)
    assert told.startswith("composer.lock: composer install failed: ")
    assert "checksum" in told
    assert not (tmp_path / "composer" / "packages").exists()


@needs_composer
def test_credentials_in_an_address_are_not_printed(shop, tmp_path):
    lock = json.loads(shop["composer.lock"].data)
    for package in lock["packages"]:
        if package["name"] == "acme/zipped":
            package["dist"]["url"] = "http://me:secret@127.0.0.1:9/zipped.zip"
    tree = {**shop, "composer.lock": text(lock)}
    told = refusal(tree, tmp_path, error=Failed)
    assert "127.0.0.1" in told
    assert "secret" not in told


def only(tmp_path, monkeypatch, **programs):
    """Let PATH have these programs alone."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


TINY = {"composer.json": text({}), "composer.lock": text({})}


def test_without_php_its_package_is_named(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch)
    told = refusal(TINY, tmp_path / "cache")
    assert told == "php.composer: php is not installed on this machine: apt install php-cli"


def test_without_composer_its_package_is_named(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch, php="echo 8.2.1")
    told = refusal(TINY, tmp_path / "cache")
    assert told == "php.composer: composer is not installed on this machine: apt install composer unzip"


def test_an_old_composer_is_refused(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch, php="echo 8.2.1", composer="echo Composer version 1.10.1 2020-03-13")
    told = refusal(TINY, tmp_path / "cache")
    assert told == "php.composer: Composer 2 is needed, found 1.10.1: apt install composer"


def test_a_composer_that_does_not_run(tmp_path, monkeypatch):
    only(tmp_path, monkeypatch, php="echo 8.2.1", composer="echo no phar here >&2; exit 1")
    told = refusal(TINY, tmp_path / "cache")
    assert re.fullmatch(r"php\.composer: composer does not run here: .*no phar here", told)


def test_a_composer_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(composer, "SECONDS", 0.1)
    only(tmp_path, monkeypatch, php="echo 8.2.1", composer="exec /bin/sleep 100")
    told = refusal(TINY, tmp_path / "cache", error=Failed)
    assert told == "composer --version was not done within 0.1 s"
