"""Running a C function on PyTorch's own threads."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch


def run_on_threads(function: Any, arguments: ctypes.Structure) -> None:
    """Call a C function of one pointer on as many threads as PyTorch uses, and wait for them.

    They are the threads of PyTorch's own operations where its OpenMP run-time can be found (on Linux):
    threads of another pool would have to share the processors with them, for they spin for a while.
    Elsewhere the function runs on the calling thread alone.
    """
    threads, parallel = torch.get_num_threads(), _parallel()
    if threads == 1 or parallel is None:
        function(ctypes.byref(arguments))
    else:
        parallel(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(arguments), threads, 0)


@functools.cache
def _parallel() -> Any:
    """The function of the OpenMP run-time in this process that starts a parallel region, or None.

    GCC's run-time and those of LLVM and Intel all have it.
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
