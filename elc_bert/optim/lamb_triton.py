"""LAMB's passes on a GPU (CUDA or ROCm): one launch and one walk over memory each, in Triton.

Triton comes with torch's GPU builds, so this module is imported only where its kernels are wanted.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from elc_bert.optim.chunks import Layout, addresses, cut, layout_of, num_tensors
from elc_bert.optim.passes import Flat

BLOCK = 4096
"""Elements per program: four vectors of four numbers from each array for every thread of eight warps."""
WARPS = 8


@triton.jit
def _walk_block(
    p, g, m, v, low, high,
    stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
    MOVES_MOMENTS: tl.constexpr, MOVES_WEIGHTS: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements ``low`` to ``high`` of a block to which the pointers point; its sums of squares."""
    i = tl.arange(0, BLOCK)
    # Under a mask the compiler could not use vectors, so whole blocks have none.
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
        # Outside of the chunk the update is 0 / eps, which is not a number for an eps of 0.
        update = tl.where(inside, update, 0.0)
    return tl.sum(weight * weight), tl.sum(update * update)


@triton.jit(do_not_specialize=["first_chunk", "num_chunks"])
def _lamb_pass(
    pointers, chunks, ratios, squares, first_chunk, num_chunks,
    rate, decay, eps, weight1, beta2, weight2, scale1, scale2,
    MOVES_MOMENTS: tl.constexpr, MOVES_WEIGHTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk per program, whose sums of squares it leaves in ``squares``.

    Args:
        pointers: int64 [flats, 4], addresses of parameter, gradient and moments.
        chunks: int64 [chunks, 4], rows of ``Chunk``.
        ratios: fp32 [tensors], or None for 1.
        squares: fp64 [2, chunks], of weights and updates; untouched by a pass that leaves the moments.
        first_chunk: the first of this launch.
        num_chunks: of all launches.
        ALIGNED: all addresses are multiples of 16 bytes.
    """
    chunk = first_chunk + tl.program_id(0)
    flat = tl.load(chunks + 4 * chunk)
    start = tl.load(chunks + 4 * chunk + 2)
    end = tl.load(chunks + 4 * chunk + 3)
    # Chunks are cut at multiples of BLOCK, so that all but the ends of fragments are whole, aligned blocks.
    base = start // BLOCK * BLOCK
    row = pointers + 4 * flat
    p = tl.load(row).to(tl.pointer_type(tl.float32))
    g = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    m = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    v = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        # Said of the pointers, since the compiler forgets what it is told of a number that was loaded.
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
        weights, updates = _walk_block(
            p, g, m, v, 0, BLOCK,
            stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
            MOVES_MOMENTS, MOVES_WEIGHTS, True, BLOCK,
        )  # fmt: skip
    else:
        weights, updates = _walk_block(
            p, g, m, v, (start - base).to(tl.int32), (end - base).to(tl.int32),
            stride, decay, eps, weight1, beta2, weight2, scale1, scale2,
            MOVES_MOMENTS, MOVES_WEIGHTS, False, BLOCK,
        )  # fmt: skip
    if MOVES_MOMENTS:
        tl.store(squares + chunk, weights.to(tl.float64))
        tl.store(squares + num_chunks + chunk, updates.to(tl.float64))


@dataclass(frozen=True)
class _Tables:
    """What does not change from step to step."""

    chunks: Tensor
    """int64 [chunks, 4], on the GPU."""
    lengths: Tensor
    """int64 [2 * tensors]: chunks of every tensor, twice, for two sums; on the GPU."""
    first_chunks: list[int]
    """Of every flat, and the number of all."""


class TritonPasses:
    """The same arithmetic as ``PlainPasses``; nothing waits for the GPU.

    Parameters, gradients and moments are contiguous and fp32, on one device. The sums of squares are taken
    in an order that depends on nothing but the layout.
    """

    def update_moments(self, flats: Sequence[Flat]) -> Tensor:
        return self._run(flats, None, moves_moments=True, moves_weights=False)

    def step(self, flats: Sequence[Flat], trust_ratios: Tensor) -> None:
        self._run(flats, trust_ratios.contiguous(), moves_moments=False, moves_weights=True)

    def update_moments_and_step(self, flats: Sequence[Flat]) -> Tensor:
        return self._run(flats, None, moves_moments=True, moves_weights=True)

    @staticmethod
    def _run(
        flats: Sequence[Flat], ratios: Tensor | None, moves_moments: bool, moves_weights: bool
    ) -> Tensor:
        """One pass; the sums of squares, fp32 [tensors of all flats, 2]."""
        if not flats:
            return torch.zeros(0, 2)
        device = flats[0].parameter.device
        tables = _tables(layout_of(flats), device)
        begins = tuple(itertools.chain.from_iterable(addresses(flat) for flat in flats))
        squares = torch.zeros(2, len(tables.chunks), dtype=torch.float64, device=device)
        with torch.cuda.device_of(squares):
            for first, last, numbers in _launches(flats, tables.first_chunks):
                _lamb_pass[(last - first,)](
                    _on_device(begins, device),
                    tables.chunks,
                    ratios,
                    squares,
                    first,
                    len(tables.chunks),
                    *numbers,
                    MOVES_MOMENTS=moves_moments,
                    MOVES_WEIGHTS=moves_weights,
                    ALIGNED=all(begin % 16 == 0 for begin in begins),
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )
        # Checking the lengths would wait for the GPU.
        sums = torch.segment_reduce(squares.view(-1), "sum", lengths=tables.lengths, unsafe=True, initial=0.0)
        return sums.view(2, -1).T.float().contiguous()


def _launches(
    flats: Sequence[Flat], first_chunks: Sequence[int]
) -> Iterator[tuple[int, int, tuple[float, ...]]]:
    """First and last (exclusive) chunk, and the numbers, of each run of flats that agree in the numbers."""
    runs = itertools.groupby(range(len(flats)), key=lambda i: _numbers(flats[i]))
    for numbers, run in runs:
        members = list(run)
        first, last = first_chunks[members[0]], first_chunks[members[-1] + 1]
        if first < last:
            yield first, last, numbers


def _numbers(flat: Flat) -> tuple[float, ...]:
    """The arguments of ``_lamb_pass`` from ``rate`` on; for new floats Triton compiles nothing anew."""
    (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
    numbers = (flat.learning_rate, flat.weight_decay, flat.eps, 1 - beta1, beta2, 1 - beta2)
    return (*map(float, numbers), 1 / correction1, 1 / correction2)


@functools.lru_cache(maxsize=16)
def _tables(layout: Layout, device: torch.device) -> _Tables:
    chunks = cut(layout, BLOCK)
    rows = torch.tensor(chunks, dtype=torch.int64).view(-1, 4)
    # Tensors, and with them chunks, are numbered in the order of the flats.
    of_flats = torch.bincount(rows[:, 0], minlength=len(layout))
    of_tensors = torch.bincount(rows[:, 1], minlength=num_tensors(layout))
    return _Tables(rows.to(device), of_tensors.repeat(2).to(device), [0, *of_flats.cumsum(0).tolist()])


@functools.lru_cache(maxsize=16)
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The addresses change where gradients are allocated anew; the copy does not wait for the GPU."""
    table = torch.tensor(numbers, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
