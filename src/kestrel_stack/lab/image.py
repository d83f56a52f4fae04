"""The host image: a Debian base (present, pulled or bootstrapped) and ``host_image/Dockerfile`` on top."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kestrel_stack.lab import engine
from kestrel_stack.lab.errors import LabError

SUITES = ("bookworm", "trixie")
FILES = Path(__file__).parent / "host_image"
REPOSITORY = "kestrel-stack/host"
LABEL = "kestrel-stack.host-image"
BASE_REPOSITORY = "kestrel-stack/base"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OWN_CA = Path("/usr/local/share/ca-certificates")
APT_SETTINGS = re.compile(
    r'^Acquire::(Check-Valid-Until|Check-Date|Retries|(http|https)::(Proxy|Timeout)(::[^ ]+)?) ".*";$',
    re.MULTILINE,
)


def check_suite(suite: str) -> str:
    """Return ``suite``; raise LabError, naming those supported, when it is none of them."""
    if suite not in SUITES:
        raise LabError(f"--suite {suite}: not supported; choose one of: {', '.join(SUITES)}")
    return suite


def tag(suite: str, files: Path = FILES) -> str:
    """Return the host image's name; its tag is a hash of the suite and of every file it is made from."""
    digest = hashlib.sha256(check_suite(suite).encode())
    for path in sorted(path for path in files.rglob("*") if path.is_file()):
        mode = path.stat().st_mode & 0o111
        digest.update(f"\0{path.relative_to(files)}\0{mode}\0".encode())
        digest.update(path.read_bytes())
    return f"{REPOSITORY}:{suite}-{digest.hexdigest()[:12]}"


def present(name: str) -> bool:
    """Tell whether the engine has an image of this name."""
    return engine.docker("image", "inspect", name, check=False).returncode == 0


@dataclass(frozen=True)
class Mirror:
    """This machine's Debian mirror: the addresses of the main archive and of the security archive."""

    main: str
    security: str | None


def parse_index_targets(text: str) -> Mirror | None:
    """Read ``apt-get indextargets`` (``ORIGIN|COMPONENT|RELEASE|REPO_URI``); None when Debian is not in it.

    The origin is empty until the first ``apt-get update``; then the suite's name decides.
    """
    main = security = None
    for line in text.splitlines():
        origin, component, release, uri = (line.strip().split("|") + [""] * 4)[:4]
        if component != "main" or origin not in ("Debian", "") or not uri.startswith(("http://", "https://")):
            continue
        if release.endswith("-security"):
            security = security or uri
        elif re.fullmatch(r"(bookworm|trixie|stable|oldstable|testing|sid|unstable)", release):
            main = main or uri
    return Mirror(main, security) if main else None


def machine_mirror() -> Mirror | None:
    """Return this machine's mirror when it is a Debian machine, else None (the tools' own default)."""
    if not re.search(r"^ID=debian$", _read(Path("/etc/os-release")), re.MULTILINE) or not shutil.which(
        "apt-get"
    ):
        return None
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)",
            "Identifier: Packages",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_index_targets(done.stdout)


def sources(suite: str, mirror: Mirror) -> str:
    """Return a sources.list for ``suite`` from ``mirror``."""
    lines = [f"deb {mirror.main} {suite} main", f"deb {mirror.main} {suite}-updates main"]
    if mirror.security:
        lines.append(f"deb {mirror.security} {suite}-security main")
    return "\n".join(lines) + "\n"


def machine_apt_settings() -> list[str]:
    """Return the settings of this machine's apt that its mirror may need (proxy, validity, time limits)."""
    if not shutil.which("apt-config"):
        return []
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return [match.group(0) for match in APT_SETTINGS.finditer(done.stdout)]


def with_proxies(settings: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return apt's settings with the environment's proxies where apt has none of its own.

    The hosts keep them. Raises LabError when a proxy listens on this machine's loopback, where no host comes.
    """
    found = list(settings)
    for scheme in ("http", "https"):
        if not any(line.startswith(f"Acquire::{scheme}::Proxy ") for line in found) and (
            proxy := environ.get(f"{scheme}_proxy")
        ):
            # Others take a proxy that is host:port alone, but apt does not.
            found.append(f'Acquire::{scheme}::Proxy "{proxy if "://" in proxy else f"http://{proxy}"}";')
    for line in found:
        proxy = line.partition('"')[2].rpartition('"')[0] if "::Proxy" in line else ""
        host = (urllib.parse.urlsplit(proxy).hostname or "") if "://" in proxy else ""
        if host == "localhost" or host == "::1" or re.fullmatch(r"127\.[0-9.]+", host):
            raise LabError(
                f"the proxy at {host} is not reached from the hosts in containers: name it by this machine's "
                "own address, in apt's settings or in http_proxy and https_proxy"
            )
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def ensure_base(suite: str, say: Callable[[str], None]) -> str:
    """Return the name of a Debian base image: present, else pulled, else bootstrapped.

    Raises LabError naming what is missing when none of these ways is open.
    """
    pulled = f"debian:{suite}"
    own = f"{BASE_REPOSITORY}:{suite}"
    for name in (own, pulled):
        if present(name):
            return name
    say(f"pull {pulled}")
    if engine.docker("pull", "--quiet", pulled, check=False).returncode == 0:
        return pulled
    say(f"no {pulled} to pull: bootstrap it from this machine's mirror")
    bootstrap(suite, own)
    return own


def bootstrap_command(suite: str, mirror: Mirror | None, settings: Sequence[str], *, root: bool) -> list[str]:
    """Return the mmdebstrap command that writes a minimal Debian as a tar archive to its standard output.

    The sources come on standard input when there is a mirror.
    """
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--mode={'root' if root else 'unshare'}"]
    command += [f"--aptopt={setting}" for setting in settings]
    if KEYRING.exists():
        command.append(f"--keyring={KEYRING}")
    return [*command, suite, "-", *(["-"] if mirror else [])]


def bootstrap(suite: str, name: str) -> None:
    """Make a base image with mmdebstrap from this machine's mirror, as root or with user namespaces.

    Raises LabError with mmdebstrap's last line when it fails.
    """
    if not shutil.which("mmdebstrap"):
        raise LabError(
            f"no image debian:{suite} can be pulled, and mmdebstrap is missing: apt-get install -y mmdebstrap"
        )
    mirror = machine_mirror()
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-base-") as folder:
        archive = Path(folder) / "base.tar"
        with archive.open("wb") as output:
            made = subprocess.run(
                bootstrap_command(suite, mirror, machine_apt_settings(), root=root),
                input=sources(suite, mirror).encode() if mirror else b"",
                stdout=output,
                stderr=subprocess.PIPE,
                check=False,
            )
        if made.returncode != 0:
            reason = engine.last_line(made.stderr.decode(errors="replace"))
            how = (
                ""
                if root
                else " (without root it needs user namespaces and newuidmap: apt-get install -y uidmap)"
            )
            raise LabError(f"mmdebstrap {suite} failed{how}: {reason}")
        engine.docker("import", str(archive), name)


def write_context(suite: str, folder: Path) -> None:
    """Fill ``folder`` with what the image is built from: our files, and what this machine's mirror needs."""
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    machine = folder / "machine"
    (machine / "ca").mkdir(parents=True)
    mirror = machine_mirror()
    (machine / "sources.list").write_text(sources(suite, mirror) if mirror else "", encoding="utf-8")
    settings = with_proxies(machine_apt_settings(), os.environ)
    (machine / "apt.conf").write_text("".join(f"{line}\n" for line in settings), encoding="utf-8")
    for certificate in sorted(OWN_CA.glob("**/*.crt")) if OWN_CA.is_dir() else []:
        shutil.copyfile(certificate, machine / "ca" / certificate.name)


def ensure(
    suite: str, *, log: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[str, bool]:
    """Return the host image's name and whether it had to be built.

    Raises LabError with the builder's last line; the whole output is in ``log`` when given. ``say`` hears
    what it does.
    """
    name = tag(suite)
    if present(name):
        return name, False
    base = ensure_base(suite, say)
    say("install systemd, sshd and what Ansible needs")
    with tempfile.TemporaryDirectory(prefix="kestrel-stack-image-") as folder:
        context = Path(folder) / "context"
        write_context(suite, context)
        proxies = [
            f"--build-arg={key}" for key in ("http_proxy", "https_proxy", "no_proxy") if key in os.environ
        ]
        arguments = [
            f"--build-arg=BASE={base}",
            *proxies,
            f"--label={LABEL}={suite}",
            f"--tag={name}",
            str(context),
        ]
        # The machine's own network: the bridge may have a larger MTU than the way out.
        built = engine.docker("build", "--network=host", "--force-rm", *arguments, check=False)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(built.stdout + built.stderr, encoding="utf-8")
    if built.returncode != 0:
        where = f" (see {log})" if log else ""
        raise LabError(f"building the host image failed{where}: {engine.last_line(built.stderr)}")
    return name, True


def remove_all() -> list[str]:
    """Remove the host images and their bases that no container uses; return the names of those removed."""
    removed = []
    for repository in (REPOSITORY, BASE_REPOSITORY):
        listed = engine.docker("images", "--format={{.Repository}}:{{.Tag}}", repository).stdout.split()
        removed += [name for name in listed if engine.docker("rmi", name, check=False).returncode == 0]
    return removed
