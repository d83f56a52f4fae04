"""What the servers say, asked once for everybody who looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kestrel_stack.web.config import Config
from kestrel_stack.web.model import ServerState, View


class Poller:
    """One thread per server; the latest `View` for everybody."""

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._view = View(
            serial=1, at=clock(), servers=tuple(ServerState(str(server)) for server in config.servers)
        )
        self._condition = threading.Condition()

    def start(self) -> None:
        """Begin to poll."""

    def stop(self) -> None:
        """End all threads."""

    def view(self) -> View:
        """Return the latest view at once."""
        return self._view

    def wait(self, serial: int, timeout: float) -> View:
        """Return a view newer than `serial`, or the latest after `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._view.serial > serial, timeout)
        return self._view

    def poke(self, address: str | None = None) -> None:
        """Poll one server now, or all of them."""

    def on_view(self, heed: Callable[[View], None]) -> None:
        """Have `heed` called with new views, at most one per interval, in a thread of the poller's."""
