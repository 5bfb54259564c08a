"""Building blocks of a layer, and the choice of the kernels that they compute with.

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``M`` feed-forward.
"""

import torch
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Choice, Kernels, Mixing, kernels_for


class KernelUser:
    """Mixin for modules that compute with kernels, which ``use_kernels`` chooses."""

    kernels: Choice | Kernels = "auto"
    """Kernels, or a choice for ``kernels_for``, which then decides by the device of each input."""

    def kernels_for_input(self, x: Tensor) -> Kernels:
        """Return the kernels for the device that ``x`` is on."""
        kernels = self.kernels
        return kernels if isinstance(kernels, Kernels) else kernels_for(x.device.type, kernels)


def use_kernels(model: nn.Module, kernels: Choice | Kernels) -> None:
    """Make every module of ``model`` compute with these kernels.

    Args:
        model: Any module, usually an ``ElcBertForMaskedLM``. Models start with ``auto``.
        kernels: Kernels, or a choice for ``kernels_for``.
    """
    for module in model.modules():
        if isinstance(module, KernelUser):
            module.kernels = kernels


class Linear(KernelUser, nn.Linear):
    """``torch.nn.Linear``, computed by the chosen kernels."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return self.kernels_for_input(input).linear(input, self.weight, self.bias)


class LayerMixture(nn.Module):
    """Mixture ``sum_j softmax(a)_j h_j`` of the outputs ``h_0 .. h_{n-1}`` of embedding and earlier layers.

    Args:
        inputs: Number of outputs that are mixed.
        favor_last: Start with the weight of the last output at 1 instead of 0.
    """

    def __init__(self, inputs: int, favor_last: bool) -> None:
        super().__init__()
        weights = torch.zeros(inputs)
        if favor_last:
            weights[-1] = 1.0
        self.inputs = inputs
        self.weights = nn.Parameter(weights)

    def shares(self) -> Tensor:
        """Return the normalized weight of each input, float32 ``[inputs]``, summing to 1."""
        return torch.softmax(self.weights.float(), dim=0)

    def forward(self, last: Tensor, mixing: Mixing) -> Tensor:
        """Mix the newest output ``last [B, T, D]`` with the earlier ones, which ``mixing`` holds."""
        return mixing.mix(last, self.shares())


class FeedForward(KernelUser, nn.Module):
    """``LN -> D to 2M -> GeGLU -> LN -> M to D -> dropout`` (no residual; Shazeer 2020 for GeGLU)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, m = config.hidden_size, config.intermediate_size
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.expand = Linear(d, 2 * m, bias=False)
        self.contract = Linear(m, d, bias=False)
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``."""
        kernels = self.kernels_for_input(x)
        inner = kernels.geglu_norm(self.expand(self.pre_norm(x)), self.eps)
        return kernels.dropout(self.contract(inner), self.dropout if self.training else 0.0)

    @torch.no_grad()
    def scale_weights(self, factor: float) -> None:
        """Multiply both matrices by ``factor``, so that deep layers start with less influence."""
        self.expand.weight.mul_(factor)
        self.contract.weight.mul_(factor)
