"""Import an application as a worker's child would, and write down which jobs it has, or what is wrong.

::

    python -m kestrel_stack.dev.look MODULE:REGISTRY ANSWER.json

It runs in the application's own Python and folder. Of each job it tells the keys of the data that it reads by
``data["key"]``, for an example to try.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kestrel_stack.consumer import child


def keys(function: Callable[..., Any]) -> list[str]:
    """Return the keys that a job reads of its data, as far as that can be seen."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return []
    defined = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
    if defined is None or not defined.args.args:
        return []
    data = defined.args.args[0].arg
    found = [
        (node.lineno, node.col_offset, str(node.slice.value))
        for node in ast.walk(defined)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == data
        and isinstance(node.slice, ast.Constant)
    ]
    return list(dict.fromkeys(key for _, _, key in sorted(found)))


def main(arguments: list[str]) -> int:
    """Write the answer; always return 0, since a wrong application is an answer, too."""
    app, file = arguments[0], Path(arguments[1])
    registry, problem = child.load(app)
    if registry is None:
        answer: dict[str, Any] = {"error": problem["message"], "stack": problem["stack"]}
    else:
        answer = {"jobs": {name: keys(registry.get(name) or main) for name in registry.names}}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(answer))
    new.rename(file)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that the application has begun are nothing to wait for.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
