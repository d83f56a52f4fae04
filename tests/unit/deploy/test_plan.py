"""The decisions of a deploy: data in, decisions out."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel_stack.deploy import hoststate, plan
from kestrel_stack.deploy.appspec import Roll
from kestrel_stack.deploy.commands.deploy import AskPace
from kestrel_stack.deploy.errors import Refused
from kestrel_stack.deploy.hoststate import Group, HostState, Process, Release
from kestrel_stack.deploy.onhost import judge

R1, R2, R3, R4 = (f"2026010{n}T000000Z-aaaaaaa{n}" for n in range(1, 5))
FACTS = {
    "root": "yes",
    "writable": "yes",
    "helper": "yes",
    "venv": "yes",
    "python": "3.11.2",
    "arch": "x86_64",
}


def state(host="h1", *, releases=(), bad=(), failed=(), current="", venvs=("v",), groups=(), **facts):
    made = tuple(
        Release(name, name not in bad, venv="v", rev=name[-8:], failed=name in failed) for name in releases
    )
    return HostState(host, {**FACTS, "current": current, **facts}, made, venvs, groups)


def worker(release=R1, state="RUNNING", uptime=9, name="shop_mail_00"):
    return Process(name, state, 1, uptime, release)


# --- names -----------------------------------------------------------------------------------------------


def test_a_release_is_named_by_utc_time_and_revision():
    now = datetime(2026, 11, 21, 1, 15, 0, tzinfo=UTC)
    assert plan.release_name(now, "1a2b3c4d5e6f", []) == "20261121T011500Z-1a2b3c4d"


@given(
    st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1), timezones=st.just(UTC)),
    st.lists(st.sampled_from([R1, R2, R3, "20390101T000000Z-ffffffff", "not-a-release"])),
)
def test_a_new_release_sorts_after_all_that_are_there_even_when_a_clock_is_wrong(now, taken):
    name = plan.release_name(now, "0" * 40, taken)
    assert all(name > other for other in taken if other != "not-a-release")


# --- reading ---------------------------------------------------------------------------------------------


def test_what_a_host_says_is_read_and_what_is_garbled_is_ignored():
    lines = [
        "noise",
        "@ fact python 3.11.2",
        "@ fact arch x86_64",
        "@ fact glibc 2.36",
        f"@ fact current {R1}",
        f'@ release {R1} verified {{"rev": "abc", "venv": "v", "ref": null}}',
        f"@ release {R2} - garbage",
        "@ release ../../etc verified {}",
        "@ venv py311-x86_64-0123",
        '@ workers shop_mail 0 {"group": "shop_mail", "processes": [{"name": "m_00", "state": "RUNNING",'
        ' "pid": 5, "uptime": 7, "release": "x"}]}',
        "@ workers shop_x 2 no group shop_x",
        "@ workers",
    ]
    found = hoststate.parse_inspection("h", lines)
    assert str(found.target) == "Python 3.11, x86_64, glibc 2.36"
    assert found.current_release == Release(R1, True, rev="abc", venv="v")
    assert found.release(R2) == Release(R2, False)
    assert len(found.releases) == 2
    assert found.venvs == ("py311-x86_64-0123",)
    assert found.groups == (
        Group("shop_mail", (Process("m_00", "RUNNING", 5, 7, "x"),)),
        Group("shop_x", error="no group shop_x"),
    )


def test_a_lock_that_cannot_be_read_is_still_a_lock():
    found = hoststate.parse_inspection("h", ["@ lock half {"])
    assert "somebody unknown" in hoststate.describe_lock(found.lock)


def test_a_lock_that_a_person_put_there_is_shown_with_what_it_says():
    found = hoststate.parse_inspection("h", ["@ lock forever 0 maintenance until monday, anna "])
    assert hoststate.describe_lock(found.lock) == "somebody unknown (maintenance until monday, anna)"
    assert len(hoststate.describe_lock(hoststate.read_lock("so " * 500))) < 130


@pytest.mark.parametrize("key", ["owner", "controller", "pid", "time", "content"])
def test_a_lock_does_not_draw_on_the_screen(key):
    lock = hoststate.read_lock(json.dumps({"owner": "ann", key: "a\x1b[2J\rb"}))
    assert "a?[2J" in hoststate.describe_lock(lock)
    assert hoststate.describe_lock(lock).isprintable()


def test_the_holder_of_a_lock_is_described():
    lock = {"owner": "ann", "controller": "desk", "pid": 7, "time": "2026-01-01T00:00:00+00:00"}
    assert hoststate.describe_lock(lock) == "ann@desk (pid 7) since 2026-01-01T00:00:00+00:00"


# --- may it go on? ---------------------------------------------------------------------------------------


def test_a_host_that_is_ready_has_no_problems():
    assert plan.problems(state(), "deploy", needs_workers=True) == []


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"python": "3.9.2"}, "Python 3.9.2 is not supported; supported are 3.11 to 3.13"),
        ({"python": "3.14.0"}, "Python 3.14.0 is not supported"),
        ({"python": "none"}, "there is no python3"),
        ({"arch": "riscv64"}, "architecture riscv64 is not supported"),
    ],
)
def test_a_machine_that_is_not_supported_is_named(facts, text):
    assert any(text in found for found in plan.problems(state(**facts), "deploy", needs_workers=True))


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("root", "folder under /srv is missing: run ansible-playbook site.yml first"),
        ("writable", "user deploy cannot write"),
        ("venv", "python3-venv is missing"),
        ("helper", "kestrel-stack-workers is missing"),
    ],
)
def test_a_host_that_ansible_has_not_set_up_says_so(missing, text):
    facts = {key: value for key, value in FACTS.items() if key != missing}
    found = plan.problems(HostState("h", facts), "deploy", needs_workers=True)
    assert any(text in one and "site.yml" in one for one in found)


def test_a_host_without_workers_needs_no_helper():
    facts = {key: value for key, value in FACTS.items() if key != "helper"}
    assert plan.problems(HostState("h", facts), "deploy", needs_workers=False) == []


# --- the workers -----------------------------------------------------------------------------------------


def test_workers_are_good_when_all_run_from_the_release_and_have_outlived_startsecs():
    assert plan.judge([Group("g", (worker(), worker()))], R1).ok
    assert plan.judge([], R1).ok


@pytest.mark.parametrize(
    ("bad", "reason", "final", "down"),
    [
        (worker(R2), f"runs from {R2}", False, False),
        (worker(None), "runs from an unknown release", False, False),
        (worker(uptime=6), "up for 6 s only", False, False),
        (worker(state="STARTING"), "is STARTING", False, False),
        (worker(state="BACKOFF"), "is BACKOFF", False, False),
        (worker(state="EXITED"), "is EXITED", False, True),
        (worker(state="STOPPED"), "is STOPPED", False, True),
        (worker(state="FATAL"), "is FATAL", True, False),
    ],
)
def test_one_worker_that_is_not_good_is_enough(bad, reason, final, down):
    verdict = plan.judge([Group("g", (worker(), bad, worker()))], R1)
    assert not verdict.ok
    assert reason in verdict.reason
    assert (verdict.final, verdict.down) == (final, down)


def test_a_group_without_processes_or_with_an_error_is_not_good():
    assert not plan.judge([Group("g")], R1).ok
    assert plan.judge([Group("g", error="supervisor is away")], R1).final


def test_a_host_is_up_to_date_only_with_the_same_code_the_same_venv_and_all_workers():
    one = HostState(
        "h",
        {"current": R1},
        (Release(R1, True, rev="abc", venv="v", manifest="a"),),
        ("v",),
        (Group("g", (worker(),)),),
    )
    assert plan.is_up_to_date(one, "abc", "a", "v")
    assert not plan.is_up_to_date(one, "abd", "a", "v")
    assert not plan.is_up_to_date(one, "abc", "b", "v")
    assert not plan.is_up_to_date(one, "abc", "a", "w")
    for change in (
        {"groups": (Group("g", (worker(R2),)),)},
        {"venvs": ()},
        {"facts": {}},
        {"releases": (Release(R1, True, rev="abc", venv="v", manifest="a", failed=True),)},
        {"releases": (Release(R1, False, rev="abc", venv="v", manifest="a"),)},
    ):
        assert not plan.is_up_to_date(HostState(**{**vars(one), **change}), "abc", "a", "v")


# --- going back ------------------------------------------------------------------------------------------


def test_a_rollback_goes_to_the_newest_good_release_before_the_current_one():
    hosts = [state(releases=[R1, R2, R3, R4], bad=[R2], current=R3)]
    assert plan.rollback_target(hosts) == R1


def test_a_rollback_skips_what_failed_and_refuses_to_go_to_it():
    hosts = [state(releases=[R1, R2, R3], failed=[R2], current=R3)]
    assert plan.rollback_target(hosts) == R1
    with pytest.raises(Refused, match=f"release {R2} failed; all hosts can go to: {R1}"):
        plan.rollback_target(hosts, R2)


def test_a_rollback_after_a_half_failed_deploy_goes_to_what_every_host_has():
    hosts = [state("h1", releases=[R1, R2, R3], current=R3), state("h2", releases=[R1, R2], current=R2)]
    assert plan.rollback_target(hosts) == R2


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ([state(releases=[R1], current=R1)], f"no release before {R1}"),
        ([state(releases=[R1, R2], bad=[R1], current=R2)], "no release before"),
        ([state(releases=[R1, R2], current=R2, venvs=())], "no release before"),
        ([state()], "nothing to roll back"),
        (
            [state("a", releases=[R1, R2], current=R2), state("b", releases=[R2], current=R2)],
            "no release before",
        ),
    ],
)
def test_a_rollback_without_a_good_release_before_is_refused(hosts, text):
    with pytest.raises(Refused, match=text):
        plan.rollback_target(hosts)


def test_a_rollback_to_a_release_that_a_host_lacks_names_host_and_choices():
    hosts = [state("a", releases=[R1, R2], current=R2), state("b", releases=[R1], current=R1)]
    assert plan.rollback_target(hosts, R1) == R1
    with pytest.raises(Refused, match=f"b: release {R2} is not there; all hosts can go to: {R1}"):
        plan.rollback_target(hosts, R2)


def test_no_venv_goes_while_a_release_that_stays_does_not_tell_which_is_its_own():
    untold = Release(R2, True)
    hosts = HostState("h", {"current": R2}, (Release(R1, True, venv="v1"), untold), ("v1", "v2", "old"))
    assert plan.to_remove(hosts, R3, "v3", R2, 5) == ([], [])
    lost = HostState("h", {"current": R2}, (Release(R1, True, venv="v1"),), ("v1", "v2", "old"))
    assert plan.to_remove(lost, R3, "v3", R2, 5) == ([], [])
    assert plan.to_remove(lost, R3, "v3", R1, 5) == ([], ["v2", "old"])


def test_a_rollback_to_a_release_that_never_ran_well_is_refused():
    with pytest.raises(Refused, match="was never verified"):
        plan.rollback_target([state(releases=[R1, R2], bad=[R1], current=R2)], R1)


# --- keeping ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 25), unique=True, max_size=12),
    st.sets(st.integers(1, 25)),
    st.sets(st.integers(1, 25)),
    st.integers(2, 6),
    st.data(),
)
def test_never_the_new_one_the_previous_one_or_the_last_good_one_is_removed(days, bad, failed, keep, data):
    names = [f"202601{day:02}T000000Z-{day:08x}" for day in sorted(days)]
    releases = tuple(
        Release(name, day not in bad, venv=f"v{day % 3}", failed=day in failed)
        for name, day in zip(names, sorted(days), strict=True)
    )
    previous = data.draw(st.sampled_from(["", *names]))
    new = "20260201T000000Z-ffffffff"
    before = HostState("h", {"current": previous}, releases, ("v0", "v1", "v2", "v9", "unused"))
    gone, venvs = plan.to_remove(before, new, "v9", previous, keep)
    left = [release for release in releases if release.name not in gone]
    assert previous not in gone
    assert new not in gone
    good = sorted((r.name for r in releases if r.verified and not r.failed), reverse=True)
    assert len([r for r in left if r.name in good]) + 1 <= keep + 1
    # What failed goes first: none of it stays where a good one goes, or at all.
    assert all(release.name in good or release.name == previous for release in left)
    assert not set(good[: keep - 1]) & set(gone)
    assert "unused" in venvs
    assert "v9" not in venvs
    assert not {release.venv for release in left} & set(venvs)


def test_after_a_failure_the_ones_that_failed_before_go_and_what_runs_stays():
    hosts = state(releases=[R1, R2, R3, R4], bad=[R2], failed=[R3], current=R1)
    assert plan.failed_before(hosts, R4) == [R2, R3]
    # A deploy that was killed leaves a release that runs and was never verified.
    assert plan.failed_before(state(releases=[R1, R2], bad=[R2], current=R2), R4) == []


# --- the order -------------------------------------------------------------------------------------------


def machine(name, *, workers=True):
    return SimpleNamespace(name=name, queues=("q",) if workers else ())


def order(hosts, **pace):
    return [
        ("canary " * batch.canary + " ".join(host.name for host in batch.hosts))
        for batch in plan.batches(hosts, plan.Pace(**pace))
    ]


FIVE = [machine(name) for name in "abcde"]


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        ({}, ["a", "b", "c", "d", "e"]),
        ({"batch": "2"}, ["a b", "c d", "e"]),
        ({"batch": "9"}, ["a b c d e"]),
        ({"batch": "100%"}, ["a b c d e"]),
        ({"batch": "25%"}, ["a b", "c d", "e"]),
        ({"batch": "1%"}, ["a", "b", "c", "d", "e"]),
        ({"batch": "2", "canary": 1}, ["canary a", "b c", "d e"]),
        ({"batch": "100%", "canary": 2}, ["canary a b", "c d e"]),
        ({"batch": "100%", "canary": 9}, ["canary a b c d", "e"]),
    ],
)
def test_the_canary_goes_first_and_the_others_in_batches_in_their_order(pace, expected):
    assert order(FIVE, **pace) == expected


def test_one_host_alone_is_no_canary():
    assert order(FIVE[:1], canary=1) == ["a"]
    assert order([], canary=1) == []


def test_a_host_with_workers_is_the_better_canary():
    hosts = [machine("web1", workers=False), machine("worker1"), machine("worker2")]
    assert order(hosts, canary=1) == ["canary worker1", "web1", "worker2"]
    assert order(hosts[:1] * 1 + [machine("web2", workers=False)], canary=1) == ["canary web1", "web2"]


def test_a_host_without_a_release_is_a_canary_only_among_its_like():
    hosts = [machine("added"), machine("old"), machine("pages", workers=False)]
    made = plan.batches(hosts, plan.Pace(canary=1), hosts[:1])
    assert [[host.name for host in batch.hosts] for batch in made] == [["old"], ["added"], ["pages"]]
    made = plan.batches(hosts, plan.Pace(canary=1), hosts)
    assert made[0].hosts == (hosts[0],)


def test_a_first_deploy_goes_to_all_hosts_at_once():
    pace = plan.Pace(canary=1, first_at_once=True)
    assert plan.batches(FIVE, pace, FIVE) == [plan.Batch(tuple(FIVE))]
    assert len(plan.batches(FIVE, pace, FIVE[1:])) == 5
    assert plan.batches([], pace, []) == []
    # Who names an order gets it, on a first deploy as well.
    assert AskPace().over(Roll()).first_at_once
    assert not AskPace(batch="1").over(Roll()).first_at_once
    assert not AskPace(canary="1").over(Roll()).first_at_once


@given(st.integers(1, 60), st.integers(1, 100), st.integers(0, 5))
def test_every_host_is_in_exactly_one_batch(hosts, share, canary):
    machines = [machine(str(number), workers=number % 3 == 0) for number in range(hosts)]
    made = plan.batches(machines, plan.Pace(f"{share}%", canary))
    seen = [host.name for batch in made for host in batch.hosts]
    assert sorted(seen) == sorted(host.name for host in machines)
    assert all(batch.hosts for batch in made)
    assert [batch.canary for batch in made[1:]] == [False] * (len(made) - 1)


# --- the judge on the host -------------------------------------------------------------------------------

STATES = ["RUNNING", "STARTING", "BACKOFF", "FATAL", "EXITED", "STOPPED"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["web", "shop_a", "shop_b"]),
            st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 20), st.sampled_from([R1, R2, None]))),
            st.sampled_from(["0", "1"]),
        ),
        max_size=4,
    )
)
def test_the_host_judges_what_it_is_piped_as_the_plan_judges_what_it_was_told(groups):
    lines = []
    for name, processes, code in groups:
        made = [
            {"name": f"{name}_{number:02}", "state": word, "pid": 1, "uptime": uptime, "release": release}
            for number, (word, uptime, release) in enumerate(processes)
        ]
        said = json.dumps({"group": name, "processes": made}) if code == "0" else "no such group"
        lines.append(f"@ workers {name} {code} {said}")
    told = plan.judge(hoststate.parse_groups(lines), R1)
    assert judge.judge(judge.read(lines), R1) == told
    # The first of several looks says the same.
    first = judge.watch(judge.read(lines), R1, {}, 0.0)
    assert (first.ok, first.final) == (told.ok, told.final)


def look(*states):
    return [Group("g", tuple(worker(state=word, name=f"g_{n:02}") for n, word in enumerate(states)))]


def test_on_a_busy_host_every_worker_has_to_be_seen_well_once_and_not_all_at_once():
    memory = {}
    for now, words, ok in (
        (0, ("RUNNING", "EXITED", "RUNNING"), False),
        (1, ("STARTING", "STARTING", "RUNNING"), False),
        (2, ("RUNNING", "RUNNING", "EXITED"), True),
    ):
        assert judge.watch(look(*words), R1, memory, float(now)).ok is ok


def test_one_worker_that_stays_down_is_enough_and_two_that_take_turns_are_not():
    memory = {}
    for now in range(0, 20, 3):
        words = ("EXITED", "RUNNING") if now % 2 else ("RUNNING", "EXITED")
        assert not judge.watch(look(*words), R1, memory, float(now)).final
    memory = {}
    assert not judge.watch(look("EXITED", "RUNNING"), R1, memory, 0.0).final
    late = judge.watch(look("EXITED", "RUNNING"), R1, memory, 6.0)
    assert (late.final, late.reason) == (True, "worker g_00 is EXITED for 6 s")


def test_the_program_keeps_what_it_has_seen(tmp_path):
    def lines(*words):
        made = [
            {"name": f"g_{n:02}", "state": word, "pid": 1, "uptime": 9, "release": R1}
            for n, word in enumerate(words)
        ]
        return [f"@ workers g 0 {json.dumps({'processes': made})}"]

    path = str(tmp_path / "seen")
    assert judge.main(R1, lines("RUNNING", "STARTING"), path) == judge.WAIT
    assert judge.main(R1, lines("STARTING", "RUNNING"), path) == 0
    assert judge.main(R1, lines("FATAL", "RUNNING"), path) == judge.FINAL


def test_disk_is_needed_for_the_venv_only_when_the_host_lacks_it():
    assert plan.disk_needed_kb(10**6, 10**6, None) < plan.disk_needed_kb(10**6, 10**6, 0)
