"""Which queues there are: an inventory describes them, else they follow from the names of the jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kestrel_stack.dev.errors import DevError
from kestrel_stack.queue.producer import snake_case

ENVIRONMENT = "dev"
RETRY_DELAYS = (1, 5, 30)
"""Of a queue that nobody describes: short, so that one sees what becomes of a job that fails."""
JOB_TIMEOUT = 60

_READ = (
    "kestrel_stack_app",
    "kestrel_stack_namespace",
    "kestrel_stack_queues",
    "consumers_python_app",
    "consumers_php_app",
)


@dataclass(frozen=True)
class Description:
    """What is known of an application before any of its code has been run.

    `queues` are entries of a settings file; None: they follow from the names of the jobs. `python` is
    ``MODULE:REGISTRY``, `php` a file below the application.
    """

    app: str
    namespace: str
    python: str | None = None
    php: str | None = None
    queues: tuple[Mapping[str, Any], ...] | None = None
    source: str = "the names of its jobs"
    """Where the queues are from, for people."""


def of_inventory(env: str, root: Path) -> Description:
    """Read an inventory; raise `DevError` with one line."""
    # Ansible is on the controller only, and takes a second.
    from kestrel_stack.deploy import description, listing
    from kestrel_stack.deploy.errors import Refused

    try:
        path = description.find_inventory(env, root)
        listed = listing.list_inventory(path, root, _needed, ("dev", *_READ))
    except Refused as exc:
        raise DevError(f"--env: {exc}") from None
    hosts = listed["hosts"]
    found = next((hosts[name] for name in listed["first"] if name in hosts), None)
    if found is None:
        raise DevError(f"--env {env}: no host of group consumers")
    for key, value in found.items():
        if "{{" in str(value):
            raise DevError(f"--env {env}: {key} contains '{{{{': what is read here is plain data")
    queues = found.get("kestrel_stack_queues")
    name, namespace = found.get("kestrel_stack_app"), found.get("kestrel_stack_namespace")
    if not isinstance(queues, list) or not queues or not all(isinstance(one, dict) for one in queues):
        raise DevError(f"--env {env}: kestrel_stack_queues is not a list of queues")
    if not isinstance(name, str) or not isinstance(namespace, str):
        raise DevError(f"--env {env}: kestrel_stack_app or kestrel_stack_namespace is missing")
    return Description(
        name,
        namespace,
        found.get("consumers_python_app") or None,
        found.get("consumers_php_app") or None,
        tuple(queues),
        f"inventory {env}",
    )


def _needed(listing: dict[str, Any]) -> dict[str, Any]:
    """Leave of ``ansible-inventory --list`` what is read here."""
    hostvars = listing.get("_meta", {}).get("hostvars", {})

    def hosts_of(group: str) -> list[str]:
        entry = listing.get(group, {})
        inner = (name for child in entry.get("children", []) for name in hosts_of(child))
        return [*entry.get("hosts", []), *inner]

    return {
        "first": hosts_of("consumers") or sorted(hostvars),
        "hosts": {
            name: {key: variables[key] for key in _READ if key in variables}
            for name, variables in hostvars.items()
        },
    }


def shared_folders(app: Path) -> tuple[str, ...]:
    """Return the folders that a deploy makes for the application, by its deploy.yml."""
    from kestrel_stack.deploy.appspec import parse_app_spec
    from kestrel_stack.deploy.errors import Refused

    file = app / "deploy.yml"
    try:
        return parse_app_spec(file.read_text(encoding="utf-8"), str(file)).shared_directories
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as exc:
        raise DevError(f"{file} cannot be read: {exc}") from None
    except Refused as exc:
        raise DevError(str(exc)) from None


def of_folder(app: Path) -> Description:
    """Return what the folder's name says."""
    name = re.sub(r"[^a-z0-9-]+", "-", app.name.lower()).strip("-")[:30] or "app"
    if not name[0].isalpha():
        name = f"app-{name}"
    return Description(name, name.replace("-", "_"))


def chosen(description: Description, names: Sequence[str] | None) -> Description:
    """Apply ``--queues``: of described queues only these have workers, else these are all there are."""
    if names is None or description.queues is not None:
        return description
    queues = []
    for name in names:
        queue, _, language = name.partition(":")
        queues.append(_entry(queue, language or "python"))
    return replace(description, queues=tuple(queues), source="--queues")


def derived(jobs: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the queues of jobs, by language; of a job in both languages the first one's is taken."""
    queues: dict[str, dict[str, Any]] = {}
    for language, names in jobs.items():
        for job in names:
            queues.setdefault(snake_case(job), _entry(snake_case(job), language))
    return [queues[name] for name in sorted(queues)]


def _entry(name: str, language: str) -> dict[str, Any]:
    return {
        "name": name,
        "language": language,
        "job_timeout": JOB_TIMEOUT,
        "retry_delays": list(RETRY_DELAYS),
    }


def settings(description: Description, queues: Sequence[Mapping[str, Any]], server: str) -> dict[str, Any]:
    """Return the content of the settings file."""
    return {
        "app": description.app,
        "namespace": description.namespace,
        "environment": ENVIRONMENT,
        "servers": [server],
        "queues": [dict(queue) for queue in queues],
    }
