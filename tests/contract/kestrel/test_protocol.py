"""The memcache port does what Kestrel 2.4.1 does; the cases are the YAML files of this folder."""

import os
import uuid
from pathlib import Path

import pytest
import yaml

from support.broker import BrokerProcess, RawClient, wait_until

REAL_SERVER = os.environ.get("KESTREL_CONTRACT_SERVER")
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['name']}")
    for path in sorted(Path(__file__).parent.glob("*.yaml"))
    for case in yaml.safe_load(path.read_text())
]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    if REAL_SERVER:
        host, port = REAL_SERVER.rsplit(":", 1)
        yield host, int(port)
        return
    with BrokerProcess(tmp_path_factory.mktemp("contract")) as broker:
        yield broker.host, broker.port
        broker.terminate()
        assert "unexpected error" not in broker.log


@pytest.fixture
def play(shared_server, tmp_path):
    """Play a case on the server that it needs."""

    def run(case: dict) -> None:
        names = {"$Q": f"c{uuid.uuid4().hex[:12]}_q", "$R": f"c{uuid.uuid4().hex[:12]}_r"}
        if "queues" not in case:
            Player(shared_server, names).play(case["steps"])
            return
        if REAL_SERVER:
            pytest.skip("needs queue settings of its own")
        settings = {names[queue]: block for queue, block in case["queues"].items()}
        with BrokerProcess(tmp_path, queues=settings, admin_port=None) as broker:
            Player((broker.host, broker.port), names).play(case["steps"])

    return run


@pytest.mark.parametrize("case", CASES)
def test_contract(case, play):
    play(case)


class Player:
    """Sends the steps of one case and compares every byte."""

    def __init__(self, server: tuple[str, int], names: dict[str, str]):
        self._server = server
        self._names = names
        self._clients: dict[str, RawClient] = {}

    def play(self, steps: list[dict]) -> None:
        try:
            for step in steps:
                unknown = set(step) - {"conn", "send", "recv", "closed", "hang_up", "until", "repeat"}
                assert not unknown, f"unknown keys in a step: {unknown}"
                for _ in range(step.get("repeat", 1)):
                    self._play(step)
        finally:
            for client in self._clients.values():
                client.close()

    def _play(self, step: dict) -> None:
        name = step.get("conn", "a")
        if name not in self._clients:
            self._clients[name] = RawClient(*self._server)
        client = self._clients[name]
        client.send(self._bytes(step.get("send", "")))
        client.expect(self._bytes(step.get("recv", "")))
        if step.get("closed"):
            assert client.read_all() == b""
            self._clients.pop(name).close()
        if step.get("hang_up"):
            self._clients.pop(name).close()
        for key, number in step.get("until", {}).items():
            wait_until(lambda key=key, number=number: self._stat(key) == number, f"{key} to be {number}")

    def _bytes(self, text: str) -> bytes:
        for placeholder, name in self._names.items():
            text = text.replace(placeholder, name)
        return text.encode("latin-1")

    def _stat(self, key: str) -> int | None:
        with RawClient(*self._server) as client:
            client.send(b"stats\r\nquit\r\n")
            lines = client.read_all().decode("latin-1").split("\r\n")
        prefix = f"STAT queue_{self._names['$Q']}_{key} "
        return next((int(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), None)
