import pytest

from kestrel_stack.queue.errors import InvalidServer
from kestrel_stack.queue.servers import Backoff, Rotation, Server, parse_servers

A, B, C = Server("a"), Server("b"), Server("c")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def rotation(servers=(A, B, C), start=0):
    clock = Clock()
    made = Rotation(servers, start, clock, lambda: Backoff(1, 8, chance=lambda: 0))
    return made, clock


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:22133", [Server("127.0.0.1", 22133)]),
        ("a:1,b:2", [Server("a", 1), Server("b", 2)]),
        (" a:1 , b ", [Server("a", 1), Server("b", 22133)]),
        ("[::1]:5", [Server("::1", 5)]),
        (["a:1", Server("b", 2)], [Server("a", 1), Server("b", 2)]),
    ],
)
def test_servers_are_read_from_text_or_a_list(text, expected):
    assert list(parse_servers(text)) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "a:1,", "a:0", "a:65536", "a:x", "a b:1", "::1:5", "http://a:1", [], [5]]
)
def test_what_is_not_a_server_is_refused_with_an_example(text):
    with pytest.raises(InvalidServer, match=r"host:port|no such port"):
        parse_servers(text)


def test_a_server_listed_twice_is_refused():
    with pytest.raises(InvalidServer, match="a:22133 is listed twice"):
        parse_servers("a,a:22133")


def test_an_ipv6_server_is_written_as_it_is_read():
    assert parse_servers(str(Server("::1", 5))) == (Server("::1", 5),)


def test_waits_double_up_to_the_limit_and_begin_again_after_a_reset():
    backoff = Backoff(1, 8, chance=lambda: 0)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 8, 8]
    backoff.reset()
    assert backoff.next() == 1


def test_chance_shortens_a_wait_by_at_most_a_half():
    assert Backoff(1, 8, chance=lambda: 1).next() == 0.5


def test_backoff_survives_an_outage_of_days():
    backoff = Backoff(0.2, 5, chance=lambda: 0)
    assert [backoff.next() for _ in range(5000)][-1] == 5


@pytest.mark.parametrize(("start", "first"), [(0, A), (1, B), (2, C), (3, A), (7, B)])
def test_a_worker_begins_at_its_number_modulo_the_servers(start, first):
    assert rotation(start=start)[0].current == first


def test_every_server_is_visited_in_turn():
    turns, _ = rotation()
    seen = []
    for _ in range(6):
        seen.append(turns.current)
        turns.answered()
        turns.advance()
    assert seen == [A, B, C, A, B, C]


def test_a_failing_server_is_left_out_until_its_wait_is_over():
    turns, clock = rotation()
    turns.failed()
    seen = []
    for _ in range(4):
        seen.append(turns.current)
        assert turns.pause() == 0
        turns.advance()
    assert seen == [B, C, B, C]
    clock.now += 1
    for _ in range(3):
        seen.append(turns.current)
        turns.advance()
    assert seen[4:] == [B, C, A]


def test_when_all_fail_the_one_whose_wait_ends_first_is_next():
    turns, clock = rotation((A, B))
    turns.failed()
    clock.now += 0.5
    turns.failed()
    assert (turns.current, turns.pause()) == (A, 0.5)


def test_a_single_failing_server_is_waited_for_ever_longer():
    turns, clock = rotation((A,))
    pauses = []
    for _ in range(3):
        turns.failed()
        pauses.append(turns.pause())
        clock.now += turns.pause()
    assert pauses == [1, 2, 4]
    turns.answered()
    assert turns.pause() == 0
