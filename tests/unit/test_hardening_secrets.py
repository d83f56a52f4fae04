"""The search for secrets finds them as they are and in base64, as Ansible prints a file that it has read.

And no file that is not for everybody is shown by Ansible when it changes, but for those with a reason.
"""

from __future__ import annotations

import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
import yaml

from support import secret_places
from support.secret_places import forms, named


@pytest.mark.parametrize("length", range(12, 18))
def test_a_secret_is_found_in_base64_wherever_it_stands(length):
    text = "canary1234567890abcdef"[:length]
    for before in range(4):
        for after in range(4):
            said = b64encode(b"{" * before + text.encode() + b"}" * after).decode()
            assert named({"it": text}, f"content: {said}\n") == ["it"], (before, after)


def test_what_is_no_secret_is_not_found():
    said = "canary1234 canary12345678 " + b64encode(b"canary12345678").decode()
    assert named({"it": "canary1234567890"}, said) == []


def test_the_shells_line_prints_what_it_found_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(secret_places, "_LIST", str(tmp_path / "list"))
    texts = {"one": "canary1234567890", "two": "canary0987654321"}
    (tmp_path / "list").write_text("".join(f"{form}\n" for text in texts.values() for form in forms(text)))

    def found(command):
        line = secret_places.script(command)
        return named(texts, set(subprocess.check_output(["sh", "-c", line], text=True).split("\n")))

    assert found("printf 'a\\0bcanary1234567890c'") == ["one"]
    assert found("printf 'x=canary0987654321' | base64 -w0; echo canary1234567890") == ["one", "two"]
    assert found("echo canary123456789; false") == []


ROLES = Path(__file__).resolve().parents[2] / "ansible/roles"
SHOWN = {
    # Templates whose files not everybody may read, and that a play with --diff shows: what they hold.
    "home/deploy_user/.ssh/authorized_keys.j2": "public keys",
    "etc/sudoers.d/kestrel-stack.j2": "command lines",
    "etc/sudoers.d/kestrel-stack-web.j2": "command lines",
    "etc/kestrel/embedded.json.j2": "queues and addresses",
    "etc/kestrel/kestrel.scala.j2": "queues and addresses",
    "etc/kestrel/release.json.j2": "Java's path and options",
    "etc/kestrel/firewall.nft.j2": "addresses",
    "etc/systemd/system/kestrel.service.j2": "a unit; what Kestrel is told is in files beside it",
    "etc/kestrel-web/apps/app.json.j2": "queues and servers, without the application's secrets",
    "etc/bugsink/bugsink_conf.py.j2": "Python that reads key, mail and database from files beside it",
    "opt/sentry/wanted/{{ item.name }}.j2": "several: vars/self_hosted.yml says which one is shown",
}


def tasks(found):
    for task in found or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def shown_templates():
    """Every template of the roles whose file others cannot read, and whose changes may be shown."""
    for path in sorted(ROLES.glob("*/tasks/*.yml")):
        for task in tasks(yaml.safe_load(path.read_text())):
            template = task.get("ansible.builtin.template", {})
            closed = str(template.get("mode", "0")).endswith("0")
            # An expression is one that may be true.
            if template and closed and task.get("diff") is not False and not task.get("no_log"):
                yield template["src"]


def test_what_not_everybody_may_read_is_not_shown_when_it_changes():
    assert set(shown_templates()) == set(SHOWN)
