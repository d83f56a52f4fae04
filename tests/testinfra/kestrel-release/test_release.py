"""A release on the distribution's Java: how it is launched, confined, stopped and logged."""

from __future__ import annotations

import json
import os

import pytest

REAL = bool(os.environ.get("KESTREL_ARCHIVE"))
WANTED_JAVA = {"12": "17", "13": os.environ.get("KESTREL_STACK_JAVA") or "21"}


@pytest.fixture
def main_pid(root):
    return lambda: int(root("queue1", "systemctl show kestrel --property MainPID --value"))


@pytest.fixture
def settings(root):
    return json.loads(root("queue1", "cat /etc/kestrel/release.json"))


def java_of(root, main_pid):
    return root("queue1", f"tr '\\0' '\\n' </proc/{main_pid()}/cmdline").splitlines()


def test_the_main_process_is_java_itself_with_the_flags_of_its_version(root, main_pid, settings):
    words = java_of(root, main_pid)
    debian = root("queue1", ". /etc/os-release; echo $VERSION_ID").strip()
    assert words[0] == settings["java_home"] + "/bin/java"
    assert words[0].startswith(f"/usr/lib/jvm/java-{WANTED_JAVA[debian]}-openjdk-")
    assert words[words.index("KestrelLauncher") + 1 :] == [
        "/opt/kestrel/releases/2.4.1/kestrel_2.9.2-2.4.1.jar",
        "-f",
        "/etc/kestrel/kestrel.scala",
    ]
    assert f"-Xmx{settings['heap_mb']}m" in words
    assert "-XX:+UseG1GC" in words
    assert root("queue1", f"stat -c %U /proc/{main_pid()}").strip() == "kestrel"


def test_a_stand_in_says_that_it_is_one(root):
    assert ("stand-in for Kestrel" in root("queue1", "cat /var/log/kestrel/kestrel.log*")) != REAL


def test_it_answers_as_the_release_that_is_installed(talk, root):
    assert talk("version\r\n") == "VERSION 2.4.1\r\n"
    marker = json.loads(root("queue1", "cat /opt/kestrel/current/.archive.json"))
    assert marker["release"] == "2.4.1"


def test_nothing_that_it_runs_can_be_changed_by_its_user(root, run_as, settings):
    own = "find /opt/kestrel /usr/local/lib/kestrel-stack /etc/kestrel/kestrel.scala -writable ! -type l"
    assert run_as("queue1", "kestrel", own).stdout == ""
    assert root("queue1", "find /opt/kestrel ! -user root").strip() == ""
    # And the test can tell: the compiled configuration is its own.
    assert run_as("queue1", "kestrel", "find /etc/kestrel/target -maxdepth 0 -writable").stdout.strip()


def test_the_stubs_are_class_files_of_an_old_java(root, settings):
    script = (
        "import collections, sys, zipfile; stubs = zipfile.ZipFile(sys.argv[1]);"
        "versions = {int.from_bytes(stubs.read(name)[6:8], 'big') for name in stubs.namelist()};"
        "print(len(stubs.namelist()), max(versions), 'java/lang/Object.class' in stubs.namelist())"
    )
    count, newest, has_object = root("queue1", f'python3 -c "{script}" {settings["stubs"]}').split()
    assert int(count) > 4000
    assert int(newest) <= 52
    assert has_object == "True"


def test_stubs_and_launcher_are_made_once_and_mended(root, settings):
    prepare = f"/usr/local/lib/kestrel-stack/kestrel-release-java prepare {settings['java_home']}"
    assert json.loads(root("queue1", prepare))["changed"] is False
    before = root("queue1", f"sha256sum {settings['stubs']}")
    root("queue1", f"truncate --size 100 {settings['stubs']}")
    mended = json.loads(root("queue1", prepare))
    assert mended["changed"] is True
    assert mended["stubs"] == settings["stubs"]
    assert root("queue1", f"sha256sum {settings['stubs']}") == before


def test_a_configuration_that_does_not_compile_is_told_with_line_and_caret(root, admin):
    root(
        "queue1",
        "sed 's/memcacheListenPort = .*/memcacheListenPort = \"x\"/' /etc/kestrel/kestrel.scala >/root/bad",
    )
    done = admin("queue1").run("sudo /usr/local/lib/kestrel-stack/kestrel-release validate /root/bad")
    assert done.rc == 1
    assert "/root/bad" in done.stderr
    assert "type mismatch" in done.stderr
    assert "^" in done.stderr
    good = "/usr/local/lib/kestrel-stack/kestrel-release validate /etc/kestrel/kestrel.scala"
    assert "compiles." in root("queue1", good)


def test_validating_leaves_nothing_behind(root):
    assert root("queue1", "find /tmp -name 'kestrel-validate-*'").strip() == ""


def test_the_sandbox_is_as_tight_as_a_jvm_can_have_it(root):
    found = root("queue1", "systemd-analyze security kestrel.service --no-pager | tail -1")
    assert float(found.split(":")[1].split()[0]) <= 2.0, found
    # Printed for the unit's own lines only; a container adds a drop-in.
    assert "kestrel.service:" not in root("queue1", "systemd-analyze verify kestrel.service 2>&1")
    shown = root("queue1", "systemctl show kestrel --property User,LimitNOFILE,ProtectSystem,NoNewPrivileges")
    assert set(shown.split()) == {
        "User=kestrel",
        "LimitNOFILE=262144",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
    }


def test_the_collectors_log_is_written_and_bounded(root, main_pid):
    log = root("queue1", "cat /var/log/kestrel/gc.log*")
    assert "Using G1" in log
    assert any("filecount=4,filesize=8M" in word for word in java_of(root, main_pid))


def test_a_rotated_log_is_reopened_and_the_server_goes_on(root, main_pid, eventually):
    before = main_pid()
    root("queue1", "logrotate --force /etc/logrotate.d/kestrel")
    assert root("queue1", "systemctl is-enabled logrotate.timer").strip() == "enabled"
    # What is logged from now on is in the new file: a reload always says something.
    eventually(
        lambda: root("queue1", "test -e /var/log/kestrel/kestrel.log && echo there || true").strip(),
        "the log is reopened",
    )
    root("queue1", "systemctl reload kestrel")
    eventually(
        lambda: "Reloading" in root("queue1", "cat /var/log/kestrel/kestrel.log"), "the new log is used"
    )
    assert "Reloading" not in root("queue1", "tail -n 1 /var/log/kestrel/kestrel.log.1")
    assert main_pid() == before
    assert root("queue1", "stat -c %U:%G /var/log/kestrel/kestrel.log.1").strip() == "kestrel:kestrel"


def test_an_orderly_stop_goes_by_the_admin_port_and_keeps_what_is_queued(root, put, take, answers):
    put("stop_probe", "one", "two")
    root("queue1", "systemctl stop kestrel")
    shown = root("queue1", "systemctl show kestrel --property ActiveState,Result,ExecMainStatus")
    assert set(shown.split()) == {"ActiveState=inactive", "Result=success", "ExecMainStatus=0"}
    root("queue1", "systemctl start kestrel")
    answers()
    assert take("stop_probe") == ["one", "two"]


def test_a_killed_server_comes_back_with_what_was_acknowledged(
    root, put, take, main_pid, answers, eventually
):
    put("kill_probe", "one", "two")
    before = main_pid()
    root("queue1", f"kill -KILL {before}")
    eventually(lambda: main_pid() not in (0, before), "systemd starts it again")
    answers()
    assert take("kill_probe") == ["one", "two"]


def test_a_server_that_was_told_to_end_comes_back_without_a_failure(root, main_pid, answers, eventually):
    before = main_pid()
    since = root("queue1", "date '+%s'").strip()
    root("queue1", "curl -s http://127.0.0.1:2223/shutdown.txt")
    eventually(lambda: main_pid() not in (0, before), "systemd starts it again")
    answers()
    said = root("queue1", f"journalctl --unit kestrel --since @{since} --no-pager --output cat")
    assert "Scheduled restart job" in said
    assert "Failed" not in said
    assert "kestrel-release" not in said


def test_what_is_missing_is_one_clear_line(root, admin, settings):
    root("queue1", f"mv {settings['stubs']} {settings['stubs']}.away")
    try:
        done = admin("queue1").run(
            "sudo /usr/local/lib/kestrel-stack/kestrel-release serve /etc/kestrel/kestrel.scala"
        )
    finally:
        root("queue1", f"mv {settings['stubs']}.away {settings['stubs']}")
    assert done.rc == 78
    assert done.stderr.strip() == (
        f"kestrel-release: {settings['stubs']} is not there or not readable: run the play again"
    )
