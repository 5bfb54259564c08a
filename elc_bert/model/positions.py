"""Logarithmic buckets of relative positions (DeBERTa, He et al. 2021, section 3)."""

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def distance_buckets(length: int, bucket_size: int, max_position: int, device: torch.device) -> Tensor:
    """Return the bucket of every distance ``i - j`` between two positions of a sequence.

    The bucket is the row of the relative-position embedding. It lies in ``[0, 2 * bucket_size - 2]`` and
    increases with the distance: distances up to ``bucket_size / 2`` to either side have a bucket each, those
    up to ``max_position`` share logarithmically growing ones, and all beyond fall into the outermost bucket.

    The logarithm is taken in float32. At a few boundaries float64 would round to the neighboring bucket, and
    published checkpoints were trained with the buckets of float32. GPUs round it differently, so it is
    always taken on the CPU: a model has the same buckets on every device.

    Args:
        length: Number of positions, T.
        bucket_size: Half the number of buckets, ``position_bucket_size`` of the configuration.
        max_position: ``max_position_embeddings`` of the configuration.
        device: Device of the result.

    Returns:
        Buckets, int64 ``[2 T - 1]``; entry ``i - j + T - 1`` is that of distance ``i - j``.
    """
    offset = torch.arange(1 - length, length, device="cpu")
    exact_limit = bucket_size // 2
    # Clamping from below keeps the logarithm finite; the result is not used for these distances.
    distance = offset.abs().clamp(min=exact_limit - 1, max=max_position - 1)
    octaves = torch.log(distance / exact_limit) / math.log((max_position - 1) / exact_limit)
    logarithmic = exact_limit + torch.ceil(octaves * (exact_limit - 1)).long()
    # For some values of max_position, such as 192, the largest distance is rounded up.
    logarithmic.clamp_(max=bucket_size - 1)
    bucket = torch.where(distance <= exact_limit, offset, offset.sign() * logarithmic)
    return (bucket + (bucket_size - 1)).to(device)
