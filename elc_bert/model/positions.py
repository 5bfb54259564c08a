"""Relative positions in logarithmic buckets (DeBERTa, He et al. 2021, section 3)."""

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def distance_buckets(length: int, bucket_size: int, max_position: int, device: torch.device) -> Tensor:
    """Row of the relative embedding for every distance ``i - j`` of two positions below ``length`` (T).

    Entry ``i - j + T - 1`` of the result, int64 ``[2 T - 1]``, lies in ``[0, 2B - 2]`` and rises with the
    distance: exact up to ``B / 2`` to either side, logarithmic up to ``max_position``, and the outermost
    bucket for everything beyond.

    The logarithm is taken in float32: at a few boundaries float64 would round to the other bucket,
    and published checkpoints were trained with these.
    """
    offset = torch.arange(1 - length, length, device=device)
    exact_limit = bucket_size // 2
    # Distances inside the exact range are raised to it so that the logarithm below stays finite.
    distance = offset.abs().clamp(min=exact_limit - 1, max=max_position - 1)
    octaves = torch.log(distance / exact_limit) / math.log((max_position - 1) / exact_limit)
    logarithmic = exact_limit + torch.ceil(octaves * (exact_limit - 1)).long()
    bucket = torch.where(distance <= exact_limit, offset, offset.sign() * logarithmic)
    return bucket + (bucket_size - 1)
