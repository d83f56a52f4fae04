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
        ({"queues": {"a": {"max_items": 0}}}, 'queue "a": "max_items" must be a whole number of at least 1'),
        ({"queues": {"a": {"max_age": 0}}}, 'queue "a": "max_age" must be seconds above 0'),
        ({"queues": {"a": {"discard_old_when_full": "no"}}}, '"discard_old_when_full" must be true or false'),
        ({"queues": {"a.b": {}}}, 'queue "a.b": a name must not'),
        ({"queues": {"": {}}}, 'queue ""'),
        ({"queues": {"a+b": {}}}, 'queue "a+b"'),
    ],
)
def test_what_is_wrong_is_named(data, named):
    with pytest.raises(ConfigError) as error:
        parse(data)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


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
