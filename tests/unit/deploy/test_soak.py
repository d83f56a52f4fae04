"""Whether a canary does as well as before: samples in, verdict out; and the program that counts in logs."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from kestrel_stack.deploy import soak
from kestrel_stack.deploy.hoststate import Group, Process
from kestrel_stack.deploy.onhost import outcomes
from kestrel_stack.deploy.soak import Level, Sample

NEW = "20260102T000000Z-bbbbbbbb"
TIMEOUTS = {"mail": 20, "video": 3600}


def worker(state="RUNNING", release=NEW):
    return Group("shop_mail", (Process("shop_mail_00", state, 1, 30, release),))


def sample(done=0, retry=0, parked=0, levels=None, groups=(), **kwargs):
    counted = {"done": done, "retry": retry, "parked": parked}
    return Sample({} if levels is None else levels, counted, groups, **kwargs)


def compare(before, after, elapsed=40.0, soaked=30.0):
    return soak.compare(before, after, NEW, elapsed, TIMEOUTS, soaked)


def test_a_canary_that_does_as_well_as_before_says_what_was_seen():
    verdict = compare(sample(done=500, retry=5), sample(done=30, levels={"mail": Level(3, 7, 2.0)}))
    assert verdict.ok
    assert verdict.text == (
        "30 jobs, 0 failed, 0 given up in 30 s (505 jobs, 5 failed, 0 given up in 600 s before),"
        " error queues +7, oldest item 2 s"
    )


def test_a_canary_without_a_job_is_no_failure():
    assert compare(sample(), sample()).ok


@pytest.mark.parametrize(
    ("before", "after", "ok"),
    [
        # Given up, and none before.
        (sample(done=100), sample(done=9, parked=1), False),
        # The old release gave some up as well: the share decides.
        (sample(done=100, parked=2), sample(done=9, parked=1), True),
        (sample(done=100, parked=2), sample(done=1, parked=9), False),
        # A job that fails now and then is not a release that fails.
        (sample(done=100), sample(done=1, retry=2), True),
        (sample(done=100), sample(done=7, retry=3), False),
        (sample(done=100), sample(done=97, retry=3), True),
        (sample(done=50, retry=50), sample(done=5, retry=6), True),
        (sample(), sample(done=0, retry=3), False),
        # A third of all failed before: of five jobs three may, by chance, and of fifty not thirty.
        (sample(done=200, retry=100), sample(done=2, retry=3), True),
        (sample(done=200, retry=100), sample(done=20, retry=30), False),
        (sample(done=20000, retry=10000), sample(done=2000, retry=3000), False),
    ],
)
def test_more_failures_than_before_are_a_failure(before, after, ok):
    assert compare(before, after).ok is ok


def of_kinds(**kinds):
    return soak.merge([Sample({}, counted, kinds={kind: counted}) for kind, counted in kinds.items()])


def test_a_kind_of_job_that_fails_is_seen_among_many_others():
    before = of_kinds(Mail={"done": 5000}, Video={"done": 100, "retry": 4})
    assert compare(before, of_kinds(Mail={"done": 300}, Video={"done": 5, "retry": 1})).ok
    verdict = compare(before, of_kinds(Mail={"done": 300}, Video={"retry": 5}))
    assert not verdict.ok
    assert verdict.text.startswith("more jobs Video fail than before: 5 jobs, 5 failed, 0 given up (104 job")
    # It failed like that before.
    assert compare(of_kinds(Video={"retry": 9}), of_kinds(Mail={"done": 300}, Video={"retry": 5})).ok


def test_a_job_that_is_given_up_after_retries_may_be_the_old_releases():
    before = Sample({}, {"done": 100, "retry": 2})
    assert compare(before, Sample({}, {"done": 50, "parked": 1, "late": 1})).ok
    assert not compare(before, Sample({}, {"done": 50, "parked": 2, "late": 1})).ok
    # It is a failure all the same.
    assert not compare(before, Sample({}, {"done": 1, "parked": 4, "late": 4})).ok


def test_an_error_queue_that_grows_by_other_hosts_jobs_is_not_the_canarys():
    before = sample(done=10, levels={"mail": Level(0, 5)})
    after = sample(done=10, levels={"mail": Level(0, 9)})
    assert compare(before, after).ok


def test_without_logs_a_growing_error_queue_is_the_canarys():
    before = Sample({"mail": Level(0, 5)}, None)
    verdict = compare(before, Sample({"mail": Level(0, 9)}, None))
    assert not verdict.ok
    assert verdict.text == "error queues grew: mail +4"
    assert compare(before, before).ok


@pytest.mark.parametrize(
    ("queue", "before", "after", "ok"),
    [
        ("mail", None, 38.0, False),  # it came just after the first look, and nobody took it since
        ("mail", 2.0, 42.0, False),
        ("mail", 2.0, 25.0, True),  # somebody took the head that was there
        ("mail", 2.0, 19.0, True),  # no longer than one job may take
        ("mail", 300.0, 340.0, True),  # it stood still before, too
        ("video", 2.0, 42.0, True),  # its workers may be busy with one job for an hour
        ("other", 2.0, 42.0, True),  # the canary has no workers of this queue
    ],
)
def test_a_queue_whose_head_stands_still_is_a_failure(queue, before, after, ok):
    verdict = compare(sample(levels={queue: Level(1, 0, before)}), sample(levels={queue: Level(1, 0, after)}))
    assert verdict.ok is ok
    assert ok or f"nobody takes from queue {queue}" in verdict.text


def test_queues_that_cannot_be_counted_are_said_and_are_no_failure():
    away = Sample(None, {"done": 3}, trouble="no server answers")
    for before, after in ((away, sample(done=3)), (sample(done=3), away)):
        verdict = compare(before, after)
        assert verdict.ok
        assert "queues not compared: no server answers" in verdict.text


def test_a_worker_that_supervisor_has_given_up_is_a_failure_and_one_between_two_lives_is_none():
    assert not compare(sample(), sample(groups=(worker("FATAL"),))).ok
    assert compare(sample(), sample(groups=(worker("EXITED"),))).ok
    assert compare(sample(), sample(groups=(worker("STARTING"),))).ok


def test_what_the_script_says_is_read_and_what_is_garbled_is_unknown():
    count = {"queues": {"mail": {"items": 4, "errors": 2, "oldest_s": 1.5}, "x": {"oldest_s": None}}}
    found = soak.parse(
        [
            '@ log shop_mail_00 {"outcome": "retry"}',
            '@ kinds {"Mail": {"done": 3, "retry": 1}, "x": 3}',
            '@ outcomes {"done": 3, "retry": 1}',
            '@ workers shop_mail 0 {"processes": [{"name": "m", "state": "RUNNING", "release": "r"}]}',
            f"@ queues {json.dumps(count)}",
        ]
    )
    assert found.levels == {"mail": Level(4, 2, 1.5), "x": Level(0, 0, None)}
    assert (found.ended, found.failed, found.parked) == (4, 1, 0)
    assert found.kinds == {"Mail": {"done": 3, "retry": 1}}
    assert [group.name for group in found.groups] == ["shop_mail"]
    for lines in ([], ["@ queues"], ["@ queues {", "@ outcomes {"], ["@ queues []", "@ outcomes x"]):
        assert (soak.parse(lines).levels, soak.parse(lines).outcomes) == (None, None)
    assert soak.parse(["@ queues jobs: no server answers"]).trouble == "jobs: no server answers"


def test_several_canaries_see_the_same_queues_and_their_own_jobs():
    levels = {"mail": Level(1, 1)}
    merged = soak.merge([sample(done=1, retry=2, levels=levels), Sample(None, None, trouble="x")])
    assert (merged.levels, merged.ended, merged.failed) == (levels, 3, 2)
    merged = soak.merge([sample(done=1, levels=levels), sample(done=2, parked=1, levels=levels)])
    assert (merged.ended, merged.parked) == (4, 1)
    assert soak.merge([Sample(None, None, trouble="x")]).trouble == "x"


def test_workers_of_several_canaries_are_told_apart():
    well, ill = sample(groups=(worker(),)), sample(groups=(worker("STARTING"),))
    merged = soak.merge([soak.of_host(well, "h1"), soak.of_host(ill, "h2")])
    assert soak.faults(merged.groups, NEW) == {"h2 shop_mail_00": "worker h2 shop_mail_00 is STARTING"}


def test_a_job_that_was_given_up_is_no_growth_where_nobody_knows_what_was_before():
    assert compare(Sample({}, None, trouble="x"), sample(done=9, parked=1)).ok
    assert not compare(Sample({}, None, trouble="x"), sample(done=1, parked=4)).ok


# --- the program on the host -----------------------------------------------------------------------------


def job(outcome, ago, **more):
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return json.dumps(
        {"time": at.isoformat().replace("+00:00", "Z"), "event": "job", "outcome": outcome, **more}
    )


def run(folder, since, *groups):
    program = open(outcomes.__file__).read()  # noqa: PTH123, SIM115
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(folder / "logs"), since, *groups],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_jobs_are_counted_by_outcome_since_a_moment(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "shop_mail_00.log").write_text(
        "\n".join(
            [
                job("done", 900),
                'not JSON with "outcome"',
                '{"outcome": 1}',
                job("done", 30),
                job("retry", 20, job="Mail"),
                json.dumps({"time": "2026-01-01T00:00:00Z", "event": "other", "outcome": "done"}),
                job("done", 1),
            ]
        )
    )
    (logs / "shop_mail_01.log.1").write_text(job("parked", 5) + "\n")
    (logs / "shop_mail_01.log.2").write_text(job("parked", 5) + "\n")
    (logs / "shop_mailing_00.log").write_text(job("parked", 5) + "\n")
    (logs / "shop_mail_2_00.log").write_text(job("parked", 5) + "\n")
    code, lines = run(tmp_path, "600", "shop_mail")
    assert code == 0
    assert lines[-1] == '@ outcomes {"done": 2, "parked": 1, "retry": 1}'
    assert lines[0].startswith("@ log shop_mail_00 {")
    assert '"job": "Mail"' in lines[0]
    assert lines[1].startswith("@ log shop_mail_01 {")


def test_since_the_switch_is_since_the_link_was_made(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "current").symlink_to("releases/x")
    os.utime(tmp_path / "current", (time.time() - 50,) * 2, follow_symlinks=False)
    (tmp_path / "logs/shop_mail_00.log").write_text(f"{job('retry', 60)}\n{job('done', 40)}\n")
    code, lines = run(tmp_path, "current", "shop_mail")
    assert (code, lines[-1]) == (0, '@ outcomes {"done": 1}')


def test_logs_that_cannot_be_read_are_not_taken_for_no_jobs(tmp_path):
    assert run(tmp_path, "600", "shop_mail")[0] == 1
    assert run(tmp_path, "600") == (0, ["@ kinds {}", "@ outcomes {}"])


def test_jobs_are_counted_by_kind_and_those_given_up_after_retries_apart(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/shop_mail_00.log").write_text(
        "\n".join(
            [
                job("done", 9, job="Mail", attempt=1),
                job("parked", 8, job="Mail", attempt=3),
                job("parked", 7, job="Bill", attempt=1),
                job("parked", 6, reason="no job at all"),
            ]
        )
    )
    _, lines = run(tmp_path, "600", "shop_mail")
    found = soak.parse(lines)
    assert found.outcomes == {"done": 1, "parked": 3, "late": 1}
    assert found.kinds["Mail"] == {"done": 1, "parked": 1, "late": 1}
    assert found.kinds["Bill"] == found.kinds["None"] == {"parked": 1}
    assert found.given_up_at_once == 2


def test_of_a_large_log_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "TAIL", 300)
    path = tmp_path / "x.log"
    path.write_text("x" * 1000 + "\n" + "\n".join([job("done", 1), job("done", 1)]))
    found = {}
    outcomes.count(outcomes.tail(path), 0, found, {})
    assert found == {"done": 2}
