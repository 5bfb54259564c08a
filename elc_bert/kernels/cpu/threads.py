"""Execution of C functions on PyTorch's own threads."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch


def run_on_threads(function: Any, arguments: ctypes.Structure) -> None:
    """Call a C function on as many threads as PyTorch uses, and wait for them.

    On Linux these are the threads of PyTorch's own OpenMP runtime, if it can be found. A second thread pool
    would compete for the cores with PyTorch's threads, which spin for a while after each operation.
    Otherwise the function runs on the calling thread only.

    Args:
        function: Function that takes a pointer to ``arguments``.
        arguments: Structure that all threads share.
    """
    threads, parallel = torch.get_num_threads(), _parallel()
    if threads == 1 or parallel is None:
        function(ctypes.byref(arguments))
    else:
        parallel(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(arguments), threads, 0)


@functools.cache
def _parallel() -> Any:
    """Return the function of the loaded OpenMP runtime that starts a parallel region, or None.

    The runtimes of GCC, LLVM and Intel all export it.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    names = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    for name in sorted(names):
        if Path(name).name.startswith(("libgomp", "libiomp", "libomp")):
            function = getattr(ctypes.CDLL(name), "GOMP_parallel", None)
            if function is not None:
                address, number = ctypes.c_void_p, ctypes.c_uint
                function.argtypes, function.restype = [address, address, number, number], None
                return function
    return None
