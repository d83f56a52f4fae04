"""The broker does what Kestrel 2.4.1 does; the cases are the YAML files of this folder."""

import contextlib

import pytest

from support.broker import BrokerProcess
from support.contract import SERVERS, Case, Player, Target, load_cases, replaced, server_config

CASES = load_cases()


@pytest.fixture(scope="session")
def embedded_servers(tmp_path_factory):
    """One embedded broker for each kind of server, started when the first case asks for it."""
    running: dict[str, BrokerProcess] = {}

    def get(server: str) -> Target:
        if server not in running:
            folder = tmp_path_factory.mktemp(f"contract-{server}")
            config = server_config(CASES, server)
            running[server] = BrokerProcess(folder, status_file=str(folder / "status"), **config)
        running[server].__enter__()
        return Target.of(running[server])

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [broker.__exit__() for broker in running.values()])
        yield get
        for broker in running.values():
            assert broker.terminate() == 0
            assert "unexpected error" not in broker.log
            assert "Traceback" not in broker.log


@pytest.fixture
def server_of(real_broker, embedded_servers, tmp_path):
    """Give a case the server that it needs, or skip it and say what is missing."""
    with contextlib.ExitStack() as stack:

        def get(case: Case, names: dict[str, str]) -> Target:
            if real_broker is None and case.process is None:
                return embedded_servers(case.server)
            if real_broker is None:
                config = {"status_file": str(tmp_path / "status"), **SERVERS["shared"], **case.process}
                config |= replaced({"queues": case.queues, "aliases": case.aliases}, names)
                return Target.of(stack.enter_context(BrokerProcess(tmp_path, **config)))
            if case.process is not None:
                pytest.skip("stops, starts or reconfigures the server")
            if case.server != real_broker.server:
                pytest.skip(f"needs the server {case.server}: --print-kestrel-config={case.server}")
            if case.needs_admin and real_broker.admin is None:
                pytest.skip("needs --admin")
            return Target(real_broker.host, real_broker.port, real_broker.admin)

        yield get


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_contract(case, server_of):
    names = case.names()
    Player(server_of(case, names), case, names).play()
