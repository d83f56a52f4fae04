"""Where Kestrel 2.4.1 loses items as it keeps its journals small, the embedded broker loses none.

The recorded requests are played again with the recorded settings, and then the process is killed: what a
start finds, and what an independent reader of the files finds, is what the clients were owed.
"""

import json
from pathlib import Path

import pytest

from support import kestrel_reader
from support.broker import BrokerProcess

FOLDER = Path(__file__).parent / "golden_journals"
CASES = {
    "14-rotation": {"max_memory_size": 200},
    "15-read-behind": {"max_memory_size": 100},
    "16-pack": {"max_memory_size": 100, "max_journal_size": 400},
    "23-checkpoint-missed": {"max_memory_size": 100, "max_journal_size": 200},
    "24-pack-loss-transactions": {"max_memory_size": 100, "max_journal_size": 400},
    "25-pack-loss-plain": {"max_memory_size": 100, "max_journal_size": 400},
    "26-pack-after-restart": {"max_memory_size": 100, "max_journal_size": 400},
    "28-pack-filler": {"max_memory_size": 100, "max_journal_size": 400},
}


@pytest.mark.parametrize("name", CASES)
def test_what_clients_were_owed_is_there_after_the_requests_that_make_kestrel_pack(name, tmp_path):
    case = json.loads((FOLDER / f"{name}.json").read_text())
    (queue,) = case["restart"]["queues"]
    owed = case.get("items_clients_were_owed") or case["restart"]["queues"][queue]["items_in_order"]
    owed = [item.encode("latin-1") for item in owed]
    with BrokerProcess(tmp_path, admin_port=None, queues={queue: CASES[name]}) as broker:
        connections = {}
        for step in case["steps"]:
            if "restart" in step:
                broker.kill()
                broker.start()
                connections = {}
            else:
                client = connections.setdefault(step["conn"], broker.connect())
                client.ask(step["send"].encode("latin-1"), step["recv"].encode("latin-1"))
        broker.kill()
        assert kestrel_reader.owed(broker.spool, queue) == owed
        broker.start()
        assert broker.drain(queue) == owed
        for client in connections.values():
            client.close()
