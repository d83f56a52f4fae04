"""What deploy.yml says of assets: read and checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ..errors import Refused
from ..keys import mapping

URL = "/assets/"
"""Where role web serves /srv/<app>/assets."""
ACLS = ("private", "public-read")


@dataclass(frozen=True)
class S3:
    """A bucket of Amazon's or any other service that speaks its protocol."""

    bucket: str
    prefix: str = ""
    """Put before every name; empty or ending in a slash."""
    endpoint: str | None = None
    """Address of a service other than Amazon's."""
    region: str | None = None
    """None: as the environment or ~/.aws/config says."""
    acl: str | None = None
    """One of ACLS, for services that keep objects private unless told; None: the bucket's policy decides."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class Rsync:
    """A folder that rsync reaches: ``host:/path``, ``rsync://host/module/path`` or a path on this machine."""

    target: str

    def __str__(self) -> str:
        return self.target


@dataclass(frozen=True)
class AssetsSpec:
    """Folders whose files get a name by their content."""

    folders: tuple[str, ...] = ()
    url: str = URL
    """Where browsers find them: a path on the web hosts or a CDN's address, with a slash at its end."""
    ignore: tuple[str, ...] = ()
    """Patterns of names that are left out; see `ignored`."""
    cdn: S3 | Rsync | None = None
    """The CDN's origin, which gets the files before the first host is switched."""


_KEYS = {
    "assets": ("folders", "url", "ignore", "cdn"),
    "assets.cdn": ("s3", "rsync"),
    "assets.cdn.s3": ("bucket", "prefix", "endpoint", "region", "acl"),
}


def parse_assets(value: Any, where: str) -> AssetsSpec | None:
    """Read the value of the key ``assets``; None when it is absent or empty.

    Raises Refused naming the key and, when misspelt, the nearest known one. ``where`` is the file's name.
    """
    if value is None:
        return None
    data = mapping(value, "assets", _KEYS["assets"], where)
    folders = _folders(data.get("folders"), where)
    ignore = tuple(_pattern(item, where) for item in _list(data.get("ignore"), "assets.ignore", where))
    return AssetsSpec(folders, _url(data.get("url", URL), where), ignore, _cdn(data.get("cdn"), where))


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a pattern leaves this name out; a name is a path below its folder.

    As in .gitignore: without a slash a pattern is matched against the name of the file and of every folder
    it is in; with one against the path from the top, and what is below a matching folder goes with it. ``*``
    stops at slashes, ``**`` does not; a slash at the end means a folder.
    """
    parts = name.split("/")
    parents = ["/".join(parts[:index]) for index in range(1, len(parts))]
    for pattern in patterns:
        candidates = parents if pattern.endswith("/") else [*parents, name]
        core = pattern.rstrip("/")
        if "/" not in core:
            candidates = [path.rpartition("/")[2] for path in candidates]
        expression = _expression(core.lstrip("/"))
        if any(expression.fullmatch(path) for path in candidates):
            return True
    return False


def _expression(pattern: str) -> re.Pattern[str]:
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(signs.get(piece) or re.escape(piece) for piece in pieces), re.DOTALL)


# --- values ---------------------------------------------------------------------------------------------


def _folders(value: Any, where: str) -> tuple[str, ...]:
    folders = [_folder(item, where) for item in _list(value, "assets.folders", where)]
    if not folders:
        raise Refused(f"{where}: assets.folders is missing: name the folders with static files, as [public]")
    for index, one in enumerate(folders):
        for other in folders[index + 1 :]:
            short, long = sorted((PurePosixPath(one), PurePosixPath(other)), key=lambda path: len(path.parts))
            if long.parts[: len(short.parts)] == short.parts:
                raise Refused(f"{where}: assets.folders: {long} is in {short}, which is named already")
    return tuple(folders)


def _folder(value: Any, where: str) -> str:
    path = PurePosixPath(value) if isinstance(value, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts or _control(value):
        raise Refused(
            f"{where}: assets.folders: {value!r} is not a folder inside the application (relative, without"
            " '..', and not the application itself)"
        )
    return str(path)


def _pattern(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip("/") or _control(value):
        raise Refused(f"{where}: assets.ignore: {value!r} is not a pattern such as '*.psd' or 'drafts/'")
    return value


def _url(value: Any, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9/:._~%@\[\]-]+", value):
        raise _not_an_url(value, where)
    url = value if value.endswith("/") else value + "/"
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") if parts.scheme else True
        fits = fits and (bool(parts.hostname) if parts.scheme or url.startswith("//") else url[0] == "/")
        fits = fits and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise _not_an_url(value, where)
    return url


def _not_an_url(value: Any, where: str) -> Refused:
    return Refused(
        f"{where}: assets.url: {value!r} is neither a path such as {URL} nor an address such as"
        " https://cdn.example.org/shop/"
    )


def _cdn(value: Any, where: str) -> S3 | Rsync | None:
    if value is None:
        return None
    data = mapping(value, "assets.cdn", _KEYS["assets.cdn"], where)
    given = [key for key in data if data[key] is not None]
    if len(given) != 1:
        raise Refused(f"{where}: assets.cdn must name one target, s3 or rsync")
    return _s3(data["s3"], where) if given == ["s3"] else _rsync(data["rsync"], where)


def _s3(value: Any, where: str) -> S3:
    data = mapping(value, "assets.cdn.s3", _KEYS["assets.cdn.s3"], where)
    for key, item in data.items():
        if not isinstance(item, str) or not item or _control(item):
            raise Refused(f"{where}: assets.cdn.s3.{key}: {item!r} is not a text of one line")
    bucket = data.get("bucket", "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise Refused(f"{where}: assets.cdn.s3.bucket: {bucket!r} is not a bucket's name")
    prefix = data.get("prefix", "").strip("/")
    if ".." in prefix.split("/"):
        raise Refused(f"{where}: assets.cdn.s3.prefix: {prefix!r} must not contain '..'")
    endpoint = data.get("endpoint")
    if endpoint is not None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise Refused(
                f"{where}: assets.cdn.s3.endpoint must be an address such as https://s3.example.org"
            )
        if parts.username is not None:
            raise Refused(
                f"{where}: assets.cdn.s3.endpoint must not hold credentials: they come from the environment"
                " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from ~/.aws"
            )
    acl = data.get("acl")
    if acl is not None and acl not in ACLS:
        raise Refused(f"{where}: assets.cdn.s3.acl: {acl!r} is none of {', '.join(ACLS)}")
    return S3(bucket, f"{prefix}/" if prefix else "", endpoint, data.get("region"), acl)


def _rsync(value: Any, where: str) -> Rsync:
    if not isinstance(value, str) or not value.strip() or value.startswith("-") or _control(value):
        raise Refused(
            f"{where}: assets.cdn.rsync: {value!r} is not a target such as deploy@cdn.example.org:/srv/cdn/"
        )
    if re.match(r"(rsync://)?[^/@]*:[^/@]*@", value):
        raise Refused(
            f"{where}: assets.cdn.rsync must not hold a password: give it in the environment (RSYNC_PASSWORD)"
        )
    local = ":" not in value.split("/", 1)[0]
    if local and not value.startswith("/"):
        raise Refused(f"{where}: assets.cdn.rsync: {value!r}: a folder on this machine starts with a slash")
    return Rsync(value if value.endswith("/") else value + "/")


def _list(value: Any, key: str, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refused(f"{where}: {key} must be a list")
    return value


def _control(value: str) -> bool:
    return any(ord(character) < 32 or ord(character) == 127 for character in value)
