"""The stand-in's server: Kestrel's arguments and Scala configuration, served by the embedded broker.

Started by the Java class as `python3 -I libs/standin.pyz VERSION ARGUMENTS...`. Standard input is a pipe from
it: the line `reopen` is its SIGHUP, and the end of the pipe is its end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent  # libs/standin.pyz
sys.path.insert(0, str(HERE.parent / "kestrel-embedded.pyz"))

import scala  # noqa: E402

from kestrel_stack.broker import config as broker_config  # noqa: E402

log = logging.getLogger("net.lag.kestrel")
read_json = broker_config.load


class SigHupHandler(logging.FileHandler):
    """Kestrel's `Policy.SigHup`: the file is reopened when it is told to, and never else."""

    def reopen(self) -> None:
        """Close the file and open the one that has its name now."""
        self.acquire()
        try:
            self.close()
            self._closed = False
            self.stream = self._open()
        finally:
            self.release()


def read_scala(path: Path):
    """Read a Scala configuration as the broker reads its JSON; raise ConfigError in the compiler's words."""
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(scala.read(path).broker, file)
            file.flush()
            return read_json(Path(file.name))
    except scala.ScalaError as error:
        raise broker_config.ConfigError(str(error)) from None


class Loader:
    """What the broker calls to read its configuration: once at the start, then for each reload."""

    def __init__(self) -> None:
        self.started = False

    def __call__(self, path: Path):
        """Read the file; a reload is logged as Kestrel logs it."""
        if not self.started:
            self.started = True
            return read_scala(path)
        log.info("Reloading %s ...", path)
        try:
            found = read_scala(path)
        except broker_config.ConfigError as error:
            log.error("Error in config: %s", str(error).replace("\n", " | "))
            raise
        for name in sorted({entry.name.split(".")[0] for entry in found.queue_path.iterdir()} - {""}):
            log.info("Reloaded queue config %s: %s", name, found.settings_for(name))
        for name, targets in found.aliases.items():
            log.info("Reloaded alias config %s: destinationQueues=[%s]", name, ", ".join(targets))
        return found


def listen_to_parent(handlers: list[SigHupHandler]) -> None:
    """Obey the Java process until it is gone; then be gone, too, as abruptly."""
    for line in sys.stdin:
        if line == "reopen\n":
            for handler in handlers:
                handler.reopen()
    os._exit(137)


def cache_compiled(config: Path) -> None:
    """Keep `target/` beside the configuration, as Kestrel does; when that is not writable, it is fatal."""
    folder = config.parent / "target"
    folder.mkdir(exist_ok=True)
    (folder / "checksum").write_text(hashlib.sha1(config.read_bytes()).hexdigest())


def main(version: str, *arguments: str) -> int:
    """Do what the arguments say, in their order; return the exit code."""
    config, cached = Path("/etc/kestrel.conf"), True
    words = iter(arguments)
    for word in words:
        if word == "-f":
            config = Path(next(words))
        elif word == "--no-config-cache":
            cached = False
        elif word == "--validate":
            try:
                read_scala(config)
            except broker_config.ConfigError as error:
                print(f"Error in config file: {config}")
                print(error)
                return 1
            print(f"Config file {config} compiles. :)")
            return 0
        else:
            print(f"stand-in: unknown argument {word}", file=sys.stderr)
            return 1
    try:
        if cached:
            cache_compiled(config)
        loggers = scala.read(config).log_files
    except (scala.ScalaError, OSError) as error:
        print(f"Exception during startup; exiting! {error}", file=sys.stderr)
        return 1
    handlers = [SigHupHandler(name) for name in loggers]
    form = logging.Formatter(
        "%(levelname).3s [%(asctime)s.%(msecs)03d] %(name)s: %(message)s", "%Y%m%d-%H:%M:%S"
    )
    form.converter = time.gmtime
    for handler in handlers:
        handler.setFormatter(form)
        logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    log.info("stand-in for Kestrel %s: a test program, not the real one", version)
    threading.Thread(target=listen_to_parent, args=(handlers,), daemon=True).start()
    # Before the server is imported, which takes the name over.
    broker_config.load = Loader()
    import kestrel_stack.broker

    kestrel_stack.broker.SERVER_VERSION = version
    from kestrel_stack.broker.__main__ import main as serve

    return serve(["--config", str(config)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
