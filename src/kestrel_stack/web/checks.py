"""Values of a JSON object, checked one by one; what is wrong is said in one line that names file and key."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from kestrel_stack.web.config import ConfigError


class Values:
    """The values of one object. `names` says how a key is called in a message where it is not by itself."""

    def __init__(
        self, content: object, known: Iterable[str], where: str, names: Mapping[str, str] | None = None
    ):
        self._where = where
        self._names = names or {}
        if not isinstance(content, dict):
            raise ConfigError(f"{where} must be a JSON object.")
        self.content: dict[str, Any] = content
        known = list(known)
        for key in content:
            if key not in known:
                raise ConfigError(f'{where}: unknown key "{key[:60]}"{nearest(key, known)}')

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def wrong(self, key: str, what: str) -> ConfigError:
        """Return the error that says what a key must be."""
        return ConfigError(f"{self.name(key)} {what}.".replace("?.", "?"))

    def name(self, key: str) -> str:
        """Return how a key is called in a message."""
        return self._names.get(key) or f'{self._where}: "{key}"'

    def text(self, key: str, default: str | None = None, most: int = 1000) -> str:
        """Return a text of printable characters on one line."""
        value = self.content.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        if not isinstance(value, str) or not value.isprintable() or len(value) > most:
            raise self.wrong(key, f"must be a text on one line, of at most {most} characters")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false; false when it is not there."""
        value = self.content.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """Return a whole number."""
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}")
        return value

    def seconds(self, key: str, default: float, least: float, most: float) -> float:
        """Return a number of seconds, which need not be whole."""
        value = self.content.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            # NaN and infinity are not between these either.
            or not least <= value <= most
        ):
            raise self.wrong(key, f"must be seconds, from {least:g} to {most:g}")
        return float(value)

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """Return one of the known words."""
        value = self.content.get(key, default)
        known = list(known)
        if value not in known:
            raise self.wrong(key, f"must be one of {', '.join(known)}{nearest(value, known, '')}")
        return str(value)

    def list(self, key: str) -> list[Any]:
        """Return a list; an empty one when it is not there."""
        value = self.content.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "must be a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, none of them empty."""
        values = self.list(key)
        if not all(isinstance(value, str) and value and value.isprintable() for value in values):
            raise self.wrong(key, "must be a list of texts, none of them empty")
        return tuple(values)

    def networks(self, key: str) -> tuple[str, ...]:
        """Return a list of addresses, or networks like 10.0.0.0/24."""
        values = self.texts(key)
        for value in values:
            try:
                network = ipaddress.ip_network(value, strict=False)
            except ValueError:
                raise self.wrong(
                    key, f"has {value!r}, which is no address and no network like 10.0.0.0/24"
                ) from None
            if network.prefixlen == 0:
                raise self.wrong(key, f"has {value!r}, which is everybody; name the proxy's address")
        return values

    def sections(self, key: str, known: Iterable[str]) -> list[Values]:
        """Return a list of objects."""
        known = list(known)
        return [
            Values(value, known, f"{self._where}: {key}[{number}]")
            for number, value in enumerate(self.list(key))
        ]

    def section(self, key: str, known: Iterable[str]) -> Values | None:
        """Return an object; None when it is not there."""
        value = self.content.get(key)
        return None if value is None else Values(value, known, f"{self._where}: {key}")


def nearest(word: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return what somebody may have meant, or all that there is (or `otherwise`), to follow a complaint."""
    known = list(known)
    found = difflib.get_close_matches(str(word), known, 1)
    if found:
        return f"; did you mean {found[0]}?"
    return f"; known are {', '.join(known)}" if otherwise is None else otherwise
