"""asset_url() as a page calls it: in a process whose working folder is the release."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kestrel_stack
from kestrel_stack.static import InvalidManifest, Manifest

SOURCES = str(Path(kestrel_stack.__file__).parent.parent)
PAGE = """
import sys
from kestrel_stack.static import asset_url
for line in sys.stdin:
    print(asset_url(line.strip()), flush=True)
"""


def release(folder, digest):
    (folder / "_assets").mkdir(parents=True)
    entry = {"path": f"css/shop.{digest}.css", "integrity": "sha384-x", "sha256": "00", "size": 1}
    content = {"version": 1, "url": "/assets/", "files": {"css/shop.css": entry}}
    (folder / "_assets" / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def serve():
    """Start a process that answers with addresses, as a worker of a web server does."""
    started = []

    def start(folder):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("KESTREL_STACK_")
        }
        process = subprocess.Popen(
            [sys.executable, "-c", PAGE],
            cwd=folder,
            env={**environment, "PYTHONPATH": SOURCES},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)

        def ask(name):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        return ask

    yield start
    for process in started:
        process.communicate()


def test_a_process_keeps_to_the_release_it_was_started_in(tmp_path, serve):
    old, new = release(tmp_path / "1", "1111"), release(tmp_path / "2", "2222")
    current = tmp_path / "current"
    current.symlink_to(old)
    ask = serve(current)
    current.unlink()
    current.symlink_to(new)
    assert ask("css/shop.css") == "/assets/css/shop.1111.css"
    assert serve(current)("css/shop.css") == "/assets/css/shop.2222.css"


def test_the_manifest_is_read_once(tmp_path, serve):
    folder = release(tmp_path / "1", "1111")
    ask = serve(folder)
    assert ask("css/shop.css") == "/assets/css/shop.1111.css"
    (folder / "_assets" / "manifest.json").unlink()
    assert ask("css/shop.css") == "/assets/css/shop.1111.css"


def test_a_manifest_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(InvalidManifest, match=f"^{tmp_path} cannot be read: Is a directory$"):
        Manifest.load(tmp_path)


def test_it_needs_nothing_but_pythons_own_library():
    code = (
        "import sys, kestrel_stack.static;"
        "print(*sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["__main__", "kestrel_stack"]
