"""Logarithmic buckets of relative positions."""

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
