from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kestrel_stack.lab import image
from kestrel_stack.lab.errors import LabError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    shutil.copytree(image.FILES, tmp_path / "files")
    return tmp_path / "files"


def test_the_tag_changes_with_a_files_content_its_name_its_mode_and_the_suite(files: Path) -> None:
    tags = {image.tag("bookworm", files), image.tag("trixie", files)}
    dockerfile = files / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + "\n")
    tags.add(image.tag("bookworm", files))
    dockerfile.chmod(0o755)
    tags.add(image.tag("bookworm", files))
    dockerfile.rename(files / "Dockerfile2")
    tags.add(image.tag("bookworm", files))
    assert len(tags) == 5


def test_the_tag_is_the_same_for_the_same_files_elsewhere(files: Path) -> None:
    assert image.tag("bookworm", files) == image.tag("bookworm")


def test_an_unsupported_suite_is_refused_naming_those_supported() -> None:
    with pytest.raises(LabError, match=r"--suite buster: not supported.*bookworm, trixie"):
        image.tag("buster")


def test_the_mirror_is_the_machines_own_and_not_a_third_partys() -> None:
    text = (
        "Docker|main|bookworm|https://third.example/debian\n"
        "Debian|contrib|bookworm|http://mirror.example/contrib/\n"
        "Debian|main|bookworm|http://mirror.example/debian/\n"
        "Debian|main|bookworm-updates|http://updates.example/debian/\n"
        "Debian|main|bookworm-security|http://mirror.example/security/\n"
    )
    found = image.parse_index_targets(text)
    assert found == image.Mirror("http://mirror.example/debian/", "http://mirror.example/security/")


def test_before_the_first_update_the_suites_name_is_enough() -> None:
    assert image.parse_index_targets("|main|trixie|http://mirror.example/debian/\n") == image.Mirror(
        "http://mirror.example/debian/", None
    )


@pytest.mark.parametrize("text", ["", "\n", "Debian|main|bookworm|cdrom:[disk]/\n", "nonsense\n"])
def test_without_a_mirror_of_its_own_the_tools_default_is_used(text: str) -> None:
    assert image.parse_index_targets(text) is None


def test_the_sources_follow_the_suite_asked_for_and_not_the_machines() -> None:
    text = image.sources("trixie", image.Mirror("http://m.example/debian/", "http://m.example/security/"))
    assert text.splitlines() == [
        "deb http://m.example/debian/ trixie main",
        "deb http://m.example/debian/ trixie-updates main",
        "deb http://m.example/security/ trixie-security main",
    ]


def test_the_bootstrap_reads_sources_from_its_input_only_when_there_is_a_mirror() -> None:
    mirror = image.Mirror("http://m.example/debian/", None)
    with_mirror = image.bootstrap_command("bookworm", mirror, ['Acquire::Retries "3";'], root=True)
    without = image.bootstrap_command("bookworm", None, [], root=False)
    assert with_mirror[-3:] == ["bookworm", "-", "-"]
    assert '--aptopt=Acquire::Retries "3";' in with_mirror
    assert without[-2:] == ["bookworm", "-"]
    assert "--mode=unshare" in without


def test_the_build_context_has_the_machines_certificates_and_nothing_else_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "own.crt").write_text("certificate")
    (tmp_path / "ca" / "own.key").write_text("secret")
    monkeypatch.setattr(image, "OWN_CA", tmp_path / "ca")
    image.write_context("bookworm", tmp_path / "context")
    assert [path.name for path in (tmp_path / "context" / "machine" / "ca").iterdir()] == ["own.crt"]
    assert (tmp_path / "context" / "Dockerfile").is_file()


def test_a_proxy_of_the_environment_is_kept_for_the_hosts_unless_apt_has_its_own() -> None:
    environ = {"http_proxy": "http://proxy.example:3128", "https_proxy": "http://proxy.example:3129"}
    own = 'Acquire::http::Proxy "http://cache.example:3142";'
    assert image.with_proxies([own], environ) == [own, 'Acquire::https::Proxy "http://proxy.example:3129";']
    assert image.with_proxies([own], {}) == [own]
    bare = image.with_proxies([], {"http_proxy": "proxy.example:3128"})
    assert bare == ['Acquire::http::Proxy "http://proxy.example:3128";']


@pytest.mark.parametrize(
    "proxy", ["http://127.0.0.1:3128", "http://localhost:3128/", "http://ada:secret@[::1]:1"]
)
@pytest.mark.parametrize("where", ["apt", "environment"])
def test_a_proxy_that_no_host_reaches_is_refused_without_its_password(proxy: str, where: str) -> None:
    settings = [f'Acquire::http::Proxy "{proxy}";'] if where == "apt" else []
    with pytest.raises(LabError, match="is not reached from the hosts in containers") as raised:
        image.with_proxies(settings, {} if settings else {"http_proxy": proxy})
    assert "secret" not in str(raised.value)


def test_a_proxy_without_a_scheme_that_no_host_reaches_is_refused_too() -> None:
    with pytest.raises(LabError, match="the proxy at localhost"):
        image.with_proxies([], {"http_proxy": "localhost:3128"})
