"""Comparison of tensors, and of functions with their gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def relative_error(found: Tensor, expected: Tensor, floor: float = torch.finfo().tiny) -> float:
    """Return the largest absolute difference divided by the largest absolute expected element.

    Args:
        found: Tensor to check.
        expected: Expected tensor of the same shape.
        floor: Smallest divisor, for tensors that are zero up to rounding errors.
    """
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=floor)).item()


def outputs_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the output of a function and the gradients of its inputs, on the CPU, for a random gradient."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    generator = torch.Generator().manual_seed(5)
    output.backward(torch.randn(output.shape, generator=generator).to(output))
    return [tensor.cpu() for tensor in (output.detach(), *(tensor.grad for tensor in inputs))]


def assert_alike(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    dtype: torch.dtype,
    tolerance: float,
    floor: float = torch.finfo().tiny,
) -> None:
    """Check that tensors have this type, and the shapes and approximately the values of those expected."""
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == exact.shape
        assert relative_error(ours.float(), exact, floor) <= tolerance
