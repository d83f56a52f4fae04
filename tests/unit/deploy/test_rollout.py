from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kestrel_stack.deploy.description import Host
from kestrel_stack.deploy.errors import FAILED, DeployError
from kestrel_stack.deploy.hoststate import HostState
from kestrel_stack.deploy.report import Report
from kestrel_stack.deploy.rollout import AFTER, BEFORE, Rollout

OLD, NEW = "20261120T011500Z-9f8e7d6c", "20261121T011500Z-1a2b3c4d"


class RolloutWithADefect(Rollout):
    """The switch and the way back are stand-ins: a defect of ours cannot be had from a real host."""

    def _switch(self, host: Any, old: str, new: str, *, going_back: bool = False) -> None:
        self.switched = [*getattr(self, "switched", []), new]
        self.stand[host.name] = BEFORE if going_back else AFTER

    def _verify(self, host: Any, release: str) -> None:
        raise TypeError("'int' object is not callable")


def session() -> Any:
    """Stand in for the connections: actions run here, locks are nothing."""
    host = Host("worker1", "192.0.2.1", None, "deploy", None, ())
    return SimpleNamespace(
        hosts=(host,),
        states={"worker1": HostState("worker1", {"current": OLD})},
        release=lambda details: [],
        everywhere=lambda hosts, action: [action(one) for one in hosts],
    )


def test_a_defect_while_a_host_is_verified_puts_the_host_back_and_says_how_it_stands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rollout = RolloutWithADefect(session(), Report(), "deploy")
    rollout.about(NEW)
    with pytest.raises(DeployError) as caught, rollout:
        rollout.roll(dict.fromkeys(rollout.session.hosts, NEW))
    assert rollout.switched == [NEW, OLD]
    assert rollout.stand == {"worker1": BEFORE}
    assert caught.value.code == FAILED
    assert "defect: TypeError: 'int' object is not callable. Every host is as before" in str(caught.value)
    assert "Traceback" in capsys.readouterr().err
