"""Memory and ports of this machine."""

import itertools
import random
import socket
import sys

import numpy as np
import pytest

from elc_bert.utils.machine import (
    available_memory,
    free_port,
    peak_resident_bytes,
    reset_peak_memory,
    resident_bytes,
)

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_peak_memory_is_recorded_and_reset():
    reset_peak_memory()
    before = peak_resident_bytes()
    block = np.ones(256 * MIB, dtype=np.uint8)
    assert resident_bytes() >= 256 * MIB
    assert peak_resident_bytes() - before >= 250 * MIB
    del block
    assert peak_resident_bytes() - before >= 250 * MIB
    reset_peak_memory()
    assert peak_resident_bytes() - before < 50 * MIB


def test_some_memory_is_available():
    assert 0 < available_memory() < 1 << 50


def test_a_port_in_use_is_not_free(monkeypatch):
    taken = free_port()
    draws = itertools.count(taken)
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(draws))
    with socket.create_server(("", taken)):
        assert free_port() > taken
