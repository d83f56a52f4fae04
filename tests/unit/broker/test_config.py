"""The configuration file."""

import json
from pathlib import Path

import pytest

from kestrel_stack.broker.config import Config, ConfigError, QueueSettings, load, parse


def test_an_empty_object_gives_the_defaults():
    assert parse({}) == Config()
    assert parse({}).max_open_transactions == 100


def test_a_queues_block_states_what_differs_from_default():
    config = parse(
        {
            "queue_path": "/var/spool/x",
            "default": {"max_items": 10, "max_age": 1.5},
            "queues": {"shop_mail": {"max_items": None, "discard_old_when_full": True}},
        }
    )
    assert config.queue_path == Path("/var/spool/x")
    assert config.settings_for("other") == QueueSettings(max_items=10, max_age=1.5)
    assert config.settings_for("shop_mail") == QueueSettings(max_age=1.5, discard_old_when_full=True)


def test_a_fanout_has_its_parents_settings_and_a_block_under_its_full_name_differs_from_those():
    config = parse(
        {
            "default": {"max_items": 10},
            "queues": {"a+own": {"max_age": 2}, "a": {"max_size": 5, "max_age": 1}},
        }
    )
    assert config.settings_for("a+b") == config.settings_for("a") == QueueSettings(10, 5, max_age=1)
    assert config.settings_for("a+own") == QueueSettings(10, 5, max_age=2)
    assert config.settings_for("c+d") == QueueSettings(10)


def test_a_queue_without_an_own_sync_has_the_servers():
    config = parse(
        {"sync_journal_ms": 7, "queues": {"now": {"sync_journal_ms": 0}, "late": {"sync_journal_ms": None}}}
    )
    assert [config.sync_ms_for(config.settings_for(name)) for name in ("x", "now", "late")] == [7, 0, None]


def test_every_key_of_the_contract_is_taken():
    config = parse(
        {
            "listen_address": "127.0.0.1",
            "port": 1,
            "admin_address": "127.0.0.1",
            "admin_port": None,
            "queue_path": "/q",
            "status_file": "/s/status",
            "max_open_transactions": 3,
            "client_timeout_ms": 5,
            "expiration_timer_ms": 6,
            "sync_journal_ms": None,
            "log_level": "debug",
            "default": {"expire_to_queue": None, "max_expire_sweep": None, "max_queue_age": 1.5},
            "queues": {
                "a": {
                    "keep_journal": False,
                    "sync_journal_ms": 1,
                    "expire_to_queue": "b",
                    "max_expire_sweep": 2,
                    "fanout_only": True,
                    "max_memory_size": 3,
                    "default_journal_size": 4,
                    "max_journal_size": 5,
                }
            },
            "aliases": {"all": ["a", "a+b"]},
        }
    )
    assert (config.status_file, config.client_timeout_ms, config.expiration_timer_ms) == (
        Path("/s/status"),
        5,
        6,
    )
    assert config.aliases == {"all": ("a", "a+b")}
    assert config.queues["a"] == QueueSettings(
        keep_journal=False,
        sync_journal_ms=1,
        expire_to_queue="b",
        max_expire_sweep=2,
        fanout_only=True,
        max_queue_age=1.5,
        max_memory_size=3,
        default_journal_size=4,
        max_journal_size=5,
    )


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "the file must be a JSON object"),
        ({"prot": 1}, 'unknown key "prot" in the file; known are listen_address, port'),
        ({"port": "22133"}, '"port" must be a whole number from 0 to 65535, not "22133"'),
        ({"port": 65536}, '"port"'),
        ({"port": True}, '"port"'),
        ({"port": None}, '"port"'),
        ({"admin_port": -1}, '"admin_port"'),
        ({"listen_address": ""}, '"listen_address"'),
        ({"admin_address": 1}, '"admin_address"'),
        ({"queue_path": "spool"}, '"queue_path" must be an absolute path'),
        ({"max_open_transactions": 0}, '"max_open_transactions"'),
        ({"sync_journal_ms": -1}, '"sync_journal_ms"'),
        ({"sync_journal_ms": 0.5}, '"sync_journal_ms"'),
        ({"log_level": "loud"}, '"log_level" must be one of debug, info'),
        ({"default": {"maxItems": 1}}, 'unknown key "maxItems" in "default"; known are max_items'),
        ({"default": []}, '"default" must be a JSON object'),
        ({"queues": []}, '"queues" must be an object'),
        ({"queues": {"a": {"max_items": 0}}}, 'queue "a": "max_items" must be a whole number from 1 to'),
        ({"queues": {"a": {"max_age": 0}}}, 'queue "a": "max_age" must be seconds above 0'),
        ({"queues": {"a": {"discard_old_when_full": "no"}}}, '"discard_old_when_full" must be true or false'),
        ({"queues": {"a.b": {}}}, 'queue "a.b": a name must not'),
        ({"queues": {"": {}}}, 'queue ""'),
        ({"queues": {"+b": {}}}, 'queue "+b": a name must not be empty, begin with +'),
        ({"queues": {"q" * 231: {}}}, "must not be longer than 230 bytes"),
        ({"queues": {"\u20ac": {}}}, 'queue "\u20ac"'),
        ({"status_file": "status"}, '"status_file" must be an absolute path'),
        ({"queue_path": "/q", "status_file": "/q/status"}, '"status_file" must not be in "queue_path"'),
        ({"status_file": "/var/spool/kestrel/status"}, '"status_file" must not be in "queue_path"'),
        ({"client_timeout_ms": 0}, '"client_timeout_ms" must be a whole number from 1 to'),
        ({"expiration_timer_ms": 0.5}, '"expiration_timer_ms" must be a whole number from 1 to'),
        ({"default": {"keep_journal": 1}}, '"default": "keep_journal" must be true or false'),
        ({"default": {"fanout_only": None}}, '"default": "fanout_only" must be true or false'),
        ({"default": {"max_queue_age": "1d"}}, '"default": "max_queue_age" must be seconds above 0'),
        ({"default": {"max_memory_size": None}}, '"default": "max_memory_size" must be a whole number'),
        ({"default": {"max_journal_size": 0}}, '"default": "max_journal_size" must be a whole number'),
        ({"default": {"max_expire_sweep": 0}}, '"default": "max_expire_sweep" must be a whole number'),
        ({"default": {"sync_journal_ms": -1}}, '"default": "sync_journal_ms" must be a whole number'),
        ({"default": {"expire_to_queue": 1}}, '"default": "expire_to_queue" must be the name of a queue'),
        ({"queues": {"a": {"expire_to_queue": "b/c"}}}, 'queue "a": queue "b/c": a name must not'),
        ({"queues": {"a": {"expire_to_queue": "a"}}}, 'queue "a": "expire_to_queue" is the queue itself'),
        (
            {"aliases": {"all": ["a"]}, "queues": {"a": {"expire_to_queue": "all"}}},
            'queue "a": "expire_to_queue" all is an alias',
        ),
        (
            {"default": {"expire_to_queue": "old", "max_age": 5}},
            '"expire_to_queue" old: that queue would have itself as its own; give it a block of its own',
        ),
        ({"queues": {"a": {"expire_to_queue": "a+old"}}}, '"expire_to_queue" a+old: that queue would have'),
        ({"default": {"max_age": float("nan")}}, '"default": "max_age" must be seconds above 0'),
        ({"default": {"max_queue_age": float("inf")}}, '"default": "max_queue_age" must be seconds above 0'),
        ({"default": {"max_age": 1e15}}, '"default": "max_age" must be seconds above 0'),
        ({"sync_journal_ms": 10**30}, '"sync_journal_ms" must be a whole number from 0 to'),
        ({"queue_path": "/q\0"}, '"queue_path" must be an absolute path'),
        ({"listen_address": "::1\0"}, '"listen_address" must be an address'),
        ({"aliases": []}, '"aliases" must be an object'),
        ({"aliases": {"a+b": ["a"]}}, 'alias "a+b": a name with + is a fanout'),
        ({"aliases": {"all": []}}, 'alias "all": must be a list of at least one queue name'),
        ({"aliases": {"all": "a"}}, 'alias "all": must be a list of at least one queue name'),
        ({"aliases": {"all": ["a/b"]}}, 'alias "all": queue "a/b": a name must not'),
        ({"aliases": {"all": ["a", "a"]}}, 'alias "all": it names a queue twice'),
        ({"aliases": {"all": ["all"]}}, 'alias "all": all is an alias, too; name queues'),
        ({"aliases": {"all": ["b"]}, "queues": {"all": {}}}, 'alias "all": a queue has this name, too'),
    ],
)
def test_what_is_wrong_is_named(data, named):
    with pytest.raises(ConfigError) as error:
        parse(data)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_what_items_expire_to_may_keep_them(tmp_path):
    config = parse(
        {
            "default": {"expire_to_queue": "old", "max_age": 5},
            "queues": {"old": {"expire_to_queue": None, "max_age": None}},
        }
    )
    assert config.settings_for("a").expire_to_queue == "old"
    assert config.settings_for("old") == QueueSettings()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"port": ' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_what_no_decoder_takes_is_named_too(tmp_path, text):
    path = tmp_path / "broker.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broker\.json: not JSON: "):
        load(path)


def test_a_file_that_cannot_be_read_or_is_no_json_is_named(tmp_path):
    path = tmp_path / "broker.json"
    with pytest.raises(ConfigError, match=r"broker\.json: cannot read it: No such file"):
        load(path)
    path.write_text("{port: 1}")
    with pytest.raises(ConfigError, match=r"broker\.json: not JSON: .* line 1"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"broker\.json: not JSON"):
        load(path)
    path.write_text(json.dumps({"port": -1}))
    with pytest.raises(ConfigError, match=r'broker\.json: "port"'):
        load(path)
