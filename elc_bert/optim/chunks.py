"""The fragments of flat memory cut into pieces, for kernels whose workers take one piece after another."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from elc_bert.optim.passes import Flat, Fragment

Layout = tuple[tuple[int, tuple[Fragment, ...]], ...]
"""Number of tensors and fragments of every flat: all that the pieces depend on."""


class Chunk(NamedTuple):
    """A run of consecutive elements of a flat that belong to one tensor."""

    flat: int
    tensor: int
    """Number of the tensor among those of all flats."""
    start: int
    """First element within the flat."""
    end: int


def layout_of(flats: Sequence[Flat]) -> Layout:
    return tuple((flat.num_tensors, flat.fragments) for flat in flats)


def cut(layout: Layout, size: int) -> list[Chunk]:
    """Chunks in the order of their tensors, cut where a flat's elements reach a multiple of ``size``."""
    chunks, first = [], 0
    for number, (num_tensors, fragments) in enumerate(layout):
        for f in fragments:
            end = f.start + f.length
            cuts = [f.start, *range(f.start - f.start % size + size, end, size), end]
            chunks += [Chunk(number, first + f.tensor, a, b) for a, b in itertools.pairwise(cuts) if a < b]
        first += num_tensors
    return sorted(chunks, key=lambda chunk: chunk.tensor)


def num_tensors(layout: Layout) -> int:
    return sum(tensors for tensors, _ in layout)


def addresses(flat: Flat) -> tuple[int, ...]:
    """Where the parameter, its gradient and its two moments begin."""
    tensors = flat.tensors
    for tensor in tensors:
        # Kernels count elements from there on. PyTorch keeps the layout that choose_passes has seen.
        assert tensor.dtype is torch.float32
        assert tensor.is_contiguous()
    return tuple([tensor.data_ptr() for tensor in tensors])
