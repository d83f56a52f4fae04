import json
import os

import pytest

from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import SettingsError
from kestrel_stack.queue.servers import Server

GOOD = {
    "app": "shop",
    "namespace": "shop",
    "environment": "lab",
    "host": "worker1",
    "servers": ["10.0.0.1:22133", "10.0.0.2:22133"],
    "queues": [
        {
            "name": "hello_world",
            "language": "python",
            "processes": 2,
            "max_jobs": 1000,
            "job_timeout": 60,
            "retry_delays": [10, 60],
            "max_items": None,
            "rate_limit": "50/s",
            "alert": {"backlog": 1000},
        },
        {"name": "mail"},
    ],
    "sentry_dsn": None,
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="shop.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def changed(**changes):
    return {**GOOD, **changes}


def with_queue(**changes):
    return changed(queues=[{"name": "mail", **changes}])


def with_others(also):
    others = [{"name": "other"}, {"name": "in_php", "language": "php"}]
    return changed(queues=[{"name": "mail", "also": also}, *others])


def test_limits_of_workers_and_queues_to_take_as_well_are_read(write):
    limits = {"max_time": "1h", "max_memory": "256MB"}
    found = settings.load(
        write(changed(queues=[{"name": "mail", **limits, "also": ["low"]}, {"name": "low"}])), {}
    )
    mail, low = found.queue("mail"), found.queue("low")
    assert (mail.max_time, mail.max_memory, mail.also) == (3600, 256 * 1024**2, ("low",))
    assert (low.max_time, low.max_memory, low.also) == (None, None, ())


def test_a_settings_file_is_read_with_its_defaults(write):
    found = settings.load(write(GOOD), {})
    assert (found.app, found.namespace, found.environment, found.host) == ("shop", "shop", "lab", "worker1")
    assert found.servers == (Server("10.0.0.1"), Server("10.0.0.2"))
    hello, mail = found.queue("hello_world"), found.queue("mail")
    assert (hello.processes, hello.retry_delays, hello.rate_limit) == (2, (10, 60), 50.0)
    assert (mail.language, mail.processes, mail.max_jobs, mail.job_timeout) == ("python", 1, 1000, 60)
    assert (mail.retry_delays, mail.max_items, mail.rate_limit) == ((), None, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        (changed(server="x"), "unknown key 'server'; known: app, namespace"),
        (changed(app=""), "'app' must be a text"),
        ({key: value for key, value in GOOD.items() if key != "namespace"}, "'namespace' must be a text"),
        (changed(namespace="a.b"), "namespace 'a.b' may hold only"),
        (changed(servers=[]), "'servers' must be a list with at least one entry"),
        (changed(servers="10.0.0.1:22133"), "'servers' must be a list"),
        (changed(servers=["10.0.0.1:x"]), "'10.0.0.1:x' is not a server"),
        (changed(queues=[]), "'queues' must be a list"),
        (changed(queues=["mail"]), r"queues\[0\] must be an object with a 'name'"),
        (changed(queues=[{"name": "mail"}, {"name": "mail"}]), "'mail' is described twice"),
        (changed(queues=[{"name": "a/b"}]), "queue name 'a/b' may hold only"),
        (changed(queues=[{"name": "mail_errors"}]), "that the stack makes itself"),
        (changed(sentry_dsn=5), "'sentry_dsn' must be a text or null"),
        (with_queue(proceses=2), "queue 'mail': unknown key 'proceses'; known: name, language"),
        (with_queue(language="perl"), "queue 'mail': 'language' must be one of python, php"),
        (with_queue(processes=0), "queue 'mail': 'processes' must be a whole number from 1 on"),
        (with_queue(job_timeout="60"), "queue 'mail': 'job_timeout' must be a whole number"),
        (with_queue(max_jobs=True), "queue 'mail': 'max_jobs' must be a whole number"),
        (with_queue(retry_delays=10), "queue 'mail': 'retry_delays' must be a list"),
        (with_queue(retry_delays=[0]), "queue 'mail': each of 'retry_delays' must be a whole number"),
        (with_queue(rate_limit="50"), "queue 'mail': 'rate_limit': '50' is not a rate"),
        (with_queue(rate_limit="0/s"), "queue 'mail': 'rate_limit': '0/s' is not a rate"),
        (with_queue(max_size="lots"), "queue 'mail': 'max_size' 'lots' is not a size; write it like 1MB"),
        (with_queue(max_item_size=0), "queue 'mail': 'max_item_size' 0 is not a size"),
        (with_queue(max_memory_size=True), "queue 'mail': 'max_memory_size' True is not a size"),
        (with_queue(max_age=30), "queue 'mail': 'max_age' must look like 30s, 5m or 1h."),
        (with_queue(discard_old_when_full=1), "queue 'mail': 'discard_old_when_full' must be true or false."),
        (with_queue(fanouts=["a+b"]), "queue 'mail': 'fanouts' must be a list of names"),
        (with_queue(alert=[]), "queue 'mail': 'alert' must be an object"),
        (with_queue(max_time=3600), "queue 'mail': 'max_time' must look like 30s, 5m or 1h."),
        (with_queue(max_time="0s"), "queue 'mail': 'max_time' must look like"),
        (with_queue(max_memory="lots"), "queue 'mail': 'max_memory' 'lots' is not a size; write it like 1MB"),
        (with_queue(max_memory=0), "queue 'mail': 'max_memory' 0 is not a size"),
        (with_queue(also="other"), "queue 'mail': 'also' must be a list of names"),
        (with_queue(also=[1]), "queue 'mail': 'also' must be a list of names"),
        (with_queue(also=["mail"]), "queue 'mail': 'also' names the queue 'mail' once more"),
        (with_queue(also=["nope"]), "'also' names 'nope', which is not one of the queues described here"),
        (with_others(["other", "other"]), "'also' names the queue 'other' once more"),
        (with_others(["in_php"]), "'also' names 'in_php', a queue for php workers; these are for python"),
    ],
)
def test_a_wrong_settings_file_is_refused_naming_the_file_and_the_key(write, content, said):
    path = write(content)
    with pytest.raises(SettingsError, match=said) as refused:
        settings.load(path, {})
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"absent.json does not exist"):
        settings.load(tmp_path / "absent.json", {})


def test_a_file_of_another_group_is_named(write):
    path = write(GOOD)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(SettingsError, match="may not be read by this user"):
            settings.load(path, {})
    finally:
        os.seteuid(user)


def test_a_folder_instead_of_a_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.load(tmp_path, {})


def test_the_environment_names_the_file_and_overrides_its_content(write):
    environ = {
        "KESTREL_STACK_CONFIG": str(write(GOOD)),
        "KESTREL_STACK_SERVERS": "10.9.9.9:1",
        "KESTREL_STACK_NAMESPACE": "other",
        "KESTREL_STACK_ENVIRONMENT": "staging",
    }
    found = settings.load(None, environ)
    assert found.servers == (Server("10.9.9.9", 1),)
    assert (found.namespace, found.environment) == ("other", "staging")


def test_without_a_name_the_only_file_is_taken(write, tmp_path):
    path = write(GOOD)
    assert settings.find(None, {}, tmp_path) == path


def test_without_a_name_several_files_are_refused_by_name(write, tmp_path):
    write(GOOD, "a.json")
    write(GOOD, "b.json")
    with pytest.raises(SettingsError, match=r"a.json, b.json.*--config"):
        settings.find(None, {}, tmp_path)


def test_without_any_file_the_error_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match=r"--config.*site.yml"):
        settings.find(None, {}, tmp_path)


def test_an_unknown_queue_is_refused_with_those_configured(write):
    with pytest.raises(SettingsError, match=r"'nope' is not configured.*configured: hello_world, mail"):
        settings.load(write(GOOD), {}).queue("nope")
