"""The role run again with other variables, and the queue on the one host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import role_parts

CHECKOUT = Path(__file__).resolve().parents[3]
SCENARIO = CHECKOUT / "molecule/kestrel-release"


@pytest.fixture(scope="session")
def play():
    """Run the role on the host with further variables; return the finished process."""

    def run(**variables):
        return role_parts.ansible(
            SCENARIO / "converge.yml", SCENARIO / "inventory", "--extra-vars", json.dumps(variables)
        )

    return run


@pytest.fixture(scope="session")
def talk(memcache, stack):
    """Say something to the memcache port."""

    def say(text, ends="\r\n"):
        return memcache("queue1", stack.vars("queue1")["kestrel_stack_address"], 22133, text, ends)

    return say


@pytest.fixture
def put(talk):
    """Put items into a queue that was emptied before."""

    def store(queue, *items):
        talk(f"delete {queue}\r\n")
        for item in items:
            assert talk(f"set {queue} 0 0 {len(item)}\r\n{item}\r\n") == "STORED\r\n"

    return store


@pytest.fixture
def take(talk):
    """Take everything from a queue, in its order."""

    def drain(queue):
        found = []
        while (answer := talk(f"get {queue}\r\n", "END\r\n")) != "END\r\n":
            found.append(answer.split("\r\n")[1])
        return found

    return drain


@pytest.fixture(scope="session")
def answers(root):
    """Wait until the server answers."""
    return lambda: root("queue1", "/usr/local/sbin/kestrel-stack-kestrel wait")
