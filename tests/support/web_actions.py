"""Actions on real brokers, without a browser: their parts as one process has them."""

from __future__ import annotations

import json
from pathlib import Path

from kestrel_stack.queue import settings
from kestrel_stack.queue.envelope import Envelope, ParkedRecord
from kestrel_stack.queue.servers import parse_servers
from kestrel_stack.web.access.auth import Identity
from kestrel_stack.web.actions.actions import Actions
from kestrel_stack.web.actions.tasks import Task
from kestrel_stack.web.config import ACTIONS, Config
from kestrel_stack.web.polling.poller import Poller
from kestrel_stack.web.record.store import Store
from support.broker import Broker, wait_until

ADA = Identity("ada", "operator", "session")
BOB = Identity("bob", "operator", "session")
EVE = Identity("eve", "viewer", "session")


def shop(folder: Path, *brokers: Broker, queues: tuple[str, ...] = ("mail",)) -> Path:
    """A settings file that describes queues of the namespace shop."""
    path = folder / "shop.json"
    content = {
        "app": "shop",
        "namespace": "shop",
        "environment": "lab",
        "servers": [broker.address for broker in brokers],
        "queues": [{"name": queue} for queue in queues],
    }
    path.write_text(json.dumps(content))
    return path


class Desk:
    """An operator's desk: `do` an action and get its task when it is over."""

    def __init__(self, folder: Path, *brokers: Broker, **config):
        config.setdefault("actions", ACTIONS)
        config.setdefault("settings", (settings.load(shop(folder, *brokers), {}),))
        self.config = Config(
            servers=parse_servers([broker.address for broker in brokers]), state=folder / "state", **config
        )
        self.config.state.mkdir(mode=0o700)
        self.store = Store(self.config.state)
        # It is not started: what an action needs to know it asks the servers itself.
        self.poller = Poller(self.config)
        self.actions = Actions(self.config, self.store, self.poller)

    def do(self, action: str, target: str, who: Identity | None = ADA, confirm=None, seen=None, **options):
        confirm = target if confirm is None else confirm
        return self.over(
            self.actions.do(action, target, options, who, "10.1.2.3", confirm=confirm, seen=seen)
        )

    def over(self, task: Task) -> Task:
        """The task when it is over."""
        wait_until(lambda: not self.actions.tasks.get(task.id).running, "the task to end")
        return self.actions.tasks.get(task.id)

    def audit(self, **filters: str):
        """The latest entry of the audit log."""
        return self.store.audit_list(filters=filters)[0]

    def close(self) -> None:
        self.actions.stop()
        self.store.close()


def park(broker: Broker, queue: str = "shop_mail", reason: str = "Boom", **fields) -> str:
    """Park a job as a worker does; return its id."""
    made = Envelope(fields.pop("job", "SendMail"), fields.pop("tenant", "acme"), **fields)
    error = {"class": "Boom", "message": "it\nwent", "stack": "line 1\nline 2"}
    with broker.connect() as client:
        client.set(f"{queue}_errors", ParkedRecord(reason, made.encode(), 3, error).encode())
    return made.id


def fill(broker: Broker, queue: str, count: int, start: int = 0) -> list[bytes]:
    """Put numbered items on a queue."""
    items = [b"item %d" % number for number in range(start, start + count)]
    with broker.connect() as client:
        for item in items:
            client.set(queue, item)
    return items


def outcomes(task: Task) -> dict[str, str]:
    """What became of it on each server."""
    return {result.server: result.outcome for result in task.results}
