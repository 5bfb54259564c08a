"""Layer mixing in one pass over the earlier outputs, forward and backward."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from elc_bert.kernels.reference import Mixing


class Sums(Protocol):
    """What mixing computes with. Tensors are contiguous and alike; shares and products float32."""

    def combine(self, shares: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``sum_j shares_j t_j``, ``shares [n]``."""

    def inner_products(self, gradient: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """``<gradient, t_j>`` for all j, ``[n]``."""


class FusedMixing(Mixing):
    """Mixtures that leave no intermediate sums behind.

    Backward, plain mixing hands ``share * gradient`` to every earlier output, where autograd adds them up
    one by one. Here the gradients ``g_i`` of the mixtures themselves are kept, and the gradient of ``h_j``,
    the sum of ``share_ij g_i`` over all mixtures ``i >= j``, is taken in one pass when mixture j, the first
    to have read ``h_j``, is reached. All later ones have been by then: what they read came out of this one.
    """

    def __init__(self, sums: Sums):
        super().__init__()
        self.sums = sums
        self._gradients: dict[int, tuple[Tensor, Tensor]] = {}
        """By number of the mixture: its shares, and its gradient."""

    def mix(self, last: Tensor, shares: Tensor) -> Tensor:
        # Under autocast outputs may be of different types; adding them up plainly gives the widest.
        wide = torch.is_autocast_enabled(last.device.type)
        return _Mix.apply(last.float() if wide else last, shares, self)

    def forward(self, last: Tensor, shares: Tensor) -> Tensor:
        # Detached: otherwise the graph, which refers to this object, would be referred to by it.
        self._hidden[len(shares) - 1 :] = [last.detach().contiguous()]
        return self.sums.combine(shares, self._hidden)

    def backward(self, gradient: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the newest output that a mixture read, and of its shares."""
        number, gradient = len(shares) - 1, gradient.contiguous()
        self._gradients[number] = shares, gradient
        later = [self._gradients[i] for i in sorted(self._gradients) if i >= number]
        of_last = self.sums.combine(
            torch.stack([shares[number] for shares, _ in later]), [gradient for _, gradient in later]
        )
        of_shares = self.sums.inner_products(gradient, self._hidden[: number + 1])
        if number == 0:
            self._gradients.clear()
        return of_last, of_shares


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, last: Tensor, shares: Tensor, mixing: FusedMixing) -> Tensor:
        ctx.mixing = mixing
        ctx.save_for_backward(shares)
        return mixing.forward(last, shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.mixing.backward(gradient, *ctx.saved_tensors), None
