"""LAMB's passes on a CPU: one walk over memory each, by the kernels of fused_cpu.c."""

import ctypes
import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from elc_bert.errors import UserError
from elc_bert.optim.chunks import Layout, addresses, cut, layout_of, num_tensors
from elc_bert.optim.passes import Flat

CHUNK_SIZE = 1 << 15
"""Elements; enough of them that the threads' shares differ little, few enough that the table is short."""

UPDATE_MOMENTS, STEP, UPDATE_MOMENTS_AND_STEP = range(3)

# The structures of fused_cpu.c.
FLAT = np.dtype(
    [(name, np.uintp) for name in ("parameter", "gradient", "moment1", "moment2")]
    + [(name, np.float32) for name in ("rate", "decay", "eps", "weight1", "beta2", "weight2")]
    + [(name, np.float32) for name in ("scale1", "scale2")]
)
CHUNK = np.dtype([(name, np.int64) for name in ("flat", "tensor", "start", "end")])


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
        layout, threads = layout_of(flats), torch.get_num_threads()
        chunks, shares = _chunk_table(layout), _shares(layout, threads)
        table = np.array([_record(flat) for flat in flats], dtype=FLAT)
        ratios = None if trust_ratios is None else trust_ratios.contiguous()
        squares = np.zeros((len(chunks), 2))

        def work(first: int, last: int) -> None:
            # ctypes lets go of the interpreter's lock during the call, so that the threads run at once.
            self._pass(
                which,
                table.ctypes.data,
                chunks.ctypes.data,
                first,
                last,
                None if ratios is None else ratios.data_ptr(),
                squares.ctypes.data,
            )

        others = [_pool(threads - 1).submit(work, *share) for share in shares[1:]]
        work(*shares[0])
        for other in others:
            other.result()
        sums = [np.bincount(chunks["tensor"], column, num_tensors(layout)) for column in squares.T]
        return torch.from_numpy(np.stack(sums, axis=1)).float()


@functools.cache
def _library() -> ctypes.CDLL:
    spec = find_spec("elc_bert.optim._fused_cpu")
    if spec is None or spec.origin is None:
        raise UserError(
            "optimizer.params.fused: the CPU kernels were not built (no C compiler at installation): "
            "install one and run make clean setup, or set it to false"
        )
    library = ctypes.CDLL(spec.origin)
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.lamb_pass.argtypes = [ctypes.c_int, address, address, number, number, address, address]
    library.lamb_pass.restype = None
    return library


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="lamb")


# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.lru_cache(maxsize=16)
def _chunk_table(layout: Layout) -> np.ndarray:
    return np.array(cut(layout, CHUNK_SIZE), dtype=CHUNK)


@functools.lru_cache(maxsize=16)
def _shares(layout: Layout, threads: int) -> list[tuple[int, int]]:
    """First and last (exclusive) chunk of every thread, so that they have about as many elements each."""
    chunks = _chunk_table(layout)
    ends = np.cumsum(chunks["end"] - chunks["start"])
    total = ends[-1] if len(ends) else 0
    starts = [total * share / threads for share in range(threads)]
    bounds = np.searchsorted(ends, starts, side="right").tolist()
    return list(itertools.pairwise([*bounds, len(chunks)]))


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
