"""Fast paths on a CPU: what is between the matrix products by the kernels of kernels.c, a walk each."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
from elc_bert.kernels.reference import Kernels, Mixing

DTYPES = (torch.float32, torch.bfloat16)
SCORES_AT_ONCE = 1 << 22
"""Numbers: attention takes so many scores (16 MiB) at a time, which stay in the processor's cache."""


class CpuKernels(Kernels):
    """Fast paths for tensors in float32 and bfloat16; other types take the definitions.

    Results are the same to the last bit for any number of threads.

    Raises:
        UserError: the kernels were not built when the package was installed.
    """

    def __init__(self) -> None:
        library()

    def mixing(self) -> Mixing:
        return FusedMixing(self)

    def combine(self, shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``sum_j shares_j t_j``; see ``mixing.Sums``."""
        if tensors[0].dtype not in DTYPES:
            pairs = zip(shares.to(tensors[0].dtype), tensors, strict=True)
            return torch.stack([share * tensor for share, tensor in pairs]).sum(0)
        result = torch.empty_like(tensors[0])
        run("combine", **_mix(tensors), shares=shares.float().contiguous(), sum=result)
        return result

    def inner_products(self, gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``<gradient, t_j>`` for all j; see ``mixing.Sums``."""
        if gradient.dtype not in DTYPES:
            return torch.stack([(gradient.float() * tensor.float()).sum() for tensor in tensors])
        arguments = _mix(tensors)
        partial = torch.empty(arguments["tasks"], len(tensors), dtype=torch.float64)
        run("inner_products", **arguments, gradient=gradient, products=partial)
        return partial.sum(0).float()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position_q: Tensor,
        position_k: Tensor,
        distance_buckets: Tensor,
        attention_mask: Tensor,
        dropout: float,
    ) -> Tensor:
        tensors = (q, k, v, position_q, position_k)
        if q.dtype not in DTYPES or any(tensor.dtype != q.dtype for tensor in tensors):
            return super().attention(*tensors, distance_buckets, attention_mask, dropout)
        # Buckets rise with the distance: short sequences need the middle ones alone.
        used = slice(int(distance_buckets[0]), int(distance_buckets[-1]) + 1)
        position_q, position_k = position_q[used], position_k[used]
        plan = _AttentionPlan(q, position_q, distance_buckets, attention_mask, dropout)
        return _Attention.apply(q, k, v, position_q, position_k, plan)

    def geglu_norm(self, x: Tensor, eps: float) -> Tensor:
        return _GegluNorm.apply(x, eps) if x.dtype in DTYPES else super().geglu_norm(x, eps)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        if not probability or x.dtype not in DTYPES:
            return super().dropout(x, probability)
        return _Dropout.apply(x, _dropout(probability))

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        # The definition says what a target outside of the vocabulary means; C would write there.
        is_inside = bool(((targets >= 0) & (targets < logits.shape[-1])).all())
        if logits.dtype not in DTYPES or not is_inside:
            return super().cross_entropy(logits, targets, label_smoothing)
        return _CrossEntropy.apply(logits, targets, label_smoothing)


def _dropout(probability: float) -> DropoutKey:
    """A mask, drawn from PyTorch's generator, so that ``torch.manual_seed`` decides it."""
    seed = int(torch.randint(2**63 - 1, ())) if probability else 0
    threshold = round(probability * 2**31)
    return DropoutKey(seed, 1 / (1 - probability) if probability < 1 else 0.0, min(threshold, 2**31 - 1))


def _mix(tensors: Sequence[Tensor]) -> dict[str, Any]:
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
        of_x = torch.empty_like(x)
        run(
            "geglu_norm_backward",
            **ctx.arguments,
            x=x,
            y=gradient.contiguous(),
            gradient=of_x,
            statistics=statistics,
        )
        return of_x, None


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
        of_logits = torch.empty_like(logits)
        run(
            "cross_entropy_backward",
            **ctx.arguments,
            logits=logits,
            targets=targets.contiguous(),
            log_sums=log_sums,
            gradient=of_logits,
            scale=gradient.item(),
        )
        return of_logits, None, None


class _AttentionPlan:
    """What attention knows before it sees a number, and how it cuts its work.

    Shapes besides those of ``Kernels.attention``: ``c`` sequences of a chunk, ``E`` side of the products.
    """

    def __init__(
        self, q: Tensor, position_q: Tensor, distance_buckets: Tensor, attention_mask: Tensor, dropout: float
    ):
        self.batch, self.length, self.heads, self.head_size = q.shape
        self.positions = len(position_q)
        # Rounded up, the products are as fast as any.
        self.side = -(-(self.length + self.positions) // 16) * 16
        self.chunk = min(self.batch, max(1, SCORES_AT_ONCE // (self.heads * self.side**2)))
        self.scale = 1 / math.sqrt(3 * self.head_size)
        self.dropout = _dropout(dropout)
        self.half = is_half(q)
        self.sequences = attention_mask.to(torch.int32).contiguous()
        self.runs = _runs(distance_buckets)

    def chunks(self) -> Iterator[slice]:
        """Of the sequences."""
        return (slice(i, min(i + self.chunk, self.batch)) for i in range(0, self.batch, self.chunk))

    def extended(self, positions: Tensor, scale: float = 1.0) -> Tensor:
        """Room for queries or keys with the relative ones below: float32 [c, H, E, K], zero elsewhere."""
        room = torch.zeros(self.chunk, self.heads, self.side, self.head_size)
        room[:, :, self.length : self.length + self.positions] = positions.transpose(0, 1) * scale
        return room

    def load(self, chunk: slice, inputs: Sequence[Tensor], rooms: Sequence[Tensor]) -> None:
        """Put queries, scaled, keys and values of a chunk where there is room for them."""
        n = chunk.stop - chunk.start
        for tensor, room, scale in zip(inputs, rooms, (self.scale, 1.0, 1.0), strict=True):
            torch.mul(tensor[chunk].transpose(1, 2), scale, out=room[:n, :, : self.length])

    def empty(self, *shape: int) -> Tensor:
        """float32 [c, H, ...]"""
        return torch.empty(self.chunk, self.heads, *shape)

    def run(self, name: str, chunk: slice, **tensors: Tensor | None) -> None:
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
def _runs(distance_buckets: Tensor) -> np.ndarray:
    """Least and greatest distance and number of every bucket that occurs, from 0, int32 [runs, 3]."""
    buckets = distance_buckets.numpy()
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    ends = np.append(starts[1:], len(buckets))
    shift = (len(buckets) - 1) // 2
    return np.stack([starts - shift, ends - 1 - shift, buckets[starts] - buckets[0]], axis=1).astype(np.int32)


class _Attention(torch.autograd.Function):
    """A few sequences at a time: their products, then one pass over them, then the products with the result.

    The probabilities are all that is kept of size [T, T]; dropout's mask is drawn again.
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
        # One tensor for both, as the projection that q and k come from will want it.
        of_queries_and_keys = torch.empty(*q.shape[:2], 2, *q.shape[2:], dtype=q.dtype)
        of_q, of_k = of_queries_and_keys.unbind(2)
        of_v = torch.empty(v.shape, dtype=v.dtype)
        queries, keys = plan.extended(position_q, plan.scale), plan.extended(position_k)
        values, context = plan.empty(length, size), plan.empty(length, size)
        products, scores = plan.empty(side, side), plan.empty(length, length)
        of_queries, of_keys = plan.empty(side, size), plan.empty(side, size)
        below = slice(length, length + plan.positions)
        of_position_q, of_position_k = torch.zeros(2, plan.heads, plan.positions, size).unbind()
        for chunk in plan.chunks():
            n = chunk.stop - chunk.start
            plan.load(chunk, (q, k, v), (queries, keys, values))
            context[:n] = gradient[chunk].transpose(1, 2)
            multiply(context[:n], values[:n].mT, out=scores[:n])
            plan.run(
                "attention_backward", chunk, products=products, gradient=scores, probabilities=probabilities
            )
            multiply(scores[:n].mT, context[:n], out=values[:n])
            of_v[chunk].transpose(1, 2).copy_(values[:n])
            multiply(products[:n], keys[:n], out=of_queries[:n])
            multiply(products[:n].mT, queries[:n], out=of_keys[:n])
            torch.mul(of_queries[:n, :, :length], plan.scale, out=of_queries[:n, :, :length])
            of_q[chunk].transpose(1, 2).copy_(of_queries[:n, :, :length])
            of_k[chunk].transpose(1, 2).copy_(of_keys[:n, :, :length])
            of_position_q += of_queries[:n, :, below].sum(0)
            of_position_k += of_keys[:n, :, below].sum(0)
        of_position_q *= plan.scale
        positions = (tensor.transpose(0, 1).to(q.dtype) for tensor in (of_position_q, of_position_k))
        return of_q, of_k, of_v, *positions, None
