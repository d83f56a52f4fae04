"""The shop's pages, a WSGI application: what is on the queues, a form to put jobs there, what was done here.

No request waits for anything slow: the jobs are put on a queue, and the workers do them. The numbers of the
queues are asked for by the page itself, so that it is there at once also while the queue is away.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from kestrel_stack.queue import Producer, Queue, QueueError, settings
from kestrel_stack.static import asset_url
from shop import history, ledger

TENANT = "acme"
TIMEOUT = 2.0
"""Seconds that a request may wait for the queue."""
MOST = 100
"""Jobs that one request may enqueue."""
BODY_BYTES = 10_000
HTML = "text/html; charset=utf-8"
HEADERS = [
    ("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; form-action 'self'"),
    ("X-Frame-Options", "DENY"),
]
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "hello_world": ("HelloWorld", {"name": "World"}),
    "hello_world_php": ("HelloWorld", {"name": "World"}),
    "mail": ("SendMail", {"to": "ada@example.org", "subject": "Your order", "text": "It is on its way.\n"}),
    "partner_api": ("PostToPartner", {"order": 4711}),
    "post_upload": ("PostUpload", {"name": "hello.txt", "content": "SGVsbG8K"}),
}
"""What the form of each queue enqueues."""

Answer = tuple[str, list[tuple[str, str]], str]


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request."""
    method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
    handler = PAGES.get((("GET" if method == "HEAD" else method), path))
    if handler is not None:
        status, headers, text = handler(environ)
    elif any(path == known for _, known in PAGES):
        status, headers, text = "405 Method Not Allowed", [("Content-Type", HTML)], "Not so.\n"
    else:
        status, headers, text = "404 Not Found", [("Content-Type", HTML)], "There is no such page.\n"
    body = text.encode()
    start_response(status, [*headers, *HEADERS, ("Content-Length", str(len(body)))])
    return [] if method == "HEAD" else [body]


def front(environ: dict[str, Any]) -> Answer:
    """Show the queues of the settings, their forms, and what this host's workers did last."""
    asked = {key: values[-1] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    text = PAGE.format(
        css=html.escape(asset_url("css/shop.css")),
        js=html.escape(asset_url("js/shop.js")),
        logo=html.escape(asset_url("img/logo.svg")),
        release=html.escape(release()),
        message=_message(asked),
        queues="".join(_queue_row(queue) for queue in settings.load().queues),
        enqueued=_table(
            "enqueued",
            ("at", "queue", "jobs", "how"),
            [(row["at"], row["queue"], row["jobs"], row["result"]) for row in history.recent()],
            "Nothing yet.",
        ),
        results=_results(),
    )
    return "200 OK", [("Content-Type", HTML)], text


def enqueue(environ: dict[str, Any]) -> Answer:
    """Put jobs on a queue, and send the browser back to the front page, which says how it went."""
    if not _own_form(environ):
        return "403 Forbidden", [("Content-Type", HTML)], "This form is the shop's own.\n"
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > BODY_BYTES:
        return "413 Content Too Large", [("Content-Type", HTML)], "That is too much.\n"
    given = {
        key: values[-1]
        for key, values in parse_qs(environ["wsgi.input"].read(length).decode(errors="replace")).items()
    }
    queue, count = given.get("queue", ""), given.get("count", "1")
    if queue not in FORMS or not re.fullmatch(r"[0-9]{1,4}", count) or not 1 <= int(count) <= MOST:
        return "400 Bad Request", [("Content-Type", HTML)], "The form was not filled in like that.\n"
    job, data = FORMS[queue]
    began = time.monotonic()
    done = 0
    try:
        with Producer.from_settings(TENANT, timeout=TIMEOUT) as producer:
            for _ in range(int(count)):
                producer.enqueue(job, data, queue=queue)
                done += 1
    except QueueError as error:
        said = {"failed": str(error), "done": done}
        result = str(error)
    else:
        milliseconds = f"{(time.monotonic() - began) * 1000:.1f}"
        said = {"done": done, "queue": queue, "ms": milliseconds}
        result = f"in {milliseconds} ms"
    # What is shown only is no reason to fail.
    with contextlib.suppress(OSError):
        history.note(queue, done, result)
    # The page after a post is got anew, so that reloading it enqueues nothing.
    return "303 See Other", [("Location", f"/?{urlencode(said)}"), ("Content-Type", HTML)], ""


def queues(environ: dict[str, Any]) -> Answer:
    """Count what is on the queues, for the page to show."""
    found = settings.load()
    try:
        servers = ",".join(map(str, found.servers))
        with Queue.open(
            f"kestrel://{servers}/{found.namespace}", queues=tuple(found.queues.values())
        ) as store:
            counts = {queue: store.count(queue) for queue in found.queues}
    except QueueError as error:
        return "200 OK", [("Content-Type", "application/json")], json.dumps({"error": str(error)})
    numbers = {
        queue: {
            "ready": count.ready,
            "reserved": count.reserved,
            "delayed": sum(count.delayed.values()),
            "parked": count.parked,
        }
        for queue, count in counts.items()
    }
    return "200 OK", [("Content-Type", "application/json")], json.dumps({"queues": numbers})


def health(environ: dict[str, Any]) -> Answer:
    """Say that this release can answer; without a look at the queue, whose absence a page survives."""
    settings.load()
    return "200 OK", [("Content-Type", "text/plain; charset=utf-8")], f"ok {release()}\n"


PAGES: dict[tuple[str, str], Callable[[dict[str, Any]], Answer]] = {
    ("GET", "/"): front,
    ("POST", "/enqueue"): enqueue,
    ("GET", "/queues"): queues,
    ("GET", "/health"): health,
}


def release() -> str:
    """Return the name of the release that this code is of."""
    return os.environ.get("KESTREL_STACK_RELEASE") or Path(__file__).resolve().parent.parent.name


def _own_form(environ: dict[str, Any]) -> bool:
    # Browsers send the first to https and localhost only, and the second with every form that is posted.
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        return False
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or re.sub(r"^https?://", "", origin) == environ.get("HTTP_HOST")


def _message(asked: dict[str, str]) -> str:
    if "failed" in asked:
        text = f"{asked.get('done', '0')} enqueued, then: {asked['failed']}"
        return f'<p class="message bad">{html.escape(text)}</p>'
    if "done" in asked:
        text = f"{asked['done']} enqueued on {asked.get('queue', '?')} in {asked.get('ms', '?')} ms"
        return f'<p class="message ok">{html.escape(text)}</p>'
    return ""


def _queue_row(queue: str) -> str:
    name = html.escape(queue)
    cells = "".join(
        f'<td class="number" data-count="{count}">–</td>'
        for count in ("ready", "reserved", "delayed", "parked")
    )
    form = FORM.format(queue=name, job=FORMS[queue][0], most=MOST) if queue in FORMS else ""
    return f'<tr data-queue="{name}"><th scope="row">{name}</th>{cells}<td>{form}</td></tr>\n'


def _results() -> str:
    try:
        rows = ledger.recent()
    except (OSError, sqlite3.Error):
        rows = []
    nothing = "Nothing: the workers are on other hosts, and each keeps its own ledger."
    return _table("results", ("done at", "job", "tenant", "by release"), rows, nothing)


def _table(name: str, head: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> str:
    if not rows:
        return f'<p class="hint">{nothing}</p>'
    titles = "".join(f"<th>{title}</th>" for title in head)
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell or '–'))}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return f'<table class="{name}"><thead><tr>{titles}</tr></thead><tbody>\n{cells}</tbody></table>'


FORM = (
    '<form method="post" action="/enqueue"><input type="hidden" name="queue" value="{queue}">'
    '<input type="number" name="count" value="1" min="1" max="{most}" aria-label="How many">'
    '<button type="submit">{job}</button></form>'
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop</title>
<link rel="icon" href="{logo}">
<link rel="stylesheet" href="{css}">
<script src="{js}" defer></script>
</head>
<body>
<header>
<img class="logo" src="{logo}" alt="" width="48" height="48">
<h1>Shop</h1>
<p class="release">release {release}, in Python</p>
</header>
<main>
{message}
<h2>Queues</h2>
<p id="queues-error"></p>
<table class="queues">
<thead><tr><th>queue</th><th>ready</th><th>in work</th><th>delayed</th><th>parked</th><th>enqueue</th></tr>
</thead>
<tbody>
{queues}</tbody>
</table>
<h2>Enqueued on this host</h2>
{enqueued}
<h2>Done on this host</h2>
{results}
</main>
</body>
</html>
"""
