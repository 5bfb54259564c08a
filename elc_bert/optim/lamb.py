"""LAMB (You et al. 2020, "Large batch optimization for deep learning", algorithm 2), exact when sharded."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from elc_bert.optim.dispatch import choose_lamb_kernels
from elc_bert.optim.fragments import FlatParameter, Fragment
from elc_bert.optim.lamb_reference import LambKernels


@dataclass(frozen=True)
class Partition:
    """Contents of one parameter of the optimizer if ZeRO has partitioned the model's tensors."""

    names: tuple[str, ...]
    """Names of the tensors that have a part in this parameter on any rank, in the same order on all ranks."""
    fragments: tuple[Fragment, ...]
    """Fragments that this rank holds; elements outside of them are padding."""
    process_group: Any = None
    """Ranks among which these tensors are partitioned; None if this rank holds all of them."""
    device: torch.device | None = None
    """Device on which the process group's backend needs tensors; None for that of the parameter."""


@dataclass(frozen=True)
class TensorNorms:
    """Norms and trust ratio of one of the model's tensors in the last step."""

    weight: float
    """Norm of the tensor before the step."""
    update: float
    """Norm of Adam's update with decay, before the trust ratio and the learning rate."""
    trust_ratio: float | None
    """Trust ratio; None in a group without weight decay, which takes Adam's step."""
    learning_rate: float
    """Learning rate of the step."""

    @property
    def update_to_weight(self) -> float:
        """Norm of the step relative to that of the tensor; infinite for a tensor of zeros that changed."""
        step = self.learning_rate * (1.0 if self.trust_ratio is None else self.trust_ratio) * self.update
        return step / self.weight if self.weight > 0 else float("inf") if step > 0 else 0.0


@dataclass
class _Measured:
    """Measurements of one parameter of the optimizer in the last step."""

    squares: Tensor
    """Sums of the squares of weights and updates, fp32 [tensors, 2]."""
    is_reduced: bool
    """True if the sums are over all ranks, not only over the fragments of this rank."""
    decays: bool
    """True if the parameter has weight decay, and therefore trust ratios."""
    learning_rate: float
    """Learning rate of the step."""


class Lamb(Optimizer):
    """Adam's step with decoupled weight decay, rescaled per parameter tensor by ``|p| / |u|``.

    With bias-corrected moments, ``u = m / (sqrt(v) + eps) + weight_decay * p`` and
    ``p -= lr * ratio * u``. The trust ratio is ``|p| / |u|`` where ``weight_decay > 0`` and both norms
    are positive, else 1, so that groups without decay take Adam's step, as in the published recipe.

    Under ZeRO the optimizer's parameters are flat partitions, whose boundaries lie anywhere within tensors.
    ``shard`` declares which tensors a partition consists of. The squared norms are then summed over all
    ranks, by one all-reduce of two numbers per tensor with weight decay, so that the step is that of the
    unsharded optimizer.

    Args:
        params: fp32 parameters, or parameter groups.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Number that is added to the denominator of Adam's update.
        weight_decay: Coefficient of the decoupled weight decay.
        fused: True for the fused kernels, which pass over memory once or twice per step, False for the plain
            definition, None for the fused kernels if they can be used.

    Raises:
        UserError: ``fused`` is True, and the fused kernels cannot be used (raised by ``step``).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._fused = fused
        self._partitions: dict[Tensor, Partition] = {}
        self._measured: dict[Tensor, _Measured] = {}
        self._only_allocate = False
        self._kernels: dict[str, LambKernels] = {}
        """Kernels by type of device."""

    def shard(self, partitions: Mapping[Tensor, Partition]) -> None:
        """Declare which tensors the optimizer's parameters consist of. Call this on all ranks.

        Args:
            partitions: Contents by parameter; a parameter without an entry is one whole tensor.
        """
        self._partitions = dict(partitions)
        self._measured.clear()

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Return a context in which ``step`` only allocates state and changes no parameter.

        Some of DeepSpeed's wrappers call ``step`` with zero gradients when they are built. That call must
        neither decay the weights nor count for the bias correction.
        """
        self._only_allocate = True
        try:
            yield
        finally:
            self._only_allocate = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient (fp32, with the shape of the parameter)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        flats = [
            self._flat_parameter(p, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if self._only_allocate or not flats:
            return loss
        torch._foreach_add_([flat.state["step"] for flat in flats], 1)
        kernels = self._kernels_for(flats)
        decaying = [flat for flat in flats if flat.weight_decay > 0]
        others = [flat for flat in flats if not flat.weight_decay > 0]
        squares = kernels.update_moments(decaying)
        reduced_squares = self._reduce(decaying, squares)
        # The other groups need no norms, so their step overlaps with the all-reduce.
        squares_of_others = kernels.update_moments_and_step(others)
        squares = reduced_squares()
        weight_norm, update_norm = squares.sqrt().unbind(1)
        ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        kernels.step(decaying, ratio)
        self._record(decaying, squares, is_reduced=True)
        self._record(others, squares_of_others, is_reduced=False)
        return loss

    def norms(self) -> dict[str, TensorNorms]:
        """Return norms and trust ratios of the last step by tensor name.

        Collective if ``shard`` declared a process group: steps sum over the ranks only the norms of tensors
        with weight decay, and those of the others are summed here.
        """
        found = {}
        for number, (p, measured) in enumerate(self._measured.items()):
            partition = self._partition(p)
            if not measured.is_reduced:
                if partition.process_group is not None:
                    measured.squares = _all_reduce(measured.squares, partition)()
                measured.is_reduced = True
            names = partition.names if p in self._partitions else (f"parameter {number}",)
            for name, (weight, update) in zip(names, measured.squares.sqrt().tolist(), strict=True):
                ratio = weight / update if weight > 0 and update > 0 else 1.0
                found[name] = TensorNorms(
                    weight, update, ratio if measured.decays else None, measured.learning_rate
                )
        return found

    def _partition(self, p: Tensor) -> Partition:
        return self._partitions.get(p) or _whole(p.numel())

    def _flat_parameter(self, p: Tensor, group: dict[str, Any]) -> FlatParameter:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        partition = self._partition(p)
        return FlatParameter(p, state, group, len(partition.names), partition.fragments)

    def _kernels_for(self, flats: Sequence[FlatParameter]) -> LambKernels:
        device = flats[0].parameter.device.type
        if device not in self._kernels:
            self._kernels[device] = choose_lamb_kernels(flats, self._fused)
        return self._kernels[device]

    def _reduce(self, flats: Sequence[FlatParameter], squares: Tensor) -> Callable[[], Tensor]:
        """Start to sum over the ranks, and return a function that waits for the sums and returns them."""
        partition = self._partition(flats[0].parameter) if flats else None
        if partition is None or partition.process_group is None:
            return lambda: squares
        return _all_reduce(squares, partition)

    def _record(self, flats: Sequence[FlatParameter], squares: Tensor, is_reduced: bool) -> None:
        parts = squares.split([flat.num_tensors for flat in flats])
        for flat, part in zip(flats, parts, strict=True):
            self._measured[flat.parameter] = _Measured(
                part, is_reduced, flat.weight_decay > 0, flat.learning_rate
            )


@functools.cache
def _whole(length: int) -> Partition:
    """Return the partition of one whole tensor."""
    return Partition(("the whole",), (Fragment(0, 0, length),))


def _all_reduce(squares: Tensor, partition: Partition) -> Callable[[], Tensor]:
    """Start an all-reduce, and return a function that waits for its result and returns it."""
    sent = squares.to(partition.device or squares.device)
    handle = dist.all_reduce(sent, group=partition.process_group, async_op=True)

    def wait() -> Tensor:
        handle.wait()
        return sent.to(squares.device)

    return wait
