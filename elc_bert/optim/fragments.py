"""Flat parameters that hold fragments of several tensors, and their division into chunks for kernels."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Fragment(NamedTuple):
    """The part of one of the model's tensors that lies in a parameter of the optimizer."""

    tensor: int
    """Index of the tensor within the parameter's partition, the same on all ranks."""
    start: int
    """Index of the first element within the parameter."""
    length: int
    """Number of elements."""


@dataclass(frozen=True)
class FlatParameter:
    """A parameter of the optimizer during one step, with its state, options and fragments."""

    parameter: Tensor
    """fp32 weights: a whole tensor, or a flat buffer in which ZeRO has put fragments of several tensors."""
    state: dict[str, Any]
    """The optimizer's state: ``step``, ``exp_avg`` and ``exp_avg_sq``."""
    group: dict[str, Any]
    """The parameter group with its options."""
    num_tensors: int
    """Number of the model's tensors that have a part in this parameter on any rank."""
    fragments: tuple[Fragment, ...]
    """The fragments that this rank holds."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parameter, its gradient, and its first and second moment."""
        gradient = self.parameter.grad
        assert gradient is not None
        return self.parameter, gradient, self.state["exp_avg"], self.state["exp_avg_sq"]

    @property
    def weight_decay(self) -> float:
        """Coefficient of the decoupled weight decay."""
        weight_decay: float = self.group["weight_decay"]
        return weight_decay

    @property
    def learning_rate(self) -> float:
        """Learning rate of this step."""
        learning_rate: float = self.group["lr"]
        return learning_rate

    @property
    def eps(self) -> float:
        """Number that is added to the denominator of Adam's update."""
        eps: float = self.group["eps"]
        return eps

    @property
    def betas(self) -> tuple[float, float]:
        """Decay rates of the first and second moment."""
        betas: tuple[float, float] = self.group["betas"]
        return betas

    @property
    def bias_corrections(self) -> tuple[float, float]:
        """Divisors of the first and second moment that correct their bias towards 0."""
        step = float(self.state["step"])
        beta1, beta2 = self.betas
        return 1 - beta1**step, 1 - beta2**step


Layout = tuple[tuple[int, tuple[Fragment, ...]], ...]
"""Number of tensors and fragments of each flat parameter, which determine the division into chunks."""


class Chunk(NamedTuple):
    """A range of elements of a flat parameter that belong to one tensor."""

    flat: int
    """Index of the flat parameter."""
    tensor: int
    """Index of the tensor among those of all flat parameters."""
    start: int
    """Index of the first element within the flat parameter."""
    end: int
    """Index of the element after the last one."""


def layout_of(flats: Sequence[FlatParameter]) -> Layout:
    """Return the layout of flat parameters."""
    return tuple((flat.num_tensors, flat.fragments) for flat in flats)


def split_into_chunks(layout: Layout, size: int) -> list[Chunk]:
    """Split all fragments at multiples of ``size``; chunks are in the order of their tensors."""
    chunks, first = [], 0
    for number, (num_tensors, fragments) in enumerate(layout):
        for f in fragments:
            end = f.start + f.length
            bounds = [f.start, *range(f.start - f.start % size + size, end, size), end]
            chunks += [Chunk(number, first + f.tensor, a, b) for a, b in itertools.pairwise(bounds) if a < b]
        first += num_tensors
    return sorted(chunks, key=lambda chunk: chunk.tensor)


def num_tensors(layout: Layout) -> int:
    """Return the number of tensors of all flat parameters."""
    return sum(tensors for tensors, _ in layout)


def data_pointers(flat: FlatParameter) -> tuple[int, ...]:
    """Return the addresses of the parameter, its gradient and its two moments."""
    tensors = flat.tensors
    for tensor in tensors:
        # The kernels assume this. It holds because PyTorch keeps the type and strides that the choice of the
        # kernels has checked at the first step.
        assert tensor.dtype is torch.float32
        assert tensor.is_contiguous()
    return tuple([tensor.data_ptr() for tensor in tensors])
