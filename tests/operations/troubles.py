"""What goes wrong in docs/operations.md, so that it can be mended."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from kestrel_stack.lab import inventory
from operations.stage import BIN, WORKERS, Stage
from support.deploy import ROOT, GitApp, git
from support.deploy_lab import Fab

KNOWN: dict[str, Callable[..., None]] = {}
SMALL = "/mnt/small"


def trouble(function: Callable[..., None]) -> Callable[..., None]:
    """Let the document name a function, with hyphens."""
    KNOWN[function.__name__.replace("_", "-")] = function
    return function


def container(stage: Stage, host: str) -> str:
    return inventory.load(stage.whole).container(host)


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True, timeout=60)


@trouble
def workers_gone(stage: Stage, queue: str) -> None:
    """Nobody takes jobs of a queue any more, on any host."""
    for host in WORKERS:
        stage.inside(host, f"supervisorctl stop shop_{queue}:*")


@trouble
def power_off(stage: Stage, host: str) -> None:
    """A host is gone from one moment to the next."""
    docker("kill", container(stage, host))


@trouble
def power_on(stage: Stage, host: str) -> None:
    """A host starts, after `power-off` or after it has shut itself down."""
    name = container(stage, host)
    subprocess.run(["docker", "wait", name], check=True, capture_output=True, timeout=60)
    docker("start", name)


@trouble
def little_disk(stage: Stage, host: str) -> None:
    """The journals lie on a small file system, which something else fills."""
    stage.inside(
        host,
        f"systemctl stop kestrel && mkdir -p {SMALL} && mount -t tmpfs -o size=200m tmpfs {SMALL}"
        f" && cp -a /var/spool/kestrel {SMALL}/kestrel && mount --bind {SMALL}/kestrel /var/spool/kestrel"
        f" && systemctl start kestrel && kestrel-stack-kestrel wait"
        f" && dd if=/dev/zero of={SMALL}/export.sql bs=1M count=150 2>/dev/null",
    )


@trouble
def disk_as_before(stage: Stage, host: str) -> None:
    """Undo `little-disk`."""
    stage.inside(
        host,
        f"systemctl stop kestrel && umount /var/spool/kestrel && rm -f /var/spool/kestrel/*"
        f" && cp -a {SMALL}/kestrel/. /var/spool/kestrel/ && umount {SMALL}"
        " && systemctl start kestrel && kestrel-stack-kestrel wait",
    )


@trouble
def lose_spool(stage: Stage, host: str) -> None:
    """The disk of the journals is replaced by an empty one."""
    stage.inside(
        host, "systemctl stop kestrel && rm -rf /var/spool/kestrel && systemctl start kestrel || true"
    )


@trouble
def tear(stage: Stage, host: str, queue: str) -> None:
    """The last record of a stopped server's journal is half there, as a power cut leaves it."""
    stage.inside(host, f"printf '\\010\\000\\000\\001' >>$(ls -t /var/spool/kestrel/{queue}* | head -n 1)")


@trouble
def commit(stage: Stage, *job: str) -> None:
    """The application gets a commit; with a name, a job that it could not do before."""
    app = object.__new__(GitApp)
    app.repository = app.path = stage.app
    if job:
        jobs = (stage.app / "shop/jobs.py").read_text()
        more = f'\n\n@registry.job("{job[0]}")\ndef do_{job[0].lower()}(data, context):\n    pass\n'
        app.write("shop/jobs.py", jobs + more)
    app.commit("more")


@trouble
def kill_deploy(stage: Stage) -> None:
    """Whoever deploys has his machine die in the middle of it."""
    commit(stage)
    run = Fab(("deploy", f"--env={stage.production}", f"--app={stage.app}"), ROOT)
    run.wait_for("switched to")
    run.process.kill()
    run.end()


@trouble
def newer_checkout(stage: Stage) -> None:
    """A checkout of a newer version, whose broker is another."""
    folder = stage.folder / "kestrel-stack-next"
    shutil.rmtree(folder, ignore_errors=True)
    git(ROOT, "clone", "-q", str(ROOT), str(folder))
    broker = folder / "src/kestrel_stack/broker/__init__.py"
    broker.write_text(broker.read_text() + "\n# A newer one.\n")
    (folder / ".venv").symlink_to(BIN.parent)
