"""Matrix products on a CPU, by the library that is the fastest there.

PyTorch multiplies by Intel's MKL. On AMD's processors OpenBLAS is faster, all the more if every thread
multiplies a tile of its own instead of sharing one product; benchmarks/matrix_products.py compares them.

Shapes: ``m``, ``n``, ``k`` of a product ``[m, k] [k, n]``, ``b`` products at once.
"""

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elc_bert.kernels.cpu.library import run

ROWS = 256
"""Of a tile, at most; fewer where there would be less than ``TILES`` tiles."""
TILES = 8
LEAST_ROWS = 192


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``; see ``Kernels.linear``."""
    tensors: Any = (x, weight, bias)
    if torch.is_autocast_enabled("cpu") and lacks_bf16_products():
        dtype = torch.get_autocast_dtype("cpu")
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    elif torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    with torch.autocast("cpu", enabled=False):
        if types == {torch.bfloat16} and lacks_bf16_products():
            return _Linear.apply(*tensors)
        if types == {torch.float32} and sgemm_address() is not None:
            return _Linear.apply(*tensors)
        return F.linear(*tensors)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """``a b + bias``, float32 ``[..., m, n]``, contiguous if ``out`` is not given.

    The same to the bit for any number of threads, as tiles do not depend on it.

    Args:
        a: float32 ``[..., m, k]``, of any strides.
        b: float32 ``[..., k, n]``; leading dimensions as of ``a``.
        out: float32, to write to; rows are contiguous.
        bias: float32 ``[n]``.
    """
    leading, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    if out is None:
        out = torch.empty(*leading, m, n)
    address, count = sgemm_address(), leading.numel()
    # Views where they can be; results of a slice must not end up in a copy.
    one_a, one_b, one_out = a.reshape(count, m, k), b.reshape(count, k, n), out.view(count, m, n)
    if address is None or not (m and n and k and count):
        torch.bmm(one_a, one_b, out=one_out)
        return out if bias is None else out.add_(bias)
    one_a, a_row, a_turned = _layout(one_a)
    one_b, b_row, b_turned = _layout(one_b)
    rows = min(ROWS, m) if count >= TILES else max(LEAST_ROWS, min(ROWS, -(-m // TILES)))
    tiles = -(-m // rows)
    run(
        "multiply",
        tasks=count * tiles,
        sgemm=address,
        a=one_a.data_ptr(),
        b=one_b.data_ptr(),
        bias=bias,
        c=out.data_ptr(),
        m=m,
        n=n,
        k=k,
        rows=rows,
        tiles=tiles,
        a_next=one_a.stride(0),
        a_row=a_row,
        b_next=one_b.stride(0),
        b_row=b_row,
        c_next=one_out.stride(0),
        c_row=max(one_out.stride(1), n),
        a_turned=a_turned,
        b_turned=b_turned,
    )
    return out


def _layout(x: Tensor) -> tuple[Tensor, int, int]:
    """``x [b, m, k]`` or a copy that the library can read; from row to row as stored; if it is turned."""
    _, rows, columns = x.shape
    _, to_row, to_column = x.stride()
    if to_column == 1 and (rows == 1 or to_row >= columns):
        return x, max(to_row, columns), 0
    if to_row == 1 and (columns == 1 or to_column >= rows):
        return x, max(to_column, rows), 1
    return x.contiguous(), columns, 0


class _Linear(torch.autograd.Function):
    """``F.linear``; in bfloat16 through products in float32, which is what bfloat16 instructions do inside.

    On a processor without them PyTorch's own way takes up to 20 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = x.flatten(0, -2).float()
        wide_bias = None if bias is None else bias.float().contiguous()
        return multiply(rows, weight.float().T, bias=wide_bias).to(x.dtype).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        wide = gradient.flatten(0, -2).float()
        rows = x.flatten(0, -2)
        of_x = multiply(wide, weight.float()).to(x.dtype).view(x.shape) if needs_x else None
        of_weight = multiply(wide.T, rows.float()).to(weight.dtype) if needs_weight else None
        return of_x, of_weight, wide.sum(0).to(weight.dtype) if needs_bias else None


@functools.cache
def lacks_bf16_products() -> bool:
    """Whether the processor has no instructions for products of bfloat16 matrices."""
    return platform.machine() in ("x86_64", "AMD64") and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


@functools.cache
def sgemm_address() -> int | None:
    """OpenBLAS's product of one thread, where it is the faster one and installed."""
    if not _is_amd():
        return None
    try:
        import scipy_openblas32

        library = ctypes.CDLL(str(next(Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so"))))
        library.scipy_openblas_set_num_threads(1)  # the threads are PyTorch's
        return ctypes.cast(library.scipy_sgemm_, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError, StopIteration):
        return None


def _is_amd() -> bool:
    """Whether the processor is AMD's (on Linux)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in file)
    except OSError:
        return False
