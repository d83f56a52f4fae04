"""The job contract is played by workers of each language, on the embedded broker or with --broker."""

import pytest

from support.broker import Broker, BrokerProcess
from support.jobs import Stage
from support.worker import LANGUAGES, App


@pytest.fixture(scope="session")
def contract_broker(real_broker, tmp_path_factory):
    """One broker for all that does not stop it."""
    if real_broker is not None:
        broker = Broker()
        broker.host, broker.port = real_broker.host, real_broker.port
        yield broker
        return
    with BrokerProcess(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture
def app(tmp_path):
    return App(tmp_path / "app")


@pytest.fixture
def stage(language, app, contract_broker):
    made = Stage(language, app, contract_broker)
    made.clear()
    yield made
    made.check_logs()


@pytest.fixture
def own_stage(language, app, tmp_path, real_broker):
    """A stage with a broker of its own, which may be stopped."""
    if real_broker is not None:
        pytest.skip("this test stops and starts its broker, which it cannot do with one at an address")
    with BrokerProcess(tmp_path) as broker:
        made = Stage(language, app, broker)
        yield made
        made.check_logs()
