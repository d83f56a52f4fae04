"""What follows a deploy: Sentry and Bugsink learn of the release, a webhook gets a message.

By then the hosts run what they should run. So nothing here may fail a deploy or hold it up: every step is
bounded, and what does not work is one line of warning. Tokens come from the environment alone. Neither they
nor a webhook's address, which usually holds one as well, is ever shown.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import Refused
from .keys import mapping

TIMEOUT = 10.0
"""Seconds that Sentry and Bugsink each get for all of their requests, and the webhook for its one."""
MAX_COMMITS = 200
"""The newest commits of a deploy that Sentry is told of; it matches errors with them by their files."""
TOKEN = "SENTRY_AUTH_TOKEN"  # noqa: S105 - the name of the variable
BUGSINK_TOKEN = "BUGSINK_AUTH_TOKEN"  # noqa: S105 - the name of the variable
SENTRY_URL = "https://sentry.io"

_ENVIRONMENT_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\Z")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_SENTRY_HINTS = {
    401: f"; is what {TOKEN} holds right?",
    403: "; the token needs the scope project:releases",
    404: "; are url, organization and projects right (a Bugsink is told by after.bugsink)?",
}
_BUGSINK_HINTS = {
    401: f"; is what {BUGSINK_TOKEN} holds right?",
    403: "; the token needs releases:create, and projects:read where a project is given by its slug",
    404: "; is url that of a Bugsink?",
}
_REV = re.compile(r"[0-9a-f]{7,64}\Z")
_KEYS = {
    "after": ("sentry", "bugsink", "webhook", "environments"),
    "after.sentry": ("url", "organization", "projects"),
    "after.bugsink": ("url", "projects"),
}
_SENTRY_SCOPE = "scope project:releases"
_BUGSINK_SCOPE = "releases:create and projects:read"
_MAX_ANSWER = 4 * 1024 * 1024
_MAX_PAGES = 20
"""Of Bugsink's list of projects, 250 on each."""


@dataclass(frozen=True)
class Sentry:
    """A Sentry that is told of a deploy."""

    organization: str
    projects: tuple[str, ...]
    """Slugs of the projects whose errors come from this application."""
    url: str = SENTRY_URL


@dataclass(frozen=True)
class Bugsink:
    """A Bugsink that is told of a release. It has no organizations, commits and deploys."""

    url: str
    projects: tuple[str | int, ...]
    """Slugs of the projects whose errors come from this application, or their numbers."""


@dataclass(frozen=True)
class AfterSpec:
    """Who is told of a deploy; empty: nobody."""

    sentry: Sentry | None = None
    webhook: str = field(default="", repr=False)
    """Where a message is posted: an address, or ``$NAME`` for one in this variable; empty: nowhere."""
    bugsink: Bugsink | None = None
    environments: tuple[str, ...] = ()
    """Only deploys to these are told, as `Deployed.reported` calls them; empty: all."""

    def tells(self, environment: str) -> bool:
        """Say whether anybody hears of deploys to this environment."""
        return not self.environments or environment in self.environments


@dataclass(frozen=True)
class Deployed:
    """A deploy or rollback that has ended, as it is told."""

    app: str
    environment: str
    release: str
    """The release's name, which is what the workers report their errors with."""
    rev: str
    hosts: tuple[str, ...]
    seconds: float
    action: str = "deploy"
    """``deploy``, ``rollback``."""
    result: str = "ok"
    """``ok`` or ``failed``."""
    reason: str = ""
    """Why it failed."""
    previous: str = ""
    """Name of the release before; empty when there was none."""
    previous_rev: str = ""
    ref: str = ""
    by: str = ""
    repository: Path | None = None
    """Where git finds the commits; None: they are not told."""
    path: str = ""
    """The application's folder inside the repository, whose commits count; empty: all of them."""
    started_at: datetime | None = None
    reported: str = ""
    """The environment that workers report their errors with; empty: ``environment``."""

    @property
    def known_as(self) -> str:
        """The environment as Sentry knows it from events; an inventory's name may be another, even a path."""
        return self.reported or self.environment


# --- deploy.yml ---------------------------------------------------------------------------------------


def parse_after(value: Any, where: str) -> AfterSpec:
    """Read the key ``after`` of a deploy.yml. Raises Refused naming the key and the fix."""
    if value is None:
        return AfterSpec()
    data = mapping(value, "after", _KEYS["after"], where)
    sentry, bugsink = data.get("sentry"), data.get("bugsink")
    return AfterSpec(
        None if sentry is None else _sentry(sentry, where),
        _webhook(data.get("webhook"), where),
        None if bugsink is None else _bugsink(bugsink, where),
        _environments(data.get("environments"), where),
    )


def _environments(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise Refused(
            f"{where}: after.environments is {value!r}; it must be a list of names as in"
            " kestrel_stack_environment, like [production]"
        )
    return tuple(value)


def _sentry(value: Any, where: str) -> Sentry:
    data = mapping(value, "after.sentry", _KEYS["after.sentry"], where)
    organization, projects = data.get("organization"), data.get("projects")
    if not isinstance(organization, str) or not _SLUG.match(organization):
        raise Refused(
            f"{where}: after.sentry.organization is {organization!r}; it must be its slug in Sentry"
        )
    if (
        not isinstance(projects, list)
        or not projects
        or not all(isinstance(one, str) and _SLUG.match(one) for one in projects)
    ):
        raise Refused(f"{where}: after.sentry.projects is {projects!r}; it must be a list of projects' slugs")
    url = data.get("url", SENTRY_URL)
    if not _is_base(url):
        # Not repeated: who puts a token here must not find it in a log as well.
        raise Refused(
            f"{where}: after.sentry.url must be an address such as {SENTRY_URL}, and hold no password"
        )
    return Sentry(organization, tuple(projects), url.rstrip("/"))


def _bugsink(value: Any, where: str) -> Bugsink:
    data = mapping(value, "after.bugsink", _KEYS["after.bugsink"], where)
    url, projects = data.get("url"), data.get("projects")
    if not _is_base(url):
        raise Refused(
            f"{where}: after.bugsink.url must be an address such as https://errors.example.com, and hold no"
            " password"
        )
    if not isinstance(projects, list) or not projects or not all(map(_is_project, projects)):
        raise Refused(
            f"{where}: after.bugsink.projects is {projects!r}; it must be a list of projects' slugs, or of"
            " their numbers (the end of a DSN)"
        )
    return Bugsink(url.rstrip("/"), tuple(projects))


def _is_project(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_SLUG.match(value))
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _webhook(value: Any, where: str) -> str:
    if value in (None, ""):
        return ""
    if not isinstance(value, str) or not (_ENVIRONMENT_NAME.match(value) or _is_address(value)):
        raise Refused(
            f"{where}: after.webhook must be an address (https://…), or $NAME for what this variable holds"
        )
    return value


def _is_address(value: Any) -> bool:
    if not isinstance(value, str) or not value.isascii() or any(c <= " " for c in value):
        return False
    try:
        parts = urllib.parse.urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _is_base(value: Any) -> bool:
    """Say whether paths can be put behind an address."""
    return _is_address(value) and not any(urllib.parse.urlsplit(value)[3:])


def problems(spec: AfterSpec, environ: Mapping[str, str] | None = None) -> list[str]:
    """Say what would keep the ones named in ``spec`` from being told, each with its fix."""
    environ = os.environ if environ is None else environ
    found = []
    if spec.sentry is not None and not environ.get(TOKEN):
        found.append(f"Sentry cannot be told of a deploy: set {TOKEN} in the environment ({_SENTRY_SCOPE})")
    if spec.bugsink is not None and not environ.get(BUGSINK_TOKEN):
        found.append(
            f"Bugsink cannot be told of a deploy: set {BUGSINK_TOKEN} in the environment ({_BUGSINK_SCOPE})"
        )
    try:
        _webhook_address(spec, environ)
    except _NotTold as error:
        found.append(f"the webhook cannot be told of a deploy: {error}")
    return found


# --- telling ------------------------------------------------------------------------------------------


class _NotTold(Exception):  # noqa: N818 - it names the outcome
    """Why somebody was not told; the message holds no secret."""


def after_deploy(
    spec: AfterSpec,
    done: Deployed,
    *,
    warn: Callable[[str], None],
    say: Callable[[str], None] = lambda _: None,
    environ: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Tell everybody in ``spec``, at once, within ``timeout`` seconds. Never raises.

    ``say`` gets a line for each who was told, ``warn`` one for each who was not. Sentry and Bugsink hear of
    what went well, the webhook of failures, too.
    """
    environ = os.environ if environ is None else environ
    if not spec.tells(done.known_as):
        return
    tasks: list[tuple[str, Callable[[], str]]] = []
    if spec.sentry is not None and done.result == "ok":
        tasks.append(("Sentry", lambda: _tell_sentry(spec.sentry, done, environ, timeout)))
    if spec.bugsink is not None and done.result == "ok":
        tasks.append(("Bugsink", lambda: _tell_bugsink(spec.bugsink, done, environ, timeout)))
    if spec.webhook:
        tasks.append(("the webhook", lambda: _tell_webhook(spec, done, environ, timeout)))
    running = [(name, _start(action)) for name, action in tasks]
    # One second more than each needs, for all of them together.
    until = time.monotonic() + timeout + 1
    for name, (thread, outcome) in running:
        # A server that answers a byte at a time never times out by itself.
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            warn(f"{name} was not told of it: no whole answer within {timeout:.0f} s")
        elif "told" in outcome:
            say(outcome["told"])
        else:
            warn(f"{name} was not told of it: {outcome['reason']}")


def _start(action: Callable[[], str]) -> tuple[threading.Thread, dict[str, str]]:
    outcome: dict[str, str] = {}

    def run() -> None:
        try:
            outcome["told"] = action()
        except _NotTold as error:
            outcome["reason"] = str(error)
        except Exception as error:
            # The kind alone: a library's sentence may repeat the address or a header.
            outcome["reason"] = f"{type(error).__name__}"

    thread = threading.Thread(target=run, name="after", daemon=True)
    thread.start()
    return thread, outcome


def _tell_sentry(sentry: Sentry, done: Deployed, environ: Mapping[str, str], timeout: float) -> str:
    token = _token(environ, TOKEN, _SENTRY_SCOPE)
    releases = f"{sentry.url}/api/0/organizations/{sentry.organization}/releases/"
    finished = datetime.now(UTC)
    commits = commits_of(done)
    about: dict[str, Any] = {
        "version": done.release,
        "projects": list(sentry.projects),
        "dateReleased": _moment(finished),
    }
    if done.rev:
        about["ref"] = done.rev
    if commits:
        about["commits"] = commits
    marker: dict[str, Any] = {
        "environment": done.known_as,
        "name": f"{done.action} by {done.by}" if done.by else done.action,
        "projects": list(sentry.projects),
        "dateFinished": _moment(finished),
    }
    if done.started_at is not None:
        marker["dateStarted"] = _moment(done.started_at)
    version = urllib.parse.quote(done.release, safe="")
    # A release that is known already, as after a rollback, is answered with 208.
    for address, content in ((releases, about), (f"{releases}{version}/deploys/", marker)):
        _send(
            address,
            content,
            timeout / 2,
            secrets=(token,),
            headers={"Authorization": f"Bearer {token}"},
            hints=_SENTRY_HINTS,
        )
    told = f", {len(commits)} commit{'s' if len(commits) != 1 else ''}" if commits else ""
    return f"Sentry knows release {done.release}{told} and its deploy to {done.known_as}"


def _tell_bugsink(bugsink: Bugsink, done: Deployed, environ: Mapping[str, str], timeout: float) -> str:
    token = _token(environ, BUGSINK_TOKEN, _BUGSINK_SCOPE)
    until = time.monotonic() + timeout
    api = f"{bugsink.url}/api/canonical/0"

    def ask(address: str, content: Any = None) -> Any:
        return _send(
            address,
            content,
            max(until - time.monotonic(), 0.01),
            secrets=(token,),
            headers={"Authorization": f"Bearer {token}"},
            hints=_BUGSINK_HINTS,
            # As when a worker of the new release has reported an error already.
            fine=lambda status, said: status == 400 and _is_known_already(said),
        )

    for number in _project_numbers(bugsink.projects, api, ask):
        about = {"project": number, "version": done.release, "timestamp": _moment(datetime.now(UTC))}
        ask(f"{api}/releases/", about)
    return f"Bugsink knows release {done.release} in {', '.join(map(str, bugsink.projects))}"


def _project_numbers(projects: Sequence[str | int], api: str, ask: Callable[[str], Any]) -> list[int]:
    """Return the projects' numbers; asks for the list of them when some are given by their slugs."""
    slugs: dict[str, int] = {}
    query = ""
    for _ in range(_MAX_PAGES):
        if all(isinstance(one, int) or one in slugs for one in projects):
            break
        answer = ask(f"{api}/projects/{query}")
        try:
            slugs |= {str(one["slug"]): int(one["id"]) for one in answer["results"]}
            onward = answer["next"]
        except (TypeError, KeyError, ValueError):
            raise _NotTold("its list of projects is none; is url that of a Bugsink?") from None
        if not onward:
            break
        # Its address is as Bugsink knows itself, which behind a proxy may be another.
        query = f"?{urllib.parse.urlsplit(str(onward)).query}"
    for one in projects:
        if isinstance(one, str) and one not in slugs:
            there = ", ".join(sorted(slugs)[:20]) or "none that the token may see"
            raise _NotTold(f"it has no project {one}; there are {there}")
    return [one if isinstance(one, int) else slugs[one] for one in projects]


def _is_known_already(said: str) -> bool:
    return said.startswith('{"version"') and "already exists" in said


def _token(environ: Mapping[str, str], name: str, scope: str) -> str:
    token = environ.get(name, "").strip()
    if not token:
        raise _NotTold(f"set {name} in the environment ({scope})")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _NotTold(f"what {name} holds is no token")
    return token


def _tell_webhook(spec: AfterSpec, done: Deployed, environ: Mapping[str, str], timeout: float) -> str:
    address = _webhook_address(spec, environ)
    content = {
        "text": message(done),
        "app": done.app,
        "environment": done.environment,
        "action": done.action,
        "result": done.result,
        "release": done.release,
        "previous": done.previous or None,
        "rev": done.rev,
        "ref": done.ref,
        "by": done.by,
        "hosts": list(done.hosts),
        "seconds": round(done.seconds, 1),
        "reason": done.reason or None,
    }
    _send(address, content, timeout, secrets=_secrets_in(address))
    return f"The webhook at {urllib.parse.urlsplit(address).hostname} was told"


def message(done: Deployed) -> str:
    """Return the line that a chat shows."""
    count = f"{len(done.hosts)} host{'s' if len(done.hosts) != 1 else ''}"
    about = ", ".join(part for part in (done.ref, done.rev[:8]) if part)
    what = f"{done.release} ({about})" if about else done.release
    who = f", by {done.by}" if done.by else ""
    if done.result == "ok":
        verb = "rolled back to" if done.action == "rollback" else "deployed"
        return f"[{done.environment}] {done.app}: {verb} {what} on {count} in {done.seconds:.0f} s{who}"
    reason = " ".join(done.reason.split())[:500]
    return (
        f"[{done.environment}] {done.app}: {done.action} of {what} to {count} failed after"
        f" {done.seconds:.0f} s{who}" + (f": {reason}" if reason else "")
    )


def commits_of(done: Deployed) -> list[dict[str, str]]:
    """Return the commits between the revisions, the newest first, as Sentry wants them.

    Without a revision before, or with one that git does not know, it is the new commit alone. Empty when git
    cannot be asked, and when the way went back.
    """
    if done.repository is None or not _REV.match(done.rev):
        return []
    found = None
    if _REV.match(done.previous_rev):
        found = _git_log(done.repository, [f"{done.previous_rev}..{done.rev}"], done.path)
    if found is None:
        found = _git_log(done.repository, ["-1", done.rev], "")
    return found or []


def _git_log(repository: Path, span: Sequence[str], path: str) -> list[dict[str, str]] | None:
    command = ["git", "--literal-pathspecs", "-C", str(repository), "log", f"--max-count={MAX_COMMITS}", "-z"]
    # Unit separators between the fields; with -z a commit ends with a zero byte.
    command += ["--format=%H%x1f%an%x1f%ae%x1f%aI%x1f%B", *span, "--", *([path] if path else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT / 2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode != 0:
        return None
    keys = ("id", "author_name", "author_email", "timestamp", "message")
    records = [record for record in done.stdout.decode("utf-8", "replace").split("\0") if record]
    return [dict(zip(keys, record.strip("\n").split("\x1f", 4), strict=True)) for record in records]


def _webhook_address(spec: AfterSpec, environ: Mapping[str, str]) -> str:
    match = _ENVIRONMENT_NAME.match(spec.webhook)
    if match is None:
        return spec.webhook
    address = environ.get(match[1], "").strip()
    if not address:
        raise _NotTold(f"set {match[1]} in the environment to its address")
    if not _is_address(address):
        raise _NotTold(f"what {match[1]} holds is no address (https://…)")
    return address


def _secrets_in(address: str) -> list[str]:
    """Return what must not be shown of a webhook's address: all but the host, and its longer parts alone."""
    parts = urllib.parse.urlsplit(address)
    rest = address.partition(parts.netloc)[2]
    pieces = {piece for piece in re.split(r"[/?&=;]", rest) if len(piece) >= 6}
    known = {address, *pieces, *map(urllib.parse.unquote, pieces)}
    known |= {rest} if len(rest) > 1 else set()
    # The longest first: a part that is taken out of it would let the others stand.
    return sorted(known, key=len, reverse=True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: what is sent is meant for the one who was named, and holds a token."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _send(
    address: str,
    content: Any,
    timeout: float,
    *,
    secrets: Sequence[str],
    headers: Mapping[str, str] | None = None,
    hints: Mapping[int, str] | None = None,
    fine: Callable[[int, str], bool] | None = None,
) -> Any:
    """POST JSON, or GET without ``content``; return the answer when that is JSON.

    Raises _NotTold with a sentence in which none of ``secrets`` is. ``hints`` say what to do about a status;
    ``fine`` says of a status and a text that this refusal is as good as a yes.
    """
    request = urllib.request.Request(  # noqa: S310 - http and https alone got through parse_after
        address,
        data=None if content is None else json.dumps(content).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "kestrel-stack-deploy", **(headers or {})},
        method="GET" if content is None else "POST",
    )
    where = urllib.parse.urlsplit(address).hostname
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as answer:
            return _json(answer.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
        said = _said(error)
        if fine is not None and fine(error.code, said):
            return _json(said.encode())
        raise _NotTold(f"{where} answered {_refusal(error.code, said, secrets, hints or {})}") from None
    except urllib.error.URLError as error:
        raise _NotTold(f"{where}: {_reason(error.reason, timeout)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _NotTold(f"{where}: {_reason(error, timeout)}") from None


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""


def _refusal(status: int, said: str, secrets: Sequence[str], hints: Mapping[int, str]) -> str:
    text = str(status)
    if 300 <= status < 400:
        text += " (a redirect, which is not followed: name the address that it leads to)"
    for secret in secrets:
        said = said.replace(secret, "…")
    said = " ".join("".join(c if c.isprintable() else " " for c in said).split())[:200]
    if said.startswith(("{", "[")):
        # An API explains itself in JSON; a page of HTML says nothing to anybody here.
        text += f" {said}"
    return text + hints.get(status, "")


def _reason(error: object, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
