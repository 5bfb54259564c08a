"""LAMB's kernels on a GPU (CUDA or ROCm), in Triton; each method is one launch and one pass over memory.

Triton comes only with PyTorch's GPU builds, so this module is imported only if its kernels are used.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from elc_bert.optim.fragments import (
    FlatParameter,
    Layout,
    data_pointers,
    layout_of,
    num_tensors,
    split_into_chunks,
)
from elc_bert.optim.lamb_reference import LambKernels

BLOCK = 4096
"""Number of elements per program: four vectors of four elements for each thread of eight warps."""
WARPS = 8


@triton.jit
def _update_block(
    p, g, m, v, low, high,
    stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
    MOVES_MOMENTS: tl.constexpr, MOVES_WEIGHTS: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update elements ``low`` to ``high`` of the block at the pointers, and return their sums of squares."""
    i = tl.arange(0, BLOCK)
    # With a mask the compiler cannot vectorize the accesses, so whole blocks have none.
    inside = None if WHOLE else (i >= low) & (i < high)
    outside = None if WHOLE else 0.0
    weight = tl.load(p + i, inside, outside)
    first = tl.load(m + i, inside, outside)
    second = tl.load(v + i, inside, outside)
    if MOVES_MOMENTS:
        gradient = tl.load(g + i, inside, outside)
        first += weight1 * (gradient - first)
        second = beta2 * second + weight2 * gradient * gradient
        tl.store(m + i, first, inside)
        tl.store(v + i, second, inside)
    update = tl.div_rn(scale1 * first, tl.sqrt_rn(scale2 * second) + eps) + decay * weight
    if MOVES_WEIGHTS:
        tl.store(p + i, weight - stride * update, inside)
    if not WHOLE:
        # Outside of the chunk the update is 0 / eps, which is NaN if eps is 0.
        update = tl.where(inside, update, 0.0)
    return tl.sum(weight * weight), tl.sum(update * update)


@triton.jit(do_not_specialize=["first_chunk", "num_chunks"])
def _lamb_pass(
    pointers, chunks, ratios, squares, first_chunk, num_chunks,
    rate, decay, eps, weight1, beta2, weight2, scale1, scale2,
    MOVES_MOMENTS: tl.constexpr, MOVES_WEIGHTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update one chunk per program, and write its sums of squares.

    ``pointers``, int64 [flat parameters, 4], holds the addresses of parameters, gradients and moments, and
    ``chunks``, int64 [chunks, 4], rows of ``Chunk``. ``ratios`` is fp32 [tensors], or None for 1. The sums of
    the squares of weights and updates go to ``squares``, fp64 [2, chunks], if the moments are updated.
    ``first_chunk`` is the first chunk of this launch and ``num_chunks`` the number of chunks of all launches.
    With ``ALIGNED``, all addresses are multiples of 16 bytes.
    """
    chunk = first_chunk + tl.program_id(0)
    flat = tl.load(chunks + 4 * chunk)
    start = tl.load(chunks + 4 * chunk + 2)
    end = tl.load(chunks + 4 * chunk + 3)
    # Fragments are split at multiples of BLOCK, so all chunks but their ends are whole, aligned blocks.
    base = start // BLOCK * BLOCK
    row = pointers + 4 * flat
    p = tl.load(row).to(tl.pointer_type(tl.float32))
    g = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    m = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    v = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        # The hint is on the pointers because the compiler drops it from integers that were loaded.
        p, g, m, v = (
            tl.multiple_of(p, 16),
            tl.multiple_of(g, 16),
            tl.multiple_of(m, 16),
            tl.multiple_of(v, 16),
        )
    p, g, m, v = p + base, g + base, m + base, v + base
    stride = rate
    if ratios is not None:
        stride *= tl.load(ratios + tl.load(chunks + 4 * chunk + 1))
    if end - start == BLOCK:
        weights, updates = _update_block(
            p, g, m, v, 0, BLOCK,
            stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
            MOVES_MOMENTS, MOVES_WEIGHTS, True, BLOCK,
        )  # fmt: skip
    else:
        weights, updates = _update_block(
            p, g, m, v, (start - base).to(tl.int32), (end - base).to(tl.int32),
            stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
            MOVES_MOMENTS, MOVES_WEIGHTS, False, BLOCK,
        )  # fmt: skip
    if MOVES_MOMENTS:
        tl.store(squares + chunk, weights.to(tl.float64))
        tl.store(squares + num_chunks + chunk, updates.to(tl.float64))


@dataclass(frozen=True)
class _Tables:
    """Tables that depend only on the layout."""

    chunks: Tensor
    """Rows of ``Chunk``, int64 [chunks, 4], on the GPU."""
    lengths: Tensor
    """Number of chunks of each tensor, repeated for the two sums: int64 [2 * tensors], on the GPU."""
    first_chunks: list[int]
    """Index of the first chunk of each flat parameter, followed by the total number of chunks."""


class TritonLambKernels(LambKernels):
    """Fused kernels, none of which synchronizes with the GPU.

    Parameters, gradients and moments are contiguous and fp32, on one device. The order in which squares are
    summed depends only on the layout, so results are reproducible.
    """

    @override
    def update_moments(self, flats: Sequence[FlatParameter]) -> Tensor:
        return self._run(flats, None, moves_moments=True, moves_weights=False)

    @override
    def step(self, flats: Sequence[FlatParameter], trust_ratios: Tensor) -> None:
        self._run(flats, trust_ratios.contiguous(), moves_moments=False, moves_weights=True)

    @override
    def update_moments_and_step(self, flats: Sequence[FlatParameter]) -> Tensor:
        return self._run(flats, None, moves_moments=True, moves_weights=True)

    @staticmethod
    def _run(
        flats: Sequence[FlatParameter], ratios: Tensor | None, moves_moments: bool, moves_weights: bool
    ) -> Tensor:
        """Make one pass, and return the sums of squares, fp32 [tensors of all flat parameters, 2]."""
        if not flats:
            return torch.zeros(0, 2)
        device = flats[0].parameter.device
        tables = _tables(layout_of(flats), device)
        pointers = tuple(itertools.chain.from_iterable(data_pointers(flat) for flat in flats))
        squares = torch.zeros(2, len(tables.chunks), dtype=torch.float64, device=device)
        with torch.cuda.device_of(squares):
            for first, last, options in _launches(flats, tables.first_chunks):
                _lamb_pass[(last - first,)](
                    _on_device(pointers, device),
                    tables.chunks,
                    ratios,
                    squares,
                    first,
                    len(tables.chunks),
                    *options,
                    MOVES_MOMENTS=moves_moments,
                    MOVES_WEIGHTS=moves_weights,
                    ALIGNED=all(pointer % 16 == 0 for pointer in pointers),
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )
        # Checking the lengths (unsafe=False) would synchronize with the GPU.
        sums = torch.segment_reduce(squares.view(-1), "sum", lengths=tables.lengths, unsafe=True, initial=0.0)
        return sums.view(2, -1).T.float().contiguous()


def _launches(
    flats: Sequence[FlatParameter], first_chunks: Sequence[int]
) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """Yield first chunk, last chunk (exclusive) and options for each run of parameters with equal options."""
    runs = itertools.groupby(range(len(flats)), key=lambda i: _options(flats[i]))
    for options, run in runs:
        members = list(run)
        first, last = first_chunks[members[0]], first_chunks[members[-1] + 1]
        if first < last:
            yield first, last, options


def _options(flat: FlatParameter) -> tuple[float, ...]:
    """Return the arguments of ``_lamb_pass`` from ``rate`` on, floats for which Triton does not recompile."""
    (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
    options = (flat.learning_rate, flat.weight_decay, flat.eps, 1 - beta1, beta2, 1 - beta2)
    return (*map(float, options), 1 / correction1, 1 / correction2)


@functools.lru_cache(maxsize=16)
def _tables(layout: Layout, device: torch.device) -> _Tables:
    chunks = split_into_chunks(layout, BLOCK)
    rows = torch.tensor(chunks, dtype=torch.int64).view(-1, 4)
    # Tensors, and thus chunks, are in the order of the flat parameters.
    chunks_per_flat = torch.bincount(rows[:, 0], minlength=len(layout))
    chunks_per_tensor = torch.bincount(rows[:, 1], minlength=num_tensors(layout))
    return _Tables(
        rows.to(device), chunks_per_tensor.repeat(2).to(device), [0, *chunks_per_flat.cumsum(0).tolist()]
    )


@functools.lru_cache(maxsize=16)
def _on_device(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy addresses, which change whenever gradients are reallocated, to the GPU without synchronizing."""
    table = torch.tensor(addresses, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
