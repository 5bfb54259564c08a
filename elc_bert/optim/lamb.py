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

from elc_bert.optim.passes import Flat, Fragment, Passes, choose_passes


@dataclass(frozen=True)
class Partition:
    """What one parameter of the optimizer consists of, when ZeRO has cut the model's tensors."""

    names: tuple[str, ...]
    """The model's tensors of which any rank holds a part, in an order that is the same on all ranks."""
    fragments: tuple[Fragment, ...]
    """The pieces this rank holds; elements outside of them are padding."""
    process_group: Any = None
    """Ranks that hold the rest of these tensors; None where this rank holds all."""
    device: torch.device | None = None
    """Where that group's backend wants tensors; None for where the parameter is."""


@dataclass(frozen=True)
class TensorNorms:
    """What the last step did to one tensor of the model."""

    weight: float
    """Norm of the tensor before the step."""
    update: float
    """Norm of Adam's update with decay, before the trust ratio and the learning rate."""
    trust_ratio: float | None
    """None in a group without decay, which takes Adam's step."""
    learning_rate: float

    @property
    def update_to_weight(self) -> float:
        """Length of the step that was taken, relative to the tensor; infinite for a tensor of zeros."""
        step = self.learning_rate * (1.0 if self.trust_ratio is None else self.trust_ratio) * self.update
        return step / self.weight if self.weight > 0 else float("inf") if step > 0 else 0.0


@dataclass
class _Measured:
    """Sums of squares (fp32, [tensors, 2]: weights and updates) of one parameter's tensors."""

    squares: Tensor
    joined: bool
    decays: bool
    learning_rate: float


class Lamb(Optimizer):
    """Adam's step with decoupled weight decay, rescaled per parameter tensor by ``|p| / |u|``.

    With bias-corrected moments, ``u = m / (sqrt(v) + eps) + weight_decay * p`` and
    ``p -= lr * ratio * u``. The trust ratio is ``|p| / |u|`` where ``weight_decay > 0`` and both norms
    are positive, else 1, so that groups without decay take Adam's step, as in the published recipe.

    ZeRO hands an optimizer flat partitions that cut through tensors. ``shard`` tells which tensors a
    partition is made of; the squared norms are then summed over all ranks, by one all-reduce of two
    numbers per decaying tensor, and the step is that of the unsharded optimizer.

    Args:
        params: parameters, or groups of them; fp32.
        fused: True for the kernels that pass over memory once or twice per step, False for the plain
            definition in PyTorch's operations, None for the kernels where they can be used.

    Raises:
        UserError: ``fused`` is True where there are no kernels (raised by ``step``).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._fused = fused
        self._partitions: dict[Tensor, Partition] = {}
        self._measured: dict[Tensor, _Measured] = {}
        self._only_allocate = False
        self._passes: dict[str, Passes] = {}

    def shard(self, partitions: Mapping[Tensor, Partition]) -> None:
        """Say what the parameters of the groups are made of. Call on all ranks.

        A parameter that is not told of is one whole tensor.
        """
        self._partitions = dict(partitions)
        self._measured.clear()

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Within this block ``step`` allocates state and changes no parameter.

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
        """One update of every parameter that has a gradient (fp32, same shape as the parameter)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        flats = [
            self._flat(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if self._only_allocate or not flats:
            return loss
        torch._foreach_add_([flat.state["step"] for flat in flats], 1)
        passes = self._passes_for(flats)
        decaying = [flat for flat in flats if flat.weight_decay > 0]
        others = [flat for flat in flats if not flat.weight_decay > 0]
        squares = passes.update_moments(decaying)
        arrival = self._join(decaying, squares)
        # The other groups need no norm of other ranks, so they take their step while those travel.
        squares_of_others = passes.update_moments_and_step(others)
        squares = arrival()
        weight_norm, update_norm = squares.sqrt().unbind(1)
        ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        passes.step(decaying, ratio)
        self._remember(decaying, squares, joined=True)
        self._remember(others, squares_of_others, joined=False)
        return loss

    def norms(self) -> dict[str, TensorNorms]:
        """Norms and trust ratios of the last step by tensor name. Collective where ``shard`` named a group.

        Steps themselves exchange the norms of decaying tensors only; those of the others are summed over
        the ranks here, when somebody asks.
        """
        found = {}
        for number, (p, measured) in enumerate(self._measured.items()):
            partition = self._partition(p)
            if not measured.joined:
                if partition.process_group is not None:
                    measured.squares = _all_reduced(measured.squares, partition)()
                measured.joined = True
            names = partition.names if p in self._partitions else (f"parameter {number}",)
            for name, (weight, update) in zip(names, measured.squares.sqrt().tolist(), strict=True):
                ratio = weight / update if weight > 0 and update > 0 else 1.0
                found[name] = TensorNorms(
                    weight, update, ratio if measured.decays else None, measured.learning_rate
                )
        return found

    def _partition(self, p: Tensor) -> Partition:
        return self._partitions.get(p) or _whole(p.numel())

    def _flat(self, p: Tensor, group: dict[str, Any]) -> Flat:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        partition = self._partition(p)
        return Flat(p, state, group, len(partition.names), partition.fragments)

    def _passes_for(self, flats: Sequence[Flat]) -> Passes:
        device = flats[0].parameter.device.type
        if device not in self._passes:
            self._passes[device] = choose_passes(flats, self._fused)
        return self._passes[device]

    def _join(self, flats: Sequence[Flat], squares: Tensor) -> Callable[[], Tensor]:
        """Begin to sum over the ranks; the function that is returned waits and gives the sums."""
        partition = self._partition(flats[0].parameter) if flats else None
        if partition is None or partition.process_group is None:
            return lambda: squares
        return _all_reduced(squares, partition)

    def _remember(self, flats: Sequence[Flat], squares: Tensor, joined: bool) -> None:
        parts = squares.split([flat.num_tensors for flat in flats])
        for flat, part in zip(flats, parts, strict=True):
            self._measured[flat.parameter] = _Measured(
                part, joined, flat.weight_decay > 0, flat.learning_rate
            )


@functools.cache
def _whole(length: int) -> Partition:
    """One tensor that nobody has cut."""
    return Partition(("the whole",), (Fragment(0, 0, length),))


def _all_reduced(squares: Tensor, partition: Partition) -> Callable[[], Tensor]:
    sent = squares.to(partition.device or squares.device)
    handle = dist.all_reduce(sent, group=partition.process_group, async_op=True)

    def wait() -> Tensor:
        handle.wait()
        return sent.to(squares.device)

    return wait
