from __future__ import annotations

import ipaddress
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.lab import hosts, inventory
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import Lab

ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
)


def a_lab(tmp_path: Path, names: tuple[str, ...] = ("queue1",)) -> Lab:
    folder = tmp_path / "ansible" / "inventories" / "lab"
    folder.mkdir(parents=True)
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": dict.fromkeys(names)}}))
    return inventory.load(folder, tmp_path)


def test_routes_are_read_as_the_kernel_writes_them_without_the_default_route() -> None:
    assert hosts.routes(ROUTES) == [
        ipaddress.IPv4Network("172.17.0.0/16"),
        ipaddress.IPv4Network("192.0.2.0/24"),
    ]


def test_the_mtu_is_the_one_of_the_default_routes_device() -> None:
    assert hosts.default_mtu(ROUTES, {"/sys/class/net/eth0/mtu": "1400\n"}.__getitem__) == 1400


def test_a_jumbo_mtu_is_not_given_to_containers_and_no_route_means_the_usual() -> None:
    assert hosts.default_mtu(ROUTES, lambda name: "9000") == 1500
    assert hosts.default_mtu(ROUTES.splitlines()[0], lambda name: "1400") == 1500


@given(
    key=st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}"),
    taken=st.lists(
        st.tuples(st.integers(16, 32), st.integers(0, 255), st.integers(12, 28)).map(
            lambda parts: ipaddress.IPv4Network(f"172.{parts[0]}.{parts[1]}.0/{parts[2]}", strict=False)
        ),
        max_size=6,
    ),
)
def test_a_chosen_subnet_overlaps_nothing_that_is_taken(key: str, taken: list[ipaddress.IPv4Network]) -> None:
    for subnet in itertools.islice(hosts.free_subnets(key, taken), 3):
        assert not any(subnet.overlaps(other) for other in taken)


def test_the_same_lab_gets_the_same_subnet_when_it_is_free() -> None:
    assert next(hosts.free_subnets("0000abcd", [])) == next(hosts.free_subnets("0000abcd", []))


def test_no_subnet_is_offered_when_everything_is_taken() -> None:
    assert list(hosts.free_subnets("00000001", [ipaddress.IPv4Network("172.16.0.0/12")])) == []


def test_a_changed_definition_names_what_changed(tmp_path: Path) -> None:
    lab = a_lab(tmp_path)
    then = json.dumps(hosts.definition(lab, "kestrel-stack/host:bookworm-1"))
    now = hosts.definition(lab, "kestrel-stack/host:bookworm-2")
    assert hosts.differences(now, [then]) == ["image"]
    assert hosts.differences(now, [json.dumps(now)]) == []
    assert hosts.differences(now, ["not json"]) == ["hosts", "image", "options"]


def test_changed_container_options_change_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = a_lab(tmp_path)
    then = json.dumps(hosts.definition(lab, "image"))
    monkeypatch.setattr(hosts, "RUN_OPTIONS", (*hosts.RUN_OPTIONS, "--cap-add=SYS_TIME"))
    assert hosts.differences(hosts.definition(lab, "image"), [then]) == ["options"]


def test_a_file_is_replaced_whole_and_an_equal_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    hosts.write(path, "one\n")
    before = path.stat()
    hosts.write(path, "one\n")
    assert path.stat().st_ino == before.st_ino
    hosts.write(path, "two\n")
    assert path.read_text() == "two\n"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("limit", "told"),
    [("128\n", True), ("511\n", True), ("512\n", False), ("8192\n", False), ("none\n", False)],
)
def test_a_limit_that_many_containers_reach_is_named_with_its_command(limit: str, told: bool) -> None:
    said = hosts._few_watches(lambda: limit)
    assert ("sysctl -w fs.inotify.max_user_instances=1024" in said) is told
    assert bool(said) is told


ENGINE = """#!/bin/bash
cd "${0%/*}"
case "$1 $2" in
    "rm --force")
        echo "$*" >>removals
        [[ -z $REFUSES ]] || { echo "Error response from daemon: $REFUSES" >&2; exit 1; }
        [[ $(wc -l <removals) -gt 2 ]] && { rm -f there; exit 0; }
        echo "Error response from daemon: removal of container queue1 is already in progress" >&2
        exit 1 ;;
    "ps --all") [[ ! -e there ]] || cat there ;;
esac
"""


@pytest.fixture
def removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that still removes a container which somebody else, now interrupted, asked it to remove."""
    program = tmp_path / "docker"
    program.write_text(ENGINE)
    program.chmod(0o755)
    (tmp_path / "there").write_text("queue1\n")
    monkeypatch.setenv("KESTREL_STACK_DOCKER", str(program))
    return tmp_path


def test_containers_that_are_being_removed_already_are_waited_for(removing: Path) -> None:
    lab = a_lab(removing)
    assert hosts.down(lab).containers == ("queue1",)
    assert (removing / "removals").read_text().splitlines() == ["rm --force --volumes queue1"] * 3


def test_any_other_reason_of_the_engine_is_told_at_once(
    removing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSES", "device is busy")
    with pytest.raises(LabError, match=r"docker rm failed: .*device is busy"):
        hosts.down(a_lab(removing))
    assert len((removing / "removals").read_text().splitlines()) == 1
