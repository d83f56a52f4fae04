"""Filters for who may reach Kestrel's ports: from the inventory to the addresses in the packet filter.

They run on the controller and touch nothing. Those that check return lists of one-line sentences: an empty
list is a pass. Nothing of kestrel_stack is imported: Ansible runs them with its own Python, where it may be
missing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: Any) -> _Network:
    """Read an address or a network; ValueError for anything else, a network with host bits included."""
    network = ipaddress.ip_network(str(text))
    # An address of the form ::ffff:10.0.0.1 is how a program sees an IPv4 client; the packets are IPv4.
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def source_problems(sources: Iterable[Any], variable: str) -> list[str]:
    """Say which entries of `variable` are no address and no network."""
    problems = []
    for source in sources:
        try:
            _network(source)
        except ValueError:
            try:
                fix = f"write {ipaddress.ip_network(str(source), strict=False)}, or the one address"
            except ValueError:
                fix = "write it like 10.0.0.21 or 10.0.0.0/24"
            problems.append(f"{variable}: {source!s} is no address and no network: {fix}")
    return problems


def host_names(hosts: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """List each kestrel_stack_address of `hosts` that is a name, which only a host can resolve."""
    found = set()
    for host in hosts:
        address = str(hostvars[host].get("kestrel_stack_address") or "")
        try:
            _network(address)
        except ValueError:
            found.add(address)
    return sorted(found - {""})


def host_problems(
    hosts: Sequence[str], hostvars: Mapping[str, Any], resolved: Mapping[str, Sequence[str]], this_host: str
) -> list[str]:
    """Say which of `hosts` cannot be let through on `this_host`, where names are what `resolved` says."""
    problems = []
    for host in dict.fromkeys(hosts):
        address = str(hostvars[host].get("kestrel_stack_address") or "")
        if host == this_host:
            continue
        if not address:
            problems.append(
                f"kestrel_stack_address of {host} is empty, so {this_host} cannot let it through:"
                " give the address other hosts reach it by, like 10.0.0.11"
            )
        elif address in resolved and not resolved[address]:
            problems.append(
                f"kestrel_stack_address of {host} is {address}, which {this_host} cannot resolve:"
                " give an address, or make the name known there"
            )
    return problems


def _sources(
    hosts: Iterable[str],
    hostvars: Mapping[str, Any],
    resolved: Mapping[str, Sequence[str]],
    further: Iterable[Any],
    variable: str,
) -> list[tuple[_Network, str]]:
    found: list[tuple[_Network, str]] = []
    for host in sorted(set(hosts)):
        address = str(hostvars[host].get("kestrel_stack_address") or "")
        for one in resolved.get(address, [address]):
            try:
                found.append((_network(one), host))
            except ValueError:  # what `host_problems` has refused, and an inventory that is only checked
                continue
    found += [(_network(source), variable) for source in further]
    # This host itself is let through by its interface, not by an address that anybody may have.
    return [(network, who) for network, who in found if not network.is_loopback]


def sources(
    hosts: Iterable[str],
    hostvars: Mapping[str, Any],
    resolved: Mapping[str, Sequence[str]],
    further: Iterable[Any],
    variable: str,
) -> dict[str, Any]:
    """Say who may reach a port: the addresses of `hosts`, and `further`, which `variable` names.

    Returns {"ipv4": [...], "ipv6": [...], "who": [[address, host or variable], ...]}. The first two are free
    of overlaps and sorted, as a set of the packet filter wants them; the same input gives the same text.
    """
    found = _sources(hosts, hostvars, resolved, further, variable)

    def text(network: _Network) -> str:
        single = network.prefixlen == network.max_prefixlen
        return str(network.network_address if single else network)

    def family(version: int) -> list[str]:
        networks: Any = sorted({network for network, _ in found if network.version == version})
        # One that lies in another is an overlap. Neighbours stay apart, so that the table shows who is in it.
        return [text(one) for one in networks if not any(one != it and one.subnet_of(it) for it in networks)]

    result: dict[str, Any] = {"ipv4": family(4), "ipv6": family(6)}
    result["who"] = [[text(network), who] for network, who in found]
    return result


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name each filter."""
        return {
            "kestrel_stack_source_problems": source_problems,
            "kestrel_stack_host_names": host_names,
            "kestrel_stack_firewall_problems": host_problems,
            "kestrel_stack_sources": sources,
        }
