"""Which kernels a device gets."""

import functools
from typing import Literal

from elc_bert.kernels.reference import Kernels
from elc_bert.utils.errors import UserError

Choice = Literal["auto", "plain", "fused"]


@functools.cache
def kernels_for(device_type: str, choice: Choice | Kernels = "auto") -> Kernels:
    """The kernels of a type of device, "cpu" or "cuda" (of which ROCm is one to PyTorch).

    Args:
        device_type: where the model runs.
        choice: ``plain`` for the definitions, ``fused`` for fast paths, ``auto`` for fast paths where there
            are any; or kernels, which are returned.

    Raises:
        UserError: ``fused`` where there are none.
    """
    if isinstance(choice, Kernels):
        return choice
    if choice == "plain":
        return Kernels()
    try:
        return _fused(device_type)
    except UserError:
        if choice == "fused":
            raise
        return Kernels()


def _fused(device_type: str) -> Kernels:
    # Imported here because Triton comes with torch's GPU builds only.
    if device_type == "cpu":
        from elc_bert.kernels.cpu.kernels import CpuKernels

        return CpuKernels()
    if device_type == "cuda":
        try:
            from elc_bert.kernels.triton.kernels import TritonKernels
        except ImportError as error:
            raise UserError(
                "elc_bert.training.kernels: the GPU kernels need the package triton, which comes with "
                "torch's GPU builds: install one, or set it to plain"
            ) from error
        return TritonKernels()
    raise UserError(
        f"elc_bert.training.kernels: there are no fast paths for a device of type {device_type}: "
        "set it to auto or plain"
    )
