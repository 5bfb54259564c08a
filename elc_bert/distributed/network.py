"""Addresses and network interfaces by which other hosts reach this host."""

import contextlib
import ipaddress
import socket

import psutil


def address_towards(host: str) -> str:
    """Return this host's own address on the route to another host. Nothing is sent.

    Args:
        host: Name or address of the other host.

    Raises:
        OSError: The host is unknown, or there is no route to it.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def external_address() -> str | None:
    """Return the address by which other hosts reach this host.

    That is the address on the default route, or else the only address that is not loopback. The result is
    None if there is no default route, and several such addresses or none.
    """
    with contextlib.suppress(OSError):
        return address_towards("192.0.2.1")  # reserved for documentation, so the default route leads to it
    addresses = [
        address for _, address in _interface_addresses() if ":" not in address and not is_loopback(address)
    ]
    return addresses[0] if len(addresses) == 1 else None


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an address, or None."""
    return next((name for name, other in _interface_addresses() if other == address), None)


def is_loopback(address: str) -> bool:
    """Return whether an address can only be reached from this host."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _interface_addresses() -> list[tuple[str, str]]:
    """Return pairs of an interface's name and one of its addresses."""
    return [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]
