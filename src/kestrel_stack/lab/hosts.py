"""One container per host of an inventory: made, started again, checked, removed."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kestrel_stack.lab import engine, inventory, locks
from kestrel_stack.lab.errors import LabError
from kestrel_stack.lab.inventory import Lab

LABEL = "kestrel-stack.lab"
DEFINITION_LABEL = "kestrel-stack.definition"
CHECKOUT_LABEL = "kestrel-stack.checkout"
FIRST_ADDRESS = 11
MAX_HOSTS = 200
READY_SECONDS = 90.0
LOGIN_SECONDS = 20.0
REMOVAL_SECONDS = 60.0
POLL_SECONDS = 0.1
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
# Private, and rarely a company's own network; one /24 per lab.
POOL = [
    ipaddress.IPv4Network(f"172.{second}.{third}.0/24") for second in range(20, 32) for third in range(256)
]
# What makes a container a host, as tried on cgroup v1, hybrid and v2:
# * the host's cgroup namespace with the tree writable, since a private one ends systemd on cgroup v2;
# * SYS_ADMIN for systemd's mounts, which AppArmor's docker-default would still forbid;
# * NET_ADMIN for firewall rules and routes inside.
RUN_OPTIONS = (
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    "--security-opt=apparmor=unconfined",
)


@dataclass(frozen=True)
class Up:
    """What ``up`` left standing: addresses by host, in the inventory's order, and what it had to do."""

    addresses: Mapping[str, str]
    created: tuple[str, ...]
    started: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Tell whether any container was created or started."""
        return bool(self.created or self.started)


@dataclass(frozen=True)
class Down:
    """What ``down`` removed, by name."""

    containers: tuple[str, ...]
    networks: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Tell whether there was anything to remove."""
        return bool(self.containers or self.networks or self.files)


def definition(lab: Lab, image: str) -> dict[str, str]:
    """Return what a lab's containers are made from; a difference in any of it needs new containers."""
    options = hashlib.sha256("\0".join(RUN_OPTIONS).encode()).hexdigest()[:12]
    return {"image": image, "hosts": ",".join(lab.hosts), "options": options}


def differences(wanted: Mapping[str, str], labels: Iterable[str]) -> list[str]:
    """Return the names of what differs between a definition and the labels (JSON) of existing containers."""
    found: set[str] = set()
    for label in labels:
        try:
            existing = json.loads(label)
        except ValueError:
            existing = {}
        found |= {name for name, value in wanted.items() if existing.get(name) != value}
    return sorted(found)


def existing(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return this lab's containers by host name, as ``docker inspect`` tells them."""
    names = engine.docker(
        "ps", "--all", "--quiet", "--no-trunc", f"--filter=label={LABEL}={lab.key}"
    ).stdout.split()
    return {
        item["Config"]["Labels"].get(f"{LABEL}.host", ""): item for item in engine.inspect("container", names)
    }


def networks(lab: Lab) -> list[str]:
    """Return the names of this lab's networks (one, or none)."""
    return engine.docker(
        "network", "ls", "--format={{.Name}}", f"--filter=label={LABEL}={lab.key}"
    ).stdout.split()


def lock_path(lab: Lab) -> Path:
    """Return the lock of a lab's containers; beside its state, which ``down`` removes."""
    return lab.state.with_name(f"{lab.state.name}.hosts.lock")


def up(lab: Lab, image: str, *, recreate: bool = False, say: Callable[[str], None] = lambda line: None) -> Up:
    """Make, or start again, one container per host; return when every host answers SSH with its known key.

    Containers that stand are left alone. Raises LabError when the lab's definition changed and ``recreate``
    is false, when no subnet is free, or when a host does not become ready in 90 s (its journal is then
    printed through ``say``).
    """
    engine.require()
    if len(lab.hosts) > MAX_HOSTS:
        raise LabError(
            f"{lab.inventory}/hosts.yml: {len(lab.hosts)} hosts are more than a lab holds ({MAX_HOSTS})"
        )
    # One process at a time; a second one waits, as the work is short.
    with locks.held(lock_path(lab)):
        return _up(lab, image, recreate, say)


def _up(lab: Lab, image: str, recreate: bool, say: Callable[[str], None]) -> Up:
    wanted = definition(lab, image)
    found = existing(lab)
    changed = differences(
        wanted, (item["Config"]["Labels"].get(DEFINITION_LABEL, "") for item in found.values())
    )
    if changed and not recreate:
        raise LabError(
            f"the definition of lab {lab.name} changed ({', '.join(changed)}): use --recreate to make its "
            "containers anew (what is inside them is lost)"
        )
    if recreate and (found or networks(lab)):
        _remove(lab)
        found = {}
    _make_key(lab)
    subnet = _ensure_network(lab)
    addresses = {host: str(subnet[FIRST_ADDRESS + index]) for index, host in enumerate(lab.hosts)}
    created = tuple(host for host in lab.hosts if host not in found)
    started = tuple(host for host in lab.hosts if host in found and not found[host]["State"]["Running"])

    def bring_up(host: str) -> None:
        if host in created:
            _create(lab, host, image, addresses[host], wanted)
        elif host in started:
            engine.docker("start", lab.container(host))
        _wait_for_systemd(lab, host, say)
        _install_key(lab, host)

    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in pool.map(bring_up, lab.hosts):
            pass
    _write_files(lab, addresses)
    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in pool.map(lambda host: _wait_for_ssh(lab, host, addresses[host], say), lab.hosts):
            pass
    return Up(addresses, created, started)


def down(lab: Lab) -> Down:
    """Remove this lab's containers, network and generated files, and nothing else.

    When no engine answers, what it may hold is unknown: raises LabError unless this lab has no files either.
    """
    if not engine.answers():
        if has_files(lab):
            raise LabError(
                "no Docker engine answers, so the lab's containers cannot be removed: start it first"
            )
        return Down((), (), ())
    with locks.held(lock_path(lab)):
        removed_containers, removed_networks = _remove(lab)
        files = [str(path) for path in _generated(lab) if path.exists()]
        lab.containers_yml.unlink(missing_ok=True)
        shutil.rmtree(lab.state, ignore_errors=True)
        lock_path(lab).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        lab.state.parent.rmdir()
    return Down(removed_containers, removed_networks, tuple(files))


def _generated(lab: Lab) -> tuple[Path, Path]:
    return lab.containers_yml, lab.state


def has_files(lab: Lab) -> bool:
    """Tell whether this lab left files, and so may have containers."""
    return any(path.exists() for path in _generated(lab))


def _remove(lab: Lab) -> tuple[tuple[str, ...], tuple[str, ...]]:
    containers = _names(lab)
    _remove_containers(lab, containers)
    names = tuple(networks(lab))
    for name in names:
        engine.docker("network", "rm", name)
    return containers, names


def _names(lab: Lab) -> tuple[str, ...]:
    return tuple(
        engine.docker(
            "ps", "--all", "--format={{.Names}}", f"--filter=label={LABEL}={lab.key}"
        ).stdout.split()
    )


def _remove_containers(lab: Lab, containers: tuple[str, ...]) -> None:
    """Remove containers; those that the engine removes already, for a ``down`` cut short, are waited for."""
    end = time.monotonic() + REMOVAL_SECONDS
    while containers:
        done = engine.docker("rm", "--force", "--volumes", *containers, check=False)
        if done.returncode == 0:
            return
        said = [line for line in done.stderr.splitlines() if line.strip()]
        gone = all("is already in progress" in line or "No such container" in line for line in said)
        if not said or not gone or time.monotonic() >= end:
            raise LabError(f"docker rm failed: {engine.last_line(done.stderr)}")
        time.sleep(POLL_SECONDS)
        containers = _names(lab)


def routes(text: str) -> list[ipaddress.IPv4Network]:
    """Return the networks of ``/proc/net/route`` but for the default route, which overlaps everything."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or int(fields[7], 16) == 0:
            continue
        address, mask = (ipaddress.IPv4Address(bytes.fromhex(fields[column])[::-1]) for column in (1, 7))
        found.append(ipaddress.IPv4Network(f"{address}/{mask}", strict=False))
    return found


def free_subnets(key: str, taken: Sequence[ipaddress.IPv4Network]) -> Iterator[ipaddress.IPv4Network]:
    """Yield subnets that overlap nothing taken; ``key`` (hex) decides which comes first."""
    start = int(key, 16) % len(POOL)
    for subnet in POOL[start:] + POOL[:start]:
        if not any(subnet.overlaps(other) for other in taken):
            yield subnet


def default_mtu(route_text: str, read: Callable[[str], str] = lambda name: Path(name).read_text()) -> int:
    """Return the MTU in bytes of the default route's device, 1500 when there is none or it is larger."""
    for line in route_text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and int(fields[1], 16) == 0 and int(fields[7], 16) == 0:
            with contextlib.suppress(OSError, ValueError):
                return min(1500, int(read(f"/sys/class/net/{fields[0]}/mtu")))
    return 1500


def _network_subnets(names: Sequence[str]) -> list[ipaddress.IPv4Network]:
    found = []
    for item in engine.inspect("network", names):
        for config in (item.get("IPAM") or {}).get("Config") or []:
            with contextlib.suppress(ValueError, KeyError):
                found.append(ipaddress.IPv4Network(config["Subnet"]))
    return found


def _ensure_network(lab: Lab) -> ipaddress.IPv4Network:
    names = networks(lab)
    if names:
        subnets = _network_subnets(names[:1])
        if not subnets:
            raise LabError(f"network {names[0]} has no IPv4 subnet: run bin/up --recreate")
        return subnets[0]
    everything = engine.docker("network", "ls", "--format={{.Name}}").stdout.split()
    route_text = Path("/proc/net/route").read_text(encoding="ascii")
    taken = routes(route_text) + _network_subnets(everything)
    reason = "every candidate overlaps a route or a Docker network"
    for _, subnet in zip(range(20), free_subnets(lab.key, taken), strict=False):
        made = engine.docker(
            "network",
            "create",
            f"--subnet={subnet}",
            f"--opt=com.docker.network.driver.mtu={default_mtu(route_text)}",
            f"--label={LABEL}={lab.key}",
            f"--label={CHECKOUT_LABEL}={inventory.CHECKOUT}",
            lab.prefix,
            check=False,
        )
        if made.returncode == 0:
            return subnet
        reason = engine.last_line(made.stderr)
        # Another lab took this subnet between our look and our step.
        if "overlap" not in reason:
            break
    raise LabError(f"no network for lab {lab.name}: {reason}")


def _make_key(lab: Lab) -> None:
    lab.private_key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if lab.private_key.exists() and lab.private_key.with_suffix(".pub").exists():
        return
    lab.private_key.unlink(missing_ok=True)
    command = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        f"kestrel-stack lab {lab.name}",
        "-f",
        str(lab.private_key),
    ]
    try:
        made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        raise LabError("ssh-keygen is missing: apt-get install -y openssh-client") from None
    if made.returncode != 0:
        raise LabError(f"ssh-keygen failed: {engine.last_line(made.stderr)}")


def _public_key(lab: Lab) -> str:
    return lab.private_key.with_suffix(".pub").read_text(encoding="ascii").strip()


def run_command(lab: Lab, host: str, image: str, address: str, wanted: Mapping[str, str]) -> list[str]:
    """Return the arguments of ``docker`` that make a host."""
    return [
        "run",
        "--detach",
        f"--name={lab.container(host)}",
        f"--hostname={host}",
        f"--network={lab.prefix}",
        f"--ip={address}",
        f"--network-alias={host}",
        f"--label={LABEL}={lab.key}",
        f"--label={LABEL}.host={host}",
        f"--label={CHECKOUT_LABEL}={inventory.CHECKOUT}",
        f"--label={DEFINITION_LABEL}={json.dumps(dict(wanted), sort_keys=True)}",
        *RUN_OPTIONS,
        image,
    ]


def _create(lab: Lab, host: str, image: str, address: str, wanted: Mapping[str, str]) -> None:
    made = engine.docker(*run_command(lab, host, image, address, wanted), check=False)
    if made.returncode != 0:
        # docker run leaves the container behind when only its start failed.
        engine.docker("rm", "--force", lab.container(host), check=False)
        raise LabError(f"{host}: the container did not start: {engine.last_line(made.stderr)}")


def _wait(condition: Callable[[], str | None], seconds: float) -> str | None:
    """Poll until ``condition`` returns None (it holds); after ``seconds`` return its last reason."""
    end = time.monotonic() + seconds
    while True:
        reason = condition()
        if reason is None or time.monotonic() >= end:
            return reason
        time.sleep(POLL_SECONDS)


def _wait_for_systemd(lab: Lab, host: str, say: Callable[[str], None]) -> None:
    container = lab.container(host)
    ended = False

    def condition() -> str | None:
        nonlocal ended
        state = engine.exec_in(container, "systemctl", "is-system-running")
        answer = state.stdout.strip() or engine.last_line(state.stderr)
        # PID 1 that is gone does not come back: no use waiting for it.
        ended = "is not running" in answer
        return None if ended or answer in ("running", "degraded") else answer

    reason = _wait(condition, READY_SECONDS)
    if ended:
        _tell_journal(lab, host, say)
        raise LabError(f"{host}: the container ended at once (systemd did not start in it){_few_watches()}")
    if reason is not None:
        _tell_journal(lab, host, say)
        raise LabError(f"{host}: systemd is not up after {READY_SECONDS:.0f} s: {reason}")


def _few_watches(read: Callable[[], str] = lambda: INOTIFY.read_text(encoding="ascii")) -> str:
    """Name the limit that many containers reach first, where it is as low as kernels have it at first."""
    try:
        limit = int(read())
    except (OSError, ValueError):
        return ""
    if limit >= 512:
        return ""
    return f": {limit} inotify instances may be too few: sudo sysctl -w fs.inotify.max_user_instances=1024"


def _install_key(lab: Lab, host: str) -> None:
    """Let the lab's key, and no other, log in as admin; a host that has it already is not touched."""
    script = (
        "set -eu; umask 077; dir=/home/admin/.ssh; mkdir -p $dir; cat >$dir/new; "
        "if cmp -s $dir/new $dir/authorized_keys; then rm $dir/new; "
        "else mv $dir/new $dir/authorized_keys; fi; "
        "chown -R admin:admin $dir"
    )
    done = engine.exec_in(lab.container(host), "sh", "-c", script, stdin=f"{_public_key(lab)}\n".encode())
    if done.returncode != 0:
        raise LabError(f"{host}: the lab's key could not be installed: {engine.last_line(done.stderr)}")


def _host_keys(lab: Lab, host: str) -> list[str]:
    """Return the host's public keys, read through the engine, not over the network they secure."""

    def condition() -> str | None:
        done = engine.exec_in(lab.container(host), "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
        keys[:] = [" ".join(line.split()[:2]) for line in done.stdout.splitlines() if line.strip()]
        return None if done.returncode == 0 and keys else engine.last_line(done.stderr)

    keys: list[str] = []
    reason = _wait(condition, LOGIN_SECONDS)
    if reason is not None:
        raise LabError(f"{host}: sshd made no host keys: {reason}")
    return keys


def _write_files(lab: Lab, addresses: Mapping[str, str]) -> None:
    lines = [
        f"{host},{address} {key}" for host, address in addresses.items() for key in _host_keys(lab, host)
    ]
    write(lab.ssh_config.with_name("known_hosts"), "\n".join(lines) + "\n")
    write(lab.ssh_config, inventory.ssh_config(lab, addresses))
    write(lab.containers_yml, inventory.containers_yml(lab, addresses, _public_key(lab)))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; leave one with the same content as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _wait_for_ssh(lab: Lab, host: str, address: str, say: Callable[[str], None]) -> None:
    def port_open() -> str | None:
        try:
            with socket.create_connection((address, 22), timeout=2):
                return None
        except OSError as error:
            return f"{error.strerror or error}"

    reason = _wait(port_open, LOGIN_SECONDS)
    if reason is not None:
        inside = engine.exec_in(lab.container(host), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22")
        if inside.returncode == 0:
            raise LabError(
                f"{host}: {address} does not answer here, sshd does inside ({reason}): this engine's "
                "containers have no address that this machine reaches (Docker Desktop, rootless or remote); "
                "use a Docker engine that runs as root on this machine"
            )
        _tell_journal(lab, host, say)
        raise LabError(f"{host}: sshd does not listen: {reason}")

    def logged_in() -> str | None:
        done = subprocess.run(
            [
                "ssh",
                "-F",
                str(lab.ssh_config),
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=5",
                host,
                "sudo -n true",
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return None if done.returncode == 0 else engine.last_line(done.stderr)

    reason = _wait(logged_in, LOGIN_SECONDS)
    if reason is not None:
        _tell_journal(lab, host, say)
        raise LabError(f"{host}: no login as admin: {reason}")


def _tell_journal(lab: Lab, host: str, say: Callable[[str], None]) -> None:
    """Print the container's own last words: its journal, or what PID 1 wrote when it is gone."""
    journal = engine.exec_in(lab.container(host), "journalctl", "--boot", "--no-pager", "--lines=40")
    text = journal.stdout
    if journal.returncode != 0:
        logs = engine.docker("logs", "--tail=40", lab.container(host), check=False)
        text = logs.stdout + logs.stderr
    for line in text.splitlines():
        say(f"{host}| {line}")
