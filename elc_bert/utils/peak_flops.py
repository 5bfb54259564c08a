"""Speed of matrix products on a device, measured."""

import functools
import time
from collections.abc import Sequence

import torch


@functools.cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one matrix product on this device, the best of several.

    Call on all ranks at once, so that devices that share a machine share it here as in training. A CPU
    without instructions for ``dtype`` is faster in fp32, through which the kernels then take their products:
    there the faster of both counts. Measured once in a process.
    """
    if device.type == "cpu":
        return max(_best_product(device, each, (256, 1024)) for each in {dtype, torch.float32})
    return _best_product(device, dtype, (8192,))


def _best_product(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> float:
    """Floating-point operations per second of products of square matrices, the best of several."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        taken: list[float] = []
        while len(taken) < 3 or (sum(taken[1:]) < 0.1 and len(taken) < 8):
            _synchronise(device)
            start = time.perf_counter()
            a @ b
            _synchronise(device)
            taken.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / min(taken))
        # A CPU without instructions for this type would take seconds for each of the larger products.
        if min(taken) > 0.01:
            break
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
