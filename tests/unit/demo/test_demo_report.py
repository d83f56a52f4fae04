"""The demo's figures: what was observed becomes tables, a chart and a picture, and no fault stays unsaid."""

import json
from collections import Counter

import pytest

from kestrel_stack.demo import chart, picture, report
from kestrel_stack.demo.canvas import DETAIL
from kestrel_stack.demo.errors import DemoError
from kestrel_stack.demo.report import Outage, Sample
from kestrel_stack.demo.visitors import Visit


def observed(**changes) -> Outage:
    """Ten orders each way; the API was down from second 2 to second 6, and every job was done once."""
    outage = Outage(down_at=2.0, up_at=6.0, ended_at=10.0, orders=10, workers=("python-1", "php-1"))
    outage.visits = [
        Visit(way, order, float(order), 5.0 if way == "direct" and 2 <= order < 6 else 0.002, way == "queued")
        for order in range(10)
        for way in ("direct", "queued")
    ]
    outage.taken = Counter({f"queued-{order}": 1 for order in range(10)})
    outage.outcomes = Counter(done=10, retry=3)
    outage.samples = [Sample(at / 2, at, 2, 1) for at in range(20)]
    for key, value in changes.items():
        setattr(outage, key, value)
    return outage


class TestFaults:
    def test_there_are_none_when_every_order_arrived_once(self):
        assert observed().faults() == []

    def test_an_order_that_nobody_told_the_third_party_is_lost(self):
        outage = observed(taken=Counter({f"queued-{order}": 1 for order in range(9)}))
        assert outage.faults() == ["jobs lost: 1"]
        assert outage.lost("queued") == 1

    def test_an_order_that_arrived_twice_is_doubled(self):
        outage = observed()
        outage.taken["queued-4"] = 2
        assert outage.faults() == ["orders doubled: 1"]

    def test_a_job_that_is_parked_or_still_waiting_is_not_called_lost(self):
        taken = Counter({f"queued-{order}": 1 for order in range(8)})
        assert observed(taken=taken, parked=1, left=1).faults() == [
            "jobs not done in time: 1",
            "jobs parked: 1",
        ]

    def test_an_order_that_could_not_be_enqueued_is_a_fault(self):
        outage = observed()
        outage.visits = [visit for visit in outage.visits if (visit.way, visit.order) != ("queued", 3)]
        assert "orders not enqueued: 1" in outage.faults()

    def test_the_direct_ways_losses_are_no_fault_of_the_queue(self):
        assert observed().lost("direct") == 10
        assert observed().faults() == []


class TestFigures:
    def test_a_request_that_the_outage_touched_counts_as_one_of_the_outage(self):
        outage = observed()
        outage.visits = [
            Visit("direct", 1, 1.0, 0.5, True),
            Visit("direct", 2, 1.9, 3.0, False),
            Visit("direct", 3, 5.9, 0.2, True),
            Visit("direct", 4, 6.1, 0.2, True),
        ]
        assert [visit.order for visit in outage.phase("direct", True)] == [2, 3]
        assert [visit.order for visit in outage.phase("direct", False)] == [1, 4]

    @pytest.mark.parametrize(
        ("values", "share", "expected"),
        [
            ([], 0.5, 0.0),
            ([3.0], 0.99, 3.0),
            ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
            (list(range(1, 101)), 0.99, 99),
            (list(range(1, 101)), 1.0, 100),
        ],
    )
    def test_percentiles_are_values_that_occurred(self, values, share, expected):
        assert report.percentile(values, share) == expected

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.0008, "0.8 ms"), (0.0999, "100 ms"), (0.024, "24 ms"), (0.9994, "999 ms"), (3.021, "3.02 s")],
    )
    def test_durations_are_for_people(self, seconds, text):
        assert report.duration(seconds) == text

    def test_outcomes_are_counted_from_the_workers_logs_and_nothing_else_is(self, tmp_path):
        lines = [
            {"event": "job", "outcome": "done"},
            {"event": "job", "outcome": "retry"},
            {"event": "job", "outcome": "done"},
            {"event": "worker begins", "outcome": "done"},
        ]
        log = tmp_path / "python-1.log"
        log.write_text("\n".join([*map(json.dumps, lines), "[]", "not JSON", '"event"', '{"event": "jo']))
        assert report.outcomes([log]) == Counter(done=2, retry=1)

    def test_the_tables_say_what_was_seen(self):
        lines = {" ".join(line.split()) for line in report.tables(observed()).splitlines()}
        assert {
            "API down, direct 4 4 5.00 s 5.00 s 5.00 s",
            "API down, queued 4 0 2.0 ms 2.0 ms 2.0 ms",
            "queued 10 10 0 0",
            "direct 10 0 10 0",
            "python-1, php-1 10 10 3 0 0 0",
        } <= lines


class TestChart:
    def test_its_columns_are_as_high_as_the_backlog(self):
        lines = chart.draw(observed(), 60, unicode=True).splitlines()
        assert lines[0].endswith("(at most 22)")
        columns = [line.split("│")[1] for line in lines if "│" in line]
        assert len(columns) == chart.HEIGHT
        assert "█" not in columns[0]  # 22 of 30
        assert "█" in columns[4]
        assert columns[-1].count("█") > columns[4].count("█")
        assert max(map(len, lines)) <= 60

    def test_the_outage_is_marked_where_it_was(self):
        line = next(
            line for line in chart.draw(observed(), 105, unicode=True).splitlines() if "API down" in line
        )
        axis = line[line.index("└") + 1 :]
        assert axis.index("├") / len(axis) == pytest.approx(0.2, abs=0.02)
        assert axis.index("┤") / len(axis) == pytest.approx(0.6, abs=0.02)

    def test_a_terminal_without_unicode_gets_ascii(self):
        drawn = chart.draw(observed(), 60, unicode=False)
        assert drawn.isascii()
        blocks = chart.draw(observed(), 60, unicode=True)
        assert drawn.count("#") == blocks.count("█") > 0

    def test_nothing_observed_is_an_empty_chart(self):
        assert chart.draw(Outage(), 60, unicode=True)

    @pytest.mark.parametrize(
        ("most", "end"), [(0, 1), (1, 1), (7, 8), (9, 10), (22, 30), (81, 100), (300, 300)]
    )
    def test_the_axis_ends_at_a_round_number(self, most, end):
        assert chart.scale(most) == end

    def test_a_part_of_the_time_without_a_sample_shows_what_was_before(self):
        assert chart.bins([Sample(0.0, 3, 0, 0), Sample(9.9, 1, 0, 0)], 10.0, 4) == [3, 3, 3, 1]


class TestPicture:
    def test_it_is_a_png_that_shows_both_ways_and_the_backlog(self, tmp_path):
        image_module = pytest.importorskip("PIL.Image")
        file = tmp_path / "new" / "outage.png"
        picture.save(observed(), file)
        with image_module.open(file) as image:
            assert image.format == "PNG"
            assert image.size == (picture.WIDTH * DETAIL, picture.HEIGHT * DETAIL)
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
        for wanted in (*picture.COLOURS.values(), picture.SHADE):
            assert tuple(bytes.fromhex(wanted[1:])) in colours
        assert [path.name for path in file.parent.iterdir()] == ["outage.png"]

    def test_a_place_that_cannot_be_written_is_one_line(self, tmp_path):
        pytest.importorskip("PIL.Image")
        (tmp_path / "file").write_text("")
        with pytest.raises(DemoError, match=r"cannot be written to .*outage\.png: "):
            picture.save(observed(), tmp_path / "file" / "outage.png")
        with pytest.raises(DemoError, match=r"cannot be written to .*outage\.png: "):
            picture.check(tmp_path / "file" / "outage.png")

    def test_a_look_at_its_place_leaves_what_is_there(self, tmp_path):
        (tmp_path / "outage.png").write_text("the last one")
        picture.check(tmp_path / "outage.png")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["the last one"]
