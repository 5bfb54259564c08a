"""Counting the model's parameters without making room for them."""

from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import parameter_groups

SMALL = 100_000
"""ZeRO 3 keeps tensors of fewer numbers whole on all devices: stage3_param_persistence_threshold."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of trainable numbers."""

    embedding: int
    """Word embeddings, which are the output matrix too, and relative positions with their norm."""
    layers: int
    """Attention and feed-forward of all layers."""
    mixing: int
    """What each layer takes of every earlier output."""
    head: int
    """Without the tied output matrix."""
    groups: tuple[int, int]
    """The optimizer's groups: with and without weight decay."""
    decaying_tensors: int
    """Tensors that have a trust ratio."""
    largest: int
    """The largest tensor."""
    small: int
    """In tensors of fewer than ``SMALL`` numbers."""

    @property
    def total(self) -> int:
        return self.embedding + self.layers + self.mixing + self.head


def count_parameters(config: ModelConfig) -> Parameters:
    """Counts of the real model, which is built on PyTorch's device without memory."""
    with torch.device("meta"), _Uninitialised():
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


class _Uninitialised(TorchFunctionMode):
    """Within this block tensors are not initialised: on the device without memory that loads a compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _part_of(name: str) -> str:
    if "mixture" in name:
        return "mixing"
    return next(part for part in ("embedding", "layers", "head") if part in name.split("."))
