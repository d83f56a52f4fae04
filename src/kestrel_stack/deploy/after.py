"""What follows a deploy: its record, a release and a deploy marker in Sentry, a webhook."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AfterSpec:
    """Who is told of a deploy; empty: nobody."""
