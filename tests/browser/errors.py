"""Make the pictures of errors in docs/: a real Bugsink, real workers of both languages, a real browser.

    PYTHONPATH=src:tests python -m browser.errors [--to docs]

The shop's jobs fail because what they call answers 503.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from browser.pictures import ROOT, say
from kestrel_stack.queue import Producer
from support.broker import BrokerProcess
from support.bugsink import EMAIL, PASSWORD, Bugsink
from support.worker import consumer

WIDTH = 1440
RELEASE = "20261121T133926Z-da8c7ff5"
QUEUES = [
    {"name": "partner_api", "language": "python", "retry_delays": [600]},
    {"name": "post_upload", "language": "php", "retry_delays": [600]},
]
JOBS = [
    # Job, queue, data, and how many of which tenant; a worker sends the first ten of one error at once.
    ("PostToPartner", "partner_api", {"order": 4711}, {"acme": 5, "globex": 3, "initech": 2}),
    ("PostUpload", "post_upload", {"name": "menu.pdf", "content": "SGVsbG8K"}, {"acme": 5, "globex": 2}),
]


class Away(BaseHTTPRequestHandler):
    """A third party that has a bad day."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def errors(folder: Path, bugsink: Bugsink) -> Iterator[list[dict]]:
    """Have the shop's jobs fail; yield Bugsink's issues when it has them all."""
    release = folder / "release"
    shutil.copytree(ROOT / "examples" / "shop", release, ignore=shutil.ignore_patterns("var", "__pycache__"))
    (release / "var").mkdir()
    shutil.copytree(ROOT / "php", release / "kestrel-stack" / "php", ignore=shutil.ignore_patterns("tests"))
    with (
        BrokerProcess(folder) as broker,
        ThreadingHTTPServer(("127.0.0.1", 0), Away) as away,
        contextlib.ExitStack() as running,
    ):
        threading.Thread(target=away.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{away.server_address[1]}/v1/orders"
        settings = {
            "app": "shop",
            "namespace": "shop",
            "environment": "production",
            "host": "worker1",
            "servers": [broker.address],
            "queues": QUEUES,
            "sentry_dsn": bugsink.dsn,
        }
        (folder / "shop.json").write_text(json.dumps(settings))
        for job, queue, data, tenants in JOBS:
            for tenant, count in tenants.items():
                with Producer.from_settings(tenant, str(folder / "shop.json")) as producer:
                    for _ in range(count):
                        producer.enqueue(job, data, queue=queue)
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT / 'src'}:{release}",
            "KESTREL_STACK_RELEASE": RELEASE,
            "SHOP_PARTNER_URL": url,
            "SHOP_UPLOAD_URL": url,
        }
        # As on a host, the application has no sentry_sdk; the virtual environment of the tests has.
        python = [str(Path(sys.executable).resolve()), "-m", "kestrel_stack.consumer"]
        for queue, command, app in zip(
            QUEUES, (python, consumer("php")), ("shop.jobs:registry", "php/jobs.php"), strict=True
        ):
            flags = ["--queue", queue["name"], "--app", app, "--config", str(folder / "shop.json")]
            with (folder / f"{queue['name']}.log").open("w") as log:
                worker = subprocess.Popen(
                    [*command, *flags], cwd=release, env=environ, stdout=log, stderr=log
                )
            running.callback(worker.wait)
            running.callback(worker.terminate)
        yield bugsink.wait_for_events(sum(sum(tenants.values()) for *_, tenants in JOBS), 60)
        away.shutdown()


def log_in(page: Page, url: str) -> None:
    page.goto(f"{url}/accounts/login/")
    page.fill("input[name=username]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(lambda found: "/login" not in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="the folder of the pictures")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Bugsink(Path(folder, "bugsink")) as bugsink,
        errors(Path(folder), bugsink) as issues,
        sync_playwright() as playwright,
    ):
        found = next(issue for issue in issues if issue["transaction"] == "PostToPartner")
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        log_in(page, bugsink.url)
        issue = f"/issues/issue/{found['id']}/event/last/"
        for name, path, height in (
            ("issues", f"/issues/{bugsink.project}/", 490),
            ("issue", issue, 1420),
            ("breadcrumbs", f"{issue}breadcrumbs/", 480),
        ):
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto(bugsink.url + path)
            file = arguments.to / f"sentry-{name}.png"
            # A page of text needs few colours, and is a third of the size with them.
            Image.open(io.BytesIO(page.screenshot())).quantize(128).save(file, optimize=True)
            say(f"{file} {file.stat().st_size // 1024} kB")
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
