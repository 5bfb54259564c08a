"""Collation of a step's micro-batches for their transfer from a data worker to the training process.

PyTorch would pass every tensor through shared memory and a socket in the temporary directory. A worker that
runs out of shared memory (containers often have 64 MiB), of file descriptors or of room for the socket's name
fails in a background thread, and the training process waits for it without end. So the micro-batches are
concatenated, and sent as bytes through the worker's pipe.

Shapes: ``R`` rows of all micro-batches, ``T`` tokens of a row, ``N`` tokens to predict in all micro-batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch


@dataclass(frozen=True)
class CollatedStep:
    """Concatenated micro-batches of one step on one rank."""

    input_ids: Tensor
    """Token ids after masking, int64 ``[R, T]``."""
    attention_mask: Tensor
    """Attention mask, bool or int32 ``[R, T]``; see ``MicroBatch``."""
    positions: Tensor
    """Flat positions to predict, relative to their micro-batch, int64 ``[N]``."""
    targets: Tensor
    """Token ids to predict, int64 ``[N]``."""
    rows: list[int]
    """Number of rows of each micro-batch, with the sum R."""
    predicted: list[int]
    """Number of tokens to predict in each micro-batch, with the sum N."""
    tokens: list[int]
    """Number of real tokens of each micro-batch."""
    words: list[int]
    """Number of words of each micro-batch."""

    @classmethod
    def collate(cls, micro_batches: Sequence[MicroBatch]) -> CollatedStep:
        """Concatenate micro-batches of the same sequence length."""
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

    def micro_batches(self) -> list[MicroBatch]:
        """Return the micro-batches, as views of the concatenated tensors."""
        parts = zip(
            torch.split(self.input_ids, self.rows),
            torch.split(self.attention_mask, self.rows),
            torch.split(self.positions, self.predicted),
            torch.split(self.targets, self.predicted),
            self.tokens,
            self.words,
            strict=True,
        )
        return [MicroBatch(*part) for part in parts]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tensors by value, see the top of this file."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return _from_arrays, tuple(f.numpy() if isinstance(f, Tensor) else f for f in fields)

    def pin_memory(self) -> CollatedStep:
        """Return a copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        names = ("input_ids", "attention_mask", "positions", "targets")
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})


def _from_arrays(*fields: Any) -> CollatedStep:
    tensors: list[Any] = [torch.from_numpy(f) if isinstance(f, np.ndarray) else f for f in fields]
    return CollatedStep(*tensors)
