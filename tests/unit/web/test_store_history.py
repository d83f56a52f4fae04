"""The history: what is kept of many views, in how many rows, and what a reader gets back of it."""

import random
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel_stack.web.model import QueueNumbers
from kestrel_stack.web.record import history, recorder, schema
from support.web_views import START, row, server, view

HOUR, DAY = 3600, 86_400


class Kept:
    """A history in memory, written and read as the store does it."""

    def __init__(self, days=30, interval_s=2.0):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        schema.migrate(self.connection)
        self.days, self.interval_s = days, interval_s
        self.recorder = recorder.Recorder(days, interval_s)

    def add(self, *views):
        for each in views:
            self.recorder.add(each)
            self.write()

    def write(self):
        self.connection.execute("BEGIN")
        self.recorder.flush(self.connection)
        self.connection.execute("COMMIT")
        self.recorder.written()

    def restart(self, now, clean=True):
        if clean:
            self.recorder.close()
            self.write()
        self.recorder = recorder.Recorder(self.days, self.interval_s)
        self.recorder.restore(self.connection, now)

    def samples(self, key, start, end, points, now=None):
        return history.queue_samples(
            self.connection,
            self.recorder.tiers,
            key,
            start,
            end,
            points,
            end if now is None else now,
            self.recorder.latest,
        )

    def items(self, *arguments, **options):
        return [sample.items for sample in self.samples(*arguments, **options)]

    def rows(self, tier=None):
        where = "" if tier is None else f" WHERE tier = {tier}"
        return self.connection.execute(f"SELECT count(*) FROM history{where}").fetchone()[0]

    def ticks(self, tier):
        rows = self.connection.execute("SELECT at FROM ticks WHERE tier = ? ORDER BY at", (tier,))
        return [at for (at,) in rows]


@pytest.fixture
def kept():
    return Kept()


def every(seconds, count, make, start=START):
    return [make(start + number * seconds, number) for number in range(count)]


def test_a_peak_of_one_poll_is_seen_in_ten_seconds_in_a_day_and_in_a_month(kept):
    peak = 4321
    kept.add(
        *every(
            2, 1000, lambda at, n: view(at, row("q", items=peak if n == 500 else 3, rate_in=float(n == 500)))
        )
    )
    end = START + 2000
    for span, points in ((2000, 200), (DAY, 300), (30 * DAY, 300)):
        assert max(n for n in kept.items("q", end - span, end, points) if n is not None) == peak
        peaks = [s.peak_in for s in kept.samples("q", end - span, end, points) if s.peak_in is not None]
        assert max(peaks) == 1.0


def test_the_area_under_a_rate_is_the_same_in_every_tier(kept):
    rates = [random.Random(n).choice((0.0, 50.0, 120.0)) for n in range(1800)]
    kept.add(*every(2, 1800, lambda at, n: view(at, row("q", rate_out=rates[n]))))
    moved = sum(rates) * 2
    for points in (360, 60, 6):
        samples = kept.samples("q", START, START + 3600, points)
        width = samples[1].at - samples[0].at
        assert sum(s.rate_out for s in samples if s.rate_out) * width == pytest.approx(moved, rel=0.01)


def test_time_in_which_nothing_ran_is_a_gap_and_not_a_zero(kept):
    kept.add(*every(2, 30, lambda at, n: view(at, row("q", items=7))))
    later = START + 300
    kept.restart(later)
    kept.add(*every(2, 30, lambda at, n: view(at, row("q", items=7)), later))
    items = kept.items("q", START, later + 60, 36)
    assert items == [7] * 6 + [None] * 24 + [7] * 6


def test_a_reader_who_begins_behind_a_gap_knows_what_stood_still(kept):
    kept.add(*every(10, 6, lambda at, n: view(at, row("q", items=7))))
    later = START + HOUR
    kept.add(*every(10, 8, lambda at, n: view(at, row("q", items=7)), later))
    assert kept.items("q", later + 20, later + 70, 5) == [7] * 5


def test_a_queue_that_went_while_nothing_ran_ends_there(kept):
    kept.add(*every(10, 6, lambda at, n: view(at, row("old", items=1), row("q", items=1))))
    kept.restart(START + 60)
    kept.add(*every(10, 6, lambda at, n: view(at, row("q", items=1)), START + 60))
    kept.recorder.close()
    kept.write()
    assert kept.items("old", START, START + 120, 12) == [1] * 6 + [None] * 6
    table, _ = history.all_sparks(kept.connection, kept.recorder.tiers, 120, 12, START + 120)
    assert table["old"] == [1] * 6 + [None] * 6


def test_a_queue_of_servers_that_do_not_answer_is_a_gap_and_a_queue_of_some_that_do_is_not(kept):
    both = {"a:1": QueueNumbers(items=5), "b:1": QueueNumbers(items=4)}
    one = {"b:1": QueueNumbers(items=9)}
    up = (server("a:1"), server("b:1"))
    half = (server("a:1"), server("b:1", fresh=False))
    for number in range(12):
        servers = up if number < 6 else half
        at = START + 10 * number
        kept.add(view(at, row("q", servers=both), row("r", servers=one), servers=servers))
    kept.recorder.close()
    kept.write()
    assert kept.items("q", START, START + 120, 12) == [9] * 12
    assert kept.items("r", START, START + 120, 12) == [9] * 6 + [None] * 6
    loaded = history.server_samples(
        kept.connection, kept.recorder.tiers, "b:1", START, START + 120, 12, START + 120
    )
    assert [sample.items for sample in loaded] == [0] * 6 + [None] * 6


def test_a_queue_that_is_deleted_ends_and_one_that_comes_begins(kept):
    kept.add(*every(10, 4, lambda at, n: view(at, row("old", items=1))))
    kept.add(*every(10, 4, lambda at, n: view(at, row("new", items=2)), START + 40))
    kept.recorder.close()
    kept.write()
    assert kept.items("old", START, START + 80, 8) == [1] * 4 + [None] * 4
    assert kept.items("new", START, START + 80, 8) == [None] * 4 + [2] * 4


def test_the_moment_that_is_not_over_is_in_the_last_sample(kept):
    kept.add(*every(2, 6, lambda at, n: view(at, row("q", items=n))))
    assert kept.items("q", START, START + 20, 2) == [4, 5]


def test_what_was_not_yet_in_a_coarse_tier_is_taken_from_a_finer_one(kept):
    kept.add(*every(2, 390, lambda at, n: view(at, row("q", items=1 + n // 30))))
    end = START + 780
    items = kept.items("q", end - 10 * DAY, end, 1440)
    assert [n for n in items if n is not None] == [10, 13]


def test_an_idle_queue_costs_a_row_in_minutes(kept):
    idle = [row(f"q{n}", items=n, age_ms=0) for n in range(50)]
    kept.add(*every(10, 360, lambda at, n: view(at, *idle)))
    # An hour: 12 whole ticks of 10 s, one of a minute, one of ten minutes.
    assert kept.rows() <= 52 * (13 + 1 + 1)


def test_a_backlog_that_only_ages_costs_little(kept):
    old = 5 * DAY * 1000
    kept.add(*every(10, 360, lambda at, n: view(at, row("q_errors", items=4, age_ms=old + 10_000 * n))))
    assert kept.rows() <= 3 * 20
    ages = {sample.age_ms for sample in kept.samples("q_errors", START, START + 3600, 360)}
    assert all(old * 0.98 <= age <= old + 3_600_000 for age in ages if age is not None)


def test_a_new_process_goes_on_with_the_coarse_ticks_that_were_open(kept):
    """Restarts every four minutes, half of them kills, must not leave the month's history empty."""
    at = START
    for number in range(12):
        kept.add(*every(2, 120, lambda at, n: view(at, row("q", items=1000 + round(at - START) // 240)), at))
        at += 240
        kept.restart(at, clean=number % 2 == 0)
    assert len(kept.ticks(2)) >= 3
    items = kept.connection.execute("SELECT items FROM history WHERE tier = 2 AND series <> 1").fetchall()
    assert max(items)[0] >= 1009


def test_polls_that_are_further_apart_than_ticks_leave_no_gaps():
    kept = Kept(interval_s=45)
    kept.add(*every(45, 20, lambda at, n: view(at, row("q", items=2))))
    assert None not in kept.items("q", START, START + 850, 85)


class TestClock:
    """The wall clock is set while kestrel-web runs."""

    def test_time_lived_again_replaces_what_was_recorded_of_it(self, kept):
        def seen(at, n):
            return view(at, row("q", items=1), row("step", items=5 if n < 1200 else 6))

        kept.add(*every(2, 1800, seen))
        back = START + 1800
        kept.add(*every(2, 300, lambda at, n: view(at, row("q", items=2), row("step", items=6)), back))
        kept.recorder.close()
        kept.write()
        now = back + 600
        assert kept.items("q", START, now, 240, now=now) == [1] * 180 + [2] * 60
        assert kept.items("step", START, now, 240, now=now) == [5] * 180 + [6] * 60
        assert kept.items("q", START, START + 3600, 3, now=START + 3600)[0] == 1

    def test_what_lies_behind_the_time_lived_again_is_what_it_was(self, kept):
        """A reader who comes from the new ticks must not carry their values into the old ones."""
        kept.add(*every(10, 180, lambda at, n: view(at, row("q", items=n // 60), row("still", items=5))))
        kept.add(
            *every(10, 6, lambda at, n: view(at, row("q", items=99), row("still", items=6)), START + 700)
        )
        kept.recorder.close()
        kept.write()
        late = START + 1800
        behind = slice(76, 180)
        q = kept.items("q", START, late, 180, now=late)
        still = kept.items("still", START, late, 180, now=late)
        assert q[70:76] == [99] * 6 and still[70:76] == [6] * 6
        assert set(still[behind]) <= {5, None} and set(q[behind]) <= {1, 2, None}
        assert q[130:] == [2] * 50 and still[130:] == [5] * 50

    def test_a_step_back_by_moments_keeps_the_tick(self, kept):
        kept.add(view(START + 9, row("q", items=50)), view(START + 10.1, row("q", items=1)))
        kept.add(view(START + 9.9, row("q", items=2)), view(START + 11, row("q", items=1)))
        kept.recorder.close()
        kept.write()
        assert kept.items("q", START, START + 20, 2) == [50, 2]

    @pytest.mark.parametrize("wrong", [0.0, START + 10 * 365 * DAY, 2.0**39])
    def test_a_clock_that_is_wrong_for_an_hour_leaves_the_history_as_it_was(self, kept, wrong):
        kept.add(*every(60, 600, lambda at, n: view(at, row("q", items=1 + n))))
        end = START + 36_000
        before = kept.items("q", START + 30_000, end, 100, now=end)
        kept.add(*every(10, 360, lambda at, n: view(at, row("q", items=5000)), wrong))
        for minute in range(6):
            kept.recorder.prune(kept.connection, wrong + 600 * minute, 600)
        kept.add(*every(10, 6, lambda at, n: view(at, row("q", items=4)), end))
        assert kept.items("q", START + 30_000, end, 100, now=end) == before

    def test_what_was_recorded_far_in_the_future_goes_in_time(self, kept):
        kept.add(*every(10, 400, lambda at, n: view(at, row("q", items=1)), START + 300 * DAY))
        kept.add(*every(60, 1100, lambda at, n: view(at, row("q", items=1))))
        kept.recorder.prune(kept.connection, START + 66_000, 600)
        assert all(max(kept.ticks(tier)) <= START + 66_000 for tier in range(3))

    @given(
        st.lists(st.tuples(st.floats(-5000, 5000), st.integers(0, 5), st.booleans()), min_size=1, max_size=60)
    )
    @settings(max_examples=60)
    def test_whatever_the_clock_does_nothing_fails_and_what_is_read_was_there(self, steps):
        kept, at = Kept(), START
        for jump, items, restart in steps:
            at = max(0.0, at + jump)
            kept.add(view(at, row("q", items=items)))
            if restart:
                kept.restart(at)
            kept.recorder.prune(kept.connection, at, 600)
        for points in (1, 7, 300):
            samples = kept.samples("q", START - 60_000, START + 60_000, points, now=at)
            assert {sample.items for sample in samples} <= {None, *range(6)}
            times = [sample.at for sample in samples]
            assert times == sorted(set(times))


class TestBounds:
    """However long it runs."""

    def test_every_tier_keeps_its_time_and_whole_blocks_of_it(self, kept):
        kept.add(*every(10, 3 * 360 * 2, lambda at, n: view(at, row("q", items=n))))
        now = START + 6 * HOUR
        for _ in range(20):
            kept.recorder.prune(kept.connection, now, 600)
        fine = kept.recorder.tiers[0]
        first = kept.ticks(0)[0]
        assert now - fine.keep - (fine.whole_every + 1) * fine.step <= first <= now - fine.keep
        assert None not in kept.items("q", now - fine.keep, now - 10, 1000, now=now)

    def test_the_oldest_goes_first_when_there_is_too_much(self, kept):
        kept.add(*every(60, 3000, lambda at, n: view(at, row("q", items=n))))
        first, last = kept.ticks(2)[0], kept.ticks(2)[-1]
        assert kept.recorder.shorten(kept.connection)
        assert first < kept.ticks(2)[0] < first + 0.1 * (last - first) and kept.ticks(2)[-1] == last
        while kept.recorder.shorten(kept.connection):
            pass
        assert kept.rows() == 0

    def test_names_that_nobody_has_any_more_are_forgotten(self, kept):
        kept = Kept(days=1)
        kept.add(*every(600, 200, lambda at, n: view(at, row(f"tenant{n // 20}", items=1))))
        kept.add(*every(600, 800, lambda at, n: view(at, row("q", items=1)), START + 200 * 600))
        for _ in range(100):
            kept.recorder.prune(kept.connection, START + 1000 * 600, 3600)
        names = {name for (name,) in kept.connection.execute("SELECT name FROM series")}
        assert names == {"q:", "q:q", "s:a:1"}
        kept.add(*every(10, 3, lambda at, n: view(at, row("q", items=3)), START + 1000 * 600))
        assert kept.items("q", START + 600_000, START + 600_020, 2) == [3, 3]

    def test_more_queues_than_there_is_history_for_are_left_out(self, kept, monkeypatch):
        monkeypatch.setattr(recorder, "MAX_SERIES", 10)
        seen = view(START, *(row(f"q{n}", items=1) for n in range(30)))
        assert len(recorder.observe(seen)) == 10

    @pytest.mark.parametrize(
        ("start", "end", "points"),
        [(5, 5, 10), (10, 5, 10), (float("nan"), 5, 10), (0, float("inf"), 10), (0, 10, 0), (0, 10, -1)],
    )
    def test_no_time_at_all_has_no_samples(self, kept, start, end, points):
        assert kept.samples("q", start, end, points, now=START) == []

    def test_no_more_samples_than_were_asked_for(self, kept):
        for points in (1, 7, 300, 10**9):
            samples = kept.samples("q", START - 30 * DAY, START, points)
            assert 1 <= len(samples) <= min(points, history.MAX_POINTS) + 1


def test_sparks_of_all_queues_say_what_the_history_of_each_says(kept):
    kept.add(
        *every(
            5,
            200,
            lambda at, n: view(at, *(row(f"q{k}", items=(n * k) % 17) for k in range(30) if n > 3 * k)),
        )
    )
    now = START + 1000
    table, count = history.all_sparks(kept.connection, kept.recorder.tiers, 900, 48, now)
    some = history.some_sparks(kept.connection, kept.recorder.tiers, table, 900, 48, now)
    assert len(table) == 31 and {len(spark) for spark in table.values()} == {count}
    assert table == some
