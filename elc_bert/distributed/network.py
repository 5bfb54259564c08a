"""The addresses and interfaces by which this machine is reached."""

import contextlib
import ipaddress
import socket

import psutil


def address_towards(host: str) -> str:
    """This machine's own address when it talks to a host; nothing is sent.

    Raises:
        OSError: no such host, or no way to it.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return probe.getsockname()[0]


def address_outwards() -> str | None:
    """The address that other machines know this one by, None if there are several and no default route."""
    with contextlib.suppress(OSError):
        return address_towards("192.0.2.1")  # a documentation address
    addresses = [address for _, address in _addresses() if ":" not in address and not is_loopback(address)]
    return addresses[0] if len(addresses) == 1 else None


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    return next((name for name, other in _addresses() if other == address), None)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's for itself only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _addresses() -> list[tuple[str, str]]:
    """Interfaces and their addresses."""
    return [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]
