"""Logarithmic buckets of relative positions."""

import importlib

import pytest
import torch

from elc_bert.model.positions import distance_buckets

CPU = torch.device("cpu")


def test_near_positions_have_one_bucket_each():
    buckets = distance_buckets(41, 32, 512, CPU)  # distances -40 to 40
    assert buckets[24:57].tolist() == [31 + d for d in range(-16, 17)]


def test_far_positions_share_buckets_within_the_table():
    buckets = distance_buckets(2000, 32, 512, CPU)  # distances -1999 to 1999
    assert buckets.tolist() == sorted(buckets.tolist())
    assert buckets.min() == 0
    assert buckets.max() == 62
    assert set(buckets[1999 + 511 :].tolist()) == {
        62
    }  # distances beyond the range are in the outermost bucket
    assert (buckets + buckets.flip(0) == 62).all()  # antisymmetric around the middle row 31


@pytest.mark.parametrize("bucket_size", [8, 16, 31, 32, 64, 128])
def test_every_distance_has_a_row_of_the_table(bucket_size):
    for max_position in range(max(8, bucket_size // 2 + 2), 2049):
        buckets = distance_buckets(max_position + 40, bucket_size, max_position, CPU)
        size, middle = 2 * bucket_size - 1, bucket_size - 1
        right = buckets[max_position + 39 :]  # distances from 0 on
        assert right[0] == middle
        assert (right.diff() >= 0).all(), max_position
        # With an odd size, rounding may reach the row that is otherwise left over.
        outermost = {size - 1, size - 1 - bucket_size % 2}
        assert right[-1] == right[max_position - 1], max_position
        assert int(right[-1]) in outermost, max_position
        assert torch.equal(buckets + buckets.flip(0), torch.full_like(buckets, size - 1)), max_position


@pytest.mark.parametrize("bucket_size", [4, 8, 31, 32, 128])
def test_the_exported_model_has_the_same_buckets(bucket_size):
    exported = importlib.import_module("elc_bert.hub.files.modeling_elc_bert").distance_buckets
    for max_position in range(max(8, bucket_size // 2 + 2), 2049):
        size = max(max_position, bucket_size)
        expected = distance_buckets(size, bucket_size, max_position, CPU)
        assert torch.equal(exported(bucket_size, max_position), expected), max_position


def test_buckets_are_computed_on_the_cpu_for_every_device():
    # The meta device computes no values: a logarithm that is taken there could not be compared.
    with torch.device("meta"):
        buckets = distance_buckets(50, 32, 192, CPU)
    assert torch.equal(buckets, distance_buckets.__wrapped__(50, 32, 192, CPU))
    assert distance_buckets(50, 32, 192, torch.device("meta")).device.type == "meta"
