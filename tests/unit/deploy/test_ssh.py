"""Connections, against an SSH server on loopback: whom they trust, what they notice, how they stop."""

import subprocess
import threading
import time

import paramiko
import pytest

from kestrel_stack.deploy import ssh
from kestrel_stack.deploy.errors import Cancelled, HostError, Refused
from support.ssh_server import Machine


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def run(remote, script, **kwargs):
    try:
        return remote.run(script, what="try", **{"timeout": 60, **kwargs})
    finally:
        remote.close()


# --- trust -----------------------------------------------------------------------------------------------


def test_a_known_host_is_trusted_and_runs_a_script(machine):
    result = run(machine.remote(), "echo out; echo 'two words' >&2; exit 3")
    assert result == ssh.Result(3, ("out",), ("two words",))


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_the_file(machine):
    with pytest.raises(Refused) as caught:
        run(machine.remote(known=[]), "true")
    assert machine.key.fingerprint in str(caught.value)
    assert f"add it to {machine.folder / 'known_hosts'}" in str(caught.value)
    assert (machine.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key_is_refused(machine):
    with pytest.raises(Refused, match="worker1: the host key has changed"):
        run(machine.remote(known=[machine.known(key=paramiko.ECDSAKey.generate())]), "true")


def test_switching_the_check_off_in_the_ssh_configuration_does_not_switch_it_off_here(machine):
    with pytest.raises(Refused, match="unknown host key"):
        run(machine.remote("StrictHostKeyChecking no", known=[]), "true")


def test_a_host_may_be_known_by_its_alias(machine):
    remote = machine.remote("HostKeyAlias worker1", known=[machine.known("worker1")])
    assert run(remote, "true").code == 0
    other = machine.known("worker1", paramiko.ECDSAKey.generate())
    with pytest.raises(Refused, match="host key has changed"):
        run(machine.remote("HostKeyAlias worker1", known=[other]), "true")


def test_a_key_that_the_host_does_not_accept_names_the_fix(machine):
    machine.user_key = paramiko.ECDSAKey.generate()
    with pytest.raises(Refused, match=r"user deploy may not log in .*app_host_deploy_keys"):
        run(machine.remote(), "true")


def test_a_machine_that_takes_connections_and_says_nothing_is_refused_in_bounded_time(machine, monkeypatch):
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 1)
    monkeypatch.setattr(ssh, "RETRY_FOR", 0)
    machine.silent.set()
    with pytest.raises(Refused, match="worker1 does not answer at"):
        run(machine.remote(), "true")


# --- running ---------------------------------------------------------------------------------------------


def test_lines_are_heard_when_they_come_and_cannot_draw_on_the_screen(machine):
    heard = []
    result = run(machine.remote(), "printf 'a\\033[31mb\\nlast'", on_line=heard.append)
    assert heard == ["a?[31mb", "last"]
    assert result.lines == tuple(heard)


def test_much_output_on_both_sides_arrives_whole(machine):
    result = run(machine.remote(), "seq 1 30000; seq 1 30000 >&2")
    assert len(result.lines) == len(result.errors) == 30000


def test_an_upload_arrives_as_it_is(machine, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 20000)
    size = data.stat().st_size
    sent = []
    script = f"head -c {size} | sha256sum"
    result = run(machine.remote(), script, upload=data, on_sent=sent.append)
    expected = subprocess.run(
        ["sha256sum"], stdin=data.open("rb"), capture_output=True, text=True, check=True
    )
    assert result.lines[0] == expected.stdout.strip()
    assert sum(sent) == size


def test_after_its_upload_a_script_has_a_lifeline_like_any_other(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "KEEPALIVE", 0.1)
    data = tmp_path / "data"
    data.write_bytes(b"upload\n")
    cancel = threading.Event()
    with pytest.raises(Cancelled) as caught:
        run(
            machine.remote(cancel=cancel),
            "head -c 7; read -r _ && echo alive; while read -r _; do :; done; echo in order",
            upload=data,
            on_line=lambda line: cancel.set() if line == "alive" else None,
        )
    assert caught.value.result.lines == ("upload", "alive", "in order")


def test_an_upload_that_the_script_does_not_take_is_the_scripts_failure(machine, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(20_000_000))
    result = run(machine.remote(), "head -c 10 >/dev/null; echo 'no room' >&2; exit 1", upload=data)
    assert (result.code, result.complaint) == (1, "no room")


def test_a_script_that_takes_too_long_is_told_to_stop_and_named(machine, tmp_path):
    ended = tmp_path / "ended"
    script = f"read -r _; while read -r _; do :; done; touch {ended}"
    with pytest.raises(HostError, match="worker1: try: did not end within 1 s"):
        run(machine.remote(), script, timeout=1)
    assert ended.exists()


def test_a_person_who_cancels_gets_what_the_script_says_while_it_puts_things_in_order(machine):
    cancel = threading.Event()
    with pytest.raises(Cancelled) as caught:
        run(
            machine.remote(cancel=cancel),
            "echo begun; while read -r _; do :; done; echo in order",
            on_line=lambda line: cancel.set(),
        )
    assert caught.value.result.lines == ("begun", "in order")


def test_a_connection_that_breaks_is_told_from_a_script_that_fails(machine):
    with pytest.raises(HostError, match="try: the connection was lost") as caught:
        run(
            machine.remote(),
            "echo begun; read -r _; sleep 20",
            on_line=lambda _: machine.cut(),
        )
    assert caught.value.lost


def test_a_host_that_falls_silent_counts_as_lost(machine, monkeypatch):
    monkeypatch.setattr(ssh, "KEEPALIVE", 0.2)
    monkeypatch.setattr(ssh, "SILENCE", 1.5)
    with pytest.raises(HostError, match=r"no answer for 1\.5 s") as caught:
        run(machine.remote(), "echo begun; read -r _; sleep 20", on_line=lambda _: machine.silent.set())
    assert caught.value.lost


def test_a_host_that_is_only_slow_does_not_count_as_lost(machine, monkeypatch):
    monkeypatch.setattr(ssh, "KEEPALIVE", 0.2)
    monkeypatch.setattr(ssh, "SILENCE", 5)
    assert run(machine.remote(), "sleep 7; echo done").lines == ("done",)


# --- a script that stays -----------------------------------------------------------------------------------

ANSWERS = """
echo '@ ready 0'
while read -r number word rest; do
    case $word in
        '') if [ -n "$number" ]; then echo "odd $number"; else echo sign; fi; continue ;;
        wait) while [ ! -e "$rest" ]; do sleep 0.02; done ;;
        fail) echo 'no room' >&2; exit 3 ;;
        end) exit 0 ;;
    esac
    echo "$word $rest"
    echo "@ ready $number"
done
"""


def test_a_script_that_stays_answers_and_is_heard_between_the_answers(machine, monkeypatch):
    monkeypatch.setattr(ssh, "KEEPALIVE", 0.1)
    remote, heard, signs = machine.remote(), [], threading.Event()

    def hear(line):
        heard.append(line)
        if line == "sign":
            signs.set()

    talk = remote.talk(ANSWERS, what="stay", on_line=hear)
    assert talk.first(60) == []
    assert talk.ask("say it's so", 60)[-1] == "say it's so"
    assert signs.wait(60)
    assert talk.end("end", 60) == ssh.Result(0, (), ())
    assert not talk.alive
    remote.close()


def test_a_late_answer_is_not_taken_for_the_next_one(machine, tmp_path):
    remote, gate = machine.remote(), tmp_path / "gate"
    talk = remote.talk(ANSWERS, what="stay")
    talk.first(60)
    with pytest.raises(HostError, match="worker1: stay: did not answer within 0 s") as caught:
        talk.ask(f"wait {gate}", 0.1)
    assert not caught.value.lost
    gate.touch()
    assert talk.ask("say two", 60) == ["say two"]
    remote.close()


def test_a_script_that_stays_and_fails_says_why(machine):
    remote = machine.remote()
    talk = remote.talk(ANSWERS, what="stay")
    with pytest.raises(HostError, match="worker1: stay: no room") as caught:
        talk.ask("fail", 60)
    assert not caught.value.lost
    assert remote.run("echo still here", what="try", timeout=60).lines == ("still here",)
    remote.close()


def test_a_connection_that_breaks_after_the_end_was_asked_for_is_a_lost_one(machine):
    remote = machine.remote()
    talk = remote.talk(
        ANSWERS, what="stay", on_line=lambda line: machine.cut() if line == "say bye" else None
    )
    talk.first(60)
    with pytest.raises(HostError, match="worker1: stay: the connection was lost") as caught:
        talk.end("say bye", 60)
    assert caught.value.lost
    assert remote.run("echo again", what="try", timeout=60).lines == ("again",)
    remote.close()


def test_a_script_of_which_only_a_part_arrives_is_not_begun(tmp_path):
    began = tmp_path / "began"
    for filler in range(80, 120):
        script = f"touch {began}\n" + "é" * filler + "=1"
        data = ssh._announced(script)
        size, _, rest = data.partition(b"\n")
        assert int(size) == len(rest)
    for length in (*range(0, len(data), 7), len(data) - 1):
        subprocess.run(["/bin/sh", "-c", ssh._WAIT_FOR_SCRIPT], input=data[:length], check=False)
        assert not began.exists()
    subprocess.run(["/bin/sh", "-c", ssh._WAIT_FOR_SCRIPT], input=data, capture_output=True, check=False)
    assert began.exists()


def test_a_channel_that_was_opened_ahead_and_has_ended_is_replaced(machine):
    remote = ssh.Remote(machine.host(), threading.Event(), channels=3)
    remote.open()
    for ahead in remote._ahead:
        ahead.result(60).close()
    assert remote.run("echo up", what="try", timeout=60).lines == ("up",)
    assert remote.statistics.channels == 4
    remote.close()


def test_a_connection_that_broke_while_nobody_used_it_is_opened_again(machine):
    remote = machine.remote()
    remote.run("true", what="try", timeout=60)
    machine.cut()
    deadline = time.monotonic() + 60
    while remote._connection.transport.is_active() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert remote.run("echo again", what="try", timeout=60).lines == ("again",)
    assert remote.statistics.connections == 2
    remote.close()


def test_work_on_many_hosts_is_capped_and_every_error_is_kept():
    busy, most, guard = [], [], threading.Lock()

    def work(number):
        with guard:
            busy.append(number)
            most.append(len(busy))
        time.sleep(0.02)
        with guard:
            busy.remove(number)
        if number % 2:
            raise ValueError(number)
        return number * 10

    results, errors = ssh.on_all(range(24), work, threading.Event(), parallel=8)
    assert max(most) == 8
    assert results == {number: number * 10 for number in range(0, 24, 2)}
    assert sorted(errors) == list(range(1, 24, 2))
