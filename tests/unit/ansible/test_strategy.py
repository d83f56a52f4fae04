"""The strategy of ansible.cfg: Ansible's own, but for what it leaves out and what it does not wait for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Run a module
      ansible.builtin.command: "true"
      changed_when: false
    - name: Say nothing of it
      ansible.builtin.command: printf %s s3cret
      no_log: true
      changed_when: false
    - name: Fail with one line
      ansible.builtin.fail:
        msg: as any other
"""


def without(folder: Path) -> dict[str, str]:
    """Return an environment whose Python has no Mitogen."""
    (folder / "ansible_mitogen").mkdir()
    (folder / "ansible_mitogen/__init__.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": str(folder)}


def play(
    folder: Path, environment: dict[str, str], plays: str = PLAY, hosts: str = "here,", verbose: str = "-vvv"
) -> subprocess.CompletedProcess[str]:
    (folder / "play.yml").write_text(plays)
    return subprocess.run(
        [PLAYBOOK, *([verbose] if verbose else []), "-i", hosts, "-c", "local", folder / "play.yml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        env={**os.environ, "ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1", **environment},
    )


@pytest.mark.parametrize("mitogen", [True, False], ids=["with-mitogen", "without"])
def test_a_playbook_runs_the_same_way_with_and_without_mitogen(tmp_path, mitogen):
    done = play(tmp_path, {} if mitogen else without(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "as any other" in done.stdout
    assert "ok=2 " in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    assert "eprecat" not in done.stderr


WHICH = """
import sys
from ansible.plugins.loader import strategy_loader
strategy_loader.add_directory(sys.argv[1])
print([base.__name__ for base in strategy_loader.get("kestrel_stack", class_only=True).__mro__])
"""


@pytest.mark.parametrize("mitogen", [True, False], ids=["with-mitogen", "without"])
def test_mitogen_is_used_where_it_is_installed(tmp_path, mitogen):
    done = subprocess.run(
        [sys.executable, "-c", WHICH, CHECKOUT / "ansible/plugins/strategy"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, **({} if mitogen else without(tmp_path))},
    )
    assert ("StrategyMixin" in done.stdout) == mitogen
    assert "StrategyBase" in done.stdout


# --- what a condition skips --------------------------------------------------------------------------------

CONDITIONS = """
- hosts: all
  gather_facts: false
  vars:
    never: false
    secret: s3cret
  handlers:
    - name: Hear
      ansible.builtin.debug: {msg: heard}
      when: never
  tasks:
    - name: Skip
      ansible.builtin.command: "false"
      when: never
      register: plain
    - name: Skip by the second condition, which names a file of the play's
      ansible.builtin.command: "false"
      when: ["not never", "lookup('ansible.builtin.file', 'play.yml') == ''"]
      register: several
    - name: Skip what must not be shown
      ansible.builtin.command: "{{ secret }}"
      when: secret == 'other'
      no_log: true
      register: hidden
    - name: Skip a block
      when: never
      block:
        - name: Skip within
          ansible.builtin.command: "false"
          register: within
    - name: Skip some of a loop
      ansible.builtin.debug: {msg: "{{ item }}"}
      loop: [1, 2]
      when: item == 2
      register: loop
    - name: Skip what is for somebody else
      ansible.builtin.command: "false"
      delegate_to: localhost
      when: never
      register: delegated
    - name: Skip an import and an include
      ansible.builtin.include_tasks: nowhere.yml
      when: never
      register: included
    - name: Skip by what an earlier task said
      ansible.builtin.command: "false"
      when: plain is not skipped
      until: plain is skipped
      register: again
    - name: Notify
      ansible.builtin.command: "true"
      notify: Hear
    - name: Run the handlers
      ansible.builtin.meta: flush_handlers
    - name: Show
      ansible.builtin.debug:
        msg: "{{ item | to_nice_json }}"
      loop: "{{ [plain, several, hidden, within, loop, delegated, included, again] }}"
      loop_control: {label: ""}
    - name: Fail in the condition
      ansible.builtin.command: "true"
      when: nobody.knows == 1
      ignore_errors: true
    - name: Fail for what is no condition
      ansible.builtin.command: "true"
      when: secret
"""


@pytest.mark.parametrize("mitogen", [True, False], ids=["with-mitogen", "without"])
def test_what_is_skipped_looks_as_with_ansibles_own_strategy(tmp_path, mitogen):
    environment = {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"} | ({} if mitogen else without(tmp_path))
    ours, own = (
        play(tmp_path, environment | strategy, CONDITIONS, verbose="")
        for strategy in ({}, {"ANSIBLE_STRATEGY": "linear"})
    )
    # No two runs of a command take the same time.
    ours, own = (
        (done.returncode, re.sub(r"20\d\d-.*|0:00:00.\d+", "", done.stdout), done.stderr)
        for done in (ours, own)
    )
    assert ours == own
    assert ours[0] == 2
    assert "skipped=" in ours[1]
    assert "heard" not in ours[1]


WHO = """
- hosts: all
  gather_facts: false
  tasks:
    - &asked
      name: Ask which process looks at the condition
      ansible.builtin.command: "true"
      when: lookup('ansible.builtin.pipe', 'echo $PPID >> {who}; echo no') == 'yes'
    - *asked
    - *asked
"""


@pytest.mark.parametrize(("strategy", "processes"), [("kestrel_stack", 1), ("linear", 3)])
def test_what_is_skipped_has_no_process_of_its_own(tmp_path, strategy, processes):
    who = tmp_path / "who"
    plays = WHO.replace("{who}", str(who))
    done = play(tmp_path, {"ANSIBLE_STRATEGY": strategy}, plays)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = who.read_text().split()
    assert len(asked) == 3
    assert len(set(asked)) == processes


UNKNOWN = """
import importlib.util

spec = importlib.util.spec_from_file_location("known", {path!r})
known = importlib.util.module_from_spec(spec)
spec.loader.exec_module(known)
known._RawTaskResult = known.UnifiedTaskResult = None


class StrategyModule(known.StrategyModule):
    pass
"""


def test_with_results_that_it_does_not_know_it_leaves_conditions_to_ansible(tmp_path):
    (tmp_path / "unknown.py").write_text(
        UNKNOWN.format(path=str(CHECKOUT / "ansible/plugins/strategy/kestrel_stack.py"))
    )
    who = tmp_path / "who"
    environment = {"ANSIBLE_STRATEGY": "unknown", "ANSIBLE_STRATEGY_PLUGINS": str(tmp_path)}
    done = play(tmp_path, environment, WHO.replace("{who}", str(who)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set(who.read_text().split())) == 3


# --- plays in which no host waits for another one ----------------------------------------------------------

LOOSE = """
- hosts: all
  gather_facts: false
  vars:
    __hosts_wait: {wait}
  tasks:
    - name: Wait for what the other one does later
      ansible.builtin.stat:
        path: {folder}/there
      register: there
      until: there.stat.exists
      retries: 30
      delay: 0.2
      when: inventory_hostname == 'first'
    - name: Fail alone
      ansible.builtin.fail: {msg: not this one}
      when: inventory_hostname == 'wrong'
    - name: Do it
      ansible.builtin.file:
        path: {folder}/there
        state: touch
        mode: "0600"
      when: inventory_hostname == 'second'
    - name: One at a time
      ansible.builtin.shell: "mkdir {folder}/one && sleep 0.3 && rmdir {folder}/one"
      throttle: 1
- hosts: all
  gather_facts: false
  tasks:
    - name: Go on
      ansible.builtin.debug: {msg: "{{ ansible_play_hosts_all | difference(ansible_play_hosts) }}"}
"""


def loose(folder: Path, wait: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    plays = LOOSE.replace("{wait}", wait).replace("{folder}", str(folder))
    return play(folder, environment, plays, "first,second,wrong", "")


@pytest.mark.parametrize("mitogen", [True, False], ids=["with-mitogen", "without"])
def test_where_the_play_says_so_no_host_waits_for_another_one(tmp_path, mitogen):
    done = loose(tmp_path, "false", {} if mitogen else without(tmp_path))
    recap = dict(re.findall(r"^(\S+) +: (.*\S)", done.stdout, re.MULTILINE))
    assert "failed=0" in recap["first"], done.stdout + done.stderr
    assert "failed=0" in recap["second"]
    assert "ok=0 " in recap["wrong"]
    assert "failed=1" in recap["wrong"]
    assert done.stdout.count("- wrong") == 2
    assert done.returncode == 2


def test_elsewhere_they_do(tmp_path):
    done = loose(tmp_path, "true", {})
    recap = dict(re.findall(r"^(\S+) +: (.*\S)", done.stdout, re.MULTILINE))
    assert "failed=1" in recap["first"], done.stdout + done.stderr


INCLUDES = """
- hosts: all
  gather_facts: false
  vars:
    __hosts_wait: {wait}
  tasks:
    - name: Include for the first
      ansible.builtin.include_tasks: first.yml
      when: inventory_hostname == 'first'
    - name: Include for the second
      ansible.builtin.include_tasks: second.yml
      when: inventory_hostname == 'second'
    - name: Include for the third
      ansible.builtin.include_tasks: third.yml
      when: inventory_hostname == 'third'
"""


@pytest.mark.parametrize("wait", ["false", "true"])
def test_what_is_included_is_said_under_its_own_heading(tmp_path, wait):
    names = ("first", "second", "third")
    for name in names:
        again = "".join(
            f"- name: Include for the {name} ({number})\n  ansible.builtin.include_tasks: empty.yml\n"
            for number in range(10)
        )
        (tmp_path / f"{name}.yml").write_text(again)
    (tmp_path / "empty.yml").write_text("- ansible.builtin.meta: noop\n")
    done = play(tmp_path, {}, INCLUDES.replace("{wait}", wait), "first,second,third", "")
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"^TASK \[Include for the (\w+)|^included: .* for (\w.*)", done.stdout, re.MULTILINE)
    heading, included = "", []
    for name, hosts in said:
        heading = name or heading
        if hosts:
            included.append((heading, hosts))
    assert sorted(included) == sorted([(name, name) for name in names] * 11), done.stdout
