"""The player of the contract would notice: every case fails on a server that is wrong in one way."""

import asyncio
import contextlib
import json
import re
import threading

import pytest

from support.broker import BrokerProcess
from support.contract import Player, Target, kestrel_config, load_cases, replaced, server_config

CASES = load_cases()
PLAIN = [case for case in CASES if case.server == "shared" and not case.settings_of_its_own]


class Liar:
    """A server on loopback that stands before the right one and spoils what it says; a context manager."""

    def __init__(self, right: tuple[str, int] | None, spoil=lambda data: data, at_close=lambda writer: None):
        self._right = right
        self._spoil = spoil
        self._at_close = at_close
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError):
            if self._right is None:
                while await reader.read(65536):
                    writer.write(b"NONSENSE\r\n")
            else:
                right_reader, right_writer = await asyncio.open_connection(*self._right)
                forward = asyncio.ensure_future(self._forward(reader, right_writer))
                while data := await right_reader.read(65536):
                    writer.write(self._spoil(data))
                self._at_close(writer)
                await forward
        writer.close()

    async def _forward(self, reader, right_writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                right_writer.write(data)
        right_writer.close()

    def __enter__(self) -> tuple[str, int]:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(60)
        return self._server.sockets[0].getsockname()

    def __exit__(self, *exc) -> None:
        async def stop():
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def cases_that_pass(cases, address) -> list[str]:
    """The names of the cases that find nothing wrong; a short wait is enough, for they are to fail."""
    passed = []
    for case in cases:
        with contextlib.suppress(AssertionError, OSError):
            Player(Target(*address, admin=address, deadline_s=0.05), case).play()
            passed.append(case.id)
    return passed


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    with BrokerProcess(tmp_path_factory.mktemp("right")) as broker:
        yield broker.host, broker.port


def test_no_case_passes_on_a_server_that_answers_nonsense():
    with Liar(None) as address:
        assert cases_that_pass(PLAIN, address) == []


def test_no_case_passes_on_a_server_that_says_a_byte_too_much(right):
    with Liar(right, spoil=lambda data: data + b" ") as address:
        assert cases_that_pass(PLAIN, address) == []


def test_no_case_with_a_close_passes_on_a_server_that_does_not_close(right):
    cases = [case for case in PLAIN if any(step.get("closed") for step in case.steps)]
    with Liar(right) as address:
        assert cases_that_pass(cases, address) == []


def test_no_silent_close_passes_on_a_server_that_says_why(right):
    cases = [
        case for case in PLAIN if any(step.get("closed") and not step.get("recv") for step in case.steps)
    ]
    assert len(cases) > 40

    def say_why(writer):
        writer.write(b"CLIENT_ERROR\r\n")
        writer.close()

    with Liar(right, at_close=say_why) as address:
        assert cases_that_pass(cases, address) == []


def test_every_case_of_the_memcache_port_compares_something():
    for case in CASES:
        compared = {"recv", "lines", "closed", "take", "until", "counts", "eventually", "put", "http"}
        assert any(compared & set(step) for step in case.steps), case.id
        for step in case.steps:
            if "http" in step:
                assert {"json", "json_has", "keys", "text", "type", "status"} & set(step), case.id


def test_the_printed_configuration_has_every_queue_and_alias_that_a_shared_server_needs():
    for server in ("shared", "strict"):
        text = kestrel_config(CASES, server)
        config = server_config(CASES, server)
        queues = re.findall(r'new QueueBuilder \{\n    name = "(.*)"\n', text)
        aliases = re.findall(r'new AliasBuilder \{\n    name = "(.*)"\n', text)
        assert queues == list(config["queues"])
        assert aliases == list(config["aliases"])
        assert f"maxOpenTransactions = {config['max_open_transactions']}\n" in text


def test_a_case_of_a_shared_server_has_the_same_names_every_time_and_no_other_case_has_them():
    fixed = [case for case in CASES if case.has_fixed_names]
    assert all(case.names() == case.names() for case in fixed)
    assert len({case.names()["$Q"] for case in fixed}) == len(fixed)
    case = next(case for case in CASES if not case.has_fixed_names)
    assert case.names() != case.names()


def test_names_are_put_everywhere():
    data = json.loads('{"$Q": ["$Q+x", {"a $R": "$R"}], "n": 1}')
    assert replaced(data, {"$Q": "q", "$R": "r"}) == {"q": ["q+x", {"a r": "r"}], "n": 1}
