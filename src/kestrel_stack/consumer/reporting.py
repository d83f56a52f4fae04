"""What the process that runs jobs does for Sentry.

With the application's own sentry_sdk that library makes the event and, where the application has not set it
up itself, hands it to the parent; otherwise the event goes to the parent with the job's result. The parent
sends.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from kestrel_stack.consumer import sentry
from kestrel_stack.queue.envelope import clean_text

FLUSH = 1.0
"""Seconds that events of an application's own set-up get to be sent when the process ends."""

Contexts = Callable[[], Mapping[str, Mapping[str, object]]]
"""Makes what an event has of a job beside its tags; most jobs have no event."""


class Own:
    """Without a library: the parent sends."""

    def __init__(self) -> None:
        self._crumbs: deque[tuple[float, str, str, Mapping[str, object]]] = deque(maxlen=sentry.MAX_CRUMBS)
        self._contexts: Contexts = dict
        self._repeats = sentry.Repeats()

    def job(self, tags: Mapping[str, object], contexts: Contexts) -> AbstractContextManager[object]:
        """Begin a job: what is kept of the one before is forgotten."""
        self._crumbs.clear()
        self._contexts = contexts
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
        # Held back here, since to make an event takes longer than many a job; the parent holds back as well,
        # for a child that is replaced forgets.
        key = sentry.kind_of(error["class"], error["message"], level, tags["job"])
        if self._repeats.count(key) is None:
            return {"repeated": key}
        event = sentry.make_event(
            error["class"],
            error["message"],
            level=level,
            tags=tags,
            frames=sentry.frames_of(trace),
            causes=_causes(exc),
            crumbs=self._crumbs,
            contexts=self._contexts(),
            modules=_modules(),
        )
        # The parent refuses a message that is too large, and takes its sender for broken. It is the parent
        # that says how many were held back: it knows of those of the children before, too.
        return {"event": sentry.fitting(event)}

    def close(self) -> None:
        """Nothing is left to be sent."""


class Sdk:
    """With the sentry_sdk of the application; one that it has set up itself is left as it is.

    `pass_on` takes an envelope for the parent.
    """

    def __init__(self, sdk: Any, about: Mapping[str, str | None], dsn: str, pass_on: Callable[[bytes], None]):
        self._sdk = sdk
        self._ours = not _is_set_up(sdk)
        self._repeats = sentry.Repeats()
        self._last: dict[object, str] = {}
        if self._ours:
            from sentry_sdk.integrations.logging import LoggingIntegration
            from sentry_sdk.integrations.modules import ModulesIntegration
            from sentry_sdk.integrations.stdlib import StdlibIntegration

            # What a function's variables hold is the job's data. Version 1.20 and before have the other name.
            known = sdk.consts.DEFAULT_OPTIONS
            no_variables = "include_local_variables" if "include_local_variables" in known else "with_locals"
            # Not the usual integrations: they report what a job has dealt with, or change the application.
            sdk.init(
                dsn=dsn,
                default_integrations=False,
                auto_enabling_integrations=False,
                integrations=[
                    LoggingIntegration(event_level=None),
                    StdlibIntegration(),
                    ModulesIntegration(),
                ],
                release=about["release"],
                environment=about["environment"],
                server_name=about["server_name"],
                transport=_transport(sdk, pass_on),
                **{no_variables: False},
            )

    @contextlib.contextmanager
    def _scope(self, tags: Mapping[str, object], contexts: Contexts) -> Iterator[None]:
        # Version 2 keeps breadcrumbs and tags of an isolation scope; version 1 has only the other kind.
        name = "isolation_scope" if hasattr(self._sdk, "isolation_scope") else "push_scope"
        with getattr(self._sdk, name)() as scope:
            for key, value in tags.items():
                if value is not None:
                    scope.set_tag(key, str(value))
            job = str(tags["job"])
            scope.fingerprint = sentry.fingerprint(job)
            # What the library cannot take of these is no reason not to report.
            with contextlib.suppress(Exception):
                scope.set_transaction_name(job)
                found = contexts()
                for key, content in found.items():
                    if key != "trace":
                        scope.set_context(key, dict(content))
                if trace := found.get("trace"):
                    sent = f"{trace['trace_id']}-{trace['parent_span_id']}"
                    scope.generate_propagation_context({"sentry-trace": sent})
            self._current = scope
            yield

    def job(self, tags: Mapping[str, object], contexts: Contexts) -> AbstractContextManager[object]:
        """Begin a job: its tags and breadcrumbs end with it."""
        return self._scope(tags, contexts)

    def crumb(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Keep a line that the job logs."""
        data = {key: str(value)[: sentry.MAX_CRUMB_TEXT] for key, value in fields.items()}
        text = sentry.crumb_text(event, fields)
        self._sdk.add_breadcrumb(category="job", level=level, message=text, data=data)

    def failed(
        self,
        exc: BaseException,
        error: Mapping[str, str],
        trace: TracebackType | None,
        level: str,
        tags: Mapping[str, object],
    ) -> dict[str, Any]:
        """Have the library make the event; return what the job's result says of it."""
        key = sentry.kind_of(error["class"], error["message"], level, tags["job"])
        repeated = self._repeats.count(key)
        if repeated is None:
            return {"sentry_event": self._last.get(key), "repeated": key}
        self._current.set_level(level)
        if repeated:
            self._current.set_extra(sentry.REPEATED, repeated)
        event_id = self._capture((type(exc), exc, trace))
        if event_id is not None:
            if len(self._last) >= sentry.MAX_ERRORS:
                self._last.clear()
            self._last[key] = event_id
        return {"sentry_event": event_id}

    def _capture(self, found: tuple[type[BaseException], BaseException, TracebackType | None]) -> str | None:
        try:
            from sentry_sdk.utils import event_from_exception

            client = (
                self._sdk.get_client() if hasattr(self._sdk, "get_client") else self._sdk.Hub.current.client
            )
            # Nobody has dealt with it: it ended the job.
            how = {"type": "kestrel_stack", "handled": False}
            event, hint = event_from_exception(found, client_options=client.options, mechanism=how)
        except Exception:  # a version that has this otherwise; the rest is the same
            return self._sdk.capture_exception(found)
        return self._sdk.capture_event(event, hint=hint)

    def close(self) -> None:
        """Give what waits a moment to be sent."""
        if not self._ours:
            self._sdk.flush(timeout=FLUSH)


def _transport(sdk: Any, pass_on: Callable[[bytes], None]) -> Any:
    """Return what the library takes for its connection to Sentry: the parent, whom no job waits for."""
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class ToParent(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            # Only errors: what else the library would send, such as sessions, was not asked for.
            if envelope.get_event() is not None:
                envelope.headers.setdefault("sent_at", sentry.time_text(time.time()))
                pass_on(envelope.serialize())

        def capture_event(self, event: Any) -> None:  # version 1
            made = Envelope(headers={"event_id": event["event_id"]})
            made.add_event(event)
            self.capture_envelope(made)

    return ToParent


def _is_set_up(sdk: Any) -> bool:
    if hasattr(sdk, "get_client"):
        return bool(sdk.get_client().is_active())
    return sdk.Hub.current.client is not None


def _causes(exc: BaseException) -> list[dict[str, Any]]:
    """Return the errors that led to one, the first of them first, as Python shows them in a traceback."""
    found: list[dict[str, Any]] = []
    seen = {id(exc)}
    while len(found) < sentry.MAX_CAUSES:
        named = exc.__cause__
        cause = named or (None if exc.__suppress_context__ else exc.__context__)
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        kind = type(cause)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        try:
            text = clean_text(str(cause)[: sentry.MAX_CAUSE_TEXT])
        except Exception:
            text = f"<{kind.__name__}>"
        how = {"type": "chained", "handled": True, "source": "__cause__" if named else "__context__"}
        made = sentry.exception(name, text, sentry.frames_of(cause.__traceback__))
        found.append(made | {"mechanism": how})
        exc = cause
    return found[::-1]


@functools.cache
def _modules() -> dict[str, str]:
    """Return what is installed for the application, by name: the same list as the library would send."""
    found: dict[str, str] = {}
    with contextlib.suppress(Exception):
        for distribution in importlib.metadata.distributions():
            name, version = distribution.metadata["Name"], distribution.version
            if name and version:
                found.setdefault(name.lower(), version)
    return found


def find(
    about: Mapping[str, str | None], dsn: str | None, pass_on: Callable[[bytes], None]
) -> Own | Sdk | None:
    """Return how to report, None without a DSN. `about`: release, environment, server_name."""
    if not dsn:
        return None
    try:
        import sentry_sdk

        return Sdk(sentry_sdk, about, dsn, pass_on)
    except (
        Exception
    ):  # there is none, or none that this code knows: jobs go on, and are reported all the same
        return Own()
