"""LAMB's passes on a CPU: one walk over memory each, by the kernels of lamb_cpu.c."""

import ctypes
import functools
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from elc_bert.kernels.cpu.threads import run_on_threads
from elc_bert.optim.chunks import Layout, addresses, cut, layout_of, num_tensors
from elc_bert.optim.passes import Flat
from elc_bert.utils.errors import UserError

CHUNK_SIZE = 1 << 15
"""Elements; few enough that the threads end at about the same time, enough that the table is short."""

UPDATE_MOMENTS, STEP, UPDATE_MOMENTS_AND_STEP = range(3)

# The structures of lamb_cpu.c.
FLAT = np.dtype(
    [(name, np.uintp) for name in ("parameter", "gradient", "moment1", "moment2")]
    + [(name, np.float32) for name in ("rate", "decay", "eps", "weight1", "beta2", "weight2")]
    + [(name, np.float32) for name in ("scale1", "scale2")]
)
CHUNK = np.dtype([(name, np.int64) for name in ("flat", "tensor", "start", "end")])


class _Pass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("next", "chunks", "kind")),
        *((name, ctypes.c_void_p) for name in ("flats", "chunk", "ratios", "squares")),
    )


class CpuPasses:
    """The same arithmetic as ``PlainPasses``, by as many threads as PyTorch uses.

    Parameters, gradients and moments are contiguous and fp32. Results are the same to the last bit for any
    number of threads: squares are summed within chunks, which do not depend on it, and then in their order.

    Raises:
        UserError: the kernels were not built when the package was installed.
    """

    def __init__(self) -> None:
        self._pass = _library().lamb_pass

    def update_moments(self, flats: Sequence[Flat]) -> Tensor:
        return self._run(UPDATE_MOMENTS, flats)

    def step(self, flats: Sequence[Flat], trust_ratios: Tensor) -> None:
        self._run(STEP, flats, trust_ratios)

    def update_moments_and_step(self, flats: Sequence[Flat]) -> Tensor:
        return self._run(UPDATE_MOMENTS_AND_STEP, flats)

    def _run(self, which: int, flats: Sequence[Flat], trust_ratios: Tensor | None = None) -> Tensor:
        """One pass; the sums of squares, fp32 [tensors of all flats, 2]."""
        layout = layout_of(flats)
        chunks = _chunk_table(layout)
        table = np.array([_record(flat) for flat in flats], dtype=FLAT)
        ratios = None if trust_ratios is None else trust_ratios.contiguous()
        squares = np.zeros((len(chunks), 2))
        arguments = _Pass(
            0,
            len(chunks),
            which,
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
    spec = find_spec("elc_bert.optim._kernels")
    if spec is None or spec.origin is None:
        raise UserError(
            "optimizer.params.fused: the CPU kernels were not built (no C compiler at installation): "
            "install one and run make clean setup, or set it to false"
        )
    library = ctypes.CDLL(spec.origin)
    library.lamb_pass.argtypes = [ctypes.POINTER(_Pass)]
    library.lamb_pass.restype = None
    return library


@functools.lru_cache(maxsize=16)
def _chunk_table(layout: Layout) -> np.ndarray:
    return np.array(cut(layout, CHUNK_SIZE), dtype=CHUNK)


def _record(flat: Flat) -> tuple[float, ...]:
    """A row of ``FLAT``."""
    (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
    return (
        *addresses(flat),
        flat.learning_rate,
        flat.weight_decay,
        flat.eps,
        1 - beta1,
        beta2,
        1 - beta2,
        1 / correction1,
        1 / correction2,
    )
