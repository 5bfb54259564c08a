"""How the parameters start."""

import math

from torch import Tensor, nn


def truncated_normal_(tensor: Tensor, hidden_size: int) -> None:
    """Fill in place from a normal of standard deviation sqrt(2 / (5 D)), cut at two of them."""
    std = math.sqrt(2.0 / (5.0 * hidden_size))
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def initialise(module: nn.Module, hidden_size: int) -> None:
    """Start one linear or embedding module; every other kind keeps PyTorch's start (norms: 1 and 0)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        truncated_normal_(module.weight, hidden_size)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
