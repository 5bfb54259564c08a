"""The arithmetic of LAMB over flat memory: the plain definition, and which kernels stand in for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from elc_bert.utils.errors import UserError


class Fragment(NamedTuple):
    """The part of one tensor of the model that lies in a parameter of the optimizer."""

    tensor: int
    """Number of the tensor within the parameter's partition, the same on all ranks."""
    start: int
    """First element within the parameter."""
    length: int
    """Elements."""


@dataclass(frozen=True)
class Flat:
    """A parameter of the optimizer during one step."""

    parameter: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    num_tensors: int
    """Tensors of the model of which some rank holds a part of this parameter."""
    fragments: tuple[Fragment, ...]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parameter, its gradient, and its first and second moment."""
        gradient = self.parameter.grad
        assert gradient is not None
        return self.parameter, gradient, self.state["exp_avg"], self.state["exp_avg_sq"]

    @property
    def weight_decay(self) -> float:
        return self.group["weight_decay"]

    @property
    def learning_rate(self) -> float:
        return self.group["lr"]

    @property
    def eps(self) -> float:
        return self.group["eps"]

    @property
    def betas(self) -> tuple[float, float]:
        return self.group["betas"]

    @property
    def bias_corrections(self) -> tuple[float, float]:
        """What the first and second moments are divided by."""
        step = float(self.state["step"])
        beta1, beta2 = self.betas
        return 1 - beta1**step, 1 - beta2**step


class Passes(Protocol):
    """One way to do a step's arithmetic. Parameters, gradients and moments are fp32."""

    def update_moments(self, flats: Sequence[Flat]) -> Tensor:
        """Update both moments from the gradients.

        Returns:
            Sums of squares over this rank's fragments, fp32, [tensors of all flats, 2], contiguous (NCCL
            takes nothing else): of the weights, and of Adam's updates with decay.
        """

    def step(self, flats: Sequence[Flat], trust_ratios: Tensor) -> None:
        """Move the weights, after ``update_moments`` of the same flats, by ``lr * trust_ratio * update``.

        Args:
            trust_ratios: fp32, [tensors of all flats].
        """

    def update_moments_and_step(self, flats: Sequence[Flat]) -> Tensor:
        """Both, with trust ratios of 1; returns what ``update_moments`` does."""


class PlainPasses:
    """The definition, tensor by tensor in PyTorch's operations."""

    def __init__(self) -> None:
        self._updates: dict[Tensor, Tensor] = {}

    def update_moments(self, flats: Sequence[Flat]) -> Tensor:
        if not flats:
            return torch.zeros(0, 2)
        self._updates |= {flat.parameter: self._adam_update(flat) for flat in flats}
        squares = torch.zeros(sum(flat.num_tensors for flat in flats), 2, device=flats[0].parameter.device)
        for number, weight, update in self._pieces(flats):
            squares[number, 0] += torch.linalg.vector_norm(weight).square()
            squares[number, 1] += torch.linalg.vector_norm(update).square()
        return squares

    def step(self, flats: Sequence[Flat], trust_ratios: Tensor) -> None:
        for number, _, update in self._pieces(flats):
            update.mul_(trust_ratios[number])
        for flat in flats:
            flat.parameter.sub_(self._updates.pop(flat.parameter), alpha=flat.learning_rate)

    def update_moments_and_step(self, flats: Sequence[Flat]) -> Tensor:
        squares = self.update_moments(flats)
        self.step(flats, torch.ones(len(squares), device=squares.device))
        return squares

    @staticmethod
    def _adam_update(flat: Flat) -> Tensor:
        p, grad, moment1, moment2 = flat.tensors
        (beta1, beta2), (correction1, correction2) = flat.betas, flat.bias_corrections
        moment1.lerp_(grad, 1 - beta1)
        moment2.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (moment2 / correction2).sqrt_().add_(flat.eps)
        update = (moment1 / correction1).div_(denominator)
        return update.add_(p, alpha=flat.weight_decay)

    def _pieces(self, flats: Sequence[Flat]) -> list[tuple[int, Tensor, Tensor]]:
        """Number of the tensor, this rank's weights, and their update, for each fragment."""
        pieces, first = [], 0
        for flat in flats:
            weight, update = flat.parameter.reshape(-1), self._updates[flat.parameter].reshape(-1)
            for f in flat.fragments:
                end = f.start + f.length
                pieces.append((first + f.tensor, weight[f.start : end], update[f.start : end]))
            first += flat.num_tensors
        return pieces


def choose_passes(flats: Sequence[Flat], fused: bool | None) -> Passes:
    """The kernels for the device that these parameters are on, or the plain definition.

    Args:
        fused: False for the plain definition, None for kernels where they can be used, True for kernels.

    Raises:
        UserError: ``fused`` is True where there are none.
    """
    if fused is False:
        return PlainPasses()
    try:
        return _kernels(flats)
    except UserError:
        if fused:
            raise
        return PlainPasses()


def _kernels(flats: Sequence[Flat]) -> Passes:
    tensors = [tensor for flat in flats for tensor in flat.tensors]
    devices = {tensor.device for tensor in tensors}
    kind = tensors[0].device.type
    if len(devices) > 1 or kind not in ("cpu", "cuda"):
        raise UserError(
            f"optimizer.params.fused: no kernels for parameters and gradients on "
            f"{' and '.join(sorted(map(str, devices)))}: set it to false"
        )
    if not all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors):
        raise UserError(
            "optimizer.params.fused: the kernels need contiguous fp32 parameters, gradients and moments: "
            "set it to false"
        )
    return kernels_for(kind)


def kernels_for(kind: str) -> Passes:
    """The kernels for a type of device, "cpu" or "cuda" (of which ROCm is one to PyTorch).

    Raises:
        UserError: they are not installed.
    """
    # Imported here because both import this module, and because Triton comes with torch's GPU builds only.
    if kind == "cpu":
        from elc_bert.optim.lamb_cpu import CpuPasses

        return CpuPasses()
    try:
        from elc_bert.optim.lamb_triton import TritonPasses
    except ImportError as error:
        raise UserError(
            "optimizer.params.fused: the GPU kernels need the package triton, which comes with torch's GPU "
            "builds: install one, or set it to false"
        ) from error
    return TritonPasses()
