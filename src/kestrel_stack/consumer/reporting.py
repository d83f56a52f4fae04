"""What the process that runs jobs does for Sentry.

With the application's own sentry_sdk, that library sends; otherwise the event goes to the parent with the
job's result, and the parent sends it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from kestrel_stack.consumer import sentry

FLUSH = 1.0
"""Seconds that events get to be sent when the process ends."""


class Own:
    """Without a library: the parent sends."""

    def __init__(self) -> None:
        self._crumbs: deque[tuple[float, str, str, Mapping[str, object]]] = deque(maxlen=sentry.MAX_CRUMBS)

    def job(self, tags: Mapping[str, object]) -> AbstractContextManager[object]:
        """Begin a job: what is kept of the one before is forgotten."""
        self._crumbs.clear()
        return contextlib.nullcontext()

    def crumb(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Keep a line that the job logs."""
        self._crumbs.append((time.time(), level, event, fields))

    def failed(
        self,
        exc: BaseException,
        error: Mapping[str, str],
        trace: TracebackType | None,
        level: str,
        tags: Mapping[str, object],
    ) -> dict[str, Any]:
        """Return what the job's result says of it."""
        event = sentry.make_event(
            error["class"],
            error["message"],
            level=level,
            tags=tags,
            frames=sentry.frames_of(trace),
            crumbs=self._crumbs,
        )
        return {"event": event}

    def close(self) -> None:
        """Nothing is left to be sent."""


class Sdk:
    """With the sentry_sdk of the application; one that it has set up itself is left as it is."""

    def __init__(self, sdk: Any, about: Mapping[str, str | None], dsn: str):
        self._sdk = sdk
        self._ours = not _is_set_up(sdk)
        if self._ours:
            from sentry_sdk.integrations.logging import LoggingIntegration
            from sentry_sdk.integrations.stdlib import StdlibIntegration

            # Not the usual integrations: they report what a job has dealt with, or change the application.
            sdk.init(
                dsn=dsn,
                default_integrations=False,
                auto_enabling_integrations=False,
                integrations=[LoggingIntegration(event_level=None), StdlibIntegration()],
                release=about["release"],
                environment=about["environment"],
                server_name=about["server_name"],
            )

    @contextlib.contextmanager
    def _scope(self, tags: Mapping[str, object]) -> Iterator[None]:
        # Version 2 keeps breadcrumbs and tags of an isolation scope; version 1 has only the other kind.
        name = "isolation_scope" if hasattr(self._sdk, "isolation_scope") else "push_scope"
        with getattr(self._sdk, name)() as scope:
            for key, value in tags.items():
                if value is not None:
                    scope.set_tag(key, str(value))
            self._current = scope
            yield

    def job(self, tags: Mapping[str, object]) -> AbstractContextManager[object]:
        """Begin a job: its tags and breadcrumbs end with it."""
        return self._scope(tags)

    def crumb(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Keep a line that the job logs."""
        data = {key: str(value)[: sentry.MAX_CRUMB_TEXT] for key, value in fields.items()}
        self._sdk.add_breadcrumb(category="job", level=level, message=event, data=data)

    def failed(
        self,
        exc: BaseException,
        error: Mapping[str, str],
        trace: TracebackType | None,
        level: str,
        tags: Mapping[str, object],
    ) -> dict[str, Any]:
        """Have the library send it, some time; return what the job's result says of it."""
        self._current.set_level(level)
        return {"sentry_event": self._sdk.capture_exception((type(exc), exc, trace))}

    def close(self) -> None:
        """Give what waits a moment to be sent."""
        if self._ours:
            self._sdk.flush(timeout=FLUSH)


def _is_set_up(sdk: Any) -> bool:
    if hasattr(sdk, "get_client"):
        return bool(sdk.get_client().is_active())
    return sdk.Hub.current.client is not None


def find(about: Mapping[str, str | None], dsn: str | None) -> Own | Sdk | None:
    """Return how to report, None without a DSN. `about`: release, environment, server_name."""
    if not dsn:
        return None
    try:
        import sentry_sdk

        return Sdk(sentry_sdk, about, dsn)
    except (
        Exception
    ):  # there is none, or none that this code knows: jobs go on, and are reported all the same
        return Own()
