"""Choice of LAMB's kernels for a device."""

from collections.abc import Sequence

import torch

from elc_bert.optim.fragments import FlatParameter
from elc_bert.optim.lamb_reference import LambKernels, ReferenceLamb
from elc_bert.utils.errors import UserError


def choose_lamb_kernels(flats: Sequence[FlatParameter], fused: bool | None) -> LambKernels:
    """Return the fused kernels for these parameters, or the plain definition.

    Args:
        flats: Flat parameters, all of which take the same kernels.
        fused: True for the fused kernels, False for the plain definition, None for the fused kernels if they
            can be used.

    Raises:
        UserError: ``fused`` is True, and the fused kernels cannot be used.
    """
    if fused is False:
        return ReferenceLamb()
    try:
        return _fused(flats)
    except UserError:
        if fused:
            raise
        return ReferenceLamb()


def fused_lamb_kernels(device_type: str) -> LambKernels:
    """Return the fused kernels for a type of device: "cpu", or "cuda" for CUDA and ROCm.

    Raises:
        UserError: They are not installed.
    """
    # The imports are here because Triton comes only with PyTorch's GPU builds.
    if device_type == "cpu":
        from elc_bert.optim.lamb_cpu import CpuLambKernels

        return CpuLambKernels()
    try:
        from elc_bert.optim.lamb_triton import TritonLambKernels
    except ImportError as error:
        raise UserError(
            "optimizer.params.fused: the GPU kernels need the package triton, which comes with PyTorch's GPU "
            "builds; install such a build, or set the key to false"
        ) from error
    return TritonLambKernels()


def _fused(flats: Sequence[FlatParameter]) -> LambKernels:
    tensors = [tensor for flat in flats for tensor in flat.tensors]
    devices = {tensor.device for tensor in tensors}
    device_type = tensors[0].device.type
    if len(devices) > 1 or device_type not in ("cpu", "cuda"):
        raise UserError(
            "optimizer.params.fused: there are no kernels for parameters and gradients on "
            f"{' and '.join(sorted(map(str, devices)))}; set the key to false"
        )
    if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors):
        raise UserError(
            "optimizer.params.fused: the kernels need contiguous fp32 parameters, gradients and moments; "
            "set the key to false"
        )
    return fused_lamb_kernels(device_type)
