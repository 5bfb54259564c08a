"""A step's micro-batches on their way from a worker process to the training process.

A worker hands over every tensor through a file descriptor of its own. With hundreds of micro-batches
in a step that would exceed the usual limit of open files, so they travel as four tensors.

Shapes: ``R`` rows of all micro-batches, ``T`` tokens of a row, ``N`` tokens to predict in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch


@dataclass(frozen=True)
class StepInTransit:
    """The micro-batches that one rank reads in one step, put together."""

    input_ids: Tensor
    """int64 [R, T]."""
    attention_mask: Tensor
    """bool or int32 [R, T]."""
    positions: Tensor
    """int64 [N], within their micro-batch."""
    targets: Tensor
    """int64 [N]."""
    rows: list[int]
    """Rows of each micro-batch; R altogether."""
    predicted: list[int]
    """Tokens to predict of each micro-batch; N altogether."""
    tokens: list[int]
    """Real tokens of each micro-batch."""
    words: list[int]
    """Words of each micro-batch."""

    @classmethod
    def load(cls, micro_batches: Sequence[MicroBatch]) -> StepInTransit:
        """Put micro-batches of one sequence length together."""
        return cls(
            torch.cat([micro.input_ids for micro in micro_batches]),
            torch.cat([micro.attention_mask for micro in micro_batches]),
            torch.cat([micro.positions for micro in micro_batches]),
            torch.cat([micro.targets for micro in micro_batches]),
            [len(micro.input_ids) for micro in micro_batches],
            [len(micro.targets) for micro in micro_batches],
            [micro.tokens for micro in micro_batches],
            [micro.words for micro in micro_batches],
        )

    def unload(self) -> list[MicroBatch]:
        """The micro-batches again, as views."""
        parts = zip(
            self.input_ids.split(self.rows),
            self.attention_mask.split(self.rows),
            self.positions.split(self.predicted),
            self.targets.split(self.predicted),
            self.tokens,
            self.words,
            strict=True,
        )
        return [MicroBatch(*part) for part in parts]

    def pin_memory(self) -> StepInTransit:
        """A copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        names = ("input_ids", "attention_mask", "positions", "targets")
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})
