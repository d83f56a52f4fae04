"""The application's registry, with the stack of an error printed when a job fails.

A worker on a host parks the stack with the job; who writes the job wants to see it at once. Workers of
bin/dev are started with ``--app kestrel_stack.dev.app:registry``.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kestrel_stack.consumer import Context, Park, Registry, Retry
from kestrel_stack.dev.side import APP


@contextmanager
def told(_: Context) -> Iterator[None]:
    """Print the stack of what a job raises, unless it asks for something by it."""
    try:
        yield
    except (Park, Retry):
        raise
    except BaseException as exc:
        trace = exc.__traceback__
        # From the job's own function on: what is around it is the stack's.
        while trace is not None and _ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        traceback.print_exception(type(exc), exc, trace, file=sys.stderr)
        raise


def _ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1]) or file.endswith("contextlib.py")


def _load() -> Registry:
    module, _, name = os.environ[APP].partition(":")
    found = getattr(importlib.import_module(module), name)
    # The innermost: it sees what the job itself raised.
    found.around(told)
    return found


registry = _load()
