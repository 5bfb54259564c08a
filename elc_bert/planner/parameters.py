"""Count the model's parameters without allocating them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import parameter_groups

SMALL = 100_000
"""Number of elements below which ZeRO 3 keeps a tensor whole on all devices (DeepSpeed's default of
``stage3_param_persistence_threshold``)."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of trainable parameters."""

    embedding: int
    """Word embeddings, tied to the output matrix, and relative-position embeddings with their norm."""
    layers: int
    """Attention and feed-forward of all layers."""
    mixing: int
    """Layer weights: the share of every earlier output in each layer's input."""
    head: int
    """Prediction head, without the tied output matrix."""
    groups: tuple[int, int]
    """Parameters with and without weight decay, the optimizer's two groups."""
    decaying_tensors: int
    """Number of tensors with weight decay, which have a trust ratio."""
    largest: int
    """Number of elements of the largest tensor."""
    small: int
    """Parameters in tensors of fewer than ``SMALL`` elements."""

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embedding + self.layers + self.mixing + self.head


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of the model, which is built on PyTorch's meta device."""
    with torch.device("meta"), _SkipInitialization():
        model = ElcBertForMaskedLM(config)
    sizes = [parameter.numel() for parameter in model.parameters()]
    parts = dict.fromkeys(("embedding", "layers", "mixing", "head"), 0)
    for name, parameter in model.named_parameters():
        parts[_part_of(name)] += parameter.numel()
    decaying, others = (group["params"] for group in parameter_groups(model, weight_decay=1.0))
    return Parameters(
        **parts,
        groups=(sum(p.numel() for p in decaying), sum(p.numel() for p in others)),
        decaying_tensors=len(decaying),
        largest=max(sizes),
        small=sum(size for size in sizes if size < SMALL),
    )


class _SkipInitialization(TorchFunctionMode):
    """Skip initialization, because on the meta device it would load a compiler."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def _part_of(name: str) -> str:
    if "mixture" in name:
        return "mixing"
    return next(part for part in ("embedding", "layers", "head") if part in name.split("."))
