"""Fast paths on a CPU: each operation between the matrix products is one pass over memory in kernels.c."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from elc_bert.kernels.autograd import apply
from elc_bert.kernels.cpu.library import (
    DROPOUT_ROW,
    GEGLU_ROWS,
    MIX_BLOCK,
    DropoutKey,
    is_half,
    library,
    run,
)
from elc_bert.kernels.cpu.products import linear, multiply
from elc_bert.kernels.mixing import FusedMixing
from elc_bert.kernels.reference import AttentionInputs, Kernels, Mixing

DTYPES = (torch.float32, torch.bfloat16)
SCORES_PER_CHUNK = 1 << 22
"""Number of scores (16 MiB) that attention computes at a time, so that they stay in the processor's cache."""


class CpuKernels(Kernels):
    """Fast paths for float32 and bfloat16 tensors; other types fall back to the definitions.

    Results are bit-identical for any number of threads.

    Raises:
        UserError: The C library was not built when the package was installed.
    """

    def __init__(self) -> None:
        library()

    @override
    def mixing(self) -> Mixing:
        return FusedMixing(self)

    def combine(self, shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``sum_j shares_j t_j``; see ``MixingKernels``."""
        if tensors[0].dtype not in DTYPES:
            pairs = zip(shares.to(tensors[0].dtype), tensors, strict=True)
            return torch.stack([share * tensor for share, tensor in pairs]).sum(0)
        result = torch.empty_like(tensors[0])
        run("combine", **_mix_arguments(tensors), shares=shares.float().contiguous(), sum=result)
        return result

    def inner_products(self, gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``<gradient, t_j>`` for all j; see ``MixingKernels``."""
        if gradient.dtype not in DTYPES:
            return torch.stack([(gradient.float() * tensor.float()).sum() for tensor in tensors])
        arguments = _mix_arguments(tensors)
        partial = torch.empty(arguments["tasks"], len(tensors), dtype=torch.float64)
        run("inner_products", **arguments, gradient=gradient, products=partial)
        return partial.sum(0).float()

    @override
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias)

    @override
    def attention(self, inputs: AttentionInputs) -> Tensor:
        q, k, v, position_q, position_k = inputs.vectors
        if q.dtype not in DTYPES or any(tensor.dtype != q.dtype for tensor in inputs.vectors):
            return super().attention(inputs)
        # Buckets increase with the distance, so short sequences need only those in the middle.
        buckets = inputs.distance_buckets
        used = slice(int(buckets[0]), int(buckets[-1]) + 1)
        position_q, position_k = position_q[used], position_k[used]
        plan = _AttentionPlan(q, position_q, buckets, inputs.attention_mask, inputs.dropout)
        context: Tensor = apply(_Attention, q, k, v, position_q, position_k, plan)
        return context

    @override
    def geglu_norm(self, x: Tensor, eps: float) -> Tensor:
        if x.dtype not in DTYPES:
            return super().geglu_norm(x, eps)
        y: Tensor = apply(_GegluNorm, x, eps)
        return y

    @override
    def dropout(self, x: Tensor, probability: float) -> Tensor:
        if not probability or x.dtype not in DTYPES:
            return super().dropout(x, probability)
        y: Tensor = apply(_Dropout, x, _dropout_key(probability))
        return y

    @override
    def cross_entropy(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        # The definition handles or rejects targets outside of the vocabulary; C would write out of bounds.
        is_inside = bool(((targets >= 0) & (targets < logits.shape[-1])).all())
        if logits.dtype not in DTYPES or not is_inside:
            return super().cross_entropy(logits, targets, label_smoothing)
        loss: Tensor
        correct: Tensor
        loss, correct = apply(_CrossEntropy, logits, targets, label_smoothing)
        return loss, correct


def _dropout_key(probability: float) -> DropoutKey:
    """Draw a mask's key from PyTorch's generator, so that ``torch.manual_seed`` determines the mask."""
    seed = int(torch.randint(2**63 - 1, ())) if probability else 0
    threshold = round(probability * 2**31)
    return DropoutKey(seed, 1 / (1 - probability) if probability < 1 else 0.0, min(threshold, 2**31 - 1))


def _mix_arguments(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Return the arguments that ``combine`` and ``inner_products`` have in common."""
    assert all(tensor.is_contiguous() and tensor.dtype == tensors[0].dtype for tensor in tensors)
    elements = tensors[0].numel()
    return {
        "tasks": -(-elements // MIX_BLOCK),
        "tensors": np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uintp),
        "count": len(tensors),
        "elements": elements,
        "half": is_half(tensors[0]),
    }


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: DropoutKey) -> Tensor:
        ctx.key = key
        return _drop(x, key)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _drop(gradient, ctx.key), None


def _drop(x: Tensor, key: DropoutKey) -> Tensor:
    x = x.contiguous()
    result = torch.empty_like(x)
    run(
        "dropout_pass",
        tasks=-(-x.numel() // DROPOUT_ROW),
        x=x,
        y=result,
        elements=x.numel(),
        half=is_half(x),
        dropout=key,
    )
    return result


class _GegluNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1] // 2
        y, statistics = x.new_empty(*x.shape[:-1], width), torch.empty(rows, 2)
        ctx.save_for_backward(x, statistics)
        ctx.arguments = {"tasks": -(-rows // GEGLU_ROWS), "rows": rows, "width": width, "half": is_half(x)}
        run("geglu_norm_forward", **ctx.arguments, x=x, y=y, statistics=statistics, eps=eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, statistics = ctx.saved_tensors
        x_gradient = torch.empty_like(x)
        run(
            "geglu_norm_backward",
            **ctx.arguments,
            x=x,
            y=gradient.contiguous(),
            gradient=x_gradient,
            statistics=statistics,
        )
        return x_gradient, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        logits = logits.contiguous()
        rows, vocabulary = logits.shape
        log_sums, losses = torch.empty(2, rows).unbind()
        correct = torch.empty(rows, dtype=torch.int64)
        ctx.save_for_backward(logits, targets, log_sums)
        ctx.arguments = {
            "tasks": rows,
            "vocabulary": vocabulary,
            "half": is_half(logits),
            "smoothing": smoothing,
        }
        run(
            "cross_entropy_forward",
            **ctx.arguments,
            logits=logits,
            targets=targets.contiguous(),
            log_sums=log_sums,
            losses=losses,
            correct=correct,
        )
        correct = correct.sum()
        ctx.mark_non_differentiable(correct)
        return losses.sum(), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, log_sums = ctx.saved_tensors
        logits_gradient = torch.empty_like(logits)
        run(
            "cross_entropy_backward",
            **ctx.arguments,
            logits=logits,
            targets=targets.contiguous(),
            log_sums=log_sums,
            gradient=logits_gradient,
            scale=gradient.item(),
        )
        return logits_gradient, None, None


class _AttentionPlan:
    """The sizes of an attention call, its mask, and its division into chunks of sequences.

    Shapes in addition to those of ``AttentionInputs``: ``c`` sequences per chunk, ``E`` side of the extended
    products.
    """

    def __init__(
        self, q: Tensor, position_q: Tensor, distance_buckets: Tensor, attention_mask: Tensor, dropout: float
    ) -> None:
        self.batch, self.length, self.heads, self.head_size = q.shape
        self.positions = len(position_q)
        # Products are fastest if their sizes are multiples of 16.
        self.side = -(-(self.length + self.positions) // 16) * 16
        self.chunk = min(self.batch, max(1, SCORES_PER_CHUNK // (self.heads * self.side**2)))
        self.scale = 1 / math.sqrt(3 * self.head_size)
        self.dropout = _dropout_key(dropout)
        self.half = is_half(q)
        self.sequences = attention_mask.to(torch.int32).contiguous()
        self.runs = _bucket_runs(distance_buckets)

    def chunks(self) -> Iterator[slice]:
        """Yield the slices of sequences that are computed together."""
        return (slice(i, min(i + self.chunk, self.batch)) for i in range(0, self.batch, self.chunk))

    def extended(self, positions: Tensor, scale: float = 1.0) -> Tensor:
        """Allocate a buffer for queries or keys, with those of the relative positions below them.

        Returns:
            float32 [c, H, E, K]; all other elements are 0.
        """
        buffer = torch.zeros(self.chunk, self.heads, self.side, self.head_size)
        buffer[:, :, self.length : self.length + self.positions] = positions.transpose(0, 1) * scale
        return buffer

    def load(self, chunk: slice, inputs: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Copy a chunk's queries (which are scaled), keys and values to their buffers."""
        n = chunk.stop - chunk.start
        for tensor, buffer, scale in zip(inputs, buffers, (self.scale, 1.0, 1.0), strict=True):
            torch.mul(tensor[chunk].transpose(1, 2), scale, out=buffer[:n, :, : self.length])

    def empty(self, *shape: int) -> Tensor:
        """Allocate a float32 buffer ``[c, H, *shape]``."""
        return torch.empty(self.chunk, self.heads, *shape)

    def run(self, name: str, chunk: slice, **tensors: Tensor | None) -> None:
        """Call a function of the library for a chunk."""
        run(
            name,
            tasks=(chunk.stop - chunk.start) * self.heads,
            first=chunk.start * self.heads,
            sequences=self.sequences,
            runs=self.runs,
            num_runs=len(self.runs),
            heads=self.heads,
            length=self.length,
            side=self.side,
            half=self.half,
            dropout=self.dropout,
            **tensors,
        )


@functools.lru_cache(maxsize=16)
def _bucket_runs(distance_buckets: Tensor) -> npt.NDArray[np.int32]:
    """Return the runs of consecutive distances that share a bucket, int32 ``[runs, 3]``.

    Each row holds the least and the greatest distance of a run, and its bucket, counted from 0.
    """
    buckets = distance_buckets.numpy()
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    ends = np.append(starts[1:], len(buckets))
    shift = (len(buckets) - 1) // 2
    return np.stack([starts - shift, ends - 1 - shift, buckets[starts] - buckets[0]], axis=1).astype(np.int32)


class _Attention(torch.autograd.Function):
    """Attention, chunk by chunk: products of queries and keys, a pass over the scores, products with values.

    Of all matrices of size [T, T], only the probabilities are saved for the backward pass, which computes the
    dropout mask again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position_q: Tensor,
        position_k: Tensor,
        plan: _AttentionPlan,
    ) -> Tensor:
        length, size, side = plan.length, plan.head_size, plan.side
        result = torch.empty(q.shape, dtype=q.dtype)
        probabilities = None
        if any(ctx.needs_input_grad):
            probabilities = torch.empty(plan.batch, plan.heads, length, length, dtype=q.dtype)
        queries, keys = plan.extended(position_q, plan.scale), plan.extended(position_k)
        values, products, context = plan.empty(length, size), plan.empty(side, side), plan.empty(length, size)
        for chunk in plan.chunks():
            n = chunk.stop - chunk.start
            plan.load(chunk, (q, k, v), (queries, keys, values))
            multiply(queries[:n], keys[:n].mT, out=products[:n])
            plan.run("attention_forward", chunk, products=products, probabilities=probabilities)
            multiply(products[:n, :, :length, :length], values[:n], out=context[:n])
            result[chunk].transpose(1, 2).copy_(context[:n])
        ctx.plan = plan
        if probabilities is not None:
            ctx.save_for_backward(q, k, v, position_q, position_k, probabilities)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: _AttentionPlan = ctx.plan
        q, k, v, position_q, position_k, probabilities = ctx.saved_tensors
        length, size, side = plan.length, plan.head_size, plan.side
        # One tensor holds both gradients, because one projection computes queries and keys, and its backward
        # pass needs them together.
        qk_gradient = torch.empty(*q.shape[:2], 2, *q.shape[2:], dtype=q.dtype)
        q_gradient, k_gradient = qk_gradient.unbind(2)
        v_gradient = torch.empty(v.shape, dtype=v.dtype)
        queries, keys = plan.extended(position_q, plan.scale), plan.extended(position_k)
        values, context = plan.empty(length, size), plan.empty(length, size)
        products, scores = plan.empty(side, side), plan.empty(length, length)
        queries_gradient, keys_gradient = plan.empty(side, size), plan.empty(side, size)
        below = slice(length, length + plan.positions)
        position_q_gradient, position_k_gradient = torch.zeros(2, plan.heads, plan.positions, size).unbind()
        for chunk in plan.chunks():
            n = chunk.stop - chunk.start
            plan.load(chunk, (q, k, v), (queries, keys, values))
            context[:n] = gradient[chunk].transpose(1, 2)
            multiply(context[:n], values[:n].mT, out=scores[:n])
            plan.run(
                "attention_backward", chunk, products=products, gradient=scores, probabilities=probabilities
            )
            multiply(scores[:n].mT, context[:n], out=values[:n])
            v_gradient[chunk].transpose(1, 2).copy_(values[:n])
            multiply(products[:n], keys[:n], out=queries_gradient[:n])
            multiply(products[:n].mT, queries[:n], out=keys_gradient[:n])
            torch.mul(queries_gradient[:n, :, :length], plan.scale, out=queries_gradient[:n, :, :length])
            q_gradient[chunk].transpose(1, 2).copy_(queries_gradient[:n, :, :length])
            k_gradient[chunk].transpose(1, 2).copy_(keys_gradient[:n, :, :length])
            position_q_gradient += queries_gradient[:n, :, below].sum(0)
            position_k_gradient += keys_gradient[:n, :, below].sum(0)
        position_q_gradient *= plan.scale
        positions = (
            tensor.transpose(0, 1).to(q.dtype) for tensor in (position_q_gradient, position_k_gradient)
        )
        return q_gradient, k_gradient, v_gradient, *positions, None
