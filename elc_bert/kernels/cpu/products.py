"""Matrix products on a CPU, computed by the fastest library for the processor.

PyTorch multiplies with Intel's MKL. On AMD's processors OpenBLAS is faster, especially if each thread
multiplies its own tile instead of sharing one product; benchmarks/matrix_products.py compares them.

Shapes: ``[m, k]`` times ``[k, n]``, in batches of ``b`` products.
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

from elc_bert.kernels.autograd import apply
from elc_bert.kernels.cpu.library import run

MAX_TILE_ROWS = 256
"""Maximum number of rows of a tile. A tile has fewer if there would be fewer than ``MIN_TILES`` tiles."""
MIN_TILES = 8
"""Number of tiles that is enough to keep the threads busy."""
MIN_TILE_ROWS = 192
"""Minimum to which the number of rows of a tile is reduced in order to get ``MIN_TILES`` tiles."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``; see ``Kernels.linear``."""
    tensors: Any = (x, weight, bias)
    if torch.is_autocast_enabled("cpu") and lacks_bf16_products():
        dtype = torch.get_autocast_dtype("cpu")
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    elif torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    with torch.autocast("cpu", enabled=False):
        if types == {torch.bfloat16} and lacks_bf16_products():
            y: Tensor = apply(_Linear, *tensors)
        elif types == {torch.float32} and sgemm_address() is not None:
            y = apply(_Linear, *tensors)
        else:
            y = F.linear(*tensors)
        return y


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return ``a b + bias``, float32 ``[..., m, n]``, contiguous if ``out`` is not given.

    Tiles do not depend on the number of threads, so results are bit-identical for any number.

    Args:
        a: float32 ``[..., m, k]``, with any strides.
        b: float32 ``[..., k, n]``, with the leading dimensions of ``a``.
        out: float32 tensor for the result; its rows must be contiguous.
        bias: float32 ``[n]``.
    """
    leading, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    if out is None:
        out = torch.empty(*leading, m, n)
    address, count = sgemm_address(), leading.numel()
    # ``reshape`` may copy; ``out`` needs a view, since results written to a copy would be lost.
    a3, b3, out3 = a.reshape(count, m, k), b.reshape(count, k, n), out.view(count, m, n)
    if address is None or not (m and n and k and count):
        torch.bmm(a3, b3, out=out3)
        return out if bias is None else out.add_(bias)
    a3, a_row, a_transposed = _blas_layout(a3)
    b3, b_row, b_transposed = _blas_layout(b3)
    rows = min(MAX_TILE_ROWS, m)
    if count < MIN_TILES:
        rows = max(MIN_TILE_ROWS, min(MAX_TILE_ROWS, -(-m // MIN_TILES)))
    tiles = -(-m // rows)
    run(
        "multiply",
        tasks=count * tiles,
        sgemm=address,
        a=a3.data_ptr(),
        b=b3.data_ptr(),
        bias=bias,
        c=out.data_ptr(),
        m=m,
        n=n,
        k=k,
        rows=rows,
        tiles=tiles,
        a_next=a3.stride(0),
        a_row=a_row,
        b_next=b3.stride(0),
        b_row=b_row,
        c_next=out3.stride(0),
        c_row=max(out3.stride(1), n),
        a_transposed=a_transposed,
        b_transposed=b_transposed,
    )
    return out


def _blas_layout(x: Tensor) -> tuple[Tensor, int, int]:
    """Return x (copied if BLAS cannot use its strides), its leading dimension, and 1 if it is transposed.

    Args:
        x: ``[b, m, k]``.
    """
    _, rows, columns = x.shape
    _, to_row, to_column = x.stride()
    if to_column == 1 and (rows == 1 or to_row >= columns):
        return x, max(to_row, columns), 0
    if to_row == 1 and (columns == 1 or to_column >= rows):
        return x, max(to_column, rows), 1
    return x.contiguous(), columns, 0


class _Linear(torch.autograd.Function):
    """``F.linear``, which multiplies bfloat16 in float32, as bfloat16 instructions do internally.

    On a processor without these instructions PyTorch's own product takes up to 20 times as long.
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
        x_gradient = multiply(wide, weight.float()).to(x.dtype).view(x.shape) if needs_x else None
        weight_gradient = multiply(wide.T, rows.float()).to(weight.dtype) if needs_weight else None
        return x_gradient, weight_gradient, wide.sum(0).to(weight.dtype) if needs_bias else None


@functools.cache
def lacks_bf16_products() -> bool:
    """Return True if the processor has no instructions for products of bfloat16 matrices."""
    return platform.machine() in ("x86_64", "AMD64") and not (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


@functools.cache
def sgemm_address() -> int | None:
    """Return the address of OpenBLAS's single-threaded ``sgemm``; None if there is none or MKL is faster."""
    if not _is_amd():
        return None
    try:
        import scipy_openblas32

        library = ctypes.CDLL(str(next(Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so"))))
        library.scipy_openblas_set_num_threads(1)  # The caller distributes tiles over PyTorch's threads.
        return ctypes.cast(library.scipy_sgemm_, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError, StopIteration):
        return None


def _is_amd() -> bool:
    """Return True on an AMD processor (detected on Linux only)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in file)
    except OSError:
        return False
