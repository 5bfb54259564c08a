"""Which address and interface lead to another host."""

import socket

import psutil
import pytest

from elc_bert.distributed.network import address_towards, external_address, interface_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1"])
def test_to_itself_a_machine_talks_over_loopback(host):
    address = address_towards(host)
    assert is_loopback(address)
    assert interface_of(address) in ("lo", "lo0")


def test_no_such_host():
    with pytest.raises(socket.gaierror):
        address_towards("no-such-host.invalid")


def test_every_address_has_its_interface():
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family == socket.AF_INET:
                assert interface_of(each.address) == name
    assert interface_of("198.51.100.7") is None


def test_others_know_a_machine_by_an_address_that_is_not_loopback():
    address = external_address()
    if address is None:
        pytest.skip("there is no single address")
    assert not is_loopback(address)
    assert interface_of(address) is not None
