"""What several files of this folder share."""

import pytest

from support.broker import BrokerProcess


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    """Two brokers, started once for a file."""
    with (
        BrokerProcess(tmp_path_factory.mktemp("a")) as a,
        BrokerProcess(tmp_path_factory.mktemp("b")) as b,
    ):
        yield a, b
