"""What an application's deploy.yml says, and what is refused."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.deploy.after import AfterSpec
from kestrel_stack.deploy.appspec import AppSpec, Hooks, Roll, parse_app_spec, parse_batch
from kestrel_stack.deploy.errors import DeployError, Refused
from support.deploy import ROOT

WHOLE = """
python: {requirements: req/lock.txt}
php: {composer: [., tools]}
shared: {files: [.env], directories: [var, a/b]}
hooks:
  check: php bin/check
  before_switch: |
    php bin/warm
    php bin/more
  after_switch: curl -f localhost
migrate: php bin/migrate
assets: {folders: [public]}
roll: {batch: 25%, canary: 2, soak: 0}
after: {webhook: $CHAT}
require_pushed: true
keep: 3
"""


def test_a_whole_deploy_yml_is_read():
    spec = parse_app_spec(WHOLE)
    assert (spec.requirements, spec.composer) == ("req/lock.txt", (".", "tools"))
    assert (spec.shared_files, spec.shared_directories) == ((".env",), ("var", "a/b"))
    assert spec.hooks == Hooks("php bin/check", "php bin/warm\nphp bin/more", "curl -f localhost")
    assert (spec.migrate, spec.roll) == ("php bin/migrate", Roll("25%", 2, 0))
    assert spec.assets.folders == ("public",)
    assert spec.after.webhook == "$CHAT"
    assert (spec.require_pushed, spec.keep) == (True, 3)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "".join(f"{key}:\n" for key in yaml.safe_load(WHOLE)), "roll: {batch:}"]
)
def test_what_is_not_said_has_a_default(text):
    spec = parse_app_spec(text)
    assert spec == AppSpec(None, (), (), (), Hooks("", "", ""), "", None, Roll("1", 1, 30), AfterSpec())
    assert (spec.require_pushed, spec.keep) == (False, 5)


def test_composer_is_run_where_nothing_is_said_and_a_lock_is_there():
    assert parse_app_spec("", composer=["."]).composer == (".",)
    assert parse_app_spec("php: {composer: [lib]}", composer=["."]).composer == ("lib",)
    assert parse_app_spec("php: {composer: []}", composer=["."]).composer == ()


def test_the_examples_deploy_yml_is_right():
    assert parse_app_spec((ROOT / "examples/shop/deploy.yml").read_text()).requirements


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keeep: 5", ["unknown key keeep", "did you mean keep?"]),
        ("5: 5", ["unknown key 5", "known are python, php"]),
        ("shared: {dirs: []}", ["unknown key shared.dirs", "known are files, directories"]),
        ("shared: {directory: []}", ["did you mean directories?"]),
        ("python: {requirement: x}", ["unknown key python.requirement", "did you mean requirements?"]),
        ("php: {composr: []}", ["unknown key php.composr", "did you mean composer?"]),
        ("hooks: {chek: x}", ["unknown key hooks.chek", "did you mean check?"]),
        ("hooks: {migrate: x}", ["unknown key hooks.migrate", "known are check, before_switch"]),
        ("roll: {sok: 3}", ["unknown key roll.sok", "did you mean soak?"]),
        ("after: {webhok: x}", ["unknown key after.webhok", "did you mean webhook?"]),
        ("assets: {folder: [x]}", ["unknown key assets.folder", "did you mean folders?"]),
        ('"ke\\nep": 5', ["unknown key ke?ep"]),
        ("- a", ["must be a mapping"]),
        ("hooks: [a]", ["hooks must be a mapping with the keys check, before_switch, after_switch"]),
        ("roll: 25%", ["roll must be a mapping"]),
        ("keep: [", ["not valid YAML", "line 1"]),
        ("keep: 5\nkeep: 6", ["line 2", "keep is given twice"]),
        ("hooks: {check: a, check: b}", ["check is given twice"]),
        ("[" * 5000, ["not valid YAML"]),
        ("a: !!python/object:os.system x", ["not valid YAML"]),
        ("keep: 1", ["keep is 1", "from 2 to 100 (a rollback needs one)"]),
        ("keep: 101", ["keep is 101"]),
        ("keep: yes", ["keep is True"]),
        ("keep: 2.5", ["keep is 2.5"]),
        ("shared: {files: .env}", ["shared.files must be a list"]),
        ("shared: {files: [/etc/passwd]}", ["'/etc/passwd'", "inside the application"]),
        ("shared: {directories: [a/../../b]}", ["'a/../../b'"]),
        ("shared: {directories: [venv/lib]}", ["'venv/lib'"]),
        ("shared: {directories: [_assets]}", ["'_assets'"]),
        ('shared: {files: ["a\\nb"]}', ["shared.files"]),
        ("shared: {files: [var/x], directories: [var]}", ["var/x is inside var"]),
        ("shared: {files: [a, a]}", ["a is inside a"]),
        ("python: {requirements: [a]}", ["python.requirements"]),
        ("php: {composer: .}", ["php.composer must be a list"]),
        ("php: {composer: [/lib]}", ["php.composer", "'/lib'"]),
        ("php: {composer: [lib, lib]}", ["php.composer: lib is named twice"]),
        ("hooks: {check: [a, b]}", ["hooks.check is ['a', 'b']", "one command", "&&"]),
        ("hooks: {check: ''}", ["hooks.check is ''"]),
        ('hooks: {check: "a\\0b"}', ["hooks.check"]),
        ("migrate: true", ["migrate is True"]),
        ("migrate: {command: x}", ["migrate is {'command': 'x'}"]),
        ("require_pushed: 1", ["require_pushed is 1", "true or false"]),
        ("require_pushed: 'no'", ["require_pushed is 'no'"]),
        ("roll: {batch: 0}", ["roll.batch is 0", "such as 25%"]),
        ("roll: {batch: 101%}", ["roll.batch is '101%'"]),
        ("roll: {batch: all}", ["roll.batch is 'all'"]),
        ("roll: {batch: true}", ["roll.batch is True"]),
        ("roll: {batch: 2.5}", ["roll.batch is 2.5"]),
        ("roll: {canary: -1}", ["roll.canary is -1", "from 0"]),
        ("roll: {soak: 1m}", ["roll.soak is '1m'", "seconds"]),
        ("roll: {soak: 90000}", ["roll.soak is 90000"]),
        ("after: x", ["after must be a mapping"]),
        ("assets: x", ["assets must be a mapping"]),
        (f"migrate: {['x' * 500]}", ["migrate is"]),
    ],
)
def test_a_wrong_deploy_yml_is_refused_in_one_line(text, words):
    with pytest.raises(Refused) as caught:
        parse_app_spec(text, "examples/deploy.yml")
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith("examples/deploy.yml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "read"),
    [(1, "1"), ("7", "7"), ("007", "7"), ("25%", "25%"), ("100%", "100%"), (" 5 ", "5"), (999_999, "999999")],
)
def test_a_batch_is_a_number_or_a_share(value, read):
    assert parse_batch(value, "--batch") == read


@pytest.mark.parametrize(
    "value", ["", "0", "0%", "-1", "1.5", "101%", "%", "1%%", "٣", "2**9", None, True, []]
)
def test_a_batch_that_is_neither_is_refused_by_its_name(value):
    with pytest.raises(Refused, match=r"^--batch is .*such as 25%"):
        parse_batch(value, "--batch")


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3),
    ),
    max_leaves=5,
)
KEYS = sorted(yaml.safe_load(WHOLE))


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3))
def test_whatever_is_written_is_read_or_refused_in_one_line(data):
    try:
        parse_app_spec(yaml.safe_dump(data, allow_unicode=True))
    except DeployError as error:
        assert isinstance(error, Refused)
        assert "\n" not in str(error)
