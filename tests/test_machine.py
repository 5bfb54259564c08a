"""What is read of this machine."""

import sys

import numpy as np
import pytest

from elc_bert.machine import available_memory, forget_peak, peak_resident_bytes, resident_bytes

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_peak_is_noticed_and_forgotten():
    forget_peak()
    before = peak_resident_bytes()
    block = np.ones(256 * MIB, dtype=np.uint8)
    assert resident_bytes() >= 256 * MIB
    assert peak_resident_bytes() - before >= 250 * MIB
    del block
    assert peak_resident_bytes() - before >= 250 * MIB
    forget_peak()
    assert peak_resident_bytes() - before < 50 * MIB


def test_some_memory_is_available():
    assert 0 < available_memory() < 1 << 50
