"""Hosts that do not become ready: refused by name, in bounded time, with their own last words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from kestrel_stack.lab import engine, hosts, image, inventory
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import Lab

pytestmark = pytest.mark.docker


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(hosts, "LOGIN_SECONDS", 3.0)
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"queue1": None}}}))
    made = inventory.load(tmp_path)
    yield made
    hosts.down(made)


@pytest.fixture
def broken_image(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Return a function that makes the host image with one step more."""
    name = f"kestrel-stack/test-broken:{tmp_path.name[-30:].replace('_', '-')}"

    def build(step: str) -> str:
        context = tmp_path / "context"
        context.mkdir()
        base, _ = image.ensure("bookworm")
        (context / "Dockerfile").write_text(f"FROM {base}\n{step}\n")
        engine.docker("build", f"--tag={name}", str(context))
        return name

    yield build
    engine.docker("rmi", "--force", name, check=False)


def test_a_host_whose_sshd_does_not_start_is_named_and_its_journal_is_shown(
    lab: Lab, broken_image: Callable[[str], str]
) -> None:
    said: list[str] = []
    with pytest.raises(LabError, match="queue1: sshd does not listen"):
        hosts.up(
            lab, broken_image("RUN echo Nonsense yes >/etc/ssh/sshd_config.d/99-broken.conf"), say=said.append
        )
    assert any(line.startswith("queue1| ") and "Nonsense" in line for line in said)
    assert not lab.containers_yml.exists() or "queue1" in lab.containers_yml.read_text()


def test_a_host_that_answers_inside_only_is_refused_as_an_engine_without_reachable_addresses(
    lab: Lab, broken_image: Callable[[str], str]
) -> None:
    with pytest.raises(LabError, match="have no address that this machine reaches"):
        hosts.up(lab, broken_image("RUN echo ListenAddress 127.0.0.1 >/etc/ssh/sshd_config.d/99-inside.conf"))


def test_a_container_that_ends_at_once_is_named_with_what_it_printed(
    lab: Lab, broken_image: Callable[[str], str]
) -> None:
    said: list[str] = []
    with pytest.raises(LabError, match="queue1: the container ended at once"):
        hosts.up(lab, broken_image('CMD ["sh", "-c", "echo no systemd here; exit 1"]'), say=said.append)
    assert "queue1| no systemd here" in said


def test_after_a_failure_the_next_up_with_a_good_image_needs_recreate_and_then_works(
    lab: Lab, broken_image: Callable[[str], str]
) -> None:
    with pytest.raises(LabError):
        hosts.up(lab, broken_image("RUN echo Nonsense yes >/etc/ssh/sshd_config.d/99-broken.conf"))
    good, _ = image.ensure("bookworm")
    with pytest.raises(LabError, match=r"changed \(image\)"):
        hosts.up(lab, good)
    assert hosts.up(lab, good, recreate=True).created == ("queue1",)
