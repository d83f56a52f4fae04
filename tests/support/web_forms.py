"""Forms on a page, as a browser without JavaScript finds, fills in and sends them."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlencode, urlsplit

from support.web_visitor import Visitor


class Form:
    """One form: its fields in their order, names may be there several times."""

    def __init__(self, method: str, action: str):
        self.method = method
        self.action = action
        self.fields: list[tuple[str, str]] = []
        self.unticked: list[tuple[str, str]] = []

    def value(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)

    def filled(self, values: dict[str, str | list[str]]) -> list[tuple[str, str]]:
        """The fields with other values for some; a list is all the values of a name."""
        fields = [(name, value) for name, value in self.fields if name not in values]
        for name, value in values.items():
            fields += [(name, each) for each in (value if isinstance(value, list) else [value])]
        return fields


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.form: Form | None = None
        self.select: str | None = None
        self.option: str | None = None
        self.chosen = False
        self.area: str | None = None
        self.written = ""

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        name = given.get("name", "")
        if tag == "form":
            self.form = Form(given.get("method", "get").upper(), given.get("action", ""))
            self.forms.append(self.form)
        if self.form is None:
            return
        if tag == "input" and name:
            ticked = given.get("type") not in ("checkbox", "radio") or "checked" in given
            (self.form.fields if ticked else self.form.unticked).append((name, given.get("value", "")))
        elif tag == "select":
            self.select, self.option = name, None
        elif tag == "option" and self.select is not None:
            self.written, self.chosen = "", "selected" in given or self.option is None
            self.value = given.get("value")
        elif tag == "textarea":
            self.area, self.written = name, ""

    def handle_data(self, data):
        self.written += data

    def handle_endtag(self, tag):
        if tag == "form":
            self.form = None
        elif tag == "option" and self.select is not None and self.chosen:
            self.option = self.written if self.value is None else self.value
        elif tag == "select" and self.form is not None and self.select is not None:
            self.form.fields.append((self.select, self.option or ""))
            self.select = None
        elif tag == "textarea" and self.form is not None and self.area is not None:
            self.form.fields.append((self.area, self.written))
            self.area = None


def forms(html: str) -> list[Form]:
    """Every form of a page."""
    parser = _Parser()
    parser.feed(html)
    return parser.forms


def form(html: str, ending: str) -> Form:
    """The form of a page whose action ends so."""
    found = [each for each in forms(html) if urlsplit(each.action).path.endswith(ending)]
    assert len(found) == 1, f"{len(found)} forms for {ending} in {html}"
    return found[0]


def submit(visitor: Visitor, sent: Form, **values: str | list[str]):
    """Send a form as a browser would, with other values for some fields."""
    body = urlencode(sent.filled(values)).encode()
    own = {"Content-Type": "application/x-www-form-urlencoded", "Origin": visitor.origin}
    return visitor.send(sent.method, sent.action.removeprefix(visitor.prefix), body, own)
