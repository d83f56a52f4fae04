"""The configuration: every wrong value refused in one line that names it, and nothing open by mistake."""

import json
import tempfile
from pathlib import Path

import pytest

from kestrel_stack.queue.servers import Server
from kestrel_stack.web.access import passwords
from kestrel_stack.web.config import ConfigError
from kestrel_stack.web.loading import load

HASH = passwords.make("correct horse battery")
USERS = [{"name": "ann", "password_hash": HASH, "role": "operator"}]
SERVERS = ["10.0.0.1:22133", "10.0.0.2:22133"]


@pytest.fixture
def write(tmp_path):
    """Writes a configuration and returns its path."""

    def written(mode: int = 0o600, **content) -> str:
        file = tmp_path / "kestrel-web.json"
        file.write_text(json.dumps({"servers": SERVERS, **content}))
        file.chmod(mode)
        return str(file)

    return written


def wrong(argv, environ=None) -> str:
    """The one line that says why this is no configuration."""
    with pytest.raises(ConfigError) as caught:
        load(argv, environ or {"HOME": "/nowhere"})
    line = str(caught.value)
    assert "\n" not in line and HASH not in line
    return line


def test_servers_are_enough():
    config = load(["--servers", "127.0.0.1:22133,10.0.0.2"], {"HOME": "/home/ann"})
    assert config.servers == (Server("127.0.0.1", 22133), Server("10.0.0.2", 22133))
    assert (config.listen, config.port, config.read_only, config.login) == ("127.0.0.1", 8090, False, False)
    assert config.state == Path("/home/ann/.local/state/kestrel-web")
    assert "shutdown" not in config.actions and "flush" in config.actions


def test_without_any_server_it_says_how_to_name_one():
    assert "--servers HOST:PORT" in wrong([])


def test_a_flag_goes_before_the_file(write):
    file = write(port=9000, environment="staging", read_only=False)
    flags = ["--port", "9001", "--environment", "prod", "--read-only", "--servers", "a:1", "--interval", "5"]
    config = load(["--config", file, *flags], {"HOME": "/"})
    assert (config.port, config.environment, config.read_only) == (9001, "prod", True)
    assert (config.servers, config.interval_s) == ((Server("a", 1),), 5.0)


def test_every_key_of_the_file_is_taken(write):
    config = load(
        [
            "--config",
            write(
                admin_ports={"10.0.0.1:22133": None, "10.0.0.2:22133": "127.0.0.1:3333"},
                listen="::1",
                prefix="/queues/",
                hosts=["Queues.example.org"],
                actions=["requeue", "flush"],
                users=USERS,
                tokens=[{"name": "prometheus", "sha256": "AB" * 32}],
                proxy={"header": "X-Remote-User", "addresses": ["10.0.0.0/24"], "operators": ["ann"]},
                forwarded_from=["127.0.0.1"],
                webhook={"url": "https://hooks.example.org/x"},
                confirm_typed_from=0,
                event_url="https://errors.example.org/issues/event/{event_uuid}/",
            ),
        ],
        {},
    )
    assert config.admin(Server("10.0.0.1", 22133)) is None
    assert config.admin(Server("10.0.0.2", 22133)) == Server("127.0.0.1", 3333)
    assert (config.listen, config.prefix, config.hosts) == ("::1", "/queues", ("queues.example.org",))
    assert config.actions == ("flush", "requeue"), "in the order of all actions"
    assert (config.users[0].name, config.users[0].role, config.tokens[0].role) == (
        "ann",
        "operator",
        "metrics",
    )
    assert config.tokens[0].sha256 == "ab" * 32
    assert (config.proxy.operators, config.webhook.timeout_s) == (("ann",), 5.0)
    assert config.login
    assert config.event_url == "https://errors.example.org/issues/event/{event_uuid}/"


def test_the_admin_port_of_all_others_is_on_the_servers_own_address():
    server = Server("10.0.0.9", 22133)
    assert load(["--servers", str(server)], {}).admin(server) == Server("10.0.0.9", 2223)
    assert load(["--servers", str(server), "--admin-port", "99"], {}).admin(server) == Server("10.0.0.9", 99)
    assert load(["--servers", str(server), "--admin-port", "none"], {}).admin(server) is None


WRONG = [
    ({"prot": 1}, 'unknown key "prot"; did you mean port?'),
    ({"flush": True}, "known are servers"),
    ({"servers": "nonsense:x"}, "is not a server"),
    ({"servers": 5}, "list of texts"),
    ({"servers": ["a:1", "a:1"]}, "twice"),
    ({"admin_port": "2223"}, '"admin_port" must be a whole number from 1 to 65535'),
    ({"admin_ports": {"10.0.0.9:22133": 5}}, "none of the servers"),
    ({"admin_ports": {"10.0.0.1:22133": 70000}}, "must give 10.0.0.1:22133 a port"),
    ({"listen": "queues.example.org"}, "must be an address of this machine"),
    ({"listen": "127.0.0.1:80"}, "the port is separate"),
    ({"port": True}, '"port" must be a whole number from 0 to 65535'),
    ({"prefix": "queues"}, "must be a path like /queues"),
    ({"prefix": "/a/../b"}, "must be a path like /queues"),
    ({"hosts": ["https://x/"]}, "no host's name"),
    ({"hosts": ["*.example.org"]}, "no host's name"),
    ({"hosts": "x"}, '"hosts" must be a list'),
    ({"settings": ["/nowhere/shop.json"]}, "/nowhere/shop.json does not exist"),
    ({"read_only": "yes"}, '"read_only" must be true or false'),
    ({"actions": ["flsh"]}, "did you mean flush?"),
    ({"users": [{"name": "ann"}]}, '"password_hash" is missing'),
    ({"users": [{"name": "ann", "password_hash": "secret"}]}, "kestrel-web hash-password"),
    ({"users": [{"name": "a b", "password_hash": HASH}]}, "white space"),
    ({"users": [{"name": "ann", "password_hash": HASH, "role": "operater"}]}, "did you mean operator?"),
    ({"users": [*USERS, *USERS]}, "has ann twice"),
    ({"users": [{**USERS[0], "pasword": 1}]}, 'users[0]: unknown key "pasword"'),
    ({"users": ["ann"]}, "users[0] must be a JSON object"),
    ({"tokens": [{"name": "p", "sha256": "abc"}]}, "64 hexadecimal digits"),
    ({"proxy": {"header": "X-User", "addresses": []}}, '"addresses" must name the proxy'),
    ({"proxy": {"header": "X-User", "addresses": ["0.0.0.0/0"]}}, "which is everybody"),
    ({"proxy": {"header": "Cookie", "addresses": ["::1"]}}, '"header" must be'),
    ({"forwarded_from": ["nginx"]}, "no address"),
    ({"interval_s": 0}, '"interval_s" must be seconds, from 0.05 to 60'),
    ({"timeout_s": float("inf")}, '"timeout_s" must be seconds'),
    ({"timeout_s": 10**400}, '"timeout_s" must be seconds'),
    ({"interval_s": 20, "stale_after_s": 10}, "must be more than interval_s"),
    ({"history_days": 1.5}, '"history_days" must be a whole number'),
    ({"webhook": {"url": "file:///etc/passwd"}}, "must begin with https://"),
    ({"webhook": {"url": "https://"}}, "must begin with https://"),
    ({"event_url": "https://h/issues/"}, '"event_url" must have {event_id} or {event_uuid} in it, once'),
    ({"event_url": "javascript:x{event_id}"}, '"event_url" must be an address like https://'),
    ({"event_url": "https://a:b@h/{event_id}"}, '"event_url" must hold no user and no password'),
    ({"event_url": ["https://h/{event_id}"]}, '"event_url" must be a text'),
    ({"event_url": "https://h/{event_id}" + 1000 * "x"}, '"event_url" must be a text on one line'),
    ({"environment": "a\nb"}, "on one line"),
    ({"state": ""}, '"state" must be a folder'),
]


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_value_is_refused_by_name(write, content, said):
    file = write(**content)
    line = wrong(["--config", file])
    assert said in line
    assert file in line or "settings" in content


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot"),
        (["--port", "http"], "--port"),
        (["--port", "70000"], "--port must be a whole number from 0 to 65535"),
        (["--interval", "nan"], "--interval must be seconds"),
        (["--admin-port", "x"], "neither a port nor none"),
        (["--listen", "*"], "--listen must be an address"),
        (["--event-url", "https://h/"], "--event-url must have {event_id} or {event_uuid} in it, once"),
        (["--config", "/nowhere.json"], "/nowhere.json does not exist"),
    ],
)
def test_a_wrong_flag_is_called_as_it_was_given(flags, said):
    assert said in wrong(["--servers", "a:1", *flags])


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    file = tmp_path / "kestrel-web.json"
    file.write_text(text)
    assert str(file) in wrong(["--config", str(file)])


# Open doors


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "fe80::1", "[2001:db8::1]"])
def test_a_public_address_without_login_is_refused_and_the_line_says_how(address):
    line = wrong(["--servers", "a:1", "--listen", address])
    for way in ('"users"', "hash-password", '"proxy"', "127.0.0.1"):
        assert way in line


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_login(address):
    assert not load(["--servers", "a:1", "--listen", address], {}).login


def test_a_token_is_no_login(write):
    tokens = [{"name": "p", "sha256": "ab" * 32}]
    assert "there is no login" in wrong(["--config", write(listen="10.0.0.1", tokens=tokens)])


def test_a_login_opens_a_public_address(write):
    assert load(["--config", write(listen="10.0.0.1", users=USERS)], {}).login
    proxy = {"header": "X-User", "addresses": ["10.0.0.7"]}
    assert load(["--config", write(listen="10.0.0.1", proxy=proxy)], {}).login


def test_a_proxy_in_front_of_loopback_needs_a_login_too(write):
    line = wrong(["--config", write(forwarded_from=["127.0.0.1"])])
    assert '"forwarded_from" lets everybody in' in line and '"users"' in line
    assert load(["--config", write(forwarded_from=["127.0.0.1"], users=USERS)], {}).forwarded_from


def test_a_wildcard_address_needs_the_names_that_browsers_use(write):
    assert '"hosts" must name' in wrong(["--config", write(listen="0.0.0.0", users=USERS)])
    assert load(["--config", write(listen="0.0.0.0", users=USERS, hosts=["q.example.org"])], {}).hosts


@pytest.fixture
def open_file(tmp_path):
    """A configuration in folders through which everybody gets, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "kestrel-web.json"


@pytest.mark.parametrize("secret", [{"users": USERS}, {"tokens": [{"name": "p", "sha256": "ab" * 32}]}])
def test_secrets_that_everybody_can_read_are_refused(open_file, secret):
    open_file.write_text(json.dumps({"servers": SERVERS, **secret}))
    open_file.chmod(0o644)
    assert f"chmod o= {open_file}" in wrong(["--config", str(open_file)])
    open_file.chmod(0o640)
    assert load(["--config", str(open_file)], {})


def test_secrets_in_a_closed_folder_are_not_everybodys(write, tmp_path):
    tmp_path.chmod(0o700)
    assert load(["--config", write(0o644, users=USERS)], {})


def test_a_file_without_secrets_may_be_read_by_everybody(write):
    assert load(["--config", write(0o644)], {})


# Applications


def settings_file(folder: Path, **queue) -> str:
    file = folder / "shop.json"
    content = {"app": "shop", "namespace": "shop", "environment": "test", "servers": ["10.0.0.5:22133"]}
    file.write_text(json.dumps({**content, "queues": [{"name": "mail", **queue}]}))
    return str(file)


def test_an_applications_servers_are_taken_when_no_others_are_named(tmp_path):
    file = settings_file(tmp_path)
    assert load(["--settings", file], {}).servers == (Server("10.0.0.5", 22133),)
    assert load(["--settings", file, "--servers", "a:1"], {}).servers == (Server("a", 1),)


def test_a_workers_environment_changes_nothing(tmp_path):
    environ = {"KESTREL_STACK_NAMESPACE": "other", "KESTREL_STACK_SERVERS": "b:2"}
    config = load(["--settings", settings_file(tmp_path)], environ)
    assert (config.settings[0].namespace, config.servers) == ("shop", (Server("10.0.0.5", 22133),))


@pytest.mark.parametrize(
    ("alert", "said"),
    [
        ({"backlog": 0}, "'backlog' of 'alert' must be a whole number"),
        ({"age": 60}, "must look like 30s"),
        ({"ages": "60s"}, "unknown key 'ages'"),
    ],
)
def test_a_wrong_limit_of_a_queue_is_refused_by_file_and_queue(tmp_path, alert, said):
    file = settings_file(tmp_path, alert=alert)
    line = wrong(["--settings", file])
    assert said in line and file in line and "'mail'" in line


# The state folder


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/kestrel-web", "HOME": "/x"}, "/var/lib/kestrel-web"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/home/ann/state", "HOME": "/x"}, "/home/ann/state/kestrel-web"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/x"}, "/x/.local/state/kestrel-web"),
        ({"HOME": "/x"}, "/x/.local/state/kestrel-web"),
    ],
)
def test_the_state_folder_is_systemds_or_the_users(environ, folder):
    assert load(["--servers", "a:1"], environ).state == Path(folder)
    assert load(["--servers", "a:1", "--state", "/y/z"], environ).state == Path("/y/z")
