"""Typed access to ``torch.autograd.Function``."""

from typing import Any

from torch.autograd import Function


def apply(function: type[Function], *inputs: Any) -> Any:
    """Return ``function.apply(*inputs)``, which has no type annotations in PyTorch (2.13)."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]
