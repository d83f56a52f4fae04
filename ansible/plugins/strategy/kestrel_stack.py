"""Ansible's linear strategy, with less to do and less to wait for (docs/decisions/027)."""

from __future__ import annotations

from ansible.errors import AnsibleError
from ansible.plugins.loader import filter_loader, test_loader
from ansible.plugins.strategy import StrategyBase
from ansible.plugins.strategy.free import StrategyModule as Free
from ansible.plugins.strategy.linear import StrategyModule as Linear
from ansible.template import Templar

# What a result is differs between Ansible's versions, and none of it is promised. With yet another one a
# condition is looked at by the task's own process, as ever.
try:
    # 2.19 and 2.20
    from ansible.executor.task_result import _RawTaskResult
except ImportError:
    _RawTaskResult = None
try:
    # 2.21
    from ansible._internal._task import TaskContext, UnifiedTaskResult
except ImportError:
    UnifiedTaskResult = None

try:
    from ansible_mitogen.strategy import StrategyMixin
except ImportError:
    # An ansible-playbook of one's own: slower, and else the same.
    StrategyMixin = None

DOCUMENTATION = """
name: kestrel_stack
short_description: linear, over Mitogen where it is installed
description:
  - Tasks in lockstep over the hosts of a play, as Ansible's linear strategy runs them.
  - In a play whose variable C(__hosts_wait) is false no host waits for another one, as in the free strategy.
  - Where the Python of ansible-playbook has Mitogen, each host keeps one Python for all tasks of a run.
  - A task that its condition skips is skipped without a process of its own.
author: Kestrel Stack
"""


class _End(Free):
    """Where Linear's `run` and Free's go on when they are through: not one after the other."""

    def run(self, iterator, play_context, result=0):
        """End a play."""
        return StrategyBase.run(self, iterator, play_context, result)


class _Both(Linear, _End):
    """Linear or free, as the play says, without what each task's process would do again."""

    def run(self, iterator, play_context):
        """Run a play and return one of the task queue manager's results."""
        waits = iterator._play.get_vars().get("__hosts_wait", True)
        kind = Linear if waits else Free
        if not waits:
            # Whoever prints the run asks for this name, to put each result under its own task.
            iterator._play.strategy = "free"
        # Free minds a task's `throttle` itself.
        self.ALLOW_BASE_THROTTLING = waits
        return kind.run(self, iterator, play_context)

    def _queue_task(self, host, task, task_vars, play_context):
        # Loaded here they are there in every task's process; else each would load all filters and tests.
        filter_loader.get("default")
        test_loader.get("defined")
        skipped = self._skipped(host, task, task_vars)
        if skipped is None:
            super()._queue_task(host, task, task_vars, play_context)
            return
        # As its process would have it.
        self._queued_task_cache[(host.name, task._uuid)] = {
            "host": host,
            "task": task,
            "task_vars": task_vars,
            "play_context": play_context,
        }
        self._tqm.send_callback("v2_runner_on_start", host, task)
        self._final_q.send_task_result(*skipped)
        self._pending_results += 1

    def _copy_included_file(self, included_file):
        # Called right before it is said what was included. Other hosts' results may have been printed since
        # the include's own; whoever prints the run puts them under their task's heading, but not that line.
        task = included_file._task
        for printer in self._tqm._callback_plugins:
            if getattr(printer, "_last_task_banner", task._uuid) != task._uuid:
                printer._print_task_banner(task)
        return super()._copy_included_file(included_file)

    def _skipped(self, host, task, task_vars):
        """Return the result of a task that its condition skips; None when it is not for us to say."""
        if not task.when or task.loop is not None or task.delegate_to is not None:
            return None
        variables = {**task_vars, "ansible_search_path": task.get_search_path()}
        try:
            if _RawTaskResult is not None:
                return self._skipped_raw(host, task, variables)
            if UnifiedTaskResult is not None:
                return self._skipped_unified(host, task, variables)
        except AnsibleError:
            # Its own process says what is wrong with it.
            pass
        return None

    def _skipped_raw(self, host, task, variables):
        why = {}
        if task._resolve_conditional(task.when, variables, result_context=why):
            return None
        result = {"changed": False, "skipped": True, "skip_reason": "Conditional result was False", **why}
        task.update_result_no_log(Templar(loader=self._loader, variables=variables), result)
        return (_RawTaskResult(host=host, task=task, return_data=result, task_fields=task.dump_attrs()),)

    def _skipped_unified(self, host, task, variables):
        with TaskContext.create(task=task, task_vars=variables, host_name=host.name) as context:
            holds, condition = task._resolve_conditional_with_item(task.when, variables)
            if holds:
                return None
            result = UnifiedTaskResult.record_conditional_false(condition)
            task.update_result_no_log(context.task_templar, result)
            result.finalize_registered_values()
        return host, task, result


if StrategyMixin is None:

    class StrategyModule(_Both):
        """Over Ansible's own connections."""

else:

    class StrategyModule(StrategyMixin, _Both):
        """Over Mitogen's connections."""
