"""The model's costly operations on a GPU (CUDA or ROCm), in Triton.

Triton comes only with PyTorch's GPU builds, so this module is imported only if its kernels are used.

Shapes: ``N`` predicted tokens, ``V`` vocabulary; the others are those of reference.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

from elc_bert.kernels.mixing import FusedMixing
from elc_bert.kernels.reference import AttentionInputs, Kernels, Mixing
from elc_bert.kernels.triton.attention import attention, device_of

MIXING_BLOCK = 2048
"""Number of elements of a mixture per program."""
VOCABULARY_BLOCK = 4096
"""Number of logits that a program of the loss loads at a time."""


@triton.jit
def _combine(shares, tensors, output, size, N: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(N):
        total += tl.load(shares + j) * tl.load(tensors[j] + i, i < size, 0.0).to(tl.float32)
    tl.store(output + i, total.to(output.dtype.element_ty), i < size)


def combine(shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return ``sum_j shares_j t_j``, computed in one pass over memory and accumulated in fp32.

    Args:
        shares: fp32 ``[n]``.
        tensors: n tensors of one shape.
    """
    tensors = tuple(tensor.contiguous() for tensor in tensors)
    output = torch.empty_like(tensors[0])
    with device_of(output):
        _combine[(triton.cdiv(output.numel(), MIXING_BLOCK),)](
            shares, tensors, output, output.numel(), N=len(tensors), BLOCK=MIXING_BLOCK
        )
    return output


@triton.jit
def _inner_products(gradient, tensors, parts, size, N: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(gradient + i, i < size, 0.0).to(tl.float32)
    for j in tl.static_range(N):
        part = tl.sum(factor * tl.load(tensors[j] + i, i < size, 0.0).to(tl.float32))
        tl.store(parts + j * tl.num_programs(0) + tl.program_id(0), part)


def inner_products(gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return ``<gradient, t_j>`` for all j, fp32 ``[n]``, in one pass and with a fixed order of sums."""
    gradient = gradient.contiguous()
    tensors = tuple(tensor.contiguous() for tensor in tensors)
    programs = triton.cdiv(gradient.numel(), MIXING_BLOCK)
    parts = torch.empty(len(tensors), programs, dtype=torch.float32, device=gradient.device)
    with device_of(gradient):
        _inner_products[(programs,)](
            gradient, tensors, parts, gradient.numel(), N=len(tensors), BLOCK=MIXING_BLOCK
        )
    return parts.sum(1)


@triton.jit
def _cross_entropy_forward(
    logits, targets, losses, log_sums, correct, stride, V: tl.constexpr, SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss of one row of logits per program, reading the row once."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    # For a target outside of the vocabulary the loss is NaN; raising an error would need a synchronization.
    at_target = tl.load(logits + target, (target >= 0) & (target < V), float("nan")).to(tl.float32)
    highest, total = float("-inf"), 0.0
    is_beaten = tl.zeros((BLOCK,), tl.int1)
    values_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + column, column < V, float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(values))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(values - higher))
        highest = higher
        # If the largest logit occurs more than once, the first one is the prediction, as for argmax.
        is_beaten = is_beaten | (values > at_target) | ((values == at_target) & (column < target))
        if SMOOTHING > 0:
            values_sum += tl.where(column < V, values, 0.0)
    log_sum = highest + tl.log(total)
    loss = log_sum - (1 - SMOOTHING) * at_target
    if SMOOTHING > 0:
        loss -= SMOOTHING / V * tl.sum(values_sum)
    tl.store(losses + row, loss)
    tl.store(log_sums + row, log_sum)
    tl.store(correct + row, tl.max(is_beaten.to(tl.int32)) == 0)


@triton.jit
def _cross_entropy_backward(
    logits, targets, log_sums, factor, gradient, stride, V: tl.constexpr, SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target, log_sum, factor = tl.load(targets + row), tl.load(log_sums + row), tl.load(factor)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + row * stride + column, column < V, 0.0).to(tl.float32)
        wanted = tl.where(column == target, 1 - SMOOTHING + SMOOTHING / V, SMOOTHING / V)
        result = factor * (tl.exp(values - log_sum) - wanted)
        tl.store(gradient + row * V + column, result.to(gradient.dtype.element_ty), column < V)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        rows, vocabulary = logits.shape
        losses, log_sums = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
        correct = torch.empty(rows, dtype=torch.bool, device=logits.device)
        ctx.constants = {
            "V": vocabulary,
            "SMOOTHING": label_smoothing,
            "BLOCK": min(VOCABULARY_BLOCK, triton.next_power_of_2(vocabulary)),
            "num_warps": 8,
        }
        if rows:
            with device_of(logits):
                _cross_entropy_forward[(rows,)](
                    logits, targets, losses, log_sums, correct, logits.stride(0), **ctx.constants
                )
        correct = correct.sum()
        ctx.save_for_backward(logits, targets, log_sums)
        ctx.mark_non_differentiable(correct)
        return losses.sum(), correct

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> Any:
        logits, targets, log_sums = ctx.saved_tensors
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        if len(logits):
            with device_of(logits):
                _cross_entropy_backward[(len(logits),)](
                    logits, targets, log_sums, loss_gradient, gradient, logits.stride(0), **ctx.constants
                )
        return gradient, None, None


class TritonKernels(Kernels):
    """Fast paths for fp32, bf16 and fp16, none of which synchronizes with the GPU.

    The order of every sum depends only on the shapes and the mask, so results are reproducible.
    """

    combine = staticmethod(combine)
    inner_products = staticmethod(inner_products)

    @override
    def mixing(self) -> Mixing:
        return FusedMixing(self)

    @override
    def attention(self, inputs: AttentionInputs) -> Tensor:
        return super().attention(inputs) if inputs.query.dtype == torch.float64 else attention(inputs)

    @override
    def cross_entropy(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the cross entropy, which is NaN if a target is outside of the vocabulary."""
        loss: Tensor
        correct: Tensor
        loss, correct = _CrossEntropy.apply(logits.contiguous(), targets.contiguous(), label_smoothing)
        return loss, correct
