"""Make the pictures of kestrel-web in docs/: real brokers, live traffic, a real browser.

    PYTHONPATH=src:tests python -m browser.pictures [--minutes 6] [--to docs]

The traffic runs for so long that the charts have something to show.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from browser.stage import Traffic, stage

ROOT = Path(__file__).parents[2]

PICTURES = (
    # name, path, theme, width, height
    ("overview", "/", "light", 1280, 860),
    ("queues", "/queues?sort=items&dir=desc&open=shop_mail", "dark", 1280, 800),
    ("queue", "/queues/shop_thumbnails?range=15m", "light", 1280, 900),
    ("phone", "/queues?sort=items&dir=desc", "light", 390, 800),
)
MORE = (
    ("servers", "/servers", "light", 1280, 500),
    ("server", "/servers/{server}", "dark", 1280, 900),
    ("overview-dark", "/", "dark", 1280, 860),
    ("overview-phone", "/", "dark", 360, 800),
    ("queue-phone", "/queues/shop_mail", "light", 360, 800),
    ("queue-dark", "/queues/shop_mail?range=15m", "dark", 1280, 900),
    ("audit", "/audit", "light", 1280, 500),
    ("error", "/nothing", "light", 1280, 600),
    ("columns", "/queues?cols=size,counters,gets,about&f=items>0", "light", 1280, 700),
    ("problem", "/queues?f=itms>3", "dark", 1280, 700),
    ("nothing", "/queues?f=name=nothing", "light", 1280, 600),
    ("peek", "/queues/shop_mail/peek", "light", 1280, 900),
    ("flush", "/queues/shop_thumbnails/do/flush", "light", 1280, 700),
    ("delete", "/queues/shop_mail/do/delete", "dark", 360, 700),
    ("requeue", "/queues/shop_mail/do/requeue", "light", 1280, 900),
    ("enqueue", "/queues/shop_mail/do/enqueue", "light", 1280, 900),
    ("parked", "/queues/shop_mail/parked", "light", 1280, 900),
    ("status", "/servers/{server}/do/status", "light", 1280, 700),
)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6.0, help="of traffic before the first picture")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="the folder of the pictures")
    parser.add_argument("--all", action="store_true", help="every page, for a look at them")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        stage(Path(folder), odd=False, environment="production", interval_s=2) as (web, brokers),
        Traffic(brokers),
        sync_playwright() as playwright,
    ):
        time.sleep(60 * arguments.minutes)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, path, theme, width, height in PICTURES + (MORE if arguments.all else ()):
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(web.url + path.format(server=brokers[0].address))
            file = arguments.to / f"kestrel-web-{name}.png"
            page.screenshot(path=file)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            say(f"{file} {file.stat().st_size // 1024} kB{f', {wide} px too wide' if wide > 0 else ''}")
            context.close()
        browser.close()
        bad = [line for line in web.log.splitlines() if "Traceback" in line or "rror" in line]
        if bad:
            say(web.log[-6000:])


if __name__ == "__main__":
    main()
