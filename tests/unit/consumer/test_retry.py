import pytest

from kestrel_stack.consumer.retry import next_delay


@pytest.mark.parametrize(("attempt", "delay"), [(1, 10), (2, 60), (3, None), (1000, None)])
def test_each_failure_takes_the_next_delay_until_there_is_none(attempt, delay):
    assert next_delay(attempt, (10, 60)) == delay


@pytest.mark.parametrize(
    ("wanted", "delay"), [(1, 1), (5, 5), (None, 5), (2, 5), (True, 5), (1.0, 5), ("1", 5)]
)
def test_only_a_configured_delay_can_be_had(wanted, delay):
    found = next_delay(1, (5, 1), wanted)
    assert (found, type(found)) == (delay, int)


def test_a_wanted_delay_does_not_make_more_tries():
    assert next_delay(3, (5, 1), 5) is None
