"""Measured speed of matrix products on a device."""

import functools
import time
from collections.abc import Sequence

import torch


@functools.cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a matrix product, the best of several measurements.

    Call it on all ranks at the same time, so that devices of the same machine compete as they do in training.
    On a CPU that lacks instructions for ``dtype``, the kernels compute products in fp32, which is faster; the
    faster of the two counts there. The result is cached for the lifetime of the process.
    """
    if device.type == "cpu":
        return max(_best_product(device, each, (256, 1024)) for each in {dtype, torch.float32})
    return _best_product(device, dtype, (8192,))


def _best_product(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> float:
    """Return the highest speed measured for products of square matrices of these sizes."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds[1:]) < 0.1 and len(seconds) < 8):
            _synchronize(device)
            start = time.perf_counter()
            a @ b
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / min(seconds))
        # A CPU without instructions for this dtype would need seconds for each of the larger products.
        if min(seconds) > 0.01:
            break
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
