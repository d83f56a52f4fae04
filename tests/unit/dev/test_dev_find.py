"""Where an application has its jobs, and which queues follow from them."""

import json
import queue
import sys

import pytest

from kestrel_stack.dev import describe, find, look
from kestrel_stack.dev.errors import DevError
from kestrel_stack.dev.side import Side
from kestrel_stack.dev.watch import Watcher, language

MADE = "from kestrel_stack.consumer import Registry\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (MADE + "registry = Registry()\n", ["registry"]),
        (MADE + "jobs: Registry = Registry()\n", ["jobs"]),
        ("import kestrel_stack.consumer\nr = kestrel_stack.consumer.Registry()\n", ["r"]),
        (MADE + "a = Registry()\nb = Registry()\n", ["a", "b"]),
        # While it is being edited.
        (MADE + "registry = Registry()\ndef broken(:\n", ["registry"]),
        (MADE + "def f():\n    registry = Registry()\n", []),
        (MADE + "# registry = Registry()\n", []),
        ("registry = Registry()\n", []),
        ("from other import Registry\nregistry = Registry()\n", []),
    ],
)
def test_a_registry_is_one_that_a_module_makes_at_its_top(tmp_path, text, names):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "jobs.py").write_text(text)
    assert find.python_registries(tmp_path) == [f"shop.jobs:{name}" for name in names]


@pytest.mark.parametrize(
    "place",
    [
        "venv2/jobs.py",
        ".hidden/jobs.py",
        "node_modules/jobs.py",
        "var/jobs.py",
        "tests/jobs.py",
        "test_jobs.py",
        "no-module.py",
    ],
)
def test_what_is_no_code_of_ones_own_is_not_looked_at(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(MADE + "registry = Registry()\n")
    (tmp_path / "venv2").mkdir(exist_ok=True)
    (tmp_path / "venv2" / "pyvenv.cfg").touch()
    assert find.python_registries(tmp_path) == []


def test_a_package_is_called_by_its_folder(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(MADE + "registry = Registry()\n")
    assert find.python_registries(tmp_path) == ["shop:registry"]


def test_a_php_file_counts_when_it_returns_a_registry(tmp_path):
    (tmp_path / "a.php").write_text(
        "<?php\nuse KestrelStack\\Consumer\\Registry;\nreturn (new Registry())->job('A', A::class);\n"
    )
    (tmp_path / "b.php").write_text("<?php\n// KestrelStack\n$registry = new Registry();\n")
    (tmp_path / "c.php").write_text("<?php\nreturn new KestrelStack\\Consumer\\Registry();\n")
    assert find.php_registries(tmp_path) == ["a.php", "c.php"]


def test_several_that_could_be_meant_are_all_named():
    assert find.only([], "--python") is None
    assert find.only(["a:r"], "--python") == "a:r"
    with pytest.raises(DevError, match=r"a:r, b:r; say which: --python a:r$"):
        find.only(["a:r", "b:r"], "--python")


def test_the_applications_own_environment_comes_before_the_active_one(tmp_path):
    assert find.python_of(tmp_path, {}) == sys.executable
    for place, version in (("active", "3 12"), (".venv", "3 11")):
        python = tmp_path / place / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho {version.replace(' ', '.')}\n")
        python.chmod(0o755)
    assert find.python_of(tmp_path, {"VIRTUAL_ENV": str(tmp_path / "active")}) == str(
        tmp_path / ".venv/bin/python"
    )
    (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\necho 3.9\n")
    with pytest.raises(DevError, match=r"is Python 3\.9; jobs need 3\.11 or later"):
        find.python_of(tmp_path, {})
    (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DevError, match="does not run"):
        find.python_of(tmp_path, {})


def test_queues_follow_from_jobs_and_one_in_both_languages_is_the_first_ones():
    queues = describe.derived({"python": ["HelloWorld", "PDFReport"], "php": ["HelloWorld", "Post"]})
    assert [(queue["name"], queue["language"]) for queue in queues] == [
        ("hello_world", "python"),
        ("pdf_report", "python"),
        ("post", "php"),
    ]
    assert all(queue["retry_delays"] == [1, 5, 30] for queue in queues)


@pytest.mark.parametrize(
    ("folder", "app", "namespace"),
    [
        ("shop", "shop", "shop"),
        ("My Shop!", "my-shop", "my_shop"),
        ("2024", "app-2024", "app_2024"),
        ("…", "app", "app"),
    ],
)
def test_the_folders_name_becomes_a_legal_one(tmp_path, folder, app, namespace):
    found = describe.of_folder(tmp_path / folder)
    assert (found.app, found.namespace, found.queues) == (app, namespace, None)


def test_queues_that_are_named_are_all_there_are_where_nobody_describes_them(tmp_path):
    found = describe.chosen(describe.of_folder(tmp_path), ["mail", "post:php"])
    assert [(queue["name"], queue["language"]) for queue in found.queues] == [
        ("mail", "python"),
        ("post", "php"),
    ]


def test_the_data_of_an_example_has_the_keys_that_a_job_reads():
    def job(data, context):
        return data["b"], data["a"], data["b"], context["no"], data.get("maybe"), data[0 + 1]

    assert look.keys(job) == ["b", "a"]
    assert look.keys(len) == []


def test_an_error_is_told_by_the_last_place_it_went_through(tmp_path):
    side = Side("python", "jobs:registry", sys.executable)
    answer = tmp_path / "answer.json"
    stack = (
        'Trace\n  File "a.py", line 1\n    import b\n  File "b.py", line 7\n    def x(:\nSyntaxError: no\n'
    )
    answer.write_text(json.dumps({"error": "SyntaxError: no", "stack": stack}))
    side.read(answer, "never shown")
    assert (side.usable, side.error) == (False, 'File "b.py", line 7\n    def x(:\nSyntaxError: no')
    answer.unlink()
    side.read(answer, "importing it was killed")
    assert side.error == "importing it was killed"
    answer.write_text(json.dumps({"jobs": {"A": ["x"], "B": {}}}))
    side.read(answer, "never shown")
    assert (side.usable, side.jobs) == (True, {"A": ("x",), "B": ()})


@pytest.mark.parametrize(
    ("file", "languages"),
    [
        ("a.py", {"python"}),
        ("b/c.php", {"php"}),
        ("composer.lock", {"python", "php"}),
        (".env", {"python", "php"}),
        ("a.pyc", set()),
        ("jobs.py~", set()),
        (".jobs.py.swp", set()),
        ("data.json", set()),
    ],
)
def test_which_workers_a_file_concerns(file, languages):
    assert language(file) == languages


def test_too_many_folders_are_told_not_silently_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "MOST_FOLDERS", 2)
    for number in range(3):
        (tmp_path / f"folder_{number}").mkdir()
    told = queue.Queue()
    watcher = Watcher(tmp_path, lambda files: None, told.put)
    watcher.start()
    try:
        assert told.get(timeout=60) == (
            f"files are not watched: {tmp_path} has over 2 folders; name the application's own with --app"
        )
    finally:
        watcher.stop()
