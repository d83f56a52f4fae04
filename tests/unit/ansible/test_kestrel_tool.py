"""What kestrel-stack-kestrel reads: configurations of both flavours, and what a reload has left in a log."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

import pytest

from support import kestrel_config
from support.kestrel_host import TOOL


def load():
    loader = importlib.machinery.SourceFileLoader("kestrel_stack_kestrel", str(TOOL))
    spec = importlib.util.spec_from_loader("kestrel_stack_kestrel", loader)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


tool = load()
ALIASES = {"kestrel_aliases": {"shop_all": ["shop_mail"], "shop_more": ["other"]}}
QUEUES = {"kestrel_stack_queues": [{"name": "mail", "max_items": 5, "fanouts": ["audit"]}]}

# What is changed, and what brings it to a running server.
CHANGES = {
    "nothing": ({}, "nothing"),
    "queues": ({"kestrel_stack_queues": [{"name": "mail", "max_items": 6}]}, "reload"),
    "log-level": ({"kestrel_log_level": "error"}, "reload"),
    "memory": ({"kestrel_max_memory_size": "64MB"}, "reload"),
    "sync": ({"kestrel_sync_journal_ms": 0}, "restart"),
    "transactions": ({"kestrel_max_open_transactions": 7}, "restart"),
    "timeout": ({"kestrel_client_timeout_seconds": 7}, "restart"),
    "admin-port": ({"kestrel_admin_port": 2244}, "restart"),
}
OTHERS = {
    "every-ipv4": {"kestrel_listen_address": "0.0.0.0"},
    "every-ipv6": {"kestrel_listen_address": "::"},
    "fewer-aliases": {"kestrel_aliases": {"shop_all": ["shop_mail"]}},
}


@pytest.fixture(scope="module")
def setups(tmp_path_factory):
    """A release and an embedded one for each set of variables, as the playbook renders them."""
    changes = {**{name: change for name, (change, _) in CHANGES.items()}, **OTHERS}
    texts = kestrel_config.render_all(
        tmp_path_factory.mktemp("setups"),
        {name: {**QUEUES, **ALIASES, **change} for name, change in changes.items()},
    )
    return {
        name: (
            tool.Setup("2.4.1", "unit", text["kestrel.scala"]),
            tool.Setup("embedded-1-a", "unit", text["embedded.json"]),
        )
        for name, text in texts.items()
    }


@pytest.fixture
def plain(setups):
    return setups["nothing"]


def test_both_flavours_are_read_to_the_same(plain):
    for setup in plain:
        assert setup.reach == ("127.0.0.1", 22133)
        assert setup.queues == ["shop_mail", "shop_mail+audit", "shop_mail_errors"]
        assert setup.aliases == ["shop_all", "shop_more"]
    assert [setup.log for setup in plain] == ["/var/log/kestrel/kestrel.log", None]


def test_a_server_that_listens_everywhere_is_asked_on_loopback(setups):
    for name, asked in (("every-ipv4", "127.0.0.1"), ("every-ipv6", "::1")):
        assert [setup.reach for setup in setups[name]] == [(asked, 22133)] * 2


def needs(before, after):
    """What is needed to get from one setup to another: nothing, a reload or a restart."""
    reasons, by_reload = tool.differences(before.fingerprint("java"), after, "java")
    return "nothing" if not reasons else "reload" if by_reload else "restart"


@pytest.mark.parametrize("name", CHANGES)
def test_only_queues_aliases_and_the_log_level_are_reloaded(setups, plain, name):
    for before, after in zip(plain, setups[name], strict=True):
        assert needs(before, after) == CHANGES[name][1], after.flavor


def test_an_alias_comes_by_a_reload_and_leaves_a_release_by_a_restart_only(setups, plain):
    fewer = setups["fewer-aliases"]
    assert [needs(before, after) for before, after in zip(fewer, plain, strict=True)] == ["reload", "reload"]
    assert [needs(before, after) for before, after in zip(plain, fewer, strict=True)] == ["restart", "reload"]


def test_another_way_to_run_java_restarts_a_release_only(plain):
    release, embedded = plain
    assert tool.differences(release.fingerprint("java"), release, "other") == (
        ["how Java is run changed"],
        False,
    )
    assert tool.differences(embedded.fingerprint("java"), embedded, "other") == ([], True)


@pytest.mark.parametrize("text", ["", "{}", "new KestrelConfig {}", "[]", '{"listen_address": 1}'])
@pytest.mark.parametrize("release", ["2.4.1", "embedded-1-a"])
def test_a_configuration_that_the_role_has_not_written_is_refused_in_one_line(release, text):
    with pytest.raises(tool.Failed, match="is not what the role has written: run the play again"):
        tool.Setup(release, "unit", text)


NAMES = ["shop_mail", "shop_mail+audit"]
RELOADED = (
    "INF [20261121-05:00:00.000] kestrel: Reloading /etc/kestrel/kestrel.scala ...\n"
    "INF [20261121-05:00:02.000] kestrel: Reloaded queue config shop_mail: maxItems=5\n"
    "INF [20261121-05:00:02.000] kestrel: Reloaded queue config shop_mail+audit: maxItems=5\n"
    "INF [20261121-05:00:02.000] kestrel: Reloaded alias config shop_all: destinationQueues=[shop_mail]\n"
    "INF [20261121-05:00:02.000] kestrel: Setting up alias shop_more: destinationQueues=[other]\n"
)


def test_a_release_proves_a_reload_by_a_line_for_every_queue_and_alias(plain):
    assert tool.proof_release(RELOADED, plain[0], NAMES) == (True, None)


@pytest.mark.parametrize("line", range(5))
def test_a_line_that_is_missing_is_no_proof(plain, line):
    lines = RELOADED.splitlines(keepends=True)
    assert tool.proof_release("".join(lines[:line] + lines[line + 1 :]), plain[0], NAMES) == (False, None)


def test_a_release_that_could_not_compile_is_no_proof_and_says_why(plain):
    text = RELOADED.splitlines()[0] + "\nERR [x] kestrel: Error in config: Compiler exception error: line 3\n"
    assert tool.proof_release(text, plain[0], NAMES) == (
        False,
        "the server could not compile it (Compiler exception error: line 3)",
    )


def test_the_embedded_one_proves_a_reload_by_the_numbers_of_the_new_configuration(plain):
    prefix = "kestrel-embedded: INFO "
    assert tool.proof_embedded(f"{prefix}Reloaded config: 3 queues, 2 aliases\n", plain[1], []) == (
        True,
        None,
    )
    assert tool.proof_embedded(f"{prefix}Reloaded config: 4 queues, 2 aliases\n", plain[1], []) == (
        False,
        None,
    )
    refused = "kestrel-embedded: ERROR reload (the reload command): f: not JSON; everything stays as it was\n"
    assert tool.proof_embedded(refused, plain[1], []) == (False, "f: not JSON; everything stays as it was")
    part = "kestrel-embedded: WARNING reload (SIGHUP): port: needs a restart\n"
    assert tool.proof_embedded(part, plain[1], []) == (False, "port: needs a restart")


@pytest.mark.parametrize(
    ("span", "seconds"), [("1min 30s", 90), ("20s", 20), ("500ms", 0.5), ("1h 1min", 3660), ("infinity", 90)]
)
def test_systemds_time_spans_are_read(span, seconds):
    assert tool.seconds_of(span) == seconds
