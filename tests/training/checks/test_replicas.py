"""Checksums of weights. Real ranks are compared in test_faults.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.training.checks import replicas
from elc_bert.training.checks.replicas import checksum

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def tensor(dtype: torch.dtype, seed: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(dtype=DTYPES, seed=st.integers(0, 99), size=st.integers(1, 50), data=st.data())
def test_a_flipped_bit_and_two_swapped_values_change_the_checksum(dtype, seed, size, data):
    original = tensor(dtype, seed, size)
    places = st.integers(0, size - 1)
    changed = original.clone()
    bits = changed.view(torch.uint8)
    bits[data.draw(st.integers(0, len(bits) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(changed) != checksum(original)
    one, other = data.draw(places), data.draw(places)
    exchanged = original.clone()
    exchanged[[one, other]] = original[[other, one]]
    assert (checksum(exchanged) == checksum(original)) == (original[one] == original[other])


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_the_checksum_does_not_depend_on_the_block_size(monkeypatch, at_once):
    whole = checksum(tensor(torch.float32, 0, 100))
    monkeypatch.setattr(replicas, "BLOCK_SIZE", at_once)
    assert checksum(tensor(torch.float32, 0, 100)) == whole


def test_ranks_that_differ_from_the_majority_are_named():
    hosts = ["node-a", "node-a", "node-b", "node-b"]
    sums = [[1, 2], [1, 2], [1, 3], [1, 2]]
    assert (
        replicas._describe_difference(["x", "y"], hosts, sums)
        == "rank 2 (node-b) holds other weights than the majority in y"
    )
    sums[0] = [9, 3]
    assert (
        replicas._describe_difference(["x", "y"], hosts, sums)
        == "ranks 0-1 (node-a), ranks 2-3 (node-b) hold different weights in x, y"
    )
