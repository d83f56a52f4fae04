from __future__ import annotations

from kestrel_stack.lab.playbook import FAILURE_LINES, Output

RUN = """
PLAY [Set up the queue] ********************************************************

TASK [Gathering Facts] *********************************************************
ok: [queue1]

TASK [common : Refuse what is not supported] ***********************************
ok: [queue1]

TASK [kestrel : Write the configuration] ***************************************
changed: [queue1]

TASK [common : Again a task of this role] **************************************
ok: [queue1]
"""
FAILURE = """
TASK [kestrel : Start the service] *********************************************
fatal: [queue1]: FAILED! =>
    changed: false
    msg: Unable to start service kestrel
"""
RECAP = """
PLAY RECAP *********************************************************************
queue1                     : ok=4    changed=1    unreachable=0    failed=1    skipped=0
worker1                    : ok=4    changed=2    unreachable=0    failed=0    skipped=0
"""


def feed(text: str) -> tuple[Output, list[str], list[str]]:
    roles: list[str] = []
    tasks: list[str] = []
    output = Output(on_role=roles.append, on_task=tasks.append)
    for line in text.splitlines():
        output.feed(line)
    return output, roles, tasks


def test_plays_and_roles_are_told_once_each_and_tasks_all() -> None:
    _, roles, tasks = feed(RUN)
    assert roles == ["Set up the queue", "common", "kestrel"]
    assert len(tasks) == 4


def test_the_failing_task_is_kept_with_its_message() -> None:
    output, _, _ = feed(RUN + FAILURE + RECAP)
    assert output.failure()[0] == "TASK [kestrel : Start the service]"
    assert output.failure()[-1].strip() == "msg: Unable to start service kestrel"


def test_the_failures_of_several_hosts_are_kept_in_their_order() -> None:
    end = "\nTASK [Stop when a host has failed] ***\nfatal: [queue1]: FAILED! => \n    msg: worker1 failed\n"
    output, _, _ = feed(RUN + FAILURE + end + RECAP)
    assert output.failure()[0] == "TASK [kestrel : Start the service]"
    assert output.failure()[-1].strip() == "msg: worker1 failed"


def test_an_ignored_failure_is_none() -> None:
    output, _, _ = feed(RUN + FAILURE + "...ignoring\n" + RECAP)
    assert output.failure() == []


def test_changes_are_summed_over_the_hosts() -> None:
    output, _, _ = feed(RUN + RECAP)
    assert output.changes == 3


def test_a_very_long_failure_is_cut() -> None:
    output, _, _ = feed(FAILURE + "    line\n" * 100 + RECAP)
    assert len(output.failure()) == FAILURE_LINES


def test_a_run_that_ends_in_its_failing_task_still_tells_it() -> None:
    output, _, _ = feed(FAILURE)
    assert output.failure()[0] == "TASK [kestrel : Start the service]"
