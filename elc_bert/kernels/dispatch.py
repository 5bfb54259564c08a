"""Choice of the kernels for a device."""

import functools
from typing import Literal

from elc_bert.kernels.reference import Kernels
from elc_bert.utils.errors import UserError

Choice = Literal["auto", "plain", "fused"]


@functools.cache
def kernels_for(device_type: str, choice: Choice | Kernels = "auto") -> Kernels:
    """Return the kernels for a type of device.

    Args:
        device_type: Type of the device that the model runs on: "cpu", or "cuda" for CUDA and ROCm.
        choice: ``plain`` for the definitions, ``fused`` for the fast paths, ``auto`` for the fast paths if
            there are any, otherwise the definitions; or kernels, which are returned unchanged.

    Raises:
        UserError: The choice is ``fused``, and there are no fast paths for this device.
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
    # The imports are here because Triton comes only with PyTorch's GPU builds.
    if device_type == "cpu":
        from elc_bert.kernels.cpu.kernels import CpuKernels

        return CpuKernels()
    if device_type == "cuda":
        try:
            from elc_bert.kernels.triton.kernels import TritonKernels
        except ImportError as error:
            raise UserError(
                "elc_bert.training.kernels: the GPU kernels need the package triton, which comes with "
                "PyTorch's GPU builds; install such a build, or set the key to plain"
            ) from error
        return TritonKernels()
    raise UserError(
        f"elc_bert.training.kernels: there are no fast paths for devices of type {device_type}; "
        "set the key to auto or plain"
    )
