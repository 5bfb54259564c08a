"""LAMB's kernels on a CPU, in lamb_cpu.c; each method is one pass over memory."""

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from elc_bert.kernels.cpu.extension import load_extension
from elc_bert.kernels.cpu.threads import run_on_threads
from elc_bert.optim.fragments import (
    FlatParameter,
    Layout,
    data_pointers,
    layout_of,
    num_tensors,
    split_into_chunks,
)
from elc_bert.optim.lamb_reference import LambKernels

CHUNK_SIZE = 1 << 15
"""Number of elements per chunk: small enough to balance the threads, large enough to keep the table short."""
UPDATE_MOMENTS, STEP, UPDATE_MOMENTS_AND_STEP = range(3)
FLAT = np.dtype(
    [(name, np.uintp) for name in ("parameter", "gradient", "moment1", "moment2")]
    + [(name, np.float32) for name in ("rate", "decay", "eps", "weight1", "beta2", "weight2")]
    + [(name, np.float32) for name in ("scale1", "scale2")]
)
"""Layout of ``struct flat`` in lamb_cpu.c."""
CHUNK = np.dtype([(name, np.int64) for name in ("flat", "tensor", "start", "end")])
"""Layout of ``struct chunk`` in lamb_cpu.c."""


class _Pass(ctypes.Structure):
    """Layout of ``struct pass`` in lamb_cpu.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("next", "chunks", "kind")),
        *((name, ctypes.c_void_p) for name in ("flats", "chunk", "ratios", "squares")),
    )


class CpuLambKernels(LambKernels):
    """Fused kernels that run on as many threads as PyTorch uses.

    Parameters, gradients and moments are contiguous and fp32. Results are bit-identical for any number of
    threads, because squares are summed within chunks, which do not depend on it, and then in a fixed order.

    Raises:
        UserError: The C library was not built when the package was installed.
    """

    def __init__(self) -> None:
        self._pass = _library().lamb_pass

    @override
    def update_moments(self, flats: Sequence[FlatParameter]) -> Tensor:
        return self._run(UPDATE_MOMENTS, flats)

    @override
    def step(self, flats: Sequence[FlatParameter], trust_ratios: Tensor) -> None:
        self._run(STEP, flats, trust_ratios)

    @override
    def update_moments_and_step(self, flats: Sequence[FlatParameter]) -> Tensor:
        return self._run(UPDATE_MOMENTS_AND_STEP, flats)

    def _run(self, kind: int, flats: Sequence[FlatParameter], trust_ratios: Tensor | None = None) -> Tensor:
        """Make one pass, and return the sums of squares, fp32 [tensors of all flat parameters, 2]."""
        layout = layout_of(flats)
        chunks = _chunk_table(layout)
        table = np.array([_record(flat) for flat in flats], dtype=FLAT)
        ratios = None if trust_ratios is None else trust_ratios.contiguous()
        squares = np.zeros((len(chunks), 2))
        arguments = _Pass(
            0,
            len(chunks),
            kind,
            table.ctypes.data,
            chunks.ctypes.data,
            None if ratios is None else ratios.data_ptr(),
            squares.ctypes.data,
        )
        run_on_threads(self._pass, arguments)
        sums = [np.bincount(chunks["tensor"], column, num_tensors(layout)) for column in squares.T]
        return torch.from_numpy(np.stack(sums, axis=1)).float()


@functools.cache
def _library() -> ctypes.CDLL:
    return load_extension("elc_bert.optim._kernels", {"lamb_pass": _Pass}, "optimizer.params.fused", "false")


@functools.lru_cache(maxsize=16)
def _chunk_table(layout: Layout) -> npt.NDArray[np.void]:
    return np.array(split_into_chunks(layout, CHUNK_SIZE), dtype=CHUNK)


def _record(flat: FlatParameter) -> tuple[float, ...]:
    """Return the row of a table of type ``FLAT``."""
    (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
    return (
        *data_pointers(flat),
        flat.learning_rate,
        flat.weight_decay,
        flat.eps,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / correction1,
        1 / correction2,
    )
