"""The arithmetic of LAMB over flat parameters: the interface of its kernels, and the plain definition."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from elc_bert.optim.fragments import FlatParameter


class LambKernels(Protocol):
    """Arithmetic of a LAMB step. Parameters, gradients and moments are fp32.

    The norms of a tensor are known only after all its elements have been read, so a step with trust ratios
    takes two passes over memory: ``update_moments`` and ``step``. A step without them takes one.
    """

    def update_moments(self, flats: Sequence[FlatParameter]) -> Tensor:
        """Update both moments from the gradients.

        Returns:
            Sums of squares over this rank's fragments, of the weights and of Adam's updates with decay: fp32
            [tensors of all flat parameters, 2], contiguous because NCCL requires it.
        """

    def step(self, flats: Sequence[FlatParameter], trust_ratios: Tensor) -> None:
        """Subtract ``lr * trust_ratio * update`` from the weights, after a call of ``update_moments``.

        Args:
            flats: The flat parameters that were passed to ``update_moments``.
            trust_ratios: fp32 [tensors of all flat parameters].
        """

    def update_moments_and_step(self, flats: Sequence[FlatParameter]) -> Tensor:
        """Update moments and weights, with trust ratios of 1; return the result of ``update_moments``."""


class ReferenceLamb(LambKernels):
    """Definition of the arithmetic, tensor by tensor in plain PyTorch."""

    def __init__(self) -> None:
        self._updates: dict[Tensor, Tensor] = {}

    @override
    def update_moments(self, flats: Sequence[FlatParameter]) -> Tensor:
        if not flats:
            return torch.zeros(0, 2)
        self._updates |= {flat.parameter: self._adam_update(flat) for flat in flats}
        squares = torch.zeros(sum(flat.num_tensors for flat in flats), 2, device=flats[0].parameter.device)
        for number, weight, update in self._fragments(flats):
            squares[number, 0] += torch.linalg.vector_norm(weight).square()
            squares[number, 1] += torch.linalg.vector_norm(update).square()
        return squares

    @override
    def step(self, flats: Sequence[FlatParameter], trust_ratios: Tensor) -> None:
        for number, _, update in self._fragments(flats):
            update.mul_(trust_ratios[number])
        for flat in flats:
            flat.parameter.sub_(self._updates.pop(flat.parameter), alpha=flat.learning_rate)

    @override
    def update_moments_and_step(self, flats: Sequence[FlatParameter]) -> Tensor:
        squares = self.update_moments(flats)
        self.step(flats, torch.ones(len(squares), device=squares.device))
        return squares

    @staticmethod
    def _adam_update(flat: FlatParameter) -> Tensor:
        p, grad, moment1, moment2 = flat.tensors
        (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
        moment1.lerp_(grad, 1 - beta1)
        moment2.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (moment2 / correction2).sqrt_().add_(flat.eps)
        update = (moment1 / correction1).div_(denominator)
        return update.add_(p, alpha=flat.weight_decay)

    def _fragments(self, flats: Sequence[FlatParameter]) -> list[tuple[int, Tensor, Tensor]]:
        """Return, for each fragment, the index of its tensor, its weights, and their update."""
        fragments, first = [], 0
        for flat in flats:
            weight, update = flat.parameter.reshape(-1), self._updates[flat.parameter].reshape(-1)
            for f in flat.fragments:
                end = f.start + f.length
                fragments.append((first + f.tensor, weight[f.start : end], update[f.start : end]))
            first += flat.num_tensors
        return fragments
