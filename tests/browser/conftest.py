"""A real Chromium without a window, in front of real brokers and a real kestrel-web."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from browser.stage import Traffic, stage
from support.broker import BrokerProcess
from support.kestrel_web import KestrelWeb, servers
from support.web_visitor import user

CHROMIUM = "/usr/bin/chromium"
DEADLINE_MS = 15_000
expect.set_options(timeout=DEADLINE_MS)
VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
    console.error("CSP " + event.violatedDirective + " " + event.blockedURI + " " + event.sample));
"""


@dataclass
class Stage:
    """What all tests of this folder look at; `web` has no login, its interval is short."""

    web: KestrelWeb
    brokers: list[BrokerProcess]

    @property
    def first(self) -> BrokerProcess:
        return self.brokers[0]


@dataclass
class Visit:
    """One visitor's page; whatever the browser complains about is kept."""

    page: Page
    context: BrowserContext
    url: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def forgive(self, words: str) -> None:
        """Take out the complaints that a test asked for, at least one."""
        left = [each for each in self.complaints if words not in each]
        assert len(left) < len(self.complaints), f"nothing about {words}: {self.complaints}"
        self.complaints[:] = left


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def played(tmp_path_factory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with (
        stage(folder, environment="testing", confirm_typed_from=100, stale_after_s=3) as (web, brokers),
        Traffic(brokers),
    ):
        yield Stage(web, brokers)


@pytest.fixture(scope="session")
def guarded(played, tmp_path_factory) -> Iterator[KestrelWeb]:
    """The same brokers behind a login: a viewer and an operator."""
    users = [user("vera"), user("olaf", "operator")]
    folder = tmp_path_factory.mktemp("guarded")
    with KestrelWeb(folder, **servers(*played.brokers), users=users, interval_s=0.5) as web:
        yield web


@pytest.fixture(scope="session")
def read_only(played, tmp_path_factory) -> Iterator[KestrelWeb]:
    """The same brokers, and nothing may be changed; below a prefix."""
    folder = tmp_path_factory.mktemp("read-only")
    with KestrelWeb(
        folder, **servers(*played.brokers), read_only=True, interval_s=0.5, prefix="/tools/queues"
    ) as web:
        yield web


@pytest.fixture
def visiting(browser):
    """A context manager for a visit at some kestrel-web; it fails when the browser complained."""

    @contextlib.contextmanager
    def visit(web: KestrelWeb, every: int = 2, **options) -> Iterator[Visit]:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(DEADLINE_MS)
        context.add_init_script(VIOLATIONS)
        context.add_init_script(f"localStorage.setItem('kestrel-web.every', '{every}')")
        page = context.new_page()
        visit = Visit(page, context, web.url)
        page.on("pageerror", lambda error: visit.complaints.append(f"{page.url}: {error}"))
        page.on(
            "console",
            lambda message: (
                visit.complaints.append(f"{page.url}: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        try:
            yield visit
        finally:
            context.close()
        assert visit.complaints == []

    return visit


@pytest.fixture
def visit(played, visiting) -> Iterator[Visit]:
    """A visit where nobody has to log in."""
    with visiting(played.web) as one:
        yield one
