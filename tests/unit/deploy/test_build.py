"""What is built once: same inputs, same bytes; wheels for the host, not for this machine."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from kestrel_stack.deploy import build
from kestrel_stack.deploy.build import manifest
from kestrel_stack.deploy.build.cache import in_use
from kestrel_stack.deploy.errors import FAILED, REFUSED, DeployError, Refused
from kestrel_stack.deploy.hoststate import HostState, Release, Target
from support.bundles import state_of, wheels_of
from support.deploy import NEW, OLD, ROOT, GitApp, git, make_wheel

BOOKWORM = Target("3.11", "x86_64", "2.36")
TRIXIE = Target("3.13", "aarch64", "2.41")
HASH = "sha256:" + "0" * 64


@pytest.fixture
def app(tmp_path):
    return GitApp(tmp_path / "repository", "examples/shop")


def source(app, ref="HEAD", **kwargs):
    return build.find_source(str(app.path), ref, **kwargs)


def refused(function, *words):
    with pytest.raises(Refused) as caught:
        function()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# --- finding ---------------------------------------------------------------------------------------------


def test_the_application_is_found_with_its_commit_and_its_deploy_yml(app):
    found = source(app)
    assert found.rev == git(app.repository, "rev-parse", "HEAD")
    assert found.prefix == "examples/shop"
    assert found.spec.shared_directories == ("var",)


@pytest.mark.parametrize("ref", ["nobody", "", "--help", "; touch pwned", "HEAD:examples"])
def test_an_unknown_ref_is_refused_and_never_an_option_or_a_command(app, ref):
    refused(lambda: source(app, ref), "unknown ref", repr(ref))
    assert not list(app.repository.rglob("pwned"))


def test_a_branch_with_a_hostile_name_is_only_a_name(app):
    name = ";touch${IFS}pwned"
    git(app.repository, "branch", name)
    assert source(app, name).ref == name
    assert not list(app.repository.rglob("pwned"))


def test_what_is_deployed_is_the_commit_and_not_the_files(app):
    app.write("deploy.yml", "keep: 9\n")
    assert source(app, allow_dirty=True).spec.keep == 5


def test_uncommitted_changes_are_refused_by_name(app):
    app.write("shop/jobs.py", "changed")
    app.write("shop/a new file.py", "new")
    refused(lambda: source(app), "shop/jobs.py", "shop/a new file.py", "Commit them", "--allow-dirty")


def test_changes_elsewhere_in_the_repository_do_not_matter(app):
    (app.repository / "notes.txt").write_text("mine")
    assert source(app)


def test_a_folder_that_is_no_application_is_refused(app, tmp_path):
    refused(lambda: build.find_source(str(tmp_path / "none"), "HEAD"), "no such folder")
    (tmp_path / "plain").mkdir()
    refused(lambda: build.find_source(str(tmp_path / "plain"), "HEAD"), "not in a git repository")
    empty = app.repository / "empty"
    empty.mkdir()
    (empty / "x").touch()
    refused(lambda: build.find_source(str(empty), "HEAD"), "empty is not in commit")
    app.commit()
    refused(lambda: build.find_source(str(empty), "HEAD"), "there is no deploy.yml")
    (empty / "deploy.yml").touch()
    refused(lambda: build.find_source(str(empty), "HEAD"), "deploy.yml is not in commit", "commit it")


def test_composer_is_run_where_a_lock_is_and_where_deploy_yml_says(app):
    assert source(app).spec.composer == ()
    app.write("composer.lock", "{}")
    app.write("tools/composer.lock", "{}")
    app.commit()
    assert source(app).spec.composer == (".",)
    app.write("deploy.yml", "php: {composer: []}\n")
    app.commit()
    assert source(app).spec.composer == ()
    app.write("deploy.yml", "php: {composer: [tools]}\n")
    app.commit()
    assert source(app).spec.composer == ("tools",)
    app.write("deploy.yml", "php: {composer: [., other]}\n")
    app.commit()
    refused(lambda: source(app), "php.composer names other", "other/composer.lock is not in commit")


def test_a_commit_that_is_not_pushed_is_told_and_refused_where_that_is_asked_for(app, tmp_path):
    # No remote, nowhere to push to: nothing to warn of.
    assert source(app).warnings == ()
    git(tmp_path, "init", "-q", "--bare", "remote")
    git(app.repository, "remote", "add", "origin", str(tmp_path / "remote"))
    assert ["is on no remote branch" in text for text in source(app).warnings] == [True]
    git(app.repository, "push", "-q", "origin", "main:work")
    assert source(app).warnings == ()
    app.write("deploy.yml", "require_pushed: true\n")
    app.commit()
    refused(lambda: source(app), "is on no remote branch", "require_pushed", "git push")
    assert source(app, "HEAD~1").warnings == ()
    git(app.repository, "push", "-q", "origin", "main:work")
    assert source(app).spec.require_pushed


def test_pushed_is_asked_for_without_a_remote_too(app):
    app.write("deploy.yml", "require_pushed: true\n")
    app.commit()
    refused(lambda: source(app), "is on no remote branch")


def test_a_lock_that_the_commit_lacks_is_named(app):
    app.write("deploy.yml", "python: {requirements: lock.txt}\n")
    app.commit()
    refused(lambda: source(app), "names lock.txt, which is not in commit")


# --- the archive -----------------------------------------------------------------------------------------


def names(packed):
    with tarfile.open(fileobj=io.BytesIO(packed)) as made:
        return {member.name: member for member in made}


def test_the_same_commit_gives_the_same_bytes_whenever_and_wherever(app, tmp_path):
    first = build.build_archive(source(app), tmp_path / "cache1")
    began = int(time.time())
    while int(time.time()) == began:  # git archive of a tree would stamp the second
        time.sleep(0.02)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(app.repository), str(clone))
    again = build.find_source(str(clone / "examples/shop"), "HEAD")
    second = build.build_archive(again, tmp_path / "cache2")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.manifest == second.manifest


def test_the_archive_has_the_application_without_its_prefix_and_nothing_else(app, tmp_path):
    app.write("bin/run", "#!/bin/sh\n").chmod(0o755)
    (app.path / "link").symlink_to("shop/jobs.py")
    (app.repository / "outside.txt").write_text("x")
    app.commit()
    archive = build.build_archive(source(app), tmp_path / "cache")
    found = names(archive.path.read_bytes())
    own = {name for name in found if name.split("/")[0] != "kestrel-stack"}
    assert own == {
        "bin/run", "deploy.yml", "link", "requirements.txt", "shop/__init__.py", "shop/jobs.py",
    }  # fmt: skip
    assert found["bin/run"].mode == 0o755
    assert found["shop/jobs.py"].mode == 0o644
    assert found["link"].linkname == "shop/jobs.py"
    assert found["shop/jobs.py"].mtime == int(git(app.repository, "log", "-1", "--format=%ct"))
    assert archive.files_size == sum(member.size for member in found.values())


@pytest.mark.parametrize("folder", ["[ab]", ":(top)x", "-n", "a b/*", "\u00e9"])
def test_an_application_may_be_in_a_folder_of_any_name(tmp_path, folder):
    app = GitApp(tmp_path / "repository", folder)
    other = app.repository / "a" / "changed.py"
    other.parent.mkdir(exist_ok=True)
    other.write_text("x")
    found = source(app)  # what another folder has is no change of this one
    assert "shop/jobs.py" in names(build.build_archive(found, tmp_path / "cache").path.read_bytes())
    app.write("shop/jobs.py", "changed")
    refused(lambda: source(app), "uncommitted changes", "shop/jobs.py")


def test_a_repository_that_is_the_application_itself_works_too(tmp_path):
    app = GitApp(tmp_path / "repository")
    assert "shop/jobs.py" in names(build.build_archive(source(app), tmp_path / "cache").path.read_bytes())


@pytest.mark.parametrize("name", ["venv/x", "release.json", ".verified", "kestrel-stack/x"])
def test_an_application_with_a_name_that_the_deploy_writes_is_refused(app, tmp_path, name):
    app.write(name, "x")
    git(app.repository, "add", "-f", "-A")
    app.commit()
    refused(lambda: build.build_archive(source(app), tmp_path / "cache"), name.split("/")[0], "rename it")


def test_submodules_are_told_since_their_files_are_not_sent(app, tmp_path):
    git(tmp_path, "clone", "-q", str(app.repository), str(tmp_path / "other"))
    words = ["-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tmp_path / "other")]
    git(app.repository, *words, "examples/shop/lib/other")
    git(app.repository, *words, "elsewhere")
    app.commit()
    (told,) = source(app).warnings
    assert "submodules are not deployed: examples/shop/lib/other. " in told


def test_a_file_that_git_lfs_keeps_is_refused_and_never_sent_as_its_pointer(app, tmp_path):
    app.write("film.mp4", "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 5\n")
    app.commit()
    refused(lambda: build.build_archive(source(app), tmp_path / "cache"), "film.mp4", "git-lfs")


@pytest.mark.parametrize("content", [b"", b"x" * 70_000])
@pytest.mark.parametrize(
    "name", [" -n", "new\nline.py", os.fsdecode(b"latin\xe9.py"), "\u00e9t\u00e9/\u2028.txt", "a" * 230]
)
def test_names_and_contents_of_every_kind_arrive_as_they_are(app, tmp_path, name, content):
    path = app.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    app.commit()
    archive = build.build_archive(source(app), tmp_path / "cache")
    packed = build.build_bundle(archive, wheels_of(), with_wheels=False, cache=tmp_path / "cache")
    stage = tmp_path / "stage"
    stage.mkdir()
    (tmp_path / "assets").mkdir()
    shutil.copy(packed.path, stage / "upload")
    unpack = (ROOT / "src/kestrel_stack/deploy/onhost/unpack.py").read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", unpack, "stage"],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    # A name is the bytes that it is; nothing in one may look like a line of the script.
    assert all(line.startswith(b"@ ") for line in done.stdout.splitlines())
    assert (stage / "tree" / name).read_bytes() == content


def test_the_archive_has_the_stacks_own_php_code_without_its_tests(app, tmp_path):
    found = names(build.build_archive(source(app), tmp_path / "cache").path.read_bytes())
    inner = {name.removeprefix("kestrel-stack/") for name in found if name.startswith("kestrel-stack/")}
    assert {"php/autoload.php", "php/composer.json", "php/bin/consumer", "php/src/Queue/Client.php"} <= inner
    assert not [name for name in inner if "tests" in name or "phpunit" in name]
    assert found["kestrel-stack/php/bin/consumer"].mode == 0o755
    assert {member.uid for member in found.values()} == {0}


def test_php_code_comes_from_the_files_where_the_stack_is_no_git_checkout(app, tmp_path):
    stack = tmp_path / "stack"
    for name in build.PHP_SOURCES:
        here, there = ROOT / name, stack / name
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(here, there) if here.is_dir() else shutil.copy(here, there)
    first = build.build_archive(source(app), tmp_path / "cache", root=stack)
    assert "kestrel-stack/php/autoload.php" in names(first.path.read_bytes())
    (stack / "php/src/New.php").write_text("<?php\n")
    second = build.build_archive(source(app), tmp_path / "cache", root=stack)
    # Other PHP code is another archive, so that a deploy of the same commit is not `nothing to do`.
    assert second.manifest != first.manifest


def test_a_commit_that_is_older_than_the_stacks_php_code_can_still_be_deployed(tmp_path):
    checkout = GitApp(tmp_path / "checkout", "examples/shop")
    archive = build.build_archive(source(checkout), tmp_path / "cache", root=checkout.repository)
    assert not [name for name in names(archive.path.read_bytes()) if name.startswith("kestrel-stack")]


def test_this_machines_liking_for_line_ends_is_not_sent(app, tmp_path):
    app.write(".gitattributes", "* text=auto\n")
    app.write("a.txt", "one\ntwo\n")
    app.commit()
    git(app.repository, "config", "core.autocrlf", "true")
    made = build.build_archive(source(app, allow_dirty=True), tmp_path / "cache")
    assert made.tree["a.txt"].data == b"one\ntwo\n"


def test_what_hosts_make_themselves_is_not_sent(app, tmp_path):
    app.write("deploy.yml", "shared: {files: [config/a.ini], directories: [var]}\n")
    for name in ("config/a.ini", "config/b.ini", "var/x", "various", "shop/__pycache__/jobs.cpython-311.pyc"):
        app.write(name, "x")
    git(app.repository, "add", "-f", "-A")
    app.commit()
    found = set(build.build_archive(source(app), tmp_path / "cache").tree)
    assert {"config/b.ini", "various"} <= found
    assert not found & {"config/a.ini", "var/x", "shop/__pycache__/jobs.cpython-311.pyc"}


def test_a_shared_path_below_a_file_or_a_link_is_refused(app, tmp_path):
    app.write("deploy.yml", "shared: {directories: [shop/jobs.py/x]}\n")
    app.commit()
    refused(lambda: build.build_archive(source(app), tmp_path / "cache"), "shop/jobs.py is a file")


def test_the_manifest_says_what_a_release_consists_of_and_names_it(app, tmp_path):
    app.write("bin/run", "#!/bin/sh\n").chmod(0o755)
    (app.path / "link").symlink_to("bin/run")
    app.commit()
    archive = build.build_archive(source(app), tmp_path / "cache")
    known = (tmp_path / "cache" / "manifests" / f"{archive.manifest}.json").read_bytes()
    assert hashlib.sha256(known).hexdigest() == archive.manifest
    content = hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert archive.entries["bin/run"] == ("755", 10, content)
    assert archive.entries["link"] == ("link", 0, "bin/run")
    assert manifest.recall(archive.manifest, tmp_path / "cache") == archive.entries
    # A file's content counts, and no file's time.
    app.commit("nothing changed")
    assert build.build_archive(source(app), tmp_path / "cache").manifest == archive.manifest
    (app.path / "bin" / "run").chmod(0o644)
    app.commit("another mode")
    assert build.build_archive(source(app), tmp_path / "cache").manifest != archive.manifest


def test_nothing_is_packed_before_it_is_asked_for(app, tmp_path):
    build.build_archive(source(app), tmp_path / "cache")
    assert not (tmp_path / "cache" / "archives").exists()


# --- the stack's own wheel -------------------------------------------------------------------------------


def test_the_stack_wheel_is_the_same_bytes_each_time(app, tmp_path):
    first = build.build_stack_wheel(source(app), cache=tmp_path / "cache1")
    began = int(time.time())
    while int(time.time()) // 2 == began // 2:  # a zip keeps every second second
        time.sleep(0.05)
    second = build.build_stack_wheel(source(app), cache=tmp_path / "cache2")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        assert "kestrel_stack/__init__.py" in wheel.namelist()
        assert not [name for name in wheel.namelist() if "__pycache__" in name]


# --- reading the lock ------------------------------------------------------------------------------------


def test_a_lock_is_read_with_continuations_comments_markers_and_extras():
    lock = build.read_lock(
        f"""
# a comment
--index-url https://user:secret@example.com/simple
Pillow==10.0 ; python_version < "3.12" \\
    --hash={HASH} \\
    --hash=sha512:{"1" * 128}   # two files
requests[socks]==2.31.0 --hash={HASH}
other==1.0;sys_platform=="win32" --hash={HASH}
""",
        "requirements.txt",
    )
    assert lock.for_target(BOOKWORM) == (
        f"pillow==10.0 --hash={HASH} --hash=sha512:{'1' * 128}\nrequests[socks]==2.31.0 --hash={HASH}\n"
    )
    assert lock.for_target(TRIXIE) == f"requests[socks]==2.31.0 --hash={HASH}\n"
    assert lock.index_options == ("--index-url", "https://user:secret@example.com/simple")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("requests==2.31.0", ["line 1", "requests has no hash", "--generate-hashes"]),
        (f"requests>=2 --hash={HASH}", ["requests is not pinned with =="]),
        (f"requests==2.* --hash={HASH}", ["requests is not pinned with =="]),
        (f"requests --hash={HASH}", ["requests is not pinned with =="]),
        ("requests==1 --hash=md5:abc", ["'md5:abc'"]),
        (f"requests @ https://example.com/x.whl --hash={HASH}", ["given by URL"]),
        ("-e .", ["-e is not supported"]),
        ("-r other.txt", ["-r is not supported"]),
        ("what is this", ["is not a requirement"]),
    ],
)
def test_a_line_that_is_not_pinned_by_hash_is_refused_by_name(line, words):
    refused(lambda: build.read_lock(line, "requirements.txt"), "requirements.txt", *words)


# --- wheels ----------------------------------------------------------------------------------------------


def locked(*wheels):
    lines = []
    for path in wheels:
        name, version = path.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "\n".join(lines)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip looks into, and into nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheels_for(text, target, tmp_path, stack=None):
    stack = stack or make_wheel(tmp_path / "stack", "kestrel_stack")
    return build.build_wheels(
        build.read_lock(text, "requirements.txt"), target, stack, "requirements.txt", tmp_path / "cache"
    )


def test_wheels_are_chosen_for_the_host_and_not_for_this_machine(index, tmp_path):
    plain = make_wheel(index, "library")
    text = locked(plain)
    for tag in (
        "cp313-cp313-manylinux_2_41_aarch64",
        "cp311-cp311-manylinux_2_36_x86_64",
        "cp313-cp313-win_amd64",
    ):
        name = plain.name.replace("py3-none-any", tag)
        copy = index / name
        copy.write_bytes(plain.read_bytes() + b"")
    plain.unlink()
    assert wheels_for(text, TRIXIE, tmp_path).files[0].name == (
        "library-1.0-cp313-cp313-manylinux_2_41_aarch64.whl"
    )
    assert wheels_for(text, BOOKWORM, tmp_path).files[0].name == (
        "library-1.0-cp311-cp311-manylinux_2_36_x86_64.whl"
    )


def test_a_wheel_for_a_newer_glibc_than_the_host_has_is_not_taken(index, tmp_path):
    plain = make_wheel(index, "library")
    text = locked(plain)
    plain.rename(index / plain.name.replace("py3-none-any", "cp311-cp311-manylinux_2_39_x86_64"))
    refused(lambda: wheels_for(text, BOOKWORM, tmp_path), "no wheel of library==1.0", "glibc 2.36")


def test_a_package_with_a_source_distribution_only_is_named(index, tmp_path):
    archive = index / "oldstyle-1.0.tar.gz"
    archive.write_bytes(gzip.compress(b"x"))
    text = f"oldstyle==1.0 --hash=sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    refused(
        lambda: wheels_for(text, BOOKWORM, tmp_path),
        "no wheel of oldstyle==1.0 for Python 3.11, x86_64, glibc 2.36",
        "compile nothing",
    )


def test_a_wheel_whose_hash_differs_is_refused(index, tmp_path):
    make_wheel(index, "library")
    refused(
        lambda: wheels_for(f"library==1.0 --hash={HASH}", BOOKWORM, tmp_path),
        "library",
        "does not match the hash",
    )


def test_a_lock_that_lacks_what_a_wheel_needs_is_refused_before_any_host_sees_it(index, tmp_path):
    wheel = make_wheel(index, "library", requires=("helper>=1", "windows-only; sys_platform == 'win32'"))
    refused(lambda: wheels_for(locked(wheel), BOOKWORM, tmp_path), "library needs helper", "not in the lock")
    helper = make_wheel(index, "helper")
    assert len(wheels_for(locked(wheel, helper), BOOKWORM, tmp_path).files) == 3


def test_an_index_that_cannot_be_reached_is_a_failure_without_its_password(tmp_path, monkeypatch):
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    text = f"--index-url http://user:secret@127.0.0.1:9/simple\nlibrary==1.0 --hash={HASH}"
    with pytest.raises(DeployError) as caught:
        wheels_for(text, BOOKWORM, tmp_path)
    assert caught.value.code in (REFUSED, FAILED)
    assert "secret" not in str(caught.value)


def test_wheels_come_from_the_cache_the_second_time(index, tmp_path):
    wheel = make_wheel(index, "library")
    text = locked(wheel)
    first = wheels_for(text, BOOKWORM, tmp_path)
    wheel.unlink()
    assert wheels_for(text, BOOKWORM, tmp_path) == first


def test_the_stacks_own_package_is_pinned_as_well_and_not_given_twice(index, tmp_path):
    stack = make_wheel(tmp_path / "stack", "kestrel_stack")
    wheels = wheels_for(locked(make_wheel(index, "one")), BOOKWORM, tmp_path, stack)
    assert [line.split()[0] for line in wheels.requirements.splitlines()] == [
        "one==1.0",
        "kestrel-stack==1.0",
    ]
    assert wheels.requirements.endswith(f"--hash=sha256:{hashlib.sha256(stack.read_bytes()).hexdigest()}\n")
    text = f"Kestrel_Stack==1.0 --hash={HASH}"
    refused(lambda: wheels_for(text, BOOKWORM, tmp_path, stack), "kestrel-stack is added by the deploy")


def test_a_venv_is_named_by_lock_wheels_python_and_machine(index, tmp_path):
    one, two = make_wheel(index, "one"), make_wheel(index, "two")
    stack = make_wheel(tmp_path / "stack", "kestrel_stack")
    newer = make_wheel(tmp_path / "newer", "kestrel_stack", requires=("nothing; extra == 'x'",))
    keys = {
        wheels_for(locked(one), BOOKWORM, tmp_path, stack).key,
        wheels_for(locked(one, two), BOOKWORM, tmp_path, stack).key,
        wheels_for(locked(one), TRIXIE, tmp_path, stack).key,
        wheels_for(locked(one), Target("3.11", "aarch64", "2.36"), tmp_path, stack).key,
        wheels_for(locked(one), BOOKWORM, tmp_path, newer).key,
    }
    assert len(keys) == 5
    assert wheels_for(locked(two, one), BOOKWORM, tmp_path, stack).key in keys


def test_the_bundle_has_wheels_only_for_a_host_that_lacks_the_venv(app, index, tmp_path):
    archive = build.build_archive(source(app), tmp_path / "cache")
    wheels = wheels_for(locked(make_wheel(index, "one")), BOOKWORM, tmp_path)
    small = build.build_bundle(archive, wheels, with_wheels=False, cache=tmp_path / "cache")
    large = build.build_bundle(archive, wheels, with_wheels=True, cache=tmp_path / "cache")
    assert set(names(small.path.read_bytes())) == {"manifest.json.gz", "files.tar.gz"}
    assert set(names(large.path.read_bytes())) == {
        "manifest.json.gz", "files.tar.gz",
        "requirements.txt", "wheels/one-1.0-py3-none-any.whl", f"wheels/{wheels.files[-1].name}",
    }  # fmt: skip
    again = build.build_bundle(archive, wheels, with_wheels=True, cache=tmp_path / "cache2")
    assert again.path.read_bytes() == large.path.read_bytes()


def test_a_wheel_with_a_long_name_is_sent(app, tmp_path):
    tags = "manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64"
    wheel = tmp_path / f"charset_normalizer-3.4.4-cp311-cp311-{tags}.whl"
    wheel.write_bytes(b"x")
    archive = build.build_archive(source(app), tmp_path / "cache")
    made = build.build_bundle(archive, wheels_of(wheel), with_wheels=True, cache=tmp_path / "cache")
    assert len(wheel.name) > 100  # more than the oldest kind of tar has room for
    assert f"wheels/{wheel.name}" in names(made.path.read_bytes())


def bundle(app, state, tmp_path, **kwargs):
    found = source(app)
    archive = build.build_archive(found, tmp_path / "cache")
    return build.bundle_for(archive, wheels_of(), state, found, cache=tmp_path / "cache", **kwargs)


def files_of(packed):
    with tarfile.open(packed.path) as made:
        inner = made.extractfile("files.tar.gz").read()
    return set(names(inner))


def test_a_host_gets_what_differs_from_its_current_release(app, tmp_path):
    first = build.build_archive(source(app), tmp_path / "cache").manifest
    app.write("shop/mail.py", "new")
    app.write("shop/jobs.py", "changed")
    app.commit()
    second = build.build_archive(source(app), tmp_path / "cache").manifest
    app.write("shop/jobs.py", "changed again")
    app.commit()
    packed = bundle(app, state_of({OLD: first, NEW: second}, current=OLD), tmp_path)
    assert (packed.base_release, files_of(packed)) == (OLD, {"shop/mail.py", "shop/jobs.py"})
    packed = bundle(app, state_of({OLD: first, NEW: second}, current=NEW), tmp_path)
    assert (packed.base_release, files_of(packed)) == (NEW, {"shop/jobs.py"})
    # Nothing is current, or what is current tells nothing of itself: the newest that was verified.
    packed = bundle(app, state_of({OLD: first, NEW: second}), tmp_path)
    assert packed.base_release == NEW
    packed = bundle(app, state_of({OLD: first, NEW: ""}, current=NEW), tmp_path)
    assert packed.base_release is None
    packed = bundle(app, state_of({OLD: first, NEW: second}, current=NEW), tmp_path, full=True)
    assert packed.base_release is None
    assert packed.with_wheels


def test_the_same_is_sent_to_every_host_that_has_the_same(app, tmp_path):
    first = build.build_archive(source(app), tmp_path / "cache").manifest
    app.write("shop/jobs.py", "changed")
    app.commit()
    one, other = (bundle(app, state_of({name: first}, current=name), tmp_path) for name in (OLD, NEW))
    assert (one.base_release, other.base_release) == (OLD, NEW)
    assert one.path == other.path


def test_the_same_inputs_give_the_same_bundle_from_two_clones(app, tmp_path):
    app.write("bin/run", "#!/bin/sh\n").chmod(0o755)
    app.write("é/a b.txt", "x" * 1000)
    app.write("deploy.yml", "assets: {folders: [public]}\n")
    app.write("public/a.css", "b { color: red }\n" * 100)
    app.commit()
    base = app.commit_id
    app.write("shop/jobs.py", "changed")
    app.commit()
    made = []
    for name in ("one", "other"):
        clone = tmp_path / name / "clone"
        git(tmp_path, "clone", "-q", str(app.repository), str(clone))
        cache = tmp_path / name / "cache"
        found = build.find_source(str(clone / "examples/shop"), "HEAD")
        old = build.build_archive(build.find_source(str(clone / "examples/shop"), base), cache)
        new = build.build_archive(found, cache)
        state = state_of({OLD: old.manifest}, current=OLD)
        made.append(
            (
                new.manifest,
                new.path.read_bytes(),
                build.bundle_for(new, wheels_of(), state, found, cache=cache).path.read_bytes(),
                build.bundle_for(new, wheels_of(), state, found, full=True, cache=cache).path.read_bytes(),
            )
        )
        assert any(path.startswith("_assets/a.") for path in new.tree)
    assert made[0] == made[1]


def test_a_release_deployed_from_elsewhere_is_known_by_its_commit(app, tmp_path):
    first = build.build_archive(source(app), tmp_path / "elsewhere")
    old = source(app)
    app.write("shop/jobs.py", "changed")
    app.commit()
    release = Release(OLD, True, rev=old.rev, manifest=first.manifest)
    state = HostState("h", {"current": OLD}, (release,), ("v9",))
    packed = bundle(app, state, tmp_path)
    assert (packed.base_release, files_of(packed)) == (OLD, {"shop/jobs.py"})


@pytest.mark.parametrize("rev", ["", "f" * 40, "HEAD", "--upload-pack=x", "; touch pwned"])
def test_a_release_of_an_unknown_commit_is_not_built_upon(app, tmp_path, rev):
    release = Release(OLD, True, rev=rev, manifest="0" * 64)
    state = HostState("h", {"current": OLD}, (release,), ("v9",))
    assert bundle(app, state, tmp_path).base_release is None
    assert not list(tmp_path.rglob("pwned"))


def test_a_commit_that_gives_something_else_today_is_not_built_upon(app, tmp_path):
    # The stack's own PHP code goes with an application, and may have been another one that day.
    release = Release(OLD, True, rev=source(app).rev, manifest="0" * 64)
    state = HostState("h", {"current": OLD}, (release,), ("v9",))
    assert bundle(app, state, tmp_path).base_release is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files":{},"version":1}'])
def test_a_manifest_in_the_cache_that_is_not_whole_is_not_believed(app, tmp_path, content):
    archive = build.build_archive(source(app), tmp_path / "cache")
    (tmp_path / "cache" / "manifests" / f"{archive.manifest}.json").write_bytes(content)
    assert manifest.recall(archive.manifest, tmp_path / "cache") is None
    assert manifest.recall("../../etc/passwd", tmp_path / "cache") is None


def test_the_cache_keeps_the_newest_of_everything(app, tmp_path):
    for number in range(25):
        for kind in ("archives", "bundles", "manifests"):
            path = tmp_path / kind / f"{number:03}"
            build.write_whole(path, b"x")
            os.utime(path, (number, number))
        for kind in ("composer/vendor", "wheels"):
            folder = tmp_path / kind / f"{number:03}"
            build.write_whole(folder / "a", b"x")
            os.utime(folder, (number, number))
    assert in_use(tmp_path / "composer/vendor/003")
    assert not in_use(tmp_path / "composer/vendor/none")
    build.trim_cache(tmp_path, keep=8)
    assert sorted(p.name for p in (tmp_path / "composer/vendor").iterdir()) == ["003", "024"]
    build.trim_cache(tmp_path, keep=2)
    for kind in ("bundles", "wheels"):
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["023", "024"]
    assert len(list((tmp_path / "manifests").iterdir())) == 20


def test_platform_tags_begin_with_the_hosts_own_glibc_and_end_with_the_oldest():
    tags = build.platform_tags(BOOKWORM)
    assert tags[0] == "manylinux_2_36_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert not [tag for tag in build.platform_tags(TRIXIE) if "x86" in tag or "2_5_" in tag]


def test_the_wheel_installs_and_imports_with_nothing_else(app, tmp_path):
    wheel = build.build_stack_wheel(source(app), cache=tmp_path / "cache")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    with zipfile.ZipFile(wheel) as archive:
        site = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
        archive.extractall(site)
    done = subprocess.run(
        [
            tmp_path / "venv" / "bin" / "python",
            "-I",
            "-c",
            "import kestrel_stack.consumer, kestrel_stack.queue",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ROOT not in wheel.parents
