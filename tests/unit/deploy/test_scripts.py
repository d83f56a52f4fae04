"""Every script: quoted, and nothing for shellcheck to find."""

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kestrel_stack.deploy import scripts
from kestrel_stack.deploy.build import Bundle
from kestrel_stack.deploy.onhost import judge, logs, outcomes, unpack
from kestrel_stack.deploy.scripts import Pings, Side
from support.deploy import NEW, OLD, ROOT

HOSTILE = "it's $(touch pwned) `touch pwned` ; touch pwned \" \\ * é"


def every_script():
    side = Side(OLD, "abc", {"before_switch": "php a.php", "after_switch": "php b.php"})
    link = {"shared_files": [".env", "config/a.ini"], "shared_directories": ["var", "a/b"]}
    bundle = Bundle(Path("b"), "0" * 64, 5, OLD)
    prepared = {"bundle": bundle, "venv": "v", "release_json": {"a": 1}}
    return {
        "inspect": scripts.inspect("/srv/shop", ["shop_a", "shop_b"], [".env"], settle=3),
        "inspect, no workers": scripts.inspect("/srv/shop", []),
        "status": scripts.status(["shop_a"]),
        "hold": scripts.hold("/srv/shop", ["shop_a"], [".env"], lock_id="0a", web="shop"),
        "unlock": scripts.unlock("/srv/shop", "1"),
        "prepare": scripts.prepare("/srv/shop", NEW, check="php c.php", previous=OLD, **prepared, **link),
        "prepare, nothing shared": scripts.prepare("/srv/shop", NEW, **prepared),
        "switch": scripts.switch("/srv/shop", ["shop_a"], Side(OLD), Side(NEW)),
        "switch, all of it": scripts.switch(
            "/srv/shop",
            ["shop_a"],
            side,
            replace(side, release=NEW),
            web="shop",
            pings=Pings(("a", "b"), 70, "1"),
        ),
        "switch back": scripts.switch("/srv/shop", [], side, Side(), going_back=True),
        "restart": scripts.switch("/srv/shop", ["shop_a"], side, side),
        "sample": scripts.sample("/srv/shop", ["shop_a"], NEW, since="600"),
        "migrate": scripts.migrate("/srv/shop", "true", side, OLD, seconds=9),
        "look": scripts.look("/srv/shop", ["shop_a"], [".env"], web="shop"),
        "logs": scripts.logs("/srv/shop", lines=9, follow=False),
        "finish": scripts.finish("/srv/shop", "1"),
        "finish, a failed release": scripts.finish("/srv/shop", "1", failed=NEW, failed_why="it's bad"),
        "finish, all of it": scripts.finish(
            "/srv/shop", "1", verified=NEW, record={"a": 1}, remove_releases=[OLD], remove_venvs=["v"]
        ),
    }


@pytest.mark.parametrize("name", every_script())
def test_shellcheck_finds_nothing(name):
    checker = shutil.which("shellcheck", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
    if checker is None:
        pytest.fail("shellcheck is missing: install requirements/controller.txt")
    done = subprocess.run(
        [checker, "--shell=bash", "-"],
        input=every_script()[name],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_value_is_quoted_in_every_template():
    nasty = {
        "inspect": scripts.inspect(HOSTILE, [HOSTILE], [HOSTILE], settle=1, helper=HOSTILE),
        "status": scripts.status([HOSTILE], helper=HOSTILE),
        "hold": scripts.hold(
            HOSTILE,
            [HOSTILE],
            [HOSTILE],
            lock_id=HOSTILE,
            web=HOSTILE,
            helper=HOSTILE,
            web_helper=HOSTILE,
        ),
        "unlock": scripts.unlock(HOSTILE, HOSTILE),
        "prepare": scripts.prepare(
            HOSTILE,
            HOSTILE,
            bundle=Bundle(Path("b"), HOSTILE, 1, HOSTILE),
            previous=HOSTILE,
            app=HOSTILE,
            check=HOSTILE,
            venv=HOSTILE,
            release_json={"a": HOSTILE, "rev": HOSTILE},
            shared_files=[HOSTILE],
            shared_directories=[HOSTILE],
        ),
        "switch": scripts.switch(
            HOSTILE,
            [HOSTILE],
            Side(HOSTILE, HOSTILE, dict.fromkeys(("before_switch", "after_switch"), HOSTILE)),
            Side(NEW, HOSTILE, dict.fromkeys(("before_switch", "after_switch"), HOSTILE)),
            web=HOSTILE,
            pings=Pings((HOSTILE,), 1, HOSTILE),
            logs=HOSTILE,
            helper=HOSTILE,
            web_helper=HOSTILE,
        ),
        "sample": scripts.sample(
            HOSTILE,
            [HOSTILE],
            HOSTILE,
            since=HOSTILE,
            web=HOSTILE,
            logs=HOSTILE,
            helper=HOSTILE,
            web_helper=HOSTILE,
        ),
        "look": scripts.look(
            HOSTILE,
            [HOSTILE],
            [HOSTILE],
            web=HOSTILE,
            helper=HOSTILE,
            web_helper=HOSTILE,
            jobs=HOSTILE,
            settings=HOSTILE,
            logs=HOSTILE,
        ),
        "logs": scripts.logs(HOSTILE, [HOSTILE], lines=1, follow=True, folder=HOSTILE),
        "migrate": scripts.migrate(HOSTILE, HOSTILE, Side(HOSTILE, HOSTILE), HOSTILE, seconds=1),
        "finish": scripts.finish(
            HOSTILE,
            HOSTILE,
            verified=HOSTILE,
            failed=HOSTILE,
            failed_why=HOSTILE,
            record={"a": HOSTILE},
            remove_releases=[HOSTILE],
            remove_venvs=[HOSTILE],
        ),
    }
    assert {path.name.split(".")[0] for path in scripts.TEMPLATES.glob("[!_]*.j2")} == set(nasty)
    for name, text in nasty.items():
        # Unquoted, one of the apostrophes, the semicolon or the backticks would show up outside quotes.
        for program in (judge, outcomes, unpack, logs):
            # A host's program is one quoted word over many lines.
            text = text.replace(shlex.quote(scripts.host_program(program)), "")
        spans = text.replace("'\"'\"'", "")
        for line in spans.splitlines():
            outside = "".join(line.split("'")[::2]) if not line.lstrip().startswith("#") else ""
            assert "touch pwned" not in outside, f"{name}: {line}"
