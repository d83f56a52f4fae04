"""What is refused before anything is touched: the machine, the programs, the version, what is on the host."""

from __future__ import annotations

import json

import pytest

STOPS = ["9.1.2", "21.5.0", "21.6.3", "23.6.2", "23.11.0", "24.8.0", "25.5.1"]


def facts(**changes):
    """A host that is just enough."""
    return {
        "machine": "x86_64",
        "cpus": 2,
        "memory_mb": 7000,
        "disk": "/var/lib/docker",
        "disk_gb": 20.0,
        "sse42": True,
        "kvm": False,
        "docker": "19.03.6",
        "has_docker": True,
        "podman": False,
        "compose": "2.32.2",
        "bash": "4.4.0(1)-release",
        "git": "git version 2.39.5",
        "listeners": [],
        "volumes": [],
        "tree": False,
        "secret_key": False,
        "state": {},
        "edits": [],
    } | changes


def installed(version, **changes):
    state = {"version": version, "commit": "b" * 40, "digest": "d", "conf": "c"}
    return facts(state=state | changes, tree=True, secret_key=True, volumes=["sentry-postgres"])


def test_a_host_that_is_just_enough_passes(host):
    assert host.tool.problems(facts(), host.asks("26.8.0")) == []


@pytest.mark.parametrize(
    ("changes", "profile", "said"),
    [
        ({"cpus": 1}, "errors-only", "1 CPUs, and profile errors-only needs 2: give the host more"),
        ({"cpus": 3, "memory_mb": 14000}, "feature-complete", "3 CPUs, and profile feature-complete needs 4"),
        ({"memory_mb": 6999}, "errors-only", "6999 MB of memory, and profile errors-only needs 7000 MB"),
        (
            {"cpus": 4, "memory_mb": 13999},
            "feature-complete",
            "13999 MB of memory, and profile feature-complete needs 14000 MB: give the host more,"
            " or set sentry_self_hosted_profile: errors-only",
        ),
        ({"disk_gb": 19.9}, "errors-only", "19.9 GB free on /var/lib/docker, and Sentry needs 20 GB"),
        ({"sse42": False}, "errors-only", "the CPU has no SSE4.2"),
        ({"machine": "i686"}, "errors-only", "Sentry has no images for i686"),
        ({"docker": "19.03.5"}, "errors-only", "docker 19.03.5, and Sentry needs 19.03.6"),
        ({"docker": ""}, "errors-only", "the docker engine does not answer: systemctl start docker"),
        ({"docker": "", "compose": "", "has_docker": False}, "errors-only", "no docker: install an engine"),
        ({"compose": "2.32.1"}, "errors-only", "docker compose 2.32.1, and Sentry needs 2.32.2"),
        ({"compose": "2.26.1-4"}, "errors-only", "docker compose 2.26.1-4, and Sentry needs 2.32.2"),
        ({"compose": ""}, "errors-only", "no compose plugin of docker: install"),
        ({"bash": "4.3.48(1)-release"}, "errors-only", "bash 4.3.48(1)-release, and Sentry"),
        (
            {"docker": "5.4.2", "compose": "", "podman": True},
            "errors-only",
            "docker is podman here, which this role was not made for",
        ),
        ({"git": ""}, "errors-only", "no git, which fetches the release: apt-get install git"),
        ({"tree": True}, "errors-only", "was not made by this role: move it away"),
        ({"volumes": ["sentry-postgres"]}, "errors-only", "there is a Docker volume sentry-postgres"),
        ({"edits": ["a line of somebody's"]}, "errors-only", "a line of somebody's"),
    ],
)  # fmt: skip
def test_each_lack_is_refused_alone_with_its_number(host, changes, profile, said):
    found = host.tool.problems(facts(**changes), host.asks("26.8.0", profile=profile))
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"docker": "20.10.24+dfsg1"},
        {"docker": "28.0.0", "compose": "v2.40.3"},
        {"compose": "5.0.0"},
        {"sse42": False, "kvm": True},
        {"sse42": False, "machine": "aarch64"},
        {"listeners": [["127.0.0.1", "nginx"]], "state": {}, "machine": "x86_64"},
    ],
)
def test_what_is_newer_or_cannot_be_told_passes(host, changes):
    asks = host.asks("26.8.0", address="10.0.0.5") if "listeners" in changes else host.asks("26.8.0")
    assert host.tool.problems(facts(**changes), asks) == []


def test_every_lack_is_told_at_once(host):
    found = host.tool.problems(facts(cpus=1, memory_mb=1, disk_gb=1, git=""), host.asks("26.8.0"))
    assert len(found) == 4


def test_what_is_doubtful_is_warned_of(host):
    assert "arm64" in host.tool.warnings(facts(machine="aarch64"))[0]
    assert "SSE4.2" in host.tool.warnings(facts(sse42=False, kvm=True))[0]
    assert host.tool.warnings(facts()) == []


@pytest.mark.parametrize(
    ("before", "wanted", "stop"),
    [
        ("8.22.0", "26.8.0", "9.1.2"),
        ("9.1.2", "26.8.0", "21.5.0"),
        ("9.1.2", "21.5.0", None),
        ("21.4.1", "21.5.0", None),
        ("21.5.0", "21.6.1", None),
        ("21.5.0", "26.8.0", "21.6.3"),
        ("21.6.3", "26.8.0", "23.6.2"),
        ("22.12.0", "23.7.0", "23.6.2"),
        ("23.6.2", "26.8.0", "23.11.0"),
        ("23.11.0", "26.8.0", "24.8.0"),
        ("24.8.0", "26.8.0", "25.5.1"),
        ("24.8.0", "25.5.1", None),
        ("25.5.0", "26.8.0", "25.5.1"),
        ("25.5.1", "26.8.0", None),
        ("26.7.0", "26.8.0", None),
        ("26.8.0", "26.8.0", None),
        ("26.8.0", "26.10.0", None),
    ],
)
def test_the_next_version_on_the_way_is_named(host, before, wanted, stop):
    found = host.tool.problems(installed(before), host.asks(wanted, commit="a" * 40))
    if stop is None:
        assert found == []
    else:
        assert len(found) == 1
        assert f"set sentry_self_hosted_version: {stop} and sentry_self_hosted_commit: " in found[0]
        assert host.tool.STOPS[stop] in found[0]


def test_every_stop_stops(host):
    assert list(host.tool.STOPS) == STOPS
    for stop in STOPS:
        below = ".".join([*stop.split(".")[:-1], "0"]) if not stop.endswith(".0") else "9.0.0"
        assert host.tool.guard(below, "99.0.0")
        assert len(host.tool.STOPS[stop]) == 40


@pytest.mark.parametrize(
    ("before", "wanted"), [("26.8.0", "26.7.0"), ("26.10.0", "26.9.0"), ("26.8.1", "26.8.0")]
)
def test_there_is_no_way_back(host, before, wanted):
    (found,) = host.tool.problems(installed(before), host.asks(wanted, commit="a" * 40))
    assert f"Sentry {before} is installed and its database does not go back to {wanted}" in found


def test_a_change_that_was_cut_has_to_be_finished_first(host):
    half = {"version": "26.8.0", "commit": "a" * 40}
    (found,) = host.tool.problems(installed("26.7.0", installing=half), host.asks("26.9.0"))
    assert "the change to Sentry 26.8.0 was cut" in found
    assert host.tool.problems(installed("26.7.0", installing=half), host.asks("26.8.0")) == []
    (found,) = host.tool.problems(installed("26.7.0", restoring="/b/1"), host.asks("26.8.0"))
    assert "finish it first (kestrel-stack-sentry restore /b/1 --yes)" in found


def test_a_lost_key_is_refused_unless_the_inventory_has_one(host):
    lost = installed("26.8.0") | {"secret_key": False}
    (found,) = host.tool.problems(lost, host.asks("26.8.0"))
    assert "secret_key is missing" in found
    assert host.tool.problems(lost, host.asks("26.8.0", has_secret_key=True)) == []


@pytest.mark.parametrize(
    ("listener", "state", "refused"),
    [
        (["127.0.0.1", "nginx"], {}, True),
        (["0.0.0.0", "nginx"], {}, True),
        (["*", "nginx"], {}, True),
        (["127.0.0.1", "docker-proxy"], {}, True),
        (["127.0.0.1", "docker-proxy"], {"version": "26.8.0"}, False),
        (["127.0.0.1", "nginx"], {"version": "26.8.0"}, True),
        (["10.0.0.9", "nginx"], {}, False),
    ],
)
def test_a_taken_port_is_refused_with_who_has_it(host, listener, state, refused):
    found = host.tool.problems(facts(listeners=[listener], state=state, secret_key=True), host.asks("26.8.0"))
    assert bool(found) == refused
    if refused:
        assert found[0].startswith(f"port {host.port} is taken by {listener[1]}: ")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("version", "latest", "sentry_self_hosted_version latest is no version"),
        ("commit", "73fe2f2", "sentry_self_hosted_commit 73fe2f2 is no commit"),
        ("organization", "My Org", "sentry_organization My Org is no name for Sentry"),
        ("project", "42", "sentry_project 42 is no name for Sentry"),
    ],
)
def test_a_value_that_cannot_be_right_is_named(host, name, value, said):
    (found,) = host.tool.problems(facts(), host.asks("26.8.0") | {name: value})
    assert found.startswith(said)


def test_preflight_looks_at_a_real_host_and_changes_nothing(host, monkeypatch):
    monkeypatch.setattr(host.tool, "ROOT", host.folder / "nowhere")
    before = sorted(path for path in host.folder.rglob("*") if "state" not in path.parts)
    needs = {"errors-only": {"cpus": 1, "memory_mb": 100}, "disk_gb": 0}
    answer = host.done("preflight", json.dumps(host.asks("26.8.0", needs=needs)))
    assert answer == {"changed": False, "problems": [], "warnings": answer["warnings"]}
    needs["errors-only"] = {"cpus": 5000, "memory_mb": 10**9}
    answer = host.done("preflight", json.dumps(host.asks("26.8.0", needs=needs)))
    assert ["needs 5000" in answer["problems"][0], "needs 1000000000 MB" in answer["problems"][1]] == [
        True,
        True,
    ]
    host.flag("program", "podman version 5.4.2")
    asks = host.asks("26.8.0", needs={"errors-only": {"cpus": 1, "memory_mb": 1}, "disk_gb": 0})
    assert ["podman" in text for text in host.done("preflight", json.dumps(asks))["problems"]] == [True]
    host.no_flag("program")
    host.flag("server", "none")
    host.flag("compose", "none")
    answer = host.done(
        "preflight", json.dumps(host.asks("26.8.0", needs={"errors-only": {"cpus": 1, "memory_mb": 1}}))
    )
    assert any("engine does not answer" in text for text in answer["problems"])
    assert any("no compose plugin" in text for text in answer["problems"])
    assert sorted(path for path in host.folder.rglob("*") if "state" not in path.parts) == before
