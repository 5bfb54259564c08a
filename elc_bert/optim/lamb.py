"""LAMB (You et al. 2020, "Large batch optimization for deep learning", algorithm 2), exact when sharded."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Fragment:
    """The part of one parameter tensor that lies in a flat partition."""

    tensor: int
    """Number of the tensor within its optimizer group, the same on all ranks."""
    start: int
    """First element within the partition."""
    length: int
    """Elements."""


@dataclass(frozen=True)
class Partition:
    """What a flat optimizer parameter under ZeRO consists of."""

    num_tensors: int
    """Parameter tensors in the group, over all ranks."""
    fragments: tuple[Fragment, ...]
    """The pieces this rank holds; elements outside of them are padding."""
    process_group: Any
    """Ranks that hold the rest of the group."""


class Lamb(Optimizer):
    """Adam's step with decoupled weight decay, rescaled per parameter tensor by ``|p| / |u|``.

    With bias-corrected moments, ``u = m / (sqrt(v) + eps) + weight_decay * p`` and
    ``p -= lr * ratio * u``. The trust ratio is ``|p| / |u|`` where ``weight_decay > 0`` and both norms
    are positive, else 1, so that groups without decay take Adam's step, as in the published recipe.

    ZeRO hands an optimizer flat partitions that cut through tensors. ``shard`` tells which tensors a
    partition is made of; the squared norms are then summed over all ranks, by one all-reduce of two
    numbers per decaying tensor, and the step is that of the unsharded optimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._partitions: dict[Tensor, Partition] = {}
        self._only_allocate = False

    def shard(self, partitions: Mapping[Tensor, Partition]) -> None:
        """Say what the flat parameters of the groups are made of. Call on all ranks."""
        self._partitions = dict(partitions)

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
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._allocate(p)
            if self._only_allocate:
                continue
            updates = [self._adam_update(p, group) for p in params]
            if group["weight_decay"] > 0:
                self._scale_by_trust_ratio(group, params, updates)
            for p, update in zip(params, updates, strict=True):
                p.sub_(update, alpha=group["lr"])
        return loss

    def _allocate(self, p: Tensor) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _adam_update(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        state["step"] += 1
        step = state["step"].item()
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (state["exp_avg"] / (1 - beta1**step)).div_(denominator)
        return update.add_(p, alpha=group["weight_decay"])

    def _scale_by_trust_ratio(
        self, group: dict[str, Any], params: list[Tensor], updates: list[Tensor]
    ) -> None:
        """Multiply each tensor's update, in place, by its trust ratio."""
        partition = self._partitions.get(group["params"][0])
        if partition is None:
            pieces = [(i, p, u) for i, (p, u) in enumerate(zip(params, updates, strict=True))]
            num_tensors = len(params)
        else:
            flat_param, flat_update = group["params"][0], updates[0]
            pieces = [
                (f.tensor, flat_param.narrow(0, f.start, f.length), flat_update.narrow(0, f.start, f.length))
                for f in partition.fragments
            ]
            num_tensors = partition.num_tensors
        squares = torch.zeros(num_tensors, 2, dtype=torch.float32, device=group["params"][0].device)
        for number, p, update in pieces:
            squares[number, 0] = torch.linalg.vector_norm(p).square()
            squares[number, 1] = torch.linalg.vector_norm(update).square()
        if partition is not None:
            dist.all_reduce(squares, group=partition.process_group)
        weight_norm, update_norm = squares.sqrt().unbind(1)
        ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        for number, _, update in pieces:
            update.mul_(ratio[number])
