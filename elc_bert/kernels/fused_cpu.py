"""Fast paths on a CPU: what is between the matrix products by the kernels of fused_cpu.c, a walk each."""

import ctypes
import functools
import math
import platform
from collections.abc import Iterator, Sequence
from ctypes import c_float, c_int64, c_uint32, c_uint64, c_void_p
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elc_bert.errors import UserError
from elc_bert.kernels.mixing import FusedMixing
from elc_bert.kernels.plain import Kernels, Mixing
from elc_bert.kernels.threads import run_on_threads

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
        _library()

    def mixing(self) -> Mixing:
        return FusedMixing(self)

    def combine(self, shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``sum_j shares_j t_j``; see ``mixing.Sums``."""
        if tensors[0].dtype not in DTYPES:
            pairs = zip(shares.to(tensors[0].dtype), tensors, strict=True)
            return torch.stack([share * tensor for share, tensor in pairs]).sum(0)
        result = torch.empty_like(tensors[0])
        _run("combine", **_mix(tensors), shares=shares.float().contiguous(), sum=result)
        return result

    def inner_products(self, gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``<gradient, t_j>`` for all j; see ``mixing.Sums``."""
        if gradient.dtype not in DTYPES:
            return torch.stack([(gradient.float() * tensor.float()).sum() for tensor in tensors])
        arguments = _mix(tensors)
        partial = torch.empty(arguments["tasks"], len(tensors), dtype=torch.float64)
        _run("inner_products", **arguments, gradient=gradient, products=partial)
        return partial.sum(0).float()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not _lacks_bf16_products():
            return super().linear(x, weight, bias)
        tensors: Any = (x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
        with torch.autocast("cpu", enabled=False):
            wide = tensors[0].dtype == tensors[1].dtype == torch.bfloat16
            return _WideLinear.apply(*tensors) if wide else super().linear(*tensors)

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
        plan = _AttentionPlan(q, position_q, distance_buckets, attention_mask, dropout)
        return _Attention.apply(*tensors, plan)

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


# What the functions of fused_cpu.c take.


class _DropoutKey(ctypes.Structure):
    _fields_ = (("seed", c_uint64), ("scale", c_float), ("threshold", c_uint32))


def _arguments(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type(
        "Arguments", (ctypes.Structure,), {"_fields_": [("next", c_int64), ("tasks", c_int64), *fields]}
    )


_ATTENTION = _arguments(
    ("first", c_int64),
    *((name, c_void_p) for name in ("products", "gradient", "probabilities", "sequences", "runs")),
    *((name, c_int64) for name in ("num_runs", "heads", "length", "side", "half")),
    ("dropout", _DropoutKey),
)
_GEGLU_NORM = _arguments(
    *((name, c_void_p) for name in ("x", "y", "gradient", "statistics")),
    *((name, c_int64) for name in ("rows", "width", "half")),
    ("eps", c_float),
)
_MIX = _arguments(
    *((name, c_void_p) for name in ("tensors", "shares", "sum", "gradient", "products")),
    *((name, c_int64) for name in ("count", "elements", "half")),
)
_CROSS_ENTROPY = _arguments(
    *((name, c_void_p) for name in ("logits", "targets", "log_sums", "losses", "correct", "gradient")),
    *((name, c_int64) for name in ("vocabulary", "half")),
    ("smoothing", c_float),
    ("scale", c_float),
)
_ARGUMENTS = {
    "dropout_pass": _arguments(
        ("x", c_void_p), ("y", c_void_p), ("elements", c_int64), ("half", c_int64), ("dropout", _DropoutKey)
    ),
    "attention_forward": _ATTENTION,
    "attention_backward": _ATTENTION,
    "geglu_norm_forward": _GEGLU_NORM,
    "geglu_norm_backward": _GEGLU_NORM,
    "combine": _MIX,
    "inner_products": _MIX,
    "cross_entropy_forward": _CROSS_ENTROPY,
    "cross_entropy_backward": _CROSS_ENTROPY,
}
# As in fused_cpu.c.
_DROPOUT_ROW = 4096
_GEGLU_ROWS = 8
_MIX_BLOCK = 4096


@functools.cache
def _library() -> ctypes.CDLL:
    spec = find_spec("elc_bert.kernels._fused_cpu")
    if spec is None or spec.origin is None:
        raise UserError(
            "elc_bert.training.kernels: the CPU kernels were not built (no C compiler at installation): "
            "install one and run make clean setup, or set it to plain"
        )
    library = ctypes.CDLL(spec.origin)
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.POINTER(arguments)], None
    return library


def _run(name: str, **values: Any) -> None:
    """Call a function with these arguments, tensors and arrays as their addresses."""
    arguments = _ARGUMENTS[name]()
    for key, value in values.items():
        if isinstance(value, Tensor):
            assert value.is_contiguous(), key
            value = value.data_ptr()
        elif isinstance(value, np.ndarray):
            value = value.ctypes.data
        setattr(arguments, key, value)
    run_on_threads(getattr(_library(), name), arguments)


def _half(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def _dropout(probability: float) -> _DropoutKey:
    """A mask, drawn from PyTorch's generator, so that ``torch.manual_seed`` decides it."""
    seed = int(torch.randint(2**63 - 1, ())) if probability else 0
    threshold = round(probability * 2**31)
    return _DropoutKey(seed, 1 / (1 - probability) if probability < 1 else 0.0, min(threshold, 2**31 - 1))


def _mix(tensors: Sequence[Tensor]) -> dict[str, Any]:
    assert all(tensor.is_contiguous() and tensor.dtype == tensors[0].dtype for tensor in tensors)
    elements = tensors[0].numel()
    return {
        "tasks": -(-elements // _MIX_BLOCK),
        "tensors": np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uintp),
        "count": len(tensors),
        "elements": elements,
        "half": _half(tensors[0]),
    }


@functools.cache
def _lacks_bf16_products() -> bool:
    """Whether the processor has no instructions for products of bfloat16 matrices."""
    return platform.machine() in ("x86_64", "AMD64") and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


class _WideLinear(torch.autograd.Function):
    """``F.linear`` in bfloat16 through products in float32, which is what bfloat16 instructions do inside.

    On a processor without them PyTorch's own way takes up to 20 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        wide = gradient.flatten(0, -2).float()
        of_x = (wide @ weight.float()).to(x.dtype).view(x.shape) if needs_x else None
        of_weight = (wide.T @ x.flatten(0, -2).float()).to(weight.dtype) if needs_weight else None
        return of_x, of_weight, wide.sum(0).to(weight.dtype) if needs_bias else None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: _DropoutKey) -> Tensor:
        ctx.key = key
        return _drop(x, key)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _drop(gradient, ctx.key), None


def _drop(x: Tensor, key: _DropoutKey) -> Tensor:
    x = x.contiguous()
    result = torch.empty_like(x)
    _run(
        "dropout_pass",
        tasks=-(-x.numel() // _DROPOUT_ROW),
        x=x,
        y=result,
        elements=x.numel(),
        half=_half(x),
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
        ctx.arguments = {"tasks": -(-rows // _GEGLU_ROWS), "rows": rows, "width": width, "half": _half(x)}
        _run("geglu_norm_forward", **ctx.arguments, x=x, y=y, statistics=statistics, eps=eps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, statistics = ctx.saved_tensors
        of_x = torch.empty_like(x)
        _run(
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
            "half": _half(logits),
            "smoothing": smoothing,
        }
        _run(
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
        _run(
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
        self.half = _half(q)
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
        _run(
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
    """Least and greatest distance and number of every bucket that occurs, int32 [runs, 3]."""
    buckets = distance_buckets.numpy()
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    ends = np.append(starts[1:], len(buckets))
    shift = (len(buckets) - 1) // 2
    return np.stack([starts - shift, ends - 1 - shift, buckets[starts]], axis=1).astype(np.int32)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Of matrices in the last two dimensions of [c, H, ...]."""
    torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out=out.flatten(0, 1))


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
            _product(queries[:n], keys[:n].mT, products[:n])
            plan.run("attention_forward", chunk, products=products, probabilities=probabilities)
            _product(products[:n, :, :length, :length], values[:n], context[:n])
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
            _product(context[:n], values[:n].mT, scores[:n])
            plan.run(
                "attention_backward", chunk, products=products, gradient=scores, probabilities=probabilities
            )
            _product(scores[:n].mT, context[:n], values[:n])
            of_v[chunk].transpose(1, 2).copy_(values[:n])
            _product(products[:n], keys[:n], of_queries[:n])
            _product(products[:n].mT, queries[:n], of_keys[:n])
            torch.mul(of_queries[:n, :, :length], plan.scale, out=of_queries[:n, :, :length])
            of_q[chunk].transpose(1, 2).copy_(of_queries[:n, :, :length])
            of_k[chunk].transpose(1, 2).copy_(of_keys[:n, :, :length])
            of_position_q += of_queries[:n, :, below].sum(0)
            of_position_k += of_keys[:n, :, below].sum(0)
        of_position_q *= plan.scale
        positions = (tensor.transpose(0, 1).to(q.dtype) for tensor in (of_position_q, of_position_k))
        return of_q, of_k, of_v, *positions, None
