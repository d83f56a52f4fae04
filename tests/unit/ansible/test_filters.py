"""What an inventory may say, and the sentence for what it may not."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.queue import names, settings
from kestrel_stack.queue.errors import QueueError
from support import ansible_filters

filters = ansible_filters.load()
CHECKOUT = ansible_filters.PATH.parents[4]


def queue(**options):
    return [{"name": "mail", **options}]


def test_the_queues_of_every_inventory_here_pass():
    for file in ("lab/group_vars/all.yml", "single/group_vars/all.yml", "example/group_vars/all/stack.yml"):
        said = yaml.safe_load((CHECKOUT / "ansible/inventories" / file).read_text())
        assert filters.queue_problems(said["kestrel_stack_queues"], said["kestrel_stack_namespace"]) == [], (
            file
        )


def test_a_queue_gets_every_option_in_a_fixed_order():
    [whole] = filters.complete_queues([{"processes": 3, "name": "mail"}])
    assert list(whole.items()) == [
        ("name", "mail"),
        ("language", "python"),
        ("processes", 3),
        ("max_jobs", 1000),
        ("max_time", None),
        ("max_memory", None),
        ("job_timeout", 60),
        ("retry_delays", []),
        ("max_items", None),
        ("rate_limit", None),
        ("also", []),
        ("alert", {}),
        ("max_size", None),
        ("max_item_size", None),
        ("max_memory_size", None),
        ("max_age", None),
        ("discard_old_when_full", False),
        ("fanouts", []),
        ("fanout_only", False),
    ]


def test_what_a_filter_fills_in_is_what_the_argument_spec_promises():
    spec = yaml.safe_load((CHECKOUT / "ansible/roles/consumers/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]["kestrel_stack_queues"]["options"]
    assert {name: option.get("default") for name, option in options.items() if name != "name"} == (
        filters.QUEUE_DEFAULTS
    )


@pytest.mark.parametrize(
    ("queues", "sentence"),
    [
        ([], "kestrel_stack_queues must be a list with at least one queue: - name: hello_world"),
        ("mail", "kestrel_stack_queues must be a list with at least one queue: - name: hello_world"),
        ([{"nam": "mail"}], "kestrel_stack_queues: entry 1 has no name: write - name: hello_world"),
        (
            [{"name": "mail.x"}],
            "kestrel_stack_queues: entry 1: queue name 'mail.x' is not legal:"
            " use A-Z, a-z, 0-9, _ and - only",
        ),
        (queue() + queue(), "kestrel_stack_queues: mail is there twice: remove one of them"),
        (
            [{"name": "mail_errors"}],
            "kestrel_stack_queues: mail_errors ends like the queues that the stack makes itself"
            " (_errors, _retry_SECONDS, _ping_HOST): rename it",
        ),
        (
            queue(max_jbos=1),
            "kestrel_stack_queues: mail: unknown option max_jbos: did you mean max_jobs?",
        ),
        (
            queue(language="ruby"),
            "kestrel_stack_queues: mail: language ruby is unknown: set language: python or php",
        ),
        (
            [{"name": "mover"}],
            "kestrel_stack_queues: mover is the name of the program that moves delayed jobs: rename it",
        ),
        (
            [{"name": "alarm"}],
            "kestrel_stack_queues: alarm is the name of the program that reports crashes: rename it",
        ),
        (
            queue(max_time=3600),
            "kestrel_stack_queues: mail: max_time 3600 must look like 30m or 1h, or be left out",
        ),
        (
            queue(max_memory="lots"),
            "kestrel_stack_queues: mail: max_memory: lots is not a size: write it like 512MB"
            " (KB, MB or GB), or in bytes",
        ),
        (
            queue(max_memory="1MB"),
            "kestrel_stack_queues: mail: max_memory 1MB must be at least 16MB",
        ),
        (
            queue(also="news"),
            "kestrel_stack_queues: mail: also news must be a list of queues' names, like [mail]",
        ),
        (
            queue(also=["mail"]),
            "kestrel_stack_queues: mail: also names mail once more: name each other queue once",
        ),
        (
            [*queue(also=["newz"]), {"name": "news"}],
            "kestrel_stack_queues: mail: also names newz, which is not described: did you mean news?",
        ),
        (
            [*queue(also=["news", "news"]), {"name": "news"}],
            "kestrel_stack_queues: mail: also names news once more: name each other queue once",
        ),
        (
            [*queue(also=["news"]), {"name": "news", "language": "php"}],
            "kestrel_stack_queues: mail: also names news, whose language is php:"
            " a worker runs jobs of one language",
        ),
        (
            queue(processes=0),
            "kestrel_stack_queues: mail: processes 0 must be a whole number of at least 1",
        ),
        (
            queue(processes=True),
            "kestrel_stack_queues: mail: processes True must be a whole number of at least 1",
        ),
        (queue(processes=101), "kestrel_stack_queues: mail: processes 101 is more than 100 for one host"),
        (
            queue(job_timeout="1m"),
            "kestrel_stack_queues: mail: job_timeout 1m must be a whole number of at least 1",
        ),
        (
            queue(retry_delays=[10, 0]),
            "kestrel_stack_queues: mail: retry_delays [10, 0] must be a list of whole seconds of at least 1",
        ),
        (
            queue(max_items=0),
            "kestrel_stack_queues: mail: max_items 0 must be a whole number of at least 1, or left out",
        ),
        (
            queue(rate_limit="fast"),
            "kestrel_stack_queues: mail: rate_limit fast must look like 50/s, or be left out",
        ),
        (
            queue(alert={"backlok": 1}),
            "kestrel_stack_queues: mail: unknown option alert.backlok: did you mean backlog?",
        ),
        (
            queue(alert={"age": 60}),
            "kestrel_stack_queues: mail: alert.age 60 must look like 60s, 5m or 1h",
        ),
        (
            queue(alert=5),
            "kestrel_stack_queues: mail: alert must be a mapping like {backlog: 1000, age: 60s}",
        ),
    ],
)
def test_a_bad_queue_is_one_sentence_with_its_name_and_the_fix(queues, sentence):
    assert filters.queue_problems(queues, "shop") == [sentence]


def test_a_name_that_would_not_fit_with_its_suffixes_is_refused():
    [problem] = filters.queue_problems([{"name": "m" * 119}], "shop")
    assert "has 124 bytes" in problem
    assert filters.queue_problems([{"name": "m" * 118}], "shop") == []


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "50/s"},
        {"rate_limit": "0.5/s"},
        {"rate_limit": "0/s"},
        {"rate_limit": "50/m"},
        {"rate_limit": 50},
        {"processes": 2.0},
        {"retry_delays": [10, 600]},
        {"retry_delays": []},
        {"max_items": None},
        {"max_items": -1},
        {"colour": "red"},
        {"alert": {"backlog": 5, "age": "5m"}},
        {"language": "php"},
        {"language": "ruby"},
        {"max_time": "30m"},
        {"max_time": "30"},
        {"max_time": 30},
        {"max_memory": "256MB"},
        {"max_memory": 268435456},
        {"max_memory": "256M"},
        {"also": "news"},
        {"also": []},
    ],
)
def test_the_inventory_and_the_library_accept_the_same_options(options):
    refused = bool(filters.queue_problems(queue(**options), "shop"))
    # The library sees what the settings file carries: JSON.
    entry = json.loads(json.dumps({"name": "mail", **options}))
    try:
        settings.describe_queue(entry, "shop")
        assert not refused
    except QueueError:
        assert refused


NAMES = st.text(alphabet="ab_-.1/ é", min_size=1, max_size=12) | st.sampled_from(
    ["x_errors", "x_retry_10", "x_retry_x", "x_ping_w1", "_errors", "errors", "x_errors_y"]
)


@given(name=NAMES, namespace=st.sampled_from(["shop", "s-1", "s.1"]))
def test_the_inventory_and_the_library_accept_the_same_names(name, namespace):
    refused = bool(
        filters.namespace_problems(namespace) or filters.queue_problems([{"name": name}], namespace)
    )
    try:
        names.make(namespace, name)
        assert not refused
    except QueueError:
        assert refused


def test_an_unknown_variable_is_named_with_the_nearest_known_one():
    known = ["kestrel_stack_queues", "consumers_python_app"]
    assert filters.unknown_variables(["kestrel_stack_queus", "consumers_pyhton_app", *known], known) == [
        "unknown variable consumers_pyhton_app: did you mean consumers_python_app?",
        "unknown variable kestrel_stack_queus: did you mean kestrel_stack_queues?",
    ]
    assert filters.unknown_variables(["kestrel_stack_colour"], known) == [
        "unknown variable kestrel_stack_colour: no role here reads it, remove it"
    ]


def test_the_known_variables_are_those_of_the_roles_specs():
    roles = str(CHECKOUT / "ansible/roles")
    assert {"kestrel_stack_queues", "deploy_user", "sentry_backend", "kestrel_flavor"} <= set(
        filters.known_variables(roles)
    )
    assert set(filters.variable_prefixes(roles)) >= {"kestrel_stack_", "consumers_", "app_host_"}


@pytest.mark.parametrize(
    ("distribution", "version", "machine", "problems"),
    [
        ("Debian", "12", "x86_64", []),
        ("Debian", "13", "aarch64", []),
        ("Debian", "11", "x86_64", ["Debian 11 is not supported: use Debian 12 or 13"]),
        ("Ubuntu", "24", "x86_64", ["Ubuntu 24 is not supported: use Debian 12 or 13"]),
        ("Debian", "12", "armv7l", ["architecture armv7l is not supported: use amd64 or arm64"]),
    ],
)
def test_other_hosts_than_the_supported_are_named(distribution, version, machine, problems):
    facts = {
        "distribution": distribution,
        "distribution_major_version": version,
        "architecture": machine,
    }
    assert filters.platform_problems(facts) == problems


@pytest.mark.parametrize("app", ["shop", "news-letter", "a1"])
def test_a_legal_application_name_passes(app):
    assert filters.app_problems(app) == []


@pytest.mark.parametrize("app", ["Shop", "1shop", "shop_x", "", "s" * 32, "mail", "worker", "shop\n", None])
def test_a_name_that_is_no_folder_or_is_a_group_of_the_system_is_refused(app):
    [problem] = filters.app_problems(app)
    assert problem.startswith("kestrel_stack_app")


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1", "queue1", "queue1.example.com", "127.0.0.1"])
def test_an_address_or_a_host_name_is_an_address(address):
    assert filters.address_problems(address, "queue1") == []


@pytest.mark.parametrize(
    "address", ["", None, "10.0.0.256", "10.0.0", "0.0.0.0", "::", "a b", "{{ x }}", "224.0.0.1"]
)
def test_what_no_host_can_be_reached_by_is_no_address(address):
    [problem] = filters.address_problems(address, "queue1")
    assert problem.startswith("kestrel_stack_address of queue1 is ")


def test_a_service_listens_on_loopback_everywhere_or_on_an_own_address():
    own = ["10.0.0.1", "fd00::1"]
    for address in ("127.0.0.1", "::1", "0.0.0.0", "::", "10.0.0.1", "fd00::1"):
        assert filters.listen_problems(address, "kestrel_listen_address", own, "queue1") == []
    assert filters.listen_problems("10.0.0.9", "kestrel_listen_address", own, "queue1") == [
        "kestrel_listen_address 10.0.0.9 is not an address of queue1:"
        " use 127.0.0.1 or one of 10.0.0.1, fd00::1"
    ]
    [problem] = filters.listen_problems("eth0", "kestrel_listen_address", own, "queue1")
    assert problem.startswith("kestrel_listen_address eth0 is not an IP address")


HOSTS = {
    "queue1": {"kestrel_listen_address": "10.0.0.1", "kestrel_stack_address": "10.0.0.1"},
    "queue2": {"kestrel_listen_address": "::", "kestrel_stack_address": "fd00::2", "kestrel_port": 22144},
    "single": {"kestrel_stack_address": "10.0.0.3"},
}


def test_servers_are_the_addresses_other_hosts_use_and_loopback_on_ones_own_host():
    assert filters.kestrel_servers(["queue1", "queue2"], HOSTS, "worker1") == [
        "10.0.0.1:22133",
        "[fd00::2]:22144",
    ]
    assert filters.kestrel_servers(["single"], HOSTS, "single") == ["127.0.0.1:22133"]


def test_a_queue_that_listens_on_loopback_only_cannot_serve_another_host():
    assert filters.server_problems(["single"], HOSTS, "single") == []
    assert filters.server_problems(["single"], HOSTS, "worker1") == [
        "kestrel_listen_address of single is 127.0.0.1, which worker1 cannot reach:"
        " set it to the host's kestrel_stack_address"
    ]
    assert filters.server_problems([], HOSTS, "worker1") == [
        "the inventory's group kestrel is empty: put at least one host into it"
    ]


def test_stopping_takes_the_sum_of_all_queues_since_supervisord_stops_one_after_the_other():
    # Each queue's job_timeout and 10, and 10 for the alarm.
    assert filters.stop_seconds([{"name": "a", "job_timeout": 5}, {"name": "b"}]) == 5 + 10 + 60 + 10 + 10
    # A mover is one program more.
    assert filters.stop_seconds([{"name": "a", "job_timeout": 5, "retry_delays": [10]}]) == 5 + 10 + 10 + 10


def test_a_worker_may_need_the_longest_time_of_the_queues_that_it_takes_jobs_of():
    queues = [
        {"name": "a", "job_timeout": 5, "also": ["b"]},
        {"name": "b", "job_timeout": 300},
        {"name": "c", "job_timeout": 900},
    ]
    assert [filters.worker_seconds(queues, name) for name in "abc"] == [300, 300, 900]
    assert filters.stop_seconds(queues) == 300 + 300 + 900 + 4 * 10


SETTINGS = {
    "app": "shop",
    "namespace": "shop",
    "environment": "lab",
    "host": "worker1",
    "servers": ["10.0.0.1:22133"],
    "queues": [
        {"name": "mail", "processes": 1, "max_jobs": 1000, "retry_delays": [10], "also": []},
        {"name": "news", "processes": 1, "max_jobs": 1000, "retry_delays": [], "also": ["bulk"]},
        {"name": "bulk", "processes": 1, "max_jobs": 1000, "retry_delays": [], "also": []},
    ],
    "sentry_dsn": None,
}


def changed(number, **options):
    """Return SETTINGS with one queue changed, as a text."""
    said = json.loads(json.dumps(SETTINGS))
    said["queues"][number].update(options)
    return json.dumps(said)


def restarted(text):
    """Say whose program is another one with the settings `text`."""
    before = json.dumps(SETTINGS)
    found = [
        name
        for name in ("mail", "news", "bulk")
        if filters.worker_key(text, name) != filters.worker_key(before, name)
    ]
    return found + (["mover"] if filters.mover_key(text) != filters.mover_key(before) else [])


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (changed(0, processes=5), []),
        (changed(0, max_items=5, max_size="1MB", alert={"backlog": 5}, fanouts=["x"]), []),
        (changed(0, max_jobs=5), ["mail"]),
        (changed(0, job_timeout=5, rate_limit="5/s", max_memory="64MB"), ["mail"]),
        # Workers of news take bulk's jobs as well.
        (changed(2, job_timeout=5), ["news", "bulk"]),
        (changed(1, also=[]), ["news"]),
        # Any job may enqueue another one with a delay.
        (changed(0, retry_delays=[10, 60]), ["mail", "news", "bulk", "mover"]),
        (json.dumps({**SETTINGS, "servers": ["10.0.0.2:22133"]}), ["mail", "news", "bulk", "mover"]),
        (json.dumps(SETTINGS, indent=4), []),
    ],
)
def test_a_changed_setting_restarts_the_workers_that_go_by_it_and_no_others(text, whose):
    assert restarted(text) == whose


@pytest.mark.parametrize("file", ["jobs.php", "php/jobs.php", "app/Jobs/registry.php"])
def test_a_php_file_inside_the_application_names_jobs(file):
    assert filters.php_file_problems(file, "consumers_php_app") == []


@pytest.mark.parametrize(
    "file", ["", "/etc/jobs.php", "../jobs.php", "a/../b.php", "jobs.py", "a b.php", "x;y.php"]
)
def test_another_file_does_not(file):
    [problem] = filters.php_file_problems(file, "consumers_php_app")
    assert problem.startswith(f"consumers_php_app {file!r} does not name the jobs: ")


def test_a_webhook_is_a_url_and_is_never_repeated():
    for good in ("", "https://chat.example.com/hooks/T0/abc%20d?x=1&y=2", "http://127.0.0.1:8080/"):
        assert filters.webhook_problems(good, "consumers_alarm_webhook") == []
    for bad in ("chat.example.com", "file:///etc/passwd", 'https://x/"', "https://x/ y", "https://x/\ny"):
        [problem] = filters.webhook_problems(bad, "consumers_alarm_webhook")
        assert "consumers_alarm_webhook is not a URL" in problem
        assert bad not in problem


def test_a_dsn_goes_with_an_external_sentry_and_is_never_repeated():
    assert filters.dsn_problems("https://abc123@sentry.example.com/42", "external") == []
    assert filters.dsn_problems("http://abc@127.0.0.1:9000/prefix/1", "external") == []
    assert filters.dsn_problems("", "none") == []
    for dsn in ("", "https://sentry.example.com/42", "https://secret@sentry.example.com", "secret"):
        [problem] = filters.dsn_problems(dsn, "external")
        assert problem.startswith("app_host_sentry_dsn must be the project's DSN")
        assert not dsn or "secret" not in problem
    [problem] = filters.dsn_problems("https://secret@sentry.example.com/1", "none")
    assert problem == "app_host_sentry_dsn is set, and sentry_backend is none: use one"


def test_packages_are_names_of_debians():
    assert filters.package_problems(["php-curl", "libstdc++6"], "app_host_packages") == []
    [problem] = filters.package_problems(["php-curl", "php curl"], "app_host_packages")
    assert problem == "app_host_packages: php curl is not the name of a Debian package, like php-curl"
    [problem] = filters.package_problems("php-curl", "app_host_packages")
    assert problem == "app_host_packages php-curl must be a list of Debian's packages, like [php-curl]"


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExample anna@laptop"


def test_public_keys_are_told_from_other_text():
    assert filters.key_problems([KEY, f"{KEY}\n"], "app_host_deploy_keys") == []
    assert filters.key_problems([], "app_host_deploy_keys") == [
        "app_host_deploy_keys is empty, so nobody could deploy: list at least one public ssh key"
    ]
    for wrong in ("-----BEGIN OPENSSH PRIVATE KEY-----", "~/.ssh/id.pub", f"{KEY}\n{KEY}", ""):
        [problem] = filters.key_problems([KEY, wrong], "app_host_deploy_keys")
        assert problem.startswith("app_host_deploy_keys: entry 2 is not a public ssh key")


@pytest.mark.parametrize("registry", ["shop.jobs:registry", "jobs:r", "a.b.c:d_1"])
def test_a_registry_is_a_module_and_a_name(registry):
    assert filters.registry_problems(registry, "consumers_python_app") == []


@pytest.mark.parametrize(
    "registry", ["", "shop.jobs", "shop.jobs:", "shop/jobs.py:r", "a:b --config x", "a%b:c"]
)
def test_anything_else_names_no_jobs(registry):
    [problem] = filters.registry_problems(registry, "consumers_python_app")
    assert problem.startswith("consumers_python_app ")


def test_a_user_is_a_legal_name_and_not_another_parts():
    assert filters.user_problems("deploy", "deploy_user", ["root"]) == []
    assert filters.user_problems("root", "deploy_user", ["root"]) == [
        "deploy_user root is another part's user: choose a user of its own"
    ]
    [problem] = filters.user_problems("De ploy", "deploy_user")
    assert problem.startswith("deploy_user De ploy is not a legal user name")


# As `ss -H -l -t -n -p -e` prints: with and without the program, root's sockets without a uid.
SOCKETS = [
    "LISTEN 0 1024 127.0.0.1:2223 0.0.0.0:* uid:999 ino:92479 sk:4 cgroup:/system.slice/kestrel.service <->",
    'LISTEN 0 128 0.0.0.0:22133 0.0.0.0:* users:(("memcached",pid=49,fd=3)) ino:57661 sk:1 cgroup:/ <->',
    "LISTEN 0 128 [::]:8090 [::]:* ino:57663 sk:3 cgroup:/ v6only:1 <->",
]


@pytest.mark.parametrize(
    ("address", "port", "uid", "problem"),
    [
        ("127.0.0.1", 2223, 999, None),
        ("127.0.0.1", 2223, "999", None),
        ("127.0.0.1", 2223, None, "port 2223 on 127.0.0.1 is taken by another program"),
        ("10.0.0.1", 2223, None, None),
        ("10.0.0.1", 22133, 999, "port 22133 on 0.0.0.0 is taken by memcached (pid 49)"),
        ("::1", 8090, 999, "port 8090 on :: is taken by another program"),
        ("0.0.0.0", 2223, None, "port 2223 on 127.0.0.1 is taken by another program"),
        ("127.0.0.1", 223, None, None),
    ],
)
def test_a_port_of_another_program_is_named_and_our_own_is_not(address, port, uid, problem):
    found = filters.port_problems(SOCKETS, {"kestrel_port": [address, port]}, uid)
    assert found == ([f"kestrel_port: {problem}: stop it or set kestrel_port"] if problem else [])


@pytest.mark.parametrize("value", [0, "0", 5, "5", 10])
def test_a_number_in_its_range_passes_as_text_too(value):
    assert filters.range_problems({"kestrel_port": [value, 0, 10]}) == []


@pytest.mark.parametrize("value", [-1, 11, "many", "", None, True, 1.5])
def test_a_number_out_of_its_range_is_named_with_the_range(value):
    assert filters.range_problems({"kestrel_port": [value, 0, 10]}) == [
        f"kestrel_port {value} must be a whole number from 0 to 10"
    ]


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        ("0", 0),
        (4096, 4096),
        ("1KB", 1024),
        ("512MB", 512 * 2**20),
        ("2GB", 2 * 2**30),
        ("1025", 1025),
    ],
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit_of_powers_of_1024(written, size):
    assert filters.size_bytes(written) == size
    assert filters.size_problems({"kestrel_spool_floor": [written, 0, None]}) == []


@given(st.integers(0, 2**63 - 1))
def test_a_size_that_is_written_out_for_a_person_is_exact(size):
    assert filters.size_bytes(filters.size_text(size).removesuffix(" bytes")) == size


@pytest.mark.parametrize(
    "written",
    ["", "512 MB", "512mb", "1.5GB", "-1", -1, "1TB", None, True, 1.5, 2**63, "9999999999GB", "1MB\n"],
)
def test_what_is_no_size_is_named_with_how_to_write_one(written):
    assert filters.size_problems({"kestrel_spool_floor": [written, 0, None]}) == [
        f"kestrel_spool_floor: {written!s} is not a size: write it like 512MB (KB, MB or GB), or in bytes"
    ]


def test_a_size_out_of_its_range_is_named_with_the_range():
    assert filters.size_problems(
        {"kestrel_spool_floor": ["1KB", "1MB", None], "kestrel_max_memory_size": ["2GB", "1MB", "1GB"]}
    ) == [
        "kestrel_spool_floor 1KB must be at least 1MB",
        "kestrel_max_memory_size 2GB must be from 1MB to 1GB",
    ]
