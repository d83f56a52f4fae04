"""Where the event of a parked job is, in Sentry, Bugsink or what else takes errors.

The address is the configuration's; a parked record gives nothing but the event's id. Records can be written
by whoever reaches a queue, so an id that is not of an event's form is never put into a link.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

ID, UUID = "{event_id}", "{event_uuid}"
"""What stands for the event in an address: 32 hexadecimal digits, or the same with hyphens."""

_EVENT = re.compile(
    "[0-9a-fA-F]{32}|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
)
_NEVER = re.compile(r"[^!-~]|[\"'<>\\^`|{}]")
"""What no address holds, once the placeholder is out of it."""


def problem(template: str) -> str | None:
    """Return what is wrong with an address that events are put into, to follow its name; None: nothing."""
    if template.count(ID) + template.count(UUID) != 1:
        return f"must have {ID} or {UUID} in it, once"
    rest = template.replace(ID, "").replace(UUID, "")
    try:
        parts = urlsplit(template)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or _NEVER.search(rest) or "{" in parts.netloc:
        return f"must be an address like https://errors.example.org/issues/event/{UUID}/"
    if "@" in parts.netloc:
        return "must hold no user and no password: everybody who looks at parked jobs sees it"
    return None


def address(template: str, event: str | None) -> str | None:
    """Return where an event is; None without an address, and for what is not the id of an event."""
    if not template or event is None or not _EVENT.fullmatch(event):
        return None
    plain = event.replace("-", "").lower()
    marks = (plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:])
    return template.replace(ID, plain).replace(UUID, "-".join(marks))
