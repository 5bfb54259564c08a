"""The ways to take LAMB's steps that tests compare."""

import shutil
from typing import Any

import pytest
import torch

from elc_bert.optim.passes import Passes, PlainPasses
from elc_bert.utils.errors import UserError

KERNELS = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu), "gpu, interpreted"]
ALL_KINDS: list[Any] = ["plain", *KERNELS]


def passes_of(kind: str) -> tuple[Passes, str]:
    """The passes, and the device that their tensors are on; skips the test where there are none."""
    if kind == "plain":
        return PlainPasses(), "cpu"
    if kind == "cpu":
        return _cpu_passes(), "cpu"
    pytest.importorskip("triton", reason="triton comes with torch's GPU builds only")
    # Whether Triton compiles or interprets is settled when it is imported: see conftest.py.
    if kind == "gpu, interpreted" and torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU here")
    from elc_bert.optim.lamb_triton import TritonPasses

    return TritonPasses(), "cuda" if kind == "gpu" else "cpu"


def _cpu_passes() -> Passes:
    from elc_bert.optim.lamb_cpu import CpuPasses

    try:
        return CpuPasses()
    except UserError as error:
        if shutil.which("cc"):
            raise
        pytest.skip(str(error))
