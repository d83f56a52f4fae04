"""Sees files of the application change."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchfiles import Change, watch

from kestrel_stack.dev import find
from kestrel_stack.dev.errors import DevError

DEBOUNCE_MS = 400
STEP_MS = 60
"""Changes belong together until nothing has changed for a step, at most for the debounce."""
LANGUAGES = {".py": "python", ".php": "php"}
BOTH = ("composer.lock", "config.json", ".env")
"""Files that an application of either language may read when it starts."""


def language(file: str) -> set[str]:
    """Return the languages whose workers must read a file anew; none for most files."""
    path = Path(file)
    if path.name in BOTH:
        return {"python", "php"}
    return {LANGUAGES[path.suffix]} if path.suffix in LANGUAGES else set()


Stamp = tuple[int, int, int]


class Watcher:
    """Calls `changed` with the files that changed, in a thread of its own."""

    def __init__(self, app: Path, changed: Callable[[list[str]], None], trouble: Callable[[str], None]):
        self._app = app
        self._changed = changed
        self._trouble = trouble
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ready = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        polling = False
        seen: dict[str, Stamp | None] | None = None
        while not self._stop.is_set():
            try:
                if seen is None:
                    seen = {file: _stamp(file) for file in self._code()}
                self._watch(polling, seen)
            except OSError as exc:
                if polling:
                    self._trouble(f"files are not watched: {exc}")
                    return
                # Most often the limit on how many folders one user may watch.
                self._trouble(f"files are looked at every second: the kernel does not watch them ({exc})")
                polling = True
            except DevError as exc:
                self._trouble(f"files are not watched: {exc}")
                return
            except Exception as exc:
                self._trouble(f"files are not watched: {exc!r}")
                return

    def _watch(self, polling: bool, seen: dict[str, Stamp | None]) -> None:
        """Watch until a folder comes or goes; then the list of folders is another one."""
        # Only folders with code of one's own, each by itself: what else there is may change all the time.
        folders = list(find.folders(self._app))
        self.ready.clear()
        for changes in watch(
            *folders,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            rust_timeout=1000,
            yield_on_timeout=True,
            force_polling=polling or None,
            poll_delay_ms=1000,
            recursive=False,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            if changes or not self.ready.is_set():
                # The first time in any case: something may have changed before the kernel began to watch.
                self.ready.set()
                self._tell(seen)
            if any(_of_a_folder(change, path) for change, path in changes) and folders != list(
                find.folders(self._app)
            ):
                return

    def _code(self) -> list[str]:
        found = []
        for folder in find.folders(self._app):
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                found += [entry.path for entry in entries if language(entry.name) and entry.is_file()]
        return found

    def _tell(self, seen: dict[str, Stamp | None]) -> None:
        """Compare with what was there: a file that was only read has not changed."""
        now = {file: _stamp(file) for file in self._code()}
        changed = sorted(file for file in {*now, *seen} if now.get(file) != seen.get(file))
        seen.clear()
        seen.update(now)
        if changed:
            self._changed(changed)


def _of_a_folder(change: Change, path: str) -> bool:
    return change == Change.deleted or Path(path).is_dir()


def _stamp(file: str) -> Stamp | None:
    try:
        about = Path(file).stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino
