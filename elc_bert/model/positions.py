"""Relative positions in logarithmic buckets (DeBERTa, He et al. 2021, section 3)."""

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def relative_buckets(length: int, bucket_size: int, max_position: int, device: torch.device) -> Tensor:
    """Row of the relative embedding for every pair of positions.

    Entry (i, j) of the result, int64 ``[T, T]``, lies in ``[0, 2B - 2]`` and encodes the distance
    ``i - j``: exact up to ``B / 2`` to either side, logarithmic up to ``max_position``, and the
    outermost bucket for everything beyond.

    The logarithm is taken in float32: at a few boundaries float64 would round to the other bucket,
    and published checkpoints were trained with these.
    """
    positions = torch.arange(length, device=device)
    offset = positions[:, None] - positions[None, :]
    exact_limit = bucket_size // 2
    # Distances inside the exact range are raised to it so that the logarithm below stays finite.
    distance = offset.abs().clamp(min=exact_limit - 1, max=max_position - 1)
    octaves = torch.log(distance / exact_limit) / math.log((max_position - 1) / exact_limit)
    logarithmic = exact_limit + torch.ceil(octaves * (exact_limit - 1)).long()
    bucket = torch.where(distance <= exact_limit, offset, offset.sign() * logarithmic)
    return bucket + (bucket_size - 1)
