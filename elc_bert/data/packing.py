"""A step's micro-batches on their way from a worker process to the training process.

A worker hands over every tensor through a file descriptor of its own. With hundreds of micro-batches
in a step that would exceed the usual limit of open files, so they travel as four tensors.

Shapes: ``A`` micro-batches of ``m`` samples, ``T`` tokens of a sample, ``N`` tokens to predict in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elc_bert.data.steps import MicroBatch


@dataclass(frozen=True)
class PackedStep:
    """The micro-batches that one rank reads in one step, put together."""

    input_ids: Tensor
    """int64 [A, m, T]."""
    attention_mask: Tensor
    """bool [A, m, T]."""
    positions: Tensor
    """int64 [N], within their micro-batch."""
    targets: Tensor
    """int64 [N]."""
    predicted: list[int]
    """Tokens to predict of each micro-batch; N altogether."""
    tokens: list[int]
    """Real tokens of each micro-batch."""

    @classmethod
    def pack(cls, micro_batches: Sequence[MicroBatch]) -> PackedStep:
        """Put micro-batches of one shape together."""
        return cls(
            torch.stack([micro.input_ids for micro in micro_batches]),
            torch.stack([micro.attention_mask for micro in micro_batches]),
            torch.cat([micro.positions for micro in micro_batches]),
            torch.cat([micro.targets for micro in micro_batches]),
            [len(micro.targets) for micro in micro_batches],
            [micro.tokens for micro in micro_batches],
        )

    def unpack(self) -> list[MicroBatch]:
        """The micro-batches again, as views."""
        parts = zip(
            self.input_ids,
            self.attention_mask,
            self.positions.split(self.predicted),
            self.targets.split(self.predicted),
            self.tokens,
            strict=True,
        )
        return [MicroBatch(*part) for part in parts]

    def pin_memory(self) -> PackedStep:
        """A copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        names = ("input_ids", "attention_mask", "positions", "targets")
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})
