"""A session's hold on its hosts, over SSH to loopback: the lock, its end, lost connections, the cost."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from kestrel_stack.deploy import description, scripts, ssh
from kestrel_stack.deploy.errors import LOCKED, Cancelled, HostError, Locked, Refused
from kestrel_stack.deploy.report import Report
from kestrel_stack.deploy.session import Session, interruptible
from support.deploy import wait_for
from support.slow_line import SlowLine
from support.ssh_server import ROOT, Machine


@dataclass(frozen=True)
class Environment(description.Environment):
    @property
    def root(self):
        return ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits that the tests have to sit through are short."""
    monkeypatch.setattr(scripts, "GRACE", 1)
    monkeypatch.setattr(scripts, "PATIENCE", 2)


@pytest.fixture
def machines(tmp_path):
    made = {}

    def make(*names, **options):
        for name in names:
            (tmp_path / name).mkdir()
            made[name] = Machine(tmp_path / name, **options)
        return [made[name] for name in names]

    yield make
    for machine in made.values():
        machine.close()


def session(*machines, **options):
    hosts = tuple(machine.host(machine.folder.name) for machine in machines)
    return Session(Environment("lab", "shop", "shop", hosts), Report(), **options)


def lock_of(machine):
    return machine.folder / "srv" / ".deploy.lock"


def holder_of(machine):
    try:
        return json.loads(lock_of(machine).read_text())["id"]
    except FileNotFoundError:
        return None


def free(machine):
    return not lock_of(machine).exists()


# --- the lock --------------------------------------------------------------------------------------------


def test_every_host_is_locked_and_given_back_with_what_is_to_be_noted(machines):
    one, two = machines("one", "two")
    with session(one, two) as ours:
        ours.inspect()
        assert all(state.lock is None for state in ours.states.values())
        ours.lock("deploy")
        assert [holder_of(machine) for machine in (one, two)] == [ours.lock_id] * 2
        assert json.loads(lock_of(one).read_text())["action"] == "deploy"
        for host in ours.hosts:
            ours.require_lock(host)
            assert ours.look(host).lock["state"] == "held"
        assert ours.release(lambda host: {"record": {"host": host.name}}) == []
    assert free(one) and free(two)
    assert (two.folder / "srv" / "deploys.jsonl").read_text() == '{"host": "two"}\n'


def test_what_could_not_be_noted_at_the_end_is_said_and_the_lock_is_given_back(machines, capsys):
    (one,) = machines("one")
    with session(one) as ours:
        (one.folder / "srv" / "deploys.jsonl").mkdir()
        ours.inspect()
        ours.lock("deploy")
        assert ours.release(lambda host: {"record": {"a": 1}}) == []
    assert "the end of this deploy could not be noted (record)" in capsys.readouterr().out
    assert free(one)


def test_who_comes_too_late_is_told_whose_it_is_and_holds_nothing(machines):
    one, two = machines("one", "two")
    with session(two) as first, session(one, two) as late:
        late.lock_id = "f" * 32  # does not wait for the other to give way
        for each in (first, late):
            each.inspect()
        first.lock("deploy")
        with pytest.raises(Locked) as caught:
            late.lock("deploy")
        assert caught.value.code == LOCKED
        assert str(caught.value).startswith(f"two is locked by {os.environ.get('USER', 'root')}@")
        assert f"(pid {os.getpid()}) since " in str(caught.value)
        assert "fab unlock --env lab" in str(caught.value)
        assert free(one)
        assert late.locked == []
        assert holder_of(two) == first.lock_id
        assert late.release() == []
        assert holder_of(two) == first.lock_id


def test_of_deploys_that_begin_at_the_same_moment_in_different_orders_one_wins(machines):
    hosts = machines("a", "b", "c")
    choice = random.Random(20)
    for _ in range(4):
        sessions = []
        for _ in range(3):
            some = list(hosts)
            choice.shuffle(some)
            sessions.append(session(*some))
        go, outcome = threading.Barrier(len(sessions)), {}

        def take(one, go=go, outcome=outcome):
            one.inspect()
            go.wait()
            try:
                one.lock("deploy")
                outcome[one.lock_id] = "won"
            except Locked:
                outcome[one.lock_id] = "lost"
                assert one.locked == []

        threads = [threading.Thread(target=take, args=(one,)) for one in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcome.values()) == ["lost", "lost", "won"]
        winner = next(name for name, how in outcome.items() if how == "won")
        assert [holder_of(machine) for machine in hosts] == [winner] * 3
        for one in sessions:
            assert one.release() == []
            one.__exit__()
        assert all(free(machine) for machine in hosts)


def test_a_deploy_that_was_killed_is_followed_by_the_next_which_says_whose_lock_it_took(machines, capsys):
    (one,) = machines("one")
    host = one.host("one")
    program = (
        "import sys; from pathlib import Path\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from kestrel_stack.deploy.description import Host\n"
        "from test_session import Environment, Report, Session\n"
        "host = Host('one', '127.0.0.1', int(sys.argv[1]), 'deploy', Path(sys.argv[4]), ())\n"
        "from kestrel_stack.deploy import scripts; scripts.GRACE = 1\n"
        "ours = Session(Environment('lab', 'shop', 'shop', (host,)), Report())\n"
        "ours.inspect(); ours.lock('deploy'); print('locked', flush=True); sys.stdin.read()\n"
    )
    here = Path(__file__).parent
    words = [str(one.port), str(here), str(here.parents[1]), str(host.ssh_config)]
    killed = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout.readline() == b"locked\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdin.close()
    killed.stdout.close()
    with session(one) as ours:
        ours.inspect()
        ours.lock("deploy")
        assert holder_of(one) == ours.lock_id
        assert ours.release() == []
    said = capsys.readouterr().out
    assert f"(pid {killed.pid})" in said
    assert "takes over the lock of" in said


def test_a_lock_without_a_lease_is_refused_and_stays(machines):
    (one,) = machines("one")
    with session(one) as ours:
        lock_of(one).parent.mkdir(exist_ok=True)
        ours.inspect()
        lock_of(one).write_text("maintenance until monday\n")
        with pytest.raises(Locked, match=r"when it is of no use any more, run fab unlock --env lab"):
            ours.lock("deploy")
    assert lock_of(one).read_text() == "maintenance until monday\n"


def test_a_lock_that_somebody_removed_is_noticed_before_the_next_batch(machines, monkeypatch):
    monkeypatch.setattr(ssh, "KEEPALIVE", 0.1)
    (one,) = machines("one")
    with session(one) as ours:
        ours.inspect()
        ours.lock("deploy")
        lock_of(one).unlink()
        wait_for(lambda: ours._lost)
        with pytest.raises(HostError, match="one: the lock was lost: somebody removed it") as caught:
            ours.require_lock(ours.hosts[0])
        assert not caught.value.lost


def test_a_person_who_cancels_while_another_is_waited_for_holds_nothing(machines):
    (one,) = machines("one")
    with session(one) as first, session(one) as second:
        first.lock_id, second.lock_id = "f" * 32, "0" * 32  # the second waits for the first to give way
        for each in (first, second):
            each.inspect()
        first.lock("deploy")
        threading.Timer(0.3, second.cancel.set).start()
        with pytest.raises(Cancelled):
            second.lock("deploy")
        assert second.release() == []
        assert holder_of(one) == first.lock_id
        first.release()
    assert free(one)


# --- lost connections ------------------------------------------------------------------------------------


def test_after_a_lost_connection_the_lock_is_still_ours_and_so_is_the_end(machines):
    (one,) = machines("one")
    with session(one) as ours:
        ours.inspect()
        ours.lock("deploy")
        host = ours.hosts[0]
        with pytest.raises(HostError) as caught:
            ours.run(host, "echo begun; read -r _", "switch", on_line=lambda _: one.cut())
        assert caught.value.lost
        assert ours.run(host, "echo again", "look").lines == ("again",)
        assert ours.look(host).lock["id"] == ours.lock_id
        ours.require_lock(host)
        assert ours.look(host).lock["state"] == "held"
        one.cut()
        assert ours.release(lambda _: {"record": {"a": 1}}) == []
        assert free(one)
        assert (one.folder / "srv" / "deploys.jsonl").read_text() == '{"a": 1}\n'


def test_a_lock_that_another_deploy_took_while_the_connection_was_lost_is_left_alone(machines):
    (one,) = machines("one")
    with session(one) as ours, session(one) as other:
        ours.inspect()
        ours.lock("deploy")
        one.cut()
        other.inspect()
        other.lock("deploy")
        with pytest.raises(Locked, match=r"one: the lock was lost: .* has it now"):
            ours.require_lock(ours.hosts[0])
        assert ours.release() == []
        assert holder_of(one) == other.lock_id


def test_a_host_that_falls_silent_is_named_and_the_others_get_their_lock_back(machines, monkeypatch):
    one, two = machines("one", "two")
    with session(one, two) as ours:
        ours.inspect()
        ours.lock("deploy")
        two.silent.set()
        # As if half a minute had gone by; the other one answers all the time.
        monkeypatch.setattr(ours.remotes["two"], "silent_for", lambda: ssh.SILENCE + 1)
        monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 1)
        assert not ours._holds["two"].alive
        left = ours.release()
    assert free(one)
    assert len(left) == 1
    assert left[0].startswith("two does not answer at")
    assert "until fab unlock --env lab --limit two" in left[0]


# --- looking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("skew", "word"), [(400, "ahead of"), (-400, "behind")])
def test_a_clock_that_is_far_off_is_refused_and_one_that_is_a_little_off_is_named(
    machines, capsys, monkeypatch, skew, word
):
    (one,) = machines("one")
    monkeypatch.setattr("kestrel_stack.deploy.plan.problems", lambda *_, **__: [])
    with session(one) as ours:
        ours.inspect()
        ours.require_fit()
        assert "clock" not in capsys.readouterr().out
        far, near = (dict(ours.states) for _ in range(2))
        far["one"] = changed(ours.states["one"], skew)
        near["one"] = changed(ours.states["one"], skew / 10)
        ours.states = far
        with pytest.raises(Refused, match=rf"one: its clock is 400 s {word} this machine's: set the one"):
            ours.require_fit()
        ours.states = near
        ours.require_fit()
        assert f"its clock is 40 s {word} this machine's" in capsys.readouterr().out


def changed(state, skew):
    return type(state)(state.host, state.facts, clock_skew=skew)


def test_looking_leaves_nothing_running_and_takes_no_lock(machines):
    (one,) = machines("one")
    with session(one) as ours:
        state = ours.look(ours.hosts[0])
        assert state.facts["root"] == "yes"
        assert ours._holds == {}
        assert free(one)


# --- the cost --------------------------------------------------------------------------------------------


def test_a_whole_deploy_takes_three_channels_and_few_round_trips(machines, tmp_path):
    (one,) = machines("one")
    line = SlowLine(("127.0.0.1", one.port), 0.05)
    host = one.host("one", port=line.port)
    upload = tmp_path / "upload"
    upload.write_bytes(os.urandom(100_000))
    with Session(Environment("lab", "shop", "shop", (host,)), Report(), channels=3) as ours:
        ours.inspect()
        ours.lock("deploy")
        prepared = ours.run(host, "head -c 100000 | sha256sum", "prepare", upload=upload)
        ours.require_lock(host)
        ours.run(host, "echo switched", "switch")
        assert ours.release() == []
        statistics = ours.remotes["one"].statistics
    line.close()
    assert prepared.lines[0].split()[0] == sha256(upload)
    assert (statistics.connections, statistics.channels) == (1, 3)
    assert statistics.sent > 100_000 > statistics.received > 0
    # Greeting, keys, log-in with the channels, hold, lock, prepare, switch, finish, and closing words.
    assert len(line.connections) == 1
    assert line.connections[0].round_trips <= 12


def sha256(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_a_key_that_is_refused_does_not_spoil_the_one_that_is_accepted(machines):
    (one,) = machines("one")
    wrong = one.folder / "wrong"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", wrong], check=True)
    host = one.host("one")
    config = host.ssh_config.read_text().replace("  IdentityFile", f"  IdentityFile {wrong}\n  IdentityFile")
    host.ssh_config.write_text(config)
    remote = ssh.Remote(host, threading.Event(), channels=3)
    assert remote.run("echo in", what="try", timeout=60).lines == ("in",)
    assert remote.statistics.channels == 3
    remote.close()


def test_many_hosts_behind_one_sshd_come_up_although_it_greets_only_ten_at_once(machines):
    (one,) = machines("one", greets=10)
    host = one.host("one")
    remotes = [ssh.Remote(host, threading.Event()) for _ in range(24)]
    results, errors = ssh.on_all(
        remotes, lambda remote: remote.run("echo up", what="try", timeout=60).lines, threading.Event()
    )
    assert errors == {}
    assert set(results.values()) == {("up",)}
    assert one.dropped == 0
    assert one.most_greeted <= ssh.CONNECTING + 1
    for remote in remotes:
        remote.close()


def test_a_connection_that_sshd_drops_is_tried_again(machines):
    (one,) = machines("one", greets=2)
    host = one.host("one")
    remotes = [ssh.Remote(host, threading.Event()) for _ in range(12)]
    results, errors = ssh.on_all(
        remotes, lambda remote: remote.run("echo up", what="try", timeout=60).lines, threading.Event()
    )
    assert errors == {}
    assert len(results) == 12
    assert one.dropped > 0
    for remote in remotes:
        remote.close()


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_user_without_a_name_locks_by_number(machines, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(os, "getuid", lambda: 4100000000)
    (machine,) = machines("one")
    with session(machine) as made:
        made.inspect()
        made.lock("deploy")
        assert json.loads(lock_of(machine).read_text())["owner"] == "uid4100000000"
        assert made.release() == []


def test_ctrl_c_while_connections_are_closed_does_not_change_how_a_command_ends(machines, monkeypatch):
    made = session(*machines("one"))
    close = ssh.Remote.close
    closed = []

    def press(remote):
        os.kill(os.getpid(), signal.SIGINT)
        close(remote)
        closed.append(remote.name)

    with monkeypatch.context() as patch, made:
        made.inspect()
        patch.setattr(ssh.Remote, "close", press)
    assert closed == ["one"]
