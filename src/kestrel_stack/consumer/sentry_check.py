"""Says whether this host can report errors: it sends one event, as a worker would.

::

    python3 -m kestrel_stack.consumer.sentry_check --config /etc/kestrel-stack/shop.json

It prints ``{"event_id": "<32 hex>", "status": 200}`` once Sentry has taken the event. Otherwise it prints one
line on stderr, with what is wrong and what mends it, and ends with 1. The DSN's key is in no line.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from kestrel_stack.consumer import sentry
from kestrel_stack.queue import settings
from kestrel_stack.queue.errors import QueueError
from kestrel_stack.queue.flags import Parser, UsageError

SECONDS = 10.0
"""For each step: somebody waits for it, but not for long."""
MAX_SAID = 200
COPY = "copy it anew from the project's settings (Client Keys) into sentry_dsn, and run the playbook"


class Wrong(Exception):  # noqa: N818 - it names what is the matter
    """The event was not taken; one line with the fix."""


def check(dsn: str, event: dict[str, Any], seconds: float = SECONDS) -> sentry.Answer:
    """Send an event and return the answer; raise `Wrong` when it is not one of a Sentry that has taken it."""
    try:
        target = sentry.Dsn.parse(dsn)
    except ValueError as exc:
        raise Wrong(str(exc)) from None
    try:
        answer = sentry.exchange(target, sentry.envelope(event), seconds)
    except sentry.Unreachable as exc:
        raise Wrong(_no_answer(target, exc, seconds)) from None
    if answer.taken and _id_in(answer.body) == event["event_id"]:
        return answer
    raise Wrong(f"{target} {_said(target, answer)}")


def _no_answer(target: sentry.Dsn, exc: sentry.Unreachable, seconds: float) -> str:
    """Return why there was no answer, and what to look at."""
    why = exc.__cause__
    if isinstance(why, TimeoutError):
        return (
            f"{target} gave no answer in {seconds:g} s: it hangs, or a firewall between it and this host "
            f"drops what is sent; try it with curl from here."
        )
    if isinstance(why, socket.gaierror):
        words = why.strerror or "unknown"
        return (
            f"The name {target.host} cannot be looked up on this host ({words}): correct the host in "
            f"sentry_dsn or sentry_url, or have this host's resolver or /etc/hosts know it."
        )
    if isinstance(why, ssl.SSLCertVerificationError):
        return (
            f"{target} has a certificate that this host does not accept ({why.verify_message}): {_mend(why)}."
        )
    if isinstance(why, ssl.SSLError):
        words = (why.reason or "handshake failed").replace("_", " ").lower()
        return (
            f"{target} does not speak TLS as it should ({words}): begin the DSN with http:// if that port "
            f"has no TLS, or correct the port."
        )
    if isinstance(why, ConnectionRefusedError):
        return (
            f"{target} refuses connections: start Sentry there, have it listen on an address that this host "
            f"reaches (sentry_listen_address or sentry_nginx), or correct host and port in the DSN."
        )
    return f"{exc} See that this host reaches it, by route and firewall."


def _mend(why: ssl.SSLCertVerificationError) -> str:
    # Numbers of OpenSSL's x509_vfy.h; the words that go with them differ between its versions.
    if why.verify_code in (62, 63, 64):
        return "use one of the names in the certificate, or issue it for this one"
    if why.verify_code in (9, 10):
        return "renew it, and see that the clock of this host is right"
    return "have this host trust its authority (update-ca-certificates), and the server send the whole chain"


def _said(target: sentry.Dsn, answer: sentry.Answer) -> str:
    """Return what the server answered and what mends it."""
    status = answer.status
    said = _words(answer.body, target.key)
    told = f"answered with status {status}" + (f" ({said})" if said else "")
    if 300 <= status < 400:
        where = urlsplit(answer.location)
        to = f"{where.scheme}://{where.netloc.rpartition('@')[2]}" if where.netloc else "another page"
        return f"{told} and leads to {to}: put that address into the DSN; events are not sent on."
    if answer.kind == "text/html" and 200 <= status < 300:
        return (
            f"{told}, but with a page for people, such as a login: something before Sentry keeps events "
            f"out, or this is not Sentry; let {target.path} through without a login, or correct the DSN."
        )
    if 200 <= status < 300:
        return f"{told}, but not with the event's id: that is not Sentry; correct the DSN."
    if status == 400 and b"plain HTTP" in answer.body:
        return f"{told}: that port speaks TLS; begin the DSN with https://."
    if status == 400:
        return (
            f"{told}: it does not understand an event; is it Sentry 20.6 or later, or Bugsink, on that port?"
        )
    if status in (401, 403):
        return f"{told}: it does not know the DSN's key or its project, or a proxy refuses this host; {COPY}."
    if status == 404:
        return f"{told}: there is no such project, or no Sentry below that path; {COPY}."
    if status == 405:
        return f"{told}: what listens there takes no events; correct the DSN."
    if status == 413:
        return f"{told}: a proxy before Sentry takes no body of this size; raise its client_max_body_size."
    if status == 429:
        return (
            f"{told}: it has enough events for now; wait {answer.wait:.0f} s, or raise the quota "
            f"(sentry_bugsink_events_per_5_minutes) or the proxy's limit (sentry_nginx_rate)."
        )
    if status in (502, 503, 504):
        return f"{told}: there is a proxy, and no Sentry behind it; start it and look into its log."
    return f"{told}: look into the log of Sentry and of what is before it."


def _words(body: bytes, key: str) -> str:
    """Return what a refusal says in JSON, in one line without the key; a page says nothing."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(found, dict):
        return ""
    text = next(
        (found[name] for name in ("detail", "message", "error") if isinstance(found.get(name), str)), ""
    )
    line = "".join(char if char.isprintable() else " " for char in text.replace(key, "…"))
    return re.sub(r"://[^/@\s]*@", "://…@", " ".join(line.split()))[:MAX_SAID]


def _id_in(body: bytes) -> str | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    told = found.get("id") if isinstance(found, dict) else None
    return told.replace("-", "").lower() if isinstance(told, str) else None


def make_event(host: str, environment: str | None) -> dict[str, Any]:
    """Return the event that is sent; of all hosts and runs it is one issue."""
    text = f"Kestrel Stack can report errors from {host}"
    event = {
        "event_id": uuid.uuid4().hex,
        "timestamp": sentry.time_text(time.time()),
        "platform": "python",
        "level": "info",
        "logger": "kestrel_stack.sentry_check",
        "logentry": {"message": text, "formatted": text},
        "server_name": host,
        "fingerprint": ["kestrel-stack-sentry-check"],
        "tags": {"kind": "check"},
        "sdk": {"name": "kestrel_stack.python", "version": sentry.__version__},
    }
    if environment:
        event["environment"] = environment
    return event


def main(arguments: Sequence[str] | None = None) -> int:
    """Send one event; return the exit status."""
    parser = Parser(
        prog="python3 -m kestrel_stack.consumer.sentry_check",
        description="Send one event to the Sentry of an application's settings; say whether it was taken.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the application's settings file")
    try:
        given = parser.parse_args(arguments)
        found = settings.load(given.config)
        if not found.sentry_dsn:
            raise Wrong(
                f"{given.config} has no sentry_dsn: choose a sentry_backend other than none and run the "
                f"playbook; until then errors go to the workers' logs only."
            )
        event = make_event(found.host or socket.gethostname(), found.environment)
        answer = check(found.sentry_dsn, event)
    except (Wrong, UsageError, QueueError) as exc:
        sys.stderr.write(f"sentry_check: {exc}\n")
        return 1
    sys.stdout.write(json.dumps({"event_id": event["event_id"], "status": answer.status}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
