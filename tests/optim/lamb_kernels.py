"""Kernels of LAMB that tests compare."""

import shutil
from typing import Any

import pytest
import torch

from elc_bert.optim.lamb_reference import LambKernels, ReferenceLamb
from elc_bert.utils.errors import UserError

FUSED_KINDS = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu), "gpu, interpreted"]
ALL_KINDS: list[Any] = ["plain", *FUSED_KINDS]


def kernels_of(kind: str) -> tuple[LambKernels, str]:
    """Return kernels and the device that their tensors are on; skip the test if they are not available."""
    if kind == "plain":
        return ReferenceLamb(), "cpu"
    if kind == "cpu":
        return _cpu_kernels(), "cpu"
    pytest.importorskip("triton", reason="triton is not installed; make setup installs it on Linux")
    # Triton reads at import whether to compile or to interpret kernels: see conftest.py.
    if kind == "gpu, interpreted" and torch.cuda.is_available():
        pytest.skip("the kernels run on this machine's GPU, not in the interpreter")
    from elc_bert.optim.lamb_triton import TritonLambKernels

    return TritonLambKernels(), "cuda" if kind == "gpu" else "cpu"


def _cpu_kernels() -> LambKernels:
    from elc_bert.optim.lamb_cpu import CpuLambKernels

    try:
        return CpuLambKernels()
    except UserError as error:
        if shutil.which("cc"):
            raise
        pytest.skip(str(error))
