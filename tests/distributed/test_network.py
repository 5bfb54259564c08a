"""Addresses and network interfaces of this host."""

import socket

import psutil
import pytest

from elc_bert.distributed.network import address_towards, external_address, interface_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1"])
def test_the_route_to_this_host_is_loopback(host):
    address = address_towards(host)
    assert is_loopback(address)
    assert interface_of(address) in ("lo", "lo0")


def test_an_unknown_host_raises():
    with pytest.raises(socket.gaierror):
        address_towards("no-such-host.invalid")


def test_interface_of_every_address():
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == socket.AF_INET:
                assert interface_of(entry.address) == name
    assert interface_of("198.51.100.7") is None


def test_the_external_address_is_not_loopback():
    address = external_address()
    if address is None:
        pytest.skip("this host has no default route and not exactly one address")
    assert not is_loopback(address)
    assert interface_of(address) is not None
