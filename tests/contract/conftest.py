"""Which broker the contract is played against; the options themselves are in tests/conftest.py."""

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class RealBroker:
    """A server that was started by whoever runs the tests."""

    host: str
    port: int
    admin: tuple[str, int] | None
    server: str


def address(text: str, default_host: str | None = None) -> tuple[str, int]:
    """Split HOST:PORT, or PORT where a host is known; UsageError names what is wrong."""
    host, _, port = text.rpartition(":")
    host = host or default_host or ""
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise pytest.UsageError(f"not an address: {text!r}; give HOST:PORT")
    return host, int(port)


@pytest.fixture(scope="session")
def real_broker(request) -> RealBroker | None:
    """The real server, or None for the embedded broker."""
    where = request.config.getoption("--broker") or os.environ.get("KESTREL_CONTRACT_SERVER") or "embedded"
    if where == "embedded":
        return None
    host, port = address(where)
    admin = request.config.getoption("--admin")
    server = request.config.getoption("--kestrel-config")
    return RealBroker(host, port, address(admin, host) if admin else None, server)
