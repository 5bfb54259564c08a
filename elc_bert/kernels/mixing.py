"""Layer mixing that reads the earlier outputs once, forward and backward."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from elc_bert.kernels.autograd import apply
from elc_bert.kernels.reference import Mixing


class MixingKernels(Protocol):
    """Operations that ``FusedMixing`` is built from.

    Tensors are contiguous and have the same shape and type; shares and inner products are float32.
    """

    def combine(self, shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``sum_j shares_j t_j`` for ``shares [n]``."""

    def inner_products(self, gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return ``<gradient, t_j>`` for all j, ``[n]``."""


class FusedMixing(Mixing):
    """Mixing without intermediate sums.

    In the backward pass, plain mixing passes ``share * gradient`` to every earlier output, and autograd adds
    these up one by one. This class keeps the gradients ``g_i`` of the mixtures instead. The gradient of
    ``h_j`` is the sum of ``share_ij g_i`` over all mixtures ``i >= j``, and is computed in one pass when the
    backward pass reaches mixture j, the first one that read ``h_j``. By then it has reached all later
    mixtures, because their inputs depend on this one.
    """

    def __init__(self, kernels: MixingKernels) -> None:
        super().__init__()
        self.kernels = kernels
        self._gradients: dict[int, tuple[Tensor, Tensor]] = {}
        """Shares and gradient of each mixture, by the index of the mixture."""

    @override
    def mix(self, last: Tensor, shares: Tensor) -> Tensor:
        # Under autocast, outputs may have different types; the plain sum has the widest of them.
        is_autocast = torch.is_autocast_enabled(last.device.type)
        mixed: Tensor = apply(_Mix, last.float() if is_autocast else last, shares, self)
        return mixed

    def forward(self, last: Tensor, shares: Tensor) -> Tensor:
        """Store the newest output, and return the mixture."""
        # The output is detached because the graph refers to this object: a reference back would be a cycle.
        self._hidden[len(shares) - 1 :] = [last.detach().contiguous()]
        return self.kernels.combine(shares, self._hidden)

    def backward(self, gradient: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the newest output that a mixture read, and of the mixture's shares."""
        number, gradient = len(shares) - 1, gradient.contiguous()
        self._gradients[number] = shares, gradient
        later = [self._gradients[i] for i in sorted(self._gradients) if i >= number]
        last_gradient = self.kernels.combine(
            torch.stack([shares[number] for shares, _ in later]), [gradient for _, gradient in later]
        )
        shares_gradient = self.kernels.inner_products(gradient, self._hidden[: number + 1])
        if number == 0:
            self._gradients.clear()
        return last_gradient, shares_gradient


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, last: Tensor, shares: Tensor, mixing: FusedMixing) -> Tensor:
        ctx.mixing = mixing
        ctx.save_for_backward(shares)
        return mixing.forward(last, shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.mixing.backward(gradient, *ctx.saved_tensors), None
