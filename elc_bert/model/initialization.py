"""Initialization of the model's parameters."""

import math

from torch import Tensor, nn


def truncated_normal_(tensor: Tensor, hidden_size: int) -> None:
    """Fill a tensor in place from a normal distribution with std sqrt(2 / (5 D)), truncated at 2 std."""
    std = math.sqrt(2.0 / (5.0 * hidden_size))
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def initialize(module: nn.Module, hidden_size: int) -> None:
    """Initialize a linear or embedding module; others keep PyTorch's defaults (layer norms: 1 and 0)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        truncated_normal_(module.weight, hidden_size)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
